"""Which Tenants a Compactor looks after, which of them need a run, how runs went."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duckmesh_operator.compaction import (
    HELD_AFTER,
    REST,
    RETRY_AFTER,
    RETRY_AT_MOST,
    SETTLE,
    Job,
    Need,
    Subject,
    choose,
    conclude,
    find_need,
    find_room,
    find_spent,
    is_run_of,
    mark_of,
    names_tenant,
    next_job,
    older_one,
    parse_job,
    read_run,
)
from duckmesh_operator.lag import LagReport
from duckmesh_operator.model import Compactor, parse_compactor
from tests.unit.operator.test_lag import report

MADE = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-05-{text}").replace(tzinfo=UTC)


def compactor(
    spec: dict[str, Any] | None = None, name: str = "night", created: str = "", uid: str = ""
) -> Compactor:
    meta = {
        "name": name,
        "namespace": "team",
        "uid": uid or f"uid-{name}",
        "generation": 1,
        "creationTimestamp": created or MADE.isoformat(),
    }
    return parse_compactor(
        {"metadata": meta, "spec": {"tenantRef": {"name": "acme"}} | (spec or {})}
    )


TRIGGER = {"trigger": {"smallFiles": 100, "deletedRatio": 0.2, "maxInterval": "24h"}}
NIGHTLY = {"schedule": "0 3 * * *"}
YEARLY = {"schedule": "0 0 1 1 *"}


def told(
    now: datetime, files: int = 0, *, ratio: float = 0, run: Any = None, **more: Any
) -> LagReport:
    """What a lake says, with its debt counted a second ago."""
    fields: dict[str, Any] = {
        "debt_at": now - timedelta(seconds=1),
        "debt_files": files,
        "debt_bytes": files * 1000,
        "most_files": files,
        "deleted_ratio": ratio,
        "run": run,
    }
    return report(0, **(fields | more))


def subject(found: LagReport | None = None, **more: Any) -> Subject:
    fields: dict[str, Any] = {"name": "acme", "uid": "u1", "created": MADE}
    return Subject(**(fields | {"report": found} | more))


def job(created: datetime, name: str = "night-0123456789ab", **more: Any) -> Job:
    fields: dict[str, Any] = {
        "name": name,
        "uid": f"uid-of-{name}",
        "owner": "uid-night",
        "tenant": "acme",
        "tenant_uid": "u1",
        "created": created,
        "generation": 1,
    }
    return Job(**(fields | more))


def run(finished: datetime, result: str = "Succeeded", **more: Any) -> dict[str, Any]:
    started = finished - timedelta(minutes=1)
    fields = {"id": "night-0123456789ab", "startedAt": started.isoformat(), "result": result}
    return fields | {"finishedAt": finished.isoformat(), "filesIn": 9, "filesOut": 1} | more


def need(
    spec: dict[str, Any], found: LagReport | None, now: datetime, *jobs: Job, **more: Any
) -> Need:
    return find_need(compactor(spec), subject(found, **more), jobs, now)


# -------------------------------------------------------------------- whose


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({"matchLabels": {}}, True),
        ({"matchLabels": {"team": "a"}}, True),
        ({"matchLabels": {"team": "a", "x": "y"}}, False),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["b"]}]}, False),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "other", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "team", "operator": "Resembles"}]}, False),
        (
            {
                "matchLabels": {"team": "a"},
                "matchExpressions": [{"key": "team", "operator": "DoesNotExist"}],
            },
            False,
        ),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(selector: dict[str, Any], chosen: bool) -> None:
    meta = compactor(NIGHTLY).meta
    raw = {"metadata": {"name": "c", "namespace": "team", "uid": "u"}}
    made = parse_compactor(raw | {"spec": {"tenantSelector": selector} | NIGHTLY})

    assert names_tenant(made, "acme", {"team": "a"}) is chosen
    assert meta.name == "night"


def test_of_two_compactors_the_older_one_acts_and_of_twins_the_first_by_name() -> None:
    old = compactor(NIGHTLY, "z-old", "2026-01-01T00:00:00Z")
    young = compactor(NIGHTLY, "a-young", "2026-02-01T00:00:00Z")
    twin = compactor(NIGHTLY, "b-twin", "2026-02-01T00:00:00Z")
    other = compactor(NIGHTLY | {"tenantRef": {"name": "beta"}}, "c", "2025-01-01T00:00:00Z")
    every = [old, young, twin, other]

    assert older_one(old, every, "acme", {}) == ""
    assert older_one(young, every, "acme", {}) == "z-old"
    assert older_one(twin, [young, twin], "acme", {}) == "a-young"
    assert older_one(young, [young, twin, other], "acme", {}) == ""


# -------------------------------------------------------------------- by debt


@pytest.mark.parametrize(
    ("files", "most", "ratio", "due"),
    [
        (100, 100, 0, True),
        (99, 99, 0, False),
        (500, 40, 0, False),  # in many tables, and few in each
        (20, 800, 0, False),  # one table has many, and they are merged
        (0, 0, 0.2, True),
        (0, 0, 0.19, False),
        (0, 0, float("nan"), False),
    ],
)
def test_debt_above_the_trigger_asks_for_a_run(
    files: int, most: int, ratio: float, due: bool
) -> None:
    now = at("01T13:00")

    found = need(TRIGGER, told(now, files, most_files=most, ratio=ratio), now)

    assert (found.due, found.behind) == (due, due)


def test_no_debt_is_known_of_a_lake_that_never_said_any() -> None:
    now = at("03T12:00")

    assert not need(TRIGGER, report(0), now).due
    assert not need(TRIGGER, None, now).behind
    assert not need(NIGHTLY | {"schedule": "@monthly"}, told(now, 9_999), now).due


def test_a_little_debt_waits_for_the_longest_interval() -> None:
    found = need(TRIGGER, told(at("02T11:00"), 5), at("02T11:00"))

    assert (found.due, found.behind, found.at) == (False, False, MADE + DAY)
    assert need(TRIGGER, told(at("02T12:00"), 5), at("02T12:00")).due
    assert not need(TRIGGER, told(at("02T12:00"), 0), at("02T12:00")).due


def test_the_interval_counts_from_the_last_run() -> None:
    ended = at("02T10:00")

    found = need(TRIGGER, told(at("02T12:00"), 5, run=run(ended)), at("02T12:00"))

    assert (found.due, found.at) == (False, ended + DAY)


def test_debt_that_a_run_left_is_not_its_work_again_before_a_rest() -> None:
    ended = at("02T10:00")

    soon = need(TRIGGER, told(ended + REST / 2, 200, run=run(ended)), ended + REST / 2)
    later = need(TRIGGER, told(ended + REST, 200, run=run(ended)), ended + REST)

    assert (soon.due, soon.behind, soon.at) == (False, True, ended + REST)
    assert later.due


def test_debt_counted_before_the_run_ended_says_nothing() -> None:
    ended = at("02T10:00")
    old = told(ended, 200, run=run(ended), debt_at=ended - timedelta(seconds=1))

    assert not need(TRIGGER, old, ended + REST).due


def test_a_run_that_stopped_half_way_is_followed_at_once_if_it_did_anything() -> None:
    ended = at("02T10:00")
    now = ended + timedelta(seconds=10)

    def due(**more: Any) -> bool:
        return need(TRIGGER, told(now, 200, run=run(ended, "Partial", **more)), now).due

    assert due(why="bytes")
    assert not due(why="bytes", filesIn=0)
    assert not due(why="stopped")
    assert not due(why="stuck", tables=["t"])
    assert not due()


# -------------------------------------------------------------------- by schedule


def test_a_scheduled_time_makes_one_run() -> None:
    before = need(NIGHTLY, told(at("02T02:59")), at("02T02:59"))
    then = need(NIGHTLY, told(at("02T03:00")), at("02T03:00"))
    running = need(NIGHTLY, told(at("02T03:01")), at("02T03:01"), job(at("02T03:00:01")))
    ended = job(at("02T03:00:01"), ended=at("02T03:05"))
    after = need(NIGHTLY, told(at("02T04:00")), at("02T04:00"), ended)

    assert (before.due, before.at) == (False, at("02T03:00"))
    assert (then.due, then.behind) == (True, True)
    assert (running.due, running.behind) == (False, True)
    assert (after.due, after.behind, after.at) == (False, False, at("03T03:00"))


def test_times_missed_while_no_operator_was_there_make_one_run() -> None:
    ended = job(at("02T03:00:01"), ended=at("02T03:05"))
    found = need(NIGHTLY, told(at("09T12:00")), at("09T12:00"), ended)
    made_up = job(at("09T12:00:01"), "night-1", ended=at("09T12:05"))

    assert found.due
    assert need(NIGHTLY, told(at("09T13:00")), at("09T13:00"), ended, made_up).at == at("10T03:00")


def test_times_before_a_tenant_or_the_compactor_was_there_are_not_made_up_for() -> None:
    assert not need(NIGHTLY, told(at("01T12:01")), at("01T12:01")).due
    young = at("05T12:00")
    assert not need(NIGHTLY, told(at("05T12:01")), at("05T12:01"), created=young).due


def test_a_run_that_only_the_lake_remembers_counts() -> None:
    found = told(at("02T04:00"), run=run(at("02T03:02")))

    assert need(NIGHTLY, found, at("02T04:00")).at == at("03T03:00")


def test_a_check_of_all_files_is_made_when_its_time_comes() -> None:
    spec = NIGHTLY | {"integrity": {"schedule": "0 5 * * *"}}
    nightly = job(at("02T03:00:01"), ended=at("02T03:05"))
    failed = job(at("02T05:00:01"), "night-2", ended=at("02T05:05"), deep=True, why="X")
    checked = {"integrity": {"checkedAt": at("02T05:04").isoformat(), "mode": "deep"}}

    found = need(spec, told(at("02T05:00")), at("02T05:00"), nightly)
    assert (found.due, found.deep) == (True, True)
    found = need(spec, told(at("02T06:00")), at("02T06:00"), nightly, failed)
    assert (found.due, found.deep) == (True, True)
    seen = told(at("02T06:00"), run=run(at("02T05:05")), **checked)
    assert not need(spec, seen, at("02T06:00")).due
    cheap = {"integrity": {"checkedAt": at("02T05:04").isoformat(), "mode": "cheap"}}
    assert need(spec, told(at("02T06:00"), **cheap), at("02T06:00"), nightly).deep
    both = cheap | {"deep": checked["integrity"]}
    assert not need(spec, told(at("02T06:00"), **both), at("02T06:00"), nightly).due


def test_the_next_check_counts_from_what_a_check_told_and_not_from_its_job() -> None:
    spec = YEARLY | {"integrity": {"schedule": "0 * * * *"}}
    long = job(at("02T05:00:01"), ended=at("02T07:31"), deep=True)
    checked = {"deep": {"checkedAt": at("02T07:30").isoformat(), "mode": "deep"}}

    found = need(spec, told(at("02T07:40"), **checked), at("02T07:40"), long)

    assert (found.due, found.at) == (False, at("02T08:00"))


@pytest.mark.parametrize(("attempt", "wait"), [(1, 1), (2, 2), (9, 60)])
@pytest.mark.parametrize("result", ["Partial", "Succeeded", ""])
def test_a_check_that_told_nothing_comes_again_later_each_time(
    result: str, attempt: int, wait: int
) -> None:
    spec = YEARLY | {"integrity": {"schedule": "0 5 * * *"}}
    ended = at("02T05:05")
    cut = job(at("02T05:00:01"), ended=ended, deep=True, attempt=attempt)
    later = job(at("02T05:05:10"), "night-2", ended=at("02T05:05:20"))
    then = ended + timedelta(minutes=wait)
    almost = then - timedelta(seconds=1)
    said = {"run": run(ended, result)} if result else {}

    early = need(spec, told(almost, **said), almost, cut)
    found = need(spec, told(then, **said), then, cut)

    assert (early.due, early.deep, early.at) == (False, False, then)
    assert (found.due, found.deep, found.attempt) == (True, True, attempt + 1)
    after = need(spec, told(then, **said), then, cut, later)
    assert (after.due, after.deep, after.attempt) == (True, True, attempt + 1)
    old = replace(cut, generation=7)
    assert need(spec, told(almost, **said), almost, old).deep


def test_a_check_that_was_told_is_not_made_again_since_the_run_failed_after_it() -> None:
    spec = YEARLY | {"integrity": {"schedule": "0 5 * * *"}}
    failed = job(at("02T05:00:01"), ended=at("02T05:05"), deep=True, why="X")
    checked = {"deep": {"checkedAt": at("02T05:04").isoformat(), "mode": "deep"}}
    now = at("02T06:00")

    found = need(spec, told(now, **checked), now, failed)

    assert (found.due, found.deep, found.attempt) == (True, False, 2)


# -------------------------------------------------------------------- after a failure


@pytest.mark.parametrize(("attempt", "wait"), [(1, 1), (2, 2), (3, 4), (7, 60), (50, 60)])
def test_a_failed_run_comes_again_later_each_time(attempt: int, wait: int) -> None:
    ended = at("02T03:05")
    failed = job(at("02T03:00"), ended=ended, why="BackoffLimitExceeded", attempt=attempt)
    then = ended + timedelta(minutes=wait)
    almost = then - timedelta(seconds=1)

    early = need(NIGHTLY, told(almost), almost, failed)
    found = need(NIGHTLY, told(then), then, failed)

    assert (early.due, early.at) == (False, then)
    assert (found.due, found.attempt) == (True, attempt + 1)
    assert RETRY_AFTER <= timedelta(minutes=wait) <= RETRY_AT_MOST


def test_another_spec_is_tried_at_once() -> None:
    failed = job(at("02T03:00"), ended=at("02T03:05"), why="X", attempt=9, generation=7)
    now = at("02T03:06")

    found = need(NIGHTLY, told(now), now, failed)

    assert (found.due, found.attempt) == (True, 1)


def test_a_failure_that_only_the_lake_remembers_comes_again() -> None:
    failed = told(at("02T04:00"), run=run(at("02T03:05"), "Failed", error="no room"))

    found = need(NIGHTLY, failed, at("02T04:00"))

    assert (found.due, found.attempt) == (True, 2)
    assert found.last is not None
    assert found.last.error == "no room"


def test_debt_and_schedule_do_not_shorten_the_wait() -> None:
    failed = job(at("02T03:00"), ended=at("02T03:05"), why="X", attempt=7)
    now = at("02T03:30")

    assert not need(NIGHTLY | TRIGGER, told(now, 500), now, failed).due


# -------------------------------------------------------------------- how it went


def test_the_lake_tells_better_than_the_job() -> None:
    ended = job(at("02T03:00"), ended=at("02T03:05"), why="BackoffLimitExceeded")
    seen = subject(told(at("02T03:06"), run=run(at("02T03:04"), "Partial")))

    found = conclude(ended, read_run(seen), at("02T03:05"))

    assert found is not None
    assert (found.result, found.files_in) == ("Partial", 9)


def test_a_run_that_took_too_long_failed_whatever_it_said() -> None:
    late = job(at("02T03:00"), ended=at("02T05:00"), why="DeadlineExceeded")
    now = at("02T05:00:10")

    found = need(NIGHTLY, told(now, run=run(at("02T05:00"), "Partial", why="stopped")), now, late)

    assert found.last is not None
    assert (found.last.result, found.last.files_in) == ("Failed", 9)
    assert "took too long" in found.last.error
    assert (found.due, found.at) == (False, at("02T05:01"))


def test_a_name_that_comes_again_has_not_the_result_of_the_one_before() -> None:
    before = run(at("02T03:00:30"), "Partial")
    again = job(at("02T04:00"), ended=at("02T04:05"))

    early = need(NIGHTLY, told(at("02T04:05"), run=before), at("02T04:05"), again)
    found = need(NIGHTLY, told(at("02T04:06"), run=before), at("02T04:06"), again)

    assert (early.settling, early.last) == (True, None)
    assert found.last is not None
    assert (found.last.result, found.last.started) == ("Succeeded", again.created)


def test_a_job_that_just_ended_is_given_time_to_be_told_of() -> None:
    ended = job(at("02T03:00"), ended=at("02T03:05"), why="BackoffLimitExceeded")

    assert conclude(ended, None, at("02T03:05")) is None
    found = conclude(ended, None, at("02T03:05") + SETTLE)
    assert found is not None
    assert found.result == "Failed"
    assert "BackoffLimitExceeded" in found.error
    assert conclude(job(at("02T03:00")), None, at("09T00:00")) is None
    waiting = need(NIGHTLY, told(at("02T03:05")), at("02T03:05"), ended)
    assert (waiting.due, waiting.behind, waiting.at) == (False, True, at("02T03:05") + SETTLE)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"finishedAt": "soon", "result": "Succeeded"},
        {"finishedAt": "2026-01-01T00:00:00", "result": "Succeeded"},
        {"finishedAt": "0001-01-01T00:00:00Z", "result": "Succeeded"},
        {"finishedAt": 7, "result": "Succeeded"},
        {"finishedAt": "2026-01-01T00:00:00Z", "result": "Great"},
    ],
)
def test_what_a_lake_says_in_no_known_words_counts_as_not_said(raw: Any) -> None:
    assert read_run(subject(report(0, run=raw))) is None


def test_figures_that_cannot_be_are_bounded() -> None:
    wild = run(
        at("02T03:00"), filesIn=10**30, filesOut=-4, bytesRewritten="many", error="x" * 9_999
    )

    found = read_run(subject(report(0, run=wild)))

    assert found is not None
    assert (found.files_in, found.files_out, found.bytes_rewritten) == (2**53, 0, 0)
    assert len(found.error) == 500


def test_a_run_is_known_by_its_name() -> None:
    mine, names = compactor(NIGHTLY).meta, ("night-0123456789ab", "night-x-0123456789ab", "night")
    runs = [read_run(subject(report(0, run=run(at("02T03:00"), id=name)))) for name in names]

    assert [is_run_of(mine, one) for one in runs if one is not None] == [True, False, False]


# -------------------------------------------------------------------- which first, under which name


def test_the_most_useful_go_first_and_none_twice() -> None:
    now = at("02T12:00")
    needs = [
        find_need(
            compactor(TRIGGER), subject(told(now, files), name=name, uid=name, **more), (), now
        )
        for name, files, more in (
            ("a", 150, {}),
            ("b", 900, {}),
            ("c", 150, {}),
            ("d", 9_000, {"skipped": "suspended"}),
            ("e", 9_000, {"busy": True}),
            ("f", 0, {}),
        )
    ]

    assert [one.subject.name for one in choose(needs)] == ["b", "a", "c"]
    assert {one.subject.name: one.behind for one in needs}["d"]  # its debt is there


def test_there_is_room_for_as_many_as_may_run_beside_those_without_a_pod() -> None:
    now = at("02T12:00")
    up = job(now - DAY, "a")
    young = job(now - HELD_AFTER / 2, "b", up=False)
    held = [job(now - HELD_AFTER, f"c{number}", up=False) for number in range(20)]
    three = compactor(TRIGGER | {"concurrency": 3})

    assert find_room(three, [], now) == 3
    assert find_room(three, [up, young], now) == 1
    assert find_room(three, [up, young, *held[:5]], now) == 1
    assert find_room(three, [up, young, *held], now) == 0  # they may all come up at once


def test_a_time_that_comes_for_a_tenant_without_runs_is_no_work() -> None:
    now = at("02T03:00")

    assert not need(NIGHTLY, told(now), now, skipped="paused").behind
    assert need(NIGHTLY, told(now), now).behind


def test_the_next_run_has_one_name_until_it_is_there() -> None:
    now, spec = at("02T03:00"), compactor(NIGHTLY)
    first = next_job(spec, need(NIGHTLY, told(now), now))
    again = next_job(spec, need(NIGHTLY, told(now, 77), now + timedelta(minutes=3)))
    made = job(now, first, ended=at("02T03:05"))
    second = next_job(spec, need(NIGHTLY, told(at("03T03:00")), at("03T03:00"), made))
    other = next_job(spec, need(NIGHTLY, told(now), now, uid="u2"))

    gone = told(at("02T03:30"), run=run(at("02T03:29"), "Partial", id=second))
    third = next_job(spec, need(NIGHTLY, gone, at("03T03:00"), made))
    assert third not in (first, second)  # the second was removed before its end, and told of itself
    assert first == again
    assert len({first, second, other}) == 3
    assert first.startswith("night-")
    longest = next_job(compactor(NIGHTLY, "n" * 40), need(NIGHTLY, told(now), now))
    assert len(longest) + len("-abcde") <= 63


# -------------------------------------------------------------------- history


def spent(limit: int, found: LagReport | None, *jobs: Job) -> list[str]:
    now = at("09T12:00")
    needs = [find_need(compactor(NIGHTLY), subject(found), jobs, now)]
    return [one.name for one in find_spent(needs, jobs, limit, now)]


def test_a_few_ended_jobs_of_each_tenant_are_kept() -> None:
    jobs = [job(at(f"0{day}T03:00"), f"n{day}", ended=at(f"0{day}T03:05")) for day in (2, 3, 4, 5)]
    running = job(at("06T03:00"), "n6")
    gone = job(at("02T03:00"), "x", ended=at("02T03:05"), tenant_uid="gone")

    assert spent(2, None, *jobs, running, gone) == ["n3", "n2"]
    assert spent(0, None, *jobs, gone) == ["x", "n4", "n3", "n2"]


def test_the_newest_stays_while_nothing_else_tells_how_it_went() -> None:
    name = "night-0123456789ab"
    ended = job(at("02T03:00"), name, ended=at("02T03:05"))
    late = job(at("02T03:00"), name, ended=at("02T03:05"), why="DeadlineExceeded")
    now = at("02T04:00")

    assert spent(0, told(now, run=run(at("02T03:05"))), ended) == [name]
    assert spent(0, told(now), ended) == []
    assert spent(0, told(now, run=run(at("02T03:05"), "Failed")), ended) == []
    assert spent(0, told(now, run=run(at("02T03:05"))), late) == []
    assert spent(0, told(now, run=run(at("02T02:05"))), ended) == []  # of one before by this name


def test_a_job_that_was_to_check_all_files_stays_while_nobody_tells_of_it() -> None:
    spec = YEARLY | {"integrity": {"schedule": "0 5 * * *"}}
    deep = job(at("02T03:00"), "n1", ended=at("02T03:05"), deep=True)
    newer = job(at("02T04:00"), ended=at("02T04:05"))
    checked = {"deep": {"checkedAt": at("02T03:04").isoformat(), "mode": "deep"}}
    now = at("02T05:00")

    def left(**more: Any) -> set[str]:
        found = need(spec, told(now, run=run(at("02T04:05")), **more), now, deep, newer)
        return {"n1", newer.name} - {one.name for one in find_spent([found], [deep, newer], 0, now)}

    assert left() == {"n1"}
    assert left(**checked) == set()


def test_a_job_that_has_just_ended_is_not_removed_yet() -> None:
    now = at("02T03:05")
    ended = job(at("02T03:00"), ended=now - SETTLE / 2, tenant_uid="gone")

    assert find_spent([], [ended], 0, now) == []
    assert find_spent([], [ended], 0, now + SETTLE) == [ended]


# -------------------------------------------------------------------- what the API server says


def test_a_job_is_read_as_it_was_made() -> None:
    owner = {"kind": "Compactor", "name": "night", "uid": "uid-night"}
    meta: dict[str, Any] = {
        "name": "night-1",
        "uid": "u",
        "creationTimestamp": "2026-05-02T03:00:00Z",
        "labels": {"duckmesh.io/tenant": "acme", "duckmesh.io/tenant-uid": "u1"},
        "annotations": {
            "duckmesh.io/attempt": "3",
            "duckmesh.io/compactor-generation": "2",
            "duckmesh.io/integrity": "Deep",
        },
        "ownerReferences": [{"kind": "Other"}, owner],
    }
    ended = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    status: dict[str, Any] = {
        "conditions": [ended | {"lastTransitionTime": "2026-05-02T05:00:00Z"}]
    }

    found = parse_job({"metadata": meta, "status": status})

    assert found == Job(
        name="night-1",
        uid="u",
        owner="uid-night",
        tenant="acme",
        tenant_uid="u1",
        created=at("02T03:00"),
        ended=at("02T05:00"),
        why="DeadlineExceeded",
        attempt=3,
        generation=2,
        deep=True,
        up=False,
    )
    for counted in ("ready", "succeeded", "failed"):
        up = parse_job({"metadata": meta, "status": {counted: 1}})
        assert up is not None
        assert (up.up, up.ended) == (True, None)
    waiting = parse_job({"metadata": meta, "status": {"active": 1, "ready": 0}})
    assert waiting is not None
    assert not waiting.up
    soon = {"type": "FailureTarget", "lastTransitionTime": "2026-05-02T04:59:00Z"}
    dying = parse_job({"metadata": meta, "status": {"conditions": [ended | soon]}})
    assert dying is not None
    assert (dying.ended, dying.why) == (at("02T04:59"), "DeadlineExceeded")
    assert parse_job({"metadata": meta | {"ownerReferences": []}}) is None
    stranger = parse_job({"metadata": meta | {"annotations": {"duckmesh.io/attempt": "-x"}}})
    assert stranger is not None
    assert (stranger.attempt, stranger.ended, stranger.why) == (1, None, "")


def test_only_what_decides_makes_a_compactor_due() -> None:
    now, spec = at("02T12:00"), compactor(TRIGGER)

    def mark(found: LagReport | None) -> object:
        return mark_of(spec, find_need(spec, subject(found), (), now))

    assert mark(told(now, 10)) == mark(told(now, 60)) == mark(told(now + DAY, 60))
    changed = [
        mark(None),
        mark(report(0)),
        mark(told(now, 0)),
        mark(told(now, 100)),
        mark(told(now, 10, run=run(now))),
        mark(told(now, 10, deep={"checkedAt": now.isoformat()})),
    ]
    assert all(one != mark(told(now, 10)) for one in changed)
    assert len({repr(one) for one in changed}) == len(changed)
