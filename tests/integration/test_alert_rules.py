"""Each alert fires, stays silent, resolves, and does what it should without data, as Prometheus itself computes it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from duckmesh_operator import metrics as operator_metrics
from duckmesh_runtime.errors import CATALOGUE
from tests.pages import DOCS, ROOT
from tests.tools import PROMTOOL, have

RULES = ROOT / "charts" / "duckmesh" / "rules" / "duckmesh.yaml"
PARTS = ("Meaning", "Impact", "Diagnosis", "Mitigation", "Verification", "Escalation")
Series = Mapping[str, str]


def all_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rules() -> dict[str, dict[str, Any]]:
    """By alert."""
    return {rule["alert"]: rule for rule in all_rules() if "alert" in rule}


def recorded() -> list[dict[str, Any]]:
    """What alerts are computed from."""
    return [rule for rule in all_rules() if "record" in rule]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One alert; a sample a minute, times in minutes.

    Attributes:
        fires: Series that make it fire, then not any more.
        at: When it fires.
        gone: When it does not any more.
        silent: Series that are near to it and never make it fire.
        labels: What the alert carries besides its severity.
        value: How the message shows the value.
        without_data: It fires when nothing is scraped.
    """

    fires: Series
    at: int
    gone: int
    silent: Series
    labels: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    without_data: bool = False


POD = 'namespace="duckmesh-system", pod="op-0"'
ACME = 'namespace="shop", pod="acme-ingest-0", tenant="shop/acme"'
OTHER = 'namespace="shop", pod="acme-ingest-1", tenant="shop/acme"'
QUERY = 'namespace="shop", pod="beta-query-0", tenant="shop/beta"'
OF_ACME = {"tenant": "shop/acme"}


def trouble(condition: str, reason: str, tenant: str = "shop/acme") -> str:
    labels = f'{POD}, tenant="{tenant}", condition="{condition}", reason="{reason}"'
    return f"duckmesh_operator_tenant_condition{{{labels}}}"


def failing_runs(condition: str = "LastRunSucceeded", reason: str = "Failed") -> str:
    labels = f'{POD}, compactor="shop/nightly", condition="{condition}", reason="{reason}"'
    return f"duckmesh_operator_compactor_condition{{{labels}}}"


def requests(kind: str, code: str, more: str = ACME) -> str:
    return f'duckmesh_{kind}_requests_total{{{more}, code="{code}"}}'


def failing(per_minute: float, minutes: int, *, of: float = 200, rest: int = 0) -> dict[str, str]:
    """Writes of a Tenant, of which so many a minute fail, and then none any more."""
    whole = minutes + rest
    return {
        requests("ingest", "OK"): f"0+{of - per_minute}x{whole}",
        requests("ingest", "CATALOG_UNAVAILABLE"): (
            f"0+{per_minute}x{minutes} {per_minute * minutes}x{rest}"
        ),
    }


def lagging(values: str, tenant: str = "shop/acme") -> dict[str, str]:
    """A Tenant with a target of 60 s."""
    return {
        f'duckmesh_operator_tenant_lag_seconds{{{POD}, tenant="{tenant}"}}': values,
        f'duckmesh_operator_tenant_lag_target_seconds{{{POD}, tenant="{tenant}"}}': "60x1000",
    }


