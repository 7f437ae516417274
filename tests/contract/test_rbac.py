"""The operator's rights: what its code asks for and no other. What it really asks is compared in tests/e2e."""

from __future__ import annotations

import re

import pytest

from duckmesh_operator import names
from duckmesh_operator.names import Kind
from tests.contract.chart_text import CHART, RIGHTS, TEMPLATES, Right, read, rights

#: Server-side apply is a patch, and a create where there is nothing.
WRITTEN = {"get", "create", "patch", "delete"}
OWN = ("tenants", "compactors")


def group(kind: Kind) -> str:
    return kind.api_version.rpartition("/")[0]


def all_of(group: str, resource: str, verbs: set[str]) -> set[Right]:
    return {(group, resource, verb) for verb in verbs}


def watched(verbs: set[str]) -> set[Right]:
    """These verbs on each kind that is watched."""
    found = {(group(kind), kind.plural, verb) for kind in names.CHILDREN for verb in verbs}
    return found | {(names.GROUP, plural, verb) for plural in OWN for verb in verbs}


def verbs_on(scope: str, resource: str) -> set[str]:
    return {verb for _, found, verb in rights(scope) if found == resource}


@pytest.mark.parametrize("scope", RIGHTS)
def test_no_right_is_dangerous(scope: str) -> None:
    found = rights(scope)

    assert {verb for _, _, verb in found} <= {
        *("get", "list", "watch", "create", "update", "patch", "delete")
    }
    assert {group for group, _, _ in found} <= {
        *("", "apps", "batch", "policy", "networking.k8s.io", "coordination.k8s.io", names.GROUP)
    }
    assert {resource for _, resource, _ in found}.isdisjoint(
        {"*", "pods/exec", "pods/attach", "pods/portforward", "pods", "nodes", "namespaces"}
        | {"serviceaccounts", "serviceaccounts/token", "persistentvolumes"}
    )
    assert verbs_on(scope, "secrets").isdisjoint({"list", "watch"})


def test_no_template_asks_for_everything_or_for_a_webhook() -> None:
    text = "\n".join(
        re.sub(r"#.*", "", file.read_text(encoding="utf-8"))
        for folder in (TEMPLATES, CHART / "rbac")
        for file in folder.rglob("*.yaml")
        if file.parent.name != "crds"
    )

    assert "kind: ClusterRole" in text
    for word in ("WebhookConfiguration", "escalate", "impersonate", "serviceaccounts/token"):
        assert word not in text
    assert re.search(r"""(verbs|resources|apiGroups|nonResourceURLs):.*\*""", text) is None
    assert re.search(r"verbs:.*\bbind\b", text) is None


def test_resources_have_no_conversion_webhook() -> None:
    for file in (TEMPLATES / "crds").glob("*.yaml"):
        assert "conversion:" not in file.read_text(encoding="utf-8")


def test_rights_where_tenants_are_served() -> None:
    used = watched({"get", "list", "watch"})
    used |= {(group(kind), kind.plural, verb) for kind in names.CHILDREN for verb in WRITTEN}
    used |= all_of("", "secrets", WRITTEN) | all_of("", "events", {"create"})
    used |= {(names.GROUP, f"{plural}/status", "patch") for plural in OWN}
    used |= all_of(names.GROUP, "tenants", {"patch"})
    used |= all_of("batch", "jobs", {"list", "create", "delete"})

    assert rights("tenants") == used


def test_rights_in_the_operators_own_namespace() -> None:
    used = all_of("batch", "jobs", WRITTEN)
    used |= all_of("coordination.k8s.io", "leases", {"get", "create", "update"})
    used |= all_of("", "configmaps", {"get", "delete"})  # the platform's word on retained data
    used |= all_of("", "configmaps", {"get", "delete"})

    assert rights("home") == used


def test_rights_of_the_canary_are_to_be_heard() -> None:
    """A namespaced operator watches its own namespace for the canary alone, and nothing of a Tenant is read there."""
    policy = names.NETWORK_POLICY

    assert rights("canary") == watched({"list", "watch"}) | all_of(
        group(policy), policy.plural, {"create", "patch"}
    )


def test_operator_binds_nobody_else() -> None:
    template = read("rbac.yaml")

    assert set(re.findall(r"kind: (\w+)", template)) == {
        *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    }
