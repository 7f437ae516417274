"""The sandbox as the query process sees it: one connection of a Unix socket per statement, and a socket for its rows."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import (
    Corrupt,
    DuckmeshError,
    Failed,
    Invalid,
    Limited,
    Unavailable,
)
from duckmesh_runtime.frames import FrameReader
from duckmesh_runtime.ports import QueryJob, QueryRun, QueryStats

_PREPARE_S: Final = 0.25
"""Attaching takes a tenth of this; a query that comes meanwhile may wait for it."""

_AHEAD_BYTES: Final = (
    2**20
)  # what a slot may write before somebody reads; the kernel may allow less
_HEAD_BYTES: Final = 16 * 2**20
"""Of names and types. As Python's values they take many times that, and a slot that was taken over may send what it likes."""

_GRACE_S: Final = 5.0
"""Past the job's deadline; the supervisor ends a statement one second after it."""

_CLASSES: Final[Mapping[str, type[DuckmeshError]]] = {
    "SQL_NOT_ALLOWED": Invalid,
    "SQL_ERROR": Invalid,
    "RESULT_TOO_LARGE": Invalid,
    "QUERY_TIMEOUT": Failed,
    "QUERY_MEMORY": Failed,
    "QUERY_CRASHED": Failed,
    "OVERLOADED": Limited,
    "DATA_FILE_MISSING": Corrupt,
    "STORAGE_UNAVAILABLE": Unavailable,
    "QUERY_UNAVAILABLE": Unavailable,
}
"""What a sandbox may answer; another code is its fault."""


class SandboxClient:
    """`ports.Sandbox` over a supervisor's socket.

    Args:
        socket: Where the supervisor listens.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def run(self, job: QueryJob) -> QueryRun:
        """Start a statement; see `ports.Sandbox`. The batches must be read to the end or closed."""
        deadline = asyncio.get_running_loop().time() + job.timeout_ms / 1000 + _GRACE_S
        try:
            batches = await self._ask(wire.encode_message(Kind.JOB, _wire_job(job)), deadline)
        except OSError as error:
            raise _no_answer() from error
        try:
            head = wire.decode(await batches.expect(Kind.HEAD), wire.Head)
            schema = wire.decode_schema(await batches.expect(Kind.SCHEMA))
        except wire.WireError as error:
            await batches.aclose()
            raise _no_answer() from error
        except BaseException:
            await batches.aclose()
            raise
        return QueryRun(
            schema=schema, type_names=head.type_names, batches=batches, stats=batches.stats
        )

    async def _ask(self, frame: bytes, deadline: float) -> _Batches:
        """Send a job and with it one end of a pair of sockets, into which the slot writes the rows."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as failed:
            connection = failed.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            await loop.sock_connect(connection, str(self._socket))
            ours, theirs = socket.socketpair()
            failed.enter_context(ours)
            with theirs:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AHEAD_BYTES)
                sent = socket.send_fds(connection, [frame], [theirs.fileno()])
            _, rows = await loop.create_unix_connection(FrameReader, sock=ours)
            failed.push_async_callback(rows.aclose)
            _, ending = await loop.create_unix_connection(FrameReader, sock=connection)
            ending.write(frame[sent:])
            failed.pop_all()
        return _Batches(rows, ending, deadline)

    async def prepare(self, catalog_path: str, data_url: str) -> bool:
        """Have a process that has nothing to do attach a catalog; False when none did, for whatever reason."""
        try:
            async with asyncio.timeout(_PREPARE_S):
                _, connection = await asyncio.get_running_loop().create_unix_connection(
                    FrameReader, str(self._socket)
                )
                try:
                    order = wire.Prepare(catalog_path=catalog_path, data_url=data_url)
                    connection.write(wire.encode_message(Kind.PREPARE, order))
                    kind, _ = await connection.next()
                    return kind is Kind.READY
                finally:
                    await connection.aclose()
        except (OSError, wire.WireError):  # TimeoutError is an OSError
            return False


class _Batches(AsyncIterator[pa.RecordBatch]):
    """What comes of one statement; closing it cancels it.

    Args:
        rows: From the slot, which a statement may have taken over: nothing it says is believed unseen.
        ending: From the supervisor: how the statement ended.
        deadline: Of both, by the loop's clock.
    """

    def __init__(self, rows: FrameReader, ending: FrameReader, deadline: float) -> None:
        self._rows = rows
        self._ending = ending
        self._deadline = deadline
        self._taken = 0
        self._ended = False
        self.stats = QueryStats()

    async def __anext__(self) -> pa.RecordBatch:
        if self._ended:
            raise StopAsyncIteration
        try:
            body = await self._next(Kind.ROWS)
            if body is not None:
                batch = wire.decode_rows(body)
                self._taken += batch.num_rows
                return batch
            self._fill(await self._end())
        except wire.WireError as error:
            await self.aclose()
            raise _no_answer() from error
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def expect(self, wanted: Kind) -> bytearray:
        """The body of the slot's next frame, which must be of this kind."""
        body = await self._next(wanted)
        if body is None:
            await self._end()
            raise _no_answer()  # it ended well without having begun
        return body

    async def aclose(self) -> None:
        """Cancel what still runs; safe to repeat."""
        self._ended = True
        await self._ending.aclose()
        await self._rows.aclose()

    async def _next(self, wanted: Kind) -> bytearray | None:
        """The body of the slot's next frame; None when it writes no more."""
        try:
            async with asyncio.timeout_at(self._deadline):
                kind, body = await self._rows.next()
        except ConnectionResetError:
            return None
        except OSError as error:  # TimeoutError is one
            raise _no_answer() from error
        if kind is not wanted:
            raise wire.WireError(f"a slot sent {kind.name} in place of {wanted.name}")
        if kind is not Kind.ROWS and len(body) > _HEAD_BYTES:
            raise wire.WireError(f"a {kind.name} of {len(body)} bytes is too long")
        return body

    async def _end(self) -> wire.End:
        """The supervisor's word, once the slot writes no more."""
        try:
            async with asyncio.timeout_at(self._deadline):
                kind, body = await self._ending.next()
        except OSError as error:
            raise _no_answer() from error
        if kind is Kind.ERROR:
            raise _error(wire.decode(body, wire.Failure))
        if kind is not Kind.END:
            raise _no_answer()
        end = wire.decode(body, wire.End)
        if end.rows != self._taken:
            raise _no_answer()
        return end

    def _fill(self, end: wire.End) -> None:
        self.stats.duration_ms = end.duration_ms
        self.stats.rows = end.rows
        self.stats.truncated = end.truncated
        self.stats.scanned_files = end.scanned_files
        self.stats.scanned_bytes = end.scanned_bytes


def _wire_job(job: QueryJob) -> wire.Job:
    return wire.Job(
        sql=job.sql,
        params=job.params,
        catalog_path=job.catalog_path,
        data_url=job.data_url,
        row_limit=job.row_limit,
        timeout_ms=job.timeout_ms,
        snapshot_version=job.snapshot_version,
    )


def _error(failure: wire.Failure) -> DuckmeshError:
    known = _CLASSES.get(failure.code)
    if known is None:
        return Failed("QUERY_CRASHED", "the query process failed; it was replaced")
    retry_after_s = 1.0 if known in (Limited, Unavailable) else None
    context = {"line": failure.line, "column": failure.column} if failure.line else None
    return known(failure.code, failure.message, context=context, retry_after_s=retry_after_s)


def _no_answer() -> Unavailable:
    return Unavailable(
        "QUERY_UNAVAILABLE", "the query processes do not answer: repeat", retry_after_s=1
    )
