"""Many waiters on one token: how soon after visibility each is answered, and what waiting costs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from duckmesh_runtime.domain.tokens import Token, parse_token
from tests.bench.figures import Figure, cpu_used, quantiles, show
from tests.bench.mode import Mode
from tests.bench.stack import KEY, ROOT, Stack, start_ingest
from tests.pods import Pod, tenant_of
from tests.services import Lake


def waiters(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """1,000 and 10,000 long polls on one token that is given a while later."""
    still = mode.pick(20.0, 4.0)
    with tenant_of(stack.lake()) as tenant:
        pod = start_ingest(tenant)
        with cpu_used({"ingest": pod.process.pid}) as idle:
            time.sleep(still)
        return [
            _figure(stack, pod, tenant.lake, count, still, idle.cores["ingest"])
            for count in mode.pick((1_000, 10_000), (1_000, 3_000))
        ]


def _figure(stack: Stack, pod: Pod, lake: Lake, count: int, still: float, idle: float) -> Figure:
    report, waiting, committed = _wait(pod, lake, count, still)
    delays = sorted((seen - committed) * 1000 for seen in report["seen"])
    goal = "all <= 200 ms after visibility" if count <= 1_000 else "none fails"
    return Figure(
        what=f"{count:,} waiters on one token",
        goal=f"{goal}; processor flat while waiting",
        ours=f"{len(delays):,} answered, {show(quantiles(delays))} after the commit; failed {report['failed']}",
        notes=f"ingest used {waiting:.3f} cores while they waited {still:.0f} s (idle {idle:.3f}); "
        f"client {report['client']['cores']:.2f} cores{report['client']['limit']}",
    )


def _wait(pod: Pod, lake: Lake, count: int, still: float) -> tuple[dict[str, Any], float, float]:
    """The client's report, cores of ingest while waiting, wall clock of the commit that answered them."""
    last = pod.call("GET", "/v1/lag")[1]["latest_token"]
    number = _number(last, lake) + 1
    token = Token(lake=lake.name, timeline=1, number=number)
    command = [sys.executable, "-m", "tests.bench.load", "waiters", f"--url={pod.url}"]
    client = subprocess.Popen(
        [*command, f"--api-key={KEY}", f"--connections={count}", f"--token={token}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert client.stderr is not None
    if client.stderr.readline().strip() != "waiting":
        raise RuntimeError(f"the client failed: {client.communicate()[1][-2000:]}")
    time.sleep(2)  # all requests are on their way; their arrival is not what is measured
    with cpu_used({"ingest": pod.process.pid}) as used:
        time.sleep(still)
    record = {"payload": {"id": number, "kind": "last"}}
    status, answer = pod.call("POST", "/v1/ingest/load", {"records": [record]})
    if status != 200:
        raise RuntimeError(f"the row was refused: {answer}")
    out, errors = client.communicate(timeout=120)
    if client.returncode:
        raise RuntimeError(f"the client failed: {errors[-2000:]}")
    return json.loads(out), used.cores["ingest"], _committed_at(lake)


def _number(latest: object, lake: Lake) -> int:
    """The number of a lag report's token, as text or as it is."""
    if isinstance(latest, int):
        return latest
    return parse_token(str(latest), lake=lake.name, timeline=1).number


def _committed_at(lake: Lake) -> float:
    async def read() -> float:
        connection = await asyncpg.connect(lake.catalog_dsn)
        try:
            query = "SELECT extract(epoch FROM committed_at)::float FROM duckmesh.lake_status WHERE lake = $1"
            found: float = await connection.fetchval(query, lake.name)
            return found
        finally:
            await connection.close()

    return asyncio.run(read())
