"""Files in the store that nothing names: found by a listing, told, and removed when that is asked for. Called by maintenance.

What a crash leaves, and a commit that did not land (docs/adr/0015). A file that is about to be named looks the same, so only
the age tells them apart: what is written is named or given up within minutes, and a day is waited. The age is the
store's, by its own clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import LakeCheck, StoredObject, StoreInventory
from duckmesh_runtime.services.integrity import all_objects

logger = logging.getLogger(__name__)

LEAST_AGE_S: Final = 24 * 3600.0
"""No younger file is removed, whatever is asked for."""

_BATCH: Final = 500
"""Files removed between two looks into the catalog."""
_AT_ONCE: Final = 16

Lease = Callable[[], AbstractAsyncContextManager[bool]]
"""Takes the maintenance lease for as long as it is entered; False when another process keeps it."""


class Removal(StrEnum):
    """What becomes of the files."""

    REPORT = "Report"
    DELETE = "Delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanReport:
    """What was found.

    Attributes:
        checked_at: Database time at the end.
        files: Files that nothing names and that are old enough, those removed included.
        size: Their bytes.
        deleted: How many were removed.
    """

    checked_at: datetime
    files: int
    size: int
    deleted: int

    def to_json(self) -> dict[str, object]:
        """As the catalog keeps it (migration 0009)."""
        return {
            "checkedAt": self.checked_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "files": self.files,
            "bytes": self.size,
            "deleted": self.deleted,
        }


async def run(
    lake: LakeCheck,
    store: StoreInventory,
    *,
    lease: Lease,
    removal: Removal = Removal.REPORT,
    older_than_s: float = LEAST_AGE_S,
) -> OrphanReport:
    """Look once through the whole store, and report to the catalog.

    Args:
        lake: The catalog.
        store: Where the files lie.
        lease: Entered for each batch of removals alone: the listing may take longer than a lease is kept.
        removal: Whether files are removed.
        older_than_s: How old by the store's clock a file must be; less than a day counts as a day.

    Raises:
        Unavailable: CATALOG_UNAVAILABLE or STORAGE_UNAVAILABLE, or the lease is another's; what is done stays.
    """
    written_before = await store.now() - timedelta(seconds=max(older_than_s, LEAST_AGE_S))
    named = {file.path async for page in lake.files() for file in page}
    files = size = deleted = 0
    async for page in all_objects(store):
        old = {
            each.path: each
            for each in page
            if each.changed_at < written_before and each.path not in named
        }
        if not old:
            continue
        orphans = [old[path] for path in await lake.unnamed(list(old))]
        files += len(orphans)
        size += sum(each.size for each in orphans)
        if removal is Removal.DELETE:
            deleted += await _remove(lake, store, orphans, lease)
    report = OrphanReport(checked_at=await lake.now(), files=files, size=size, deleted=deleted)
    await lake.report_orphans(report.to_json())
    logger.info("files without a name", extra={"files": files, "bytes": size, "deleted": deleted})
    return report


async def _remove(
    lake: LakeCheck, store: StoreInventory, orphans: Sequence[StoredObject], lease: Lease
) -> int:
    """Remove them batch by batch, each looked for in the catalog once more under the lease."""
    removed = 0
    for start in range(0, len(orphans), _BATCH):
        async with lease() as ours:
            if not ours:
                raise Unavailable("CATALOG_UNAVAILABLE", "another process maintains the lake")
            batch = [each.path for each in orphans[start : start + _BATCH]]
            gone = await lake.unnamed(batch)
            for first in range(0, len(gone), _AT_ONCE):
                await asyncio.gather(*map(store.remove, gone[first : first + _AT_ONCE]))
        removed += len(gone)
        metrics.orphans_removed(len(gone))
    return removed
