"""Restore to a snapshot, through the real bus and the real lake: equal to then, in token order, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import AsyncMock

import asyncpg
import duckdb
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import duckdb_engine, ducklake, lake_restore
from duckmesh_runtime.adapters.lake_attach import attach_as
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.changes import (
    AddColumn,
    Change,
    DropColumn,
    PartitionBy,
    RenameColumn,
    SetDefault,
    WidenType,
    apply_changes,
)
from duckmesh_runtime.domain.lakesql import LAKE, PAST
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.tally import Tally
from duckmesh_runtime.errors import NotFound
from duckmesh_runtime.ports import EntryKind
from duckmesh_runtime.services.dead_letters import DeadLetterService
from duckmesh_runtime.services.ingest import RawRecord
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.settings import IngestLimits
from tests.integration.test_changed_tables import Acceptor, accepting
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_alter,
    append_create,
    append_drop,
    append_file,
    append_rows,
    append_table,
    changes_of,
    committer_of,
    committer_process,
    rows_of,
    running,
    send,
    stage,
    writer_pool,
)
from tests.services import Lake

Row = Mapping[str, object]


def named(name: str, *columns: ColumnDef, **more: Any) -> TableDef:
    return TableDef(name=name, columns=columns or EVENTS.columns, **more)


@dataclass
class Life:
    """A lake's input, and a look at what it holds."""

    lake: Lake
    bus: PostgresBus
    tables: dict[str, TableDef] = field(default_factory=dict)
    view: LakeView = field(init=False)

    def __post_init__(self) -> None:
        self.view = LakeView(self.lake)

    async def version(self) -> int:
        return (await self.bus.head()).schema_version

    async def create(self, *tables: TableDef) -> None:
        for table in tables:
            await send(self.bus, append_create(table, version=await self.version()))
            self.tables[table.name] = table

    async def drop(self, name: str) -> None:
        await send(self.bus, append_drop(name, version=await self.version()))

    async def alter(self, name: str, *changes: Change) -> None:
        self.tables[name] = apply_changes(self.tables[name], changes)
        await send(
            self.bus, append_alter(self.tables[name], *changes, version=await self.version())
        )

    async def insert(self, name: str, *rows: Row) -> int:
        table = self.tables[name]
        columns = {
            c.name: pa.array([r.get(c.name) for r in rows], c.kind.arrow) for c in table.columns
        }
        found = pa.table(columns)
        return await send(self.bus, append_table(found, version=await self.version(), table=name))

    async def ids(self, name: str, *ids: int) -> int:
        return await self.insert(name, *({"id": id_} for id_ in ids))

    async def upsert(self, *changes: Row | tuple[object, ...]) -> int:
        rows = changes_of(*changes)
        return await send(self.bus, append_table(rows, version=await self.version(), table="keyed"))

    async def commit(self) -> int:
        """Let a committer take all that waits; the newest snapshot."""
        async with committer_of(self.lake) as committer, running(committer):
            await self.view.visible((await self.bus.head()).last)
        return await self.snapshot()

    async def snapshot(self) -> int:
        query = f"SELECT max(snapshot_id) FROM {self.lake.name}.ducklake_snapshot"
        return int(await self.view.fetchval(query))

    async def restore(self, snapshot_id: int) -> int:
        return (await self.bus.restore(snapshot_id)).last

    def state(self, snapshot_id: int | None = None) -> dict[str, Any]:
        """Columns and rows of every table, now or at a snapshot."""
        attach = attach_as(
            "w",
            lake=self.lake.name,
            epoch=0,
            store=self.lake.store,
            secret_dir=self.lake.reader_dir,
            version=snapshot_id,
        )
        connection = duckdb_engine.connect()
        try:
            duckdb_engine.use_store(connection, self.lake.store)
            connection.execute(attach)
            connection.execute(f"USE {LAKE if snapshot_id is None else PAST}")
            names = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
            return {name: _table(connection, name) for name in names}
        finally:
            connection.close()

    async def maintain(self, *statements: str) -> None:
        """Merges and the like, under the maintenance login."""
        query = "SELECT duckmesh.take_over($1, 'm')"
        epoch = await self.view.fetchval(query, self.lake.name)
        attach = attach_as(
            "m",
            lake=self.lake.name,
            epoch=epoch,
            store=self.lake.store,
            secret_dir=self.lake.maintenance_dir,
        )
        await asyncio.to_thread(_maintain, self.lake, attach, statements)

    async def letters(self) -> list[tuple[EntryKind, str]]:
        return [
            (letter.kind, letter.error)
            for letter in await self.bus.letters(0, limit=100, max_bytes=2**20)
        ]


