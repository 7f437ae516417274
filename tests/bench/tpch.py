"""The 22 queries of TPC-H, one client, all through the HTTP door."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import duckdb

from duckmesh_runtime.extensions import extension_path
from tests.bench.figures import Figure, cpu_used
from tests.bench.mode import Mode
from tests.bench.readers import LIMITS, Caller, calling, direct_reader, files_of, in_turn, query_pod
from tests.bench.stack import Stack
from tests.direct import lake_writer
from tests.pods import tenant_of
from tests.services import Lake

TABLES = ("region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem")


def tpch(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """Scale factor 1, each query in turn with DuckDB's own run over the same files."""
    scale = mode.pick(1.0, 0.05)
    lake = stack.lake()
    queries = _fill(lake, scale)
    with tenant_of(lake) as tenant, ExitStack() as ending:
        pod, sandbox = query_pod(tenant)
        caller = ending.enter_context(calling(pod))
        direct = ending.enter_context(direct_reader(lake, files_of(lake, TABLES)))
        used = ending.enter_context(
            cpu_used({"query": pod.process.pid, "sandbox": sandbox.process.pid})
        )
        rounds = max(2, mode.rounds)
        took = {
            name: in_turn(
                1 + rounds,  # the first is warm-up
                partial(_ours, caller, sql),
                partial(_direct, direct, sql),
            )
            for name, sql in queries.items()
        }
        ending.close()
    ours, plain = ({n: statistics.median(t[side][1:]) for n, t in took.items()} for side in (0, 1))
    ratios = sorted(((ours[n] / plain[n], n) for n in took), reverse=True)
    worst = ", ".join(f"Q{n} {ratio:.2f}x ({ours[n]:.0f} ms)" for ratio, n in ratios[:4])
    total, other = sum(ours.values()), sum(plain.values())
    return [
        Figure(
            what=f"TPC-H SF{scale:g}, 22 queries, total",
            goal="<= 1.1x",
            ours=f"{total / 1000:.2f} s; **{total / other:.2f}x**",
            peers=f"in-process read_parquet: {other / 1000:.2f} s",
            notes=f"medians of {rounds} rounds after one of warm-up, JSON answers, "
            f"{LIMITS.memory_bytes // 2**20} MiB each; most above: {worst}; {used}",
        )
    ]


def _ours(caller: Caller, sql: str, _: int) -> object:
    return caller.rows(sql)


def _direct(direct: duckdb.DuckDBPyConnection, sql: str, _: int) -> object:
    return direct.execute(sql).to_arrow_table()


def _fill(lake: Lake, scale: float) -> dict[int, str]:
    """Make the tables by DuckDB's own generator; the queries by their number."""
    writer = asyncio.run(lake_writer(lake))
    try:
        connection = writer.connection
        connection.load_extension(extension_path("tpch"))
        connection.execute("SET memory_limit = '2GiB'")
        connection.execute(f"CALL dbgen(sf = {scale})")
        for table in TABLES:
            writer.commit(f"CREATE TABLE lake.{table} AS FROM memory.{table}")
        return _queries(connection)
    finally:
        writer.connection.close()


def _queries(connection: duckdb.DuckDBPyConnection) -> dict[int, str]:
    return dict(connection.execute("SELECT query_nr, query FROM tpch_queries()").fetchall())
