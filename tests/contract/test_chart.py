"""The chart against the resources, the operator and the images; what helm makes of it is tested in tests/e2e."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.contract import chart_text

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "duckmesh"
KINDS = ("tenant", "compactor")


def values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def check(instance: object) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(instance)


@pytest.mark.parametrize("kind", KINDS)
def test_chart_carries_the_same_resources(kind: str) -> None:
    """`make manifests` writes the copies."""
    source = yaml.safe_load((ROOT / "crds" / f"{kind}.yaml").read_text(encoding="utf-8"))
    lines = (CHART / "templates" / "crds" / f"{kind}.yaml").read_text(encoding="utf-8").splitlines()

    copied = yaml.safe_load("\n".join(lines[1:-1]))

    assert (lines[0], lines[-1]) == ("{{- if .Values.crds.install }}", "{{- end }}")
    assert copied["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert copied == source


def test_default_values_pass_their_schema() -> None:
    check(values())


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return found


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the schema with what it refers to."""
    if "$ref" not in node:
        return node
    found: dict[str, Any] = schema()["definitions"][node["$ref"].rpartition("/")[2]]
    return {**found, **node}


def described(node: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each value of the schema by its dotted name."""
    node = resolve(node)
    for name, inner in node.get("properties", {}).items():
        yield f"{where}{name}", resolve(inner)
        yield from described(inner, f"{where}{name}.")
    if isinstance(items := node.get("items"), dict):
        yield from described(items, where)


def test_every_value_is_described() -> None:
    found = dict(described(schema()))

    assert len(found) > 90
    assert [name for name, node in found.items() if not node.get("description")] == []


def test_every_object_of_values_is_closed_or_a_map() -> None:
    """`affinity` and `global` are Kubernetes' and a parent chart's; lists of objects are Kubernetes' too."""
    open_ = {
        name
        for name, node in described(schema())
        if node.get("type") == "object" and "additionalProperties" not in node
    }

    assert open_ == {"global", "operator.affinity", "profiles.affinity"}


def test_every_value_with_a_default_is_written_down() -> None:
    """values.yaml is what people read first; lists of named things show one entry."""

    def leaves(value: object, where: str = "") -> Iterator[str]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from leaves(inner, f"{where}{name}.")
        else:
            yield where.rstrip(".")

    known = {name for name, _ in described(schema())}
    written = set(leaves(values()))
    optional = {name for name in known if name.startswith(("catalogs.", "stores.", "profiles."))}
    # Quantities are given where the chart has an opinion.
    optional |= {name for name in known if ".resources." in name}
    inner = {name for name in known if any(other.startswith(f"{name}.") for other in known)}

    assert written <= known
    assert known - inner - optional - {"global"} <= written


@pytest.mark.parametrize("part", ["cluster", "namespaced"])
def test_both_parts_of_an_installation_have_values_that_pass(part: str) -> None:
    file = CHART / f"values-{part}.yaml"
    merged = values()
    for name, inner in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        merged[name] = merged[name] | inner if isinstance(inner, dict) else inner

    check(merged)


def test_the_two_parts_leave_nothing_out_and_share_nothing() -> None:
    """What belongs to the cluster is in one of them only."""
    parts = [
        yaml.safe_load((CHART / f"values-{part}.yaml").read_text(encoding="utf-8"))
        for part in ("cluster", "namespaced")
    ]
    switches = {"crds": "install", "admissionPolicy": "install", "rbac": "userRoles"}
    switches |= {"priorityClass": "install"}

    for name, switch in switches.items():
        assert [part[name][switch] for part in parts] == [True, False]
    assert parts[0]["operator"] == {"install": False}
    assert "install" not in parts[1]["operator"]
    # Without the first part nothing may be said that only it makes true, nor asked for that only it has.
    assert parts[1]["admissionPolicy"]["provided"] is False
    assert parts[1]["operator"] == {"priorityClassName": ""}


def _with(path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(values())
    at: Any = changed
    *parents, last = path.split(".")
    for name in parents:
        at = at[int(name)] if name.isdecimal() else at[name]
    at[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("operater", {}),
        ("operator.replica", 2),
        ("operator.replicas", "2"),
        ("operator.logLevel", "verbose"),
        ("operator.config.sweepSeconds", 0),
        ("operator.config.sweep", 5),
        ("operator.resources.limits", {"memory": "1 GB"}),
        ("images.operator.tag", "a:b"),
        ("images.operator.digest", "sha256:0"),
        ("images.pullPolicy", "Sometimes"),
        ("runtimeVersion", "latest"),
        ("catalogs", []),
        ("catalogs.0.dsn", "postgresql://u:p@h/d"),
        ("catalogs.0.secretName", ""),
        ("catalogs.0.egress", {"cidrs": ["postgres.example.com"]}),
        ("stores.0.endpoint", "minio:9000"),
        ("stores.0.endpoint", "http://minio:9000/bucket"),
        ("stores.0.bucket", "My_Bucket"),
        ("profiles.0.name", "Big"),
        ("profiles.0.query", {"max": {"gpu": 1}}),
        ("devservices.enabled", "yes"),
        ("devservices.persistence.size", "10"),
        ("crds.install", None),
        ("watchNamespaces", ["Team"]),
        ("watchNamespaces", ["team", "team"]),
        ("networkPolicy.apiServer.ports", []),
        ("podMonitor.interval", "often"),
        ("operator.install", "no"),
        ("admissionPolicy.provide", True),
    ],
)
def test_bad_values_are_refused(path: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(_with(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stores.0.endpoint", "https://s3.example.com"),
        ("catalogs.0.egress", {"cidrs": ["10.0.0.0/8", "fd00::/8"], "ports": [5432]}),
        ("profiles.0.tolerations", [{"key": "dedicated", "operator": "Exists"}]),
        ("operator.resources.limits", {"cpu": 2, "memory": "1Gi"}),
        ("images.operator.tag", "0.1.0-dev.1"),
        ("global", {"anything": True}),
        ("watchNamespaces", ["team", "shop"]),
        ("networkPolicy.metricsFrom", [{"namespaceSelector": {}}]),
        ("operator.podLabels", {"team": "data"}),
    ],
)
def test_good_values_are_taken(path: str, value: object) -> None:
    check(_with(path, value))


def test_environment_of_the_operator_is_what_it_reads() -> None:
    given = set(re.findall(r"\bDUCKMESH_[A-Z_]+", chart_text.read("deployment.yaml")))
    source = (ROOT / "operator/duckmesh_operator/settings.py").read_text(encoding="utf-8")

    assert given - set(re.findall(r"\bDUCKMESH_[A-Z_]+", source)) == set()


def test_admin_credential_never_reaches_the_operator_pod() -> None:
    mounted = re.sub(r"#.*", "", chart_text.read("deployment.yaml"))

    assert "admin-dsn" not in mounted


@pytest.mark.parametrize("member", ["operator", "runtime"])
def test_chart_and_packages_have_one_version(member: str) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == project["project"]["version"]


def test_every_image_of_the_chart_is_a_target_of_the_dockerfile() -> None:
    targets = set(
        re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    )
    images = {name: image for name, image in values()["images"].items() if isinstance(image, dict)}

    assert set(images) == {"operator", "runtime", "sandbox", "devservices"}
    assert set(images) <= targets
    for name, image in images.items():
        assert image == {"repository": f"localhost/duckmesh-{name}", "tag": ""}


def test_pods_run_as_the_user_of_the_images() -> None:
    (user,) = re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    helpers = chart_text.read("_helpers.tpl")

    assert f"runAsUser: {user}" in helpers
    assert "readOnlyRootFilesystem: true" in helpers
