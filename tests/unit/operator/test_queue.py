from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_operator.errors import Conflict, Invalid, Unavailable
from duckmesh_operator.queue import MAX_BACKOFF_S, Key, Queue, Schedule

A, B = Key("Tenant", "team", "a"), Key("Tenant", "team", "b")


def schedule() -> Schedule:
    return Schedule(jitter=lambda: 1.0)


def test_a_key_is_there_once_however_often_it_was_added() -> None:
    made = schedule()
    for at in (0, 0, 1):
        made.add(A, at)

    assert made.take(5) == A
    assert made.take(5) is None


def test_keys_are_taken_in_the_order_in_which_they_became_due() -> None:
    made = schedule()
    made.add(B, 1)
    made.add(A, 2)

    assert (made.take(3), made.take(3)) == (B, A)


def test_a_key_is_not_due_before_its_time_and_the_earliest_wish_wins() -> None:
    made = schedule()
    made.add(A, 10)
    assert made.take(9) is None
    made.add(A, 3)

    assert made.next_at() == 3
    assert made.take(3) == A
    made.done(A, 4)
    assert made.take(99) is None
    assert made.next_at() is None


def test_what_arrives_during_the_work_is_done_once_more_afterwards() -> None:
    made = schedule()
    made.add(A, 0)
    made.take(0)

    made.add(A, 1)
    made.add(A, 2)
    assert made.take(5) is None
    made.done(A, 5)

    assert made.take(5) == A


def test_failures_come_back_later_each_time_up_to_a_minute() -> None:
    made, now, delays = schedule(), 0.0, []
    made.add(A, now)
    for _ in range(9):
        now = made.next_at() or now
        assert made.take(now) == A
        delays.append(made.failed(A, now))

    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_success_forgets_failures() -> None:
    made = schedule()
    made.add(A, 0)
    made.take(0)
    made.failed(A, 0)
    made.take(0.5)
    made.done(A, 1)
    made.add(A, 1)
    made.take(1)

    assert made.failed(A, 1) == 0.5


def test_an_event_does_not_wait_for_the_back_off() -> None:
    made = schedule()
    made.add(A, 0)
    made.take(0)
    made.failed(A, 0, at_least_s=30)
    made.add(A, 1)

    assert made.take(1) == A


def test_one_busy_key_does_not_keep_others_waiting() -> None:
    made = schedule()
    made.add(A, 0)
    made.add(B, 0)
    taken = []
    for now in range(4):
        key = made.take(now)
        assert key is not None
        taken.append(key)
        made.done(key, now)
        made.add(key, now + 0.5)

    assert taken == [A, B, A, B]


def test_depth_and_age_count_what_is_due() -> None:
    made = schedule()
    made.add(A, 0)
    made.add(B, 100)

    assert (made.depth(7), made.age_s(7)) == (1, 7)
    assert (made.depth(-1), made.age_s(-1)) == (0, 0)


@given(st.integers(min_value=0, max_value=10_000))
def test_the_back_off_never_passes_its_bound(failures: int) -> None:
    made = schedule()
    made._failures[A] = failures

    assert 0 < made.failed(A, 0) <= MAX_BACKOFF_S


class Running:
    """A queue at work, for as long as the test."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], workers: int = 2) -> None:
        loop = asyncio.get_running_loop()
        self.queue = Queue(work, workers=workers, clock=loop.time, schedule=schedule())

    async def __aenter__(self) -> Queue:
        self._task = asyncio.create_task(self.queue.run())
        return self.queue

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


async def test_a_key_is_worked_on_by_one_worker_at_a_time() -> None:
    release, seen, busy = asyncio.Event(), [], []
    twice = asyncio.Event()

    async def work(key: Key) -> None:
        assert key not in busy
        busy.append(key)
        seen.append(key)
        if len(seen) == 2:
            twice.set()
        await release.wait()
        busy.remove(key)

    async with Running(work) as queue, asyncio.timeout(30):
        queue.add(A)
        while not seen:
            await asyncio.sleep(0)
        queue.add(A)
        queue.add(A)
        release.set()
        await twice.wait()

    assert seen == [A, A]


@pytest.mark.parametrize(
    "error", [Conflict("x"), Unavailable("x"), RuntimeError("bug")], ids=["ours", "later", "bug"]
)
async def test_a_failing_key_returns_and_stops_no_other(error: Exception) -> None:
    seen: list[Key] = []
    done = asyncio.Event()

    async def work(key: Key) -> None:
        seen.append(key)
        if key == A and seen.count(A) == 1:
            raise error
        if seen.count(A) == 2:
            done.set()

    async with Running(work) as queue, asyncio.timeout(30):
        queue.add(A)
        queue.add(B)
        await done.wait()

    assert seen[:2] == [A, B]


async def test_an_invalid_key_is_not_tried_again_and_a_wish_is_kept() -> None:
    seen: list[Key] = []
    again = asyncio.Event()

    async def work(key: Key) -> float | None:
        seen.append(key)
        if key == A:
            raise Invalid(["no"])
        if seen.count(B) == 2:
            again.set()
        return 0.01

    async with Running(work) as queue, asyncio.timeout(30):
        queue.add(A)
        queue.add(B)
        await again.wait()
        assert queue.depth == 0
        assert queue.age_s == 0

    assert seen.count(A) == 1
