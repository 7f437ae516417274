from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duckmesh_operator.conditions import (
    COMPACTOR_CONDITIONS,
    COMPACTOR_MEANINGS,
    CONDITIONS,
    MEANINGS,
    PROBLEMS,
    REASONS,
    say,
)
from duckmesh_operator.lag import CatalogHealth, LagTrack, Objective, step
from duckmesh_operator.model import parse_meta
from duckmesh_operator.status import (
    Problem,
    Situation,
    Worker,
    build_status,
    same,
)
from tests.contract.structural import schema
from tests.tenants import make_tenant, tenant_object
from tests.unit.operator.test_lag import report

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def worker(component: str, wanted: int, ready: int | None = None, **more: Any) -> Worker:
    ready = wanted if ready is None else ready
    settled = more.pop("settled", ready == wanted)
    return Worker(
        component=component,
        wanted=wanted,
        pods=more.pop("pods", wanted),
        ready=ready,
        settled=settled,
        exists=True,
        **more,
    )


def track(*reports: Any) -> LagTrack:
    found: LagTrack | None = None
    for one in reports or (report(0),):
        found = step(found, one, Objective())
    assert found is not None
    return found


def situation(spec: dict[str, Any] | None = None, **more: Any) -> Situation:
    tenant = make_tenant(spec)
    defaults: dict[str, Any] = {
        "meta": tenant.meta,
        "tenant": tenant,
        "previous": {},
        "catalog": CatalogHealth(ok=True),
        "installed": True,
        "workers": (worker("ingest", 2), worker("query", 1)),
        "track": track(),
        "version": "0.1.0",
        "endpoints": {"ingest": "http://acme-ingest.team.svc:8080"},
        "selector": "a=b",
    }
    return Situation(**(defaults | more))


DAMAGE = {"state": "Damaged", "message": "1 file of trips (3,000 rows) is missing"}


def debt(files: int, **more: Any) -> dict[str, Any]:
    """What maintenance says of the files that wait, in a lake that has no table with fewer."""
    return {"debt_at": report(0).now, "debt_files": files, "most_files": files} | more


def conditions(s: Situation) -> dict[str, tuple[str, str]]:
    found: Any = build_status(s, NOW)["conditions"]
    return {one["type"]: (one["status"], one["reason"]) for one in found}


