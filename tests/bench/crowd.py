"""Sixteen clients at once with a mix of queries: the queries, the client process, and the figure.

`python -m tests.bench.crowd --url ... --api-key ...` is the client: connections that each send the next query when the
last one is answered. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import psutil

from tests.bench.client import Client
from tests.bench.figures import Figure, Used, cpu_used, memory_of, quantiles, show
from tests.bench.load import BUSY_CORES
from tests.bench.mode import Mode
from tests.bench.readers import LIMITS, direct_reader, files_of, query_pod
from tests.bench.reads import POINT, filled, rows_in
from tests.bench.stack import KEY, ROOT, Stack
from tests.pods import Pod

CLIENTS = 16
_GROUPS = "SELECT kind, count(*), sum(amount) FROM load WHERE id BETWEEN ? AND ? GROUP BY kind ORDER BY kind LIMIT 100"
_RANGE = "SELECT id, kind, amount FROM load WHERE id BETWEEN ? AND ? ORDER BY id"
_TOP = "SELECT kind, avg(amount) AS mean FROM load GROUP BY kind ORDER BY mean DESC LIMIT 10"


def mix(seed: int, size: int) -> Iterator[tuple[str, list[int]]]:
    """What a client asks, without end: 60 % one row, 20 % groups of a tenth, 15 % of 1,000 rows, 5 % groups of all."""
    random_ = random.Random(seed)  # noqa: S311 - a load
    while True:
        kind, first = random_.random(), random_.randrange(size)
        if kind < 0.6:
            yield POINT, [first]
        elif kind < 0.8:
            yield _GROUPS, [first, first + size // 10]
        elif kind < 0.95:
            yield _RANGE, [first, first + 999]
        else:
            yield _TOP, []


@dataclass(slots=True)
class Asked:
    """What a crowd saw: milliseconds of each answer, failures by code."""

    seconds: float
    took: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds


def clients(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """Queries answered a second, against as many threads of one DuckDB in a process."""
    size, seconds = rows_in(mode), mode.pick(20, 5)
    rounds: list[tuple[float, float]] = []
    with filled(stack, size) as (tenant, _):
        pod, sandbox = query_pod(tenant)
        with (
            direct_reader(
                tenant.lake,
                files_of(tenant.lake, ["load"]),
                memory_bytes=LIMITS.concurrency * LIMITS.memory_bytes,
            ) as direct,
            _Watch(sandbox) as watch,
        ):
            # Warm: each slot has a cache of its own to fill.
            _ask(pod, sandbox, size, seconds)
            _ask_direct(direct, size, seconds)
            for _ in range(mode.rounds):
                ours, used = _ask(pod, sandbox, size, seconds)
                plain = _ask_direct(direct, size, seconds)
                rounds.append((ours.rate, plain.rate))
    ratio = sorted(a / b for a, b in rounds)[len(rounds) // 2]
    return [
        Figure(
            what=f"{CLIENTS} concurrent clients, mixed, {size:,} rows",
            goal="throughput >= 0.8x in-process with as many threads; no query above its memory",
            ours=f"{ours.rate:,.0f} queries/s, {show(quantiles(ours.took))}; **{ratio:.2f}x**; "
            f"largest process {watch.most_mib:.0f} of {LIMITS.memory_bytes / 2**20:.0f} MiB; failed {ours.failed}",
            peers=f"in-process, {CLIENTS} threads: {plain.rate:,.0f}/s, {show(quantiles(plain.took))}",
            notes=f"{LIMITS.concurrency} slots; JSON, peers to Arrow; closed loop, "
            f"{len(rounds)} x {seconds} s each in turn; {used}",
        )
    ]


def _ask(pod: Pod, sandbox: Pod, size: int, seconds: float) -> tuple[Asked, Used]:
    command = [sys.executable, "-m", "tests.bench.crowd", f"--url={pod.url}", f"--api-key={KEY}"]
    roots = {"query": pod.process.pid, "sandbox": sandbox.process.pid}
    with cpu_used(roots) as used:
        run = subprocess.run(
            [*command, f"--size={size}", f"--seconds={seconds}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
    if run.returncode:
        raise RuntimeError(f"the client failed: {run.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(run.stdout)
    used.cores["client"] = report["cores"]
    if report["cores"] > BUSY_CORES:
        used.cores["CLIENT WAS THE LIMIT"] = report["cores"]
    return Asked(seconds=seconds, took=report["took"], failed=report["failed"]), used


def _ask_direct(direct: duckdb.DuckDBPyConnection, size: int, seconds: float) -> Asked:
    asked = Asked(seconds=seconds)
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        cursor = direct.cursor()
        questions = mix(number, size)
        while (sent := time.perf_counter()) < end:
            sql, params = next(questions)
            try:
                cursor.execute(sql, params).to_arrow_table()
            except duckdb.Error as error:
                name = type(error).__name__
                asked.failed[name] = asked.failed.get(name, 0) + 1
            else:
                asked.took.append((time.perf_counter() - sent) * 1000)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked


class _Watch:
    """The most memory that any slot had of its own, looked at every 20 ms."""

    def __init__(self, sandbox: Pod) -> None:
        self._sandbox = psutil.Process(sandbox.process.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.most_mib = 0.0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for child in self._sandbox.children(recursive=True):
                try:
                    self.most_mib = max(self.most_mib, memory_of(child.pid).own)
                except (OSError, KeyError):  # it has ended
                    continue


async def _crowd(url: str, key: str, size: int, seconds: float) -> Asked:
    asked = Asked(seconds=seconds)
    client = Client(url, key)
    await client.connect(CLIENTS)
    end = time.perf_counter() + seconds

    async def ask(number: int) -> None:
        questions = mix(number, size)
        while (sent := time.perf_counter()) < end:
            sql, params = next(questions)
            body = json.dumps({"sql": sql, "params": params}).encode()
            status, answer = await client.post("/v1/query", body)
            if status == 200:
                asked.took.append((time.perf_counter() - sent) * 1000)
            else:
                code = json.loads(answer)["error_code"]
                asked.failed[code] = asked.failed.get(code, 0) + 1

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(ask(number))
    finally:
        client.close()
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    begin, cpu = time.monotonic(), time.process_time()
    asked = asyncio.run(_crowd(args.url, args.api_key, args.size, args.seconds))
    cores = (time.process_time() - cpu) / (time.monotonic() - begin)
    json.dump({"took": asked.took, "failed": asked.failed, "cores": cores}, sys.stdout)


if __name__ == "__main__":
    main()
