"""Snapshots thin out and their files go, beside a committer that notices nothing, and never what a query may still need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import duckdb
import pytest

from duckmesh_runtime import metrics, roles
from duckmesh_runtime.adapters import maintenance as adapter
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.domain import thinning
from duckmesh_runtime.domain.lakesql import expire_snapshots, mark_commit
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.services import expiry
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.settings import Settings, SnapshotSettings
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.health import Health
from duckmesh_runtime.web.parts import Parts
from tests.direct import Writer, attach, lake_writer, take_over
from tests.fakes.doors import write_keys
from tests.lakes import LakeView, eventually
from tests.services import Lake
from tests.upkeep import (
    HOUR_S,
    behind_the_fence,
    expiry_of,
    maintenance_of,
    make_files_older,
    make_older,
    snapshot_ids,
)

MakeLake = Callable[..., Awaitable[Lake]]


@pytest.fixture
async def writer(lake: Lake) -> AsyncIterator[Writer]:
    found = await lake_writer(lake)
    yield found
    found.connection.close()


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the newest may go, however young."""
    for module in (thinning, expiry):
        monkeypatch.setattr(module, "ALL_FOR", timedelta(0))


GREEDY = SnapshotSettings(keep_for_s=0, keep_last=1)


async def pin(lake: Lake, snapshot_id: int, expires_at: datetime | None = None) -> None:
    await LakeView(lake).fetch(
        f"INSERT INTO {lake.name}_bus.pin (snapshot_id, name, expires_at) VALUES ($1, 'kept', $2)",
        snapshot_id,
        expires_at,
    )


def files_of(lake: Lake) -> set[str]:
    root = Path(urlsplit(lake.store.url).path)
    return {path.name for path in root.rglob("*.parquet")}


async def leave_old_files(lake: Lake, writer: Writer, count: int) -> None:
    """A file each of dropped tables `t0`, `t1`, ..., old enough to go."""
    for number in range(count):
        writer.commit(f"CREATE TABLE lake.t{number} AS SELECT 1 AS id")
        writer.commit(f"DROP TABLE lake.t{number}")
    await make_older(lake, timedelta(days=400))
    await expiry_of(lake).round()
    await make_files_older(lake, timedelta(days=1))


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_all_snapshots_stay_for_ten_minutes_and_then_the_last_of_each_minute(
    lake: Lake, writer: Writer
) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(8):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    ids = await snapshot_ids(lake)
    await behind_the_fence(
        lake,
        "UPDATE {lake}.ducklake_snapshot SET snapshot_time = date_trunc('minute', now()) - interval '1 h' "
        "+ make_interval(secs => 20 * snapshot_id) WHERE snapshot_id <= 6",
    )
    before = value("duckmesh_snapshots_expired_total")

    await expiry_of(lake).round()

    assert await snapshot_ids(lake) == [2, 5, 6, *ids[7:]]
    assert value("duckmesh_snapshots_expired_total") - before == 4
    assert LakeView(lake).query("SELECT count(*) FROM t") == [(8,)]
    assert LakeView(lake).query("SELECT count(*) FROM t AT (VERSION => 5)") == [(4,)]


async def test_the_newest_snapshots_stay_however_old(lake: Lake, writer: Writer) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(5):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    await make_older(lake, timedelta(days=400))
    ids = await snapshot_ids(lake)

    await expiry_of(lake, keep=SnapshotSettings(keep_last=3)).round()

    assert await snapshot_ids(lake) == ids[-3:]


async def test_a_pinned_snapshot_stays_until_its_pin_is_past(lake: Lake, writer: Writer) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)", "INSERT INTO lake.t VALUES (1)")
    writer.commit("UPDATE lake.t SET id = 2")
    writer.commit("UPDATE lake.t SET id = 3")
    await make_older(lake, timedelta(days=400))
    await pin(lake, 1)

    await expiry_of(lake).round()
    await make_files_older(lake, timedelta(days=1))
    await expiry_of(lake).round()

    assert await snapshot_ids(lake) == [1, 3]
    assert LakeView(lake).query("SELECT id FROM t AT (VERSION => 1)") == [(1,)]
    await LakeView(lake).fetch(
        f"UPDATE {lake.name}_bus.pin SET expires_at = clock_timestamp() - interval '1 s'"
    )
    await expiry_of(lake).round()
    assert await snapshot_ids(lake) == [3]


