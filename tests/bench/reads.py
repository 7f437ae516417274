"""Single readers: point queries on an idle and on a busy lake, and rows out as Arrow."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import numpy as np

from tests.bench.bulk import ARROW, arrow_body, rows_of, send
from tests.bench.figures import Figure, cpu_used, quantiles, show
from tests.bench.mode import Mode
from tests.bench.readers import Caller, calling, direct_reader, files_of, in_turn, query_pod
from tests.bench.stack import Stack, start_ingest
from tests.pods import Pod, Tenant, tenant_of

POINT = "SELECT * FROM load WHERE id = ?"
COMMITS_PER_S = 5
_BODY_ROWS = 1_000_000


def point(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """One row by its id, the lake idle."""
    size, turns = rows_in(mode), mode.pick(400, 60) * mode.rounds
    with filled(stack, size) as (tenant, ingest):
        pod, sandbox = query_pod(tenant)
        files = files_of(tenant.lake, ["load"])
        with (
            calling(pod) as caller,
            calling(ingest) as front,
            direct_reader(tenant.lake, files) as direct,
            cpu_used({"query": pod.process.pid, "sandbox": sandbox.process.pid}) as used,
        ):
            ours, through, plain = _points(turns, size, caller, front, direct)
    more = _p50(ours) - _p50(plain)
    return [
        Figure(
            what=f"point query on {size:,} rows, idle lake",
            goal="<= +10 ms p50",
            ours=f"{show(quantiles(ours))}; **{more:+.1f} ms p50**",
            peers=f"in-process read_parquet: {show(quantiles(plain))}",
            notes=f"{turns} turns after as many of warm-up, {len(files['load'])} files; "
            f"through an ingest process: {show(quantiles(through))}; {used}",
        )
    ]


def point_busy(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """The same while rows are committed five times a second."""
    size, turns = rows_in(mode), mode.pick(400, 60) * mode.rounds
    with filled(stack, size) as (tenant, ingest):
        pod, sandbox = query_pod(tenant)
        files = files_of(tenant.lake, ["load"])
        with (
            calling(pod) as caller,
            direct_reader(tenant.lake, files) as direct,
            _commits(ingest) as done,
            cpu_used({"query": pod.process.pid, "sandbox": sandbox.process.pid}) as used,
        ):
            start = time.perf_counter()
            ours, _, plain = _points(turns, size, caller, None, direct)
            seconds = time.perf_counter() - start
        grown = len(files_of(tenant.lake, ["load"])["load"])
    more = quantiles(ours)["p95"] - quantiles(plain)["p95"]
    return [
        Figure(
            what=f"the same while {COMMITS_PER_S} commits/s run",
            goal="<= +100 ms p95",
            ours=f"{show(quantiles(ours))}; **{more:+.1f} ms p95**",
            peers=f"in-process read_parquet, of the files before: {show(quantiles(plain))}",
            notes=f"{turns} turns; {len(done)} commits in {seconds:.0f} s, {grown} files at the end; {used}",
        )
    ]


def arrow_out(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """100,000 rows as an Arrow table in the client's memory."""
    size, turns = rows_in(mode), mode.pick(60, 20) * mode.rounds
    count = 100_000
    sql = f"SELECT * FROM load WHERE id < {count}"
    with filled(stack, size) as (tenant, ingest):
        pod, sandbox = query_pod(tenant)
        with (
            calling(pod) as caller,
            calling(ingest) as front,
            direct_reader(tenant.lake, files_of(tenant.lake, ["load"])) as direct,
        ):
            works = (
                lambda _: _check(caller.arrow(sql).num_rows, count),
                lambda _: _check(front.arrow(sql).num_rows, count),
                lambda _: _check(direct.execute(sql).to_arrow_table().num_rows, count),
            )
            in_turn(10, *works)
            with cpu_used({"query": pod.process.pid, "sandbox": sandbox.process.pid}) as used:
                ours, through, plain = in_turn(turns, *works)
    ratio = _p50(ours) / _p50(plain)
    return [
        Figure(
            what=f"{count:,} rows of 4 columns out as Arrow, from {size:,}",
            goal="<= 1.3x",
            ours=f"{show(quantiles(ours))}; **{ratio:.2f}x p50**",
            peers=f"in-process read_parquet to an Arrow table: {show(quantiles(plain))}",
            notes=f"{turns} turns; through an ingest process {_p50(through) / _p50(plain):.2f}x; {used}",
        )
    ]


def rows_in(mode: Mode) -> int:
    """Rows of the table that is read."""
    return mode.pick(10_000_000, 1_000_000)


@contextmanager
def filled(stack: Stack, size: int) -> Iterator[tuple[Tenant, Pod]]:
    """A tenant whose table `load` holds the ids below `size`, sent as Arrow bodies of a million rows; its ingest process."""
    with tenant_of(stack.lake()) as tenant:
        ingest = start_ingest(tenant)
        for first in range(0, size, _BODY_ROWS):
            rows = rows_of(min(_BODY_ROWS, size - first), first)
            send(ingest, "/v1/ingest/load", arrow_body(rows), ARROW)
        yield tenant, ingest


def _points(
    turns: int,
    size: int,
    caller: Caller,
    front: Caller | None,
    direct: duckdb.DuckDBPyConnection,
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of ours, ours through ingest, and DuckDB; the first half is warm-up."""
    ids = np.random.default_rng(1).integers(0, size, 2 * turns).tolist()
    works: list[Callable[[int], object]] = [
        lambda turn: _check(caller.rows(POINT, ids[turn])[0][0], ids[turn]),
        lambda turn: _check(_id_of(direct.execute(POINT, [ids[turn]])), ids[turn]),
    ]
    if front is not None:
        works.append(lambda turn: _check(front.rows(POINT, ids[turn])[0][0], ids[turn]))
    took = [one[turns:] for one in in_turn(2 * turns, *works)]
    return took[0], took[2] if front is not None else [], took[1]


@contextmanager
def _commits(ingest: Pod) -> Iterator[list[int]]:
    """Send a row every fifth of a second, each a commit of its own, while the block runs; yields what was accepted."""
    stop, accepted = threading.Event(), []
    body = json.dumps({"records": [{"payload": {"id": -1, "kind": "late", "amount": 0.5}}]})

    def run() -> None:
        while not stop.wait(1 / COMMITS_PER_S):
            accepted.append(ingest.send("POST", "/v1/ingest/load", body.encode())[0])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield accepted
    finally:
        stop.set()
        thread.join()
    if set(accepted) != {200}:
        raise RuntimeError(f"rows were refused beside the queries: {set(accepted)}")


def _id_of(found: duckdb.DuckDBPyConnection) -> object:
    return found.to_arrow_table()["id"][0].as_py()


def _p50(values: Sequence[float]) -> float:
    return statistics.median(values)


def _check(found: object, wanted: object) -> None:
    if found != wanted:
        raise RuntimeError(f"a query answered {found}, not {wanted}")
