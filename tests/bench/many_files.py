"""Lakes of many files: the first query after a start, and how long the catalog takes to freeze."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.postgres import open_pool
from tests.bench.figures import Figure, quantiles, show
from tests.bench.mode import Mode
from tests.bench.peers import TABLE
from tests.bench.readers import calling, direct_reader, files_of, milliseconds, query_pod
from tests.bench.stack import Stack
from tests.direct import Writer, lake_writer
from tests.pods import Tenant, tenant_of
from tests.services import Lake, new_lake

_SCAN = "SELECT count(*), sum(amount) FROM load"
_ROWS_PER_FILE = 100
_FILES_PER_COMMIT = 1_000


def first_query(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """A sum over 1,000 files on S3 as the first statement of a new query pod, nothing in any cache."""
    count, rounds = mode.pick(1_000, 100), max(3, mode.rounds)
    lake = stack.lake()
    writer = asyncio.run(lake_writer(lake))
    _fill(writer, count)
    writer.connection.close()
    found = [_first(lake) for _ in range(rounds)]
    plain = [_first_direct(lake) for _ in range(rounds)]
    first, again, started = (list(one) for one in zip(*found, strict=True))
    return [
        Figure(
            what=f"first query after start, {count:,} live files on S3",
            goal="<= 1.5 s",
            ours=f"**{_seconds(first)}** from readiness; {_seconds(started)} from the start of its processes",
            peers=f"in-process read_parquet with a cold cache: {_seconds(plain)}",
            notes=f"`{_SCAN}`, medians of {rounds} new pods; the second query takes {_seconds(again)}",
        )
    ]


def freeze(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """Freeze a catalog of 10,000 files anew after each commit."""
    count, turns = mode.pick(10_000, 500), mode.pick(20, 8) * mode.rounds
    took, opened, size = asyncio.run(_freeze(stack, count, turns))
    return [
        Figure(
            what=f"freeze of a catalog of {count:,} files",
            goal="<= 200 ms",
            ours=f"**{show(quantiles(took))}**",
            peers=f"DuckLake over Postgres, plan of a query at the same new snapshot: {show(quantiles(opened))}",
            notes=f"{turns} turns, a commit before each; {size / 2**20:.1f} MiB of catalog; partitioned by id",
        )
    ]


def _fill(writer: Writer, count: int) -> None:
    """So many files of the table `load`: a partition each, in commits of a thousand for the writer's memory."""
    writer.commit(TABLE.format("lake.load"), "ALTER TABLE lake.load SET PARTITIONED BY (id)")
    for first in range(0, count, _FILES_PER_COMMIT):
        end = min(count, first + _FILES_PER_COMMIT)
        writer.commit(
            "INSERT INTO lake.load SELECT i, 'kind-' || i % 1000, n * 0.5, TIMESTAMPTZ '2026-01-01T00:00:00Z' "
            f"FROM range({first}, {end}) AS t(i), range({_ROWS_PER_FILE}) AS s(n)"
        )
    writer.commit("ALTER TABLE lake.load RESET PARTITIONED BY")


def _first(lake: Lake) -> tuple[float, float, float]:
    """Milliseconds of the first and second query, and from the start of the pod to the first one's answer."""
    with tenant_of(lake) as tenant:
        begin = time.perf_counter()
        pod, _ = query_pod(tenant, warm=False)
        pod.wait(lambda: _listens(tenant))
        with calling(pod) as caller:
            first = milliseconds(lambda: caller.rows(_SCAN))
            started = (time.perf_counter() - begin) * 1000
            again = milliseconds(lambda: caller.rows(_SCAN))
    return first, again, started


def _listens(tenant: Tenant) -> bool:
    return Path(tenant.env()["DUCKMESH_SANDBOX_SOCKET"]).exists()


def _first_direct(lake: Lake) -> float:
    with direct_reader(lake, files_of(lake, ["load"])) as direct:
        return milliseconds(lambda: direct.execute(_SCAN).fetchall())


async def _freeze(stack: Stack, count: int, turns: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each freeze, of each plan of DuckLake's own, and bytes of the file."""
    lake = await new_lake(stack.folder, stack.postgres)  # local files: the store plays no part
    writer = await lake_writer(lake)
    pool = await open_pool(lake.reader_dir, application_name="bench")
    with TemporaryDirectory(prefix="duckmesh-frozen-") as folder:
        freezer = PostgresFreezer(
            pool,
            lake.name,
            Path(folder),
            data_url="http://127.0.0.1:1/lake/",
            allow=lambda _: None,
            forget=lambda _: None,
        )
        try:
            await asyncio.to_thread(_fill, writer, count)
            await freezer.freeze()  # opens its engine
            took, opened, size = [], [], 0
            for turn in range(turns):
                token = await asyncio.to_thread(
                    writer.commit, f"INSERT INTO lake.load VALUES ({-turn}, 'late', 0.5, now())"
                )
                start = time.perf_counter()
                catalog = await freezer.freeze(token)
                took.append((time.perf_counter() - start) * 1000)
                size = Path(catalog.path).stat().st_size
                freezer.release(catalog)
                explain = f"EXPLAIN SELECT * FROM lake.load WHERE id = {turn}"
                opened.append(milliseconds(lambda sql=explain: writer.rows(sql)))  # type: ignore[misc]  # mypy
        finally:
            await freezer.close()
            await pool.close()
            writer.connection.close()
    return took, opened, size


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values) / 1000:.2f} s"
