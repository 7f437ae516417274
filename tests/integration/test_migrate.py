"""`duckmesh migrate` against a real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace

import asyncpg
import pytest

from duckmesh_runtime import sql
from duckmesh_runtime.adapters import migrate as adapter
from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.adapters.snapshots import PostgresSnapshots
from duckmesh_runtime.domain.lakesql import mark_commit
from duckmesh_runtime.domain.schema import table_json
from duckmesh_runtime.errors import Conflict, Corrupt, Unauthorized, Unavailable
from duckmesh_runtime.ports import Append, EntryKind, KeyHash, Part
from duckmesh_runtime.settings import MigrateSettings, read_secret
from tests import direct
from tests.lakes import writer_pool
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]

_STATE = """
SELECT jsonb_build_object(
  'snapshots', (SELECT count(*) FROM {lake}.ducklake_snapshot),
  'options', (SELECT jsonb_agg(m ORDER BY m.key) FROM {lake}.ducklake_metadata AS m),
  'triggers', (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal),
  'registry', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lake AS l),
  'lease', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lease AS l),
  'status', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lake_status AS l),
  'applied', (SELECT jsonb_agg(s ORDER BY s.number) FROM duckmesh.schema_migration AS s),
  'relations', (SELECT count(*) FROM pg_class))::text