def _table(connection: duckdb.DuckDBPyConnection, name: str) -> tuple[Any, Any]:
    columns = connection.execute(f"DESCRIBE {name}").fetchall()
    return columns, connection.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()


def _maintain(lake: Lake, attach: str, statements: Sequence[str]) -> None:
    connection = duckdb_engine.connect()
    try:
        duckdb_engine.use_store(connection, lake.store)
        connection.execute(attach)
        for statement in statements:
            connection.execute("BEGIN")
            connection.execute(
                "CALL lake.set_commit_message('duckmesh', 'm', extra_info => '{\"role\":\"m\"}')"
            )
            connection.execute(statement)
            connection.execute("COMMIT")
    finally:
        connection.close()


MERGE = "CALL ducklake_merge_adjacent_files('lake')"
REWRITE = "CALL ducklake_rewrite_data_files('lake', delete_threshold => 0.0)"


@asynccontextmanager
async def living(lake: Lake) -> AsyncIterator[Life]:
    async with writer_pool(lake) as pool:
        yield Life(lake, PostgresBus(pool, lake.name))


@pytest.fixture
async def life(lake: Lake) -> AsyncIterator[Life]:
    async with living(lake) as made:
        yield made


async def test_a_lake_is_as_it_was_whatever_happened_since(life: Life) -> None:
    number = ColumnDef(name="n", type="INTEGER", default=4)
    parts = named(
        "parts",
        ColumnDef(name="id", type="BIGINT"),
        ColumnDef(name="p", type="VARCHAR"),
        partition_by=("p",),
        sort_by=("id",),
    )
    await life.create(
        EVENTS, KEYED, parts, *(named(n) for n in ("gone", "remade", "added", "renamed", "back"))
    )
    await life.create(named("wide", ColumnDef(name="id", type="INTEGER"), number))
    for name in ("events", "gone", "remade", "added", "renamed", "back", "wide"):
        await life.ids(name, *range(20))
    await life.insert("parts", *({"id": i, "p": "ab"[i % 2]} for i in range(10)))
    await life.upsert(*({"id": i, "value": "then"} for i in range(30)))
    await life.upsert((3,), {"id": 4, "value": "newer"})
    await send(
        life.bus,
        append_file(await stage(life.lake, rows_of(range(100, 110))), version=await life.version()),
    )
    then = await life.commit()
    wanted = life.state()
    assert life.state(then) == wanted

    await life.ids("events", *range(200, 220))
    await life.upsert((1,), (2,), {"id": 3, "value": "again"}, {"id": 5, "value": "now"})
    await life.insert("parts", {"id": 50, "p": "c"})
    await life.drop("gone")
    await life.drop("remade")
    await life.create(named("remade", ColumnDef(name="x", type="DATE")), named("made"))
    await life.ids("made", 1)
    await life.alter("added", AddColumn(column=number))
    await life.alter("renamed", RenameColumn(name="text", to="words"))
    await life.alter("back", DropColumn(name="text"))
    await life.alter("back", AddColumn(column=ColumnDef(name="text", type="VARCHAR", default="x")))
    await life.alter("wide", WidenType(name="id", type="BIGINT"), SetDefault(name="n", default=9))
    await life.alter("parts", PartitionBy(columns=()))
    await life.ids("added", 77)
    await life.ids("wide", 2**20)
    await life.commit()
    await life.maintain(MERGE, REWRITE)
    assert life.state(then) == wanted
    assert life.state() != wanted

    restored = await life.restore(then)
    snapshot = await life.commit()

    assert await life.letters() == []
    assert await life.view.token() == restored
    assert life.state() == life.state(snapshot) == wanted
    assert {t.name: t for t in (await life.bus.tables())[1]} == {
        name: table
        for name, table in {
            **life.tables,
            **{t.name: t for t in (EVENTS, KEYED, parts)},
            **{n: named(n) for n in ("gone", "remade", "added", "renamed", "back")},
            "wide": named("wide", ColumnDef(name="id", type="INTEGER"), number),
        }.items()
        if name != "made"
    }
    await life.maintain(MERGE, REWRITE)
    assert life.state() == wanted


