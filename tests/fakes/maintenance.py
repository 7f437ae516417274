"""A lake's snapshots, files to remove and files to merge in memory, for the rounds of maintenance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from duckmesh_runtime.domain.compaction import (
    Bounds,
    Debt,
    Group,
    Holed,
    LakeFiles,
    Merge,
    Slice,
    TableTotals,
)
from duckmesh_runtime.domain.thinning import Snapshot
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Compacted, LakeMaintenance, Upkeep

NOW = datetime(2026, 3, 29, 12, 0, 30, tzinfo=UTC)


class FakeMaintenance:
    """One lake; `LakeMaintenance`.

    Attributes:
        history: Its snapshots, ascending.
        pinned: Ids that are pinned.
        files: Files to remove, all of them old enough.
        sizes: Bytes of each live file without deleted rows, the oldest first, by table.
        holed: The live files with deleted rows.
        held: Whether a restore is under way.
        conflicts: So many slices come to nothing.
        hopeless: Tables of which no slice ever goes through.
        debts: What was reported of debt.
        runs: What was reported of runs.
        busy_since: When the oldest transaction at work began.
        ours: Whether the lease can be had.
        error: Raised by whatever is done next, once.
        prepared: How often it was made ready for a slice.
        steps: What was done, in order.
        then: Called after each step.
    """

    def __init__(self, history: Sequence[Snapshot] = ()) -> None:
        self.history = list(history)
        self.pinned: set[int] = set()
        self.files = 0
        self.sizes: dict[str, list[int]] = {}
        self.holed: list[Holed] = []
        self.held = False
        self.conflicts = 0
        self.hopeless: set[str] = set()
        self.debts: list[Debt] = []
        self.runs: list[Mapping[str, object]] = []
        self.busy_since: datetime | None = None
        self.ours = True
        self.error: Exception | None = None
        self.prepared = 0
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

    async def live_files(self, bounds: Bounds) -> LakeFiles:
        holed = sorted(self.holed, key=lambda each: -each.ratio)
        tables: dict[str, TableTotals] = {}
        for name in {*self.sizes, *(each.table for each in holed)}:
            mine = [each for each in holed if each.table == name]
            tables[name] = TableTotals(
                table=name,
                files=len(self.sizes.get(name, [])) + len(mine),
                rows=sum(each.rows for each in mine) or 1,
                deleted=sum(each.deleted for each in mine),
            )
        groups = [
            group for name, sizes in self.sizes.items() for group in _groups(name, sizes, bounds)
        ]
        return LakeFiles(tables=list(tables.values()), groups=groups, holed=holed, held=self.held)

    async def prepare(self) -> None:
        self.prepared += 1

    async def compact(self, piece: Slice) -> Compacted:
        self._did(f"{'merge' if isinstance(piece, Merge) else 'rewrite'} {piece.table}")
        if piece.table in self.hopeless:
            return Compacted(hopeless=True)
        if self.conflicts:
            self.conflicts -= 1
            return Compacted()
        if isinstance(piece, Merge):
            return self._merge(piece)
        taken = [
            each for each in self.holed if each.table == piece.table and each.ratio >= piece.ratio
        ]
        self.holed = [each for each in self.holed if each not in taken]
        if taken:
            left = sum(each.size * (each.rows - each.deleted) // each.rows for each in taken)
            self.sizes.setdefault(piece.table, []).append(left)
        return Compacted(files_in=len(taken), files_out=min(1, len(taken)))

    async def report_debt(self, debt: Debt) -> None:
        self.debts.append(debt)

    async def report_merged(self) -> None:
        self.steps.append("merged")

    async def report_run(self, run: Mapping[str, object]) -> None:
        self.runs.append(run)

    def _merge(self, piece: Merge) -> Compacted:
        """As the engine does: the oldest of the class, until they are as large as was said."""
        sizes = self.sizes[piece.table]
        taken: list[int] = []
        for place, size in enumerate(sizes):
            if piece.at_least <= size < min(piece.below, piece.up_to):
                taken.append(place)
            if sum(sizes[each] for each in taken) >= piece.up_to:
                break
        if len(taken) < 2:
            return Compacted()
        merged = sum(sizes[each] for each in taken)
        self.sizes[piece.table] = [
            size for place, size in enumerate(sizes) if place not in taken
        ] + [merged]
        return Compacted(files_in=len(taken), files_out=1)

    def _did(self, what: str) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.steps.append(what)
        self.then()


def _groups(table: str, sizes: Sequence[int], bounds: Bounds) -> Sequence[Group]:
    groups = []
    for tier, limit in enumerate(bounds.limits):
        least = bounds.limits[tier - 1] if tier else 0
        mine = [size for size in sizes if least <= size < limit]
        head: list[int] = []
        for size in mine[: bounds.files]:
            if len(head) < 2 or sum(head) + size <= bounds.size:
                head.append(size)
        if len(mine) > 1:
            group = Group(
                table=table,
                tier=tier,
                files=len(mine),
                size=sum(mine),
                head=len(head),
                head_size=sum(head),
            )
            groups.append(group)
    return groups


def every(seconds: float, count: int, *, ending: timedelta = timedelta(0)) -> Sequence[Snapshot]:
    """Snapshots with so many seconds between them, the last so long ago."""
    return [
        Snapshot(id=number, time=NOW - ending - timedelta(seconds=seconds * (count - number)))
        for number in range(1, count + 1)
    ]