def test_a_healthy_tenant_has_a_whole_status() -> None:
    status = build_status(situation(), NOW)

    assert conditions(situation()) == {
        "Ready": ("True", "AllReady"),
        "SpecValid": ("True", "Valid"),
        "CatalogReachable": ("True", "Reachable"),
        "StorageReachable": ("Unknown", "NotReported"),
        "Fresh": ("True", "WithinTarget"),
        "SnapshotHealthy": ("True", "Healthy"),
        "CompactionCurrent": ("Unknown", "NotReported"),
        "Progressing": ("False", "Settled"),
        "Suspended": ("False", "Active"),
        "Paused": ("False", "Managed"),
        "EgressRestricted": ("True", "Restricted"),
        "DeadLetters": ("Unknown", "NotReported"),
    }
    assert {key: status[key] for key in ("phase", "workers", "replicas", "readyReplicas")} == {
        "phase": "Ready",
        "workers": "3/3",
        "replicas": 1,
        "readyReplicas": 1,
    }
    assert status["observedAt"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("more", "phase", "expected"),
    [
        pytest.param(
            {"spec_problem": Problem(reason="PrefixInUse", message="m")},
            "Invalid",
            {"SpecValid": ("False", "PrefixInUse"), "Stalled": ("True", "PrefixInUse")},
            id="bad-spec",
        ),
        pytest.param(
            {"workers": (worker("ingest", 2, 1), worker("query", 1))},
            "Degraded",
            {"Ready": ("False", "WorkersNotReady"), "Reconciling": ("True", "RollingOut")},
            id="a-pod-is-gone",
        ),
        pytest.param(
            {"workers": (worker("ingest", 2, 2, settled=False), worker("query", 1))},
            "Ready",
            {"Ready": ("True", "AllReady"), "Progressing": ("True", "RollingOut")},
            id="rolling-with-all-ready",
        ),
        pytest.param(
            {"workers": (worker("ingest", 2, 0, stuck=True), worker("query", 1, 0))},
            "Starting",
            {"Ready": ("False", "RolloutStuck"), "Stalled": ("True", "RolloutStuck")},
            id="stuck",
        ),
        pytest.param(
            {
                "workers": (
                    worker("ingest", 2, 2, settled=False, stuck=True),
                    worker("query", 1),
                )
            },
            "Ready",
            {
                "Ready": ("True", "AllReady"),
                "Progressing": ("False", "RolloutStuck"),
                "Stalled": ("True", "RolloutStuck"),
            },
            id="stuck-while-those-of-before-serve",
        ),
        pytest.param(
            {"installed": False, "migration": "running", "workers": ()},
            "Migrating",
            {"Ready": ("False", "Migrating"), "Progressing": ("True", "Migrating")},
            id="migrating",
        ),
        pytest.param(
            {"installed": False, "migration": "failed", "workers": ()},
            "Failed",
            {"Ready": ("False", "MigrationFailed"), "Progressing": ("False", "MigrationFailed")},
            id="migration-failed",
        ),
        pytest.param(
            {"problems": (Problem(reason="NameConflict", message="m", stalled=True),)},
            "Conflict",
            {"Ready": ("False", "NameConflict"), "Stalled": ("True", "NameConflict")},
            id="conflict",
        ),
        pytest.param(
            {"problems": (Problem(reason="Waiting", message="m"),)},
            "Degraded",
            {"Ready": ("False", "Waiting"), "Reconciling": ("True", "Waiting")},
            id="waiting",
        ),
        pytest.param(
            {"catalog": CatalogHealth(ok=False, reason="Unreachable")},
            "Degraded",
            {"Ready": ("False", "Unreachable"), "CatalogReachable": ("False", "Unreachable")},
            id="catalog-silent",
        ),
        pytest.param(
            {"catalog": None, "track": None},
            "Ready",
            {
                "CatalogReachable": ("Unknown", "Pending"),
                "Fresh": ("Unknown", "NotReported"),
                "SnapshotHealthy": ("Unknown", "NotReported"),
            },
            id="nothing-known-yet",
        ),
        pytest.param(
            {"track": track(report(0, 6), report(40, 6))},
            "Ready",
            {"Fresh": ("False", "LagBreach")},
            id="breach",
        ),
        pytest.param(
            {"track": track(report(0, error="x"))},
            "Ready",
            {"Fresh": ("Unknown", "LakeUnreadable")},
            id="unreadable",
        ),
        pytest.param(
            {"track": track(report(9_999, 2))},
            "Ready",
            {"SnapshotHealthy": ("False", "Stale")},
            id="stale",
        ),
        pytest.param(
            {"track": track(report(0, snapshot_id=None))},
            "Ready",
            {"SnapshotHealthy": ("False", "Missing")},
            id="missing",
        ),
        pytest.param(
            {"track": track(report(0, **debt(161)))},
            "Ready",
            {"CompactionCurrent": ("False", "Behind")},
            id="many-small-files",
        ),
        pytest.param(
            {"track": track(report(0, **debt(160)))},
            "Ready",
            {"CompactionCurrent": ("True", "Current")},
            id="few-small-files",
        ),
        pytest.param(
            {"track": track(report(0, **debt(500, most_files=160)))},
            "Ready",
            {"CompactionCurrent": ("True", "Current")},
            id="small-files-of-many-tables",
        ),
        pytest.param(
            {"track": track(report(0, small_files=999))},
            "Ready",
            {"CompactionCurrent": ("Unknown", "NotReported")},
            id="nobody-counted",
        ),
        pytest.param(
            {"track": track(report(9_999, 2, integrity=DAMAGE))},
            "Ready",
            {"SnapshotHealthy": ("False", "Corrupt")},
            id="damaged-and-stale",
        ),
        pytest.param(
            {"track": track(report(0, committer_alive=False), report(60, committer_alive=False))},
            "Degraded",
            {"Ready": ("False", "NoCommitter")},
            id="nobody-commits",
        ),
        pytest.param(
            {"egress_restricted": False},
            "Ready",
            {"EgressRestricted": ("False", "PortsOpenAnywhere")},
            id="open-egress",
        ),
    ],
)
def test_each_trouble_has_its_condition(
    more: dict[str, Any], phase: str, expected: dict[str, tuple[str, str]]
) -> None:
    s = situation(**more)

    found = conditions(s)

    assert {kind: found.get(kind) for kind in expected} == expected
    assert build_status(s, NOW)["phase"] == phase
    assert not {"Stalled", "Reconciling"} <= set(found)


