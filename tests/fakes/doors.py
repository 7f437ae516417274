"""Services behind the HTTP doors, in memory: they remember what they were asked and answer what they were told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from duckmesh_runtime.domain.records import RawRecord, Rejected
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import DuckmeshError, NotFound, Unavailable
from duckmesh_runtime.ports import Backlog, Head, Progress, QueryRun, QueryStats
from duckmesh_runtime.services.ingest import IngestAnswer
from duckmesh_runtime.services.query import QueryAnswer, QueryRequest
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


@dataclass
class FakeIngest:
    """Accepts everything in known tables."""

    known: dict[str, TableDef] = field(default_factory=dict)
    records: list[RawRecord] = field(default_factory=list)
    bodies: list[tuple[bytes, str | None]] = field(default_factory=list)
    rejected: Sequence[Rejected] = ()
    duplicates: int = 0
    failure: Exception | None = None
    number: int = 0

    async def ingest_records(self, table: str, records: Sequence[RawRecord]) -> IngestAnswer:
        await self.table(table)
        self.records.extend(records)
        return self._answer(len(records))

    async def ingest_arrow(
        self, table: str, body: bytes, *, request_key: str | None
    ) -> IngestAnswer:
        await self.table(table)
        if request_key is not None and request_key in [known for _, known in self.bodies]:
            return IngestAnswer(
                accepted=0, duplicates=_rows(body), rejected=(), number=self.number, timeline=1
            )
        self.bodies.append((body, request_key))
        return self._answer(_rows(body))

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

    async def create_table(self, table: TableDef) -> int:
        self.known[table.name] = table
        self.number += 1
        return self.number

    async def drop_table(self, name: str) -> int:
        await self.table(name)
        del self.known[name]
        self.number += 1
        return self.number

    async def tables(self) -> Sequence[TableDef]:
        return list(self.known.values())

    async def table(self, name: str) -> TableDef:
        if self.failure is not None:
            raise self.failure
        if name not in self.known:
            raise NotFound("TABLE_NOT_FOUND", f"table: there is no table {name}")
        return self.known[name]


def _rows(body: bytes) -> int:
    with pa.ipc.open_stream(body) as reader:
        return int(reader.read_all().num_rows)


@dataclass
class FakeBarrier:
    """Has seen everything up to `token`."""

    token: int = 1000
    waits: list[tuple[int, int]] = field(default_factory=list)

    async def wait(self, number: int, timeout_ms: int) -> Progress:
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
