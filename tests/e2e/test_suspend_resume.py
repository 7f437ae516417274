"""A suspended Tenant has no pods and keeps its data."""

from __future__ import annotations

from tests.e2e.api import Api
from tests.e2e.product import Tenant, wait_for


def test_suspend_keeps_the_rows_and_resume_brings_them_back(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        api.ok(
            "POST", "/v1/tables", {"name": "kept", "columns": [{"name": "id", "type": "INTEGER"}]}
        )
        token = api.ok("POST", "/v1/ingest/kept", {"records": [{"payload": {"id": 7}}]})[
            "max_visibility_token"
        ]

    tenant.apply({"suspend": True})
    tenant.wait("Suspended")
    wait_for("no pods", lambda: not tenant.pods("ingest") and not tenant.pods("query"), 60)
    assert tenant.condition("Ready")["status"] == "False"
    tenant.apply({"suspend": False})
    tenant.wait("Ready")

    with tenant.door() as url:
        assert Api(url, tenant.admin_key()).rows("SELECT id FROM kept", token) == [[7]]


def test_a_bad_spec_names_the_field_and_leaves_the_workers_alone(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")
    before = {pod["metadata"]["uid"] for part in ("ingest", "query") for pod in tenant.pods(part)}

    tenant.apply({"profile": "no-such-profile"})
    tenant.wait("SpecValid", "False")

    assert "spec.profile" in tenant.condition("SpecValid")["message"]
    after = {pod["metadata"]["uid"] for part in ("ingest", "query") for pod in tenant.pods(part)}
    assert after == before