CASES = {
    "DuckmeshBudgetBurnsFast": Case(
        fires=failing(20, 40, rest=80),
        at=30,
        gone=85,
        silent={
            **failing(1, 100),  # five times as fast as it may
            requests("ingest", "VALIDATION_FAILED"): "0+100x100",
            # Two of three fail, but they are few.
            requests("query", "OK", QUERY): "0x20 1x20 1x60",
            requests("query", "INTERNAL", QUERY): "0x10 1x30 2x60",
            **lagging("0x45 90x2 0x53"),
            **lagging("90x100", "shop/idle"),
            trouble("Ready", "Suspended", "shop/idle"): "1x100",
        },
        labels={**OF_ACME, "objective": "writes"},
        value="100",
    ),
    "DuckmeshBudgetBurnsSlowly": Case(
        fires=failing(1, 60, rest=400),
        at=30,
        gone=430,
        silent={**failing(0.1, 100), **lagging("0x100"), **lagging("0x100", "shop/beta")},
        labels={**OF_ACME, "objective": "writes"},
        value="5",
    ),
    "DuckmeshOperatorDown": Case(
        fires={f"duckmesh_operator_lease_held{{{POD}}}": "1 _x20 1x20"},
        at=15,
        gone=25,
        silent={f"duckmesh_operator_lease_held{{{POD}}}": "0x100"},
        without_data=True,
    ),
    "DuckmeshOperatorNoLeader": Case(
        fires={f"duckmesh_operator_lease_held{{{POD}}}": "1x5 0x10 1x10"},
        at=10,
        gone=18,
        silent={
            f"duckmesh_operator_lease_held{{{POD}}}": "0x30",
            'duckmesh_operator_lease_held{namespace="duckmesh-system", pod="op-1"}': "1x30",
        },
        labels={"namespace": "duckmesh-system"},
    ),
    "DuckmeshOperatorDeaf": Case(
        fires={
            f"duckmesh_operator_watch_last_event_age_seconds{{{POD}}}": "10 20 60 90 10 20 10x30"
        },
        at=4,
        gone=12,
        silent={f"duckmesh_operator_watch_last_event_age_seconds{{{POD}}}": "0 31 5 31 12 61x20"},
        labels={"namespace": "duckmesh-system", "pod": "op-0"},
        value="1m 30s",
    ),
    "DuckmeshOperatorRestarting": Case(
        fires={
            f"process_start_time_seconds{{{POD}}}": "100x5 400x5 700x5 900x80",
            f"duckmesh_operator_lease_held{{{POD}}}": "1x100",
        },
        at=20,
        gone=60,
        silent={
            f"process_start_time_seconds{{{POD}}}": "100x5 400x5 700x80",
            f"duckmesh_operator_lease_held{{{POD}}}": "1x100",
            'process_start_time_seconds{namespace="shop", pod="web-0"}': "1x2 2x2 3x2 4x2 5x80",
        },
        labels={"namespace": "duckmesh-system", "pod": "op-0"},
        value="3",
    ),
    "DuckmeshOperatorQueueStuck": Case(
        fires={f"duckmesh_operator_queue_age_seconds{{{POD}}}": "90x10 1x10"},
        at=8,
        gone=14,
        silent={f"duckmesh_operator_queue_age_seconds{{{POD}}}": "90x3 1 90x4 59x20"},
        labels={"namespace": "duckmesh-system"},
        value="1m 30s",
    ),
    "DuckmeshReconcileFailing": Case(
        fires={
            f'duckmesh_operator_reconcile_total{{{POD}, kind="Tenant", result="Crashed"}}': (
                "0+1x40 40x60"
            )
        },
        at=35,
        gone=80,
        silent={
            f'duckmesh_operator_reconcile_total{{{POD}, kind="Tenant", result="Conflict"}}': (
                "0x20 2x20 4x60"
            ),
            f'duckmesh_operator_reconcile_total{{{POD}, kind="Tenant", result="ok"}}': "0+9x100",
        },
        labels={"namespace": "duckmesh-system", "kind": "Tenant", "result": "Crashed"},
    ),
    "DuckmeshCatalogUnreachable": Case(
        fires={
            f'duckmesh_operator_sweep_failures_total{{{POD}, catalog="default"}}': "0+12x10 120x20",
            f'duckmesh_operator_sweep_seconds_count{{{POD}, catalog="default"}}': "0+12x30",
        },
        at=6,
        gone=15,
        silent={
            f'duckmesh_operator_sweep_failures_total{{{POD}, catalog="default"}}': "0+4x30",
            f'duckmesh_operator_sweep_seconds_count{{{POD}, catalog="default"}}': "0+12x30",
            f'duckmesh_operator_sweep_seconds_count{{{POD}, catalog="idle"}}': "0x30",
        },
        labels={"namespace": "duckmesh-system", "catalog": "default"},
    ),
    "DuckmeshLagBreach": Case(
        fires={
            f'duckmesh_operator_tenant_lag_seconds{{{POD}, tenant="shop/acme"}}': "0 90x8 0x10",
            f'duckmesh_operator_tenant_lag_target_seconds{{{POD}, tenant="shop/acme"}}': "60x30",
        },
        at=5,
        gone=12,
        silent={
            f'duckmesh_operator_tenant_lag_seconds{{{POD}, tenant="shop/acme"}}': "90x20",
            f'duckmesh_operator_tenant_lag_target_seconds{{{POD}, tenant="shop/acme"}}': "120x20",
            f'duckmesh_operator_tenant_lag_target_seconds{{{POD}, tenant="shop/beta"}}': "5x20",
            f'duckmesh_operator_tenant_lag_seconds{{{POD}, tenant="shop/idle"}}': "90x100",
            f'duckmesh_operator_tenant_lag_target_seconds{{{POD}, tenant="shop/idle"}}': "5x100",
            trouble("Ready", "Suspended", "shop/idle"): "1x100",
        },
        labels=OF_ACME,
        value="1m 30s",
    ),
    "DuckmeshCommitterMissing": Case(
        fires={
            f"duckmesh_committer_active{{{ACME}}}": "1x3 0x10 1x10",
            f"duckmesh_committer_active{{{OTHER}}}": "0x30",
            f"duckmesh_lag_observed_timestamp_seconds{{{ACME}}}": "1+60x30",
            f"duckmesh_lag_observed_timestamp_seconds{{{OTHER}}}": "1+60x30",
        },
        at=8,
        gone=16,
        silent={
            f"duckmesh_committer_active{{{ACME}}}": "1x5 0x20",
            f"duckmesh_committer_active{{{OTHER}}}": "0x5 1x20",
            f"duckmesh_lag_observed_timestamp_seconds{{{ACME}}}": "1+60x30",
            f"duckmesh_lag_observed_timestamp_seconds{{{OTHER}}}": "1+60x30",
            # Of this one nothing but a pod for queries is there.
            f"duckmesh_committer_active{{{QUERY}}}": "0x100",
            f"duckmesh_lag_observed_timestamp_seconds{{{QUERY}}}": "0x100",
        },
        labels=OF_ACME,
    ),
    "DuckmeshCommitterFlapping": Case(
        fires={f"duckmesh_fenced_commits_total{{{ACME}}}": "0+1x20 20x40"},
        at=15,
        gone=45,
        silent={f"duckmesh_fenced_commits_total{{{ACME}}}": "0x10 1x10 2x40"},
        labels=OF_ACME,
    ),
    "DuckmeshSnapshotStale": Case(
        fires={trouble("SnapshotHealthy", "Stale"): "1x5 stale"},
        at=3,
        gone=7,
        silent={
            trouble("SnapshotHealthy", "Missing"): "1x20",
            trouble("SnapshotHealthy", "Stale", "shop/idle"): "1x100",
            trouble("Ready", "Suspended", "shop/idle"): "1x100",
        },
        labels=OF_ACME,
    ),
    "DuckmeshCommitFailures": Case(
        fires={f'duckmesh_commit_failures_total{{{ACME}, reason="reread"}}': "0+30x20 600x40"},
        at=15,
        gone=40,
        silent={
            f'duckmesh_commit_failures_total{{{ACME}, reason="fenced"}}': "0+30x60",
            f'duckmesh_commit_failures_total{{{ACME}, reason="reread"}}': "0x10 4x50",
        },
        labels={**OF_ACME, "reason": "reread"},
    ),
    "DuckmeshDeadLetters": Case(
        fires={f"duckmesh_dead_letters_kept{{{ACME}}}": "0 3x10 0x10"},
        at=8,
        gone=15,
        silent={f"duckmesh_dead_letters_kept{{{ACME}}}": "0x3 1x3 0x20"},
        labels=OF_ACME,
        value="3",
    ),
    "DuckmeshStorageUnreachable": Case(
        fires={requests("query", "STORAGE_UNAVAILABLE"): "0+5x10 50x20"},
        at=6,
        gone=15,
        silent={
            requests("query", "STORAGE_UNAVAILABLE"): "0x5 1x20",
            trouble("CatalogReachable", "Unreachable"): "1x20",
        },
        labels=OF_ACME,
    ),
    "DuckmeshWorkersNotReady": Case(
        fires={
            # A migration that is tried again each minute.
            trouble(
                "Ready", "MigrationFailed"
            ): "1 stale 1 stale 1 stale 1 stale 1 stale 1 1 1 stale",
            trouble("Ready", "Migrating"): "_ 1 stale 1 stale 1 stale 1 stale 1 stale",
        },
        at=11,
        gone=17,
        silent={
            trouble("Ready", "Suspended"): "1x60",
            trouble("Ready", "WorkersNotReady"): "1x8 stale",
        },
        labels=OF_ACME,
    ),
    "DuckmeshTenantStalled": Case(
        fires={trouble("Stalled", "NameConflict"): "1x20 stale"},
        at=18,
        gone=23,
        silent={trouble("Stalled", "NameConflict"): "1x10 stale"},
        labels={**OF_ACME, "reason": "NameConflict"},
    ),
    "DuckmeshDeletionStuck": Case(
        fires={trouble("Ready", "Deleting"): "1x8 stale"},
        at=7,
        gone=10,
        silent={trouble("Ready", "Deleting"): "1x4 stale"},
        labels=OF_ACME,
    ),
    "DuckmeshLakeUnreadable": Case(
        fires={trouble("Fresh", "LakeUnreadable"): "1x6 stale"},
        at=4,
        gone=8,
        silent={trouble("Fresh", "LagBreach"): "1x20"},
        labels=OF_ACME,
    ),
    "DuckmeshDataDamaged": Case(
        fires={
            requests("query", "OK"): "0+5x60",
            requests("query", "DATA_FILE_MISSING"): "_x20 1x40",
        },
        at=25,
        gone=50,
        silent={
            requests("query", "OK"): "0+5x60",
            requests("query", "SQL_ERROR"): "_x20 1x40",
        },
        labels={**OF_ACME, "code": "DATA_FILE_MISSING"},
    ),
    "DuckmeshIntegrityDamaged": Case(
        fires={trouble("SnapshotHealthy", "Corrupt"): "_x5 1x20 _x20"},
        at=6,
        gone=35,
        silent={trouble("SnapshotHealthy", "Stale"): "1x100"},
        labels=OF_ACME,
    ),
    "DuckmeshIngestFailing": Case(
        fires={
            requests("ingest", "OK"): "0+90x40",
            requests("ingest", "CATALOG_UNAVAILABLE"): "0+10x20 200x20",
        },
        at=12,
        gone=30,
        silent={
            requests("ingest", "OK"): "0+99x40",
            requests("ingest", "INTERNAL"): "0+1x40",
            requests("ingest", "VALIDATION_FAILED"): "0+50x40",
        },
        labels=OF_ACME,
        value="10%",
    ),
    "DuckmeshQueriesFailing": Case(
        fires={
            requests("query", "OK"): "0+75x40",
            requests("query", "CATALOG_UNAVAILABLE"): "0+25x20 500x20",
        },
        at=12,
        gone=30,
        silent={
            requests("query", "OK"): "0+99x40",
            requests("query", "QUERY_CRASHED"): "0+1x40",
            requests("query", "SQL_ERROR"): "0+50x40",
        },
        labels=OF_ACME,
        value="25%",
    ),
    "DuckmeshOverloaded": Case(
        fires={
            requests("query", "OVERLOADED"): "0+9x20 180x20",
            requests("query", "OK"): "0+90x40",
            requests("ingest", "OK"): "0+90x40",
        },
        at=12,
        gone=28,
        silent={
            requests("ingest", "OVERLOADED"): "0+4x100",
            requests("ingest", "OK"): "0+96x100",
            requests("query", "OVERLOADED"): "0+4x100",
            requests("query", "OK"): "0+96x100",
        },
        labels=OF_ACME,
    ),
    "DuckmeshBacklogGrowing": Case(
        fires={
            f"duckmesh_ingest_pending_rows{{{ACME}}}": "1+600x50 0x30",
            f"duckmesh_ingest_pending_rows{{{OTHER}}}": "1+600x50 0x30",
            f"duckmesh_visibility_lag_ms{{{ACME}}}": "2500+100x50 0x30",
            f"duckmesh_visibility_lag_ms{{{OTHER}}}": "2500+100x50 0x30",
        },
        at=40,
        gone=60,
        silent={
            f"duckmesh_ingest_pending_rows{{{ACME}}}": "900-10x40 500 0 1+600x10",
            f"duckmesh_visibility_lag_ms{{{ACME}}}": "2500x60",
            # A load that rises and is committed in time.
            f"duckmesh_ingest_pending_rows{{{QUERY}}}": "1+600x100",
            f"duckmesh_visibility_lag_ms{{{QUERY}}}": "1900x100",
        },
        labels=OF_ACME,
        value="10",
    ),
    "DuckmeshIdempotencyHorizonShort": Case(
        fires={f'duckmesh_idempotency_horizon_seconds{{{ACME}, of="record"}}': "43200x20 86400x20"},
        at=18,
        gone=25,
        silent={
            f'duckmesh_idempotency_horizon_seconds{{{ACME}, of="record"}}': "86400x40",
            f'duckmesh_idempotency_horizon_seconds{{{ACME}, of="request"}}': "604800x40",
        },
        labels={**OF_ACME, "of": "record"},
        value="12h 0m 0s",
    ),
    "DuckmeshMaintenanceStale": Case(
        fires={f"duckmesh_maintenance_last_success_timestamp_seconds{{{ACME}}}": "60x90 5460x30"},
        at=71,
        gone=95,
        silent={
            f"duckmesh_maintenance_last_success_timestamp_seconds{{{ACME}}}": "0x120",
            f"duckmesh_maintenance_last_success_timestamp_seconds{{{OTHER}}}": "60+60x120",
        },
        labels=OF_ACME,
        value="1h 10m 0s",
    ),
    "DuckmeshCompactionBehind": Case(
        fires={trouble("CompactionCurrent", "Behind"): "1x80 _x20"},
        at=70,
        gone=95,
        silent={
            trouble("CompactionCurrent", "Behind"): "1x50 _x10 1x40",
            trouble("CompactionCurrent", "Behind", "shop/beta"): "1x100",
            trouble("Ready", "Suspended", "shop/beta"): "1x100",
        },
        labels=OF_ACME,
    ),
    "DuckmeshCompactorFailing": Case(
        fires={failing_runs(): "1x80 _x20"},
        at=70,
        gone=95,
        silent={
            failing_runs(): "1x50 _x10 1x40",
            failing_runs("Conflict", "OlderCompactor"): "1x100",
        },
        labels={"compactor": "shop/nightly"},
    ),
}


