"""The operator's own metrics: their names are API, and a leader moves them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from duckmesh_operator import __main__ as process
from duckmesh_operator import metrics
from tests.tenants import tenant_object
from tests.unit.operator.test_main import Cluster, settings

#: Family -> labels, as the contract names them.
NAMES = {
    "reconcile_total": {"kind", "result"},
    "reconcile_seconds": {"kind"},
    "queue_depth": set(),
    "queue_age_seconds": set(),
    "api_requests_total": {"verb", "code"},
    "watch_last_event_age_seconds": set(),
    "loop_lag_seconds": set(),
    "lease_held": set(),
    "status_writes_total": {"kind"},
    "tenants": {"phase"},
    "tenant_lag_seconds": {"tenant"},
}


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"duckmesh_operator_{name}", labels) or 0.0


async def test_a_leader_shows_every_metric_of_the_contract(
    cluster: Cluster, secrets_dir: Path
) -> None:
    """Its catalog does not answer: the reconcile fails, and the status says so."""
    cluster.api.add(tenant_object())
    failed = value("reconcile_total", kind="Tenant", result="Unavailable")
    written = value("status_writes_total", kind="Tenant")
    operator = process.Operator(cluster.api, settings(secrets_dir), on_lost=lambda: None)
    operator._canary._last_event -= 1_000  # it stood by, without a watch

    running = asyncio.create_task(operator.run(lambda: None))
    async with asyncio.timeout(30):
        while value("reconcile_total", kind="Tenant", result="Unavailable") == failed:
            await asyncio.sleep(0.01)
    text = metrics.expose().decode()
    silent_s = value("watch_last_event_age_seconds")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    for name in NAMES:
        assert f"# HELP duckmesh_operator_{name} " in text, name
    assert "duckmesh_operator_lease_held 1.0" in text
    assert 'duckmesh_operator_tenants{phase="' in text
    assert value("status_writes_total", kind="Tenant") > written
    assert 0 <= silent_s < 1_000  # silence counts from the take-over
    assert value("lease_held") == 0  # it ended


def test_labels_are_those_of_the_contract() -> None:
    counters = {
        "reconcile_total": metrics._reconciles,
        "reconcile_seconds": metrics._reconcile_seconds,
        "api_requests_total": metrics._api_requests,
        "status_writes_total": metrics._status_writes,
    }
    for name, counter in counters.items():
        assert set(counter._labelnames) == NAMES[name], name
    collector = metrics.TenantCollector(lambda: {"Ready": 1}, lambda: {"team/acme": 2.0})
    samples = [sample for family in collector.collect() for sample in family.samples]
    for sample in samples:
        assert set(sample.labels) == NAMES[sample.name.removeprefix("duckmesh_operator_")]
    assert len(samples) == 2


def test_compactors_show_debt_and_troubles() -> None:
    collector = metrics.CompactorCollector(
        lambda: {"team/acme": 7}, lambda: {"team/night": {("LastRunSucceeded", "Failed")}}
    )

    found = [
        (sample.name.removeprefix("duckmesh_operator_"), sample.labels, sample.value)
        for family in collector.collect()
        for sample in family.samples
    ]

    assert found == [
        ("tenant_debt_files", {"tenant": "team/acme"}, 7),
        (
            "compactor_condition",
            {"compactor": "team/night", "condition": "LastRunSucceeded", "reason": "Failed"},
            1,
        ),
    ]
