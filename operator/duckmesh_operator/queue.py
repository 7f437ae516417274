"""The work queue between watch and reconcile: one entry per key, back-off per key, a pool of workers.

`Schedule` holds the rules and is told the time, so tests need no waiting; `Queue` runs it on the event loop. A key is
worked on by one worker at a time; what arrives meanwhile is done once more afterwards. Keys are taken in the order in
which they became due, so one busy key cannot keep others waiting. The queue is bounded by the number of objects.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from duckmesh_operator import log, metrics
from duckmesh_operator.errors import Invalid, OperatorError, Unavailable

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 60.0


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What to reconcile."""

    kind: str
    namespace: str
    name: str


@dataclass(slots=True)
class Schedule:
    """When each key is due. Not thread-safe; times are any clock's seconds.

    Attributes:
        jitter: Returns a factor from 0.5 to 1 for each back-off, so that keys that failed together do not return
            together.
    """

    jitter: Callable[[], float] = field(
        default_factory=lambda: lambda: random.uniform(0.5, 1)  # noqa: S311 - spreads load, hides nothing
    )
    _heap: list[tuple[float, int, Key]] = field(default_factory=list)
    _due: dict[Key, float] = field(default_factory=dict)
    _again: dict[Key, float] = field(default_factory=dict)
    _running: set[Key] = field(default_factory=set)
    _failures: dict[Key, int] = field(default_factory=dict)
    _order: count[int] = field(default_factory=count)

    def add(self, key: Key, at: float) -> None:
        """Make a key due at a time; the earliest wish wins."""
        waiting = self._again if key in self._running else self._due
        if key in waiting and waiting[key] <= at:
            return
        waiting[key] = at
        if waiting is self._due:
            heapq.heappush(self._heap, (at, next(self._order), key))

    def take(self, now: float) -> Key | None:
        """The key that is due longest, now in the caller's hands until `done`; None when none is due."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:  # else an earlier entry of the key was taken already
                del self._due[key]
                self._running.add(key)
                return key
        return None

    def done(self, key: Key, now: float) -> None:
        """The work on a key went well."""
        self._failures.pop(key, None)
        self._finish(key, now)

    def failed(self, key: Key, now: float, *, at_least_s: float = 0) -> float:
        """The work on a key failed: it comes back by itself, later each time. Returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * float(2 ** min(failures, 20))) * self.jitter()
        delay = max(delay, at_least_s)
        self._finish(key, now)
        self.add(key, now + delay)
        return delay

    def next_at(self) -> float | None:
        """When the next key is due; None when none waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def depth(self, now: float) -> int:
        """Keys that are due and not taken."""
        return sum(at <= now for at in self._due.values())

    def age_s(self, now: float) -> float:
        """How long the oldest of them is due."""
        return max((now - at for at in self._due.values() if at <= now), default=0.0)

    def _finish(self, key: Key, now: float) -> None:
        self._running.discard(key)
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again)


class Queue:
    """Runs reconciles.

    Args:
        work: Reconciles a key. Returns the seconds after which to look again, or None for never without an event.
        workers: Reconciles at a time.
        clock: Seconds; the event loop's clock in production.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        *,
        workers: int,
        clock: Callable[[], float],
        schedule: Schedule | None = None,
    ) -> None:
        self._work = work
        self._workers = workers
        self._clock = clock
        self._schedule = schedule or Schedule()
        self._changed = asyncio.Event()

    def add(self, key: Key) -> None:
        """Reconcile a key soon."""
        self.add_after(key, 0)

    def add_after(self, key: Key, delay_s: float) -> None:
        """Reconcile a key in some seconds, or before when it is due before."""
        self._schedule.add(key, self._clock() + delay_s)
        self._changed.set()

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return self._schedule.depth(self._clock())

    @property
    def age_s(self) -> float:
        """How long the oldest of them is due."""
        return self._schedule.age_s(self._clock())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._take()
            started = self._clock()
            with log.about(kind=key.kind, tenant=f"{key.namespace}/{key.name}"):
                result = await self._reconcile(key)
            metrics.reconciled(key.kind, result, self._clock() - started)
            self._changed.set()

    async def _take(self) -> Key:
        while True:
            self._changed.clear()
            key = self._schedule.take(self._clock())
            if key is not None:
                return key
            due = self._schedule.next_at()
            pause = None if due is None else max(0.0, due - self._clock())
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _reconcile(self, key: Key) -> str:
        try:
            again_s = await self._work(key)
        except Invalid as error:
            # Only a change of the object helps, and that is an event.
            self._schedule.done(key, self._clock())
            logger.error("reconcile refused", extra={"error": str(error)})
            return "Invalid"
        except OperatorError as error:
            wait_s = (error.retry_after_s or 0) if isinstance(error, Unavailable) else 0
            delay = self._schedule.failed(key, self._clock(), at_least_s=wait_s)
            result = type(error).__name__
            logger.warning(
                "reconcile failed",
                extra={"result": result, "error": str(error), "again_s": round(delay, 1)},
            )
            return result
        except Exception:
            self._schedule.failed(key, self._clock())
            logger.exception("reconcile crashed")
            return "Crashed"
        self._schedule.done(key, self._clock())
        if again_s is not None:
            self.add_after(key, again_s)
        return "ok"
