"""A lake's dead letters over a bus in memory, for tests of the service, the door and the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh_runtime.domain.bus_rows import DELETED, bus_schema
from duckmesh_runtime.domain.schema import TableDef, parse_table, table_json
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import Append, EntryKind, Part, StagedFile
from duckmesh_runtime.services.dead_letters import DeadLetterService
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.packing import file_append, parts_of, rows_append
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus

Row = Mapping[str, Any]


def make_table(name: str = "events", *columns: Row, key: Sequence[str] = ()) -> TableDef:
    """A table; `id BIGINT` and `v VARCHAR` unless columns are given."""
    plain = [{"name": "id", "type": "BIGINT", "nullable": False}, {"name": "v", "type": "VARCHAR"}]
    return parse_table({"name": name, "columns": list(columns) or plain, "primary_key": list(key)})


def batch_of(table: TableDef, rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as on the bus; in a keyed table one with `deleted` is a delete."""
    schema = bus_schema(table)
    data = [{**row, DELETED: row.get("deleted", False)} for row in rows]
    columns = [pa.array([row.get(f.name) for row in data], f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def payload_of(table: TableDef, rows: Sequence[Row]) -> bytes:
    """The payload of a letter with these rows."""
    batch = batch_of(table, rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


class FakeFiles:
    """Objects by path; `stuck` refuses to remove any."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.stuck = False

    def put(self, path: str, rows: Sequence[Row], table: TableDef | None = None) -> None:
        """Write a staged file."""
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches([batch_of(table or make_table(), rows)]), sink)
        self.objects[path] = bytes(sink.getvalue())

    async def size(self, path: str) -> int:
        if path not in self.objects:
            raise Corrupt("DATA_FILE_MISSING", "not there")
        return len(self.objects[path])

    async def read(self, path: str, start: int, length: int) -> bytes:
        await self.size(path)
        return self.objects[path][start : start + length]

    async def remove(self, path: str) -> None:
        if self.stuck:
            raise Unavailable("STORAGE_UNAVAILABLE", "planted")
        self.objects.pop(path, None)


@dataclass
class Kept:
    """A lake with dead letters."""

    bus: FakeBus = field(default_factory=FakeBus)
    files: FakeFiles = field(default_factory=FakeFiles)

    def __post_init__(self) -> None:
        self.inlet = Inlet(
            self.bus, lake="lake_test", limits=IngestLimits(), on_accepted=lambda _: None
        )
        self.service = DeadLetterService(self.inlet, self.bus, self.files)

    async def change(self, kind: EntryKind, table: TableDef) -> None:
        """Accept a table, or take it away."""
        said = table_json(table)
        payload = {
            EntryKind.CREATE_TABLE: msgspec.json.encode(said),
            EntryKind.ALTER_TABLE: msgspec.json.encode({"table": said, "changes": []}),
        }.get(kind, b"")
        await self._send(kind, table.name, Part(rows=1, payload=payload))

    async def letter(
        self, rows: Sequence[Row], table: TableDef | None = None, error: str = "no"
    ) -> int:
        """Accept rows and have the lake refuse them; returns the letter's number."""
        table = table or make_table()
        version = (await self.bus.head()).schema_version
        (receipt,) = await self.bus.append(
            [rows_append(table, version, parts_of([batch_of(table, rows)]))]
        )
        first = receipt.last - len(rows) + 1
        self.bus.set_aside(first - 1, receipt.last, payload_of(table, rows), error)
        return first

    async def file_letter(self, path: str, rows: int = 3) -> int:
        """The same for a staged file."""
        file = StagedFile(path=path, rows=rows, size=100)
        version = (await self.bus.head()).schema_version
        (receipt,) = await self.bus.append([file_append(make_table(), version, file)])
        self.bus.set_aside(receipt.last - rows, receipt.last, None, "gone")
        return receipt.last - rows + 1

    async def change_letter(self, table: TableDef) -> int:
        """The same for a new table."""
        await self.change(EntryKind.CREATE_TABLE, table)
        last = (await self.bus.head()).last
        self.bus.set_aside_change(last, "cannot")
        return last

    def rows(self, table: str = "events") -> list[dict[str, Any]]:
        """What waits on the bus for a table, replayed rows that is."""
        found: list[dict[str, Any]] = []
        for entry in self.bus.entries:
            if entry.kind is EntryKind.ROWS and entry.table == table:
                found += pa.ipc.open_stream(entry.payload).read_all().to_pylist()
        return found

    async def _send(self, kind: EntryKind, table: str, part: Part) -> None:
        version = (await self.bus.head()).schema_version
        await self.bus.append(
            [Append(kind=kind, table=table, parts=[part], schema_version=version)]
        )


@asynccontextmanager
async def kept_letters() -> AsyncIterator[Kept]:
    """A lake with the table `events`, and no letters yet."""
    kept = Kept()
    await kept.inlet.start()
    await kept.change(EntryKind.CREATE_TABLE, make_table())
    try:
        yield kept
    finally:
        await kept.inlet.drain()
