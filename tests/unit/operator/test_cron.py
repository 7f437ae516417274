"""Times of a schedule: by the clock of its place, also on the days that clocks change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from duckmesh_operator.cron import parse


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "zone", "after", "found"),
    [
        pytest.param("0 3 * * *", "Etc/UTC", "2026-05-01T02:59:59", "2026-05-01T03:00", id="soon"),
        pytest.param("0 3 * * *", "Etc/UTC", "2026-05-01T03:00:00", "2026-05-02T03:00", id="at"),
        pytest.param("@hourly", "Etc/UTC", "2026-05-01T03:10", "2026-05-01T04:00", id="hourly"),
        pytest.param("@daily", "Asia/Tokyo", "2026-05-01T03:10", "2026-05-01T15:00", id="daily"),
        pytest.param("@weekly", "Etc/UTC", "2026-05-01T03:10", "2026-05-03T00:00", id="weekly"),
        pytest.param("@monthly", "Etc/UTC", "2026-05-01T03:10", "2026-06-01T00:00", id="monthly"),
        pytest.param(
            "0 3 * * *", "Europe/Berlin", "2026-05-01T03:10", "2026-05-02T01:00", id="dst"
        ),
        # Berlin goes from 02:00 to 03:00 on 29 March 2026, at 01:00 UTC, and back on 25 October, at 01:00 UTC.
        pytest.param(
            "30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", "2026-03-29T01:00", id="skipped"
        ),
        pytest.param(
            "30 2 * * *", "Europe/Berlin", "2026-03-29T01:00", "2026-03-30T00:30", id="not-again"
        ),
        pytest.param(
            "30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-25T00:30", id="repeated"
        ),
        pytest.param(
            "30 2 * * *", "Europe/Berlin", "2026-10-25T00:30", "2026-10-26T01:30", id="but-once"
        ),
        pytest.param(
            "30 2 * * *", "Europe/Berlin", "2026-10-25T01:05", "2026-10-26T01:30", id="never-back"
        ),
        pytest.param(
            "0 * * * *", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T01:00", id="each-hour"
        ),
        pytest.param(
            "0 4 * * *", "Europe/Berlin", "2026-03-28T12:00", "2026-03-29T02:00", id="after-it"
        ),
    ],
)
def test_the_next_time(line: str, zone: str, after: str, found: str) -> None:
    assert parse(line, zone).following(utc(after)) == utc(found)


@pytest.mark.parametrize(
    ("line", "zone", "named"),
    [
        ("61 * * * *", "Etc/UTC", "minute"),
        ("0 0 31 2 *", "Etc/UTC", "0 0 31 2 *"),
        ("* * * *", "Etc/UTC", "cron form"),
        ("@yearly", "Etc/UTC", "@yearly"),
        ("@daily", "Mars/Olympus", "Mars/Olympus is not a time zone"),
        ("@daily", "Europe", "Europe is not a time zone"),
        ("@daily", "../etc/passwd", "is not a time zone"),
    ],
)
def test_what_cannot_be_is_named(line: str, zone: str, named: str) -> None:
    with pytest.raises(ValueError, match=r"is not|never") as caught:
        parse(line, zone)

    assert named in str(caught.value)
