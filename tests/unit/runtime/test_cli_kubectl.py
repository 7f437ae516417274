"""`kubectl duckmesh` against a kubectl that plays recorded answers and forwards to a server with services in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.doors import key

KUBECTL = Path(__file__).resolve().parents[2] / "fakes" / "kubectl"
BIN = Path(sys.executable).parent


@dataclass
class Cluster:
    """What the fake kubectl knows, and a person who uses it."""

    folder: Path
    environment: dict[str, str]

    def tenant(self, name: str, *, ready: bool = True, suspend: bool = False) -> dict[str, Any]:
        message = "catalog: does not answer"
        condition = {"type": "Ready", "status": str(ready), "reason": "Down", "message": message}
        made = {
            "metadata": {"name": name, "namespace": "team-a"},
            "spec": {"suspend": suspend},
            "status": {"conditions": [condition]},
        }
        self.write(f"get-tenants.duckmesh.io-{name}", made)
        data = {"key": base64.b64encode(key("admin").encode()).decode()}
        self.write(f"get-secret-{name}-admin-key", {"data": data})
        return made

    def tenants(self, *names: str) -> None:
        self.write("get-tenants.duckmesh.io", {"items": [self.tenant(name) for name in names]})

    def write(self, name: str, answer: object) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(answer))

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    async def start(
        self, *args: str, program: str = "kubectl-duckmesh"
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(BIN / program),
            *args,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *args: str, program: str = "kubectl-duckmesh") -> tuple[int, str, str]:
        """Exit code, output, errors; the key is in neither."""
        process = await self.start(*args, program=program)
        out, errors = await asyncio.wait_for(process.communicate(), 60)
        assert key("admin").encode() not in out + errors
        assert process.returncode is not None
        return process.returncode, out.decode(), errors.decode()


@pytest.fixture
def cluster(doors: Any, tmp_path: Path) -> Cluster:
    folder, path = tmp_path / "kubectl", tmp_path / "bin"
    folder.mkdir()
    path.mkdir()
    (path / "kubectl").symlink_to(KUBECTL)
    (folder / "target").write_text(doors.url.removeprefix("http://"))
    environment = {"PATH": f"{path}:{BIN}:{os.environ['PATH']}", "FAKE_KUBECTL": str(folder)}
    made = Cluster(folder, environment)
    made.tenant("shop")
    return made


def forwards(process: asyncio.subprocess.Process) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "port-forward" in p.cmdline()]


async def test_a_tenant_is_found_with_its_key_and_the_way_to_it_ends(cluster: Cluster) -> None:
    options = ("-n", "team-a", "--context", "prod")

    code, out, errors = await cluster.run(*options, "shop", "query", "SELECT n", "--output", "csv")

    assert (code, out) == (0, '"n"\n1\n2\n'), errors
    assert all(call.startswith("--context=prod --namespace=team-a ") for call in cluster.calls())
    forward = cluster.calls()[-1]
    assert forward.endswith(
        "port-forward --address=127.0.0.1 --namespace=team-a service/shop-ingest :8080"
    )
    assert not [p for p in psutil.process_iter() if _is_forward_of(p, cluster)]


def _is_forward_of(process: psutil.Process, cluster: Cluster) -> bool:
    try:
        return process.environ().get("FAKE_KUBECTL") == str(cluster.folder)
    except psutil.Error:
        return False


async def test_the_only_tenant_needs_no_name(cluster: Cluster) -> None:
    cluster.tenants("shop")

    code, out, errors = await cluster.run("tables", "--output", "csv")

    assert (code, out.splitlines()[1]) == (0, "events,id,BIGINT,yes,,,,"), errors


async def test_of_several_tenants_one_has_to_be_named(cluster: Cluster) -> None:
    cluster.tenants("shop", "tables")

    code, _, errors = await cluster.run("tables")
    by_option, _, _ = await cluster.run("--tenant", "tables", "tables")

    assert (code, by_option) == (1, 0)
    assert "name one of the Tenants of this namespace: shop, tables" in errors


async def test_no_tenant_at_all_says_what_to_pass(cluster: Cluster) -> None:
    cluster.tenants()

    code, _, errors = await cluster.run("status")

    assert code == 1
    assert "-n NAMESPACE" in errors


async def test_a_tenant_that_is_not_there_is_told_in_the_words_of_kubectl(cluster: Cluster) -> None:
    code, _, errors = await cluster.run("nowhere", "status")

    assert code == 3
    assert 'tenants.duckmesh.io "nowhere" not found' in errors


async def test_a_suspended_tenant_says_how_to_wake_it(cluster: Cluster) -> None:
    cluster.tenant("shop", suspend=True)

    code, _, errors = await cluster.run("shop", "status")

    assert code == 3
    assert "spec.suspend" in errors
    assert "port-forward" not in " ".join(cluster.calls())


async def test_a_tenant_that_is_not_ready_says_why(cluster: Cluster) -> None:
    cluster.tenant("shop", ready=False)
    (cluster.folder / "down").touch()

    code, _, errors = await cluster.run("shop", "status")

    assert code == 3
    assert "no way to Tenant team-a/shop: Down: catalog: does not answer" in errors


async def test_a_key_that_is_gone_is_told(cluster: Cluster) -> None:
    cluster.write("get-secret-shop-admin-key", {"data": {}})

    code, _, errors = await cluster.run("shop", "status")

    assert code == 1
    assert "Secret team-a/shop-admin-key has no key" in errors


async def test_another_key_than_the_admins_is_taken_and_no_other_url(cluster: Cluster) -> None:
    less, _, errors = await cluster.run("shop", "lag", "--api-key", key("nobody"))
    other, _, told = await cluster.run("shop", "lag", "--url", "http://127.0.0.1:1")

    assert (less, other) == (1, 2)
    assert "FORBIDDEN" in errors
    assert "secret" not in " ".join(cluster.calls())
    assert "--url" in told


async def test_hints_name_the_command_as_it_was_called(cluster: Cluster) -> None:
    _, _, errors = await cluster.run("-n", "team-a", "shop", "tables", "describe", "nothing")

    assert "see `kubectl duckmesh --namespace=team-a shop tables`" in errors


async def test_a_way_that_breaks_is_opened_again_at_the_same_port(cluster: Cluster) -> None:
    process = await cluster.start("shop", "lag", "-w", "--output", "json")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 30)

    (cluster.folder / "cut").touch()
    while sum("port-forward" in call for call in cluster.calls()) < 2:
        await asyncio.wait_for(process.stdout.readline(), 30)
    line = await asyncio.wait_for(process.stdout.readline(), 30)

    assert json.loads(line)["pending_rows"] == 1
    assert not cluster.calls()[-1].endswith(" :8080")
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 30)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_a_signal_ends_the_way_too(
    cluster: Cluster, number: signal.Signals, code: int
) -> None:
    process = await cluster.start("shop", "lag", "-w")
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), 30)
    (forward,) = forwards(process)

    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), 30)

    assert (process.returncode, errors.decode()) == (code, "")
    assert not forward.is_running()


async def test_without_kubectl_it_is_said(cluster: Cluster) -> None:
    cluster.environment["PATH"] = str(BIN)

    code, _, errors = await cluster.run("shop", "status")

    assert code == 3
    assert "kubectl is not in PATH" in errors


@pytest.mark.parametrize("args", [("--help",), ("shop", "--help"), ("shop",)])
async def test_help_needs_no_cluster(cluster: Cluster, args: tuple[str, ...]) -> None:
    code, out, _ = await cluster.run(*args)

    assert code == (0 if "--help" in args else 2)
    assert "kubectl duckmesh -n team-a shop lag -w" in out
    assert not (cluster.folder / "calls").exists()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param(["s"], {"shop", "snapshots", "status"}, id="tenants and commands"),
        pytest.param(["shop", "sna"], {"snapshots"}, id="commands of a tenant"),
        pytest.param(["shop", "snapshots", "un"], {"unpin"}, id="commands of a command"),
        pytest.param(["shop", "query", "--out"], {"--output"}, id="options"),
        pytest.param(["shop", "query", "--output", "p"], {"parquet"}, id="values"),
        pytest.param(["adopt", "-n", "team-a", "sh"], {"shop"}, id="tenant to adopt"),
        pytest.param(["upgrade", "other", "s"], {"shop"}, id="tenants to upgrade"),
    ],
)
async def test_kubectl_is_told_what_can_follow(
    cluster: Cluster, words: list[str], offered: set[str]
) -> None:
    (cluster.folder / "get-tenants.duckmesh.io-name.json").write_text(
        "tenant.duckmesh.io/shop\ntenant.duckmesh.io/other\n"
    )

    code, out, errors = await cluster.run(*words, program="kubectl_complete-duckmesh")

    *lines, directive = out.splitlines()
    assert code == 0, errors
    assert {line.split("\t")[0] for line in lines} == offered
    assert directive == ":4"