def test_every_alert_has_a_case_and_every_case_an_alert() -> None:
    assert CASES.keys() == rules().keys()


def test_they_fire_resolve_stay_silent_and_bear_no_data(tmp_path: Path) -> None:
    run = promtool("test", "rules", *(scenarios_of(tmp_path, alert) for alert in CASES))

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("SUCCESS") == len(CASES)


def scenarios_of(folder: Path, alert: str) -> str:
    """A file for promtool with this rule alone, so that no other is computed a thousand times beside it."""
    case, rule = CASES[alert], rules()[alert]
    firing = [expected(rule, case)]
    return written(
        folder,
        alert,
        scenario("fires and resolves", case.fires, alert, {case.at: firing, case.gone: []}),
        scenario("silent", case.silent, alert, {at: [] for at in range(1, 101, 3)}),
        scenario("no data", {}, alert, {30: firing if case.without_data else []}),
    )


def written(folder: Path, alert: str, *tests: dict[str, Any]) -> str:
    rule = rules()[alert]
    needed = [one for one in recorded() if one["record"] in rule["expr"]]
    groups = [{"name": "one", "rules": [*needed, rule]}]
    (folder / f"{alert}.rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    page = {
        "rule_files": [f"{alert}.rules.yaml"],
        "evaluation_interval": "1m",
        "tests": list(tests),
    }
    file = folder / f"{alert}.yaml"
    file.write_text(yaml.safe_dump(page))
    return str(file)