async def test_a_pin_that_comes_while_its_snapshot_is_about_to_go_is_kept(
    lake: Lake, writer: Writer
) -> None:
    """Between the look and the step: the step fails as a whole, and the next round knows of the pin."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    writer.commit("INSERT INTO lake.t VALUES (1)")
    await make_older(lake, timedelta(days=400))
    async with maintenance_of(lake) as maintenance:
        assert await maintenance.claim()
        await pin(lake, 1)
        with pytest.raises(Unavailable):
            await maintenance.expire([0, 1])

    assert await snapshot_ids(lake) == [0, 1, 2]
    await expiry_of(lake).round()
    assert await snapshot_ids(lake) == [1, 2]


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_files_of_expired_snapshots_go_when_no_query_can_need_them_any_more(
    make_lake: MakeLake, store: str
) -> None:
    lake = await make_lake(store=store)
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)", "INSERT INTO lake.t SELECT * FROM range(100)")
    writer.commit("DELETE FROM lake.t")
    writer.commit("INSERT INTO lake.t VALUES (1)")
    stored = f"SELECT count(*) FROM glob('{_root(lake)}**/*.parquet')"
    assert writer.rows(stored) == [(2,)]
    await make_older(lake, timedelta(days=400))
    removed = value("duckmesh_gc_files_deleted_total")

    await expiry_of(lake).round()
    await expiry_of(lake).round()

    assert await snapshot_ids(lake) == [3]
    assert writer.rows(stored) == [(2,)]
    assert value("duckmesh_gc_files_waiting") == 1
    await make_files_older(lake, timedelta(seconds=HOUR_S + 1))
    await expiry_of(lake).round()
    assert writer.rows(stored) == [(1,)]
    assert value("duckmesh_gc_files_deleted_total") - removed == 1
    assert await _scheduled(lake) == 0
    assert LakeView(lake).query("SELECT * FROM t") == [(1,)]
    writer.connection.close()


def _root(lake: Lake) -> str:
    return lake.store.url.removeprefix("file://")


async def _scheduled(lake: Lake) -> int:
    return int(
        await LakeView(lake).fetchval(
            f"SELECT count(*) FROM {lake.name}.ducklake_files_scheduled_for_deletion"
        )
    )


async def test_a_file_that_is_gone_already_does_not_hold_up_the_others(
    lake: Lake, writer: Writer
) -> None:
    """As after a process that ended between the store and the catalog."""
    await leave_old_files(lake, writer, 3)
    root = Path(urlsplit(lake.store.url).path)
    next(root.rglob("*.parquet")).unlink()

    await expiry_of(lake).round()

    assert files_of(lake) == set()
    assert await _scheduled(lake) == 0


async def test_a_store_that_fails_half_way_is_gone_on_with(
    lake: Lake, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_old_files(lake, writer, 3)
    remove = StoreObjects.remove

    async def fails_once(store: StoreObjects, path: str) -> None:
        if "t1" in path:
            raise Unavailable("STORAGE_UNAVAILABLE", "planted")
        await remove(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(StoreObjects, "remove", fails_once)
        with pytest.raises(Unavailable, match="planted"):
            await expiry_of(lake).round()
    assert await _scheduled(lake) == len(files_of(lake)) == 1

    await expiry_of(lake).round()

    assert await _scheduled(lake) == len(files_of(lake)) == 0


async def test_a_round_that_is_cancelled_while_it_ends_keeps_no_lease(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, go_on = asyncio.Event(), asyncio.Event()
    close = adapter.DuckLakeMaintenance.close

    async def slow(held: adapter.DuckLakeMaintenance) -> None:
        ending.set()
        await go_on.wait()
        await close(held)

    async def claim(holder: str) -> bool:
        async with maintenance_of(lake, holder) as held:
            return await held.claim()

    monkeypatch.setattr(adapter.DuckLakeMaintenance, "close", slow)
    first = asyncio.create_task(claim("one"))
    await ending.wait()
    first.cancel()
    await asyncio.sleep(0)  # the cancellation arrives first
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert await claim("two")


async def test_files_that_can_never_be_removed_hold_up_no_others(
    lake: Lake, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a step takes few, and the oldest are the bad ones."""
    await leave_old_files(lake, writer, 6)
    remove = StoreObjects.remove

    async def refuses(store: StoreObjects, path: str) -> None:
        if "t0" in path or "t1" in path:
            raise Unavailable("STORAGE_UNAVAILABLE", "planted")
        await remove(store, path)

    monkeypatch.setattr(StoreObjects, "remove", refuses)
    monkeypatch.setattr(adapter, "_AT_ONCE", 3)
    monkeypatch.setattr(expiry, "SLICE", 3)

    with pytest.raises(Unavailable, match="planted"):
        await expiry_of(lake).round()

    assert await _scheduled(lake) == len(files_of(lake)) == 2


