"""What ingest lets in."""

from __future__ import annotations

import asyncio

import pytest

from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.ports import Backlog
from duckmesh_runtime.services.intake import PendingBytes, RateLimit
from tests.fakes.bus import FakeBus


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def passes(limit: RateLimit, tries: int) -> int:
    passed = 0
    for _ in range(tries):
        try:
            limit.take()
        except Limited:
            continue
        passed += 1
    return passed


def test_a_second_holds_its_rate_and_no_more() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)

    assert passes(limit, 50) == 10
    clock.now += 0.5
    assert passes(limit, 50) == 5
    clock.now += 3600
    assert passes(limit, 50) == 10


def test_a_refusal_says_when_to_come_back() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    passes(limit, 10)

    with pytest.raises(Limited) as caught:
        limit.take()

    assert caught.value.code == "RATE_LIMITED"
    assert caught.value.retry_after_s == pytest.approx(0.1)
    clock.now += 0.101
    assert passes(limit, 1) == 1


async def test_many_scrapes_are_one_look_at_the_bus() -> None:
    bus, looks = FakeBus(), []
    pending = PendingBytes(bus, 100)

    async def backlog() -> Backlog:
        looks.append(1)
        return await FakeBus.backlog(bus)

    bus.backlog = backlog  # type: ignore[method-assign]

    for _ in range(20):
        await pending.show()

    assert len(looks) == 1


async def test_a_bus_that_answers_slowly_is_asked_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus, clock, looks = FakeBus(), Clock(), []
    pending = PendingBytes(bus, 100)

    async def backlog() -> Backlog:
        looks.append(clock.now)
        clock.now += 0.5
        return await FakeBus.backlog(bus)

    bus.backlog = backlog  # type: ignore[method-assign]
    monkeypatch.setattr("duckmesh_runtime.services.intake.time.monotonic", clock)
    for _ in range(20):
        await pending.show()
        clock.now += 0.5
    monkeypatch.undo()

    assert looks == [100.0, 105.0, 110.0]


def test_no_rate_means_no_limit() -> None:
    assert passes(RateLimit(0, Clock()), 1000) == 1000


def test_bytes_just_accepted_count_at_once() -> None:
    pending = PendingBytes(FakeBus(), 100)
    pending.check()

    pending.add(101)

    with pytest.raises(Limited) as caught:
        pending.check()
    assert caught.value.code == "OVERLOADED"
    assert caught.value.context == {"pending_bytes": 101, "limit_bytes": 100}


async def test_a_drained_lake_lets_requests_in_again() -> None:
    pending = PendingBytes(FakeBus(), 100)
    pending.add(101)

    await pending.refresh()

    pending.check()


async def test_a_silent_bus_keeps_the_last_figure_and_the_loop_alive() -> None:
    asked = asyncio.Event()

    class Silent(FakeBus):
        async def backlog(self):  # type: ignore[no-untyped-def]  # raises only
            asked.set()
            raise Unavailable("CATALOG_UNAVAILABLE", "planted")

    pending = PendingBytes(Silent(), 100)
    pending.add(101)
    task = asyncio.create_task(pending.run())
    async with asyncio.timeout(30):
        await asked.wait()

    with pytest.raises(Limited):
        pending.check()
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
