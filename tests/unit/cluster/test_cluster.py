from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Status, down, find_up, parse_nodes, status
from tests.e2e.cluster.__main__ import main
from tests.e2e.cluster.client import export_lines
from tests.e2e.cluster.pki import CLIENTS, certificates, kubeconfig_text
from tests.e2e.cluster.settings import ClusterError, Settings

SETTINGS = Settings(number=2, cache=Path("/cache"), state=Path("/state"))


def _node(ready: str, version: str = "v1.36.3") -> dict[str, Any]:
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]
    return {"status": {"conditions": conditions, "nodeInfo": {"kubeletVersion": version}}}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param([_node("True")], (True, "v1.36.3"), id="ready"),
        pytest.param([_node("Unknown")], (False, "v1.36.3"), id="lost"),
        pytest.param([_node("True"), _node("False")], (False, "v1.36.3"), id="one of two"),
        pytest.param([{"status": {"nodeInfo": {"kubeletVersion": "v1"}}}], (False, "v1"), id="new"),
        pytest.param([], (False, ""), id="none"),
    ],
)
def test_a_cluster_is_ready_when_all_its_nodes_are(
    nodes: list[dict[str, Any]], expected: tuple[bool, str]
) -> None:
    assert parse_nodes(json.dumps({"items": nodes})) == expected


def test_settings_have_defaults_in_the_home_and_temporary_folders() -> None:
    settings = Settings.from_env({})

    assert settings.cache == Path.home() / ".cache/duckmesh/cluster"
    assert settings.state == Path("/tmp/duckmesh-cluster")
    assert settings.name == "duckmesh"


def test_settings_come_from_the_environment() -> None:
    env = {
        "DUCKMESH_CLUSTER_NUMBER": "3",
        "DUCKMESH_CLUSTER_CACHE": "/c",
        "DUCKMESH_CLUSTER_WAY": "native",
    }

    settings = Settings.from_env(env)

    assert (settings.cache, settings.wanted, settings.name) == (Path("/c"), "native", "duckmesh-3")
    assert settings.state == Path("/tmp/duckmesh-cluster-3")


@pytest.mark.parametrize(
    ("name", "value"),
    [("NUMBER", "10"), ("NUMBER", "-1"), ("NUMBER", "one"), ("WAY", "minikube")],
)
def test_a_bad_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ClusterError, match=f"DUCKMESH_CLUSTER_{name} is '{value}'"):
        Settings.from_env({f"DUCKMESH_CLUSTER_{name}": value})


def test_a_kubeconfig_leads_to_the_cluster_with_the_users_certificate() -> None:
    text = kubeconfig_text(
        context="duckmesh", server="https://s:6443", user="admin", ca="CA", cert="CERT", key="KEY"
    )

    config = json.loads(text)
    user = config["users"][0]["user"]
    assert config["current-context"] == config["contexts"][0]["name"] == "duckmesh"
    assert config["clusters"][0]["cluster"]["server"] == "https://s:6443"
    assert base64.b64decode(user["client-key-data"]) == b"KEY"
    assert base64.b64decode(user["client-certificate-data"]) == b"CERT"


def test_the_certificates_name_what_kubernetes_checks() -> None:
    found = {certificate.name: certificate for certificate in certificates(SETTINGS)}

    assert set(CLIENTS) <= set(found)
    assert found["admin"].subject == "/O=system:masters/CN=admin"
    assert found["kubelet"].subject == "/O=system:nodes/CN=system:node:duckmesh-2-node"
    assert found["front"].ca == "front-ca"
    api = found["apiserver"].extensions()
    assert "extendedKeyUsage=serverAuth" in api
    assert all(f"IP:{ip}" in api for ip in ("127.0.0.1", "172.31.79.2", "10.98.0.1"))
    assert "subjectAltName" not in found["admin"].extensions()


def test_the_lines_for_a_shell_are_quoted_and_spare_the_cluster_a_proxy() -> None:
    plain = export_lines(Path("/my state/k"), Path("/c/bin"), {})
    proxied = export_lines(Path("/k"), Path("/b"), {"HTTPS_PROXY": "http://p", "NO_PROXY": "corp"})

    assert plain == ["export KUBECONFIG='/my state/k'", 'export PATH=/c/bin:"$PATH"']
    assert "export NO_PROXY=corp,172.16.0.0/12,127.0.0.1" in proxied


def test_nothing_is_up_where_nothing_was_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(number=8, cache=tmp_path / "cache", state=tmp_path / "state")

    assert status(settings) == Status(cluster=None)
    with pytest.raises(ClusterError, match="make cluster"):
        find_up(settings)
    down(settings)
    assert "no cluster here" in capsys.readouterr().err


def test_the_command_line_reports_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUCKMESH_CLUSTER_STATE", str(tmp_path / "state"))

    assert main(["status"]) == 1
    assert capsys.readouterr().out == "down\n"
    assert main(["load-image", "--archive", "x.tar"]) == 1
    assert "ERROR: no cluster is up: run `make cluster`" in capsys.readouterr().err
    monkeypatch.setenv("DUCKMESH_CLUSTER_NUMBER", "x")
    assert main(["env"]) == 1
    assert "DUCKMESH_CLUSTER_NUMBER" in capsys.readouterr().err
