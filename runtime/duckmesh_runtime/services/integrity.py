"""Whether a lake's files and rows are what its catalog says: one check at a time, and now and then beside the committer.

A check only reads, however much goes on meanwhile: what looks wrong is asked for again in the store, and then again in the
catalog, before it is told. Files are removed from the store only after their names are gone from the catalog, and no name
comes twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.integrity import (
    LONGEST_FOOTER,
    Fault,
    Hit,
    IntegrityReport,
    LakeFile,
    Mode,
    footer_length,
    judge_footer,
)
from duckmesh_runtime.domain.parquet_pages import BrokenFile
from duckmesh_runtime.errors import Corrupt, DuckmeshError, Limited, Unavailable
from duckmesh_runtime.ports import LakeCheck, ObjectStore, StoredObject, StoreInventory
from duckmesh_runtime.tasks import end

T = TypeVar("T")

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0
FIRST_S: Final = 300.0
"""The longest wait from the start of a process to the first check beside the committer; half of it is the shortest."""

BUSY_S: Final = 60.0
"""After which it is looked again whether the catalog has time."""

CHECK_S: Final = 600.0
"""The longest check beside the committer, and that by HTTP is shorter."""

_AT_ONCE: Final = 8
"""Files asked for at a time."""
_PAGE: Final = 500
"""Files told to the catalog at a time."""
_TRAILER: Final = 8

Progress = Callable[[int, int], None]
Opener = Callable[[], AbstractAsyncContextManager[LakeCheck]]


def _silent(_: int, __: int) -> None:
    return None


class IntegrityService:
    """The checks of one lake by this process.

    Args:
        open_check: Connects to the catalog for one check.
        store: Where the files lie.
    """

    def __init__(self, open_check: Opener, store: StoreInventory) -> None:
        self._open = open_check
        self._store = store
        self._turn = asyncio.Lock()

    async def check(self, mode: Mode, progress: Progress = _silent) -> IntegrityReport:
        """Check once, and report what was found to the catalog.

        Args:
            mode: How much is looked at.
            progress: Told now and then: files done, and of how many.

        Raises:
            Limited: OVERLOADED, this process is at it already.
            Unavailable: CATALOG_UNAVAILABLE or STORAGE_UNAVAILABLE; nothing was found out.
        """
        if self._turn.locked():
            raise Limited(
                "OVERLOADED",
                "an integrity check is under way: repeat the request when it has ended",
                retry_after_s=10,
            )
        async with self._turn, self._open() as lake:
            report = await self._checked(lake, mode, progress)
            await lake.report_integrity(report.to_json())
        metrics.integrity_checked(
            files=report.files,
            missing=report.missing,
            wrong_size=sum(fault is Fault.SIZE for fault in report.faults.values()),
            healthy=report.is_healthy,
        )
        log = logger.info if report.is_healthy else logger.error
        log(
            "integrity checked",
            extra={"mode": mode.value, "state": report.state, "summary": report.message},
        )
        return report

    async def _checked(self, lake: LakeCheck, mode: Mode, progress: Progress) -> IntegrityReport:
        differences = await lake.differences()
        suspects, files = await self._compared(lake)
        progress(0, files)
        if mode is Mode.DEEP:
            suspects |= await self._footers(lake, suspects, files, progress)
        faults, hits = await self._confirmed(lake, suspects)
        progress(files, files)
        return IntegrityReport(
            checked_at=await lake.now(),
            mode=mode,
            files=files,
            faults=faults,
            hits=hits,
            differences=differences,
        )

    async def _compared(self, lake: LakeCheck) -> tuple[dict[str, LakeFile], int]:
        """Files that are not listed with their recorded size, and how many there are in all."""
        wanted: dict[str, LakeFile] = {}
        async for named in lake.files():
            wanted.update((file.path, file) for file in named)
        files = len(wanted)
        suspects: dict[str, LakeFile] = {}
        async for page in all_objects(self._store):
            for each in page:
                file = wanted.pop(each.path, None)
                if file is not None and file.size != each.size:
                    suspects[file.path] = file
        return suspects | wanted, files

    async def _footers(
        self, lake: LakeCheck, known: Mapping[str, LakeFile], files: int, progress: Progress
    ) -> dict[str, LakeFile]:
        """Files whose footers are not what the catalog says."""
        suspects: dict[str, LakeFile] = {}
        done = 0

        async def look(file: LakeFile) -> None:
            if await footer_fault(self._store, file) is not None:
                suspects[file.path] = file

        async for page in lake.files():
            await _each([file for file in page if file.path not in known], look)
            done += len(page)
            progress(min(done, files), files)
        return suspects

    async def _confirmed(
        self, lake: LakeCheck, suspects: Mapping[str, LakeFile]
    ) -> tuple[dict[str, Fault], Sequence[Hit]]:
        """What is wrong with those that are still named, once the store has been asked for each of them."""
        faults: dict[str, Fault] = {}

        async def look(file: LakeFile) -> None:
            fault = await file_fault(self._store, file)
            if fault is not None:
                faults[file.path] = fault

        await _each(list(suspects.values()), look)
        hits: list[Hit] = []
        for paths in _slices(sorted(faults), _PAGE):
            hits += await lake.hits(paths)
        named = {hit.path for hit in hits}
        return {path: fault for path, fault in sorted(faults.items()) if path in named}, hits


class IntegrityWatch:
    """A cheap check now and then, in the process that commits and only while nothing presses.

    Args:
        service: Does it.
        active: Whether this process is the committer.
        busy: Whether catalog or store have enough to do without it.
        interval_s: Seconds between two checks.
        first_s: The longest wait before the first.
        busy_s: Seconds until it is looked again, when they are busy.
    """

    def __init__(
        self,
        service: IntegrityService,
        *,
        active: Callable[[], bool],
        busy: Callable[[], bool],
        interval_s: float = INTERVAL_S,
        first_s: float = FIRST_S,
        busy_s: float = BUSY_S,
    ) -> None:
        self._service = service
        self._active = active
        self._busy = busy
        self._interval_s = interval_s
        self._first_s = first_s
        self._busy_s = busy_s

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Check in the background."""
        task = asyncio.create_task(self._run(), name="integrity")
        try:
            yield
        finally:
            await end(task)

    async def _run(self) -> None:
        # Not all lakes of a node at once.
        wait_s = random.uniform(self._first_s / 2, self._first_s)  # noqa: S311 - no secret
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._interval_s if await self._look() else self._busy_s

    async def _look(self) -> bool:
        """Check once; whether the next one has time."""
        if not self._active() or self._busy():
            return False
        try:
            async with asyncio.timeout(CHECK_S):
                await self._service.check(Mode.CHEAP)
        except (Unavailable, Limited, TimeoutError) as error:
            logger.info("integrity not checked", extra={"error_type": type(error).__name__})
            metrics.integrity_failed()
            return False
        except DuckmeshError as error:
            logger.error("integrity not checked", extra={"problem": error.message})
            metrics.integrity_failed()
        except Exception:  # the loop's edge: it must go on
            logger.exception("integrity check failed")
            metrics.integrity_failed()
        return True


