"""What the upkeep of a lake does: the double in memory and the real one pass the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

import pytest

from duckmesh_runtime.domain.compaction import Bounds, Debt, Holed, Merge, Rewrite, debt, next_slice
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import LakeMaintenance
from tests.direct import lake_writer
from tests.fakes.maintenance import FakeMaintenance, every
from tests.lakes import LakeView
from tests.services import Lake
from tests.upkeep import maintenance_of, make_files_older, make_older

HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class UnderTest:
    """A lake with the snapshots `first .. first + 4`, the last of them young, the others of three days before."""

    lake: LakeMaintenance
    first: int
    pin: Callable[[int], Awaitable[None]]
    leave_file: Callable[[], Awaitable[None]]
    add_files: Callable[[int], Awaitable[None]]
    delete_rows: Callable[[], Awaitable[None]]


def fake() -> UnderTest:
    lake = FakeMaintenance([*every(60, 4, ending=timedelta(days=3)), *every(1, 5)[-1:]])

    async def pin(number: int) -> None:
        lake.pinned.add(number)

    async def leave_file() -> None:
        lake.files += 1

    async def add_files(count: int) -> None:
        lake.sizes.setdefault("t", []).extend([500] * count)

    async def delete_rows() -> None:
        assert lake.sizes["t"].pop() == 500
        lake.holed.append(Holed(table="t", size=500, rows=4, deleted=2))

    return UnderTest(
        lake=lake,
        first=1,
        pin=pin,
        leave_file=leave_file,
        add_files=add_files,
        delete_rows=delete_rows,
    )


async def real(lake: Lake, stack: AsyncExitStack) -> UnderTest:
    writer = await lake_writer(lake)
    stack.callback(writer.connection.close)
    writer.commit("CREATE TABLE lake.t (id BIGINT)")
    for number in range(3):
        writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    await make_older(lake, timedelta(days=3), 0, 1, 2, 3)
    maintenance = await stack.enter_async_context(maintenance_of(lake))

    async def pin(number: int) -> None:
        await LakeView(lake).fetch(
            f"INSERT INTO {lake.name}_bus.pin (snapshot_id, name) VALUES ($1, 'kept')", number
        )

    async def leave_file() -> None:
        writer.commit("DELETE FROM lake.t WHERE id = 0")
        # Its data file: all rows gone, and no snapshot that has it.
        newest = writer.rows("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")[0][0]
        assert await maintenance.claim()
        await maintenance.expire(range(int(str(newest))))
        await make_files_older(lake, timedelta(days=1))

    async def add_files(count: int) -> None:
        for number in range(count):
            writer.commit(f"INSERT INTO lake.t FROM range({10 * number}, {10 * number + 4})")

    async def delete_rows() -> None:
        newest = "(SELECT max(rowid) - 2 FROM lake.t)"
        writer.commit(f"DELETE FROM lake.t WHERE rowid > {newest}")

    return UnderTest(
        lake=maintenance,
        first=0,
        pin=pin,
        leave_file=leave_file,
        add_files=add_files,
        delete_rows=delete_rows,
    )


@pytest.fixture(params=["fake", "real"])
async def upkeep(request: pytest.FixtureRequest) -> AsyncIterator[UnderTest]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            yield fake()
        else:
            make: Callable[..., Awaitable[Lake]] = request.getfixturevalue("make_lake")
            yield await real(await make(), stack)


async def test_a_look_tells_what_stays(upkeep: UnderTest) -> None:
    await upkeep.pin(upkeep.first + 1)

    found = await upkeep.lake.look(keep_last=2, files_stay_s=HOUR_S)

    assert found.snapshots == 5
    assert found.newest_from == upkeep.first + 3
    assert found.pinned == {upkeep.first + 1}
    assert (found.files, found.old_files) == (0, 0)
    assert found.settled <= found.now


async def test_fewer_than_are_kept_all_are_the_newest(upkeep: UnderTest) -> None:
    assert (await upkeep.lake.look(keep_last=6, files_stay_s=HOUR_S)).newest_from == 0


async def test_snapshots_come_in_order_page_by_page_up_to_a_time(upkeep: UnderTest) -> None:
    until = (await upkeep.lake.look(keep_last=1, files_stay_s=HOUR_S)).now - timedelta(hours=1)

    whole = await upkeep.lake.snapshots(since=0, until=until, limit=9)
    page = await upkeep.lake.snapshots(since=upkeep.first + 1, until=until, limit=2)

    assert [each.id for each in whole] == list(range(upkeep.first, upkeep.first + 4))
    assert [each.id for each in page] == [upkeep.first + 1, upkeep.first + 2]
    assert page == whole[1:3]
    assert whole[-1].has_input


async def test_snapshots_are_given_up_once_and_the_newest_never(upkeep: UnderTest) -> None:
    assert await upkeep.lake.claim()

    ids = [upkeep.first, upkeep.first + 2, upkeep.first + 4]
    assert await upkeep.lake.expire(ids) == 2
    assert await upkeep.lake.expire(ids) == 0

    assert (await upkeep.lake.look(keep_last=1, files_stay_s=HOUR_S)).snapshots == 3


async def test_with_a_pinned_one_among_them_none_is_given_up(upkeep: UnderTest) -> None:
    await upkeep.pin(upkeep.first + 1)
    assert await upkeep.lake.claim()

    with pytest.raises(Unavailable):
        await upkeep.lake.expire([upkeep.first, upkeep.first + 1])

    assert (await upkeep.lake.look(keep_last=1, files_stay_s=HOUR_S)).snapshots == 5


async def test_old_files_are_removed_once(upkeep: UnderTest) -> None:
    await upkeep.leave_file()
    found = await upkeep.lake.look(keep_last=1, files_stay_s=HOUR_S)
    assert (found.files, found.old_files) == (1, 1)
    assert await upkeep.lake.claim()

    assert await upkeep.lake.remove_files(stay_s=HOUR_S, limit=9) == 1
    assert await upkeep.lake.remove_files(stay_s=HOUR_S, limit=9) == 0


async def test_files_of_a_class_are_merged_as_many_as_a_slice_takes(upkeep: UnderTest) -> None:
    there = await _files(upkeep)
    await upkeep.add_files(10 - there)
    assert await upkeep.lake.claim()
    bounds = Bounds(files=4)

    merged = []
    while piece := next_slice(await upkeep.lake.live_files(bounds), bounds):
        assert isinstance(piece, Merge)
        done = await upkeep.lake.compact(piece)
        merged.append((done.files_in, done.files_out))
        assert len(merged) < 9

    assert [each for each in merged if each[0] > 4 or each[1] != 1] == []
    assert sum(files_in - files_out for files_in, files_out in merged) == 9
    assert await _files(upkeep) == 1


async def test_a_file_with_many_deleted_rows_is_rewritten(upkeep: UnderTest) -> None:
    await upkeep.add_files(1)
    await upkeep.delete_rows()
    assert await upkeep.lake.claim()
    found = await upkeep.lake.live_files(Bounds())
    assert [(each.table, each.rows, each.deleted) for each in found.holed] == [("t", 4, 2)]

    done = await upkeep.lake.compact(Rewrite(table="t", ratio=0.5, files=1, size=1, saves=1))

    assert (done.files_in, done.files_out) == (1, 1)
    assert (await upkeep.lake.live_files(Bounds())).holed == []


async def test_a_slice_that_finds_nothing_does_nothing(upkeep: UnderTest) -> None:
    assert await upkeep.lake.claim()
    await upkeep.add_files(2)

    nothing = Merge(table="t", at_least=2**30, below=2**31, up_to=2**31, outputs=1, files=2, size=1)

    assert (await upkeep.lake.compact(nothing)).files_in == 0


async def test_debt_and_runs_are_reported(upkeep: UnderTest) -> None:
    await upkeep.lake.report_debt(Debt(files=3, size=4, most_files=5, deleted_ratio=0.5))
    await upkeep.lake.report_merged()
    await upkeep.lake.report_run({"id": "a", "result": "Succeeded"})


async def _files(upkeep: UnderTest) -> int:
    found = await upkeep.lake.live_files(Bounds())
    return debt(found).most_files
