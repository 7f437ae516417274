"""Callers take turns, nobody takes a place twice, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from duckmesh_runtime.errors import Limited
from duckmesh_runtime.services.query_queue import QueryQueue

LONG_S = 60.0


class Line:
    """Queries in a queue, by name; `end` one to let the next in."""

    def __init__(self, queue: QueryQueue) -> None:
        self.queue = queue
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def add(self, name: str, *, timeout_s: float = LONG_S) -> None:
        """A query of the caller that the name begins with; returns when it runs or waits."""
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._query(name, timeout_s))
        await turn()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await turn()

    async def _query(self, name: str, timeout_s: float) -> None:
        await self.queue.enter(name.rstrip("0123456789"), timeout_s)
        try:
            self.begun.append(name)
            await self._ends[name].wait()
        finally:
            self.queue.leave()


async def turn() -> None:
    """Let everybody go on who can."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def lined(queue: QueryQueue) -> AsyncIterator[Line]:
    line = Line(queue)
    yield line
    for task in line.tasks.values():
        task.cancel()
    await asyncio.gather(*line.tasks.values(), return_exceptions=True)
    assert queue.waiting == 0


async def test_as_many_run_as_there_are_slots() -> None:
    async with lined(QueryQueue(2)) as line:
        for name in ("a1", "a2", "a3"):
            await line.add(name)

        assert (line.begun, line.queue.waiting) == (["a1", "a2"], 1)
        await line.end("a2")
        assert line.begun == ["a1", "a2", "a3"]


async def test_one_noisy_caller_delays_another_by_one_query_at_most() -> None:
    async with lined(QueryQueue(1)) as line:
        for number in range(20):
            await line.add(f"noisy{number}")
        await line.end("noisy0")
        await line.add("quiet1")

        await line.end("noisy1")

        assert line.begun == ["noisy0", "noisy1", "quiet1"]


async def test_callers_have_their_turn_one_after_the_other() -> None:
    async with lined(QueryQueue(1)) as line:
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            await line.add(name)

        for name in ("a1", "b1", "c1", "a2", "b2"):
            await line.end(name)

        assert line.begun == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_callers_that_come_again_at_once_do_not_starve_the_one_that_waits() -> None:
    async with lined(QueryQueue(1)) as line:
        await line.add("x1")
        await line.add("waits1")
        await line.add("waits2")
        await line.add("y1")
        for number in (1, 2, 3):
            await line.end(line.begun[-1])
            await line.add(f"x{number + 1}")
            await line.end(line.begun[-1])
            await line.add(f"y{number + 1}")

        assert {"waits1", "waits2"} <= set(line.begun)


async def test_a_caller_may_not_fill_the_line() -> None:
    async with lined(QueryQueue(1, per_caller=2, in_all=3)) as line:
        for name in ("a1", "a2", "a3"):
            await line.add(name)

        with pytest.raises(Limited, match="of this API key") as caught:
            await line.queue.enter("a", LONG_S)
        await line.add("b1")
        with pytest.raises(Limited, match="3 queries wait"):
            await line.queue.enter("b", LONG_S)

        assert (caught.value.code, caught.value.retry_after_s) == ("OVERLOADED", 1)


async def test_a_query_that_is_not_served_in_time_is_told_and_takes_no_place() -> None:
    async with lined(QueryQueue(1)) as line:
        await line.add("a1")

        with pytest.raises(Limited, match="time limit") as caught:
            await line.queue.enter("b", 0.01)
        await line.end("a1")
        await line.add("c1")

        assert caught.value.code == "OVERLOADED"
        assert line.begun == ["a1", "c1"]


async def test_one_who_goes_away_leaves_the_line() -> None:
    async with lined(QueryQueue(1)) as line:
        for name in ("a1", "b1", "c1"):
            await line.add(name)

        line.tasks["b1"].cancel()
        await turn()
        assert line.queue.waiting == 1
        await line.end("a1")

        assert line.begun == ["a1", "c1"]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(lambda line: line.tasks["b1"].cancel(), id="just before"),
        pytest.param(lambda line: None, id="just after"),
    ],
)
async def test_a_place_that_comes_as_its_caller_goes_is_passed_on(
    before: Callable[[Line], object],
) -> None:
    async with lined(QueryQueue(1)) as line:
        await line.queue.enter("a", LONG_S)
        await line.add("b1")
        await line.add("c1")

        before(line)
        line.queue.leave()
        line.tasks["b1"].cancel()
        await turn()

        assert line.begun == ["c1"]
