"""The object store hangs: rows are acknowledged all the same, lag is Kubernetes state, and nothing is lost."""

from __future__ import annotations

import time

from tests.e2e.api import Api
from tests.e2e.product import Tenant, hanging_store, wait_for

BUCKETS = ["0s", "1s", "2s", "5s", "10s", "30s", "1m"]


def test_lag_rises_and_falls_in_kubectl_while_writes_go_on(tenant: Tenant) -> None:
    tenant.apply({"freshness": {"target": "2s", "sustainedFor": "1s"}})
    tenant.wait("Ready")
    tenant.wait("StorageReachable")
    _wait_fresh(tenant, "True")
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        api.ok("POST", "/v1/tables", {"name": "t", "columns": [{"name": "id", "type": "INTEGER"}]})
        with hanging_store(tenant.kube):
            asked = time.monotonic()
            token = api.ok("POST", "/v1/ingest/t", {"records": [{"payload": {"id": 1}}]})[
                "max_visibility_token"
            ]
            acknowledged_s = time.monotonic() - asked
            wait_for(
                "lag in kubectl", lambda: BUCKETS.index(_lag(tenant)) >= BUCKETS.index("2s"), 30
            )
            status, answer = api.call("GET", f"/v1/visible?token={token}&timeout_ms=100")
            _wait_fresh(tenant, "False")
            tenant.wait("StorageReachable", "False")
            store = tenant.condition("StorageReachable")

        rows = api.rows("SELECT id FROM t", token)

    print(f"acknowledged after {acknowledged_s * 1000:.0f} ms while the store hung")
    assert (status, answer["error_code"]) == (504, "CONSISTENCY_TIMEOUT")
    assert rows == [[1]]
    assert store["reason"] == "Unreachable"
    wait_for("no lag in kubectl", lambda: _lag(tenant) == "0s", 30)
    _wait_fresh(tenant, "True")
    tenant.wait("StorageReachable")
    assert tenant.condition("Ready")["status"] == "True"


def _wait_fresh(tenant: Tenant, state: str) -> None:
    """As a person or a pipeline waits."""
    what = f"--for=condition=Fresh={state}"
    tenant.kube.kubectl(
        "wait", "-n", tenant.namespace, f"tenant/{tenant.name}", what, "--timeout=90s"
    )


def _lag(tenant: Tenant) -> str:
    """The LAG column."""
    return tenant.row(wide=False).splitlines()[1].split()[3]
