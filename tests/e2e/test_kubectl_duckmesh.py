"""Someone with a kubeconfig works with a Tenant's lake: no URL, no key, and a pod that goes away meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.e2e.product import Kube, Tenant

BIN = Path(sys.executable).parent


def environment(kube: Kube) -> dict[str, str]:
    """Of a person who has both kubectl and the plugin in PATH, and nothing of duckmesh set."""
    found = {name: value for name, value in kube.env().items() if "DUCKMESH" not in name}
    return found | {"PATH": f"{kube.bin_dir}:{BIN}:{os.environ['PATH']}"}


def plugin(tenant: Tenant, *args: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        ["kubectl", "duckmesh", "-n", tenant.namespace, tenant.name, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(tenant.kube),
    )
    assert tenant.admin_key() not in run.stdout + run.stderr
    return run


def observed_at(line: str) -> datetime:
    return datetime.fromisoformat(json.loads(line)["observed_at"])


@contextmanager
def watching(tenant: Tenant) -> Iterator[subprocess.Popen[str]]:
    # As in a terminal: what a shell runs in its background ignores Ctrl-C, and so would all below it.
    process = subprocess.Popen(
        [
            *("env", "--default-signal=INT"),
            *("kubectl", "duckmesh", "-n", tenant.namespace, "lag", "-w", "--output", "json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tenant.kube),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_rows_go_in_and_come_out_without_url_and_key(tenant: Tenant, tmp_path: Path) -> None:
    data = tmp_path / "few.csv"
    data.write_text("id,name\n1,one\n2,two\n")
    tenant.apply()
    tenant.wait("Ready")

    sent = plugin(tenant, "ingest", str(data), "--create")
    token = sent.stdout.strip()
    found = plugin(tenant, "query", "FROM few ORDER BY id", "--token", token, "--output", "csv")
    status = plugin(tenant, "status", "--output", "json")
    wrong = plugin(tenant, "tables", "describe", "nothing")

    assert sent.returncode == 0, sent.stderr
    assert found.stdout == '"id","name"\n1,"one"\n2,"two"\n', found.stderr
    assert json.loads(status.stdout)["status"] == "ok"
    assert wrong.returncode == 1
    assert f"`kubectl duckmesh --namespace={tenant.namespace} shop tables`" in wrong.stderr


def test_a_watched_lag_outlives_the_pod_that_told_it(tenant: Tenant) -> None:
    tenant.apply()
    tenant.wait("Ready")

    with watching(tenant) as process:
        assert process.stdout is not None
        assert "lag_ms" in json.loads(process.stdout.readline())
        (forward,) = psutil.Process(process.pid).children()
        for pod in tenant.pods("ingest"):
            tenant.kube.kubectl(
                *("delete", "pod", "-n", tenant.namespace, pod["metadata"]["name"]),
                *("--grace-period=1", "--wait=false"),
            )
        forward.wait(120)
        gone = datetime.now(UTC)
        told = next(t for line in process.stdout if (t := observed_at(line)) > gone)
        (again,) = psutil.Process(process.pid).children()

    assert told > gone
    assert again != forward
    assert process.returncode == 130
    assert not again.is_running()


def test_a_suspended_tenant_says_so(tenant: Tenant) -> None:
    tenant.apply({"suspend": True})
    tenant.wait("Suspended")

    run = plugin(tenant, "status")

    assert run.returncode == 3
    assert "spec.suspend" in run.stderr