async def test_rows_before_a_restore_are_taken_back_in_token_order_and_rows_after_it_stay(
    life: Life,
) -> None:
    await life.create(EVENTS, KEYED)
    await life.ids("events", 1, 2)
    await life.upsert({"id": 1, "value": "then"}, {"id": 2, "value": "then"})
    then = await life.commit()
    await life.ids("events", 3)
    await life.commit()

    await life.ids("events", 4)
    await life.upsert({"id": 1, "value": "before"}, (2,))
    await life.drop("events")
    await life.restore(then)
    await life.ids("events", 5)
    await life.upsert({"id": 1, "value": "after"}, {"id": 3, "value": "after"})
    await life.create(named("new"))
    await life.commit()

    assert await life.letters() == []
    assert life.view.ids() == [1, 2, 5]
    assert sorted(life.view.query("SELECT id, value FROM keyed")) == [
        (1, "after"),
        (2, "then"),
        (3, "after"),
    ]
    assert life.view.ids("new") == []


async def test_the_same_snapshot_twice_and_one_from_before_another_restore(life: Life) -> None:
    await life.create(EVENTS, KEYED)
    await life.ids("events", 1)
    await life.upsert({"id": 1, "value": "a"})
    first = await life.commit()
    await life.ids("events", 2)
    await life.upsert({"id": 1, "value": "b"})
    second = await life.commit()
    wanted = {id_: life.state(id_) for id_ in (first, second)}

    for target in (first, first, second, first, second):
        await life.restore(target)
        await life.ids("events", 100)
        at = await life.commit()
        await life.maintain(MERGE, REWRITE)
        assert life.view.ids() == [*([1] if target == first else [1, 2]), 100]
        await life.restore(target)
        await life.restore(target)
        await life.commit()
        assert life.state() == wanted[target], (target, at)


