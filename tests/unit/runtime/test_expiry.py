"""Rounds of maintenance: bounded, one page after the other, and never anybody else's trouble."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.thinning import Snapshot
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.services import expiry
from duckmesh_runtime.services.expiry import MOST, ROUND_S, SLICE, Expiry
from duckmesh_runtime.settings import SnapshotSettings
from tests.fakes.maintenance import NOW, FakeMaintenance, every

KEEP = SnapshotSettings(keep_last=1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def expiry_of(
    lake: FakeMaintenance,
    *,
    keep: SnapshotSettings = KEEP,
    active: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] | None = None,
    interval_s: float = 0,
) -> Expiry:
    return Expiry(
        lake.opened,
        active=active,
        keep=keep,
        files_stay_s=1,
        interval_s=interval_s,
        clock=clock or Clock(),
    )


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def ids(lake: FakeMaintenance) -> Sequence[int]:
    return [each.id for each in lake.history]


async def test_a_round_thins_out_in_slices_and_then_removes_files() -> None:
    lake = FakeMaintenance(every(1, 1_800))
    lake.files = SLICE + 3
    expired, removed = (
        value("duckmesh_snapshots_expired_total"),
        value("duckmesh_gc_files_deleted_total"),
    )

    await expiry_of(lake).round()

    # 600 s stay whole; of the 20 minutes before, each keeps its last, the one at the edge too.
    assert len(lake.history) == 600 + 21
    assert lake.steps == [
        "open",
        "expire 500",
        "expire 500",
        "expire 179",
        "remove",
        "remove",
        "close",
    ]
    assert value("duckmesh_snapshots_expired_total") - expired == 1_179
    assert value("duckmesh_gc_files_deleted_total") - removed == SLICE + 3


async def test_a_second_round_finds_nothing_and_asks_for_no_lease() -> None:
    lake = FakeMaintenance(every(5, 400))
    await expiry_of(lake).round()
    left, lake.steps, lake.ours = ids(lake), [], False

    await expiry_of(lake).round()

    assert ids(lake) == left
    assert lake.steps == ["open", "close"]
    assert value("duckmesh_snapshots_kept") == len(left)


async def test_a_round_gives_up_a_bounded_number_and_the_next_goes_on() -> None:
    lake = FakeMaintenance(every(0.1, MOST + 3_000, ending=timedelta(days=30)))

    await expiry_of(lake).round()
    assert len(lake.history) == 3_000
    await expiry_of(lake).round()

    assert len(lake.history) == 1


async def test_a_round_takes_no_step_past_its_time() -> None:
    lake, clock = FakeMaintenance(every(1, 3_000, ending=timedelta(days=30))), Clock()
    lake.files = 1

    def later() -> None:
        clock.now += ROUND_S * 0.6

    lake.then = later
    await expiry_of(lake, clock=clock).round()

    assert lake.steps == ["open", "expire 500", "close"]


@given(
    st.lists(st.integers(0, 2_000), max_size=60),
    st.integers(2, 9),
    st.sets(st.integers(1, 60)),
    st.integers(1, 10),
)
def test_pages_lead_to_what_the_whole_leads_to(
    gaps: list[int], page: int, pinned: set[int], keep_last: int
) -> None:
    history: list[Snapshot] = []
    age = 0
    for gap in gaps:
        age += gap
        history.append(Snapshot(id=len(gaps) - len(history), time=NOW - timedelta(seconds=age)))
    lakes = FakeMaintenance(history[::-1]), FakeMaintenance(history[::-1])
    keep = SnapshotSettings(keep_last=keep_last)
    with pytest.MonkeyPatch.context() as patch:
        for lake, size in zip(lakes, (page, 1_000), strict=True):
            lake.pinned = pinned
            patch.setattr(expiry, "PAGE", size)
            asyncio.run(_until_settled(lake, keep))

    assert ids(lakes[0]) == ids(lakes[1])


async def _until_settled(lake: FakeMaintenance, keep: SnapshotSettings) -> None:
    before = None
    while before != ids(lake):
        before = ids(lake)
        await expiry_of(lake, keep=keep).round()


async def test_what_a_transaction_at_work_may_look_back_at_stays() -> None:
    lake = FakeMaintenance(every(1, 7_200))
    lake.busy_since = NOW - timedelta(hours=1)

    await expiry_of(lake).round()

    assert [each.time for each in lake.history if each.time > NOW - timedelta(minutes=70)] == [
        NOW - timedelta(seconds=second) for second in range(70 * 60 - 1, -1, -1)
    ]


async def test_a_process_that_does_not_commit_does_not_even_look() -> None:
    lake = FakeMaintenance(every(1, 3_000))

    await expiry_of(lake, active=lambda: False).round()

    assert lake.steps == []


async def test_one_that_commits_no_more_stops_at_its_next_step() -> None:
    lake = FakeMaintenance(every(1, 3_000, ending=timedelta(days=30)))

    await expiry_of(lake, active=lambda: "expire 500" not in lake.steps).round()

    assert lake.steps == ["open", "expire 500", "close"]


async def test_while_another_process_maintains_nothing_is_done() -> None:
    lake = FakeMaintenance(every(1, 3_000))
    lake.files, lake.ours = 1, False

    await expiry_of(lake).round()

    assert lake.steps == ["open", "close"]


@pytest.mark.parametrize(
    ("error", "reason", "logged"),
    [
        pytest.param(
            Unavailable("CATALOG_UNAVAILABLE", "gone"),
            "CATALOG_UNAVAILABLE",
            "maintenance waits",
            id="catalog",
        ),
        pytest.param(
            Corrupt("INTEGRITY_CHECK_FAILED", "no trigger"),
            "INTEGRITY_CHECK_FAILED",
            "maintenance refused",
            id="refused",
        ),
        pytest.param(RuntimeError("a bug"), "INTERNAL", "maintenance failed", id="bug"),
    ],
)
async def test_a_round_that_fails_is_counted_and_the_next_goes_on(
    error: Exception, reason: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    lake = FakeMaintenance(every(1, 3_000))
    lake.error = error
    done = asyncio.Event()
    lake.then = done.set
    before = value("duckmesh_maintenance_failures_total", reason=reason)

    with caplog.at_level(logging.INFO):
        async with expiry_of(lake).running():
            await asyncio.wait_for(done.wait(), 10)

    assert value("duckmesh_maintenance_failures_total", reason=reason) == before + 1
    assert logged in caplog.messages


async def test_an_end_in_the_middle_of_a_round_withdraws_the_lease() -> None:
    lake = FakeMaintenance(every(1, 3_000))
    reached = asyncio.Event()

    class Hanging(FakeMaintenance):
        async def expire(self, ids: Sequence[int]) -> int:
            reached.set()
            await asyncio.Event().wait()
            return 0

    lake = Hanging(every(1, 3_000))
    async with expiry_of(lake).running():
        await asyncio.wait_for(reached.wait(), 10)

    assert lake.steps == ["open", "close"]
