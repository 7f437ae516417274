"""What is wrong with a lake's files and rows is named exactly, and nothing is named in a lake that is well."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import duckdb
import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain import thinning
from duckmesh_runtime.domain.integrity import Difference, Fault, Mode
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.ports import CommitOutcome, TableRows
from duckmesh_runtime.services import expiry
from duckmesh_runtime.settings import SnapshotSettings
from tests.inspecting import file_of, integrity_of, lost, maintain, replaced, reported
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_create,
    append_rows,
    append_table,
    changes_of,
    committer_of,
    elected_writer,
    rows_of,
    running,
    send,
    writer_pool,
)
from tests.services import Lake
from tests.upkeep import behind_the_fence, expiry_of

DONE = CommitOutcome.DONE
MakeLake = Callable[..., Awaitable[Lake]]


async def fill(lake: Lake) -> None:
    """Two files of events, one of them only in snapshots before, and of a keyed table with a delete file."""
    async with elected_writer(lake) as writer:
        results = [
            await writer.create_table(0, 1, EVENTS),
            await writer.create_table(1, 2, KEYED),
            await writer.commit(2, 5, [TableRows(table="events", rows=rows_of(range(5)))]),
            await writer.commit(5, 9, [TableRows(table="events", rows=rows_of(range(7)))]),
            await writer.commit(
                9, 12, [TableRows(table="keyed", rows=changes_of({"id": 1}, {"id": 2}, {"id": 3}))]
            ),
            await writer.commit(12, 13, [TableRows(table="keyed", rows=changes_of((1,)))]),
        ]
    assert [each.outcome for each in results] == [DONE] * len(results)


async def paths(lake: Lake, kind: str = "data") -> Sequence[str]:
    """Of the lake's files, by id."""
    rows = await LakeView(lake).fetch(
        f"SELECT 'main/' || t.table_name || '/' || f.path FROM {lake.name}.ducklake_{kind}_file AS f "
        f"JOIN {lake.name}.ducklake_table AS t USING (table_id) ORDER BY {kind}_file_id"
    )
    return [row[0] for row in rows]


async def faults(lake: Lake, mode: Mode) -> dict[str, Fault]:
    return dict((await integrity_of(lake).check(mode)).faults)


def broken_footer(content: bytes) -> bytes:
    """As long as before, and at its end not what a footer is."""
    return content[:-40] + bytes([255]) * 32 + content[-8:]


async def test_planted_damage_is_named_with_what_it_takes_with_it(lake: Lake) -> None:
    await fill(lake)
    first, second, keyed = await paths(lake)
    (deletes,) = await paths(lake, "delete")
    told: list[tuple[int, int]] = []

    report = await integrity_of(lake).check(Mode.DEEP, lambda *each: told.append(each))

    assert (report.state, report.files) == ("Healthy", 4), report
    assert (told[0], told[-1]) == ((0, 4), (4, 4))
    whole = file_of(lake, first).read_bytes()
    for mode in Mode:
        with lost(file_of(lake, first)), lost(file_of(lake, deletes)):
            assert await faults(lake, mode) == {first: Fault.MISSING, deletes: Fault.MISSING}
        with replaced(file_of(lake, second), whole):
            assert await faults(lake, mode) == {second: Fault.SIZE}
        with replaced(file_of(lake, keyed), file_of(lake, keyed).read_bytes()[:-1]):
            assert await faults(lake, mode) == {keyed: Fault.SIZE}
    for path in (first, deletes):
        with replaced(file_of(lake, path), broken_footer(file_of(lake, path).read_bytes())):
            assert await faults(lake, Mode.CHEAP) == {}
            assert await faults(lake, Mode.DEEP) == {path: Fault.FOOTER}
    assert (await integrity_of(lake).check(Mode.DEEP)).is_healthy


async def test_a_report_names_tables_files_rows_and_snapshots_and_is_kept(lake: Lake) -> None:
    await fill(lake)
    async with elected_writer(lake) as writer:
        assert (await writer.drop_table(13, 14, "events")).outcome is DONE
    first, _, keyed = await paths(lake)

    with lost(file_of(lake, first)), lost(file_of(lake, keyed)):
        report = await integrity_of(lake).check(Mode.CHEAP)

    assert [(hit.table, hit.rows, hit.live) for hit in report.hits] == [
        ("events", 5, False),
        ("keyed", 2, True),
    ]
    assert "table keyed: 1 missing of its files, with 2 rows, in 3" in report.message
    assert "table events: 1 missing of its files, with 5 rows, in 4" in report.message
    kept = json.loads(await reported(lake, "integrity") or "null")
    assert kept == report.to_json()
    assert (kept["state"], kept["files"], kept["missing"], kept["damaged"]) == ("Damaged", 4, 2, 0)


async def test_rows_that_do_not_add_up_are_named(lake: Lake) -> None:
    await fill(lake)
    _, second, _ = await paths(lake)
    await behind_the_fence(
        lake, "UPDATE {lake}.ducklake_data_file SET record_count = 8 WHERE record_count = 7"
    )

    cheap, deep = [await integrity_of(lake).check(mode) for mode in Mode]

    assert (
        cheap.differences == deep.differences == [Difference(table="events", catalog=13, ledger=12)]
    )
    assert (cheap.faults, deep.faults) == ({}, {second: Fault.ROWS})
    assert cheap.message == "table events: the catalog counts 13 rows, 12 were committed"


