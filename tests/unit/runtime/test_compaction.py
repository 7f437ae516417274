"""`services.compaction` over a lake in memory: which slices are done, when it stops, what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from duckmesh_runtime.domain.compaction import Bounds, Holed, LakeFiles, Slice
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Compacted, LakeMaintenance
from duckmesh_runtime.services import compaction
from duckmesh_runtime.services.compaction import Compaction, Progress, Status, Why, compact
from duckmesh_runtime.settings import CompactionSettings
from tests.fakes.maintenance import FakeMaintenance

KB = 2**10
SMALL_SLICES = Bounds(files=4)


@pytest.fixture
def lake() -> FakeMaintenance:
    made = FakeMaintenance()
    made.sizes["t"] = [KB] * 10
    return made


def service(
    lake: FakeMaintenance,
    *,
    active: Callable[[], bool] = lambda: True,
    enabled: bool = True,
    small_files: int = 4,
    turn: asyncio.Lock | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Compaction:
    return Compaction(
        lake.opened,
        active=active,
        settings=CompactionSettings(enabled=enabled, small_files=small_files),
        turn=turn or asyncio.Lock(),
        clock=clock,
    )


async def run(
    lake: FakeMaintenance,
    *,
    goes_on: Callable[[], bool] = lambda: True,
    most: int | None = None,
    bounds: Bounds = SMALL_SLICES,
) -> Progress:
    progress = Progress()
    await compact(lake, bounds, progress, goes_on=goes_on, most=most, clock=lambda: 0.0)
    return progress


async def test_slices_are_done_until_nothing_is_left(lake: FakeMaintenance) -> None:
    progress = await run(lake)

    assert lake.sizes["t"] == [10 * KB]
    assert (progress.files_in - progress.files_out, progress.slices) == (9, 3)
    assert (progress.status, progress.left.files) == (Status.DONE, 0)
    assert lake.steps == ["merge t", "merged"] * 3
    assert [each.files for each in lake.debts] == [0]


async def test_no_more_bytes_are_read_than_was_said(lake: FakeMaintenance) -> None:
    progress = await run(lake, most=9 * KB)

    assert (progress.status, progress.slices, progress.size) == (Status.PARTIAL, 2, 8 * KB)
    assert (progress.why, progress.left.files) == (Why.BYTES, 3)


async def test_what_reads_too_much_holds_up_nothing_smaller(lake: FakeMaintenance) -> None:
    lake.sizes["t"] = [KB] * 4
    lake.sizes["u"] = [500 * KB] * 2

    progress = await run(lake, most=10 * KB)

    assert (progress.why, progress.size) == (Why.BYTES, 4 * KB)


async def test_a_run_ends_between_two_slices(lake: FakeMaintenance) -> None:
    progress = await run(lake, goes_on=lambda: len(lake.steps) < 2)

    assert (progress.status, progress.slices) == (Status.PARTIAL, 1)
    assert progress.why is Why.STOPPED
    assert lake.debts[-1] == progress.left


async def test_without_the_lease_nothing_is_done(lake: FakeMaintenance) -> None:
    lake.ours = False

    progress = await run(lake)

    assert (progress.status, lake.steps) == (Status.BUSY, [])
    assert lake.debts[-1].files == 9


@pytest.mark.parametrize(
    ("conflicts", "status", "left"), [(2, Status.DONE, 0), (3, Status.PARTIAL, 9)]
)
async def test_a_slice_that_came_to_nothing_is_tried_again_a_few_times(
    lake: FakeMaintenance, conflicts: int, status: Status, left: int
) -> None:
    lake.conflicts = conflicts

    progress = await run(lake)

    assert (progress.status, progress.left.files) == (status, left)
    assert progress.conflicts == conflicts


async def test_a_table_that_comes_to_nothing_holds_up_no_other(lake: FakeMaintenance) -> None:
    lake.sizes["u"] = [2 * KB] * 10
    lake.conflicts = 3

    progress = await run(lake)

    assert (progress.status, progress.why) == (Status.PARTIAL, Why.STUCK)
    assert sorted(len(sizes) for sizes in lake.sizes.values()) == [1, 10]


async def test_what_cannot_go_through_is_tried_once_and_named(lake: FakeMaintenance) -> None:
    lake.sizes["u"] = [2 * KB] * 10
    lake.hopeless.add("t")

    progress = await run(lake)

    assert (progress.why, progress.stuck, progress.conflicts) == (Why.STUCK, ["t"], 1)
    assert len(lake.sizes["u"]) == 1
    assert lake.steps.count("merge t") == 1


async def test_a_run_beside_a_busy_writer_ends(lake: FakeMaintenance) -> None:
    """Each step brings as many files as it takes away: what was there at first is the measure."""
    lake.then = lambda: lake.sizes["t"].extend([KB] * 5)

    progress = await run(lake)

    assert progress.files_in - progress.files_out >= 9
    assert progress.slices < 9
    assert (progress.status, progress.why) == (Status.PARTIAL, Why.MORE)


async def test_what_fails_leaves_what_is_done(lake: FakeMaintenance) -> None:
    progress = Progress()

    def fails_next() -> None:
        lake.error = Unavailable("CATALOG_UNAVAILABLE", "gone")

    lake.then = fails_next
    with pytest.raises(Unavailable):
        await compact(lake, SMALL_SLICES, progress, goes_on=lambda: True)

    assert (progress.slices, progress.files_in, len(lake.sizes["t"])) == (1, 4, 7)


async def test_rounds_are_the_committers(lake: FakeMaintenance) -> None:
    assert await service(lake, active=lambda: False).round() is None
    assert lake.steps == []


async def test_a_round_waits_until_there_are_enough_small_files(lake: FakeMaintenance) -> None:
    few = await service(lake, small_files=11).round()
    enough = await service(lake, small_files=10).round()

    assert few is not None
    assert enough is not None
    assert (few.slices, enough.slices) == (0, 1)
    assert [each.files for each in lake.debts] == [9, 0]


async def test_switched_off_a_round_says_only_what_there_would_be_to_do(
    lake: FakeMaintenance,
) -> None:
    progress = await service(lake, enabled=False).round()

    assert progress is not None
    assert progress.slices == 0
    assert [each.files for each in lake.debts] == [9]


async def test_a_round_leaves_large_files_to_a_run(lake: FakeMaintenance) -> None:
    lake.sizes["t"] = [20 * 2**20] * 10

    await service(lake).round()
    assert len(lake.sizes["t"]) == 10
    progress = await service(lake).run()

    assert len(lake.sizes["t"]) < 10
    assert progress.slices > 0


async def test_a_run_ends_after_its_time(lake: FakeMaintenance) -> None:
    lake.sizes["t"] = [20 * 2**20] * 10
    seconds = iter(range(0, 1000, 11))

    progress = await service(lake, clock=lambda: float(next(seconds))).run()

    assert progress.status is Status.PARTIAL


class Slow:
    """A lake of which a slice takes until it is let go."""

    def __init__(self, lake: FakeMaintenance) -> None:
        self._lake = lake
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def compact(self, piece: Slice) -> Compacted:
        self.begun.set()
        await self.let_go.wait()
        return await self._lake.compact(piece)

    def __getattr__(self, name: str) -> object:
        return getattr(self._lake, name)


@pytest.mark.parametrize("deletes", [False, True])
async def test_commits_wait_for_slices_of_tables_with_deletes_only(
    lake: FakeMaintenance, monkeypatch: pytest.MonkeyPatch, deletes: bool
) -> None:
    monkeypatch.setattr(compaction, "HOLD_S", 3600.0)
    if deletes:
        lake.holed.append(Holed(table="t", size=KB, rows=100, deleted=1))
    turn = asyncio.Lock()
    slow = Slow(lake)
    working = asyncio.create_task(_beside(service(lake, turn=turn), slow))
    await slow.begun.wait()

    assert turn.locked() == deletes

    slow.let_go.set()
    assert (await working).files_in == 10
    assert not turn.locked()


async def test_no_commit_waits_while_the_lake_is_attached(lake: FakeMaintenance) -> None:
    lake.holed.append(Holed(table="t", size=KB, rows=100, deleted=1))
    turn = asyncio.Lock()
    slow = Slow(lake)
    asked, attached = asyncio.Event(), asyncio.Event()

    async def prepare() -> None:
        asked.set()
        await attached.wait()

    slow.prepare = prepare  # type: ignore[attr-defined]  # as `FakeMaintenance.prepare`, which is done at once
    slow.let_go.set()
    working = asyncio.create_task(_beside(service(lake, turn=turn), slow))
    await asked.wait()

    assert not turn.locked()

    attached.set()
    assert (await working).files_in == 10


async def test_a_slice_that_takes_long_lets_the_commits_go_on(
    lake: FakeMaintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "HOLD_S", 0.0)
    lake.holed.append(Holed(table="t", size=KB, rows=100, deleted=1))
    turn = asyncio.Lock()
    slow = Slow(lake)
    working = asyncio.create_task(_beside(service(lake, turn=turn), slow))
    await slow.begun.wait()

    async with turn:
        assert not working.done()

    slow.let_go.set()
    assert (await working).files_in == 10


async def test_a_cancelled_slice_is_ended_and_holds_nothing(
    lake: FakeMaintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "HOLD_S", 3600.0)
    lake.holed.append(Holed(table="t", size=KB, rows=100, deleted=1))
    turn = asyncio.Lock()
    slow = Slow(lake)
    working = asyncio.create_task(_beside(service(lake, turn=turn), slow))
    await slow.begun.wait()

    working.cancel()
    await asyncio.wait({working})

    assert working.cancelled()
    assert not turn.locked()
    assert len(lake.sizes["t"]) == 10


async def _beside(made: Compaction, slow: Slow) -> Compacted:
    bounds = Bounds()
    found: LakeFiles = await slow.live_files(bounds)  # type: ignore[operator]
    piece = compaction.next_slice(found, bounds)
    assert piece is not None
    lake: LakeMaintenance = slow  # type: ignore[assignment]
    return await made._beside(lake, piece, found)
