"""Changes of tables between rows, through the real bus and the real lake: each row keeps the columns it was accepted with."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.ducklake import DuckLakeWriter
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.adapters.stage import DuckDBStager
from duckmesh_runtime.domain.changes import parse_changes
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.errors import Conflict
from duckmesh_runtime.ports import CommitOutcome, CommitResult, EntryKind
from duckmesh_runtime.services.ingest import BulkFormat, IngestService, RawRecord
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import IngestLimits
from tests.lakes import LakeView, committer_of, running, writer_pool
from tests.services import Lake

Row = Mapping[str, object]
EVENTS = {
    "name": "events",
    "columns": [
        {"name": "id", "type": "INTEGER", "nullable": False},
        {"name": "kind", "type": "VARCHAR"},
        {"name": "size", "type": "SMALLINT", "default": 3},
    ],
}


@dataclass
class Acceptor:
    """What one ingest process does besides committing."""

    lake: Lake
    bus: PostgresBus
    ingest: IngestService
    tables: TableService
    view: LakeView = field(init=False)

    def __post_init__(self) -> None:
        self.view = LakeView(self.lake)

    async def rows(self, *rows: Row, op: str | None = None, table: str = "events") -> int:
        records = [RawRecord(payload=dict(row), op=op) for row in rows]
        answer = await self.ingest.ingest_records(table, records)
        assert not answer.rejected
        assert answer.accepted == len(rows)
        return answer.number

    async def bulk(self, columns: Mapping[str, Sequence[object]], table: str = "events") -> int:
        rows = pa.table(dict(columns))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema) as out:
            out.write_table(rows)
        answer = await self.ingest.ingest_bulk(table, BulkFormat.ARROW, sink.getvalue())
        assert answer.accepted == rows.num_rows, answer.rejected
        return answer.number

    async def alter(self, *changes: Row, table: str = "events") -> int:
        changed = await self.tables.alter(table, parse_changes({"changes": list(changes)}))
        assert changed.new
        return changed.number

    async def create(self, raw: Row) -> int:
        return (await self.tables.create(parse_table(raw))).number

    async def commit(self) -> None:
        """Let a committer take everything that waits."""
        async with committer_of(self.lake) as committer, running(committer):
            await self.view.visible((await self.bus.head()).last)

    async def dead(self) -> list[str]:
        return [letter.error for letter in await self.bus.letters(0, limit=100, max_bytes=10**6)]


@asynccontextmanager
async def accepting(lake: Lake) -> AsyncIterator[Acceptor]:
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        inlet = Inlet(bus, lake=lake.name, limits=IngestLimits(), on_accepted=lambda number: None)
        stager = DuckDBStager(lake=lake.name, store=lake.store, pool=pool)
        await inlet.start()
        try:
            yield Acceptor(lake, bus, IngestService(inlet, stager), TableService(inlet, bus))
        finally:
            await inlet.drain()
            await stager.close()


@pytest.fixture
async def acceptor(lake: Lake) -> AsyncIterator[Acceptor]:
    async with accepting(lake) as made:
        yield made


async def test_rows_before_between_and_after_changes_are_right_and_in_order(
    acceptor: Acceptor,
) -> None:
    await acceptor.create(EVENTS)
    await acceptor.commit()  # from here on no committer runs until all is accepted

    await acceptor.rows({"id": 1, "kind": "a", "size": 1}, {"id": 2})
    await acceptor.alter({"add_column": {"name": "n", "type": "BIGINT", "default": -7}})
    await acceptor.rows({"id": 3, "kind": "c"}, {"id": 4, "n": 40})
    await acceptor.alter(
        {"rename_column": {"name": "kind", "to": "category"}},
        {"add_column": {"name": "kind", "type": "DOUBLE", "default": 0.5}},
    )
    await acceptor.rows({"id": 5, "category": "e", "kind": 1.5})
    await acceptor.alter(
        {"drop_column": {"name": "size"}}, {"add_column": {"name": "size", "type": "VARCHAR"}}
    )
    await acceptor.rows({"id": 6, "size": "large"})
    await acceptor.alter({"widen_type": {"name": "id", "type": "BIGINT"}})
    await acceptor.rows({"id": 2**40, "size": "wide"})
    await acceptor.alter({"partition_by": ["category"]}, {"sort_by": ["id"]})
    await acceptor.rows({"id": 8, "category": "h"})
    await acceptor.alter(
        {"set_default": {"name": "n", "default": 9}},
        {"set_default": {"name": "kind", "default": None}},
    )
    await acceptor.rows({"id": 9})
    await acceptor.commit()

    assert await acceptor.dead() == []
    found = acceptor.view.query("SELECT id, category, n, kind, size FROM events ORDER BY id")
    assert found == [
        (1, "a", -7, 0.5, None),
        (2, None, -7, 0.5, None),
        (3, "c", -7, 0.5, None),
        (4, None, 40, 0.5, None),
        (5, "e", -7, 1.5, None),
        (6, None, -7, 0.5, "large"),
        (8, "h", -7, 0.5, None),
        (9, None, 9, None, None),
        (2**40, None, -7, 0.5, "wide"),
    ]
    described = acceptor.view.query("SELECT column_name, column_type FROM (DESCRIBE events)")
    assert described == [
        ("id", "BIGINT"),
        ("category", "VARCHAR"),
        ("n", "BIGINT"),
        ("kind", "DOUBLE"),
        ("size", "VARCHAR"),
    ]
    assert [c.name for c in (await acceptor.tables.find("events")).columns] == [
        row[0] for row in described
    ]


DEFAULTS: Mapping[str, str | float | bool] = {
    "BOOLEAN": True,
    "TINYINT": -128,
    "UBIGINT": "18446744073709551615",
    "BIGINT": 5.0,
    "FLOAT": 0.1,
    "DOUBLE": -1e-300,
    "DECIMAL(38,10)": "-1234567890123456789012345678.0123456789",
    "DECIMAL(9,2)": "1e3",
    "VARCHAR": 'it\'s \\n a "quote"\n\u00e9',
    "BLOB": "AP8nXA==",
    "DATE": "2024-02-29",
    "TIME": "23:59:59.999999",
    "TIMESTAMP": "2024-01-31T12:00:00.5+02:00",
    "TIMESTAMP_S": "2024-01-31T12:00:00",
    "TIMESTAMP_MS": "2024-01-31T12:00:00.123Z",
    "TIMESTAMP_NS": "2024-01-31T12:00:00.123456789",
    "TIMESTAMP WITH TIME ZONE": "2024-01-31T12:00:00",
    "UUID": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
}


async def test_rows_of_before_and_after_get_the_same_default_whatever_its_type(
    acceptor: Acceptor,
) -> None:
    await acceptor.create(EVENTS)
    await acceptor.rows({"id": 1})
    await acceptor.alter(
        *(
            {"add_column": {"name": f"c{i}", "type": type_, "default": default}}
            for i, (type_, default) in enumerate(DEFAULTS.items())
        )
    )
    await acceptor.rows({"id": 2})
    await acceptor.commit()

    assert await acceptor.dead() == []
    before, after = acceptor.view.dicts("SELECT * EXCLUDE (id, kind) FROM events ORDER BY id")
    assert None not in after.values()
    assert before == after
    for i, name in enumerate(DEFAULTS):
        same = f"SELECT count(*) FROM events WHERE c{i} = (SELECT c{i} FROM events WHERE id = 2)"
        assert acceptor.view.query(same) == [(2,)], name


async def test_what_is_inside_of_columns_widens(acceptor: Acceptor) -> None:
    columns = [
        {"name": "id", "type": "INTEGER"},
        {"name": "list", "type": "INTEGER[]"},
        {"name": "end", "type": "STRUCT(a TINYINT, b MAP(VARCHAR, DATE))"},
    ]
    await acceptor.create({"name": "events", "columns": columns})
    await acceptor.rows({"id": 1, "list": [1], "end": {"a": 1, "b": {"k": "2024-02-29"}}})
    wider = "STRUCT(a BIGINT, b MAP(VARCHAR, TIMESTAMP), c VARCHAR[])"
    await acceptor.alter(
        {"widen_type": {"name": "list", "type": "BIGINT[]"}},
        {"widen_type": {"name": "end", "type": wider}},
    )
    await acceptor.rows({"id": 2, "list": [2**40], "end": {"a": 2**40, "c": ["x"]}})
    await acceptor.commit()

    assert await acceptor.dead() == []
    assert acceptor.view.query(
        'SELECT list, "end".a, CAST("end".b AS VARCHAR), "end".c FROM events ORDER BY id'
    ) == [
        ([1], 1, "{k='2024-02-29 00:00:00'}", None),
        ([2**40], 2**40, None, ["x"]),
    ]


async def test_old_snapshots_keep_the_columns_they_had(acceptor: Acceptor) -> None:
    await acceptor.create(EVENTS)
    await acceptor.rows({"id": 1, "kind": "a"})
    await acceptor.commit()
    ((before,),) = acceptor.view.query("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")

    await acceptor.alter(
        {"rename_column": {"name": "kind", "to": "category"}},
        {"drop_column": {"name": "size"}},
        {"widen_type": {"name": "id", "type": "BIGINT"}},
    )
    await acceptor.rows({"id": 2**40})
    await acceptor.commit()

    old = f"SELECT * FROM events AT (VERSION => {before})"
    assert acceptor.view.dicts(old) == [{"id": 1, "kind": "a", "size": 3}]
    assert acceptor.view.dicts("SELECT * FROM events ORDER BY id") == [
        {"id": 1, "category": "a"},
        {"id": 2**40, "category": None},
    ]


async def test_upserts_and_deletes_find_their_rows_over_changes_of_the_key(
    acceptor: Acceptor,
) -> None:
    async def write(*rows: Row) -> None:
        await acceptor.rows(*rows, table="stock")

    async def delete(*rows: Row) -> None:
        await acceptor.rows(*rows, table="stock", op="delete")

    columns = [
        {"name": "shop", "type": "VARCHAR", "nullable": False},
        {"name": "item", "type": "SMALLINT", "nullable": False},
        {"name": "count", "type": "INTEGER", "nullable": False},
    ]
    await acceptor.create({"name": "stock", "columns": columns, "primary_key": ["shop", "item"]})
    await write(*({"shop": "x", "item": i, "count": i} for i in range(4)))
    await acceptor.commit()

    await write({"shop": "x", "item": 0, "count": 10})
    await acceptor.alter({"rename_column": {"name": "item", "to": "article"}}, table="stock")
    await write({"shop": "x", "article": 1, "count": 11})
    await delete({"shop": "x", "article": 2})
    await acceptor.alter(
        {"widen_type": {"name": "article", "type": "BIGINT"}},
        {"add_column": {"name": "note", "type": "VARCHAR", "default": "-"}},
        {"sort_by": ["article"]},
        table="stock",
    )
    await write({"shop": "x", "article": 2**40, "count": 1, "note": "far"})
    await write({"shop": "x", "article": 3, "count": 13})
    await delete({"shop": "x", "article": 0})
    await acceptor.commit()

    assert await acceptor.dead() == []
    found = acceptor.view.query("SELECT article, count, note FROM stock ORDER BY article")
    assert found == [(1, 11, "-"), (3, 13, "-"), (2**40, 1, "far")]


async def test_a_staged_file_becomes_part_of_the_table_as_it_was(acceptor: Acceptor) -> None:
    await acceptor.create(EVENTS)
    await acceptor.commit()

    numbers = list(range(120_000))
    await acceptor.bulk({"id": pa.array(numbers, pa.int32()), "kind": [f"k{n}" for n in numbers]})
    kinds = {entry.kind for entry in await acceptor.bus.read(1, max_rows=10**9, max_bytes=2**30)}
    assert kinds == {EntryKind.FILE}
    await acceptor.alter(
        {"rename_column": {"name": "kind", "to": "category"}},
        {"add_column": {"name": "kind", "type": "BIGINT", "default": 1}},
        {"widen_type": {"name": "size", "type": "BIGINT"}},
        {"partition_by": ["size"]},
    )
    await acceptor.bulk({"id": pa.array([-1], pa.int32()), "kind": pa.array([5], pa.int64())})
    await acceptor.commit()

    assert await acceptor.dead() == []
    totals = acceptor.view.query(
        "SELECT count(*), count(DISTINCT id), count(category), sum(kind), sum(size) FROM events"
    )
    assert totals == [(120_001, 120_001, 120_000, 120_005, 360_003)]


async def test_a_request_checked_just_before_a_change_is_checked_again(
    lake: Lake, acceptor: Acceptor
) -> None:
    await acceptor.create(EVENTS)
    await acceptor.rows({"id": 1, "kind": "a"})
    async with accepting(lake) as other:
        await other.alter({"add_column": {"name": "n", "type": "BIGINT"}})
        await acceptor.rows({"id": 2, "n": 2})
        await other.alter({"rename_column": {"name": "n", "to": "m"}})
        await acceptor.bulk({"id": pa.array([3], pa.int32()), "m": pa.array([3], pa.int64())})
        await other.alter({"drop_column": {"name": "kind"}})
        refused = await acceptor.ingest.ingest_records(
            "events", [RawRecord(payload={"id": 4, "kind": "gone"}), RawRecord(payload={"id": 5})]
        )
    await acceptor.commit()

    assert [one.index for one in refused.rejected] == [0]
    assert acceptor.view.query("SELECT id, m FROM events ORDER BY id") == [
        (1, None),
        (2, 2),
        (3, 3),
        (5, None),
    ]


async def test_writers_never_notice_that_the_table_changes(lake: Lake, acceptor: Acceptor) -> None:
    await acceptor.create(EVENTS)
    done = asyncio.Event()
    sent: list[int] = []

    async def write(first: int) -> None:
        number = first
        while not done.is_set():
            await acceptor.rows({"id": number}, {"id": number + 1})
            sent.extend((number, number + 1))
            number += 2
            await asyncio.sleep(0)

    async with accepting(lake) as other, committer_of(lake) as committer, running(committer):
        async with asyncio.TaskGroup() as group:
            for first in (0, 1_000_000):
                group.create_task(write(first))
            for turn in range(6):
                name = f"c{turn}"
                await other.alter({"add_column": {"name": name, "type": "INT", "default": turn}})
                await other.alter({"widen_type": {"name": name, "type": "BIGINT"}})
                await other.alter({"drop_column": {"name": name}})
            done.set()
        await acceptor.view.visible((await acceptor.bus.head()).last)

    assert await acceptor.dead() == []
    assert acceptor.view.ids() == sorted(sent)
    assert acceptor.view.query("DESCRIBE events")[-1][0] == "size"


async def test_a_change_that_the_lake_refuses_is_taken_back_whole(
    acceptor: Acceptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: DuckLakeWriter, prev: int, tok: int, *_: Any) -> CommitResult:
        return CommitResult(outcome=CommitOutcome.REJECTED, error="planted", whole=True)

    await acceptor.create(EVENTS)
    await acceptor.commit()
    await acceptor.rows({"id": 1, "kind": "a"})
    changed = await acceptor.tables.alter(
        "events", parse_changes({"changes": [{"drop_column": {"name": "kind"}}]})
    )
    with monkeypatch.context() as planted:
        planted.setattr(DuckLakeWriter, "alter_table", refuse)
        await acceptor.commit()

    with pytest.raises(Conflict, match="the lake refused the change: planted"):
        await acceptor.tables.confirm(changed)
    await acceptor.rows({"id": 2, "kind": "b"})
    await acceptor.alter({"rename_column": {"name": "kind", "to": "category"}})
    await acceptor.commit()

    found = acceptor.view.query("SELECT id, category FROM events ORDER BY id")
    assert found == [(1, "a"), (2, "b")]
    versions = await acceptor.tables.versions("events")
    assert [len(version.table.columns) for version in versions if version.table] == [3, 3]