async def test_files_that_wait_for_their_removal_are_nobodys_loss(lake: Lake) -> None:
    await fill(lake)
    await maintain(lake, "ducklake_merge_adjacent_files('lake', 'events')")
    await expiry_of(lake, keep=SnapshotSettings(keep_for_s=0, keep_last=1)).round()
    waiting = await LakeView(lake).fetch(
        f"SELECT path FROM {lake.name}.ducklake_files_scheduled_for_deletion"
    )
    for row in waiting:
        file_of(lake, row["path"]).unlink()

    report = await integrity_of(lake).check(Mode.DEEP)

    assert waiting
    assert report.is_healthy, report


async def test_a_file_that_goes_while_it_is_looked_for_is_not_named(lake: Lake) -> None:
    """Merged, expired and removed between the look into the catalog and that into the store."""
    await fill(lake)
    first, second, _ = await paths(lake)

    class Late(StoreObjects):
        async def size(self, path: str) -> int:
            if path == first:
                await behind_the_fence(
                    lake, "DELETE FROM {lake}.ducklake_data_file WHERE record_count = 5"
                )
                await behind_the_fence(
                    lake, "UPDATE duckmesh.ledger SET row_count = 7 WHERE row_count = 12"
                )
            return await super().size(path)

    file_of(lake, first).unlink()
    file_of(lake, second).rename(file_of(lake, f"{second}.aside"))

    report = await integrity_of(lake, Late(lake.store)).check(Mode.CHEAP)

    assert dict(report.faults) == {second: Fault.MISSING}


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_files_are_found_under_whatever_name_partitions_give_them(
    make_lake: MakeLake, store: str
) -> None:
    lake = await make_lake(store=store)
    table = TableDef(
        name="parts",
        columns=(ColumnDef(name="id", type="BIGINT"), ColumnDef(name="day", type="VARCHAR")),
        partition_by=("day",),
    )
    days = ["a b", "50%", "ü/ö", "x=y&z", "%2F", "", "+", "#?"]
    rows = rows_of(range(len(days)), table).set_column(1, "day", [days])
    async with elected_writer(lake) as writer:
        assert (await writer.create_table(0, 1, table)).outcome is DONE
        assert (await writer.commit(1, 9, [TableRows(table="parts", rows=rows)])).outcome is DONE

    report = await integrity_of(lake).check(Mode.DEEP)

    assert (report.state, report.files) == ("Healthy", len(days)), report


async def test_one_check_at_a_time_and_none_without_the_store(lake: Lake) -> None:
    await fill(lake)
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(StoreObjects):
        async def objects(self):  # type: ignore[no-untyped-def] # as the original
            begun.set()
            await go_on.wait()
            raise Unavailable("STORAGE_UNAVAILABLE", "planted")
            yield

    service = integrity_of(lake, Slow(lake.store))
    running_check = asyncio.create_task(service.check(Mode.CHEAP))
    await begun.wait()
    with pytest.raises(Limited, match="under way"):
        await service.check(Mode.CHEAP)
    go_on.set()
    with pytest.raises(Unavailable, match="planted"):
        await running_check

    assert await reported(lake, "integrity") is None


async def test_nothing_is_named_while_rows_come_and_files_are_merged_and_removed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (thinning, expiry):
        monkeypatch.setattr(module, "ALL_FOR", timedelta(0))
    rng = random.Random(7)  # noqa: S311 - to be repeated
    rounds = expiry_of(lake, keep=SnapshotSettings(keep_for_s=0, keep_last=1), files_stay_s=0)
    service, wrong, maintained = integrity_of(lake), [], 0
    over = asyncio.Event()

    async def upkeep() -> None:
        nonlocal maintained
        while not over.is_set():
            with suppress(duckdb.Error):  # a commit came first: the next round merges it
                for table in ("events", "keyed"):
                    await maintain(lake, f"ducklake_merge_adjacent_files('lake', '{table}')")
            with suppress(Unavailable):
                await rounds.round()
            maintained += 1

    async def load(bus: PostgresBus) -> int:
        last = 0
        while not over.is_set():
            keys = [{"id": rng.randrange(20)}, (rng.randrange(20),)]
            last = await send(
                bus,
                append_rows(range(3), version=2),
                append_table(changes_of(*keys), version=2, table="keyed"),
            )
            await LakeView(lake).visible(last)
        return last

    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(EVENTS, version=0), append_create(KEYED, version=1))
        async with asyncio.TaskGroup() as group:
            group.create_task(load(bus))
            group.create_task(upkeep())
            turn = 0
            while turn < 6 or maintained < 4:
                turn += 1
                report = await service.check(Mode.DEEP if turn % 2 else Mode.CHEAP)
                wrong += [] if report.is_healthy else [report]
            over.set()

    assert wrong == []
