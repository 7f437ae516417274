"""Which snapshots go: rules that hold for any history of a lake."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.thinning import ALL_FOR, MINUTES_FOR, Snapshot, expired, slices

NOW = datetime(2026, 3, 29, 3, 0, 30, tzinfo=UTC)  # Europe has just set its clocks
WEEK = timedelta(days=7)
NONE_NEWEST = 2**62

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)

# Seconds from one snapshot to the one before it: busy stretches, quiet ones, and long gaps.
gaps = st.one_of(st.integers(0, 20), st.integers(0, 600), st.integers(0, 30_000))


@st.composite
def histories(draw: st.DrawFn) -> Sequence[Snapshot]:
    """A lake's snapshots up to now, some of them merges, some ids missing from an earlier thinning."""
    ages = list(accumulate(draw(st.lists(gaps, max_size=120))))[::-1]
    ids = sorted(
        draw(st.sets(st.integers(0, 10**6), min_size=len(ages), max_size=len(ages)))
        if ages
        else set()
    )
    return [
        Snapshot(id=number, time=NOW - timedelta(seconds=age), has_input=draw(st.booleans()))
        for number, age in zip(ids, ages, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Lake:
    """A history with what its owner wants kept of it."""

    history: Sequence[Snapshot]
    keep_for: timedelta
    newest_from: int
    pinned: Set[int]

    def thin(self, stretch: Sequence[Snapshot] | None = None) -> Sequence[int]:
        return expired(
            self.history if stretch is None else stretch,
            now=NOW,
            keep_for=self.keep_for,
            newest_from=self.newest_from,
            pinned=self.pinned,
        )

    def thinned(self) -> Lake:
        gone = set(self.thin())
        return replace(self, history=[each for each in self.history if each.id not in gone])

    def free(self) -> Sequence[Snapshot]:
        """Those that nothing holds but their age."""
        return [
            each
            for each in self.history
            if each.id < self.newest_from and each.id not in self.pinned
        ]


@st.composite
def lakes(draw: st.DrawFn) -> Lake:
    history = draw(histories())
    keep_last = draw(st.integers(1, 20))
    ids = [each.id for each in history]
    return Lake(
        history=history,
        keep_for=timedelta(seconds=draw(st.integers(600, 10 * 86_400))),
        newest_from=ids[-keep_last] if len(ids) >= keep_last else 0,
        pinned=draw(st.sets(st.sampled_from(ids))) if ids else set(),
    )


@given(lakes())
def test_the_newest_and_the_pinned_never_go(lake: Lake) -> None:
    gone = set(lake.thin())

    assert not gone & lake.pinned
    assert all(number < lake.newest_from for number in gone)
    assert not lake.history or lake.history[-1].id not in gone


@given(lakes())
def test_all_that_are_younger_than_ten_minutes_stay(lake: Lake) -> None:
    kept = {each.id for each in lake.thinned().history}

    assert kept >= {each.id for each in lake.history if NOW - each.time < ALL_FOR}


@given(lakes())
def test_no_two_that_stay_are_of_one_minute_and_after_a_day_of_one_hour(lake: Lake) -> None:
    kept = lake.thinned().free()

    old = [each.time for each in kept if ALL_FOR <= NOW - each.time < MINUTES_FOR]
    older = [each.time for each in kept if NOW - each.time >= MINUTES_FOR]
    minutes = [time.replace(second=0, microsecond=0) for time in old]
    hours = [time.replace(minute=0, second=0, microsecond=0) for time in older]
    assert len(set(minutes)) == len(minutes)
    assert len(set(hours)) == len(hours)


@given(lakes())
def test_nothing_that_is_free_outlives_its_time(lake: Lake) -> None:
    assert all(NOW - each.time < lake.keep_for for each in lake.thinned().free())


@given(lakes())
def test_thinning_what_was_thinned_changes_nothing(lake: Lake) -> None:
    assert lake.thinned().thin() == []


@given(lakes(), st.integers(2, 30))
def test_a_stretch_gives_up_nothing_that_the_whole_would_not_lead_to(lake: Lake, size: int) -> None:
    """Thinned stretch by stretch, again and again, no minute or hour is ever left without a snapshot of it."""
    left = list(lake.history)

    def pieces() -> set[int]:
        starts = range(0, len(left), size - 1)  # overlapping by one
        return {number for start in starts for number in lake.thin(left[start : start + size])}

    while gone := pieces():
        left = [each for each in left if each.id not in gone]

    assert {_bucket(each) for each in left} == {_bucket(each) for each in lake.thinned().history}


def _bucket(each: Snapshot) -> object:
    age = NOW - each.time
    if age < ALL_FOR:
        return each.id
    step = MINUTE if age < MINUTES_FOR else HOUR
    return step, (each.time - datetime(1970, 1, 1, tzinfo=UTC)) // step


@given(histories())
def test_a_whole_minute_and_a_whole_hour_are_answered_exactly(history: Sequence[Snapshot]) -> None:
    """The newest snapshot at or before it with the last input is the same as before thinning."""
    history = [Snapshot(id=each.id, time=each.time) for each in history]
    lake = Lake(history=history, keep_for=52 * WEEK, newest_from=NONE_NEWEST, pinned=set())
    left = lake.thinned().history

    for each in left:
        hour = each.time.replace(minute=0, second=0, microsecond=0) + HOUR
        if hour > NOW:
            continue
        assert _at(left, hour) == _at(history, hour)
        minute = each.time.replace(second=0, microsecond=0) + MINUTE
        if NOW - each.time < MINUTES_FOR:
            assert _at(left, minute) == _at(history, minute)


def _at(history: Sequence[Snapshot], moment: datetime) -> int:
    return max(each.id for each in history if each.time < moment)


@given(lakes(), st.integers(-14 * 60, 14 * 60))
def test_no_time_zone_matters(lake: Lake, offset_min: int) -> None:
    zone = timezone(timedelta(minutes=offset_min))
    elsewhere = [
        Snapshot(id=each.id, time=each.time.astimezone(zone), has_input=each.has_input)
        for each in lake.history
    ]

    assert lake.thin(elsewhere) == lake.thin()


def at(*seconds: int, merges: Sequence[int] = ()) -> Sequence[Snapshot]:
    """Snapshots 1.. at these seconds after 01:00; the ids of `merges` are no input."""
    start = datetime(2026, 3, 29, 1, tzinfo=UTC)
    return [
        Snapshot(id=number, time=start + timedelta(seconds=second), has_input=number not in merges)
        for number, second in enumerate(seconds, 1)
    ]


@pytest.mark.parametrize(
    ("history", "gone"),
    [
        pytest.param(at(0, 30, 59, 60), [1, 2], id="the last of a minute stays"),
        pytest.param(at(0, 30, 59, merges=[3]), [1, 3], id="a merge makes way for input"),
        pytest.param(at(0, 30, merges=[1, 2]), [1], id="of merges the last stays"),
        pytest.param(at(0, 60, 120), [], id="one a minute stays"),
        pytest.param([], [], id="an empty history"),
    ],
)
def test_what_stays_of_a_minute(history: Sequence[Snapshot], gone: Sequence[int]) -> None:
    assert expired(history, now=NOW, keep_for=WEEK, newest_from=NONE_NEWEST) == gone


def test_what_is_less_than_ten_minutes_old_is_not_thinned_whatever_keep_for_says() -> None:
    history = [Snapshot(id=number, time=NOW - timedelta(seconds=599)) for number in (1, 2)]

    gone = expired(history, now=NOW, keep_for=timedelta(0), newest_from=NONE_NEWEST)

    assert gone == []


def test_a_snapshot_from_the_future_stays() -> None:
    """The database's clock was set back."""
    history = [Snapshot(id=number, time=NOW + timedelta(hours=1)) for number in (1, 2)]

    assert expired(history, now=NOW, keep_for=WEEK, newest_from=NONE_NEWEST) == []


def test_slices_are_in_order_and_never_larger_than_asked() -> None:
    assert list(slices(range(5), 2)) == [range(2), range(2, 4), range(4, 5)]
