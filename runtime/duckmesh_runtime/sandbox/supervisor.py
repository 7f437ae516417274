"""The sandbox's supervisor: takes statements on a Unix socket, hands each to a slot, passes the rows on.

It knows no engine. It is what keeps promises when a slot does not: deadlines end by SIGKILL, a dead slot becomes an
error answer, and a new slot starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.sandbox.child import Child, ChildSettings
from duckmesh_runtime.sandbox.pool import Pool

logger = logging.getLogger(__name__)

_JOB_S: Final = 5.0
_AFTER_INTERRUPT_S: Final = 0.5
"""A statement that does not heed an interrupt for so long is killed; deadline + 1 s is the promise."""

_BUFFERED_BYTES: Final = 2**20


async def serve(
    path: Path, catalog_dir: Path, *, concurrency: int, memory_bytes: int, timeout_ms: int
) -> None:
    """Serve until cancelled.

    Args:
        path: Where to listen; an old file there is replaced.
        catalog_dir: Only catalogs in this folder are opened; absolute.
        concurrency: Statements at once; more wait.
        memory_bytes: Memory of one slot.
        timeout_ms: Upper bound of what a job may ask for.
    """
    pool = Pool(concurrency, ChildSettings(catalog_dir=catalog_dir, memory_bytes=memory_bytes))
    supervisor = _Supervisor(pool, catalog_dir, timeout_ms)
    with _listening(path) as listener:
        server = await asyncio.start_unix_server(supervisor.connection, sock=listener)
        logger.info(
            "sandbox serves", extra={"concurrency": concurrency, "memory_bytes": memory_bytes}
        )
        async with server:
            await pool.run()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket for this user and group only; its file is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _Supervisor:
    def __init__(self, pool: Pool, catalog_dir: Path, timeout_ms: int) -> None:
        self._pool = pool
        self._catalog_dir = catalog_dir
        self._timeout_ms = timeout_ms

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one statement."""
        try:
            async with asyncio.timeout(_JOB_S):
                job = await _read_job(reader)
            await _Statement(self._pool, self._checked(job), reader, writer).run()
        except (OSError, wire.WireError, asyncio.IncompleteReadError) as error:
            logger.info("connection ended early", extra={"problem": type(error).__name__})
        except DuckmeshError as error:
            writer.write(_failure(error.code, error.message))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _checked(self, job: wire.Job) -> wire.Job:
        path = PurePosixPath(job.catalog_path)
        if ".." in path.parts or not path.is_relative_to(self._catalog_dir):
            raise wire.WireError("the catalog is not in the catalog folder")
        return wire.Job(
            sql=job.sql,
            params=job.params,
            catalog_path=job.catalog_path,
            data_url=job.data_url,
            row_limit=job.row_limit,
            timeout_ms=max(1, min(job.timeout_ms, self._timeout_ms)),
        )


class _Statement:
    """One statement from queue to last frame."""

    def __init__(
        self,
        pool: Pool,
        job: wire.Job,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._pool = pool
        self._job = job
        self._writer = writer
        self._deadline = asyncio.get_running_loop().time() + job.timeout_ms / 1000
        self._gone = asyncio.create_task(_until_closed(reader))
        self._deaf = asyncio.Event()  # no more rows for the client

    async def run(self) -> None:
        """Run it; every outcome but a lost client is answered."""
        try:
            taking = self._pool.take(
                catalog_path=self._job.catalog_path, data_url=self._job.data_url
            )
            child = await self._in_time(taking)
            if child is None:
                if not self._gone.done():
                    self._answer(
                        _failure(
                            "OVERLOADED", "no query process was free before the deadline: repeat"
                        )
                    )
                return
            try:
                await self._on(child)
            finally:
                self._pool.give(child)
        finally:
            self._gone.cancel()

    async def _on(self, child: Child) -> None:
        child.send(wire.encode_message(Kind.JOB, self._job))
        relay = asyncio.create_task(self._relay(child))
        try:
            await self._first(relay)
            stopped = not relay.done()
            if stopped:
                await self._stop(child, relay)
            answer = await _last(relay)
        except BaseException:
            child.kill()
            relay.cancel()
            raise
        if answer is None or (answer[0] is Kind.ERROR and _doubtful(answer[1])):
            child.kill()
        if stopped:
            seconds = self._job.timeout_ms / 1000
            self._answer(
                _failure("QUERY_TIMEOUT", f"the query ran longer than its limit of {seconds:g} s")
            )
        elif answer is None:
            logger.warning("slot died", extra={"slot": child.pid, "served": child.served})
            self._answer(
                _failure("QUERY_CRASHED", "the process that ran the query ended; it was replaced")
            )
        else:
            self._answer(wire.encode(*answer))

    async def _relay(self, child: Child) -> tuple[Kind, bytes]:
        """Pass frames on until the slot's last one, which is returned."""
        while True:
            kind, body = await child.receive()
            if kind in (Kind.END, Kind.ERROR):
                return kind, body
            if self._deaf.is_set():
                continue
            self._writer.write(wire.encode(kind, body))
            if self._writer.transport.get_write_buffer_size() > _BUFFERED_BYTES:
                await self._drained()

    async def _drained(self) -> None:
        waits = [
            asyncio.create_task(self._writer.drain()),
            asyncio.create_task(self._deaf.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _stop(self, child: Child, relay: asyncio.Task[tuple[Kind, bytes]]) -> None:
        """Interrupt the statement, kill it when that does not help."""
        self._deaf.set()
        child.send(wire.encode(Kind.CANCEL))
        done, _ = await asyncio.wait({relay}, timeout=_AFTER_INTERRUPT_S)
        if not done:
            logger.warning("slot ignored an interrupt", extra={"slot": child.pid})
            child.kill()

    async def _in_time(self, taking: Coroutine[object, object, Child]) -> Child | None:
        task = asyncio.create_task(taking)
        try:
            await self._first(task)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _first(self, task: asyncio.Task[object]) -> None:
        """Wait for the task, the client's end or the deadline."""
        left_s = self._deadline - asyncio.get_running_loop().time()
        await asyncio.wait(
            {task, self._gone}, timeout=max(0, left_s), return_when=asyncio.FIRST_COMPLETED
        )

    def _answer(self, frame: bytes) -> None:
        if not self._gone.done():
            self._writer.write(frame)


async def _read_job(reader: asyncio.StreamReader) -> wire.Job:
    kind, size = wire.parse_header(await reader.readexactly(wire.HEADER_BYTES))
    if kind is not Kind.JOB:
        raise wire.WireError("a connection starts with a job")
    return wire.decode(await reader.readexactly(size), wire.Job)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """A client says nothing after its job: whatever comes is its end."""
    with contextlib.suppress(OSError):
        await reader.read(1)


async def _last(relay: asyncio.Task[tuple[Kind, bytes]]) -> tuple[Kind, bytes] | None:
    """The slot's last frame; None when it died."""
    try:
        return await relay
    except OSError:
        return None


def _doubtful(body: bytes) -> bool:
    try:
        return wire.decode(body, wire.Failure).doubtful
    except wire.WireError:
        return True


def _failure(code: str, message: str) -> bytes:
    return wire.encode_message(Kind.ERROR, wire.Failure(code=code, message=message))
