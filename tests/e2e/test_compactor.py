"""A Compactor does not act yet, and says so instead of looking healthy."""

from __future__ import annotations

from tests.e2e.product import Tenant, wait_for


def test_a_compactor_says_that_it_does_not_act_yet(tenant: Tenant) -> None:
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

    def ready() -> dict[str, str]:
        found = kube.json("get", "compactor", "-n", tenant.namespace, "nightly")
        conditions = {c["type"]: c for c in found["status"]["conditions"]}
        assert conditions["Ready"]["reason"] == "NotSupportedYet"
        return dict(conditions["Ready"])

    condition = wait_for("an honest status", ready, 30)
    assert condition["status"] == "False"
    assert "no maintenance" in condition["message"]