"""


async def _fetchval(dsn: str, query: str, *args: object) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close()


async def _state(lake: Lake) -> object:
    return await _fetchval(lake.catalog_dsn, _STATE.format(lake=lake.name))


async def test_a_second_run_changes_nothing(lake: Lake) -> None:
    before = await _state(lake)

    await migrate(lake.migrate_settings)

    assert await _state(lake) == before


async def test_the_newest_migration_is_recorded_for_the_lake(lake: Lake) -> None:
    query = "SELECT migration FROM duckmesh.lake WHERE lake = $1 AND tenant_uid = $2"

    assert await _fetchval(lake.catalog_dsn, query, lake.name, lake.tenant_uid) == sql.MIGRATION


@pytest.mark.parametrize("step", ["_apply", "_register", "_make_lake", "_install"])
async def test_a_run_ended_before_a_step_is_finished_by_the_next(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lake = await make_lake(migrated=False)

    async def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapter, step, end)
        with pytest.raises(KeyboardInterrupt):
            await migrate(lake.migrate_settings)
    await migrate(lake.migrate_settings)

    before = await _state(lake)
    await migrate(lake.migrate_settings)
    assert await _state(lake) == before


async def test_a_run_ended_between_schema_and_option_is_finished_by_the_next(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = await make_lake(migrated=False)

    with monkeypatch.context() as patch:
        patch.setattr(adapter.lakesql, "store_inlining_off", lambda: "SELECT error('ended here')")
        with pytest.raises(Unavailable):
            await migrate(lake.migrate_settings)
    await migrate(lake.migrate_settings)

    query = f"SELECT value FROM {lake.name}.ducklake_metadata WHERE key = 'data_inlining_row_limit'"
    assert await _fetchval(lake.catalog_dsn, query) == "0"


async def test_runs_for_two_lakes_of_one_database_may_overlap(make_lake: MakeLake) -> None:
    first = await make_lake(migrated=False)
    second = await make_lake(migrated=False, dsn=first.catalog_dsn)

    runs = (first, second, first, second)
    await asyncio.gather(*(migrate(lake.migrate_settings) for lake in runs))

    query = "SELECT array_agg(lake ORDER BY lake) FROM duckmesh.lake WHERE migration = $1"
    found = await _fetchval(first.catalog_dsn, query, sql.MIGRATION)
    assert found == sorted([first.name, second.name])


@pytest.mark.parametrize("change", ["uid", "url"])
async def test_a_lake_of_another_owner_or_place_is_refused(lake: Lake, change: str) -> None:
    settings = lake.migrate_settings
    other = (
        replace(settings, tenant_uid="another")
        if change == "uid"
        else replace(settings, store=replace(settings.store, url=f"{settings.store.url}x/"))
    )
    before = await _state(lake)

    with pytest.raises(Unauthorized):
        await migrate(other)

    assert await _state(lake) == before


async def test_an_edited_migration_is_refused(lake: Lake) -> None:
    edit = "UPDATE duckmesh.schema_migration SET checksum = 'x' WHERE number = 2"
    await _fetchval(lake.catalog_dsn, edit)

    with pytest.raises(Corrupt, match="0002"):
        await migrate(lake.migrate_settings)


async def test_a_newer_release_s_migration_is_left_alone(lake: Lake) -> None:
    newer = "INSERT INTO duckmesh.schema_migration (number, name, checksum) VALUES (9999, 'x', 'x')"
    await _fetchval(lake.catalog_dsn, newer)

    await migrate(lake.migrate_settings)

    query = "SELECT count(*) FROM duckmesh.schema_migration"
    assert await _fetchval(lake.catalog_dsn, query) == sql.MIGRATION + 1


class EarlierRelease:
    """What a process of migration 3 does with a bus."""

    def __init__(self, lake: Lake, connection: asyncpg.Connection) -> None:
        self._bus = f"{lake.name}_bus"
        self._connection = connection

    async def append(self, number: int) -> int:
        """One row under the record key `k<number>`; returns its token."""
        async with self._connection.transaction():
            last: int = await self._connection.fetchval(
                f"UPDATE {self._bus}.head SET last = last + 1 RETURNING last"
            )
            await self._connection.execute(
                f"INSERT INTO {self._bus}.entry (first, last, kind, table_name, schema_version, "
                "row_count, byte_count, payload) VALUES ($1, $1, 'rows', 't', 1, 1, 9, $2)",
                *(last, f"row {number}".encode()),
            )
            await self._remember(f"k{number}", last, request=False)
        return last

    async def remember_request(self, name: str, number: int) -> None:
        await self._remember(name, number, request=True)

    async def known(self, name: str) -> int | None:
        number: int | None = await self._connection.fetchval(
            f"SELECT number FROM {self._bus}.idempotency WHERE key = ANY($1::bytea[])",
            [_digest(name)],
        )
        return number

    async def _remember(self, name: str, number: int, *, request: bool) -> None:
        await self._connection.execute(
            f"INSERT INTO {self._bus}.idempotency (key, content, number, request) "
            "VALUES ($1, 'same', $2, $3)",
            *(_digest(name), number, request),
        )


def _digest(name: str) -> bytes:
    return name.encode().ljust(16)


def _again(name: str, *, request: bool = False) -> Append:
    return Append(
        kind=EntryKind.ROWS,
        table="t",
        parts=[Part(rows=1, payload=b"x")],
        schema_version=1,
        keys=[KeyHash(key=_digest(name), content=b"same", request=request)],
    )


@pytest.fixture
async def old_lake(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake of migration 3 with a table."""
    lake = await make_lake(migrated=False)

    async def install(connection: asyncpg.Connection, settings: MigrateSettings) -> None:
        logins = (settings.writer, settings.maintenance, settings.reader)
        for part, given in (("lake", logins), ("bus", logins), ("dead_letters", logins[:1])):
            marks = ", ".join(f"${i + 2}" for i in range(len(given)))
            query = f"SELECT duckmesh.install_{part}($1, {marks})"
            await connection.execute(query, settings.lake, *given)

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "MIGRATION", 3)
        patch.setattr(adapter, "pending", lambda applied: sql.pending(applied)[: 3 - len(applied)])
        patch.setattr(adapter, "_install", install)
        await migrate(lake.migrate_settings)
    await _fetchval(
        lake.catalog_dsn,
        f"WITH h AS (UPDATE {lake.name}_bus.head SET schema_version = 1) "
        f"INSERT INTO {lake.name}_bus.table_def VALUES ('t', $1::jsonb, 1)",
        '{"name": "t", "columns": [{"name": "id", "type": "BIGINT"}]}',
    )
    return lake


