"""What the resources promise, read from their schemas; the API server itself is asked in tests/e2e."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = Path(__file__).parents[2] / "crds"
KINDS = ("tenant", "compactor")
MAX_BYTES = 60_000  # etcd and kubectl's last-applied annotation have room, and people can read it
DURATION = r"^([0-9]{1,6}(ms|s|m|h)){1,4}$"
BYTES = r"^[1-9][0-9]{0,14}(k|M|G|T|Ki|Mi|Gi|Ti)?$"
# Leaving these out means something else than leaving out what is in them.
OPTIONAL_PARENTS = {"spec.trigger", "status"}
METADATA = {"apiVersion", "kind", "metadata"}

Node = dict[str, Any]


@cache
def load(kind: str) -> Node:
    return yaml.safe_load((CRDS / f"{kind}.yaml").read_text(encoding="utf-8"))


def version(kind: str) -> Node:
    (only,) = load(kind)["spec"]["versions"]
    return only


def schema(kind: str) -> Node:
    return version(kind)["schema"]["openAPIV3Schema"]


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every field below a node, with its dotted path."""
    for name, child in node.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        yield below, child
        yield from walk(child, below)
    if isinstance(items := node.get("items"), dict):
        yield f"{path}[]", items
        yield from walk(items, f"{path}[]")


def fields(kind: str) -> list[tuple[str, Node]]:
    return [(path, node) for path, node in walk(schema(kind)) if path.split(".")[0] != "metadata"]


def field(kind: str, path: str) -> Node:
    return dict(fields(kind))[path]


@pytest.mark.parametrize("kind", KINDS)
def test_crd_stays_small(kind: str) -> None:
    assert (CRDS / f"{kind}.yaml").stat().st_size < MAX_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    bare = [path for path, node in fields(kind) if not node.get("description", "").endswith(".")]

    assert bare == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_scalar_default_is_in_its_description(kind: str) -> None:
    def said(default: object) -> str:
        return str(default).lower() if isinstance(default, bool) else str(default)

    silent = [
        path
        for path, node in fields(kind)
        if not isinstance(node.get("default", {}), dict | list)
        and f"Default: {said(node['default'])}." not in node["description"]
    ]

    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_structural_and_closed(kind: str) -> None:
    for path, node in fields(kind):
        assert "x-kubernetes-preserve-unknown-fields" not in node, path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        if node.get("type") == "object":
            assert ("properties" in node) != ("additionalProperties" in node), path


@pytest.mark.parametrize("kind", KINDS)
def test_parents_of_defaults_have_one_too(kind: str) -> None:
    """Without `default: {}` a parent that is left out keeps its children's defaults from being applied."""
    nodes = fields(kind)
    parents = {
        path
        for path, node in nodes
        if any(
            child.get("default") is not None and other.startswith(f"{path}.")
            for other, child in nodes
        )
    }
    missing = {
        p for p in parents if "default" not in field(kind, p) and "[]" not in p
    } - OPTIONAL_PARENTS

    assert missing - ({"spec"} if kind == "compactor" else set()) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_rules_do_not_stand_on_parents_with_an_empty_default(kind: str) -> None:
    """The API server tries a rule on the bare default, where no child is filled in yet."""
    wrong = [
        path
        for path, node in fields(kind)
        if node.get("default") == {}
        and any("has(" not in rule["rule"] for rule in node.get("x-kubernetes-validations", []))
    ]

    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_rules_have_a_message_for_people(kind: str) -> None:
    nodes = [("", schema(kind)), *fields(kind)]
    rules = [(p, rule) for p, node in nodes for rule in node.get("x-kubernetes-validations", [])]

    assert rules
    assert [p for p, rule in rules if len(rule.get("message", "")) < 15] == []


@pytest.mark.parametrize("kind", KINDS)
def test_text_in_the_spec_is_bounded(kind: str) -> None:
    open_ended = [
        path
        for path, node in fields(kind)
        if path.startswith("spec.")
        and node.get("type") == "string"
        and "maxLength" not in node
        and "enum" not in node
    ]

    assert open_ended == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *[(t, True) for t in ("200ms", "5s", "10m", "24h", "1h30m", "168h0m0s", "0s")],
        *[(t, False) for t in ("7d", "5", "", "5 s", "-5s", "1.5s", "s", "5S", "1234567s")],
    ],
)
def test_durations_are_whole_numbers_with_units(text: str, good: bool) -> None:
    durations = [
        node
        for kind in KINDS
        for path, node in fields(kind)
        if path.startswith("spec.") and re.search(r"as a duration", node.get("description", ""))
    ]

    assert len(durations) == 10
    assert {node["pattern"] for node in durations} == {DURATION}
    assert bool(re.search(DURATION, text)) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *[(t, True) for t in ("1", "64Mi", "2Gi", "1000k", "1T")],
        *[(t, False) for t in ("0", "1.5Gi", "1Gb", "-1Mi", "1e3", "1 Gi", "", "1m")],
    ],
)
def test_sizes_are_whole_quantities(text: str, good: bool) -> None:
    sizes = [
        node
        for kind in KINDS
        for path, node in fields(kind)
        if "x-kubernetes-int-or-string" in node and not path.endswith(".cpu")
    ]

    assert {node["pattern"] for node in sizes} == {BYTES}
    assert bool(re.search(BYTES, text)) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *[(t, True) for t in ("250m", "2", "0.5", "1.25")],
        *[(t, False) for t in ("", "0m", "-1", "1.2345", "2cpu")],
    ],
)
def test_cpu_is_cores_or_millicores(text: str, good: bool) -> None:
    pattern = field("tenant", "spec.query.resources.limits.cpu")["pattern"]

    assert bool(re.search(pattern, text)) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *[(t, True) for t in ("acme", "acme/flights", "a/b/c", "a_b-c/1")],
        *[(t, False) for t in ("", "/a", "a/", "a//b", "../a", "a/../b", "A", "a b", ".")],
    ],
)
def test_prefix_stays_inside_the_bucket(text: str, good: bool) -> None:
    pattern = field("tenant", "spec.storage.prefix")["pattern"]

    assert bool(re.search(pattern, text)) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *[(t, True) for t in ("0 3 * * *", "*/5 1-4,6 * JAN MON-FRI", "@daily")],
        *[(t, False) for t in ("", "0 3 * *", "0 3 * * * *", "@every 5m", "now")],
    ],
)
def test_schedules_are_cron(text: str, good: bool) -> None:
    patterns = {
        field("compactor", path)["pattern"] for path in ("spec.schedule", "spec.integrity.schedule")
    }

    (pattern,) = patterns
    assert bool(re.search(pattern, text)) is good


