"""Rounds of maintenance beside the committer: snapshots thin out, and files that no snapshot has any more are removed.

One round a minute, in the process that commits and only while it does. A round is bounded in time; what is left waits for
the next. Nothing that goes wrong here reaches the committer: a round ends, is counted, and the next begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.thinning import ALL_FOR, expired, slices
from duckmesh_runtime.errors import DuckmeshError, Unavailable
from duckmesh_runtime.ports import LakeMaintenance, Upkeep
from duckmesh_runtime.services.compaction import Status
from duckmesh_runtime.settings import SnapshotSettings
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0
ROUND_S: Final = 20.0
"""Within this a round begins no more steps."""

PAGE: Final = 2_000
"""Snapshots looked at in one go: some milliseconds, in which nothing else of the process runs."""

SLICE: Final = 500
"""Snapshots given up in one transaction, and files removed in one step."""

MOST: Final = 20 * SLICE
"""Snapshots to give up in one round."""

May = Callable[[], Awaitable[bool]]


@dataclass(slots=True, kw_only=True)
class Expired:
    """What a run has done.

    Attributes:
        snapshots: Snapshots given up.
        files: Files removed from the store.
        snapshots_kept: Snapshots that are left, about.
        files_waiting: Files without a snapshot that are still stored, about.
        status: How it ended.
    """

    snapshots: int = 0
    files: int = 0
    snapshots_kept: int = 0
    files_waiting: int = 0
    status: Status = Status.DONE


class Expiry:
    """The rounds of one process.

    Args:
        open_maintenance: Connects for one round.
        active: Whether this process is the committer.
        keep: Which snapshots stay.
        files_stay_s: How long a file without a snapshot stays: longer than any query or open answer that may read it.
        interval_s: Seconds between two rounds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        open_maintenance: Callable[[], AbstractAsyncContextManager[LakeMaintenance]],
        *,
        active: Callable[[], bool],
        keep: SnapshotSettings,
        files_stay_s: float,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_maintenance
        self._active = active
        self._keep = keep
        self._files_stay_s = files_stay_s
        self._interval_s = interval_s
        self._clock = clock

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go round in the background."""
        task = asyncio.create_task(self._run(), name="expiry")
        try:
            yield
        finally:
            await end(task)

    async def round(self) -> None:
        """Do once what there is to do, while this process is the committer.

        Raises:
            Unavailable: Catalog or store do not answer, or another process maintains the lake by now; what is done stays.
        """
        if self._active():
            await self.run(self._active)

    async def run(self, goes_on: Callable[[], bool] = lambda: True) -> Expired:
        """Do what there is to do, as far as some seconds go.

        Args:
            goes_on: Whether to take another step.

        Raises:
            Unavailable: As `round`.
        """
        end = self._clock() + ROUND_S
        done = Expired()

        async def may(lake: LakeMaintenance) -> bool:
            """Whether to take another step; the lease is ours then."""
            if not goes_on() or self._clock() >= end:
                done.status = Status.PARTIAL
                return False
            if not await lake.claim():
                done.status = Status.BUSY
                return False
            return True

        async with self._open() as lake:
            upkeep = await lake.look(
                keep_last=self._keep.keep_last, files_stay_s=self._files_stay_s
            )
            metrics.lake_looked_at(snapshots=upkeep.snapshots, files_waiting=upkeep.files)
            gone = await self._gone(lake, upkeep)
            if not gone and not upkeep.old_files:
                metrics.maintained(None)
            else:
                started = self._clock()
                await self._expire(lake, gone, partial(may, lake), done)
                await self._remove_files(lake, upkeep.old_files, partial(may, lake), done)
                metrics.maintained(self._clock() - started)
            done.snapshots_kept = upkeep.snapshots - done.snapshots
            done.files_waiting = upkeep.files - done.files
        return done

    async def _gone(self, lake: LakeMaintenance, upkeep: Upkeep) -> Sequence[int]:
        """The ids to give up, oldest first, looked for page by page; each page begins with the last one's end."""
        gone: dict[int, None] = {}
        since = 0
        while True:
            page = await lake.snapshots(since=since, until=upkeep.settled - ALL_FOR, limit=PAGE)
            found = expired(
                page,
                now=upkeep.now,
                keep_for=timedelta(seconds=self._keep.keep_for_s),
                newest_from=upkeep.newest_from,
                pinned=upkeep.pinned,
            )
            gone.update(dict.fromkeys(found))
            if len(page) < PAGE or len(gone) >= MOST:
                return list(gone)[:MOST]
            since = page[-1].id

    async def _expire(
        self, lake: LakeMaintenance, gone: Sequence[int], may: May, done: Expired
    ) -> None:
        for ids in slices(gone, SLICE):
            if not await may():
                return
            started = self._clock()
            expired_now = await lake.expire(ids)
            done.snapshots += expired_now
            metrics.snapshots_expired(expired_now)
            # Half of the time is the committer's alone.
            await asyncio.sleep(min(1.0, self._clock() - started))

    async def _remove_files(
        self, lake: LakeMaintenance, most: int, may: May, done: Expired
    ) -> None:
        while most > 0 and await may():
            removed = await lake.remove_files(stay_s=self._files_stay_s, limit=SLICE)
            done.files += removed
            metrics.files_removed(removed)
            most = most - removed if removed else 0

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.round()
            except Unavailable as error:
                logger.info("maintenance waits", extra={"error_code": error.code})
                metrics.maintenance_failed(error.code)
            except DuckmeshError as error:
                logger.error("maintenance refused", extra={"problem": error.message})
                metrics.maintenance_failed(error.code)
            except Exception:  # the loop's edge: it must go on
                logger.exception("maintenance failed")
                metrics.maintenance_failed("INTERNAL")