@pytest.mark.parametrize(
    ("spec", "more", "phase", "expected"),
    [
        pytest.param(
            {"suspend": True},
            {"workers": (worker("ingest", 0, pods=1, settled=False), worker("query", 0))},
            "Suspending",
            {"Progressing": ("True", "Stopping"), "Suspended": ("True", "Suspended")},
            id="suspending",
        ),
        pytest.param(
            {"suspend": True},
            {"workers": (worker("ingest", 0), worker("query", 0)), "installed": False},
            "Suspended",
            {"Ready": ("False", "Suspended"), "Progressing": ("False", "Settled")},
            id="suspended",
        ),
        pytest.param({"paused": True}, {}, "Paused", {"Paused": ("True", "Paused")}, id="paused"),
        pytest.param(
            {"deletionPolicy": "Delete"},
            {},
            "Ready",
            {"SpecValid": ("True", "Valid")},
            id="data-goes-with-it",
        ),
        pytest.param(
            {"deletionProtection": True},
            {},
            "Ready",
            {"DeletionProtected": ("True", "Protected")},
            id="protected",
        ),
        pytest.param(
            {"deletionProtection": True},
            {"protectable": False},
            "Ready",
            {"DeletionProtected": ("False", "ProtectionUnavailable")},
            id="protection-without-a-policy",
        ),
        pytest.param(
            {},
            {"protectable": False},
            "Ready",
            {"DeletionProtected": None},
            id="no-protection-asked-for",
        ),
        pytest.param(
            {"tables": [{"name": "t"}]},
            {},
            "Ready",
            {"TablesReady": ("False", "Applying")},
            id="declared-tables",
        ),
        pytest.param(
            {"tables": [{"name": "t"}], "paused": True},
            {},
            "Paused",
            {"TablesReady": ("False", "Paused")},
            id="declared-tables-paused",
        ),
        pytest.param(
            {"tables": [{"name": "t"}], "suspend": True},
            {"workers": (worker("ingest", 0), worker("query", 0))},
            "Suspended",
            {"TablesReady": ("False", "Suspended")},
            id="declared-tables-suspended",
        ),
        pytest.param(
            {"compaction": {"enabled": False}},
            {},
            "Ready",
            {"CompactionCurrent": ("Unknown", "Disabled")},
            id="no-compaction",
        ),
    ],
)
def test_what_the_spec_asks_for_is_told(
    spec: dict[str, Any],
    more: dict[str, Any],
    phase: str,
    expected: dict[str, tuple[str, str] | None],
) -> None:
    s = situation(spec, **more)

    assert {kind: conditions(s).get(kind) for kind in expected} == expected
    assert build_status(s, NOW)["phase"] == phase


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("False", "Applying")),
        ({"tables_digest": "old", "tables_ready": True}, ("False", "Applying")),
        ({"tables_digest": "d", "tables_ready": True}, ("True", "Applied")),
        ({"tables_digest": "d", "tables_problem": "table t: no"}, ("False", "Incompatible")),
    ],
)
def test_declared_tables_are_ready_when_the_report_is_about_this_declaration(
    said: dict[str, Any], expected: tuple[str, str]
) -> None:
    s = situation({"tables": [{"name": "t"}]}, tables_digest="d", track=track(report(0, **said)))

    assert conditions(s)["TablesReady"] == expected
    if expected[1] == "Incompatible":
        found: Any = build_status(s, NOW)["conditions"]
        (one,) = [one for one in found if one["type"] == "TablesReady"]
        assert one["message"].startswith("table t: no. Change spec.tables")


def test_without_declared_tables_nothing_is_said_about_them() -> None:
    said = {"tables_digest": "d", "tables_problem": "of an earlier spec"}

    assert "TablesReady" not in conditions(situation(track=track(report(0, **said))))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        pytest.param(None, ("Unknown", "NotReported"), id="a catalog of an earlier release"),
        pytest.param(0, ("False", "NoLetters"), id="none"),
        pytest.param(3, ("True", "LettersKept"), id="some"),
    ],
)
def test_dead_letters_are_a_condition_and_a_count(
    kept: int | None, expected: tuple[str, str]
) -> None:
    s = situation(track=track(report(0, dead_letters=kept)))
    status: Any = build_status(s, NOW)

    assert conditions(s)["DeadLetters"] == expected
    assert status["ingest"].get("deadLetters") == kept
    if kept:
        (one,) = [one for one in status["conditions"] if one["type"] == "DeadLetters"]
        assert "duckmesh dead-letters list" in one["message"]


