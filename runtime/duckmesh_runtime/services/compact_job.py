"""The run of a Compactor's Job: expiry, merges from small to large and rewrites, files removed, then further steps.

Told to end, a run ends between two steps, or gives up the slice it is at, which is done whole or not at all. Whatever
happens, the report says how it ended, as long as the catalog answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Final

from duckmesh_runtime.domain.compaction import Bounds, Slice
from duckmesh_runtime.errors import DuckmeshError, Unavailable
from duckmesh_runtime.ports import LakeMaintenance
from duckmesh_runtime.services.compaction import Progress, Status, Why, compact
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.services.job_steps import PAUSE_S, WAIT_S, Step, unless
from duckmesh_runtime.settings import FILES_STAY_S, RunSettings, SnapshotSettings

logger = logging.getLogger(__name__)

LARGEST_SLICE: Final = 512 * 2**20
"""Bytes of one transaction: some minutes at most, and its memory does not grow with it."""

MOST_TABLES: Final = 5
"""Tables that a report names."""

Opener = Callable[[], AbstractAsyncContextManager[LakeMaintenance]]


class CompactJob:
    """One run.

    Args:
        open_maintenance: Connects; the lease is free again when it is closed.
        run: What to do.
        stop: Set when it has to end.
        steps: What comes after compaction and expiry, in this order.
        wait_s: See `WAIT_S`.
        pause_s: Seconds between two tries to get the lease.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        open_maintenance: Opener,
        *,
        run: RunSettings,
        stop: asyncio.Event,
        steps: Sequence[Step] = (),
        wait_s: float = WAIT_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_maintenance
        self._run = run
        self._stop = stop
        self._steps = steps
        self._wait_s = wait_s
        self._pause_s = pause_s
        self._clock = clock
        self._progress = Progress()

    async def run(self) -> bool:
        """Do it and report it; whether it ended well, in whole or in part."""
        started_at = _now()
        error = await self._work()
        why = None if error else self._why()
        result = "Failed" if error else "Partial" if why else "Succeeded"
        report: dict[str, object] = {
            "id": self._run.id,
            "startedAt": started_at,
            "finishedAt": _now(),
            "result": result,
            "filesIn": self._progress.files_in,
            "filesOut": self._progress.files_out,
            "bytesRewritten": self._progress.size,
        }
        if error:
            report["error"] = error[:500]
        if why:
            report["why"] = why.value
        if why is Why.STUCK:
            report["tables"] = list(self._progress.stuck[:MOST_TABLES])
        logger.log(logging.ERROR if error else logging.INFO, "run ended", extra={"run": report})
        return await self._report(report) and not error

    async def _work(self) -> str:
        """Do all parts, whatever becomes of the others; what went wrong first, or nothing."""
        error = ""
        parts: Sequence[Step] = (
            ("expiry", self._expire),
            # A large slice takes minutes, more than a pod that is told to end is given.
            ("compaction", lambda: unless(self._stop, self._compact())),
            ("expiry", self._expire),
        )
        for name, part in (*parts, *self._steps):
            if self._stop.is_set():
                break
            failed = await _tried(name, part)
            error = error or failed
            if self._progress.status is Status.BUSY:
                return error or "another process maintains the lake"
        return error

    def _why(self) -> Why | None:
        """Why the run was done in part only. What has come meanwhile is for the next."""
        if self._stop.is_set():
            return Why.STOPPED
        return None if self._progress.why is Why.MORE else self._progress.why

    async def _compact(self) -> None:
        bounds = Bounds(
            limits=self._run.limits,
            size=min(self._run.target_file_size, LARGEST_SLICE),
            past=None,
        )
        end = self._clock() + self._wait_s
        while True:
            self._progress.status, self._progress.why = Status.DONE, None
            async with self._open() as lake:
                await compact(
                    lake,
                    bounds,
                    self._progress,
                    goes_on=lambda: not self._stop.is_set(),
                    most=self._run.max_bytes_per_run,
                    told=_tell,
                )
            if self._progress.status is not Status.BUSY or self._clock() >= end:
                return
            await asyncio.sleep(self._pause_s)

    async def _expire(self) -> None:
        """Snapshots first, since what they keep need not be merged; files again at the end. The committer does it too."""
        if self._run.keep_for_s is None or self._stop.is_set():
            return
        keep = SnapshotSettings(keep_for_s=self._run.keep_for_s)
        if self._run.keep_last is not None:
            keep = SnapshotSettings(keep_for_s=self._run.keep_for_s, keep_last=self._run.keep_last)
        expiry = Expiry(self._open, active=lambda: True, keep=keep, files_stay_s=FILES_STAY_S)
        done = await expiry.run(lambda: not self._stop.is_set())
        extra = {"snapshots": done.snapshots, "files": done.files, "status": done.status.value}
        logger.info("expired", extra=extra)

    async def _report(self, report: Mapping[str, object]) -> bool:
        try:
            async with self._open() as lake:
                await lake.report_run(report)
        except Unavailable:
            logger.error("run not reported: the catalog does not answer")
            return False
        return True


async def _tried(name: str, part: Callable[[], Awaitable[None]]) -> str:
    """Do a part of the run; what went wrong, or nothing."""
    logger.info("step", extra={"step": name})
    try:
        await part()
    except DuckmeshError as problem:
        logger.warning("step failed", extra={"step": name, "problem": problem.message})
        return problem.message
    except Exception:
        logger.exception("step failed", extra={"step": name})
        return "an internal error; the log of the Job has it"
    return ""


def _tell(progress: Progress, piece: Slice) -> None:
    extra = {
        "table": piece.table,
        "files_in": progress.files_in,
        "files_out": progress.files_out,
        "bytes": progress.size,
        "conflicts": progress.conflicts,
    }
    logger.info("compacted", extra=extra)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