@pytest.fixture
async def earlier(old_lake: Lake) -> AsyncIterator[EarlierRelease]:
    connection = await asyncpg.connect(read_secret(old_lake.writer_dir, "dsn"))
    try:
        yield EarlierRelease(old_lake, connection)
    finally:
        await connection.close()


async def test_an_upgrade_keeps_what_waits_its_keys_its_letters_and_its_tables(
    old_lake: Lake, earlier: EarlierRelease
) -> None:
    for number in (1, 2, 3):
        await earlier.append(number)
    await earlier.remember_request("body", 3)
    epoch = await _fetchval(
        old_lake.catalog_dsn, f"SELECT duckmesh.take_over('{old_lake.name}', 'w')"
    )
    query = f"SELECT duckmesh.set_aside('{old_lake.name}', $1, 0, 1, 'not a number')"
    await _as_writer(old_lake, query, epoch)

    await migrate(old_lake.migrate_settings)

    async with writer_pool(old_lake) as pool:
        bus = PostgresBus(pool, old_lake.name)
        entries = await bus.read(1, max_rows=10, max_bytes=2**20)
        assert [(e.first, e.payload) for e in entries] == [(2, b"row 2"), (3, b"row 3")]
        receipts = await bus.append(
            [_again("k2"), _again("body", request=True), _again("new"), _again("k1", request=True)]
        )
        assert [list(receipt.known) for receipt in receipts] == [[2], [3], [], []]
        (letter,) = await bus.letters(0, limit=10, max_bytes=10**6)
        assert (letter.first, letter.payload, letter.error) == (1, b"row 1", "not a number")
        assert await bus.drop_letter(1)
        (version,) = await bus.table_versions("t")
        assert (version.schema_version, (await bus.tables())[1]) == (1, [version.table])
    before = await _state(old_lake)
    await migrate(old_lake.migrate_settings)
    assert await _state(old_lake) == before


async def test_an_earlier_release_goes_on_beside_an_upgraded_lake(
    old_lake: Lake, earlier: EarlierRelease
) -> None:
    upgraded = asyncio.create_task(migrate(old_lake.migrate_settings))
    tokens = []
    while not upgraded.done():
        tokens.append(await earlier.append(len(tokens)))
        await asyncio.sleep(0.005)
    await upgraded
    tokens.append(await earlier.append(len(tokens)))

    async with writer_pool(old_lake) as pool:
        bus = PostgresBus(pool, old_lake.name)
        (known,) = await bus.append([_again(f"k{len(tokens) - 1}")])
        (new,) = await bus.append([_again("new")])
        entries = await bus.read(0, max_rows=2**31, max_bytes=2**30)

    assert tokens == list(range(1, len(tokens) + 1))
    assert [entry.last for entry in entries] == [*tokens, new.last]
    assert list(known.known) == tokens[-1:]
    assert await earlier.known("new") == new.last


async def test_a_lake_that_stays_behind_is_swept_and_used_as_before(
    old_lake: Lake, earlier: EarlierRelease, make_lake: MakeLake
) -> None:
    await make_lake(dsn=old_lake.catalog_dsn)
    await earlier.append(1)

    query = "SELECT pending_rows FROM duckmesh.sweep() WHERE lake = $1 AND error IS NULL"
    assert await _fetchval(old_lake.catalog_dsn, query, old_lake.name) == 1
    epoch = await _fetchval(
        old_lake.catalog_dsn, f"SELECT duckmesh.take_over('{old_lake.name}', 'w')"
    )
    query = f"SELECT duckmesh.set_aside('{old_lake.name}', $1, 0, 1, 'why')"
    assert await _as_writer(old_lake, query, epoch) == 1


