"""The native way: one node of our own on this machine, without Docker."""

import datetime
import json
import socket
import time
from typing import Final

from tests.e2e.cluster.build import build_native, program_image
from tests.e2e.cluster.cache import lock
from tests.e2e.cluster.choose import Way
from tests.e2e.cluster.client import Cluster
from tests.e2e.cluster.images import import_archive
from tests.e2e.cluster.node import (
    config_values,
    find_node,
    in_node,
    list_traces,
    render,
    start_node,
    stop_node,
)
from tests.e2e.cluster.pki import ensure_pki
from tests.e2e.cluster.progress import say, step, until
from tests.e2e.cluster.settings import SOURCE, ClusterError, Settings
from tests.e2e.cluster.shell import run

READY_TIMEOUT_S: Final = 120


def up(settings: Settings) -> Cluster:
    """Have a ready node: build, start, wait. Quick when it is up already.

    Raises:
        ClusterError: something did not start in time; the logs stay in `settings.logs`.
    """
    cluster = Cluster(settings=settings, way=Way.NATIVE)
    with lock(settings.cache, settings.name):
        started = datetime.datetime.now(tz=datetime.UTC)
        running = find_node(settings) is not None
        restarted = not running and (settings.state / "etcd").exists()
        if not running or not (settings.bin / "helm").exists():
            build_native(settings)
        if not running:
            stop_node(settings)  # clears what a start that was cut short left behind
            with step("starting the node"):
                ensure_pki(settings)
                start_node(settings)
        _wait_until_ready(settings, cluster, heartbeat_after=started if restarted else None)
    return cluster


def down(settings: Settings) -> None:
    """End the node and remove every trace of it but the cache; nothing to do is no error.

    Raises:
        ClusterError: something could not be removed; the message lists what.
    """
    with lock(settings.cache, settings.name):
        if not list_traces(settings):
            say("no cluster here")
            return
        with step("taking the node down"):
            stop_node(settings)
            run(["rm", "-rf", "--one-file-system", settings.state], timeout_s=300)
        if traces := list_traces(settings):
            raise ClusterError(f"these stay: {', '.join(traces)}")


def _wait_until_ready(
    settings: Settings, cluster: Cluster, *, heartbeat_after: datetime.datetime | None
) -> None:
    clock = time.monotonic()
    until(
        lambda: (
            "ok"
            in in_node(settings, "sh", "-c", "! test -S /run/containerd/containerd.sock || echo ok")
        ),
        what="containerd's socket",
        timeout_s=30,
    )
    for name in ("pause", "coredns"):
        import_archive(settings, program_image(settings, name))
    _until_api(settings, cluster, "get", "--raw", "/readyz")
    at_api = time.monotonic() - clock
    values = config_values(settings)
    manifests = [path.read_text() for path in sorted((SOURCE / "manifests").iterdir())]
    cluster.apply(render("\n---\n".join(manifests), values), "--force-conflicts")
    _until_api(settings, cluster, "get", "node", settings.node)
    if heartbeat_after is not None:
        # What etcd kept of an earlier run still says Ready: wait for a sign of life.
        until(
            lambda: _last_heartbeat(settings, cluster) >= heartbeat_after,
            what="the kubelet's heartbeat",
            timeout_s=READY_TIMEOUT_S,
        )
    timeout = f"--timeout={READY_TIMEOUT_S}s"
    wait = ("wait", "--for=condition=Ready", f"node/{settings.node}", timeout)
    cluster.kubectl(*wait, timeout_s=READY_TIMEOUT_S + 10)
    at_node = time.monotonic() - clock
    rollout = ("rollout", "status", "-n", "kube-system", "deployment/coredns", timeout)
    cluster.kubectl(*rollout, timeout_s=READY_TIMEOUT_S + 10)
    until(lambda: _accepts(settings.dns_ip, 53), what="the cluster's DNS", timeout_s=30)
    at_dns = time.monotonic() - clock
    say(f"API ready after {at_api:.1f} s, node after {at_node:.1f} s, DNS after {at_dns:.1f} s")


def _until_api(settings: Settings, cluster: Cluster, *query: str) -> None:
    until(
        lambda: cluster.kubectl(*query, check=False).returncode == 0,
        what=f"answer to kubectl {' '.join(query)}; the logs are in {settings.logs}",
        timeout_s=READY_TIMEOUT_S,
    )


def _last_heartbeat(settings: Settings, cluster: Cluster) -> datetime.datetime:
    lease = ("get", "lease", "-n", "kube-node-lease", settings.node, "-o", "json")
    answer = cluster.kubectl(*lease, check=False)
    if answer.returncode != 0:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return datetime.datetime.fromisoformat(json.loads(answer.stdout)["spec"]["renewTime"])


def _accepts(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
