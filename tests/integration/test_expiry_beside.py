"""Expiry beside what goes on in a lake: commits, queries, outages. Nobody notices it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import duckdb
import pytest

from duckmesh_runtime import metrics
from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain import thinning
from duckmesh_runtime.services import expiry
from duckmesh_runtime.settings import SnapshotSettings
from duckmesh_runtime.web.proxy import ReadProxy
from tests.direct import attached_file, lake_writer
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_create,
    append_rows,
    append_table,
    changes_of,
    committer_of,
    eventually,
    running,
    send,
    writer_pool,
)
from tests.services import Lake
from tests.upkeep import behind_the_fence, expiry_of, make_files_older, make_older, snapshot_ids

GREEDY = SnapshotSettings(keep_for_s=0, keep_last=1)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the newest may go, however young."""
    for module in (thinning, expiry):
        monkeypatch.setattr(module, "ALL_FOR", timedelta(0))


def total(name: str) -> float:
    """A counter's sum over all its labels."""
    return sum(
        sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == name
    )


class Input:
    """Random rows, upserts and deletes, and what they lead to."""

    def __init__(self, bus: PostgresBus) -> None:
        self._bus = bus
        self._chance = random.Random(5)  # noqa: S311 - repeatable, not secret
        self.ids: list[int] = []
        self.keyed: dict[int, str] = {}

    async def create(self) -> None:
        await send(self._bus, append_create(EVENTS, version=0), append_create(KEYED, version=1))

    async def send(self) -> int:
        ids = range(len(self.ids), len(self.ids) + self._chance.randint(1, 20))
        self.ids += ids
        changes: list[Mapping[str, object] | tuple[object, ...]] = []
        for _ in range(self._chance.randint(1, 20)):
            id_ = self._chance.randrange(40)
            if self._chance.random() < 0.3:
                changes.append((id_,))
                self.keyed.pop(id_, None)
            else:
                self.keyed[id_] = str(len(self.ids))
                changes.append({"id": id_, "value": self.keyed[id_]})
        rows = append_rows(ids, version=2)
        return await send(
            self._bus, rows, append_table(changes_of(*changes), version=2, table="keyed")
        )

    def check(self, view: LakeView) -> None:
        assert view.ids() == self.ids
        assert dict(view.query("SELECT id, value FROM keyed")) == self.keyed
        assert view.query("SELECT count(*) FROM keyed") == [(len(self.keyed),)]


@pytest.mark.usefixtures("_at_once")
@pytest.mark.timeout(300)
async def test_expiry_beside_inserts_upserts_and_deletes_loses_no_row_and_kills_no_commit(
    lake: Lake,
) -> None:
    """Each round takes all snapshots but the newest, and every file of theirs at once."""
    view = LakeView(lake)
    before = {name: total(f"duckmesh_{name}_total") for name in COUNTED}
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        work = Input(PostgresBus(pool, lake.name))
        await work.create()
        rounds = expiry_of(lake, keep=GREEDY, files_stay_s=0, interval_s=0.02)
        async with rounds.running():
            for number in range(120):
                last = await work.send()
                committer.nudge()
                if number % 4 == 0:
                    await view.visible(last, 60)
            await view.visible(last, 60)
        work.check(view)
        await rounds.round()
        work.check(view)

    done = {name: total(f"duckmesh_{name}_total") - before[name] for name in COUNTED}
    assert done["commit_failures"] == 0
    assert done["maintenance_failures"] == 0
    assert done["snapshots_expired"] >= 20
    assert done["gc_files_deleted"] >= 20
    assert len(await snapshot_ids(lake)) == 1


COUNTED = ("commit_failures", "maintenance_failures", "snapshots_expired", "gc_files_deleted")


@asynccontextmanager
async def freezer_of(lake: Lake, folder: Path) -> AsyncIterator[PostgresFreezer]:
    pool = await open_pool(lake.reader_dir, application_name="test")
    proxy = ReadProxy(StoreObjects(lake.store))
    await proxy.start()
    folder.mkdir()
    freezer = PostgresFreezer(
        pool,
        lake.name,
        folder,
        data_url=proxy.data_url,
        allow=proxy.allow,
        forget=proxy.release,
    )
    try:
        yield freezer
    finally:
        await freezer.close()
        await proxy.close()
        await pool.close()