def test_another_count_of_dead_letters_is_written_when_it_is_due() -> None:
    first = build_status(situation(track=track(report(0, dead_letters=3))), NOW)
    soon = situation(previous=first, track=track(report(10, dead_letters=4)))
    later = situation(previous=first, track=track(report(120, dead_letters=4)))
    none_left = situation(previous=first, track=track(report(10, dead_letters=0)))

    assert build_status(soon, NOW) == first
    assert build_status(later, NOW)["ingest"] == {**first["ingest"], "deadLetters": 4}
    assert build_status(none_left, NOW)["ingest"] == {**first["ingest"], "deadLetters": 0}


def test_every_condition_carries_the_generation_and_a_known_reason() -> None:
    meta = parse_meta(tenant_object(generation=7))

    status: Any = build_status(situation(meta=meta), NOW)

    assert status["observedGeneration"] == 7
    assert {one["observedGeneration"] for one in status["conditions"]} == {7}
    assert {one["reason"] for one in status["conditions"]} <= set(REASONS)


def test_a_message_of_any_length_leaves_the_status_as_the_schema_takes_it() -> None:
    problem = Problem(reason="Refused", message="no " * 5_000, stalled=True)

    status: Any = build_status(situation(problems=(problem,)), NOW)

    ready = next(one["message"] for one in status["conditions"] if one["type"] == "Ready")
    assert ready.startswith("no no")
    assert ready.endswith(" ...")
    assert len(ready) == 1_024


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = build_status(situation(), NOW)
    broken = (worker("ingest", 2, 1), worker("query", 1))

    second: Any = build_status(situation(previous=first, workers=broken), LATER)

    times = {one["type"]: one["lastTransitionTime"] for one in second["conditions"]}
    assert times["Ready"] == "2026-01-01T13:00:00Z"
    assert times["SpecValid"] == "2026-01-01T12:00:00Z"


def test_a_seeded_condition_gets_a_time_of_its_own() -> None:
    seed = {"type": "StorageReachable", "status": "Unknown", "reason": "Pending", "message": "m"}
    seed["lastTransitionTime"] = "1970-01-01T00:00:00Z"

    status: Any = build_status(situation(previous={"conditions": [seed]}), NOW)

    times = {one["type"]: one["lastTransitionTime"] for one in status["conditions"]}
    assert times["StorageReachable"] == "2026-01-01T12:00:00Z"


def test_moving_figures_alone_are_not_written_before_their_time() -> None:
    first = build_status(situation(), NOW)

    early = track(report(0), report(30, token=9, snapshot_id=4))
    assert same(build_status(situation(previous=first, track=early), NOW), first)

    due = track(report(0), report(61, token=9, snapshot_id=4))
    second: Any = build_status(situation(previous=first, track=due), NOW)
    assert second["snapshot"]["id"] == 4
    assert second["observedAt"] == "2026-01-01T00:01:01Z"


def test_an_idle_tenant_is_never_written_again() -> None:
    first = build_status(situation(), NOW)

    much_later = track(report(0), report(99_999))

    assert same(build_status(situation(previous=first, track=much_later), LATER), first)


def test_a_change_of_bucket_brings_all_figures() -> None:
    first = build_status(situation(), NOW)

    second: Any = build_status(
        situation(previous=first, track=track(report(0), report(5, 2, token=3))), NOW
    )

    assert second["ingest"]["lag"] == "2s"
    assert second["ingest"]["lagSeconds"] == pytest.approx(2.0)
    assert second["ingest"]["watermark"] == 3
    assert second["ingest"]["oldestPendingAt"] == "2026-01-01T00:00:03Z"


def test_the_order_of_conditions_says_nothing() -> None:
    one = build_status(situation(), NOW)
    other: Any = dict(one)
    other["conditions"] = list(reversed(other["conditions"]))

    assert same(one, other)


def test_the_current_version_follows_the_rollout() -> None:
    rolling = (worker("ingest", 2, settled=False), worker("query", 1))
    previous = {"version": {"current": "0.1.0", "target": "0.1.0"}}

    before = build_status(situation(version="0.2.0", workers=rolling, previous=previous), NOW)
    done = (worker("ingest", 2, version="0.2.0"), worker("query", 1, version="0.2.0"))
    after = build_status(situation(version="0.2.0", workers=done, previous=before), NOW)

    assert before["version"] == {"current": "0.1.0", "target": "0.2.0"}
    assert after["version"] == {"current": "0.2.0", "target": "0.2.0"}


