"""`kubectl duckmesh adopt` against a kubectl that plays recorded answers; and that the operator finds what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from duckmesh_operator import names
from duckmesh_runtime.cli import cluster
from duckmesh_runtime.cli.adopt import adopt, build_word
from duckmesh_runtime.cli.kubectl import plugin
from tests.tenants import UID, tenant_object

KUBECTL = Path(__file__).resolve().parents[2] / "fakes" / "kubectl"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what kubectl answers."""
    (tmp_path / "kubectl").symlink_to(KUBECTL)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    monkeypatch.setattr(cluster, "_LOOK_S", 0.01)
    (tmp_path / "apply.json").write_text("{}")
    return tmp_path


def tenant(status: str, reason: str) -> dict[str, Any]:
    found = tenant_object()
    message = "The catalog keeps data."
    condition = {"type": "SpecValid", "status": status, "reason": reason, "message": message}
    return found | {"status": {"conditions": [condition]}}


def write(answers: Path, item: dict[str, Any]) -> None:
    (answers / f"get-{cluster.TENANTS}-acme.json").write_text(json.dumps(item))


def run(*args: str) -> Result:
    return CliRunner().invoke(plugin, [*args])


def test_the_word_is_where_the_operator_looks_for_it() -> None:
    word = build_word(tenant("False", "DataOwned"), "duckmesh-system")

    assert word["metadata"]["name"] == names.adoption("team", "acme")
    assert word["metadata"]["namespace"] == "duckmesh-system"
    assert word["data"] == {"uid": UID}
    assert word["metadata"]["labels"] == {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_TENANT: "acme",
        names.LABEL_TENANT_NAMESPACE: "team",
    }


@pytest.mark.parametrize(
    "args",
    [("adopt", "acme", "--namespace", "team"), ("-n", "team", "acme", "adopt")],
    ids=["tenant last", "tenant first"],
)
def test_data_that_waits_is_handed_over(
    answers: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    write(answers, tenant("False", "DataOwned"))
    applied: list[dict[str, Any]] = []

    def hand_over(_: object, manifest: dict[str, Any]) -> None:
        applied.append(manifest)
        write(answers, tenant("True", "Valid"))

    monkeypatch.setattr(cluster.Kubectl, "apply", hand_over)

    result = run(*args, "--operator-namespace", "lakes")

    assert result.exit_code == 0, result.output
    assert "team/acme has the data" in result.output
    assert applied == [build_word(tenant("", ""), "lakes")]
    calls = (answers / "calls").read_text()
    assert "--namespace=team" in calls


def test_an_operator_that_does_not_do_it_is_told(answers: Path) -> None:
    write(answers, tenant("False", "DataOwned"))

    result = run("adopt", "acme", "--timeout", "1")

    assert result.exit_code == 3
    assert "The catalog keeps data." in result.output
    assert "--operator-namespace=duckmesh-system" in result.output
    assert "\napply " in (answers / "calls").read_text()


@pytest.mark.parametrize(
    ("item", "told"),
    [(tenant("True", "Valid"), "SpecValid is Valid"), (tenant_object(), "not reported yet")],
    ids=["valid", "new"],
)
def test_a_tenant_that_no_data_waits_for_gets_none(
    answers: Path, item: dict[str, Any], told: str
) -> None:
    write(answers, item)

    result = run("adopt", "acme")

    assert result.exit_code == 1
    assert told in result.output
    assert "apply" not in (answers / "calls").read_text()


def test_a_paused_tenant_has_to_go_on_first(answers: Path) -> None:
    item = tenant("False", "DataOwned")
    item["spec"]["paused"] = True
    write(answers, item)

    result = run("adopt", "acme")

    assert result.exit_code == 1
    assert "Tenant team/acme is paused: set spec.paused to false first" in result.output
    assert "apply" not in (answers / "calls").read_text()


def test_the_tenant_has_to_be_named(answers: Path) -> None:
    result = run("adopt")

    assert result.exit_code == 2
    assert "name the Tenant" in result.output
    assert adopt.name == "adopt"
