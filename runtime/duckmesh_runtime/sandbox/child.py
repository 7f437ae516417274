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

_START_S: Final = 60.0
_ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "PYTHONSAFEPATH": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Each arena maps 64 MiB that count against the slot's address space; Arrow's own pool a gigabyte.
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""All that a slot knows of its surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """How slots are started.

    Attributes:
        catalog_dir: Folder of frozen catalogs.
        memory_bytes: Memory of one slot.
    """

    catalog_dir: Path
    memory_bytes: int


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
        self.data_url: str | None = None
        self.catalog_path: str | None = None
        self.served = 0

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
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    def send(self, frame: bytes) -> None:
        """Queue a frame; a slot that is gone is noticed by `receive`."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def receive(self) -> tuple[Kind, bytes]:
        """The next frame.

        Raises:
            OSError: The slot is gone or speaks nonsense.
        """
        try:
            kind, size = wire.parse_header(await self._reader.readexactly(wire.HEADER_BYTES))
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
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return status


async def _spawn(fd: int, settings: ChildSettings) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "duckmesh_runtime.sandbox.slot",
        f"--socket={fd}",
        f"--parent={os.getpid()}",
        f"--catalog-dir={settings.catalog_dir}",
        f"--memory-bytes={settings.memory_bytes}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=(fd,),
        start_new_session=True,
    )