def test_damage_is_shown_with_the_tables_it_takes() -> None:
    status: Any = build_status(situation(track=track(report(0, integrity=DAMAGE))), NOW)

    (found,) = [one for one in status["conditions"] if one["type"] == "SnapshotHealthy"]
    assert "1 file of trips (3,000 rows) is missing" in found["message"]
    assert status["snapshot"]["state"] == "Corrupt"


# -------------------------------------------------------------------- the object store


def store(state: str, **more: Any) -> LagTrack:
    """What the committer said at the start of the day, and one look at it 30 s later unless told otherwise."""
    since = report(0).now
    seen = {"store_state": state, "store_since": since, "store_at": since}
    return track(report(more.pop("at", 30), **(seen | more)))


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        pytest.param(store("ok"), ("True", "Reachable"), id="well"),
        pytest.param(store("unreachable"), ("False", "Unreachable"), id="silent"),
        pytest.param(store("access_denied"), ("False", "AccessDenied"), id="refused"),
        pytest.param(store("bucket_missing"), ("False", "BucketMissing"), id="no-bucket"),
        pytest.param(store("access_denied", at=61), ("Unknown", "NotReported"), id="old"),
        pytest.param(track(report(0)), ("Unknown", "NotReported"), id="never-said"),
        pytest.param(None, ("Unknown", "NotReported"), id="no-look"),
    ],
)
def test_the_store_is_as_the_committer_said_last(
    track: LagTrack | None, expected: tuple[str, str]
) -> None:
    assert conditions(situation(track=track))["StorageReachable"] == expected


def test_a_silent_store_is_told_by_name_and_since_when_and_takes_no_readiness() -> None:
    s = situation(track=store("unreachable"))

    found: Any = {one["type"]: one for one in build_status(s, NOW)["conditions"]}  # type: ignore[attr-defined]

    assert "Store default does not answer" in found["StorageReachable"]["message"]
    assert "since 2026-01-01T00:00:00Z" in found["StorageReachable"]["message"]
    assert found["Ready"]["status"] == "True"


def test_a_report_of_the_store_repeated_is_no_news() -> None:
    first = build_status(situation(track=store("ok")), NOW)
    again = store("ok", at=55, store_at=report(50).now)

    assert same(build_status(situation(previous=first, track=again), LATER), first)


def test_a_missing_secret_of_the_store_goes_before_what_the_committer_says() -> None:
    s = situation(track=store("ok"), store_key=False)

    assert conditions(s)["StorageReachable"] == ("False", "SecretMissing")
    assert conditions(s)["Ready"] == ("True", "AllReady")


# -------------------------------------------------------------------- what is not as it should be for long


def test_a_lake_that_stays_unreadable_is_the_catalog_s_trouble() -> None:
    shortly = track(report(0), report(5, error="x"), report(24, error="x"))
    for_long = track(report(0), report(5, error="x"), report(25, error="x"))
    again = track(report(0), report(5, error="x"), report(25, error="x"), report(26))

    assert conditions(situation(track=shortly))["CatalogReachable"] == ("True", "Reachable")
    assert conditions(situation(track=for_long))["CatalogReachable"] == ("False", "LakeUnreadable")
    assert conditions(situation(track=for_long))["Ready"] == ("False", "LakeUnreadable")
    assert conditions(situation(track=again))["Ready"] == ("True", "AllReady")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [({"error": "x"}, "LakeUnreadable"), ({"committer_alive": False}, "NoCommitter")],
)
def test_a_fresh_process_does_not_take_back_what_stays_so(
    trouble: dict[str, Any], reason: str
) -> None:
    for_long = track(report(0, **trouble), report(60, **trouble))
    first = build_status(situation(track=for_long), NOW)
    fresh = situation(previous=first, track=track(report(70, **trouble)))
    over = situation(previous=first, track=track(report(70)))

    assert conditions(fresh)["Ready"] == ("False", reason)
    assert conditions(over)["Ready"] == ("True", "AllReady")


