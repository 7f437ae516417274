"""A watermark that tests move by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Progress

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class FakeProgress:
    """`ports.ProgressReader`; counts how often it was asked. A snapshot id of -1 follows the token."""

    def __init__(self, token: int = 0) -> None:
        self.token = token
        self.timeline = 1
        self.snapshot_id: int | None = -1
        self.reads = 0
        self.down = False
        self.broken = False
        self.now = NOON

    def later(self, *, seconds: float) -> None:
        """Let the database's time go on."""
        self.now += timedelta(seconds=seconds)

    async def progress(self) -> Progress:
        self.reads += 1
        if self.down:
            raise Unavailable("CATALOG_UNAVAILABLE", "down")
        if self.broken:
            raise LookupError("a fault of the reader")
        return Progress(
            token=self.token,
            snapshot_id=self.token if self.snapshot_id == -1 else self.snapshot_id,
            committed_at=NOON,
            now=self.now,
            timeline=self.timeline,
        )
