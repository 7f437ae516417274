"""The snapshots of a lake for people and other engines: listed page by page, read, pinned and unpinned."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from duckmesh_runtime.domain.snapshots import SnapshotFiles, SnapshotInfo, TableSize
from duckmesh_runtime.errors import Invalid, Limited
from duckmesh_runtime.ports import SnapshotStore

WAIT_S: Final = 5.0
"""How long a listing waits for the one before it."""

_PIN_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_CURSOR: Final = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePage:
    """Some files of a snapshot, and where to go on; `next_after` is None behind the last."""

    found: SnapshotFiles
    next_after: str | None


class SnapshotService:
    """What the API says and does about snapshots.

    Listings read many rows of the catalog. They go one after the other, so that of the process's few connections, by which
    input is accepted as well, they take one only.

    Args:
        store: Of one lake.
        wait_s: After so long without a turn a listing is OVERLOADED.
    """

    def __init__(self, store: SnapshotStore, *, wait_s: float = WAIT_S) -> None:
        self._store = store
        self._wait_s = wait_s
        self._one = asyncio.Semaphore(1)

    async def page(
        self, before: int | None, *, limit: int
    ) -> tuple[Sequence[SnapshotInfo], int | None]:
        """Snapshots from the newest on, and the `before` of the next page; None behind the oldest."""
        async with self._turn():
            found = await self._store.page(before, limit=limit + 1)
        return found[:limit], found[limit - 1].snapshot_id if len(found) > limit else None

    async def find(self, snapshot_id: int) -> tuple[SnapshotInfo, Sequence[TableSize]]:
        """See `SnapshotStore.find`."""
        async with self._turn():
            return await self._store.find(snapshot_id)

    async def files(
        self, snapshot_id: int, *, table: str | None, after: str | None, limit: int
    ) -> FilePage:
        """Files of a snapshot; see `SnapshotStore.files`.

        All pages together are the snapshot, each row once, though maintenance may replace files between two of them: new
        files have higher numbers, so it is enough that those of the pages before are all there still.

        Raises:
            Invalid: VALIDATION_FAILED, `after` is of another listing, or files that it stands for were replaced.
            Limited: OVERLOADED.
        """
        last, listed = _cursor(after)
        async with self._turn():
            found = await self._store.files(snapshot_id, table=table, after=last, limit=limit)
        if found.before != listed:
            raise _invalid(
                "after",
                "files listed before it were merged meanwhile, or it is of another listing: begin without it",
            )
        if not found.more:
            return FilePage(found=found, next_after=None)
        cursor = f"{found.files[-1].file_id}.{listed + len(found.files)}"
        return FilePage(found=found, next_after=cursor)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._one.acquire()
        except TimeoutError:
            raise Limited(
                "OVERLOADED",
                "too many listings of snapshots at once: repeat a little later",
                retry_after_s=1,
            ) from None
        try:
            yield
        finally:
            self._one.release()

    async def pin(self, snapshot_id: int, name: str, expires_at: datetime | None) -> SnapshotInfo:
        """See `SnapshotStore.pin`."""
        return await self._store.pin(snapshot_id, _checked(name), expires_at)

    async def unpin(self, snapshot_id: int, name: str) -> tuple[SnapshotInfo, bool]:
        """See `SnapshotStore.unpin`."""
        return await self._store.unpin(snapshot_id, _checked(name))


def _cursor(after: str | None) -> tuple[int, int]:
    """The file number that a page begins after, and how many files the pages before had."""
    if after is None:
        return -1, 0
    match = _CURSOR.fullmatch(after)
    if match is None:
        raise _invalid("after", "want the next_after of the page before")
    return int(match[1]), int(match[2])


def _checked(name: str) -> str:
    if not _PIN_NAME.fullmatch(name):
        raise _invalid("name", "want at most 64 letters, digits and the characters _ . - only")
    return name


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid("VALIDATION_FAILED", f"{field}: {problem}", context={"field": field})
