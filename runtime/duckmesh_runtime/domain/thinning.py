"""Which snapshots of a lake may go: all stay for ten minutes, then one a minute for a day, then one an hour to the end.

Called by `services/expiry.py`. Times are the database's; minutes and hours are cut in UTC, so no time zone matters.

Of a minute or an hour its last state stays: who asks for the lake as it was at a whole minute (a whole hour, after a day)
gets exactly that. Merges of files make snapshots too, without input and without a change of rows; where there is another,
it stays in their place, since only such a one can be restored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

ALL_FOR: Final = timedelta(minutes=10)

MINUTES_FOR: Final = timedelta(hours=24)

_MINUTE: Final = timedelta(minutes=1)
_HOUR: Final = timedelta(hours=1)
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot.

    Attributes:
        id: Its number; later ones have higher ones.
        time: When it was committed.
        has_input: Whether its commit moved the watermark: not a merge, nor the empty lake.
    """

    id: int
    time: datetime
    has_input: bool = True


def expired(
    snapshots: Sequence[Snapshot],
    *,
    now: datetime,
    keep_for: timedelta,
    newest_from: int,
    pinned: Collection[int] = (),
) -> Sequence[int]:
    """The ids of those that may go, in order.

    Whatever stretch of a lake's snapshots it is given, all that go may go. Two of one minute or hour that are never seen
    together both stay.

    Args:
        snapshots: Of one lake, ascending by id, without gaps between the first and the last.
        now: The database's time.
        keep_for: Age from which all go, of `ALL_FOR` at least.
        newest_from: The newest snapshots, from this id on, stay whatever their age.
        pinned: Those of these ids stay too; the minute or hour that one is of keeps another beside it.
    """
    free = [each for each in snapshots if each.id < newest_from and each.id not in pinned]
    stay = _last_states(free, now)
    oldest = now - max(keep_for, ALL_FOR)
    return [each.id for each in free if each.time <= oldest or each.id not in stay]


def _last_states(snapshots: Sequence[Snapshot], now: datetime) -> Collection[int]:
    """The one that stays of each minute or hour, and all that are too young for that."""
    last: dict[tuple[timedelta, int], Snapshot] = {}
    young: set[int] = set()
    for each in snapshots:
        step = _step(now - each.time)
        if step is None:
            young.add(each.id)
            continue
        bucket = (step, (each.time - _START) // step)
        known = last.get(bucket)
        if known is None or each.has_input or not known.has_input:
            last[bucket] = each
    return young | {each.id for each in last.values()}


def _step(age: timedelta) -> timedelta | None:
    if age < ALL_FOR:
        return None
    return _MINUTE if age < MINUTES_FOR else _HOUR


def slices(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The ids in pieces of `size` at most, in order."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
