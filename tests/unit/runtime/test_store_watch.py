from __future__ import annotations

import asyncio

import pytest

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import StoreState
from duckmesh_runtime.services.store_watch import REPEAT_S, StoreWatch

OK, DENIED, SILENT = StoreState.OK, StoreState.ACCESS_DENIED, StoreState.UNREACHABLE


class World:
    """A store, a catalog and a committer that do as told.

    Attributes:
        states: What the store answers, in turn; the last one stays.
        asked: Whether each look asked for writing.
        said: What the catalog was told.
        down: The catalog takes no report.
    """

    def __init__(self, *states: StoreState) -> None:
        self.states = list(states)
        self.asked: list[bool] = []
        self.said: list[StoreState] = []
        self.down: Exception | None = None
        self.active, self.failing, self.now = True, False, 0.0
        self.watch = StoreWatch(
            self,
            self,
            active=lambda: self.active,
            failing=lambda: self.failing,
            look_s=0.001,
            doubt_s=0.001,
            clock=lambda: self.now,
        )

    async def state(self, *, write: bool) -> StoreState:
        self.asked.append(write)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def report(self, state: StoreState) -> None:
        if self.down is not None:
            raise self.down
        self.said.append(state)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.watch.look()


async def test_what_is_so_is_said_once_and_again_after_a_while() -> None:
    world = World(OK)

    await world.look(3)
    assert world.said == [OK]
    world.now = REPEAT_S
    await world.look()

    assert world.said == [OK, OK]


async def test_one_failed_request_is_no_outage() -> None:
    world = World(OK, SILENT, OK, SILENT, SILENT, OK)

    await world.look(6)

    assert world.said == [OK, SILENT, OK]


async def test_another_way_of_failing_is_told_at_once() -> None:
    world = World(SILENT, SILENT, DENIED)

    await world.look(3)

    assert world.said == [SILENT, DENIED]


async def test_writing_is_asked_for_only_while_commits_fail() -> None:
    world = World(OK)

    await world.look()
    world.failing = True
    await world.look()

    assert world.asked == [False, True]


async def test_only_the_committer_speaks_and_a_new_one_says_it_anew() -> None:
    world = World(OK)

    await world.look()
    world.active = False
    await world.look(2)
    assert len(world.asked) == 1
    world.active = True
    await world.look()

    assert world.said == [OK, OK]


async def test_what_could_not_be_reported_is_said_at_the_next_look() -> None:
    world = World(OK)
    world.down = Unavailable("CATALOG_UNAVAILABLE", "no", retry_after_s=1)

    with pytest.raises(Unavailable):
        await world.look()
    world.down = None
    await world.look()

    assert world.said == [OK]


@pytest.mark.parametrize(
    "trouble", [Unavailable("CATALOG_UNAVAILABLE", "no", retry_after_s=1), RuntimeError("our own")]
)
async def test_no_failure_ends_the_looks(trouble: Exception) -> None:
    world = World(OK)
    world.down = trouble

    async with world.watch.running(), asyncio.timeout(20):
        while len(world.asked) < 3:
            await asyncio.sleep(0.001)
        world.down = None
        while not world.said:
            await asyncio.sleep(0.001)

    assert world.said[0] is OK
