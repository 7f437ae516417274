"""Services behind the HTTP doors, in memory: they remember what they were asked and answer what they were told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh_runtime.domain.decode import BulkFormat, Rejected
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import DuckmeshError, NotFound, Unavailable
from duckmesh_runtime.ports import Backlog, Head, Progress, QueryRun, QueryStats, TableVersion
from duckmesh_runtime.services.ingest import IngestAnswer
from duckmesh_runtime.services.query import QueryAnswer, QueryRequest
from duckmesh_runtime.services.tables import Changed
from duckmesh_runtime.web.auth import hash_key

LAKE = "lake_0123456789abcdef"
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PEPPER = "pepper-of-the-test"


def key(name: str) -> str:
    """The API key of a made-up id."""
    return f"dmk_{name}_" + name.encode().hex().ljust(64, "0")[:64]


def write_keys(folder: Path, roles: dict[str, Sequence[str]], *, pepper: str = PEPPER) -> None:
    """Fill an auth folder: one key per id."""
    lines = [
        {"id": name, "hash": hash_key(pepper, key(name)), "roles": list(has)}
        for name, has in roles.items()
    ]
    (folder / "pepper").write_text(pepper + "\n")
    (folder / "keys.json").write_text(json.dumps(lines))


def arrow_stream(columns: dict[str, list[object]]) -> bytes:
    """Rows as an ingest body."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class BulkBody(NamedTuple):
    """A bulk body as the service got it."""

    table: str
    format: BulkFormat
    content: bytes
    op: str | None
    key: str | None
    atomic: bool


@dataclass
class FakeIngest:
    """Accepts everything in known tables."""

    known: dict[str, TableDef] = field(default_factory=dict)
    records: list[RawRecord] = field(default_factory=list)
    bodies: list[BulkBody] = field(default_factory=list)
    atomic: list[bool] = field(default_factory=list)
    rejected: Sequence[Rejected] = ()
    duplicates: int = 0
    failure: Exception | None = None
    number: int = 0

    async def ingest_records(
        self, table: str, records: Sequence[RawRecord], *, atomic: bool = False
    ) -> IngestAnswer:
        self.find(table)
        self.records.extend(records)
        self.atomic.append(atomic)
        return self._answer(len(records))

    async def ingest_bulk(
        self,
        table: str,
        body_format: BulkFormat,
        body: bytes,
        op: str | None = None,
        *,
        request_key: str | None = None,
        atomic: bool = False,
    ) -> IngestAnswer:
        self.find(table)
        rows = _rows(body_format, body)
        if request_key is not None and request_key in [bulk.key for bulk in self.bodies]:
            return IngestAnswer(
                accepted=0, duplicates=rows, rejected=(), number=self.number, timeline=1
            )
        self.bodies.append(BulkBody(table, body_format, body, op, request_key, atomic))
        return self._answer(rows)

    def find(self, name: str) -> TableDef:
        if self.failure is not None:
            raise self.failure
        if name not in self.known:
            raise NotFound("TABLE_NOT_FOUND", f"table: there is no table {name}")
        return self.known[name]

    def _answer(self, rows: int) -> IngestAnswer:
        accepted = rows - len(self.rejected) - self.duplicates
        self.number += accepted
        return IngestAnswer(
            accepted=accepted,
            duplicates=self.duplicates,
            rejected=self.rejected,
            number=self.number,
            timeline=1,
        )


@dataclass
class FakeTables:
    """The tables that a `FakeIngest` knows."""

    ingest: FakeIngest

    async def create(self, table: TableDef) -> Changed:
        self.ingest.known[table.name] = table
        return self._changed(table.name, table)

    async def drop(self, name: str) -> Changed:
        await self.find(name)
        del self.ingest.known[name]
        return self._changed(name, None)

    def _changed(self, name: str, table: TableDef | None) -> Changed:
        self.ingest.number += 1
        return Changed(name=name, table=table, number=self.ingest.number, new=True)

    async def confirm(self, changed: Changed) -> None:
        return None

    async def versions(self, name: str) -> Sequence[TableVersion]:
        table = await self.find(name)
        return [TableVersion(schema_version=1, table=table, changed_at=NOON)]

    async def all(self) -> Sequence[TableDef]:
        return list(self.ingest.known.values())

    async def find(self, name: str) -> TableDef:
        return self.ingest.find(name)


def _rows(body_format: BulkFormat, body: bytes) -> int:
    if body_format is BulkFormat.PARQUET:
        return int(pq.read_metadata(pa.BufferReader(body)).num_rows)
    if body_format is BulkFormat.ARROW:
        with pa.ipc.open_stream(body) as reader:
            return int(reader.read_all().num_rows)
    return len(body.splitlines()) - (body_format is BulkFormat.CSV)


@dataclass
class FakeBarrier:
    """Has seen everything up to `token`."""

    token: int = 1000
    waits: list[tuple[int, int]] = field(default_factory=list)

    def hush(self) -> None:
        return None

    async def changes(self, silence_s: float) -> AsyncGenerator[Progress, None]:
        yield await self.wait(0, 0)

    async def wait(self, number: int, timeout_ms: int, *, timeline: int | None = None) -> Progress:
        self.waits.append((number, timeout_ms))
        if number > self.token:
            raise Unavailable(
                "CONSISTENCY_TIMEOUT", "not visible yet", context={"watermark": self.token}
            )
        return Progress(token=self.token, snapshot_id=7, committed_at=NOON, now=NOON)


@dataclass
class FakeBus:
    """A lake with one pending row."""

    async def backlog(self) -> Backlog:
        return Backlog(
            head=Head(last=11, schema_version=1, timeline=1),
            progress=Progress(token=10, snapshot_id=7, committed_at=NOON, now=NOON),
            pending_rows=1,
            pending_bytes=100,
            oldest_pending_at=NOON,
            claimed=0,
            snapshot_id=8,
            snapshot_at=NOON,
        )


@dataclass
class FakeQuery:
    """Answers every statement with the same batches."""

    batches: Sequence[pa.RecordBatch] = field(
        default_factory=lambda: [pa.RecordBatch.from_pydict({"n": [1, 2]})]
    )
    type_names: Sequence[str] = ("BIGINT",)
    asked: list[QueryRequest] = field(default_factory=list)
    failure: DuckmeshError | None = None
    failure_after: int = -1
    truncated: bool = False
    hang: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, request: QueryRequest) -> QueryAnswer:
        self.asked.append(request)
        if self.failure is not None and self.failure_after < 0:
            raise self.failure
        stats = QueryStats(duration_ms=1, scanned_files=3, scanned_bytes=400)
        run = QueryRun(
            schema=self.batches[0].schema,
            type_names=self.type_names,
            batches=self._rows(stats),
            stats=stats,
        )
        return QueryAnswer(
            run=run, snapshot_id=7, snapshot_time=NOON, token=10, lag_ms=5, waited_ms=2
        )

    async def _rows(self, stats: QueryStats) -> AsyncIterator[pa.RecordBatch]:
        try:
            for number, batch in enumerate(self.batches):
                if self.failure is not None and number == self.failure_after:
                    raise self.failure
                yield batch
            if self.hang:
                await asyncio.sleep(3600)
            stats.truncated = self.truncated
        finally:
            self.closed.set()


@dataclass
class FakeCommitter:
    """Counts nudges."""

    nudges: int = 0

    def nudge(self) -> None:
        self.nudges += 1
