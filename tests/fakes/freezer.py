"""Frozen catalogs without a file; remembers who holds what."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from duckmesh_runtime.domain.moments import Moment, no_snapshot
from duckmesh_runtime.ports import FrozenCatalog
from tests.fakes.progress import FakeProgress


class FakeFreezer:
    """`ports.CatalogFreezer` over a `FakeProgress`: each number is a snapshot, a second after the one before it.

    Attributes:
        lag_ms: Of the newest snapshot.
        oldest: Snapshots before this one are gone.
        held: How often each path is held.
    """

    def __init__(self, progress: FakeProgress, *, lag_ms: int = 0) -> None:
        self._progress = progress
        self.lag_ms = lag_ms
        self.oldest = 0
        self.held: Counter[str] = Counter()

    async def freeze(self, min_token: int = 0, *, at: Moment | None = None) -> FrozenCatalog:
        newest, now = self._progress.token, self._progress.now
        found = newest if at is None else self._find(at)
        lag_ms = self.lag_ms if found == newest else 1000 * (newest - found)
        path = f"/catalogs/{found}.db"
        self.held[path] += 1
        return FrozenCatalog(
            path=path,
            snapshot_id=found,
            snapshot_time=self.time_of(found),
            token=found,
            frozen_at=now,
            oldest_pending_at=now - timedelta(milliseconds=lag_ms) if lag_ms else None,
            files={},
            version=None if at is None else found,
        )

    def release(self, catalog: FrozenCatalog) -> None:
        self.held[catalog.path] -= 1
        assert self.held[catalog.path] >= 0, "released more often than held"
        self.held += Counter()

    def time_of(self, snapshot_id: int) -> datetime:
        return self._progress.now - timedelta(seconds=self._progress.token - snapshot_id)

    def _find(self, at: Moment) -> int:
        newest, now = self._progress.token, self._progress.now
        found = newest + (at - now) // timedelta(seconds=1) if isinstance(at, datetime) else at
        if not self.oldest <= found <= newest:
            raise no_snapshot(at, newest=newest, oldest=self.oldest, now=now)
        return found
