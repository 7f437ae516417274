from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.rhythm import Rhythm, cut, halves


def rhythm() -> Rhythm:
    return Rhythm(min_interval_s=0.1, max_delay_s=0.2)


def test_the_first_commit_starts_at_once() -> None:
    assert rhythm().pause_s(1000.0) == 0


def test_commits_are_an_interval_apart_while_rows_keep_coming() -> None:
    subject = rhythm()
    subject.started(10.0)
    subject.arrived(10.01)

    assert subject.pause_s(10.03) == pytest.approx(0.07)
    assert subject.pause_s(10.1) == pytest.approx(0)


def test_a_commit_after_idle_starts_at_once() -> None:
    subject = rhythm()
    subject.started(10.0)
    subject.arrived(11.0)

    assert subject.pause_s(11.0) == 0


def test_rows_wait_no_longer_than_the_delay_however_long_the_interval() -> None:
    subject = Rhythm(min_interval_s=60, max_delay_s=0.2)
    subject.started(10.0)
    subject.arrived(10.05)
    subject.arrived(10.2)

    assert subject.pause_s(10.2) == pytest.approx(0.05)


def test_a_start_takes_what_waited() -> None:
    subject = Rhythm(min_interval_s=60, max_delay_s=0.2)
    subject.arrived(10.0)
    subject.started(10.1)

    assert subject.pause_s(10.1) == pytest.approx(60)


@pytest.mark.parametrize(
    ("items", "stretches"),
    [
        pytest.param("", [], id="nothing"),
        pytest.param("abc", ["abc"], id="no change"),
        pytest.param("X", ["X"], id="one change"),
        pytest.param("abXcYZd", ["ab", "X", "c", "Y", "Z", "d"], id="mixed"),
    ],
)
def test_changes_stand_alone(items: str, stretches: list[str]) -> None:
    assert list(cut(items, str.isupper)) == stretches


@given(st.lists(st.booleans()))
def test_cutting_keeps_all_in_order(items: list[bool]) -> None:
    stretches = list(cut(items, bool))

    assert [item for stretch in stretches for item in stretch] == items
    assert all(len(stretch) == 1 for stretch in stretches if any(stretch))
    assert all(stretches)


@given(st.lists(st.integers(), min_size=2))
def test_halves_are_both_there_and_keep_order(items: list[int]) -> None:
    first, second = halves(items)

    assert [*first, *second] == items
    assert first
    assert second
