"""Waiting for a token: exact, shared, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services.barrier import Barrier
from tests.fakes.progress import FakeProgress


@pytest.fixture
def progress() -> FakeProgress:
    return FakeProgress(token=10)


@pytest.fixture
async def barrier(progress: FakeProgress) -> AsyncIterator[Barrier]:
    made = Barrier(progress)
    yield made
    await made.close()


async def test_a_visible_number_is_answered_at_once(barrier: Barrier) -> None:
    assert (await barrier.wait(10, 1_000)).token == 10


async def test_a_waiter_is_woken_when_its_number_is_visible_and_not_before(
    barrier: Barrier, progress: FakeProgress
) -> None:
    early = asyncio.create_task(barrier.wait(11, 5_000))
    late = asyncio.create_task(barrier.wait(12, 5_000))
    await _polls(progress, 2)

    progress.token = 11

    assert (await early).token == 11
    assert not late.done()
    progress.token = 12
    assert (await late).token == 12


async def test_a_wait_that_runs_out_says_how_far_it_got(progress: FakeProgress) -> None:
    async def lag() -> int:
        return 1234

    barrier = Barrier(progress, lag=lag)

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(15, 50)

    assert caught.value.code == "CONSISTENCY_TIMEOUT"
    assert caught.value.context["watermark"] == 10
    assert caught.value.context["behind"] == 5
    assert caught.value.context["lag_ms"] == 1234
    await barrier.close()


async def test_one_poller_serves_a_thousand_waiters(
    barrier: Barrier, progress: FakeProgress
) -> None:
    waiters = [asyncio.create_task(barrier.wait(11, 5_000)) for _ in range(1_000)]
    await _polls(progress, 3)
    progress.token = 11

    await asyncio.gather(*waiters)

    assert progress.reads < 20


async def test_nobody_waiting_means_nobody_polls(barrier: Barrier, progress: FakeProgress) -> None:
    await barrier.wait(10, 1_000)
    with pytest.raises(Unavailable):
        await barrier.wait(99, 30)
    await asyncio.sleep(0.05)  # the poller's last round
    reads = progress.reads

    await asyncio.sleep(0.1)  # five rounds of a poller that did not stop

    assert progress.reads == reads


async def test_a_silent_catalog_is_told_as_such(barrier: Barrier, progress: FakeProgress) -> None:
    progress.down = True

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(11, 50)

    assert caught.value.code == "CATALOG_UNAVAILABLE"


async def test_a_catalog_that_comes_back_in_time_is_no_failure(
    barrier: Barrier, progress: FakeProgress
) -> None:
    progress.down = True
    waiter = asyncio.create_task(barrier.wait(11, 5_000))
    await _polls(progress, 1)

    progress.down, progress.token = False, 11

    assert (await waiter).token == 11


async def test_those_who_gave_up_are_forgotten(barrier: Barrier) -> None:
    patient = asyncio.create_task(barrier.wait(50, 60_000))
    for _ in range(100):
        with pytest.raises(Unavailable):
            await barrier.wait(60, 0)
    await asyncio.sleep(0.05)  # one round of the poller

    assert len(barrier._waiters) < 5
    patient.cancel()


async def _polls(progress: FakeProgress, more: int) -> None:
    """Wait until the poller has asked some more times."""
    goal = progress.reads + more
    async with asyncio.timeout(5):
        while progress.reads < goal:
            await asyncio.sleep(0.005)
