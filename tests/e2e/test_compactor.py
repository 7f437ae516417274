"""A Compactor says what it looks after and when it runs."""

from __future__ import annotations

from typing import Any

from tests.e2e.product import Tenant, wait_for


def test_a_compactor_without_a_tenant_says_so_and_when_it_would_run(tenant: Tenant) -> None:
    kube = tenant.kube
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant.namespace}})
    kube.apply(
        {
            "apiVersion": "duckmesh.io/v1alpha1",
            "kind": "Compactor",
            "metadata": {"name": "nightly", "namespace": tenant.namespace},
            "spec": {"tenantRef": {"name": "shop"}, "schedule": "0 3 * * *"},
        }
    )

    def status() -> dict[str, Any]:
        found = kube.json("get", "compactor", "-n", tenant.namespace, "nightly")["status"]
        (ready,) = [one for one in found["conditions"] if one["type"] == "Ready"]
        assert (ready["status"], ready["reason"]) == ("False", "NoTenants")
        return dict(found)

    found = wait_for("the status of a Compactor without a Tenant", status, 30)
    assert found["tenants"] == {"matched": 0, "behind": 0}
    assert found["nextRunAt"].endswith("T03:00:00Z")
