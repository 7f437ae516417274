from __future__ import annotations

from typing import Any

import pytest

from duckmesh_operator.errors import Invalid
from duckmesh_operator.model import parse_compactor, parse_meta, parse_tenant
from tests.tenants import UID, tenant_object


def test_a_tenant_without_a_spec_has_every_default() -> None:
    tenant = parse_tenant(tenant_object())

    assert tenant.prefix == "team/acme"
    assert (tenant.catalog, tenant.store, tenant.profile) == ("default",) * 3
    assert (tenant.ingest.replicas, tenant.query.replicas) == (2, 1)
    assert tenant.meta.lake == "lake_0123456789ab4cde"
    assert tenant.deletion_policy == "Retain"


def test_fields_are_read_with_their_units() -> None:
    tenant = parse_tenant(
        tenant_object(
            {
                "ingest": {
                    "batch": {"minInterval": "50ms", "maxDelay": "1s", "maxBytes": "1Mi"},
                    "limits": {"pendingBytes": 2**21, "requestsPerSecond": 5},
                    "resources": {"requests": {"cpu": 1, "memory": "64Mi"}},
                },
                "query": {"limits": {"timeout": "1m", "memory": "1Gi", "rows": 7}},
                "freshness": {"target": "2s", "sustainedFor": "1m"},
            }
        )
    )

    assert tenant.ingest.min_interval_ms == 50
    assert tenant.ingest.max_bytes == 2**20
    assert tenant.ingest.pending_bytes == 2**21
    assert tenant.ingest.resources.cpu_request == 1000
    assert tenant.query.timeout_ms == 60_000
    assert tenant.query.memory_bytes == 2**30
    assert tenant.freshness_sustained_ms == 60_000


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"ingest": {"replicas": 0}}, "spec.ingest.replicas"),
        ({"ingest": {"replicas": "two"}}, "spec.ingest.replicas"),
        ({"ingest": {"batch": {"maxDelay": "9s"}}}, "spec.ingest.batch.maxDelay"),
        ({"ingest": {"batch": {"minInterval": "1s"}}}, "spec.ingest.batch.minInterval"),
        ({"ingest": {"batch": {"maxBytes": "many"}}}, "spec.ingest.batch.maxBytes"),
        (
            {"query": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}},
            "spec.query.resources.requests.cpu",
        ),
        ({"snapshots": {"keepFor": "1s"}}, "spec.snapshots.keepFor"),
        ({"suspend": "yes"}, "spec.suspend"),
        ({"deletionPolicy": "Burn"}, "spec.deletionPolicy"),
    ],
)
def test_a_wrong_field_is_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_tenant(tenant_object(spec))

    assert named in str(caught.value)


def test_all_wrong_fields_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        parse_tenant(tenant_object({"suspend": 1, "paused": 2}, name="x" * 41))

    assert len(caught.value.problems) == 3


def test_meta_knows_a_deletion() -> None:
    assert parse_meta(tenant_object(deletionTimestamp="2026-01-01T00:00:00Z")).deleting
    assert not parse_meta(tenant_object()).deleting


def compactor_object(spec: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "c", "namespace": "team", "uid": UID}, "spec": spec}


def test_a_compactor_is_read_with_its_units() -> None:
    found = parse_compactor(
        compactor_object(
            {
                "tenantSelector": {"matchLabels": {"a": "b"}},
                "trigger": {"deletedRatio": 0.5},
                "target": {"tiers": ["1Mi"], "fileSize": "64Mi"},
                "expireSnapshots": {"keepFor": "1h"},
            }
        )
    )

    assert found.match_labels == {"a": "b"}
    assert (found.trigger_deleted_ratio, found.trigger_small_files) == (0.5, 100)
    assert found.target_tier_bytes == (2**20,)
    assert found.expire_keep_for_ms == 3_600_000


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({}, "tenantRef"),
        ({"tenantRef": {"name": "a"}, "tenantSelector": {}}, "tenantRef"),
        ({"tenantRef": {"name": "a"}, "target": {"tiers": ["x"]}}, "spec.target.tiers"),
        ({"tenantRef": {"name": "a"}, "trigger": {"deletedRatio": 2}}, "spec.trigger.deletedRatio"),
        ({"tenantRef": {"name": "a"}, "orphanFiles": {"olderThan": "1h"}}, "olderThan"),
        ({"tenantRef": {"name": "a"}, "schedule": "0 0 31 2 *"}, "spec.schedule"),
        ({"tenantRef": {"name": "a"}, "integrity": {"schedule": "x"}}, "spec.integrity.schedule"),
        (
            {"tenantRef": {"name": "a"}, "schedule": "@daily", "timeZone": "Mars/Olympus"},
            "Mars/Olympus is not a time zone",
        ),
        ({"tenantRef": {"name": "a"}}, "spec needs trigger, schedule or both"),
    ],
)
def test_a_wrong_compactor_is_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_compactor(compactor_object(spec))

    assert named in str(caught.value)
