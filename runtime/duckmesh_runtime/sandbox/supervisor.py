"""The sandbox's supervisor: takes statements on a Unix socket, hands each to a slot, says how it ended.

Rows do not pass through it: the slot writes them into a socket of the client's. It knows no engine. It is what keeps
promises when a slot does not: deadlines end by SIGKILL, a dead slot becomes an error answer, and a new slot starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.frames import receive_first
from duckmesh_runtime.sandbox.child import Child, ChildSettings
from duckmesh_runtime.sandbox.deaths import OomKills, failure_of_death
from duckmesh_runtime.sandbox.limits import CORES
from duckmesh_runtime.sandbox.pool import Pool

logger = logging.getLogger(__name__)

_JOB_S: Final = 5.0
_PREPARE_S: Final = 5.0
_AFTER_INTERRUPT_S: Final = 0.5
"""A statement that does not heed an interrupt for so long is killed; deadline + 1 s is the promise."""

_DYING_S: Final = 0.3
"""Between the end of a slot's socket and that of its process."""

_BACKLOG: Final = 128
_ACCEPT_AGAIN_S: Final = 0.1


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
        logger.info(
            "sandbox serves", extra={"concurrency": concurrency, "memory_bytes": memory_bytes}
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run())
            while True:
                connection = await _accept(listener)
                tasks.create_task(supervisor.connection(connection))


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket for this user and group only; its file is removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError:  # too many open files
            logger.exception("connection cannot be accepted")
            await asyncio.sleep(_ACCEPT_AGAIN_S)
        else:
            return connection


