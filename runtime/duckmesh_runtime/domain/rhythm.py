"""When the committer acts and on what: the commit rhythm and the cutting of input into transactions. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Rhythm:
    """At once after idle, then at least `min_interval_s` apart; rows wait `max_delay_s` at most.

    All times are seconds of one clock, passed in.
    """

    def __init__(self, *, min_interval_s: float, max_delay_s: float) -> None:
        self._min_interval_s = min_interval_s
        self._max_delay_s = max_delay_s
        self._started = float("-inf")
        self._waiting_since: float | None = None

    def arrived(self, now: float) -> None:
        """Rows are waiting; the first call since the last start counts."""
        if self._waiting_since is None:
            self._waiting_since = now

    def started(self, now: float) -> None:
        """A commit takes what is waiting."""
        self._started = now
        self._waiting_since = None

    def pause_s(self, now: float) -> float:
        """Seconds until the next commit may start; 0 when it may now."""
        due = self._started + self._min_interval_s
        if self._waiting_since is not None:
            due = min(due, self._waiting_since + self._max_delay_s)
        return max(0.0, due - now)


def cut(items: Sequence[T], alone: Callable[[T], bool]) -> Iterator[Sequence[T]]:
    """Stretches of the items in order, none empty; an item for which `alone` holds stands by itself."""
    start = 0
    for i, item in enumerate(items):
        if alone(item):
            if start < i:
                yield items[start:i]
            yield items[i : i + 1]
            start = i + 1
    if start < len(items):
        yield items[start:]


def halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Two parts in order, neither empty, of at least two items."""
    middle = len(items) // 2
    return items[:middle], items[middle:]
