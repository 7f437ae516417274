"""A Tenant is scaled, rolled and robbed of a pod while rows go in and come out; a bad version is taken back."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.api import Api
from tests.e2e.product import VERSION, Tenant, wait_for
from tests.e2e.runbooks import on_call
from tests.e2e.test_kubectl_duckmesh import environment
from tests.e2e.writing import TABLE, check, steady_load


def test_no_acknowledged_write_is_lost_or_doubled_while_workers_come_and_go(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        Api(url, tenant.admin_key()).ok("POST", "/v1/tables", TABLE)

    with steady_load(tenant) as load:
        load.goes_on()
        tenant.patch({"ingest": {"replicas": 3}})
        tenant.kube.kubectl("scale", "-n", tenant.namespace, "tenant/shop", "--replicas=2")
        _settled(tenant, ingest=3, query=2)
        load.goes_on()
        assert _budgets(tenant) == {"shop-ingest", "shop-query"}

        before = _uids(tenant)
        tenant.patch({"ingest": {"batch": {"maxRows": 400_000}}, "query": {"limits": {"rows": 99}}})
        wait_for("other pods", lambda: not before & _uids(tenant), 240)
        _settled(tenant, ingest=3, query=2)
        load.goes_on()

        tenant.patch({"ingest": {"replicas": 2}})
        tenant.kube.kubectl("scale", "-n", tenant.namespace, "tenant/shop", "--replicas=1")
        _settled(tenant, ingest=2, query=1)
        load.goes_on()
        assert _budgets(tenant) == {"shop-ingest"}

        gone = tenant.pods("ingest")[0]["metadata"]["name"]
        tenant.kube.kubectl("delete", "pod", "-n", tenant.namespace, gone, "--wait=false")
        wait_for("the pod gone", lambda: gone not in _names(tenant, "ingest"), 60)
        _settled(tenant, ingest=2, query=1)
        load.goes_on()
        result = load.stop()

    check(tenant, result)


def test_a_version_without_images_leaves_the_pods_and_can_be_taken_back(
    tenant: Tenant, tmp_path: Path
) -> None:
    tenant.apply()
    tenant.wait("Ready")
    before = _uids(tenant)

    failed = _upgrade(tenant, "--to", "9.9.9", "--timeout", "5")

    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "did not become Ready at 9.9.9" in failed.stderr
    wait_for("a pod that waits for its image", lambda: len(_names(tenant, "ingest")) == 3, 120)
    assert tenant.condition("Progressing")["status"] == "True"
    assert tenant.condition("Ready")["status"] == "True"
    assert tenant.read()["status"]["version"] == {"current": VERSION, "target": "9.9.9"}
    assert before < _uids(tenant)
    assert _images(tenant, "query") == {VERSION}

    with on_call(tenant, tmp_path) as shell:
        shell.follow("workers-not-ready.md", "Diagnosis", "A bad version", "Verification")
    back = _upgrade(tenant, "--to", VERSION)
    assert back.returncode == 0, back.stdout + back.stderr
    wait_for("only the pods of before", lambda: _uids(tenant) == before, 120)
    assert tenant.read()["status"]["version"] == {"current": VERSION, "target": VERSION}


def test_an_autoscaler_reads_the_tenant_and_the_operator_leaves_it_the_number(
    tenant: Tenant,
) -> None:
    tenant.apply()
    tenant.wait("Ready")
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "shop", "namespace": tenant.namespace},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "duckmesh.io/v1alpha1",
                "kind": "Tenant",
                "name": "shop",
            },
            "minReplicas": 2,
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70},
                    },
                }
            ],
        },
    }
    tenant.kube.apply(scaler)

    # It lifts the Tenant to its lower bound without any metrics.
    _settled(tenant, ingest=2, query=2)

    def seen() -> dict[str, Any]:
        status: dict[str, Any] = tenant.kube.json("get", "hpa", "-n", tenant.namespace, "shop")[
            "status"
        ]
        return status

    wait_for("the autoscaler to see two pods", lambda: seen()["currentReplicas"] == 2, 120)
    states = {one["type"]: one["status"] for one in seen()["conditions"]}
    assert states["AbleToScale"] == "True"
    shown = tenant.kube.json(
        "get", "tenant", "-n", tenant.namespace, "shop", "--show-managed-fields"
    )
    writers = {
        one["manager"]
        for one in shown["metadata"]["managedFields"]
        if "f:spec" in one["fieldsV1"] and one.get("subresource") != "status"
    }
    assert "duckmesh" not in writers


# -------------------------------------------------------------------- helpers


def _upgrade(tenant: Tenant, *args: str) -> subprocess.CompletedProcess[str]:
    """As the platform team does it."""
    return subprocess.run(
        ["kubectl", "duckmesh", "-n", tenant.namespace, "upgrade", "shop", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env=environment(tenant.kube),
    )


def _settled(tenant: Tenant, *, ingest: int, query: int) -> None:
    """Wait until there are so many pods, all of the newest template and ready, and none that goes."""

    def holds() -> bool:
        found = tenant.read()
        status = found["status"]
        conditions = {one["type"]: one for one in status["conditions"]}
        assert status["observedGeneration"] == found["metadata"]["generation"]
        assert conditions["Progressing"]["reason"] == "Settled", conditions["Progressing"]
        assert conditions["Ready"]["status"] == "True", conditions["Ready"]
        assert (status["workers"], status["replicas"]) == (
            f"{ingest + query}/{ingest + query}",
            query,
        )
        return True

    wait_for(f"{ingest} ingest and {query} query pods", holds, 180)


def _names(tenant: Tenant, part: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in tenant.pods(part)}


def _uids(tenant: Tenant) -> set[str]:
    return {pod["metadata"]["uid"] for part in ("ingest", "query") for pod in tenant.pods(part)}


def _images(tenant: Tenant, *parts: str) -> set[str]:
    """Tags of the images of its pods."""
    return {
        one["image"].rpartition(":")[2]
        for part in parts or ("ingest", "query")
        for pod in tenant.pods(part)
        for one in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
    }


def _budgets(tenant: Tenant) -> set[str]:
    return {
        one["metadata"]["name"]
        for one in tenant.kube.json("get", "pdb", "-n", tenant.namespace)["items"]
    }