class _Supervisor:
    def __init__(self, pool: Pool, catalog_dir: Path, timeout_ms: int) -> None:
        self._pool = pool
        self._catalog_dir = catalog_dir
        self._timeout_ms = timeout_ms
        self._kills = OomKills()

    async def connection(self, connection: socket.socket) -> None:
        """Serve one connection: one statement, or a catalog to attach. Its faults are nobody else's."""
        with contextlib.ExitStack() as handed:
            handed.callback(connection.close)
            try:
                async with asyncio.timeout(_JOB_S):
                    header, sockets = await receive_first(connection)
                    for one in sockets:
                        handed.enter_context(one)
                    reader, writer = await asyncio.open_unix_connection(sock=connection)
                try:
                    await self._serve(header, sockets, reader, writer)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
            except (OSError, wire.WireError, asyncio.IncompleteReadError) as error:
                logger.info("connection ended early", extra={"problem": type(error).__name__})
            except Exception:
                logger.exception("connection failed")

    async def _serve(
        self,
        header: bytes,
        sockets: Sequence[socket.socket],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            async with asyncio.timeout(_JOB_S):
                order = await _read_order(header, reader)
            self._check(order.catalog_path)
            if isinstance(order, wire.Prepare):
                writer.write(await self._prepare(order))
                return
            if len(sockets) != 1:
                raise wire.WireError("a job comes with a socket for its rows")
            job = self._cut(order)
            await _Statement(self._pool, job, sockets[0], reader, writer, self._kills).run()
        except DuckmeshError as error:
            writer.write(_failure(error.code, error.message))

    async def _prepare(self, order: wire.Prepare) -> bytes:
        """Have a slot attach a catalog, if one has nothing to do; the answer."""
        child = self._pool.take_idle(catalog_path=order.catalog_path, data_url=order.data_url)
        if child is None:
            return _failure("OVERLOADED", "no query process has nothing to do")
        try:
            return await _prepared(child, order)
        finally:
            self._pool.give(child)

    def _check(self, catalog_path: str) -> None:
        path = PurePosixPath(catalog_path)
        if ".." in path.parts or not path.is_relative_to(self._catalog_dir):
            raise wire.WireError("the catalog is not in the catalog folder")

    def _cut(self, job: wire.Job) -> wire.Job:
        return replace(job, timeout_ms=max(1, min(job.timeout_ms, self._timeout_ms)))


class _Statement:
    """One statement from queue to last frame."""

    def __init__(
        self,
        pool: Pool,
        job: wire.Job,
        rows: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kills: OomKills,
    ) -> None:
        self._pool = pool
        self._kills = kills
        self._job = job
        self._rows = rows
        self._writer = writer
        self._deadline = asyncio.get_running_loop().time() + job.timeout_ms / 1000
        self._gone = asyncio.create_task(_until_closed(reader))

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
        # Threads beyond a statement's share of the cores cost more than they bring.
        job = replace(self._job, threads=max(1, CORES // self._pool.taken))
        child.begin(wire.encode_message(Kind.JOB, job), self._rows)
        self._rows.close()  # its end is the slot's to say
        ending = asyncio.create_task(child.receive())
        try:
            await self._first(ending)
            stopped = not ending.done()
            if stopped:
                await self._stop(child, ending)
            answer = await _last(child, ending)
        except BaseException:
            child.kill()
            ending.cancel()
            raise
        if answer is not None and answer[0] is Kind.ERROR and _doubtful(answer[1]):
            child.kill()
        if stopped:
            seconds = self._job.timeout_ms / 1000
            self._answer(
                _failure("QUERY_TIMEOUT", f"the query ran longer than its limit of {seconds:g} s")
            )
        elif answer is None:
            self._answer(wire.encode_message(Kind.ERROR, await _death(child, self._kills)))
        else:
            self._answer(wire.encode(*answer))

    async def _stop(self, child: Child, ending: asyncio.Task[tuple[Kind, bytes]]) -> None:
        """Interrupt the statement, kill it when that does not help."""
        child.send(wire.encode(Kind.CANCEL))
        done, _ = await asyncio.wait({ending}, timeout=_AFTER_INTERRUPT_S)
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


async def _read_order(header: bytes, reader: asyncio.StreamReader) -> wire.Job | wire.Prepare:
    kind, size = wire.parse_header(header)
    if kind not in (Kind.JOB, Kind.PREPARE):
        raise wire.WireError("a connection starts with a job or a catalog")
    body = await reader.readexactly(size)
    return wire.decode(body, wire.Job) if kind is Kind.JOB else wire.decode(body, wire.Prepare)


async def _prepared(child: Child, order: wire.Prepare) -> bytes:
    """The slot's answer; one that gives none is killed, as is one whose answer is in doubt."""
    child.send(wire.encode_message(Kind.PREPARE, order))
    try:
        async with asyncio.timeout(_PREPARE_S):
            kind, body = await child.receive()
    except OSError:  # TimeoutError is one
        child.kill()
        return _failure("QUERY_CRASHED", "the query process failed; it was replaced")
    except BaseException:
        child.kill()
        raise
    if kind is not Kind.READY and _doubtful(body):
        child.kill()
    return wire.encode(kind, body)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """A client says nothing after its job: whatever comes is its end."""
    with contextlib.suppress(OSError):
        await reader.read(1)


async def _last(
    child: Child, ending: asyncio.Task[tuple[Kind, bytes]]
) -> tuple[Kind, bytes] | None:
    """How the slot says that the statement ended; None when it died, or is not to live."""
    try:
        kind, body = await ending
    except OSError:
        return None
    if kind in (Kind.END, Kind.ERROR):
        return kind, body
    child.kill()
    return None


async def _death(child: Child, kills: OomKills) -> wire.Failure:
    """Of a slot whose socket ended in the middle of a statement."""
    try:
        async with asyncio.timeout(_DYING_S):
            status = await child.ended()
    except TimeoutError:
        child.kill()
        status = await child.ended()
    failure = failure_of_death(status, child.words, kills)
    logger.warning(
        "slot died",
        extra={
            "slot": child.pid,
            "status": status,
            "served": child.served,
            "error_code": failure.code,
        },
    )
    return failure


def _doubtful(body: bytes) -> bool:
    try:
        return wire.decode(body, wire.Failure).doubtful
    except wire.WireError:
        return True


def _failure(code: str, message: str) -> bytes:
    return wire.encode_message(Kind.ERROR, wire.Failure(code=code, message=message))
