"""Compaction over real lakes: few files, the same rows, whatever goes on beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain.compaction import Bounds, Merge, Rewrite, next_slice
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services import compaction
from duckmesh_runtime.services.compaction import Status, Why
from tests.direct import attached_file, lake_writer, take_over
from tests.integration.test_expiry_beside import Input, freezer_of, total
from tests.lakes import LakeView, committer_of, running, writer_pool
from tests.services import Lake
from tests.upkeep import compaction_of, expiry_of, maintenance_of

_REPORT = "SELECT * FROM duckmesh.maintenance_report WHERE lake = $1"


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a run gets to its end."""
    for name in ("ROUND_S", "CALL_S", "HOLD_S"):
        monkeypatch.setattr(compaction, name, 3600.0)


async def live_files(lake: Lake) -> int:
    query = f"SELECT count(*) FROM {lake.name}.ducklake_data_file WHERE end_snapshot IS NULL"
    return int(await LakeView(lake).fetchval(query))


async def test_a_round_merges_small_files_and_says_so(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(9):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    view = LakeView(lake)
    rounds = compaction_of(lake, small_files=9)

    progress = await rounds.round()

    assert progress is not None
    assert (progress.files_in, progress.files_out, progress.status) == (9, 1, Status.DONE)
    assert await live_files(lake) == 1
    assert view.ids("t") == list(range(9))
    row = (await view.fetch(_REPORT, lake.name))[0]
    assert (row["debt_files"], row["most_files"], row["deleted_ratio"]) == (0, 1, 0)
    assert row["merged_at"] <= row["debt_at"]
    assert await view.token() == writer.token
    # What was there before is there still.
    past = writer.rows("SELECT count(*) FROM lake.t AT (VERSION => 5)")
    assert past == [(4,)]
    writer.connection.close()


@pytest.mark.parametrize("off", [{"small_files": 10}, {"enabled": False}], ids=["few", "off"])
async def test_a_round_with_nothing_to_do_reports_what_a_run_would_do(
    lake: Lake, off: dict[str, int]
) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(9):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    writer.connection.close()

    await compaction_of(lake, **off).round()

    assert await live_files(lake) == 9
    row = (await LakeView(lake).fetch(_REPORT, lake.name))[0]
    assert (row["debt_files"], row["most_files"], row["merged_at"]) == (8, 9, None)


async def test_partitions_stay_apart_and_versions_of_a_table_too(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT, day VARCHAR)")
    writer.commit("ALTER TABLE lake.t SET PARTITIONED BY (day)")
    for number in range(6):
        writer.commit(f"INSERT INTO lake.t VALUES ({number}, 'a'), ({number + 10}, 'b')")
    writer.commit("ALTER TABLE lake.t ADD COLUMN more BIGINT")
    for number in range(20, 23):
        writer.commit(f"INSERT INTO lake.t VALUES ({number}, 'a', 1)")
    wanted = writer.rows("SELECT * FROM lake.t ORDER BY id")
    assert await live_files(lake) == 15

    progress = await compaction_of(lake).run()

    assert (progress.status, progress.left.files) == (Status.DONE, 0)
    assert await live_files(lake) == 3
    assert writer.rows("SELECT * FROM lake.t ORDER BY id") == wanted
    assert writer.rows("SELECT count(*), max(more) FROM lake.t WHERE day = 'a'") == [(9, 1)]
    writer.connection.close()


async def test_a_table_that_cannot_be_merged_holds_up_no_other(lake: Lake) -> None:
    """DuckLake cannot sort the files of before the type of a column was widened by which it sorts."""
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.a (id INTEGER)")
    writer.commit("ALTER TABLE lake.a SET SORTED BY (id)")
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        writer.commit(f"INSERT INTO lake.a VALUES ({number})")
        writer.commit(f"INSERT INTO lake.t SELECT {number} FROM range(5000)")
    writer.commit("ALTER TABLE lake.a ALTER COLUMN id SET DATA TYPE BIGINT")
    writer.connection.close()

    progress = await compaction_of(lake).run()

    assert (progress.status, progress.slices) == (Status.PARTIAL, 1)
    assert sorted(await _files_by_table(LakeView(lake), lake)) == [1, 4]
    assert LakeView(lake).ids("a") == [0, 1, 2, 3]


async def test_files_with_deleted_rows_are_counted_by_their_share(lake: Lake) -> None:
    writer = await lake_writer(lake)
    for table, rows in (("a", 10), ("b", 4)):
        writer.commit(f"CREATE TABLE lake.{table} (id BIGINT)")
        for number in range(3):
            writer.commit(
                f"INSERT INTO lake.{table} SELECT 10 * {number} + i FROM range({rows}) AS r(i)"
            )
    writer.commit("DELETE FROM lake.a WHERE id % 10 < 3")
    writer.commit("DELETE FROM lake.a WHERE id = 5")
    writer.commit("DELETE FROM lake.b WHERE id % 10 < 2")
    writer.connection.close()

    async with maintenance_of(lake) as maintenance:
        holed = (await maintenance.live_files(Bounds())).holed
        assert [(each.table, each.files, each.rows, each.deleted) for each in holed] == [
            ("b", 3, 12, 6),
            ("a", 1, 10, 4),
            ("a", 2, 20, 6),
        ]
        assert await maintenance.claim()
        for ratio, files in ((holed[1].ratio, 1), (holed[2].ratio, 2)):
            piece = Rewrite(table="a", ratio=ratio, files=files, size=1, saves=files)
            assert (await maintenance.compact(piece)).files_in == files


async def test_a_damaged_file_holds_up_no_other_table(lake: Lake) -> None:
    writer = await lake_writer(lake)
    for table in ("a", "t"):
        writer.commit(f"CREATE TABLE lake.{table} (id BIGINT)")
        for number in range(4):
            writer.commit(f"INSERT INTO lake.{table} VALUES ({number})")
    writer.connection.close()
    (damaged, *_) = await paths_of(lake, "a")
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes(len(whole)))

    progress = await compaction_of(lake).run()

    assert (progress.why, progress.stuck, progress.conflicts) == (Why.STUCK, ["a"], 1)
    assert sorted(await _files_by_table(LakeView(lake), lake)) == [1, 4]
    assert LakeView(lake).ids("t") == [0, 1, 2, 3]
    damaged.write_bytes(whole)
    assert (await compaction_of(lake).run()).status is Status.DONE
    assert LakeView(lake).ids("a") == [0, 1, 2, 3]


