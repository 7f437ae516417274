"""Upserts of random keys into a big table, from the request to visible."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tests.bench.bulk import ARROW, arrow_body, rows_of, send
from tests.bench.figures import Figure, quantiles, show
from tests.bench.mode import Mode
from tests.bench.peers import PostgresHeap, closing, direct_lake
from tests.bench.stack import COLUMNS, Stack, one_ingest

KEYS = 1_000
_STEP = 500_000
_FILL = (
    "INSERT INTO {} SELECT i, 'kind-' || lpad((i % 1000)::VARCHAR, 15, '0'), i * 0.5, "
    "TIMESTAMPTZ '2026-01-01T00:00:00Z' FROM {} AS t(i)"
)


def upsert(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """1,000 random keys into 10 million rows."""
    size, turns = mode.pick(10_000_000, 500_000), mode.pick(40, 8)
    random = np.random.default_rng(1)
    batches = [random.choice(size, KEYS, replace=False).tolist() for _ in range(turns)]
    filled, ours = _ours(stack, size, batches)
    direct = _direct(stack, size, batches)
    heap = PostgresHeap(stack, keyed=True)
    heap.execute(_FILL.format("load", f"generate_series(0, {size - 1})"))
    plain = heap.upserts(batches)
    return [
        Figure(
            what=f"upsert of {KEYS:,} random keys into {size:,} rows, to visible",
            goal="p95 <= 600 ms",
            ours=show(quantiles(ours)),
            peers=f"DuckLake direct (delete and insert): {show(quantiles(direct))}. "
            f"Postgres heap with primary key, ON CONFLICT: {show(quantiles(plain))}",
            notes=f"{turns} Arrow bodies one after the other; the table was filled by upserts of "
            f"{_STEP:,} new keys at {size / filled:,.0f} rows/s",
        )
    ]


def _ours(stack: Stack, size: int, batches: Sequence[Sequence[int]]) -> tuple[float, list[float]]:
    table = {"name": "load", "columns": COLUMNS, "primary_key": ["id"]}
    path = "/v1/ingest/load?op=upsert"
    with one_ingest(stack, table=table) as pod:
        start = time.perf_counter()
        for first in range(0, size, _STEP):
            send(pod, path, arrow_body(rows_of(min(_STEP, size - first), first)), ARROW)
        filled = time.perf_counter() - start
        took = [send(pod, path, arrow_body(_batch(ids)), ARROW).visible for ids in batches]
    return filled, [seconds * 1000 for seconds in took]


def _direct(stack: Stack, size: int, batches: Sequence[Sequence[int]]) -> list[float]:
    took = []
    with closing(direct_lake(stack).connect()) as connection:
        connection.execute(_FILL.format("lake.load", f"range({size})"))
        for ids in batches:
            start = time.perf_counter()
            connection.register("batch", _batch(ids))
            connection.execute("BEGIN")
            connection.execute("DELETE FROM lake.load USING batch WHERE load.id = batch.id")
            connection.execute("INSERT INTO lake.load SELECT * FROM batch")
            connection.execute("COMMIT")
            took.append((time.perf_counter() - start) * 1000)
            connection.unregister("batch")
    return took


def _batch(ids: Sequence[int]) -> pa.Table:
    rows = rows_of(len(ids))
    return rows.set_column(0, "id", pa.array(ids, pa.int64()))
