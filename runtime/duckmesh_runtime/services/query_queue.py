"""The line before the sandbox: as many queries run as there are slots, and whoever waits is served in turn by caller.

Used by `QueryService` alone, in one process and one loop. First come, first served would let one caller's many queries
stand before another's one; here the caller whose last query began longest ago is next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Limited

WAITING_PER_CALLER: Final = 64
WAITING_IN_ALL: Final = 256
"""A waiting query costs its request's memory, at most 1 MiB; more of them would not be served in time anyway."""

_REMEMBERED: Final = 1_024  # callers whose turn is known


class QueryQueue:
    """Places for queries.

    Args:
        slots: Queries at a time.
        per_caller: Most queries of one caller that wait.
        in_all: Most queries that wait.
    """

    def __init__(
        self,
        slots: int,
        *,
        per_caller: int = WAITING_PER_CALLER,
        in_all: int = WAITING_IN_ALL,
    ) -> None:
        self._free = slots
        self._per_caller = per_caller
        self._in_all = in_all
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turns: dict[str, None] = {}  # callers by when they were last served, oldest first

    @property
    def waiting(self) -> int:
        """Queries that wait now."""
        return sum(map(len, self._waiting.values()))

    async def enter(self, caller: str, timeout_s: float) -> None:
        """Wait for a place; `leave` must follow, once.

        Raises:
            Limited: OVERLOADED: too many wait already, or no place came free in time.
        """
        if self._free and not self._waiting:
            self._free -= 1
            self._serve(caller)
            return
        self._check_room(caller)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(place)
        metrics.queries_waiting(self.waiting)
        try:
            async with asyncio.timeout(timeout_s):
                await place
        except BaseException as error:
            self._give_up(caller, place)
            if isinstance(error, TimeoutError):
                problem = "no query process was free before the query's time limit"
                raise _overloaded(problem) from None
            raise
        finally:
            metrics.queries_waiting(self.waiting)

    def leave(self) -> None:
        """Give the place up: the next in turn has it."""
        while self._waiting:
            caller = self._next()
            line = self._waiting[caller]
            place = line.popleft()
            if not line:
                del self._waiting[caller]
            if not place.done():
                self._serve(caller)
                place.set_result(None)
                return
        self._free += 1

    def _next(self) -> str:
        """Who waits and was served longest ago; of those never served, who came first."""
        order = {caller: turn for turn, caller in enumerate(self._turns)}
        return min(self._waiting, key=lambda caller: order.get(caller, -1))

    def _serve(self, caller: str) -> None:
        self._turns.pop(caller, None)
        self._turns[caller] = None
        if len(self._turns) > _REMEMBERED:
            del self._turns[next(iter(self._turns))]

    def _check_room(self, caller: str) -> None:
        if len(self._waiting.get(caller, ())) >= self._per_caller:
            raise _overloaded(f"{self._per_caller} queries of this API key wait already")
        if self.waiting >= self._in_all:
            raise _overloaded(f"{self._in_all} queries wait already")

    def _give_up(self, caller: str, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self.leave()  # it came in the same moment
            return
        line = self._waiting.get(caller, deque())
        if place in line:
            line.remove(place)
            if not line:
                del self._waiting[caller]


def _overloaded(problem: str) -> Limited:
    return Limited("OVERLOADED", f"{problem}: repeat a little later", retry_after_s=1)
