"""The sandbox as the query process sees it: one connection of a Unix socket per statement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
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
from duckmesh_runtime.ports import QueryJob, QueryRun, QueryStats

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
            reader, writer = await asyncio.open_unix_connection(
                self._socket, limit=wire.BUFFER_BYTES
            )
        except OSError as error:
            raise _no_answer() from error
        batches = _Batches(reader, writer, deadline)
        try:
            writer.write(wire.encode_message(Kind.JOB, _wire_job(job)))
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


class _Batches(AsyncIterator[pa.RecordBatch]):
    """The frames of one statement; closing the connection cancels it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._deadline = deadline
        self._ended = False
        self.stats = QueryStats()

    async def __anext__(self) -> pa.RecordBatch:
        if self._ended:
            raise StopAsyncIteration
        try:
            kind, body = await self._frame()
            if kind is Kind.ROWS:
                return wire.decode_rows(body)
            if kind is not Kind.END:
                raise _no_answer()
            self._fill(wire.decode(body, wire.End))
        except wire.WireError as error:
            await self.aclose()
            raise _no_answer() from error
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def expect(self, wanted: Kind) -> bytes:
        """The body of the next frame, which must be of this kind."""
        kind, body = await self._frame()
        if kind is not wanted:
            raise _no_answer()
        return body

    async def aclose(self) -> None:
        """Cancel what still runs; safe to repeat."""
        self._ended = True
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _frame(self) -> tuple[Kind, bytes]:
        try:
            async with asyncio.timeout_at(self._deadline):
                header = await self._reader.readexactly(wire.HEADER_BYTES)
                kind, size = wire.parse_header(header)
                body = await self._reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError
            raise _no_answer() from error
        if kind is Kind.ERROR:
            raise _error(wire.decode(body, wire.Failure))
        return kind, body

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
    )


def _error(failure: wire.Failure) -> DuckmeshError:
    known = _CLASSES.get(failure.code)
    if known is None:
        return Failed("QUERY_CRASHED", "the query process failed; it was replaced")
    retry_after_s = 1.0 if known in (Limited, Unavailable) else None
    return known(failure.code, failure.message, retry_after_s=retry_after_s)


def _no_answer() -> Unavailable:
    return Unavailable(
        "QUERY_UNAVAILABLE", "the query processes do not answer: repeat", retry_after_s=1
    )
