from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from duckmesh_runtime.domain.moments import Moment, no_snapshot

NOW = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("at", "oldest", "code", "says"),
    [
        pytest.param(8, 0, "SNAPSHOT_NOT_FOUND", "newest is 7", id="past the newest"),
        pytest.param(8, 3, "SNAPSHOT_NOT_FOUND", "newest is 7", id="past the newest, some gone"),
        pytest.param(2, 3, "SNAPSHOT_EXPIRED", "snapshot 2 was removed", id="before the oldest"),
        pytest.param(5, 3, "SNAPSHOT_EXPIRED", "snapshot 5 was removed", id="thinned out"),
        pytest.param(NOW - SECOND, 0, "SNAPSHOT_NOT_FOUND", "did not exist", id="before the lake"),
        pytest.param(NOW - SECOND, 3, "SNAPSHOT_EXPIRED", "oldest is 3", id="before what is kept"),
        pytest.param(
            NOW + SECOND, 3, "VALIDATION_FAILED", "2026-01-31T12:00:00.250Z", id="in the future"
        ),
    ],
)
def test_why_there_is_no_snapshot(at: Moment, oldest: int, code: str, says: str) -> None:
    error = no_snapshot(at, newest=7, oldest=oldest, now=NOW)

    field = "snapshot_id" if isinstance(at, int) else "snapshot_time"
    assert error.code == code
    assert error.message.startswith(f"{field}: ")
    assert error.context["field"] == field
    assert says in error.message


def test_what_is_kept_is_in_the_context() -> None:
    error = no_snapshot(2, newest=7, oldest=3, now=NOW)

    kept = {"newest_snapshot_id": 7, "oldest_snapshot_id": 3}
    assert error.context == {"field": "snapshot_id", **kept}
