"""A Tenant goes without its data, comes back to it on the platform's word, and goes with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.api import Api
from tests.e2e.product import Tenant, hanging_store, wait_for
from tests.e2e.runbooks import on_call
from tests.e2e.test_kubectl_duckmesh import environment

TABLE = {"name": "kept", "columns": [{"name": "id", "type": "INTEGER"}]}


def begin_to_delete(tenant: Tenant) -> None:
    name = ("tenant", tenant.name, "-n", tenant.namespace)
    tenant.kube.kubectl("delete", *name, "--wait=false")


def wait_until_gone(tenant: Tenant) -> None:
    name = ("tenant", tenant.name, "-n", tenant.namespace)
    wait_for(
        "the Tenant to go",
        lambda: "NotFound" in tenant.kube.kubectl("get", *name, check=False).stderr,
        180,
    )


def delete(tenant: Tenant) -> None:
    begin_to_delete(tenant)
    wait_until_gone(tenant)


def adopt(tenant: Tenant) -> str:
    run = subprocess.run(
        ["kubectl", "duckmesh", "adopt", tenant.name, "--namespace", tenant.namespace],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(tenant.kube),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_data_stays_is_handed_over_and_goes(tenant: Tenant, tmp_path: Path) -> None:
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        api.ok("POST", "/v1/tables", TABLE)
        sent = api.ok("POST", "/v1/ingest/kept", {"records": [{"payload": {"id": 7}}]})
        token = sent["max_visibility_token"]
        assert api.rows("SELECT id FROM kept", token) == [[7]]

    delete(tenant)
    tenant.apply({"deletionPolicy": "Delete"})
    tenant.wait("SpecValid", "False")
    assert tenant.condition("SpecValid")["reason"] == "DataOwned"

    assert "has the data" in adopt(tenant)
    tenant.wait("Ready")
    with tenant.door() as url:
        assert Api(url, tenant.admin_key()).rows("SELECT id FROM kept", token) == [[7]]

    with on_call(tenant, tmp_path) as shell:
        with hanging_store(tenant.kube):
            begin_to_delete(tenant)
            shell.follow("finalizer-stuck.md", "Diagnosis")
        wait_until_gone(tenant)
        shell.follow("finalizer-stuck.md", "Verification")
    tenant.apply()
    tenant.wait("Ready")
    with tenant.door() as url:
        status, _ = Api(url, tenant.admin_key()).call("GET", "/v1/tables/kept")
    assert status == 404