async def _as_writer(lake: Lake, query: str, *args: object) -> object:
    return await _fetchval(read_secret(lake.writer_dir, "dsn"), query, *args)


@pytest.mark.parametrize("kind", [EntryKind.ALTER_TABLE, EntryKind.DROP_TABLE])
async def test_a_table_of_the_earlier_release_outlives_a_refused_change(
    old_lake: Lake, earlier: EarlierRelease, kind: EntryKind
) -> None:
    await migrate(old_lake.migrate_settings)
    name = old_lake.name
    await _fetchval(old_lake.catalog_dsn, f"DELETE FROM {name}_bus.table_version")
    epoch = await _fetchval(old_lake.catalog_dsn, f"SELECT duckmesh.take_over('{name}', 'w')")
    async with writer_pool(old_lake) as pool:
        bus = PostgresBus(pool, name)
        version, before = await bus.tables()
        wider = {**table_json(before[0]), "columns": [{"name": "b", "type": "BIGINT"}]}
        payload = json.dumps({"table": wider, "changes": []}).encode()
        part = Part(rows=1, payload=payload if kind is EntryKind.ALTER_TABLE else b"")
        change = Append(kind=kind, table="t", parts=[part], schema_version=version)
        (receipt,) = await bus.append([change])
        assert (await bus.tables())[1] != before

        query = f"SELECT duckmesh.set_aside_change('{name}', $1, $2, $3, 'in use')"
        await _as_writer(old_lake, query, epoch, receipt.last - 1, receipt.last)

        assert (await bus.tables())[1] == before


async def test_a_snapshot_of_the_earlier_release_can_be_pinned(old_lake: Lake) -> None:
    await migrate(old_lake.migrate_settings)

    async with writer_pool(old_lake) as pool:
        pinned = await PostgresSnapshots(pool, old_lake.name).pin(0, "audit", None)

    assert [pin.name for pin in pinned.pins] == ["audit"]


async def test_snapshots_of_an_upgraded_lake_have_the_time_of_their_commit(
    old_lake: Lake,
) -> None:
    await migrate(old_lake.migrate_settings)

    writer = await direct.lake_writer(old_lake)
    with closing(writer.connection) as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE lake.t (id BIGINT)")
        late = await _fetchval(old_lake.catalog_dsn, "SELECT clock_timestamp()")
        connection.execute(mark_commit(0, 1, "test"))
        connection.execute("COMMIT")

    query = (
        f"SELECT snapshot_time > $1 FROM {old_lake.name}.ducklake_snapshot WHERE snapshot_id = 1"
    )
    assert await _fetchval(old_lake.catalog_dsn, query, late)


async def test_an_upgraded_lake_is_restored_to_what_came_after_the_upgrade_only(
    old_lake: Lake, earlier: EarlierRelease
) -> None:
    for number in (1, 2, 3):
        await earlier.append(number)
    await migrate(old_lake.migrate_settings)
    for id_, token in ((1, 2), (2, 3)):
        await _plant_snapshot(old_lake, id_, token)

    async with writer_pool(old_lake) as pool:
        bus = PostgresBus(pool, old_lake.name)
        with pytest.raises(Conflict, match="which tables there were is not known"):
            await bus.restore(1)
        assert (await bus.head()).last == 3
        assert (await bus.restore(2)).last == 4
        assert [table.name for table in (await bus.tables())[1]] == ["t"]


async def _plant_snapshot(lake: Lake, id_: int, token: int) -> None:
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            f"INSERT INTO {lake.name}.ducklake_snapshot (snapshot_id) VALUES ($1)", id_
        )
        await connection.execute(
            f"INSERT INTO {lake.name}.ducklake_snapshot_changes (snapshot_id, commit_extra_info) "
            "VALUES ($1, $2)",
            *(id_, json.dumps({"role": "w", "prev": 0, "tok": token})),
        )
    finally:
        await connection.close()
