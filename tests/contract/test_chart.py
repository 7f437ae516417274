"""The chart against the resources, the operator and the images; what helm makes of it is tested in tests/e2e."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from duckmesh_operator import names
from tests.contract import chart_text

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "duckmesh"
KINDS = ("tenant", "compactor")
EVERY_VERB = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}


def values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def check(instance: object) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(instance)


def rules(kind: str) -> list[dict[str, Any]]:
    """Rules of the operator's ClusterRole or Role."""
    (role,) = [doc for doc in chart_text.documents("rbac.yaml") if doc["kind"] == kind]
    return role["rules"]


def verbs_on(group: str, resource: str, kind: str = "ClusterRole") -> set[str]:
    return {
        verb
        for rule in rules(kind)
        if group in rule["apiGroups"] and resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _group(kind: names.Kind) -> str:
    return kind.api_version.rpartition("/")[0]


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
    ],
)
def test_good_values_are_taken(path: str, value: object) -> None:
    check(_with(path, value))


@pytest.mark.parametrize("file", ["rbac.yaml", "rbac-users.yaml"])
def test_no_right_is_a_wildcard(file: str) -> None:
    assert '"*"' not in chart_text.read(file).replace("'", '"')
    assert re.search(r"[\[ ,]\*[\] ,]", chart_text.read(file)) is None


@pytest.mark.parametrize("kind", ["ClusterRole", "Role"])
def test_operator_has_no_dangerous_right(kind: str) -> None:
    asked = {
        (group, resource, verb)
        for rule in rules(kind)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    resources = {resource for _, resource, _ in asked}
    assert {verb for _, _, verb in asked} <= EVERY_VERB - {"deletecollection"}
    assert "rbac.authorization.k8s.io" not in {group for group, _, _ in asked}
    assert resources.isdisjoint(
        {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts", "serviceaccounts/token"}
        | {"nodes", "nodes/proxy", "persistentvolumes", "namespaces", "customresourcedefinitions"}
    )


#: What the operator asks of the API server, by kind; server-side apply is a patch, and a create where there is nothing.
WRITTEN = {"get", "create", "patch", "delete"}
USED = {
    ("duckmesh.io", "tenants"): {"get", "list", "watch", "patch"},
    ("duckmesh.io", "compactors"): {"get", "list", "watch"},
    ("duckmesh.io", "tenants/status"): {"patch"},
    ("duckmesh.io", "compactors/status"): {"patch"},
    ("", "secrets"): WRITTEN,
    ("", "events"): {"create"},
    ("apps", "controllerrevisions"): WRITTEN | {"list"},
    **{(_group(kind), kind.plural): WRITTEN | {"list", "watch"} for kind in names.WATCHED},
}
USED_AT_HOME = {
    ("batch", "jobs"): WRITTEN,
    ("coordination.k8s.io", "leases"): {"get", "create", "update"},
    ("", "configmaps"): {"get", "delete"},
}


@pytest.mark.parametrize(
    ("kind", "used"), [("ClusterRole", USED), ("Role", USED_AT_HOME)], ids=["cluster", "home"]
)
def test_operator_has_the_rights_it_uses_and_no_other(
    kind: str, used: dict[tuple[str, str], set[str]]
) -> None:
    given = {
        (group, resource)
        for r in rules(kind)
        for group in r["apiGroups"]
        for resource in r["resources"]
    }

    assert {(g, r): verbs_on(g, r, kind) for g, r in given} == used


def test_operator_reads_secrets_by_name_only() -> None:
    assert verbs_on("", "secrets") == {"get", "create", "patch", "delete"}
    assert verbs_on("", "secrets", "Role") == set()


def test_operator_reports_on_its_own_kinds_and_changes_nothing_else_of_them() -> None:
    finalizers = {"tenants": {"patch"}, "compactors": set[str]()}
    for resource, more in finalizers.items():
        assert verbs_on(names.GROUP, resource) == {"get", "list", "watch"} | more
        assert verbs_on(names.GROUP, f"{resource}/status") == {"patch"}


@pytest.mark.parametrize("kind", names.CHILDREN, ids=lambda kind: kind.plural)
def test_operator_may_make_what_a_tenant_is_made_of(kind: names.Kind) -> None:
    assert verbs_on(_group(kind), kind.plural) >= {"get", "list", "create", "patch", "delete"}


@pytest.mark.parametrize("kind", names.WATCHED, ids=lambda kind: kind.plural)
def test_operator_may_watch_what_it_watches(kind: names.Kind) -> None:
    where = "Role" if kind is names.JOB else "ClusterRole"

    assert verbs_on(_group(kind), kind.plural, where) >= {"list", "watch"}


def test_jobs_and_leases_are_the_own_namespaces_only() -> None:
    for kind in (names.JOB, names.LEASE):
        assert verbs_on(_group(kind), kind.plural) == set()
        assert verbs_on(_group(kind), kind.plural, "Role") >= {"get", "create"}


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
