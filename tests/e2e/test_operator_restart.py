"""Restarting the operator touches nothing: no write to a child, no pod restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.product import SYSTEM, Tenant, wait_for
from tests.e2e.runbooks import on_call

KINDS = "deployments,services,secrets,networkpolicies,poddisruptionbudgets,controllerrevisions"


def test_a_restarted_operator_writes_nothing_and_restarts_nothing(
    tenant: Tenant, tmp_path: Path
) -> None:
    tenant.apply()
    tenant.wait("Ready")
    wait_for("children at rest", lambda: _children(tenant) == _children(tenant), 20)
    children, pods = _children(tenant), _pods(tenant)

    with on_call(tenant, tmp_path) as shell:
        shell.follow("operator-down.md", "Diagnosis", "Mitigation")
        operator = ("deployment/duckmesh-operator", "-n", SYSTEM)
        tenant.kube.kubectl("rollout", "status", *operator, "--timeout=120s")
        shell.follow("operator-down.md", "Verification")
    tenant.kube.kubectl(
        *("patch", "tenant", tenant.name, "-n", tenant.namespace, "--type=merge"),
        *("-p", '{"spec": {"freshness": {"sustainedFor": "45s"}}}'),
    )
    tenant.wait("Ready")

    assert _children(tenant) == children
    assert _pods(tenant) == pods


def _children(tenant: Tenant) -> dict[str, str]:
    """Generation (or version, where Kubernetes itself never writes) of every child."""
    return {
        f"{item['kind']}/{item['metadata']['name']}": _mark(item)
        for item in tenant.kube.json(
            "get",
            KINDS,
            "-n",
            tenant.namespace,
            "-l",
            "app.kubernetes.io/managed-by=duckmesh-operator",
        )["items"]
    }


def _mark(item: dict[str, Any]) -> str:
    """What changes on any write of ours: the time of our manager's last change in managedFields."""
    ours = [
        f["time"]
        for f in item["metadata"].get("managedFields", [])
        if f["manager"].startswith("duckmesh")
    ]
    return f"{item['metadata'].get('generation')} {sorted(ours)}"


def _pods(tenant: Tenant) -> set[tuple[str, int]]:
    return {
        (pod["metadata"]["uid"], sum(c["restartCount"] for c in pod["status"]["containerStatuses"]))
        for component in ("ingest", "query")
        for pod in tenant.pods(component)
    }
