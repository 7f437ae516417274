"""How fast a watermark moved lately, and so when a number will be visible: the estimate of CONSISTENCY_TIMEOUT. Pure."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Final

WINDOW: Final = timedelta(seconds=10)
"""How far back is lately. A guess: some fifty commits of a busy lake, and the slowest rhythm of an idle one is within it."""

_SAMPLES: Final = 256  # one per move, which are at least a commit's minimum interval apart


class Pace:
    """Remembers the moves of one watermark over the last `WINDOW`."""

    def __init__(self) -> None:
        self._samples: deque[tuple[datetime, int]] = deque(maxlen=_SAMPLES)
        self._now: datetime | None = None

    def clear(self) -> None:
        """Forget all: another timeline began."""
        self._samples.clear()
        self._now = None

    def see(self, token: int, now: datetime) -> None:
        """Take in one read of the watermark; `now` is the database's time of it."""
        self._now = now
        if not self._samples or self._samples[-1][1] != token:
            self._samples.append((now, token))
        # The newest move before the window stays: without it a rate over the whole window could not be told.
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def wait_ms(self, number: int) -> int | None:
        """Milliseconds until `number` is visible if the watermark goes on as lately; None when it did not move.

        `behind / rate`, where `behind` is what the watermark lacks and `rate` the numbers it moved by over the time since
        the first sample of the window.
        """
        if self._now is None:
            return None
        (began, first), (moved_at, last) = self._samples[0], self._samples[-1]
        if last <= first or moved_at <= self._now - WINDOW:
            return None
        seconds = (self._now - max(began, self._now - WINDOW)).total_seconds()
        return max(0, round((number - last) * seconds / (last - first) * 1000))
