"""What the upkeep of a lake does: the double in memory and the real one pass the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

import pytest

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


def fake() -> UnderTest:
    lake = FakeMaintenance([*every(60, 4, ending=timedelta(days=3)), *every(1, 5)[-1:]])

    async def pin(number: int) -> None:
        lake.pinned.add(number)

    async def leave_file() -> None:
        lake.files += 1

    return UnderTest(lake=lake, first=1, pin=pin, leave_file=leave_file)


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

    return UnderTest(lake=maintenance, first=0, pin=pin, leave_file=leave_file)


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
