"""What ingest lets in: request rate, and bytes accepted and not yet committed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Limited
from duckmesh_runtime.ports import Backlog, IngestBus

logger = logging.getLogger(__name__)

_REFRESH_S: Final = 1.0
_REST: Final = 10
"""A look takes at most this part of the time: the bus of a lake far behind is not read all the time."""


class RateLimit:
    """A token bucket that holds one second's worth.

    Args:
        per_second: Requests a second; 0 means no limit.
        clock: Monotonic seconds.
    """

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        self._rate = per_second
        self._clock = clock
        self._left = float(per_second)
        self._at = clock()

    def take(self) -> None:
        """Take one request's share.

        Raises:
            Limited: RATE_LIMITED with the time after which the next may pass.
        """
        if not self._rate:
            return
        now = self._clock()
        self._left = min(float(self._rate), self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            raise Limited(
                "RATE_LIMITED",
                f"more than {self._rate} requests a second: wait and repeat",
                context={"requests_per_second": self._rate},
                retry_after_s=(1 - self._left) / self._rate,
            )
        self._left -= 1


class PendingBytes:
    """Bytes on the bus that the lake does not hold yet: read in the background, counted up by each accepted request.

    The bus is asked once a second while something is pending and not at all when the process is idle.

    Args:
        bus: The bus.
        limit: Bytes past which requests are OVERLOADED.
    """

    def __init__(self, bus: IngestBus, limit: int) -> None:
        self._bus = bus
        self._limit = limit
        self._bytes = 0
        self._fresh_until = float("-inf")
        self._wake = asyncio.Event()
        self._wake.set()  # what others left behind counts too

    def check(self) -> None:
        """Let a request pass.

        Raises:
            Limited: OVERLOADED.
        """
        if self._bytes > self._limit:
            raise Limited(
                "OVERLOADED",
                "too much is accepted and not yet committed: wait and repeat",
                context={"pending_bytes": self._bytes, "limit_bytes": self._limit},
                retry_after_s=_REFRESH_S,
            )

    def add(self, size: int) -> None:
        """Count what was just accepted."""
        self._bytes += size
        self._wake.set()

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.refresh()
            except Exception as error:
                logger.warning("backlog not read", extra={"error": repr(error)})
                self._wake.set()  # the last figure stays; writes fail by themselves
            await asyncio.sleep(max(_REFRESH_S, self._fresh_until - time.monotonic()))

    async def show(self) -> None:
        """Have the metrics show the backlog as it is: siblings accept and commit too, unseen from here."""
        if time.monotonic() >= self._fresh_until:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the backlog once and show it in the metrics."""
        started = time.monotonic()
        self._fresh_until = started + _REFRESH_S
        backlog = await self._bus.backlog()
        took_s = time.monotonic() - started
        self._fresh_until = started + max(_REFRESH_S, _REST * took_s)
        self._bytes = backlog.pending_bytes
        if backlog.pending_bytes:
            self._wake.set()
        _show(backlog)


def _show(backlog: Backlog) -> None:
    metrics.lag_seen(
        accepted=backlog.head.last,
        token=backlog.progress.token,
        lag_ms=backlog.lag_ms,
        dead_letters=backlog.dead_letters,
        observed_at=backlog.progress.now.timestamp(),
    )
    metrics.backlog_seen(
        rows=backlog.pending_rows,
        size_bytes=backlog.pending_bytes,
        claimed_rows=backlog.claimed_rows,
        snapshot_id=backlog.snapshot_id or 0,
    )