async def all_objects(store: StoreInventory) -> AsyncIterator[Sequence[StoredObject]]:
    """Page by page; others have their turn in between.

    Raises:
        Unavailable: STORAGE_UNAVAILABLE.
    """
    try:
        async for page in store.objects():
            yield page
            await asyncio.sleep(0)
    except Corrupt as error:
        raise Unavailable(
            "STORAGE_UNAVAILABLE", "the bucket is not there: repeat the request when it is"
        ) from error


async def file_fault(store: ObjectStore, file: LakeFile) -> Fault | None:
    """What is wrong with a file by the store itself.

    Raises:
        Unavailable: STORAGE_UNAVAILABLE.
    """
    try:
        size = await store.size(file.path)
    except Corrupt:
        return Fault.MISSING
    if size != file.size:
        return Fault.SIZE
    return await footer_fault(store, file)


async def footer_fault(store: ObjectStore, file: LakeFile) -> Fault | None:
    """What a file's footer says against it; one that is no Parquet has none.

    Raises:
        Unavailable: STORAGE_UNAVAILABLE.
    """
    if not file.parquet:
        return None
    try:
        tail = await _tail(store, file, (file.footer or 0) + _TRAILER)
        length = footer_length(tail) + _TRAILER
        if length > len(tail):
            tail = await _tail(store, file, length)
    except BrokenFile:
        return Fault.FOOTER
    except Corrupt:
        return Fault.MISSING
    return await asyncio.to_thread(judge_footer, file, tail)


async def _tail(store: ObjectStore, file: LakeFile, length: int) -> bytes:
    length = min(length, file.size, LONGEST_FOOTER + _TRAILER)
    return await store.read(file.path, file.size - length, length)


async def _each(items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Work on all of them, a few at a time."""
    for some in _slices(items, _AT_ONCE):
        await asyncio.gather(*map(work, some))


def _slices(items: Sequence[T], most: int) -> Iterable[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))