@dataclass
class Keyed:
    """Records with keys, accepted as over HTTP."""

    acceptor: Acceptor
    service: DeadLetterService

    async def sent(self, *ids: int) -> tuple[int, int]:
        """Send records; how many were accepted, and how many duplicates."""
        records = [RawRecord(payload={"id": i}, idempotency_key=f"k{i}") for i in ids]
        answer = await self.acceptor.ingest.ingest_records("events", records)
        return answer.accepted, answer.duplicates

    async def commit(self) -> int:
        """Commit what waits; the newest snapshot."""
        await self.acceptor.commit()
        query = f"SELECT max(snapshot_id) FROM {self.acceptor.lake.name}.ducklake_snapshot"
        return int(await self.acceptor.view.fetchval(query))

    async def restore(self, snapshot_id: int) -> None:
        await self.acceptor.bus.restore(snapshot_id)

    async def refused(self, patch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
        """Commit what waits while the lake refuses statements of a kind."""

        def refuse(*_: object) -> str:
            raise error

        with patch.context() as planted:
            planted.setattr(lakesql, name, refuse)
            await self.acceptor.commit()

    async def letter(self, patch: pytest.MonkeyPatch, id_: int) -> int:
        """Send a record that the lake refuses; the number of its dead letter."""
        assert await self.sent(id_) == (1, 0)
        await self.refused(patch, "insert_rows", duckdb.InvalidInputException("planted"))
        return (await self.letters())[-1]

    async def letters(self) -> list[int]:
        found = await self.acceptor.bus.letters(0, limit=100, max_bytes=2**20)
        assert (await self.acceptor.bus.backlog()).dead_letters == len(found)
        return [letter.first for letter in found]

    def ids(self) -> list[int | None]:
        return self.acceptor.view.ids()


@asynccontextmanager
async def keyed(lake: Lake) -> AsyncIterator[Keyed]:
    """A lake with one table, and what takes records and dead letters."""
    async with accepting(lake) as acceptor:
        inlet = Inlet(
            acceptor.bus, lake=lake.name, limits=IngestLimits(), on_accepted=lambda number: None
        )
        await inlet.start()
        letters = DeadLetterService(inlet, acceptor.bus, StoreObjects(lake.store))
        try:
            await acceptor.create(
                {"name": "events", "columns": [{"name": "id", "type": "INTEGER"}]}
            )
            yield Keyed(acceptor, letters)
        finally:
            await inlet.drain()


async def test_records_after_the_point_can_be_sent_again_and_those_before_it_are_duplicates(
    lake: Lake,
) -> None:
    async with keyed(lake) as life:
        assert await life.sent(1, 2) == (2, 0)
        then = await life.commit()
        assert await life.sent(2, 3, 4) == (2, 1)

        await life.restore(then)
        assert await life.sent(1, 2, 3) == (0, 3)  # as long as the restore waits
        await life.commit()
        assert await life.sent(1, 2, 3) == (1, 2)
        await life.commit()
        assert await life.sent(1, 2, 3, 4) == (1, 3)
        await life.commit()

        assert life.ids() == [1, 2, 3, 4]
        assert await life.letters() == []


async def test_records_are_known_all_along_when_the_lake_refuses_the_restore(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keyed(lake) as life:
        await life.sent(1)
        then = await life.commit()
        await life.sent(2)
        await life.commit()
        await life.restore(then)
        assert await life.sent(2) == (0, 1)
        await life.refused(monkeypatch, "insert_older", duckdb.OutOfMemoryException("planted"))

        assert await life.sent(2, 1) == (0, 2)
        assert life.ids() == [1, 2]


async def test_dead_letters_of_what_a_restore_took_back_go_with_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keyed(lake) as life:
        await life.sent(1)
        then = await life.commit()
        letter = await life.letter(monkeypatch, 7)
        await life.restore(then)
        assert await life.letters() == [letter]
        with monkeypatch.context() as planted:
            planted.setattr(PostgresBus, "trim", AsyncMock(return_value=0))
            await life.commit()
            with pytest.raises(NotFound):
                await life.service.replay(letter)
        await life.acceptor.bus.trim(2**40)

        assert await life.letters() == []
        assert await life.sent(7) == (1, 0)
        await life.commit()
        assert life.ids() == [1, 7]


async def test_a_record_that_was_replayed_after_the_point_can_be_sent_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keyed(lake) as life:
        await life.sent(1)
        await life.commit()
        letter = await life.letter(monkeypatch, 7)
        await life.sent(8)
        then = await life.commit()
        await life.service.replay(letter)
        await life.refused(monkeypatch, "insert_rows", duckdb.InvalidInputException("planted"))
        (letter,) = await life.letters()
        await life.service.replay(letter)
        replayed = await life.commit()
        assert life.ids() == [1, 7, 8]
        await life.restore(then)
        await life.commit()
        assert life.ids() == [1, 8]

        assert await life.sent(7, 8) == (1, 1)
        await life.restore(replayed)  # brings the first one back, and its key
        await life.commit()

        assert await life.sent(7, 8) == (0, 2)
        assert life.ids() == [1, 7, 8]


async def test_keys_get_a_new_generation_only_when_some_can_come_again(lake: Lake) -> None:
    async with keyed(lake) as life:
        generations = f"SELECT count(*) FROM {lake.name}_bus.key_generation WHERE NOT request"
        restores = f"SELECT count(*) FROM {lake.name}_bus.restored"
        await life.sent(1)
        then = await life.commit()
        for _ in range(3):
            await life.restore(then)
        assert await life.acceptor.view.fetchval(generations) == 1
        await life.commit()
        await life.sent(2)
        await life.restore(then)
        assert await life.acceptor.view.fetchval(generations) == 2
        assert await life.acceptor.view.fetchval(restores) == 4

        await life.commit()
        await life.acceptor.view.fetch(
            f"UPDATE {lake.name}_bus.key_generation SET opened_at = clock_timestamp()"
        )
        await life.restore(then)
        assert await life.acceptor.view.fetchval(restores) == 1


async def test_a_restore_that_the_lake_refuses_changes_nothing(life: Life) -> None:
    """A merged file holds newer values of a column that was widened since: DuckDB cannot read them as of then."""
    narrow = named("narrow", ColumnDef(name="id", type="INTEGER"))
    await life.create(narrow, EVENTS)
    await life.ids("narrow", 1)
    then = await life.commit()
    await life.alter("narrow", WidenType(name="id", type="BIGINT"))
    await life.ids("narrow", 2**40)
    await life.ids("events", 1)
    await life.commit()
    await life.maintain(MERGE)
    wanted = life.state()
    tables = (await life.bus.tables())[1]

    await life.restore(then)
    await life.ids("events", 2)
    await life.commit()

    ((kind, _),) = await life.letters()
    assert kind is EntryKind.RESTORE
    assert life.state()["narrow"] == wanted["narrow"]
    assert life.view.ids() == [1, 2]
    assert (await life.bus.tables())[1] == tables
    await life.alter("narrow", AddColumn(column=ColumnDef(name="n", type="INTEGER")))
    await life.commit()
    assert len(await life.letters()) == 1


async def test_a_restore_that_needs_too_much_memory_is_refused_at_once(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    await life.create(EVENTS)
    await life.ids("events", 1)
    then = await life.commit()
    await life.ids("events", 2)
    await life.restore(then)
    tries: list[str] = []

    def refuse(table: str, *_: object) -> str:
        tries.append(table)
        raise duckdb.OutOfMemoryException("planted")

    with monkeypatch.context() as patch:
        patch.setattr(lakesql, "insert_older", refuse)
        await life.commit()

    assert tries == ["events"]
    ((kind, error),) = await life.letters()
    assert (kind, "memory" in error) == (EntryKind.RESTORE, True)
    assert life.view.ids() == [1, 2]
    await life.restore(then)
    await life.commit()
    assert life.view.ids() == [1]


@dataclass
class Ended:
    """Ends the connections of the committer before the COMMIT of a restore, as the idle limit of its login does."""

    lake: Lake
    tries: int = 0
    times: int = 1

    def restore_tables(self, connection: duckdb.DuckDBPyConnection, **of: Any) -> Tally:
        """As `lake_restore.restore_tables`."""
        self.tries += 1
        if self.tries > self.times:
            return lake_restore.restore_tables(connection, **of)
        asyncio.run(self._end())
        tally = lake_restore.restore_tables(connection, **of)
        asyncio.run(self._end())
        return tally

    async def _end(self) -> None:
        query = (
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE $1"
        )
        connection = await asyncpg.connect(self.lake.catalog_dsn)
        try:
            await connection.fetch(query, f"dm:{self.lake.name}:w:%")
        finally:
            await connection.close()


async def test_a_restore_whose_connection_is_ended_is_tried_once_more(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    await life.create(EVENTS)
    await life.ids("events", 1)
    then = await life.commit()
    await life.ids("events", 2)

    for times, left in ((2, [1, 2, 3]), (1, [1])):
        ended = Ended(life.lake, times=times)
        await life.restore(then)
        if times == 2:
            await life.ids("events", 3)
        with monkeypatch.context() as patch:
            patch.setattr(ducklake, "restore_tables", ended.restore_tables)
            await life.commit()
        assert (ended.tries, life.view.ids()) == (2, left)

    ((kind, error),) = await life.letters()
    assert (kind, "2 times" in error) == (EntryKind.RESTORE, True)


BEFORE_IT_LANDS = [
    ("after", "SNAPSHOT_VERSION"),
    ("after", "set_commit_message"),
    ("after", 'DROP TABLE IF EXISTS lake.main."made"'),
    ("after", 'CREATE TABLE lake.main."gone"'),
    ("after", 'INSERT INTO lake.main."gone"'),
    ("after", 'DELETE FROM lake.main."events"'),
    ("after", 'INSERT INTO lake.main."events"'),
    ("before", "COMMIT"),
]
WHEN_IT_LANDS = [("during", "COMMIT"), ("after", "COMMIT"), ("before", "trim")]


async def _restored_by_an_heir(life: Life, *deaths: tuple[str, str]) -> None:
    """Restore after changes of every kind, by committers that die, and at last by one that does not."""
    await life.create(EVENTS, KEYED, named("gone"))
    await life.ids("events", *range(10))
    await life.ids("gone", 1, 2)
    await life.upsert({"id": 1, "value": "then"})
    then = await life.commit()
    wanted = life.state()
    await life.drop("gone")
    await life.create(named("made"))
    await life.ids("made", 1)
    await send(life.bus, append_rows([100, None], version=await life.version()))
    await life.upsert({"id": 1, "value": "now"}, {"id": 2, "value": "now"})
    await life.commit()
    await life.maintain(MERGE)
    restored = await life.restore(then)

    for number, die in enumerate(deaths):
        with committer_process(life.lake, str(number), die=die) as process:
            code = await asyncio.wait_for(asyncio.to_thread(process.wait), 60)
        assert code == -signal.SIGKILL, die
    await life.commit()

    assert await life.view.token() == restored
    assert life.state() == wanted
    await life.ids("events", 7)
    await life.commit()
    assert await life.letters() == []  # the one of the row that was NULL was undone with it
    assert await life.view.fetch(f"SELECT name FROM {life.lake.name}_bus.pin") == []


@pytest.mark.timeout(300)
async def test_a_restore_that_dies_before_it_lands_is_done_by_the_heir(life: Life) -> None:
    await _restored_by_an_heir(life, *BEFORE_IT_LANDS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("die", WHEN_IT_LANDS, ids=" ".join)
async def test_a_restore_that_dies_as_it_lands_is_done_once(
    life: Life, die: tuple[str, str]
) -> None:
    await _restored_by_an_heir(life, die)


async def test_a_lake_on_s3_is_restored_from_its_files_there(s3_lake: Lake) -> None:
    async with living(s3_lake) as life:
        await life.create(EVENTS, KEYED)
        await life.ids("events", 1, 2)
        await life.upsert({"id": 1, "value": "then"})
        then = await life.commit()
        wanted = life.state()
        await life.ids("events", 3)
        await life.upsert((1,))
        await life.alter("events", DropColumn(name="text"))
        await life.commit()
        await life.maintain(MERGE)

        await life.restore(then)
        await life.commit()

        assert await life.letters() == []
        assert life.state() == wanted
