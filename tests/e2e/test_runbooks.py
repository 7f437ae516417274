"""The runbooks' commands with kubectl, against the faults that they are for; the others are run without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.product import Tenant, hanging_store, wait_for
from tests.pages import DOCS, Terminal, steps, terminal

RUNBOOKS = DOCS / "runbooks"
TABLE = {"name": "t", "columns": [{"name": "id", "type": "INTEGER"}]}


@pytest.fixture
def shell(tenant: Tenant, tmp_path: Path) -> Iterator[Terminal]:
    known = tenant.kube.env()
    with terminal(tmp_path, known, bin_dir=tenant.kube.bin_dir) as found:
        yield found


def follow(shell: Terminal, tenant: Tenant, page: str, *headings: str) -> None:
    """Run the commands with kubectl below these headings until they show what the page does."""
    here = {
        "NS=shop TENANT=acme": f"NS={tenant.namespace} TENANT={tenant.name}",
        "acme": tenant.name,
    }
    opening = page == "README.md"
    todo = [step for step in steps(RUNBOOKS / page, *headings) if opening or step.of_cluster]
    shell.follow(todo, instead=here, within_s=60)


def test_the_commands_of_the_runbooks_show_the_faults(tenant: Tenant, shell: Terminal) -> None:
    tenant.apply({"freshness": {"target": "1s", "sustainedFor": "3s"}})
    tenant.wait("Ready")
    follow(shell, tenant, "README.md", "Before you start")
    follow(shell, tenant, "snapshot-publish-failures.md", "The lake lacks its fence")

    follow(shell, tenant, "stuck-leases.md", "Who commits")
    before = _committer(tenant)
    follow(shell, tenant, "stuck-leases.md", "Replace the pod")
    wait_for("another committer", lambda: _committer(tenant) not in ("", before), 60)

    with tenant.door() as url:
        api = Api(url, tenant.admin_key())
        api.persist("POST", "/v1/tables", TABLE)
        with hanging_store(tenant.kube):
            api.ok("POST", "/v1/ingest/t", {"records": [{"payload": {"id": 1}}]})
            follow(shell, tenant, "high-ingest-lag.md", "What is behind")
    follow(shell, tenant, "high-ingest-lag.md", "Verification")


def _committer(tenant: Tenant) -> str:
    return str(tenant.read()["status"]["ingest"].get("committer", ""))