def test_a_run_that_did_not_get_through_is_not_taken_for_settled() -> None:
    s = situation(failure="PATCH deployments: 503")

    found: Any = {one["type"]: one for one in build_status(s, NOW)["conditions"]}  # type: ignore[attr-defined]

    assert (found["Progressing"]["status"], found["Progressing"]["reason"]) == ("True", "Retrying")
    assert "PATCH deployments: 503" in found["Progressing"]["message"]
    assert found["Reconciling"]["status"] == "True"


# -------------------------------------------------------------------- the catalogue


def problem(reason: str, *, stalled: bool = False) -> Problem:
    return Problem(reason=reason, message="m.", stalled=stalled)


SILENT = ("Unreachable", "AccessDenied", "CatalogError", "SecretMissing")
TABLES = {"tables": [{"name": "t"}]}
UNREADABLE = track(report(0, error="x"), report(60, error="x"))
#: One of each kind of trouble and of health.
EVERYTHING = [
    situation(),
    situation(meta=parse_meta(tenant_object()), tenant=None),
    *(situation(spec_problem=problem(one)) for one in ("Invalid", "PrefixInUse", "DataOwned")),
    *(situation(problems=(problem(one, stalled=True),)) for one in ("NameConflict", "Refused")),
    *(situation(problems=(problem(one),)) for one in ("AccessDenied", "SecretMissing", "Waiting")),
    *(situation(catalog=CatalogHealth(ok=False, reason=one), track=None) for one in SILENT),
    situation(catalog=None, track=None),
    situation(track=UNREADABLE),
    situation(failure="f"),
    situation(installed=False, migration="running", workers=(), track=None),
    situation(installed=False, migration="failed", workers=(), track=None),
    situation(workers=(worker("ingest", 2, 1), worker("query", 1))),
    situation(workers=(worker("ingest", 2, 1, stuck=True), worker("query", 1))),
    situation(track=track(report(0, committer_alive=False), report(60, committer_alive=False))),
    *(situation(track=store(one)) for one in ("ok", "unreachable", "access_denied")),
    situation(track=store("bucket_missing")),
    situation(store_key=False),
    situation(track=track(report(0, 6))),
    situation(track=track(report(0, 60))),
    situation(track=track(report(9_999, 2))),
    situation(track=track(report(0, snapshot_id=None))),
    *(situation(track=track(report(0, dead_letters=n, **debt(n)))) for n in (0, 999)),
    situation(track=track(report(0, integrity=DAMAGE))),
    situation({"compaction": {"enabled": False}}),
    situation({"suspend": True, **TABLES}),
    situation({"paused": True, **TABLES}),
    *(
        situation({"deletionPolicy": "Delete"}, deletion=one, deletion_problem="p")
        for one in ("Stopping", "RemovingData", "RemovalFailed", "DataKept")
    ),
    *(situation({"deletionProtection": True}, protectable=one) for one in (True, False)),
    situation(egress_restricted=False),
    situation(TABLES),
    *(
        situation(
            TABLES,
            tables_digest="d",
            track=track(report(0, tables_digest="d", tables_ready=one, tables_problem="p")),
        )
        for one in (True, False)
    ),
]


def seeds(kind: str) -> set[tuple[str, str]]:
    """What the schema writes before the operator comes."""
    found: Any = schema(kind)["properties"]["status"]["default"]["conditions"]
    return {(one["type"], one["reason"]) for one in found}


def test_each_reason_of_the_catalogue_is_said_and_no_other() -> None:
    said = {(kind, one) for s in EVERYTHING for kind, (_, one) in conditions(s).items()}
    listed = {(kind, reason) for kind, cases in CONDITIONS.items() for reason in cases}

    assert said | seeds("tenant") == listed


def test_a_reason_has_one_status_and_its_message_an_end() -> None:
    for s in EVERYTHING:
        found: Any = build_status(s, NOW)["conditions"]
        for one in found:
            case = CONDITIONS[one["type"]][one["reason"]]
            assert one["status"] == case.status
            assert one["message"].endswith("."), one
            assert "{" not in one["message"]


def test_everything_is_described() -> None:
    assert set(MEANINGS) == set(CONDITIONS)
    assert set(COMPACTOR_MEANINGS) == set(COMPACTOR_CONDITIONS)
    assert set(PROBLEMS) <= REASONS


def test_what_is_not_in_the_catalogue_cannot_be_said() -> None:
    with pytest.raises(KeyError):
        say("Ready", "Sunny")
    with pytest.raises(ValueError, match=r"Sunny is not in conditions\.PROBLEMS"):
        problem("Sunny")
