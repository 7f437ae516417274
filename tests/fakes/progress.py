"""A watermark that tests move by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Progress

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class FakeProgress:
    """`ports.ProgressReader`; counts how often it was asked."""

    def __init__(self, token: int = 0) -> None:
        self.token = token
        self.reads = 0
        self.down = False

    async def progress(self) -> Progress:
        self.reads += 1
        if self.down:
            raise Unavailable("CATALOG_UNAVAILABLE", "down")
        return Progress(token=self.token, snapshot_id=self.token, committed_at=NOON, now=NOON)
