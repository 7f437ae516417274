"""The lag alert in a real Prometheus that scrapes a real worker and the operator's metrics; a minute of a rule is a second."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from duckmesh_operator import metrics
from duckmesh_operator.catalog import Catalog
from duckmesh_operator.health import Health
from duckmesh_operator.lag import LagBoard, Objective
from duckmesh_operator.specs.secret import build_dsn
from duckmesh_runtime.dev.processes import free_port, wait_until
from duckmesh_runtime.dev.s3 import S3Server
from tests.integration.test_alert_rules import RULES
from tests.lakes import LakeView
from tests.pods import Pod, tenant_of
from tests.services import Lake
from tests.tools import PROMETHEUS, have

TABLE = {"name": "orders", "columns": [{"name": "n", "type": "BIGINT"}]}
LOOK_S = 0.25


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_the_lag_alert_fires_and_resolves(
    s3_lake: Lake, s3: S3Server, tmp_path: Path
) -> None:
    with tenant_of(s3_lake) as tenant:
        pod = await asyncio.to_thread(tenant.ingest)
        async with operator_metrics(s3_lake, tmp_path) as port:
            with prometheus(tmp_path, s3_lake.tenant, pod, port) as ask:
                assert (await call(pod, "/v1/tables", TABLE))[0] == 201
                await until(lambda: scraped(ask), "both are scraped")
                assert breaches(ask) == []

                os.kill(s3.pid, signal.SIGSTOP)
                try:
                    rows = {"records": [{"payload": {"n": 1}}]}
                    assert (await call(pod, "/v1/ingest/orders", rows))[0] == 200
                    await until(lambda: breaches(ask), "the alert fires")
                    (alert,) = breaches(ask)
                finally:
                    os.kill(s3.pid, signal.SIGCONT)

                assert alert["labels"]["tenant"] == s3_lake.tenant
                assert s3_lake.tenant in alert["annotations"]["summary"]
                await until(lambda: not breaches(ask), "the alert resolves")


async def call(pod: Pod, path: str, body: object) -> tuple[int, Any]:
    return await asyncio.to_thread(pod.call, "POST", path, body)


@asynccontextmanager
async def operator_metrics(lake: Lake, folder: Path) -> AsyncIterator[int]:
    """The operator's own sweep, board and metrics port over the lake's catalog; yields the port."""
    login = f"{lake.name}_operator"
    await LakeView(lake).fetch(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE duckmesh_control")
    (folder / "control-dsn").write_text(build_dsn(lake.catalog_dsn, login, "x"))
    catalog, board = Catalog("default", folder), LagBoard()
    board.watch(
        lake.tenant_uid,
        tenant=lake.tenant,
        catalog="default",
        objective=Objective(target_ms=1_000),
    )

    async def sweep() -> None:
        while True:
            board.update("default", await catalog.sweep())
            await asyncio.sleep(LOOK_S)

    shown = metrics.add(
        metrics.TenantCollector(
            dict,
            lambda: {name: track.report.lag_s for name, track in board.tracks()},
            board.targets_s,
        )
    )
    metrics.leading(True)
    sweeping = asyncio.create_task(sweep())
    try:
        async with Health(list, list).serve("127.0.0.1", 0) as port:
            yield port
    finally:
        metrics.leading(False)
        metrics.remove(shown)
        sweeping.cancel()
        await asyncio.wait({sweeping})
        await catalog.close()


@contextmanager
def prometheus(folder: Path, tenant: str, pod: Pod, operator_port: int) -> Iterator[str]:
    """A Prometheus with the rules in fast motion; yields its API's address."""
    worker = {"namespace": "team", "pod": "acme-ingest-0", "tenant": tenant}
    operator = {"namespace": "duckmesh-system", "pod": "op-0"}
    config = {
        "global": {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "500ms",
        },
        "rule_files": ["fast.yaml"],
        "scrape_configs": [
            _scrape("worker", pod.metrics_port, worker),
            _scrape("operator", operator_port, operator),
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "fast.yaml").write_text(re.sub(r"\b(\d+)m\b", r"\1s", RULES.read_text()))
    port, log = free_port(), folder / "prometheus.log"
    command = [
        str(have(PROMETHEUS)),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    ask = f"http://127.0.0.1:{port}"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            wait_until(lambda: _answers(f"{ask}/-/ready"), process, log, 60)
            yield ask
        finally:
            process.kill()


def _scrape(job: str, port: int, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "job_name": job,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def scraped(ask: str) -> bool:
    found = read(f"{ask}/api/v1/query?query=up==1")["result"]
    lag = read(f"{ask}/api/v1/query?query=duckmesh_operator_tenant_lag_seconds")["result"]
    return len(found) == 2 and len(lag) == 1


def breaches(ask: str) -> list[dict[str, Any]]:
    """What fires of the lag alert. Others may: a hand-over of the committer takes longer than a minute does here."""
    found = read(f"{ask}/api/v1/alerts")["alerts"]
    return [
        one
        for one in found
        if (one["labels"]["alertname"], one["state"]) == ("DuckmeshLagBreach", "firing")
    ]


async def until(probe: Any, what: str, timeout_s: float = 100) -> None:
    """Wait for a condition without holding up the sweep."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await asyncio.to_thread(probe):
        assert loop.time() < deadline, f"waited {timeout_s:.0f} s until {what}"
        await asyncio.sleep(LOOK_S)
