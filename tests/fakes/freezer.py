"""Frozen catalogs without a file; remembers who holds what."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from duckmesh_runtime.ports import FrozenCatalog
from tests.fakes.progress import NOON, FakeProgress


class FakeFreezer:
    """`ports.CatalogFreezer` over a `FakeProgress`."""

    def __init__(self, progress: FakeProgress, *, lag_ms: int = 0) -> None:
        self._progress = progress
        self.lag_ms = lag_ms
        self.held: Counter[str] = Counter()

    async def freeze(self, min_token: int = 0) -> FrozenCatalog:
        token = self._progress.token
        path = f"/catalogs/{token}.db"
        self.held[path] += 1
        return FrozenCatalog(
            path=path,
            snapshot_id=token,
            snapshot_time=NOON,
            token=token,
            frozen_at=NOON,
            oldest_pending_at=NOON - timedelta(milliseconds=self.lag_ms) if self.lag_ms else None,
            files={},
        )

    def release(self, catalog: FrozenCatalog) -> None:
        self.held[catalog.path] -= 1
        assert self.held[catalog.path] >= 0, "released more often than held"
        self.held += Counter()
