"""A lake's snapshots and files in memory, for the rounds of maintenance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from duckmesh_runtime.domain.thinning import Snapshot
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import LakeMaintenance, Upkeep

NOW = datetime(2026, 3, 29, 12, 0, 30, tzinfo=UTC)


class FakeMaintenance:
    """One lake; `LakeMaintenance`.

    Attributes:
        history: Its snapshots, ascending.
        pinned: Ids that are pinned.
        files: Files to remove, all of them old enough.
        busy_since: When the oldest transaction at work began.
        ours: Whether the lease can be had.
        error: Raised by whatever is done next, once.
        steps: What was done, in order.
        then: Called after each step.
    """

    def __init__(self, history: Sequence[Snapshot] = ()) -> None:
        self.history = list(history)
        self.pinned: set[int] = set()
        self.files = 0
        self.busy_since: datetime | None = None
        self.ours = True
        self.error: Exception | None = None
        self.steps: list[str] = []
        self.then: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[LakeMaintenance]:
        self._did("open")
        try:
            yield self
        finally:
            self.steps.append("close")

    async def look(self, *, keep_last: int, files_stay_s: float) -> Upkeep:
        newest = self.history[-keep_last:]
        return Upkeep(
            now=NOW,
            settled=self.busy_since or NOW,
            snapshots=len(self.history),
            newest_from=newest[0].id if len(newest) == keep_last else 0,
            pinned=frozenset(self.pinned),
            files=self.files,
            old_files=self.files,
        )

    async def snapshots(self, *, since: int, until: datetime, limit: int) -> Sequence[Snapshot]:
        found = [each for each in self.history if each.id >= since and each.time <= until]
        return found[:limit]

    async def claim(self) -> bool:
        return self.ours

    async def expire(self, ids: Sequence[int]) -> int:
        self._did(f"expire {len(ids)}")
        gone = {each.id for each in self.history[:-1]} & set(ids)
        if gone & self.pinned:
            raise Unavailable("CATALOG_UNAVAILABLE", "one of them is pinned")
        self.history = [each for each in self.history if each.id not in gone]
        return len(gone)

    async def remove_files(self, *, stay_s: float, limit: int) -> int:
        self._did("remove")
        removed = min(limit, self.files)
        self.files -= removed
        return removed

    def _did(self, what: str) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.steps.append(what)
        self.then()


def every(seconds: float, count: int, *, ending: timedelta = timedelta(0)) -> Sequence[Snapshot]:
    """Snapshots with so many seconds between them, the last so long ago."""
    return [
        Snapshot(id=number, time=NOW - ending - timedelta(seconds=seconds * (count - number)))
        for number in range(1, count + 1)
    ]
