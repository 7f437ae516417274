"""An operator for some namespaces, installed by someone without rights on the cluster: Roles only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.charts import CHART
from tests.e2e.moments import other_roles
from tests.e2e.product import SYSTEM, Kube, Tenant, install_chart, wait_for

ACCOUNT = f"system:serviceaccount:{SYSTEM}:duckmesh-operator"


@pytest.fixture
def elsewhere(tenant: Tenant) -> Iterator[Tenant]:
    """A Tenant in a namespace that the operator does not serve."""
    made = Tenant(tenant.kube, f"{tenant.namespace}-other", "shop")
    yield made
    made.delete()


@pytest.fixture
def served(tenant: Tenant) -> Iterator[str]:
    """The installation serves one namespace, which is returned; all of them again afterwards."""
    kube = tenant.kube
    operator = kube.json("get", "deployment", "duckmesh-operator", "-n", SYSTEM)
    image = operator["spec"]["template"]["metadata"]["annotations"]["image"]
    kube.kubectl("create", "namespace", tenant.namespace)
    with other_roles():  # until the operator that wants them all is gone
        kube.helm(
            *("upgrade", "duckmesh", str(CHART), "-n", SYSTEM, "--reuse-values"),
            *("--wait", "--timeout=5m", f"--values={CHART / 'values-namespaced.yaml'}"),
            *(f"--set=watchNamespaces={{{tenant.namespace}}}",),
            "--set=admissionPolicy.provided=false",
        )
        _wait_for_one_operator(kube)
    yield tenant.namespace
    with other_roles():
        install_chart(kube, operator_image=image)
        _wait_for_one_operator(kube)


def test_a_namespaced_operator_needs_no_right_on_the_cluster(
    served: str, tenant: Tenant, elsewhere: Tenant
) -> None:
    kube = tenant.kube
    elsewhere.apply()
    tenant.apply({"deletionProtection": True})
    tenant.wait("Ready")

    assert _bindings_on_the_cluster(kube) == []
    assert _may(kube, "create", "deployments", served)
    for verb, resource, namespace in (
        ("list", "tenants.duckmesh.io", elsewhere.namespace),
        ("get", "secrets", elsewhere.namespace),
        ("get", "secrets", SYSTEM),
        ("list", "secrets", served),
        ("create", "deployments", elsewhere.namespace),
        ("create", "deployments", SYSTEM),
    ):
        assert not _may(kube, verb, resource, namespace), f"{verb} {resource} in {namespace}"
    # Asked for before the other one, which is Ready by now.
    assert "observedGeneration" not in elsewhere.read().get("status", {})
    assert kube.json("get", "deployments,secrets", "-n", elsewhere.namespace)["items"] == []
    # Without the administrator's part nothing protects it, and it says so.
    assert tenant.condition("DeletionProtected")["reason"] == "ProtectionUnavailable"
    # The schema refuses all the same.
    move = kube.kubectl(
        *("patch", "tenant", tenant.name, "-n", served, "--type=merge"),
        *("-p", '{"spec": {"catalog": {"name": "other"}}}'),
        check=False,
    )
    assert "is immutable" in move.stderr
    kube.kubectl("delete", "tenant", tenant.name, "-n", served, "--timeout=60s")


def _wait_for_one_operator(kube: Kube) -> None:
    pods = ("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator")
    wait_for("the earlier operator's end", lambda: len(kube.json(*pods)["items"]) == 1, 60)


def _bindings_on_the_cluster(kube: Kube) -> list[str]:
    return [
        one["metadata"]["name"]
        for one in kube.json("get", "clusterrolebindings")["items"]
        if any(
            (subject.get("namespace"), subject["name"]) == (SYSTEM, "duckmesh-operator")
            for subject in one.get("subjects", [])
        )
    ]


def _may(kube: Kube, verb: str, resource: str, namespace: str) -> bool:
    asked = kube.kubectl(
        *("auth", "can-i", verb, resource, f"--as={ACCOUNT}", "-n", namespace), check=False
    )
    return asked.stdout.strip() == "yes"