def test_prometheus_takes_the_file() -> None:
    run = promtool("check", "rules", str(RULES))

    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(all_rules())} rules found" in run.stdout


@pytest.mark.parametrize(
    ("objective", "series"),
    [
        ("freshness", lagging("90x30")),
        ("queries", {requests("query", "OK"): "0+90x30", requests("query", "INTERNAL"): "0+10x30"}),
        # Every write fails, at one a minute: few, and all of them. The first minutes have no whole rate yet.
        ("writes", {requests("ingest", "CATALOG_UNAVAILABLE"): "0+1x30"}),
    ],
)
def test_every_objective_has_a_budget(
    tmp_path: Path, objective: str, series: Mapping[str, str]
) -> None:
    alert = "DuckmeshBudgetBurnsFast"
    case = Case(
        fires=series,
        at=20,
        gone=0,
        silent={},
        labels={**OF_ACME, "objective": objective},
        value="75" if objective == "writes" else "100",
    )
    firing = {case.at: [expected(rules()[alert], case)]}

    run = promtool("test", "rules", written(tmp_path, alert, scenario("", series, alert, firing)))

    assert run.returncode == 0, run.stdout + run.stderr


def test_a_rule_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    """The other side of the run above."""
    alert = "DuckmeshLagBreach"
    firing = {CASES[alert].at: [expected(rules()[alert], CASES[alert])]}

    run = promtool(
        "test", "rules", written(tmp_path, alert, scenario("", CASES[alert].silent, alert, firing))
    )

    assert run.returncode != 0
    assert "FAILED" in run.stdout + run.stderr


