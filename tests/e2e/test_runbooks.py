"""The runbooks' commands with kubectl, against the faults that they are for; the others are run without a cluster."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.api import Api
from tests.e2e.product import Tenant, hanging_store, wait_for
from tests.e2e.runbooks import on_call

TABLE = {"name": "t", "columns": [{"name": "id", "type": "INTEGER"}]}


def test_the_commands_of_the_runbooks_show_the_faults(tenant: Tenant, tmp_path: Path) -> None:
    tenant.apply({"freshness": {"target": "1s", "sustainedFor": "3s"}})
    tenant.wait("Ready")
    with on_call(tenant, tmp_path) as shell:
        shell.follow("README.md", "Before you start")
        shell.follow("snapshot-publish-failures.md", "The lake lacks its fence")

        shell.follow("stuck-leases.md", "Who commits")
        before = _committer(tenant)
        shell.follow("stuck-leases.md", "Replace the pod")
        wait_for("another committer", lambda: _committer(tenant) not in ("", before), 60)

        with tenant.door() as url:
            api = Api(url, tenant.admin_key())
            api.persist("POST", "/v1/tables", TABLE)
            with hanging_store(tenant.kube):
                api.ok("POST", "/v1/ingest/t", {"records": [{"payload": {"id": 1}}]})
                shell.follow("high-ingest-lag.md", "What is behind")
        shell.follow("high-ingest-lag.md", "Verification")


def _committer(tenant: Tenant) -> str:
    return str(tenant.read()["status"]["ingest"].get("committer", ""))
