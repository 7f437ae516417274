"""`kubectl duckmesh` looks for what the operator makes: the Tenant's fields, the admin key's Secret, the Service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duckmesh_operator import names
from duckmesh_operator.specs.secret import build_secret
from duckmesh_operator.specs.service import build_service
from duckmesh_runtime.cli.cluster import PORT, TENANTS, Kubectl
from tests.tenants import make_tenant, tenant_object

KUBECTL = Path(__file__).resolve().parents[1] / "fakes" / "kubectl"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what kubectl answers."""
    (tmp_path / "kubectl").symlink_to(KUBECTL)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    return tmp_path


def test_the_tenant_its_key_and_its_service_are_those_of_the_operator(answers: Path) -> None:
    tenant = make_tenant()
    secret = build_secret(tenant, "admin-key", {"key": "dmk_admin_0"})
    service = build_service(tenant, "ingest")
    (answers / f"get-{TENANTS}-acme.json").write_text(json.dumps(tenant_object({"suspend": False})))
    (answers / f"get-secret-{secret['metadata']['name']}.json").write_text(json.dumps(secret))

    found = Kubectl().find_tenant("acme")
    key = Kubectl().admin_key(found)
    way = Kubectl().forward(found)

    assert f"{names.TENANT.plural}.{names.GROUP}" == TENANTS
    assert (str(found), found.suspended, key) == ("team/acme", False, "dmk_admin_0")
    assert way.command[-2:] == ["--namespace=team", f"service/{service['metadata']['name']}"]
    assert PORT in [port["port"] for port in service["spec"]["ports"]]
