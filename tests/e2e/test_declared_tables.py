"""spec.tables: the tables are there before anyone asks, evolve under running pods, and are never dropped."""

from __future__ import annotations

from typing import Any

from tests.e2e.api import Api
from tests.e2e.product import Tenant, wait_for

#: The kubelet renews a mounted ConfigMap once a minute; a busy machine takes longer.
RENEWED_S = 240.0

ID = {"name": "id", "type": "INTEGER"}
KIND = {"name": "kind", "type": "VARCHAR", "default": "web"}


def orders(*columns: dict[str, Any]) -> dict[str, Any]:
    return {"tables": [{"name": "orders", "columns": list(columns), "primaryKey": ["id"]}]}


def test_declared_tables_evolve_without_a_rollout_and_stay_when_taken_out(tenant: Tenant) -> None:
    def names(api: Api) -> list[str]:
        found = api.ok("GET", "/v1/tables/orders")
        return [column["name"] for column in found["columns"]]

    def reason() -> str:
        return str(tenant.condition("TablesReady").get("reason", ""))

    def told() -> bool:
        found = tenant.condition("TablesReady")
        assert found["reason"] == "Incompatible", found
        return "id is BIGINT, not to be VARCHAR" in found["message"]

    tenant.apply(orders(ID, KIND))
    tenant.wait("Ready")
    tenant.wait("TablesReady", timeout_s=RENEWED_S)
    before = {pod["metadata"]["uid"] for pod in tenant.pods("ingest")}
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        api.ok("POST", "/v1/ingest/orders", {"records": [{"payload": {"id": 1}}]})
        status, answer = api.call("DELETE", "/v1/tables/orders")
        assert (status, answer["error_code"]) == (409, "TABLE_DECLARED")

        tenant.apply(orders({**ID, "type": "BIGINT"}, KIND, {"name": "n", "type": "DOUBLE"}))
        tenant.wait("TablesReady", timeout_s=RENEWED_S)
        token = api.ok(
            "POST", "/v1/ingest/orders", {"records": [{"payload": {"id": 2**40, "n": 0.5}}]}
        )["max_visibility_token"]
        rows = api.rows("SELECT id, kind, n FROM orders ORDER BY id", token)
        assert rows == [[1, "web", None], [2**40, "web", 0.5]]

        tenant.apply(orders({**ID, "type": "VARCHAR"}, KIND))
        wait_for("the problem in status", told, RENEWED_S)
        tenant.apply({"tables": []})
        wait_for("no condition without declared tables", lambda: not reason(), 60)
        assert names(api) == ["id", "kind", "n"]
        wait_for(
            "the table to be everyone's again",
            lambda: api.call("DELETE", "/v1/tables/orders")[0] == 200,
            RENEWED_S,
        )
    assert {pod["metadata"]["uid"] for pod in tenant.pods("ingest")} == before
