"""A bad version is taken back; an autoscaler works on a Tenant."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.e2e.product import VERSION, Tenant, wait_for
from tests.e2e.test_kubectl_duckmesh import environment


def test_a_version_without_images_leaves_the_pods_and_can_be_taken_back(tenant: Tenant) -> None:
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
    seen = tenant.kube.json("get", "hpa", "-n", tenant.namespace, "shop")["status"]
    states = {one["type"]: one["status"] for one in seen["conditions"]}
    assert states["AbleToScale"] == "True"
    assert seen["currentReplicas"] == 2
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


def _patch(tenant: Tenant, spec: dict[str, Any]) -> None:
    tenant.kube.kubectl(
        *("patch", "tenant", tenant.name, "-n", tenant.namespace, "--type=merge"),
        *("-p", json.dumps({"spec": spec})),
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
