"""Small requests: ack latency and write-to-visible under a steady load, and single-row posts a second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tests.bench.figures import Figure, median_of, quantiles, show
from tests.bench.mode import Mode
from tests.bench.peers import PostgresHeap, direct_writers_rates
from tests.bench.stack import Stack, cores, one_ingest, run_client

RATE, ROWS = 200, 10
CONNECTIONS = (32, 128)


def latency(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """200 requests a second of 10 rows, open loop."""
    seconds, direct_seconds = mode.pick(30, 8), mode.pick(10, 1.5)
    with one_ingest(stack) as pod:
        rounds = [
            run_client(stack, pod, "open", rate=RATE, rows=ROWS, seconds=seconds)
            for _ in range(mode.rounds)
        ]
    heap = PostgresHeap(stack)
    plain = median_of([quantiles(heap.open_loop(RATE, ROWS, seconds)) for _ in range(mode.rounds)])
    direct, _ = direct_writers_rates(stack, ROWS, direct_seconds)
    load = f"{RATE} req/s x {ROWS} rows, open loop, {mode.rounds} x {seconds} s"
    failed = [r["failed"] for r in rounds]
    return [
        Figure(
            what=f"ack, {load}",
            goal="p95 <= 10 ms",
            ours=show(median_of([r["ack_ms"] for r in rounds])),
            peers=f"Postgres heap, same load: {show(plain)}. {direct}",
            notes=f"from the scheduled send; a key per row; failed {failed}; {cores(rounds[-1])}",
        ),
        Figure(
            what=f"write to visible, {load}",
            goal="p50 <= 100, p95 <= 250, p99 <= 1,000 ms",
            ours=show(median_of([r["write_to_visible_ms"] for r in rounds])),
            peers="as above: a direct commit is its own visibility",
            notes="every fifth request, with the long poll that notices it",
        ),
    ]


def posts(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """Single-row posts that one ingest process, which commits too, acknowledges a second."""
    seconds, direct_seconds = mode.pick(20, 5), mode.pick(10, 1.5)
    found: list[tuple[int, float, dict[str, Any]]] = []
    with one_ingest(stack) as pod:
        for connections in CONNECTIONS:
            runs = [
                run_client(stack, pod, "closed", rows=1, connections=connections, seconds=seconds)
                for _ in range(mode.rounds)
            ]
            rate = statistics.median(r["requests"] / r["seconds"] for r in runs)
            found.append((connections, rate, runs[-1]))
    heap = PostgresHeap(stack)
    plain = {n: heap.closed(n, 1, direct_seconds) for n in (1, 16)}
    direct, best = direct_writers_rates(stack, 1, direct_seconds)
    connections, rate, run = max(found, key=lambda one: one[1])
    others = "; ".join(f"{n} connections {r:,.0f}/s" for n, r, _ in found)
    heaps = "; ".join(f"Postgres heap, {n} connections: {speed}" for n, speed in plain.items())
    return [
        Figure(
            what=f"single-row posts acked, one ingest process, {connections} connections",
            goal=">= 2,000/s and >= 20x DuckLake direct",
            ours=f"{rate:,.0f}/s, ack {show(run['ack_ms'])}; {rate / best:,.0f}x the best direct",
            peers=f"{direct}. {heaps}",
            notes=f"closed loop, a key per row, client `tests/bench/client.py`; {others}; failed {run['failed']}; {cores(run)}",
        )
    ]