async def test_a_store_that_takes_nothing_is_left_alone_after_a_few(
    lake: Lake, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_old_files(lake, writer, 6)
    asked: list[str] = []

    async def away(_: StoreObjects, path: str) -> None:
        asked.append(path)
        raise Unavailable("STORAGE_UNAVAILABLE", "planted")

    monkeypatch.setattr(StoreObjects, "remove", away)
    monkeypatch.setattr(adapter, "_AT_ONCE", 2)

    with pytest.raises(Unavailable, match="planted"):
        await expiry_of(lake).round()

    assert len(asked) == 2
    assert await _scheduled(lake) == len(files_of(lake)) == 6


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_files_in_folders_of_any_name_are_found_in_the_store(
    make_lake: MakeLake, store: str
) -> None:
    lake = await make_lake(store=store)
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (k VARCHAR, id BIGINT)")
    writer.commit("ALTER TABLE lake.t SET PARTITIONED BY (k)")
    names = ["a b", "50%", "a%20b", "x=y", "q?#&+", "ü/ö", "'\"", ""]
    for name in names:
        writer.connection.execute("SET VARIABLE k = ?", [name])
        writer.commit("INSERT INTO lake.t SELECT getvariable('k'), 1")
    stored = f"SELECT count(*) FROM glob('{_root(lake)}**/*.parquet')"
    assert writer.rows(stored) == [(len(names),)]
    writer.commit("DROP TABLE lake.t")
    await make_older(lake, timedelta(days=400))
    await expiry_of(lake).round()
    await make_files_older(lake, timedelta(days=1))

    await expiry_of(lake).round()

    assert writer.rows(stored) == [(0,)]
    assert await _scheduled(lake) == 0
    writer.connection.close()


async def test_a_process_that_commits_goes_round_by_itself(
    lake: Lake, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its settings on; only the wait between two rounds is shorter."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    await make_older(lake, timedelta(days=400))
    write_keys(tmp_path, {"admin": ["ops_admin"]})
    settings = Settings(
        tenant=lake.tenant,
        lake=lake.name,
        store=lake.store,
        writer_dir=lake.writer_dir,
        maintenance_dir=lake.maintenance_dir,
        snapshots=SnapshotSettings(keep_last=2),
    )
    parts = Parts(settings=settings, keys=KeyRing(tmp_path), health=Health())
    monkeypatch.setattr(roles, "Expiry", partial(Expiry, interval_s=0.05))

    async def thinned() -> bool:
        return await snapshot_ids(lake) == [4, 5]

    async with roles.ingest_role(parts):
        await eventually(thinned)


async def test_a_snapshot_has_the_time_of_its_commit_and_times_ascend(
    lake: Lake, writer: Writer
) -> None:
    """The engine would write when the transaction began."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    writer.connection.execute("BEGIN")
    writer.connection.execute("INSERT INTO lake.t VALUES (1)")
    late = await LakeView(lake).fetchval("SELECT clock_timestamp()")
    writer.connection.execute(mark_commit(1, 2, "test"))
    writer.connection.execute("COMMIT")

    times = await _times(lake)

    assert times == sorted(times)
    assert times[1] < late < times[2]


async def test_a_clock_that_went_back_makes_no_snapshot_older_than_the_one_before(
    lake: Lake, writer: Writer
) -> None:
    await make_older(lake, -timedelta(hours=1))

    writer.commit("CREATE TABLE lake.t (id BIGINT)")

    times = await _times(lake)
    assert times[1] >= times[0]


async def _times(lake: Lake) -> list[datetime]:
    rows = await LakeView(lake).fetch(
        f"SELECT snapshot_time FROM {lake.name}.ducklake_snapshot ORDER BY snapshot_id"
    )
    return [row[0] for row in rows]


async def test_the_age_of_a_file_is_by_the_clock_of_the_database(
    lake: Lake, writer: Writer
) -> None:
    """Whatever time the machine has that gives it up: its engine writes its own."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    epoch = await take_over(lake, "m")
    login = await asyncpg.connect(
        (lake.maintenance_dir / "dsn").read_text().strip(),
        server_settings={"duckmesh.role": "m", "duckmesh.epoch": str(epoch)},
    )
    try:
        await login.execute(
            f"INSERT INTO {lake.name}.ducklake_files_scheduled_for_deletion VALUES "
            "(999, 'main/t/x.parquet', true, '2001-01-01Z'), (998, 'main/t/y.parquet', true, '2999-01-01Z')"
        )
    finally:
        await login.close()

    young = await LakeView(lake).fetch(
        f"SELECT clock_timestamp() - schedule_start < interval '1 min' FROM {lake.name}.ducklake_files_scheduled_for_deletion"
    )

    assert [row[0] for row in young] == [True, True]


@pytest.mark.usefixtures("_at_once")
async def test_what_a_transaction_at_work_may_look_back_at_stays(
    lake: Lake, writer: Writer
) -> None:
    """It finds what it collides with in the records of snapshots younger than itself: without them it would not."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    other = await lake_writer(lake)
    try:
        other.token = writer.token
        other.connection.execute("BEGIN")
        other.rows("SELECT * FROM lake.t")
        for _ in range(2):
            await _foreign_snapshot(lake)

        await expiry_of(lake, keep=GREEDY).round()

        assert await snapshot_ids(lake) == [2, 3]
        other.connection.execute("ROLLBACK")
        await expiry_of(lake, keep=GREEDY).round()
        assert await snapshot_ids(lake) == [3]
    finally:
        other.connection.close()


@pytest.mark.usefixtures("_at_once")
async def test_a_delete_of_rows_that_were_merged_meanwhile_is_still_found_out(
    lake: Lake, writer: Writer
) -> None:
    """The record of the merge is all that tells: were it expired, the delete would land and its rows come back."""
    writer.commit("CREATE TABLE lake.t (id BIGINT)", "CREATE TABLE lake.u (id BIGINT)")
    for number in range(3):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})", "INSERT INTO lake.u VALUES (1)")
    writer.connection.execute("BEGIN")
    writer.connection.execute(mark_commit(writer.token, writer.token + 1, "test"))
    writer.connection.execute("DELETE FROM lake.t WHERE id = 1")
    maintenance = attach(lake, "m", await take_over(lake, "m"))
    for table in "tu":
        maintenance.execute("BEGIN")
        maintenance.execute(
            "CALL lake.set_commit_message('test', 'merge', extra_info => '{\"role\":\"m\"}')"
        )
        maintenance.execute(f"CALL ducklake_merge_adjacent_files('lake', '{table}')")
        maintenance.execute("COMMIT")
    maintenance.close()

    await expiry_of(lake, keep=GREEDY, files_stay_s=0).round()
    with pytest.raises(duckdb.TransactionException, match="conflict"):
        writer.connection.execute("COMMIT")
    assert LakeView(lake).ids("t") == [0, 1, 2]

    writer.commit("DELETE FROM lake.t WHERE id = 1")
    await expiry_of(lake, keep=GREEDY, files_stay_s=0).round()
    assert LakeView(lake).ids("t") == [0, 2]
    assert len(await snapshot_ids(lake)) == 1


async def _foreign_snapshot(lake: Lake) -> None:
    await behind_the_fence(
        lake,
        "INSERT INTO {lake}.ducklake_snapshot SELECT snapshot_id + 1, clock_timestamp(), schema_version, next_catalog_id, "
        "next_file_id FROM {lake}.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1",
    )


async def test_what_is_at_work_is_told_to_the_lakes_own_logins_only(
    lake: Lake, make_lake: MakeLake, writer: Writer
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    writer.connection.execute("BEGIN")
    writer.rows("SELECT count(*) FROM ducklake_snapshots('lake')")
    told = {}
    for asking in (lake, other):
        login = await asyncpg.connect((asking.maintenance_dir / "dsn").read_text().strip())
        try:
            told[asking.name] = await login.fetchval("SELECT duckmesh.busy_since($1)", lake.name)
        finally:
            await login.close()
    writer.connection.execute("ROLLBACK")

    assert told[lake.name] is not None
    assert told[other.name] is None


async def test_a_round_takes_few_connections(lake: Lake, writer: Writer) -> None:
    """A process may open four under each login."""
    writer.commit("CREATE TABLE lake.t AS SELECT 1 AS id")
    writer.commit("DROP TABLE lake.t")
    await make_older(lake, timedelta(days=400))
    async with maintenance_of(lake) as maintenance:
        assert await maintenance.claim()
        await maintenance.expire([0, 1])

        open_now = await LakeView(lake).fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", f"{lake.name}_m"
        )

    assert open_now <= 4


async def test_a_stopped_maintainer_that_goes_on_changes_nothing(
    lake: Lake, writer: Writer
) -> None:
    writer.commit("CREATE TABLE lake.t AS SELECT 1 AS id")
    writer.commit("DROP TABLE lake.t")
    writer.commit("CREATE TABLE lake.t AS SELECT 2 AS id")
    async with maintenance_of(lake, "stopped") as stopped:
        assert await stopped.claim()
        assert await stopped.expire([0]) == 1
        await take_over(lake, "m")
        before = await _state(lake)

        with pytest.raises(Unavailable):
            await stopped.expire([1])
        assert not await stopped.claim()
        assert await stopped.remove_files(stay_s=0, limit=10) == 0

        assert await _state(lake) == before


async def test_a_maintainer_stopped_before_its_commit_is_ended_by_its_heir(
    lake: Lake, writer: Writer
) -> None:
    for number in range(3):
        writer.commit(f"CREATE TABLE lake.t{number} AS SELECT {number} AS id")
    stopped = attach(lake, "m", await take_over(lake, "m"))
    stopped.execute("BEGIN")
    stopped.execute(expire_snapshots([0, 1, 2]))

    async with maintenance_of(lake, "heir") as heir:
        assert await heir.claim()
        assert await heir.expire([0]) == 1
    with pytest.raises(duckdb.Error):
        stopped.execute("COMMIT")

    assert await snapshot_ids(lake) == [1, 2, 3]
    writer.commit("INSERT INTO lake.t0 VALUES (9)")
    stopped.close()


async def test_files_listed_before_the_lease_was_lost_are_told_to_nobody(
    lake: Lake, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it removes from the store then is what anybody may; the record is for its heir to change."""
    writer.commit("CREATE TABLE lake.t AS SELECT 1 AS id")
    writer.commit("DROP TABLE lake.t")
    writer.commit("CREATE TABLE lake.t AS SELECT 2 AS id")
    await make_older(lake, timedelta(days=400))
    await expiry_of(lake).round()
    async with maintenance_of(lake) as stopped:
        assert await stopped.claim()

        async def lose(_: str) -> None:
            await take_over(lake, "m")

        monkeypatch.setattr(stopped._objects, "remove", lose)
        with pytest.raises(Unavailable):
            await stopped.remove_files(stay_s=0, limit=10)

    assert await _scheduled(lake) == 1
    assert LakeView(lake).query("SELECT id FROM t") == [(2,)]


async def _state(lake: Lake) -> object:
    tables = ("ducklake_snapshot", "ducklake_data_file", "ducklake_files_scheduled_for_deletion")
    rows = [await LakeView(lake).fetch(f"SELECT * FROM {lake.name}.{table}") for table in tables]
    return [list(map(tuple, found)) for found in rows], files_of(lake)


async def test_only_one_process_maintains(lake: Lake, writer: Writer) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    await make_older(lake, timedelta(days=400))
    async with maintenance_of(lake, "one") as one:
        assert await one.claim()

        async with maintenance_of(lake, "two") as two:
            assert not await two.claim()
        await expiry_of(lake, holder="two").round()
        assert await snapshot_ids(lake) == [0, 1]

        assert await one.claim()
    await expiry_of(lake, holder="two").round()
    assert await snapshot_ids(lake) == [1]


async def test_a_process_that_does_not_commit_does_not_maintain(lake: Lake, writer: Writer) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    await make_older(lake, timedelta(days=400))

    await expiry_of(lake, active=lambda: False).round()

    assert await snapshot_ids(lake) == [0, 1]


async def test_a_lake_without_the_trigger_on_the_age_of_files_is_refused(
    lake: Lake, writer: Writer
) -> None:
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    await make_older(lake, timedelta(days=400))
    await behind_the_fence(
        lake, "DROP TRIGGER dm_32_clock ON {lake}.ducklake_files_scheduled_for_deletion"
    )

    with pytest.raises(Corrupt, match="dm_32_clock"):
        await expiry_of(lake).round()

    assert await snapshot_ids(lake) == [0, 1]