async def paths_of(lake: Lake, table: str) -> Sequence[Path]:
    rows = await LakeView(lake).fetch(
        f"SELECT f.path FROM {lake.name}.ducklake_data_file AS f "
        f"JOIN {lake.name}.ducklake_table AS t USING (table_id) WHERE t.table_name = $1 ORDER BY data_file_id",
        table,
    )
    return [Path(urlsplit(lake.store.url).path) / "main" / table / row[0] for row in rows]


async def test_a_run_rewrites_files_of_which_much_is_deleted(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(3):
        first = 100 * number
        writer.commit(f"INSERT INTO lake.t FROM range({first}, {first + 100})")
    writer.commit("DELETE FROM lake.t WHERE id % 2 = 0")

    progress = await compaction_of(lake).run()

    assert (progress.status, progress.left.deleted_ratio) == (Status.DONE, 0.0)
    assert await live_files(lake) == 1
    assert LakeView(lake).ids("t") == list(range(1, 300, 2))
    writer.connection.close()


async def test_rows_deleted_while_their_files_are_merged_stay_deleted(lake: Lake) -> None:
    """The other one is first: the slice comes to nothing, and goes through when it is tried again."""
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        writer.commit(f"INSERT INTO lake.t FROM range({10 * number}, {10 * number + 10})")
    bounds = Bounds()
    async with maintenance_of(lake) as maintenance:
        piece = next_slice(await maintenance.live_files(bounds), bounds)
        assert isinstance(piece, Merge)
        assert await maintenance.claim()
        await maintenance.compact(replace(piece, at_least=2**30, below=2**31))  # attaches
        engine = maintenance._engine
        assert engine is not None
        original = engine.run

        async def run(work, *, timeout_s):  # type: ignore[no-untyped-def]
            guard_commit = work._guard.commit

            def late(connection):  # type: ignore[no-untyped-def]
                writer.commit("DELETE FROM lake.t WHERE id IN (3, 13, 23, 33)")
                guard_commit(connection)

            work._guard.commit = late
            try:
                return await original(work, timeout_s=timeout_s)
            finally:
                del work._guard.commit

        engine.run = run  # type: ignore[method-assign]
        assert (await maintenance.compact(piece)).files_in == 0
        engine.run = original  # type: ignore[method-assign]

        wanted = [id_ for id_ in range(40) if id_ % 10 != 3]
        assert LakeView(lake).ids("t") == wanted
        again = next_slice(await maintenance.live_files(bounds), bounds)
        assert isinstance(again, Rewrite)
        assert (await maintenance.compact(again)).files_out == 1
    assert LakeView(lake).ids("t") == wanted
    assert await live_files(lake) == 1
    writer.connection.close()


async def test_a_slice_after_the_lease_is_lost_changes_nothing(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    async with maintenance_of(lake) as maintenance:
        assert await maintenance.claim()
        piece = next_slice(await maintenance.live_files(Bounds()), Bounds())
        assert piece is not None
        await take_over(lake, "m")

        with pytest.raises(Unavailable, match="another process maintains"):
            await maintenance.compact(piece)
        assert not await maintenance.claim()

    assert await live_files(lake) == 4
    assert LakeView(lake).ids("t") == [0, 1, 2, 3]
    writer.connection.close()


async def test_a_run_finds_the_lake_busy(lake: Lake) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    writer.connection.close()
    async with maintenance_of(lake, "other") as other:
        assert await other.claim()

        progress = await compaction_of(lake).run()

    assert (progress.status, progress.slices, progress.left.files) == (Status.BUSY, 0, 3)


async def test_a_query_over_a_frozen_catalog_ends_right_while_its_files_are_replaced(
    lake: Lake, tmp_path: Path
) -> None:
    writer = await lake_writer(lake)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(12):
        first = 1000 * number
        writer.commit(f"INSERT INTO lake.t FROM range({first}, {first + 1000})")
    writer.commit("DELETE FROM lake.t WHERE id % 10 = 0 AND id < 3000")
    wanted = [id_ for id_ in range(12_000) if id_ % 10 or id_ >= 3000]
    async with freezer_of(lake, tmp_path / "catalogs") as freezer:
        held = await freezer.freeze()
        with attached_file(held.path) as connection:
            connection.execute("SET threads = 1")
            begun = await asyncio.to_thread(
                lambda: connection.execute("SELECT id FROM lake.t").fetchone()
            )
            assert (await compaction_of(lake).run()).status is Status.DONE
            await expiry_of(lake, files_stay_s=4_200).round()
            rest = await asyncio.to_thread(connection.fetchall)
            assert begun is not None
            assert sorted(row[0] for row in [begun, *rest]) == wanted
        files = [Path(urlsplit(lake.store.url).path) / name for name in held.files]
        assert [file.exists() for file in files] == [True] * len(files)
        newer = await freezer.freeze()
        with attached_file(newer.path) as connection:
            found = await asyncio.to_thread(
                lambda: connection.execute("SELECT id FROM lake.t ORDER BY id").fetchall()
            )
    assert [row[0] for row in found] == wanted
    assert await live_files(lake) == 1
    writer.connection.close()


COUNTED = ("compaction_runs", "compaction_bytes_rewritten")


@pytest.mark.timeout(300)
async def test_compaction_beside_inserts_upserts_and_deletes_loses_revives_and_doubles_no_row(
    lake: Lake,
) -> None:
    await compaction_beside(lake, rounds=5)


async def compaction_beside(lake: Lake, *, rounds: int) -> None:
    """Rounds of input beside a compaction that begins anew all the time; the rows are checked after each."""
    view = LakeView(lake)
    before = [total(f"duckmesh_{name}_total") for name in COUNTED]
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        work = Input(PostgresBus(pool, lake.name))
        await work.create()
        beside = compaction_of(lake, small_files=2, turn=committer.turn)
        async with beside.running():
            for _ in range(rounds):
                for _ in range(12):
                    last = await work.send()
                    committer.nudge()
                    await asyncio.sleep(0.01)
                await view.visible(last, 60)
                work.check(view)
        for _ in range(5):
            # What came while a run was at work is for the next.
            progress = await beside.run()
            if progress.status is Status.DONE and not progress.left.files:
                break
        work.check(view)

    done = [
        total(f"duckmesh_{name}_total") - was for name, was in zip(COUNTED, before, strict=True)
    ]
    assert (progress.status, progress.left.files) == (Status.DONE, 0)
    assert min(done) > 0
    assert max(await _files_by_table(view, lake)) <= 2


async def _files_by_table(view: LakeView, lake: Lake) -> Sequence[int]:
    rows = await view.fetch(
        f"SELECT count(*) FROM {lake.name}.ducklake_data_file WHERE end_snapshot IS NULL GROUP BY table_id"
    )
    return [row[0] for row in rows]
