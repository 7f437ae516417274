from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.pace import Pace

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def pace(*reads: tuple[float, int]) -> Pace:
    """One that saw these tokens so many seconds after noon."""
    made = Pace()
    for at, token in reads:
        made.see(token, NOON + timedelta(seconds=at))
    return made


@pytest.mark.parametrize(
    ("reads", "number", "expected"),
    [
        pytest.param([], 10, None, id="nothing seen"),
        pytest.param([(0, 5)], 10, None, id="seen once"),
        pytest.param([(0, 5), (1, 5), (9, 5)], 10, None, id="it stands"),
        pytest.param([(0, 0), (1, 100)], 200, 1_000, id="steady"),
        pytest.param([(0, 0), (1, 100), (2, 100)], 200, 2_000, id="the pause after a move counts"),
        pytest.param([(0, 0), (1, 100)], 50, 0, id="visible already"),
        pytest.param([(0, 0), (1, 100), (12, 100)], 200, None, id="moved too long ago"),
        pytest.param([(0, 0), (3600, 100)], 200, 10_000, id="an hour's sleep counts as the window"),
        pytest.param([(0, 0), (5, 1_000), (20, 1_100)], 1_200, 10_000, id="only the window counts"),
    ],
)
def test_the_estimate_is_what_lacks_over_the_recent_rate(
    reads: list[tuple[float, int]], number: int, expected: int | None
) -> None:
    assert pace(*reads).wait_ms(number) == expected


def test_another_timeline_begins_with_nothing() -> None:
    seen = pace((0, 0), (1, 100))

    seen.clear()
    seen.see(10, NOON + timedelta(seconds=2))

    assert seen.wait_ms(20) is None


@given(
    steps=st.lists(
        st.tuples(st.floats(0.001, 30), st.integers(0, 10_000)), min_size=1, max_size=600
    ),
    ahead=st.integers(1, 10**12),
)
def test_memory_is_bounded_and_an_estimate_is_never_negative(
    steps: list[tuple[float, int]], ahead: int
) -> None:
    seen, at, token = Pace(), 0.0, 0
    for pause, move in steps:
        at, token = at + pause, token + move
        seen.see(token, NOON + timedelta(seconds=at))

    found = seen.wait_ms(token + ahead)

    assert found is None or found >= 0
    assert len(seen._samples) <= 256