def test_a_tenant_cannot_say_where_or_as_whom_its_pods_run() -> None:
    """A Tenant is written by a tenant: no image, command, account, volume, placement or foreign namespace."""
    names = {path.split(".")[-1] for path, _ in fields("tenant") if path.startswith("spec.")}
    names |= {path.split(".")[-1] for path, _ in fields("compactor") if path.startswith("spec.")}

    banned = {
        "image", "command", "args", "env", "serviceAccount", "serviceAccountName", "volumes",
        "securityContext", "nodeSelector", "tolerations", "affinity", "namespace", "secretRef",
        "endpoint", "dsn",
    }  # fmt: skip
    assert names & banned == set()


def test_columns_of_a_tenant() -> None:
    columns = version("tenant")["additionalPrinterColumns"]

    narrow = [c["name"].upper() for c in columns if not c.get("priority")]
    wide = [c["name"].upper() for c in columns if c.get("priority")]

    assert narrow == ["READY", "PHASE", "LAG", "SNAPSHOT", "WORKERS", "AGE"]
    assert wide == ["TARGET", "SNAP-ID", "FILES", "DEBT", "VERSION", "ENDPOINT", "REASON"]


def test_columns_of_a_compactor() -> None:
    columns = version("compactor")["additionalPrinterColumns"]

    narrow = [c["name"].upper() for c in columns if not c.get("priority")]

    assert narrow == ["READY", "TENANTS", "DEBT", "LAST-RUN", "RESULT", "NEXT", "AGE"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_selectors_point_at_fields(kind: str) -> None:
    known = {path for path, _ in fields(kind)} | {"metadata.creationTimestamp"}
    found = version(kind)
    paths = [c["jsonPath"] for c in found["additionalPrinterColumns"] + found["selectableFields"]]

    plain = [re.sub(r"\[\?.*\]", "[]", path).lstrip(".") for path in paths]

    assert [path for path in plain if path not in known] == []


def test_scale_acts_on_query_pods() -> None:
    assert version("tenant")["subresources"]["scale"] == {
        "specReplicasPath": ".spec.query.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        (
            "tenant",
            "Ready SpecValid CatalogReachable StorageReachable Fresh SnapshotHealthy"
            " CompactionCurrent Progressing Suspended Paused EgressRestricted DeadLetters",
        ),
        ("compactor", "Ready CaughtUp LastRunSucceeded Suspended Conflict"),
    ],
)
def test_conditions_are_unknown_before_the_operator_speaks(kind: str, types: str) -> None:
    seeds = field(kind, "status")["default"]["conditions"]

    assert [seed["type"] for seed in seeds] == types.split()
    assert {seed["status"] for seed in seeds} == {"Unknown"}


@pytest.mark.parametrize("sample", ["tenant-full", "compactor"])
def test_full_samples_set_every_field(sample: str) -> None:
    """So that the samples are the place to copy from."""
    kind = sample.split("-")[0]
    text = (CRDS / "samples" / f"{sample}.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(text)["spec"]
    other_way = {"spec.tenantRef", "spec.tenantSelector.matchExpressions"}

    wanted = {path for path, _ in fields(kind) if path.startswith("spec.") and "[]" not in path}
    missing = {
        path
        for path in wanted - _paths(spec, "spec")
        if not any(path.startswith(other) for other in other_way)
    }

    assert missing == set()


def _paths(value: object, path: str) -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {path}.union(*(_paths(below, f"{path}.{name}") for name, below in value.items()))


@pytest.mark.parametrize(
    ("page", "build"),
    [
        ("resources.md", "build_reference"),
        ("metrics.md", "build_metrics"),
        ("errors.md", "build_errors"),
        ("conditions.md", "build_conditions"),
    ],
)
def test_reference_pages_are_current(page: str, build: str) -> None:
    """`make manifests` writes them."""
    reference = CRDS.parent / "docs" / "reference"
    generate = runpy.run_path(str(reference / "generate.py"))

    written = (reference / page).read_text(encoding="utf-8")

    assert written == generate[build]()
