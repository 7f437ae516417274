"""Bad Tenants and Compactors are refused by the API server, in words that name the field and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

Kubectl = Callable[..., CompletedProcess[str]]
NAMESPACE = "crd-refusals"
NAME_41 = "a" * 41


def tenant(spec: dict[str, Any] | None = None, name: str = "acme") -> dict[str, Any]:
    return _object("Tenant", name, spec or {})


def compactor(**spec: Any) -> dict[str, Any]:
    return _object("Compactor", "nightly", spec)


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {
        "apiVersion": "duckmesh.io/v1alpha1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


def table(**fields: Any) -> dict[str, Any]:
    columns = [{"name": "id", "type": "BIGINT"}]
    return {"tables": [{"name": "t", "columns": columns, **fields}]}


def case(name: str, body: dict[str, Any], *words: str) -> Any:
    """One refusal: what is tried, and the words its message must have."""
    return pytest.param(body, words, id=name)


REF = {"tenantRef": {"name": "acme"}}
DEBT: dict[str, Any] = {**REF, "trigger": {}}
VALUES_RULE = "In and NotIn need values; Exists and DoesNotExist take none"

TENANTS = [
    case("name too long", tenant(name=NAME_41), "metadata.name", "40"),
    case(
        "name not a label",
        tenant(name="1acme"),
        "metadata.name",
        "must start with a lower-case letter",
    ),
    case("name with a dot", tenant(name="acme.eu"), "metadata.name", "Services are named after it"),
    case("no image in a Tenant", tenant({"image": "x"}), 'unknown field "spec.image"'),
    case(
        "no bucket in a Tenant",
        tenant({"storage": {"bucket": "b"}}),
        'unknown field "spec.storage.bucket"',
    ),
    case(
        "no ingest pod",
        tenant({"ingest": {"replicas": 0}}),
        "spec.ingest.replicas",
        "greater than or equal to 1",
    ),
    case(
        "replicas as text",
        tenant({"ingest": {"replicas": "2"}}),
        "spec.ingest.replicas",
        "must be of type integer",
    ),
    case(
        "delay not below the objective",
        tenant({"ingest": {"batch": {"maxDelay": "5s"}}}),
        "spec.ingest.batch.maxDelay",
        "must be below freshness.target",
    ),
    case(
        "objective below the default delay",
        tenant({"freshness": {"target": "150ms"}}),
        "spec.ingest.batch.maxDelay",
        "must be below freshness.target",
    ),
    case(
        "interval above the delay",
        tenant({"ingest": {"batch": {"minInterval": "300ms"}}}),
        "spec.ingest.batch.minInterval",
        "must not be above maxDelay",
    ),
    case(
        "delay too long",
        tenant({"ingest": {"batch": {"maxDelay": "61s"}}, "freshness": {"target": "5m"}}),
        "spec.ingest.batch.maxDelay",
        "must be 60s at most",
    ),
    case(
        "objective of nothing",
        tenant({"freshness": {"target": "0s"}}),
        "spec.freshness.target",
        "must be above 0s",
    ),
    case("days", tenant({"snapshots": {"keepFor": "7d"}}), "spec.snapshots.keepFor", "(ms|s|m|h)"),
    case(
        "snapshots too short",
        tenant({"snapshots": {"keepFor": "9m"}}),
        "spec.snapshots.keepFor",
        "must be 10m at least",
    ),
    case(
        "queries outlive their snapshot",
        tenant({"snapshots": {"keepFor": "10m"}, "query": {"limits": {"timeout": "11m"}}}),
        "spec.snapshots.keepFor",
        "must not be below query.limits.timeout",
    ),
    case(
        "query too long",
        tenant({"query": {"limits": {"timeout": "2h"}}}),
        "spec.query.limits.timeout",
        "1h at most",
    ),
    case(
        "memory too small",
        tenant({"query": {"limits": {"memory": "32Mi"}}}),
        "spec.query.limits.memory",
        "must be from 64Mi",
    ),
    case(
        "memory with a fraction",
        tenant({"query": {"limits": {"memory": "1.5Gi"}}}),
        "spec.query.limits.memory",
        "should match",
    ),
    case(
        "queries do not fit their container",
        tenant({"query": {"resources": {"limits": {"memory": "1Gi"}}}}),
        "spec.query.resources.limits.memory",
        "must hold query.limits.concurrency queries",
    ),
    case(
        "request above limit",
        tenant({"ingest": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "500m"}}}}),
        "spec.ingest.resources",
        "requests.cpu must not be above limits.cpu",
    ),
    case(
        "commit too big",
        tenant({"ingest": {"batch": {"maxBytes": "2Gi"}}}),
        "spec.ingest.batch.maxBytes",
        "from 1Ki to 1Gi",
    ),
    case(
        "commit too small",
        tenant({"ingest": {"batch": {"maxBytes": 1}}}),
        "spec.ingest.batch.maxBytes",
        "from 1Ki to 1Gi",
    ),
    case(
        "prefix climbs out",
        tenant({"storage": {"prefix": "../other"}}),
        "spec.storage.prefix",
        "should match",
    ),
    case(
        "prefix with slashes",
        tenant({"storage": {"prefix": "/acme/"}}),
        "spec.storage.prefix",
        "should match",
    ),
    case(
        "unknown policy",
        tenant({"deletionPolicy": "Orphan"}),
        "spec.deletionPolicy",
        '"Retain", "Delete"',
    ),
    case("version that moves", tenant({"version": "latest"}), "spec.version", "should match"),
    case(
        "label of ours",
        tenant({"labels": {"app.kubernetes.io/name": "x"}}),
        "spec.labels",
        "are reserved",
    ),
    case(
        "annotation of ours",
        tenant({"annotations": {"duckmesh.io/x": "y"}}),
        "spec.annotations",
        "are reserved",
    ),
    case(
        "cpu not a quantity",
        tenant({"query": {"resources": {"limits": {"cpu": "x"}, "requests": {"cpu": 1}}}}),
        "spec.query.resources.limits.cpu",
        "should match",
    ),
    case(
        "delay not a duration",
        tenant({"ingest": {"batch": {"maxDelay": "5 s"}}}),
        "spec.ingest.batch.maxDelay",
        "(ms|s|m|h)",
    ),
    case(
        "table without columns",
        tenant(table(columns=[])),
        "spec.tables[0].columns",
        "at least 1 items",
    ),
    case(
        "key without column",
        tenant(table(primaryKey=["no"])),
        "spec.tables[0].primaryKey",
        "does not have",
    ),
    case(
        "order without column",
        tenant(table(sortBy=["no"])),
        "spec.tables[0].sortBy",
        "does not have",
    ),
    case("table name", tenant(table(name="Bad-Name")), "spec.tables[0].name", "should match"),
    case(
        "table twice",
        tenant({"tables": table()["tables"] * 2}),
        "spec.tables[1]",
        "Duplicate value",
    ),
]

COMPACTORS = [
    case("no Tenant", compactor(trigger={}), "exactly one of tenantRef and tenantSelector"),
    case(
        "ref and selector",
        compactor(**DEBT, tenantSelector={"matchLabels": {}}),
        "exactly one of tenantRef and tenantSelector",
    ),
    case("never runs", compactor(**REF), "give trigger, schedule or both"),
    case(
        "empty selector",
        compactor(tenantSelector={}, trigger={}),
        "spec.tenantSelector",
        "give matchLabels or matchExpressions",
    ),
    case(
        "In without values",
        compactor(
            trigger={}, tenantSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}
        ),
        VALUES_RULE,
    ),
    case(
        "other namespace",
        compactor(tenantRef={"name": "acme", "namespace": "other"}, trigger={}),
        'unknown field "spec.tenantRef.namespace"',
    ),
    case("not cron", compactor(**REF, schedule="every day"), "spec.schedule", "should match"),
    case(
        "too often",
        compactor(**REF, trigger={"maxInterval": "30s"}),
        "spec.trigger.maxInterval",
        "must be 1m at least",
    ),
    case(
        "more than all rows",
        compactor(**REF, trigger={"deletedRatio": 2}),
        "spec.trigger.deletedRatio",
        "less than or equal to 1",
    ),
    case(
        "orphans too young",
        compactor(**DEBT, orphanFiles={"olderThan": "1h"}),
        "spec.orphanFiles.olderThan",
        "must be 24h at least",
    ),
    case(
        "unknown mode",
        compactor(**DEBT, orphanFiles={"mode": "delete"}),
        "spec.orphanFiles.mode",
        '"Report", "Delete"',
    ),
    case(
        "tiers out of order",
        compactor(**DEBT, target={"tiers": ["16Mi", "1Mi"]}),
        "spec.target.tiers",
        "ascending order",
    ),
    case(
        "tier above file size",
        compactor(**DEBT, target={"tiers": ["1Gi"]}),
        "spec.target.tiers",
        "below target.fileSize",
    ),
    case(
        "run below one file",
        compactor(**DEBT, target={"maxBytesPerRun": "1Mi"}),
        "spec.target.maxBytesPerRun",
        "not be below target.fileSize",
    ),
    case(
        "expiry too early",
        compactor(**DEBT, expireSnapshots={"keepFor": "1m"}),
        "spec.expireSnapshots.keepFor",
        "must be 10m at least",
    ),
    case(
        "tier not a size",
        compactor(**DEBT, target={"tiers": ["x"]}),
        "spec.target.tiers[0]",
        "should match",
    ),
    case(
        "no Job", compactor(**DEBT, concurrency=0), "spec.concurrency", "greater than or equal to 1"
    ),
]

CHANGES = [
    pytest.param({"catalog": {"name": "other"}}, "spec.catalog.name", id="catalog"),
    pytest.param({"storage": {"name": "other", "prefix": "a/b"}}, "spec.storage.name", id="store"),
    pytest.param({"storage": {"prefix": "a/c"}}, "spec.storage.prefix", id="prefix"),
    pytest.param({"storage": {"prefix": None}}, "spec.storage.prefix", id="prefix taken away"),
]


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[str]:
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s")
    kubectl("create", "namespace", NAMESPACE)
    yield NAMESPACE
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def suspended(kubectl: Kubectl, namespace: str) -> str:
    """Name of a live Tenant without pods."""
    body = tenant({"suspend": True, "paused": True, "storage": {"prefix": "a/b"}}, "live")
    kubectl("apply", "-f", "-", input=json.dumps(body))
    return "live"


def _refusal(kubectl: Kubectl, body: dict[str, Any]) -> str:
    done = kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(body), check=False)
    assert done.returncode != 0, f"accepted: {body}"
    return done.stderr


@pytest.mark.parametrize(("body", "words"), [*TENANTS, *COMPACTORS])
def test_bad_object_is_refused_with_the_field_and_the_reason(
    kubectl: Kubectl, namespace: str, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    message = _refusal(kubectl, body)

    assert [word for word in words if word not in message] == [], message
    assert "evaluating rule" not in message, message


@pytest.mark.parametrize(("change", "field"), CHANGES)
def test_where_the_data_lies_cannot_change(
    kubectl: Kubectl, suspended: str, change: dict[str, Any], field: str
) -> None:
    patch = json.dumps({"spec": change})
    args = ("patch", "tenant", suspended, "-n", NAMESPACE, "--type=merge", "--dry-run=server")

    done = kubectl(*args, "-p", patch, check=False)

    assert done.returncode != 0
    assert f"{field}: Invalid value" in done.stderr
    assert "is immutable, since the data does not move with it" in done.stderr


NARROW = "NAME READY PHASE LAG SNAPSHOT WORKERS AGE"
WIDE = f"{NARROW} TARGET SNAP-ID FILES DEBT VERSION ENDPOINT REASON"


@pytest.mark.parametrize(("options", "columns"), [((), NARROW), (("-o", "wide"), WIDE)])
def test_columns_of_a_tenant(
    kubectl: Kubectl, suspended: str, options: tuple[str, ...], columns: str
) -> None:
    shown = kubectl("get", "tenants", "-n", NAMESPACE, suspended, *options).stdout

    assert shown.splitlines()[0].split() == columns.split()


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("spec.suspend=true", True),
        ("spec.suspend=false", False),
        ("spec.paused=true", True),
        ("status.ingest.lagClass=unknown", True),
        ("status.ingest.lagClass=ok", False),
        ("status.phase=Ready", False),
    ],
)
def test_tenants_are_selected_by_field(
    kubectl: Kubectl, suspended: str, selector: str, found: bool
) -> None:
    listed = kubectl(
        "get", "tenants", "-n", NAMESPACE, f"--field-selector={selector}", "-o", "name"
    ).stdout

    assert listed.split() == ([f"tenant.duckmesh.io/{suspended}"] if found else [])


def test_a_new_tenant_has_every_condition_from_the_first_second(
    kubectl: Kubectl, namespace: str
) -> None:
    """`kubectl wait` fails at once on a condition that is not there."""
    body = tenant({"suspend": True, "paused": True, "storage": {"prefix": "seeded"}}, "seeded")
    kubectl("create", "-f", "-", input=json.dumps(body))

    shown = kubectl("get", "tenant", "-n", NAMESPACE, "seeded", "-o", "json").stdout

    found = {one["type"]: one["status"] for one in json.loads(shown)["status"]["conditions"]}
    assert {"Ready", "SpecValid", "Fresh", "StorageReachable", "EgressRestricted"} <= set(found)
    assert found["Ready"] != "True"


def test_a_tenant_without_a_spec_gets_every_default(kubectl: Kubectl, namespace: str) -> None:
    body = tenant()
    del body["spec"]

    done = kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", input=json.dumps(body))

    spec = json.loads(done.stdout)["spec"]
    assert spec["catalog"] == {"name": "default"}
    assert spec["ingest"]["replicas"] == 2
    assert spec["ingest"]["batch"]["maxDelay"] == "200ms"
    assert spec["query"]["limits"]["timeout"] == "30s"


def test_quantities_may_be_numbers_or_text(kubectl: Kubectl, namespace: str) -> None:
    resources = {"limits": {"cpu": 2, "memory": 2 * 2**30}, "requests": {"cpu": "0.5"}}
    body = tenant({"query": {"resources": resources, "limits": {"memory": 128 * 2**20}}})

    kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(body))


@pytest.mark.parametrize("name", ["tenant-minimal", "tenant-full", "compactor"])
def test_samples_are_accepted(kubectl: Kubectl, namespace: str, name: str) -> None:
    kubectl("apply", "--dry-run=server", "-n", NAMESPACE, "-f", f"crds/samples/{name}.yaml")
