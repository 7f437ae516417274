from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_operator import lag
from duckmesh_operator.errors import (
    Conflict,
    Failing,
    Forbidden,
    OperatorError,
    SecretMissing,
    Unavailable,
)
from duckmesh_operator.lag import (
    REFRESH,
    CatalogHealth,
    LagBoard,
    LagReport,
    LagTrack,
    Objective,
    bucket_of,
    catalog_health,
    step,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
OBJECTIVE = Objective(target_ms=5_000, sustained_ms=30_000, max_age_ms=60_000)


def report(at: float, lag: float | None = None, **more: Any) -> LagReport:
    """A look `at` seconds after the start."""
    now = START + timedelta(seconds=at)
    defaults: dict[str, Any] = {
        "lake": "lake_1",
        "tenant": "team/acme",
        "tenant_uid": "u1",
        "now": now,
        "token": 1,
        "pending_rows": 0 if lag is None else 1,
        "oldest_pending_at": None if lag is None else now - timedelta(seconds=lag),
        "snapshot_id": 1,
        "snapshot_at": START,
        "committer": "acme-ingest-0",
        "committer_alive": True,
    }
    return LagReport(**(defaults | more))


def walk(*reports: LagReport) -> LagTrack:
    track: LagTrack | None = None
    for one in reports:
        track = step(track, one, OBJECTIVE)
    assert track is not None
    return track


@pytest.mark.parametrize(
    ("lag_s", "label"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (1.2, "1s"),
        (2, "2s"),
        (5, "5s"),
        (12, "10s"),
        (25, "30s"),
        (70, "1m"),
        (200, "5m"),
        (1000, "15m"),
        (3600, "1h"),
        (3601, ">1h"),
    ],
)
def test_the_nearest_bucket_is_shown(lag_s: float, label: str) -> None:
    assert bucket_of(lag_s) == label


def test_a_bucket_goes_up_at_once_and_down_after_ten_seconds() -> None:
    assert walk(report(0), report(1, 5)).bucket == "5s"
    assert walk(report(0, 5), report(1, 0.1), report(9, 0.1)).bucket == "5s"
    assert walk(report(0, 5), report(1, 0.1), report(11, 0.1)).bucket == "0s"


def test_a_rise_in_between_starts_the_ten_seconds_again() -> None:
    track = walk(report(0, 5), report(1, 0.1), report(6, 5), report(7, 0.1), report(12, 0.1))

    assert track.bucket == "5s"


@pytest.mark.parametrize(
    ("reports", "lag_class"),
    [
        pytest.param([report(0, 4)], "ok", id="within"),
        pytest.param([report(0, 6)], "warn", id="above"),
        pytest.param([report(0, 6), report(31, 6)], "breach", id="sustained"),
        pytest.param([report(0, 6), report(10, 1), report(31, 6)], "warn", id="interrupted"),
        pytest.param([report(0, 36)], "breach", id="known-from-the-row-after-a-restart"),
        pytest.param([report(0, 6), report(40)], "ok", id="caught-up"),
    ],
)
def test_the_class_follows_target_and_time(reports: list[LagReport], lag_class: str) -> None:
    assert walk(*reports).lag_class == lag_class


def test_a_lake_that_cannot_be_read_is_unknown() -> None:
    track = walk(report(0, 6), report(1, error="55P03: lock"))

    assert (track.lag_class, track.snapshot_state) == ("unknown", "")


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (report(10), "Healthy"),
        (report(100), "Healthy"),
        (report(100, 2), "Stale"),
        (report(0, snapshot_id=None), "Missing"),
    ],
)
def test_a_snapshot_is_stale_only_while_rows_wait(one: LagReport, state: str) -> None:
    assert walk(one).snapshot_state == state


def test_a_missing_committer_counts_after_a_hand_over_would_be_done() -> None:
    gone = {"committer_alive": False}

    assert not walk(report(0, **gone), report(19, **gone)).headless
    assert walk(report(0, **gone), report(20, **gone)).headless
    assert not walk(report(0, **gone), report(10), report(20, **gone)).headless
    assert walk(report(0, **gone)).committer == ""


def board() -> LagBoard:
    made = LagBoard()
    made.watch("u1", tenant="team/acme", catalog="default", objective=OBJECTIVE)
    return made


def test_a_status_is_due_when_something_shown_changes() -> None:
    made = board()

    assert made.update("default", [report(0)]) == ["team/acme"]
    assert made.update("default", [report(5)]) == []
    assert made.update("default", [report(10, 2)]) == ["team/acme"]
    assert made.update("default", [report(11, 2)]) == []