@pytest.mark.parametrize("alert", CASES)
def test_it_says_what_is_wrong_and_leads_to_a_runbook(alert: str) -> None:
    rule = rules()[alert]
    notes = rule["annotations"]

    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    path, _, anchor = notes["runbook_url"].partition("#")
    page = ROOT / path
    assert page.parent == DOCS / "runbooks"
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    assert anchor == alert.lower()
    assert alert in headings
    assert [name for name in headings if name in PARTS] == list(PARTS)


def test_the_chart_renders_the_same_file() -> None:
    template = (ROOT / "charts/duckmesh/templates/prometheusrule.yaml").read_text()
    values = yaml.safe_load((ROOT / "charts/duckmesh/values.yaml").read_text())

    assert f'.Files.Get "{RULES.relative_to(ROOT / "charts/duckmesh")}"' in template
    (prefix,) = re.findall(r'replace "(.+?)"', template)
    assert RULES.read_text().count(f" {prefix}") == len(CASES)
    assert values["monitoring"]["rules"] == {"install": False, "labels": {}, "runbookBase": ""}


def test_every_metric_of_a_rule_is_exported() -> None:
    """Names, kinds and labels that the code does not have would make an alert that never fires."""
    exported = documented() | process_metrics()
    asked = {
        name
        for rule in all_rules()
        for name in re.findall(r"(?<!:)\b((?:duckmesh|process)_[a-z0-9_]+)", rule["expr"])
    }

    assert asked
    assert asked - exported == set()


