"""A slot as the supervisor sees it: a child process and the socket to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.sandbox.limits import LEAST_BYTES, memory_of

_START_S: Final = 60.0
_WORN_PART: Final = 0.9  # DuckDB counts up to 0.8: between statements what is above has leaked
_WORDS_BYTES: Final = 4_096
_MOST_BYTES: Final = 2**20  # of what a slot says here: rows go elsewhere, and it may be taken over
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Each arena maps 64 MiB that count against the slot's address space; Arrow's own pool a gigabyte.
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # Answers are copied through buffers of some megabytes: given back each time, they cost a page fault a page again.
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
}
"""All that a slot knows of its surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """How slots are started.

    Attributes:
        catalog_dir: Folder of frozen catalogs.
        memory_bytes: Memory of one slot.
        checked: An earlier slot has checked the signatures of the extensions.
    """

    catalog_dir: Path
    memory_bytes: int
    checked: bool = False


class Child:
    """One running slot. Made by `start`; `kill` and `ended` must follow.

    Attributes:
        data_url: The read proxy it is locked to; None before its first statement.
        catalog_path: The catalog it has attached.
        served: Statements so far.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._words = asyncio.create_task(_last_words(process.stderr))
        self.data_url: str | None = None
        self.catalog_path: str | None = None
        self.served = 0
        self._worn_bytes: float | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """The process has not been seen to end, nor been killed."""
        return self._process.returncode is None and not self._writer.is_closing()

    @classmethod
    async def start(cls, settings: ChildSettings) -> Child:
        """Start a slot and wait until it is warm.

        Raises:
            OSError: It cannot be started, or ended at once.
            TimeoutError: It did not get ready.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await _spawn(theirs.fileno(), settings)
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=wire.BUFFER_BYTES)
        child = cls(process, reader, writer)
        try:
            async with asyncio.timeout(_START_S):
                kind, _ = await child.receive()
            if kind is not Kind.READY:
                raise ConnectionResetError("a slot did not say that it is ready")
            child.measure(settings.memory_bytes)
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    def measure(self, memory_bytes: int) -> None:
        """Note what it holds when it is fresh; it is `worn` when little is left of the rest of `memory_bytes`."""
        _, fresh = memory_of(self.pid)
        self._worn_bytes = fresh + _WORN_PART * max(LEAST_BYTES, memory_bytes - fresh)

    @property
    def worn(self) -> bool:
        """It holds so much between statements that the next one would not have its part."""
        try:
            return self._worn_bytes is not None and memory_of(self.pid)[1] > self._worn_bytes
        except OSError:  # it has ended
            return True

    def send(self, frame: bytes) -> None:
        """Queue a frame; a slot that is gone is noticed by `receive`."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    def begin(self, job: bytes, rows: socket.socket) -> None:
        """Hand over a JOB frame and the socket for its rows; a slot that is gone is noticed by `receive`."""
        try:
            with self._writer.get_extra_info("socket").dup() as channel:
                sent = socket.send_fds(channel, [job], [rows.fileno()])
        except OSError:
            self.kill()
        else:
            self.send(job[sent:])

    async def receive(self) -> tuple[Kind, bytes]:
        """The next frame.

        Raises:
            OSError: The slot is gone or speaks nonsense.
        """
        try:
            kind, size = wire.parse_header(await self._reader.readexactly(wire.HEADER_BYTES))
            if size > _MOST_BYTES:
                raise wire.WireError(f"a body of {size} bytes is too long")
            return kind, await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, wire.WireError) as error:
            raise ConnectionResetError("the slot is gone") from error

    def kill(self) -> None:
        """End the process now; safe to repeat."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._writer.close()

    async def ended(self) -> int:
        """Wait for the process to end; its exit status, negative for a signal."""
        status = await self._process.wait()
        await asyncio.wait({self._words})
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return status

    @property
    def words(self) -> str:
        """The end of what the process wrote to its standard error; complete when it has ended."""
        return self._words.result() if self._words.done() else ""


async def _last_words(stream: asyncio.StreamReader | None) -> str:
    """Read to the end and keep the last bytes: a statement may make a process write without end."""
    kept = b""
    while stream is not None and (part := await stream.read(_WORDS_BYTES)):
        kept = (kept + part)[-_WORDS_BYTES:]
    return kept.decode("utf-8", "replace")


async def _spawn(fd: int, settings: ChildSettings) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "duckmesh_runtime.sandbox.slot",
        f"--socket={fd}",
        f"--parent={os.getpid()}",
        f"--catalog-dir={settings.catalog_dir}",
        f"--memory-bytes={settings.memory_bytes}",
        *(["--checked"] if settings.checked else []),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=(fd,),
        start_new_session=True,
    )
