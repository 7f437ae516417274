"""A frozen catalog is the live lake: same rows, same counts, whatever changed before; files come through the proxy."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from duckmesh_runtime.adapters import duckdb_engine, freeze_ahead
from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import FrozenCatalog
from duckmesh_runtime.web.proxy import ReadProxy
from tests.direct import Writer, attached_file, lake_writer, take_over
from tests.direct import attach as attach_role
from tests.sandboxes import eventually
from tests.services import Lake

CHANGES = [
    "CREATE TABLE lake.t (id BIGINT, v VARCHAR)",
    "INSERT INTO lake.t SELECT i, 'a' || i FROM range(1000) r(i)",
    "INSERT INTO lake.t VALUES (-1, '\\N'), (-2, NULL), (-3, ''), (-4, 'x,\"' || chr(10) || 'y')",
    "DELETE FROM lake.t WHERE id < 30",
    "DELETE FROM lake.t WHERE id IN (101, 102)",
    "UPDATE lake.t SET v = 'u' WHERE id = 300",
    "ALTER TABLE lake.t ADD COLUMN z INTEGER DEFAULT 5",
    "INSERT INTO lake.t VALUES (5000, 'z', 1)",
    "ALTER TABLE lake.t RENAME COLUMN v TO w",
    "INSERT INTO lake.t SELECT i, 'n', i FROM range(6000, 6100) r(i)",
    "ALTER TABLE lake.t ALTER COLUMN z SET DATA TYPE BIGINT",
    "merge",
    "DELETE FROM lake.t WHERE id BETWEEN 6000 AND 6009",
    "ALTER TABLE lake.t DROP COLUMN z",
    "CREATE TABLE lake.p (k BIGINT, d INTEGER)",
    "ALTER TABLE lake.p SET PARTITIONED BY (d)",
    "INSERT INTO lake.p SELECT i, i % 3 FROM range(30) r(i)",
    "DELETE FROM lake.p WHERE d = 1",
    "DROP TABLE lake.t",
]


class Reading:
    """The read side of one lake; `prepared` are the catalogs that a query process was asked to attach ahead."""

    def __init__(
        self,
        lake: Lake,
        writer: Writer,
        freezer: PostgresFreezer,
        proxy: ReadProxy,
        prepared: list[FrozenCatalog],
    ) -> None:
        self.lake = lake
        self.writer = writer
        self.freezer = freezer
        self.proxy = proxy
        self.prepared = prepared

    async def frozen_rows(self, catalog: FrozenCatalog, sql: str) -> list[tuple[object, ...]]:
        def read() -> list[tuple[object, ...]]:
            with attached_file(catalog.path) as connection:
                return connection.execute(sql).fetchall()

        return await asyncio.to_thread(read)


Start = Callable[[str], Awaitable[Reading]]


@pytest.fixture
async def start(make_lake: Callable[..., Awaitable[Lake]], tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def make(store: str) -> Reading:
            lake = await make_lake(store=store)
            writer = await lake_writer(lake)
            stack.callback(writer.connection.close)
            pool = await open_pool(lake.reader_dir, application_name="test")
            stack.push_async_callback(pool.close)
            proxy = ReadProxy(StoreObjects(lake.store))
            await proxy.start()
            stack.push_async_callback(proxy.close)
            folder = tmp_path / "catalogs"
            folder.mkdir(exist_ok=True)
            prepared: list[FrozenCatalog] = []

            async def prepare(catalog: FrozenCatalog) -> bool:
                await asyncio.sleep(0.01)  # others take and release catalogs
                assert Path(catalog.path).exists()
                prepared.append(catalog)
                return True

            freezer = PostgresFreezer(
                pool,
                lake.name,
                folder,
                data_url=proxy.data_url,
                allow=proxy.allow,
                forget=proxy.release,
                prepare=prepare,
            )
            stack.push_async_callback(freezer.close)
            return Reading(lake, writer, freezer, proxy, prepared)

        yield make


@pytest.mark.parametrize(
    ("store", "changes"),
    [pytest.param("file", CHANGES, id="file"), pytest.param("s3", CHANGES[:4], id="s3")],
)
async def test_frozen_equals_live_after_every_kind_of_change(
    start: Start, store: str, changes: list[str]
) -> None:
    reading = await start(store)
    writer = reading.writer
    maintenance = attach_role(reading.lake, "m", await take_over(reading.lake, "m"))

    for change in changes:
        if change == "merge":
            maintenance.execute("BEGIN")
            maintenance.execute(
                "CALL lake.set_commit_message('test', 'merge', extra_info => '{\"role\":\"m\"}')"
            )
            maintenance.execute("CALL ducklake_merge_adjacent_files('lake', 't')")
            maintenance.execute("COMMIT")
        else:
            writer.commit(change)
        catalog = await reading.freezer.freeze(writer.token)
        tables = writer.rows(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' AND schema_name = 'main'"
        )
        for (table,) in tables:
            for sql in (
                f"SELECT * FROM lake.{table} ORDER BY 1",
                f"SELECT count(*), min(COLUMNS(*)) FROM lake.{table}",
            ):
                assert await reading.frozen_rows(catalog, sql) == writer.rows(sql), (
                    f"{sql} after {change}"
                )
        assert catalog.token == writer.token
        reading.freezer.release(catalog)
    maintenance.close()


async def test_an_empty_lake_freezes(start: Start) -> None:
    reading = await start("file")

    catalog = await reading.freezer.freeze()

    assert (catalog.token, catalog.lag_ms, dict(catalog.files)) == (0, 0, {})
    assert await reading.frozen_rows(catalog, "SELECT 42") == [(42,)]


async def test_queries_of_a_moment_share_a_file_and_a_newer_token_does_not(start: Start) -> None:
    reading = await start("file")
    reading.writer.commit("CREATE TABLE lake.t (id BIGINT)")

    same = await asyncio.gather(*(reading.freezer.freeze() for _ in range(20)))
    reading.writer.commit("INSERT INTO lake.t VALUES (1)")
    newer = await reading.freezer.freeze(reading.writer.token)

    assert len({catalog.path for catalog in same}) == 1
    assert newer.token == reading.writer.token
    assert newer.path != same[0].path


async def test_an_unchanged_lake_is_not_frozen_again(start: Start) -> None:
    reading = await start("file")
    first = await reading.freezer.freeze()

    async def again() -> FrozenCatalog:
        while (catalog := await reading.freezer.freeze()).frozen_at == first.frozen_at:
            await asyncio.sleep(0.02)
        return catalog

    second = await asyncio.wait_for(again(), 5)

    assert second.path == first.path
    assert second.frozen_at > first.frozen_at


async def test_a_start_has_a_catalog_before_the_first_query(start: Start) -> None:
    reading = await start("file")

    async with reading.freezer.ahead():
        await eventually(lambda: reading.prepared)
        first = await reading.freezer.freeze()

    assert first.path == reading.prepared[0].path


async def test_frozen_ahead_is_attached_before_it_is_given_out(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze_ahead, "_FOR_S", 60)  # however long the commit takes
    reading = await start("file")
    reading.writer.commit("CREATE TABLE lake.t (id BIGINT)")

    async with reading.freezer.ahead():
        await eventually(lambda: reading.prepared)
        reading.freezer.release(await reading.freezer.freeze())
        token = reading.writer.commit("INSERT INTO lake.t VALUES (1)")
        await eventually(lambda: reading.prepared[-1].token == token)
        given = await reading.freezer.freeze()

    assert given.path == reading.prepared[-1].path


async def test_frozen_ahead_is_never_older_than_promised_and_leaves_no_file(
    start: Start, tmp_path: Path
) -> None:
    reading = await start("file")
    reading.writer.commit("CREATE TABLE lake.t (id BIGINT)")
    committed: list[tuple[float, int]] = []

    async def commits() -> None:
        for number in range(12):
            token = await asyncio.to_thread(
                reading.writer.commit, f"INSERT INTO lake.t VALUES ({number})"
            )
            committed.append((time.monotonic(), token))
            if number % 3 == 0:
                catalog = await reading.freezer.freeze(token)
                assert catalog.token >= token
                reading.freezer.release(catalog)

    async with reading.freezer.ahead():
        await eventually(lambda: reading.prepared)
        writing = asyncio.create_task(commits())
        while not writing.done():
            asked = time.monotonic()
            catalog = await reading.freezer.freeze()
            due = max((token for at, token in committed if at <= asked - 0.1), default=0)
            assert catalog.token >= due
            await asyncio.sleep(0.002)
            reading.freezer.release(catalog)
        await writing
        newest = await reading.freezer.freeze(reading.writer.token)
        rows = await reading.frozen_rows(newest, "SELECT count(*) FROM lake.t")
        reading.freezer.release(newest)

    assert rows == [(12,)]
    assert [*(tmp_path / "catalogs").iterdir()] == [Path(newest.path)]


async def test_a_held_catalog_stays_and_a_released_one_goes(start: Start) -> None:
    reading = await start("file")
    reading.writer.commit("CREATE TABLE lake.t (id BIGINT)", "INSERT INTO lake.t VALUES (1)")
    held = await reading.freezer.freeze(reading.writer.token)
    reading.writer.commit("DELETE FROM lake.t WHERE id = 1", "INSERT INTO lake.t VALUES (2)")
    newest = await reading.freezer.freeze(reading.writer.token)

    assert await reading.frozen_rows(held, "SELECT id FROM lake.t") == [(1,)]
    assert await reading.frozen_rows(newest, "SELECT id FROM lake.t") == [(2,)]
    reading.freezer.release(held)

    assert not Path(held.path).exists()
    assert Path(newest.path).exists()


async def test_files_of_an_earlier_process_go_and_names_do_not_come_back(
    start: Start, tmp_path: Path
) -> None:
    reading = await start("file")
    first = await reading.freezer.freeze()
    left = tmp_path / "catalogs" / "snapshot-7-old-1.db"
    left.write_text("left")

    again = await start("file")
    second = await again.freezer.freeze()

    assert not left.exists()
    assert Path(first.path).name != Path(second.path).name
    await again.freezer.close()
    again.freezer.release(second)


async def test_lag_is_the_age_of_the_oldest_row_that_the_snapshot_lacks(start: Start) -> None:
    reading = await start("file")
    admin = await asyncpg.connect(reading.lake.catalog_dsn)
    await admin.execute(
        f"INSERT INTO {reading.lake.name}_bus.entry "
        "(first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at) "
        "VALUES (1, 3, 'rows', 't', 1, 3, 1, 'x', clock_timestamp() - interval '7 s')"
    )
    await admin.close()

    catalog = await reading.freezer.freeze()

    assert 7_000 <= catalog.lag_ms < 9_000


async def test_a_freeze_that_hangs_does_not_end_those_after_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that stalls while a client goes away: the thread is given up, the next query gets another."""
    reading = await start("file")
    stalled, goes_on, copy = threading.Event(), threading.Event(), shutil.copyfile

    def stall(*names: Path) -> object:
        stalled.set()
        goes_on.wait(30)
        return copy(*names)

    with monkeypatch.context() as patch:
        patch.setattr(duckdb_engine, "_AFTER_INTERRUPT_S", 0.01)
        patch.setattr(shutil, "copyfile", stall)
        leaving = asyncio.create_task(reading.freezer.freeze())
        await asyncio.to_thread(stalled.wait)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    try:
        catalog = await reading.freezer.freeze()
    finally:
        goes_on.set()

    assert Path(catalog.path).exists()