async def test_a_query_over_a_frozen_catalog_ends_right_while_its_snapshot_and_files_expire(
    lake: Lake, tmp_path: Path
) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(12):
        writer.commit(
            f"INSERT INTO lake.t SELECT * FROM range({1000 * number}, {1000 * number + 1000})"
        )
    writer.commit("DELETE FROM lake.t WHERE id % 10 = 0")
    wanted = [(10_800, sum(i for i in range(12_000) if i % 10))]
    query = "SELECT count(*), sum(id) FROM lake.t"
    async with freezer_of(lake, tmp_path / "catalogs") as freezer:
        held = await freezer.freeze()
        with attached_file(held.path) as connection:
            assert await _begin(connection) == (1,)
            writer.commit("DELETE FROM lake.t")
            writer.commit("INSERT INTO lake.t VALUES (1)")
            await make_older(lake, timedelta(days=400))
            rounds = expiry_of(lake, files_stay_s=4_200)
            await rounds.round()
            await make_files_older(lake, timedelta(hours=1))
            await rounds.round()

            assert await snapshot_ids(lake) == [16]
            rest = await asyncio.to_thread(connection.fetchall)
            assert len(rest) == 10_799
        with attached_file(held.path) as connection:
            found = await asyncio.to_thread(lambda: connection.execute(query).fetchall())
            assert found == wanted

        files = [Path(urlsplit(lake.store.url).path) / name for name in held.files]
        assert [file.exists() for file in files] == [True] * len(files)
        await make_files_older(lake, timedelta(hours=1))
        await rounds.round()
        assert [file.exists() for file in files] == [False] * len(files)
    writer.connection.close()


async def _begin(connection: duckdb.DuckDBPyConnection) -> tuple[object, ...] | None:
    """Start to read row by row: files are opened as they are needed."""
    connection.execute("SET threads = 1")
    return await asyncio.to_thread(lambda: connection.execute("SELECT id FROM lake.t").fetchone())


async def test_an_outage_of_the_catalog_or_a_refusal_ends_rounds_and_reaches_no_commit(
    lake: Lake, postgres: PostgresServer
) -> None:
    view = LakeView(lake)
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        work = Input(PostgresBus(pool, lake.name))
        await work.create()
        await view.visible(await work.send())
        async with expiry_of(lake, interval_s=0.05).running():
            failures = total("duckmesh_maintenance_failures_total")
            async with _out(lake, postgres):
                await eventually(_more("duckmesh_maintenance_failures_total", failures))
            await view.visible(await work.send(), 60)

            await behind_the_fence(
                lake, "DROP TRIGGER dm_32_clock ON {lake}.ducklake_files_scheduled_for_deletion"
            )
            await make_older(lake, timedelta(days=400))
            failures = total("duckmesh_maintenance_failures_total")
            await eventually(_more("duckmesh_maintenance_failures_total", failures))
            commits = total("duckmesh_commit_failures_total")
            await view.visible(await work.send(), 60)
            assert total("duckmesh_commit_failures_total") == commits

            expired = total("duckmesh_snapshots_expired_total")
            await behind_the_fence(
                lake,
                "CREATE TRIGGER dm_32_clock BEFORE INSERT ON {lake}.ducklake_files_scheduled_for_deletion "
                "FOR EACH ROW EXECUTE FUNCTION duckmesh.on_schedule()",
            )
            await eventually(_more("duckmesh_snapshots_expired_total", expired))
        work.check(view)


@asynccontextmanager
async def _out(lake: Lake, server: PostgresServer) -> AsyncIterator[None]:
    """The database takes no connections and has none."""
    database = urlsplit(lake.catalog_dsn).path[1:]
    admin = await asyncpg.connect(server.dsn())
    try:
        await admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", database
        )
        yield
        await admin.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true')
    finally:
        await admin.close()


def _more(name: str, than: float) -> Callable[[], Awaitable[bool]]:
    async def more() -> bool:
        return total(name) > than

    return more