def test_every_code_condition_and_reason_of_a_rule_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "operator/duckmesh_operator").rglob("*.py")]
    said = {text for source in sources for text in re.findall(r'\b([A-Z]\w+)(?:"|=)', source)}
    known = said | set(CATALOGUE) | {"fenced", "record", "request", "ok"}
    known |= {rule["labels"]["objective"] for rule in recorded() if "labels" in rule}
    for rule in all_rules():
        for value in re.findall(r'=~?"([^"]+)"', rule["expr"]):
            assert set(value.split("|")) <= known, rule


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(have(PROMTOOL)), *arguments], capture_output=True, text=True, check=False, timeout=250
    )


def scenario(
    name: str, series: Series, alert: str, at: Mapping[int, list[dict[str, Any]]]
) -> dict[str, Any]:
    return {
        "name": f"{alert}: {name}",
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected_alerts}
            for minute, expected_alerts in at.items()
        ],
    }


def expected(rule: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """The alert as people get it."""

    def shown(text: str) -> str:
        text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], text)
        return re.sub(r"{{ \$value[^}]*}}", lambda _: case.value or "NO VALUE", text)

    return {
        "exp_labels": {**rule["labels"], **case.labels},
        "exp_annotations": {key: shown(text) for key, text in rule["annotations"].items()},
    }


def documented() -> set[str]:
    """Sample names of docs/reference/metrics.md, which a test compares with the code."""
    rows = re.findall(
        r"^\| `(duckmesh_\w+)` \| (\w+) \|",
        (DOCS / "reference" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    return {
        name + suffix
        for name, kind in rows
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


def process_metrics() -> set[str]:
    text = operator_metrics.expose().decode()
    families = text_string_to_metric_families(text)
    return {one.name for family in families for one in family.samples if "process_" in one.name}
