"""The operator's reading of the resources against their schemas: same defaults, same fields, same words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from duckmesh_operator import status
from duckmesh_operator.conditions import REASONS
from duckmesh_operator.lag import LagReport, Objective, step
from duckmesh_operator.model import Meta, parse_compactor, parse_tenant
from tests.contract.structural import problems, schema, with_defaults

SAMPLES = Path(__file__).parents[2] / "crds" / "samples"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sample(name: str) -> dict[str, Any]:
    body = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return body | {"metadata": body["metadata"] | {"namespace": "team", "uid": "0" * 32}}


def spec_of(kind: str) -> dict[str, Any]:
    return schema(kind)["properties"]["spec"]


def test_a_bare_tenant_means_the_same_with_and_without_the_schemas_defaults() -> None:
    bare = sample("tenant-minimal")
    completed = bare | {"spec": with_defaults(spec_of("tenant"), {})}

    one, other = parse_tenant(bare), parse_tenant(completed)

    fields = set(one.__dataclass_fields__) - {"raw_spec"}
    assert {f: getattr(one, f) for f in fields} == {f: getattr(other, f) for f in fields}
    assert completed["spec"]["ingest"]["batch"]["minInterval"] == "100ms"


def test_a_bare_compactor_means_the_same_with_and_without_the_schemas_defaults() -> None:
    bare = sample("compactor") | {"spec": {"tenantRef": {"name": "acme"}, "trigger": {}}}
    completed = bare | {"spec": with_defaults(spec_of("compactor"), bare["spec"])}

    assert parse_compactor(bare) == parse_compactor(completed)
    assert completed["spec"]["trigger"]["smallFiles"] == 100


@pytest.mark.parametrize("name", ["tenant-minimal", "tenant-full", "compactor"])
def test_samples_fit_the_schema_and_the_operator(name: str) -> None:
    body = sample(name)
    kind = name.split("-")[0]
    completed = with_defaults(spec_of(kind), body.get("spec", {}))

    assert problems(spec_of(kind), completed, "spec") == []
    parse_tenant(body) if kind == "tenant" else parse_compactor(body)


def test_reasons_fit_the_schema() -> None:
    conditions = schema("tenant")["properties"]["status"]["properties"]["conditions"]
    pattern = conditions["items"]["properties"]["reason"]["pattern"]

    assert [reason for reason in REASONS if not re.search(pattern, reason)] == []


def test_seeded_reasons_are_in_the_catalogue() -> None:
    for kind in ("tenant", "compactor"):
        seeds = schema(kind)["properties"]["status"]["default"]
        assert problems(schema(kind)["properties"]["status"], seeds, "status") == []
        assert {seed["reason"] for seed in seeds["conditions"]} <= set(REASONS)


def _meta() -> Meta:
    return Meta(namespace="team", name="acme", uid="0" * 32, generation=3)


def _situation(**more: Any) -> status.Situation:
    tenant = parse_tenant(sample("tenant-full"))
    return status.Situation(meta=_meta(), tenant=tenant, previous={}, **more)


@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(lambda: _situation(), id="nothing known"),
        pytest.param(
            lambda: status.Situation(meta=_meta(), tenant=None, previous={}), id="spec unreadable"
        ),
        pytest.param(
            lambda: _situation(
                installed=True,
                version="0.1.0",
                selector="a=b",
                endpoints={"ingest": "http://a:8080", "query": "http://b:8080"},
                workers=[
                    status.Worker(component=c, wanted=1, pods=1, ready=1, settled=True, exists=True)
                    for c in ("ingest", "query")
                ],
                egress_restricted=False,
            ),
            id="running",
        ),
    ],
)
def test_every_status_fits_the_schema_and_speaks_of_every_condition(situation: Any) -> None:
    """Server-side apply refuses a status with a field that the schema does not have."""
    built = status.build_status(situation(), NOW)

    node = schema("tenant")["properties"]["status"]
    seeded = {seed["type"] for seed in node["default"]["conditions"]}
    assert problems(node, built, "status") == []
    assert seeded <= {condition["type"] for condition in built["conditions"]}
    for condition in built["conditions"]:
        assert condition["reason"] in REASONS
        assert condition["type"] in node["properties"]["conditions"]["description"]


def test_status_with_lag_and_snapshot_fits_the_schema() -> None:
    report = LagReport(
        lake="lake_0",
        tenant="team/acme",
        tenant_uid="0" * 32,
        now=NOW,
        token=9,
        pending_rows=4,
        oldest_pending_at=NOW - timedelta(seconds=3),
        committed_at=NOW - timedelta(seconds=4),
        snapshot_id=7,
        snapshot_at=NOW - timedelta(seconds=4),
        files=3,
        small_files=2,
        size_bytes=4096,
        committer="acme-ingest-0",
        committer_alive=True,
    )
    track = step(None, report, Objective())

    built = status.build_status(_situation(track=track), NOW)

    assert problems(schema("tenant")["properties"]["status"], built, "status") == []
    assert built["ingest"]["lag"] == "2s"
    assert built["snapshot"]["id"] == 7


def test_status_of_a_compactor_fits_the_schema() -> None:
    body = parse_compactor(sample("compactor"))

    policy = status.Policy(meta=_meta(), compactor=body, previous={})
    built = status.build_compactor_status(policy, NOW)

    node = schema("compactor")["properties"]["status"]
    assert problems(node, built, "status") == []
    assert {c["type"] for c in built["conditions"]} == {
        seed["type"] for seed in node["default"]["conditions"]
    }