def test_a_status_is_due_every_minute_while_commits_happen_or_rows_wait() -> None:
    made = board()
    made.update("default", [report(0)])

    assert made.update("default", [report(61)]) == []
    assert made.update("default", [report(62, token=2)]) == ["team/acme"]
    assert made.update("default", [report(90, token=3)]) == []
    assert made.update("default", [report(123, token=3)]) == ["team/acme"]


def test_lakes_of_nobody_and_of_another_catalog_are_ignored() -> None:
    made = board()

    assert made.update("default", [report(0, tenant_uid="u2")]) == []
    assert made.update("other", [report(0)]) == []
    assert made.track("u1") is None


def test_a_report_is_known_before_its_tenant_is() -> None:
    made = LagBoard()
    made.update("default", [report(0, 2)])

    made.watch("u1", tenant="team/acme", catalog="default", objective=OBJECTIVE)

    track = made.track("u1")
    assert track is not None
    assert track.bucket == "2s"


def test_a_catalog_that_falls_silent_makes_all_its_tenants_due_once() -> None:
    made = board()
    made.update("default", [report(0)])
    silent = CatalogHealth(ok=False, reason="Unreachable")

    assert made.fail("default", silent) == ["team/acme"]
    assert made.fail("default", silent) == []
    assert made.track("u1") is None
    assert made.update("default", [report(1)]) == ["team/acme"]


def test_a_forgotten_tenant_has_no_lag() -> None:
    made = board()
    made.update("default", [report(0)])

    made.forget("team/acme", but="u1")
    assert [name for name, _ in made.tracks()] == ["team/acme"]
    made.forget("team/acme")
    assert made.tracks() == []


# -------------------------------------------------------------------- any course of lag

LABELS = [label for label, _ in lag._BUCKETS] + [">1h"]
#: Seconds between two looks, and the lag at each in seconds.
COURSES = st.lists(
    st.tuples(st.floats(0.5, 20), st.one_of(st.none(), st.floats(0, 5_000))),
    min_size=1,
    max_size=60,
)


def looks(course: list[tuple[float, float | None]]) -> list[LagReport]:
    at, found = 0.0, []
    for pause, lag_s in course:
        at += pause
        found.append(report(at, lag_s))
    return found


def rank(label: str) -> int:
    return LABELS.index(label)


@settings(max_examples=50, deadline=None)
@given(COURSES)
def test_a_bucket_goes_up_at_once_and_down_ten_seconds_after_the_last_higher_look(
    course: list[tuple[float, float | None]],
) -> None:
    track: LagTrack | None = None
    seen: list[LagReport] = []
    for one in looks(course):
        seen.append(one)
        track = step(track, one, OBJECTIVE)
        lately = [look for look in seen if one.now - look.now < timedelta(seconds=10)]
        assert track.bucket == bucket_of(max(look.lag_s for look in lately))


@settings(max_examples=50, deadline=None)
@given(COURSES)
def test_a_status_is_due_for_what_is_shown_and_else_once_a_minute(
    course: list[tuple[float, float | None]],
) -> None:
    made = board()
    last_due: datetime | None = None
    shown: object = None
    told: object = None
    for one in looks(course):
        due = made.update("default", [one])
        track = made.track("u1")
        assert track is not None
        changed, shown = track.shown != shown, track.shown
        if due and not changed:
            assert last_due is not None
            assert one.now - last_due >= REFRESH
            assert one.lag_s > 0 or track.moving != told
        assert due or not changed
        last_due, told = (one.now, track.moving) if due else (last_due, told)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 5_000), st.floats(0, 5_000))
def test_a_longer_lag_has_no_lower_bucket(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))

    assert rank(bucket_of(shorter)) <= rank(bucket_of(longer))


# -------------------------------------------------------------------- what a failed look says


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("x"), "Unreachable"),
        (Conflict("x"), "Unreachable"),
        (Forbidden("x"), "AccessDenied"),
        (Failing("x"), "CatalogError"),
        (SecretMissing("x"), "SecretMissing"),
    ],
)
def test_a_catalog_fails_in_ways_that_are_told_apart(error: OperatorError, reason: str) -> None:
    assert catalog_health(error) == CatalogHealth(ok=False, reason=reason)


def test_a_store_that_changes_makes_a_status_due() -> None:
    made = board()
    well = {"store_state": "ok", "store_since": START, "store_at": START}
    made.update("default", [report(0, **well)])

    assert made.update("default", [report(30, **(well | {"store_at": report(30).now}))]) == []
    denied = {"store_state": "access_denied", "store_since": START, "store_at": report(40).now}
    assert made.update("default", [report(40, **denied)]) == ["team/acme"]
    assert made.update("default", [report(101, **denied)]) == [
        "team/acme"
    ]  # nobody says it any more
