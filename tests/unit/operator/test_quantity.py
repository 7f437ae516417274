from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_operator.quantity import (
    format_bytes,
    format_cpu,
    parse_bytes,
    parse_cpu,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "millis"),
    [("250m", 250), ("2", 2000), ("1.5", 1500), ("0.25", 250), (1, 1000), (0.5, 500)],
)
def test_cpu(text: object, millis: int) -> None:
    assert parse_cpu(text) == millis


@pytest.mark.parametrize(
    ("text", "size"), [("64Mi", 64 * 2**20), ("1k", 1000), ("2G", 2 * 10**9), (4096, 4096)]
)
def test_bytes(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "ms"), [("200ms", 200), ("5s", 5000), ("1h30m", 5_400_000), ("0s", 0)]
)
def test_duration(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("bad", ["", "x", "-1", "1.5Mi", "1m2", True, None, [], "1e3", "1 s"])
def test_what_is_none_of_them_is_refused(bad: object) -> None:
    for parse in (parse_cpu, parse_bytes, parse_duration):
        with pytest.raises(ValueError, match=r"neither a text|is not a"):
            parse(bad)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (2**30, "1Gi"),
        (1792 * 2**20, "1792Mi"),
        (1000, "1k"),
        (10**9, "1G"),
        (1_024_000, "1000Ki"),
        (999, "999"),
        (0, "0"),
    ],
)
def test_bytes_are_spelt_as_the_api_server_spells_them(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(min_value=0, max_value=2**45))
def test_bytes_survive_a_round_trip(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(min_value=0, max_value=999_999))
def test_cpu_survives_a_round_trip(millis: int) -> None:
    assert parse_cpu(format_cpu(millis)) == millis
