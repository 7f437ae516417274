"""Compaction: rounds beside the committer, which keep the small files few, and runs that go all the way.

Both work through the same slices, the most useful first; each is one short transaction that is done or not at all. What
ends in between leaves the files of before or of after. Nothing that goes wrong here reaches the committer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.compaction import (
    Bounds,
    Debt,
    LakeFiles,
    Slice,
    debt,
    next_slice,
    same_place,
)
from duckmesh_runtime.errors import DuckmeshError, Unavailable
from duckmesh_runtime.ports import Compacted, LakeMaintenance
from duckmesh_runtime.settings import CompactionSettings
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

BUSY_S: Final = 5.0
"""From one round to the next while there is something to do: five commits a second leave 25 files meanwhile."""
IDLE_S: Final = 60.0
ROUND_S: Final = 5.0
"""Within this a round begins no more slices: others wait for the lease."""
CALL_S: Final = 20.0
"""The same for a run that a caller waits for."""
HOLD_S: Final = 0.5
"""So long a commit waits for a slice of a table with deletes at most; what it does not outlast may have to be done again."""

BESIDE: Final = Bounds(highest=1, files=64, size=8 * 2**20, past=0)
"""A slice of some 100 ms; the last class is for those who may take longer."""

CALLED: Final = Bounds(files=128, size=32 * 2**20)
"""A second at most, in the process that commits."""

_TRIES: Final = 3


class Why(StrEnum):
    """Why a run did not get to its end."""

    BYTES = "bytes"  # it was to read no more
    STOPPED = "stopped"  # it was told to end, or its time was over
    STUCK = "stuck"  # files of some tables cannot be merged
    MORE = "more"  # all was done that there was at first; more has come


class Status(StrEnum):
    """How a run ended."""

    DONE = "done"
    PARTIAL = "partial"  # something is left, for its time or its bytes were over
    BUSY = "busy"  # another process maintains the lake


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a run has done so far.

    Attributes:
        files_in: Files read.
        files_out: Files that took their place.
        size: Bytes read, about.
        slices: Transactions that landed.
        conflicts: Those that came to nothing, most since rows in their files were deleted meanwhile.
        status: How it ended.
        why: Why something is left; None unless it ended in part.
        stuck: Tables of which files could not be merged, by name.
        left: What there is to do afterwards.
    """

    files_in: int = 0
    files_out: int = 0
    size: int = 0
    slices: int = 0
    conflicts: int = 0
    status: Status = Status.DONE
    why: Why | None = None
    stuck: Sequence[str] = ()
    left: Debt = field(default_factory=Debt)


Doing = Callable[[LakeMaintenance, Slice, LakeFiles], Awaitable[Compacted]]
Told = Callable[[Progress, Slice], None]


async def _just_do(lake: LakeMaintenance, piece: Slice, _: LakeFiles) -> Compacted:
    return await lake.compact(piece)


def _tell_nobody(_: Progress, __: Slice) -> None:
    return None