async def test_a_catalog_database_that_is_gone_is_told_as_such(
    start: Start, postgres: PostgresServer
) -> None:
    reading = await start("file")
    await reading.freezer.freeze()
    database = urlsplit(reading.lake.catalog_dsn).path[1:]
    admin = await asyncpg.connect(postgres.dsn())
    await admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database
    )

    async with reading.freezer.ahead():
        with pytest.raises(Unavailable) as caught:
            await reading.freezer.freeze(99)

    assert caught.value.code == "CATALOG_UNAVAILABLE"
    await admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    await admin.close()
    assert (await reading.freezer.freeze(99)).token == 0


async def test_a_catalog_stays_while_it_is_made_and_others_are_released(start: Start) -> None:
    reading = await start("file")
    freezer, writer = reading.freezer, reading.writer
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    old = await freezer.freeze(writer.token)
    made: list[FrozenCatalog] = []

    async def make() -> None:
        writer.commit("INSERT INTO lake.t VALUES (1)")
        made.append(await freezer.freeze(writer.token))
        made.append(await freezer.freeze(at=old.snapshot_id))
        made.append(await freezer.freeze(at=old.snapshot_id))  # that is there

    making = asyncio.create_task(make())
    while not making.done():
        freezer.release(old)
        freezer._hold(old)
        await asyncio.sleep(0)
    await making

    assert [Path(catalog.path).exists() for catalog in made] == [True] * 3


async def test_an_id_that_comes_again_after_a_restore_is_another_snapshot(start: Start) -> None:
    reading = await start("file")
    reading.writer.commit("CREATE TABLE lake.t (id BIGINT)")
    newest = await reading.freezer.freeze(reading.writer.token)
    past = await reading.freezer.freeze(at=newest.snapshot_id)
    admin = await asyncpg.connect(reading.lake.catalog_dsn)
    async with admin.transaction():
        await admin.execute("SET LOCAL session_replication_role = replica")
        lake = reading.lake.name
        await admin.execute(f"UPDATE {lake}.ducklake_snapshot SET snapshot_time = now()")
        await admin.execute(f"UPDATE {lake}.ducklake_table SET table_name = 'u'")
    await admin.close()
    await asyncio.sleep(0.1)  # as long as what was seen is given out

    again = [await reading.freezer.freeze(), await reading.freezer.freeze(at=newest.snapshot_id)]

    assert [c.snapshot_id for c in again] == [newest.snapshot_id, past.snapshot_id]
    for catalog in again:
        assert await reading.frozen_rows(catalog, "SELECT count(*) FROM lake.u") == [(0,)]
