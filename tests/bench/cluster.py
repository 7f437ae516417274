"""The figures of docs/benchmarks.md that need Kubernetes, measured on the test cluster and printed as Markdown.

Starts the cluster and installs the chart when they are not there. Timings are reported, never judged.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
import uuid
from typing import Any

from tests.bench.figures import machine
from tests.bench.load import arguments, run
from tests.bench.stack import COLUMNS
from tests.e2e.api import Api
from tests.e2e.product import SYSTEM, Kube, Tenant, ensure_installed

TENANTS = 5
RUNS = 3
RATE, ROWS, SECONDS = 200, 10, 30


def main() -> None:
    kube = ensure_installed(lambda text: print(f"[bench] {text}", file=sys.stderr, flush=True))
    print(f"{machine()}; Kubernetes {_version(kube)}\n")
    namespace = (
        f"bench-{uuid.uuid4().hex[:6]}"  # earlier rows are retained and belong to earlier Tenants
    )
    tenants = [Tenant(kube, namespace, f"bench-{number}") for number in range(TENANTS)]
    try:
        _report_ready(tenants)
        _report_load(tenants[-1])
        _report_memory(kube, namespace)
    finally:
        tenants[0].delete()


def _report_ready(tenants: list[Tenant]) -> None:
    seconds = []
    for tenant in tenants:
        started = time.monotonic()
        tenant.apply()
        # One watch: asking again and again would take half a core from the pods that start.
        tenant.kube.kubectl(
            *("wait", f"tenant/{tenant.name}", "-n", tenant.namespace),
            *("--for=condition=Ready", "--timeout=120s"),
        )
        seconds.append(time.monotonic() - started)
        if tenant is not tenants[-1]:  # a small node does not hold them all
            tenant.apply({"suspend": True})
            tenant.wait("Suspended")
    found = ", ".join(f"{value:.1f}" for value in sorted(seconds))
    print(
        f"apply -> Ready: median {statistics.median(seconds):.1f} s of {TENANTS}, one after the other ({found})\n"
    )


def _report_load(tenant: Tenant) -> None:
    """The same load several times; the median of each quantile."""
    address = tenant.kube.json("get", "service", "-n", tenant.namespace, f"{tenant.name}-ingest")[
        "spec"
    ]["clusterIP"]
    url, key = f"http://{address}:8080", tenant.admin_key()
    Api(url, key).ok("POST", "/v1/tables", {"name": "load", "columns": COLUMNS})
    args = arguments(
        [
            "open",
            f"--url={url}",
            f"--api-key={key}",
            f"--rate={RATE}",
            f"--rows={ROWS}",
            f"--seconds={SECONDS}",
        ]
    )
    runs = [asyncio.run(run(url, key, args)).as_dict() for _ in range(RUNS)]
    print(
        f"{RATE} requests/s x {ROWS} rows, open loop, {RUNS} x {SECONDS} s, medians of the runs (ms):\n"
    )
    print("| | p50 | p95 | p99 | max |\n|---|---|---|---|---|")
    for what in ("ack_ms", "write_to_visible_ms"):
        marks: list[Any] = [one[what] for one in runs]
        cells = [
            f"{statistics.median(m[q] for m in marks):.1f}" for q in ("p50", "p95", "p99", "max")
        ]
        print(f"| {what.removesuffix('_ms').replace('_', '-')} | {' | '.join(cells)} |")
    print(
        f"\nrequests {[one['requests'] for one in runs]}, failed {[one['failed'] for one in runs]}\n"
    )


def _report_memory(kube: Kube, namespace: str) -> None:
    """Working set of each container, from the kubelet."""
    node = kube.json("get", "nodes")["items"][0]["metadata"]["name"]
    summary = json.loads(
        kube.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary").stdout
    )
    print("| pod | container | memory MiB |\n|---|---|---|")
    for pod in sorted(summary["pods"], key=lambda p: str(p["podRef"]["name"])):
        if pod["podRef"]["namespace"] in (namespace, SYSTEM):
            for container in pod["containers"]:
                size = container.get("memory", {}).get("workingSetBytes", 0) / 2**20
                print(f"| {pod['podRef']['name']} | {container['name']} | {size:.0f} |")


def _version(kube: Kube) -> str:
    return str(kube.json("version")["serverVersion"]["gitVersion"])