async def compact(
    lake: LakeMaintenance,
    bounds: Bounds,
    progress: Progress,
    *,
    goes_on: Callable[[], bool],
    most: int | None = None,
    do: Doing = _just_do,
    told: Told = _tell_nobody,
    tries: int = _TRIES,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Work through the slices of a lake until nothing is left of what there is now, or it has to end.

    Args:
        lake: Open; the lease is taken with the first slice.
        bounds: How far to go.
        progress: Counts on, also when this raises.
        goes_on: Whether to take another slice.
        most: Bytes to read at most.
        do: Does a slice.
        told: Called after each.
        tries: How often a class of a table is tried that comes to nothing.
        clock: Monotonic seconds.

    Raises:
        Unavailable: Catalog or store do not answer, or another process maintains the lake by now; what is done stays.
    """
    found = await lake.live_files(bounds)
    # Of a lake that is written to there is always a little left: what was there at first is enough, as soon as no less is left.
    goal = least = debt(found, bounds).files
    vain: list[Slice] = []
    too_large: list[Slice] = []
    why: Why | None = None
    while piece := next_slice(found, bounds, but=[*_given_up(vain, tries), *too_large]):
        if not goes_on():
            why = Why.STOPPED
            break
        if most is not None and progress.size + piece.size > most:
            too_large.append(piece)  # a smaller one may go in
            continue
        if not await lake.claim():
            progress.status = Status.BUSY
            break
        started = clock()
        done = await do(lake, piece, found)
        seconds = clock() - started
        if done.files_in:
            _count(progress, piece, done)
            metrics.compacted(size=piece.size, seconds=seconds)
            await lake.report_merged()
        else:
            vain += [piece] * (tries if done.hopeless else 1)
            progress.conflicts += 1
            metrics.compaction_undone()
        told(progress, piece)
        found = await lake.live_files(bounds)
        left = debt(found, bounds).files
        if progress.files_in - progress.files_out >= goal and left >= least:
            why = Why.MORE if next_slice(found, bounds) else None
            break
        least = min(least, left)
        # Half of the time is the committer's alone.
        await asyncio.sleep(min(1.0, seconds))
    stuck = _given_up(vain, tries)
    if next_slice(found, bounds) and why is not Why.STOPPED and (too_large or stuck):
        why = Why.BYTES if too_large else Why.STUCK
    if why is not None and progress.status is Status.DONE:
        progress.status, progress.why = Status.PARTIAL, why
    progress.stuck = sorted({piece.table for piece in stuck})
    progress.left = debt(found, bounds)
    metrics.compaction_debt(progress.left.files)
    await lake.report_debt(progress.left)


def _given_up(vain: Sequence[Slice], tries: int) -> Sequence[Slice]:
    return [piece for piece in vain if sum(same_place(piece, other) for other in vain) >= tries]


def _count(progress: Progress, piece: Slice, done: Compacted) -> None:
    progress.files_in += done.files_in
    progress.files_out += done.files_out
    progress.size += piece.size
    progress.slices += 1


class Compaction:
    """The compaction of one process: its rounds beside the committer, and the runs that are asked for.

    Args:
        open_maintenance: Connects for one round.
        active: Whether this process is the committer.
        settings: From how many small files on a table is compacted, and whether at all.
        turn: Held by each commit of this process.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        open_maintenance: Callable[[], AbstractAsyncContextManager[LakeMaintenance]],
        *,
        active: Callable[[], bool],
        settings: CompactionSettings,
        turn: asyncio.Lock,
        busy_s: float = BUSY_S,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_maintenance
        self._active = active
        self._settings = settings
        self._turn = turn
        self._busy_s = busy_s
        self._idle_s = idle_s
        self._clock = clock

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go round in the background."""
        task = asyncio.create_task(self._run(), name="compaction")
        try:
            yield
        finally:
            await end(task)

    async def round(self) -> Progress | None:
        """Merge what has become too many, while this process is the committer; None when it is not.

        Raises:
            Unavailable: Catalog or store do not answer, or another process maintains the lake by now; what is done stays.
        """
        if not self._active():
            return None
        end = self._clock() + ROUND_S
        progress = Progress()
        bounds = replace(BESIDE, saves=max(1, self._settings.small_files - 1))
        async with self._open() as lake:
            await compact(
                lake,
                bounds,
                progress,
                goes_on=lambda: self._settings.enabled and self._active() and self._clock() < end,
                do=self._beside,
                tries=1,
                clock=self._clock,
            )
        return progress

    async def run(self) -> Progress:
        """Compact all classes as far as some seconds go, whoever commits.

        Raises:
            Unavailable: Catalog or store do not answer, or another process maintains the lake by now; what is done stays.
        """
        end = self._clock() + CALL_S
        progress = Progress()
        async with self._open() as lake:
            await compact(
                lake,
                CALLED,
                progress,
                goes_on=lambda: self._clock() < end,
                do=self._beside,
                clock=self._clock,
            )
        return progress

    async def _beside(self, lake: LakeMaintenance, piece: Slice, found: LakeFiles) -> Compacted:
        """Do a slice between two commits, where a commit would else undo it; it waits for a short time at most."""
        if not any(table.table == piece.table and table.deleted for table in found.tables):
            return await lake.compact(piece)
        await lake.prepare()  # takes longer than many a slice: no commit is to wait for it
        async with self._turn:
            doing = asyncio.create_task(lake.compact(piece))
            try:
                await asyncio.wait({doing}, timeout=HOLD_S)
            except asyncio.CancelledError:
                doing.cancel()
                await asyncio.wait({doing})
                raise
        return await doing

    async def _run(self) -> None:
        pause_s = self._busy_s
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._idle_s)
            try:
                progress = await self.round()
                if progress is not None and progress.slices:
                    pause_s = self._busy_s
            except Unavailable as error:
                logger.info("compaction waits", extra={"error_code": error.code})
                metrics.maintenance_failed(error.code)
            except DuckmeshError as error:
                logger.error("compaction refused", extra={"problem": error.message})
                metrics.maintenance_failed(error.code)
            except Exception:  # the loop's edge: it must go on
                logger.exception("compaction failed")
                metrics.maintenance_failed("INTERNAL")
