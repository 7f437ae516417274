"""The same work done without duckmesh: DuckLake from N writers of its own, and a plain Postgres table.

DuckLake direct uses the same Postgres, the same S3 and one DuckDB per writer, all defaults, once as it comes (it keeps up
to 10 rows of a commit inside the catalog) and once writing Parquet, as duckmesh does.
"""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import duckdb
import pyarrow as pa
import pyarrow.csv

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.settings import StoreSettings
from tests.bench.figures import quantiles
from tests.bench.stack import Stack
from tests.services import create_database, s3_store

TABLE = 'CREATE TABLE {} (id BIGINT NOT NULL, kind VARCHAR, amount DOUBLE, "at" TIMESTAMPTZ)'
_POSTGRES_TABLE = TABLE.replace("DOUBLE", "DOUBLE PRECISION")
_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Speed:
    """Work per second, and how long one piece took (ms)."""

    seconds: float
    took: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds

    def __str__(self) -> str:
        marks = quantiles(self.took)
        times = f"p50 {marks['p50']:,.1f}, p95 {marks['p95']:,.1f} ms" if marks else "too few"
        lost = f", {self.failed} failed" if self.failed else ""
        return f"{self.rate:,.1f}/s ({times}{lost})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectLake:
    """A DuckLake of its own in the same Postgres and S3."""

    attach: str
    store: StoreSettings
    folder: Path

    def connect(self, *, threads: int = 2) -> duckdb.DuckDBPyConnection:
        connection = duckdb_engine.connect(threads=threads, memory_bytes=2**30)
        duckdb_engine.use_store(connection, self.store)
        connection.execute(self.attach)
        return connection


def direct_lake(stack: Stack, *, inline: bool = False) -> DirectLake:
    """Make one with the table `load`; `inline` leaves DuckLake's default."""
    dsn = asyncio.run(create_database(stack.postgres))
    name = f"direct-{dsn.rpartition('_')[2]}"
    option = "" if inline else ", DATA_INLINING_ROW_LIMIT 0"
    where = f"ducklake:postgres:{lakesql.conninfo(dsn)}"
    folder = stack.folder / name
    store = s3_store(folder, name, stack.s3)
    attach = f"ATTACH {lakesql.quote_text(where)} AS lake (DATA_PATH '{store.url}'{option})"
    lake = DirectLake(attach=attach, store=store, folder=folder)
    with closing(lake.connect()) as connection:
        connection.execute(TABLE.format("lake.load"))
    return lake


@contextmanager
def closing(connection: duckdb.DuckDBPyConnection) -> Iterator[duckdb.DuckDBPyConnection]:
    try:
        yield connection
    finally:
        connection.close()


def direct_writers(lake: DirectLake, writers: int, rows: int, seconds: float) -> Speed:
    """So many writers commit `rows` rows at a time as fast as they can."""
    speed = Speed(seconds)
    values = ", ".join(f"({i}, 'order', {i * 0.5}, '2026-01-01T00:00:00Z')" for i in range(rows))
    statement = f"INSERT INTO lake.load VALUES {values}"
    connections = [lake.connect(threads=1) for _ in range(writers)]
    end = time.perf_counter() + seconds

    def write(connection: duckdb.DuckDBPyConnection) -> None:
        while (start := time.perf_counter()) < end:
            try:
                connection.execute(statement)
            except duckdb.Error:
                speed.failed += 1
            else:
                speed.took.append((time.perf_counter() - start) * 1000)

    threads = [threading.Thread(target=write, args=(one,)) for one in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    return speed


def direct_writers_rates(stack: Stack, rows: int, seconds: float) -> tuple[str, float]:
    """All of 1, 4 and 16 writers, inlined and as Parquet, in words; and the best rate seen."""
    found: list[str] = []
    best = 0.0
    for inline in (True, False):
        lake = direct_lake(stack, inline=inline)
        for writers in (1, 4, 16):
            speed = direct_writers(lake, writers, rows, seconds)
            best = max(best, speed.rate)
            kind = "inlined" if inline else "Parquet"
            found.append(f"DuckLake {kind}, {writers} writers: {speed}")
    return "; ".join(found), best


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def direct_arrow(lake: DirectLake, body: bytes) -> Callable[[], None]:
    """Insert the rows of an IPC stream in one commit."""
    connection = lake.connect()

    def work() -> None:
        rows = pa.ipc.open_stream(body).read_all()
        connection.register("rows", rows)
        connection.execute("INSERT INTO lake.load SELECT * FROM rows")
        connection.unregister("rows")

    return work


def direct_ndjson(lake: DirectLake, body: bytes) -> Callable[[], object]:
    """Insert the rows of NDJSON by DuckDB's own reader, from a file in /tmp."""
    file = lake.folder / "rows.ndjson"
    file.write_bytes(body)
    connection = lake.connect()
    columns = "{id: 'BIGINT', kind: 'VARCHAR', amount: 'DOUBLE', 'at': 'TIMESTAMPTZ'}"
    statement = (
        f"INSERT INTO lake.load SELECT * FROM read_json('{file}', format = 'newline_delimited', "
        f"columns = {columns})"
    )
    return lambda: connection.execute(statement)


class PostgresHeap:
    """The table `load` in a database of its own, with a primary key when `keyed`."""

    def __init__(self, stack: Stack, *, keyed: bool = False) -> None:
        self._dsn = asyncio.run(create_database(stack.postgres))
        key = "; ALTER TABLE load ADD PRIMARY KEY (id)" if keyed else ""
        asyncio.run(self._execute(_POSTGRES_TABLE.format("load") + key))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def execute(self, statement: str) -> None:
        asyncio.run(self._execute(statement))

    def closed(self, connections: int, rows: int, seconds: float) -> Speed:
        """So many connections, each inserting `rows` rows a transaction."""
        return asyncio.run(self._closed(connections, rows, seconds))

    async def _closed(self, connections: int, rows: int, seconds: float) -> Speed:
        speed = Speed(seconds)
        pool = await asyncpg.create_pool(self._dsn, min_size=connections, max_size=connections)
        end = time.perf_counter() + seconds

        async def one() -> None:
            while (start := time.perf_counter()) < end:
                await pool.execute(_INSERT, *_columns(range(rows)))
                speed.took.append((time.perf_counter() - start) * 1000)

        try:
            await asyncio.gather(*(one() for _ in range(connections)))
        finally:
            await pool.close()
        return speed

    def open_loop(self, rate: float, rows: int, seconds: float) -> list[float]:
        """Milliseconds from the scheduled start of each transaction to its commit, which is its visibility too."""
        return asyncio.run(self._open_loop(rate, rows, seconds))

    async def _open_loop(self, rate: float, rows: int, seconds: float) -> list[float]:
        took: list[float] = []
        pool = await asyncpg.create_pool(self._dsn, min_size=16, max_size=16)

        async def one(due: float) -> None:
            await pool.execute(_INSERT, *_columns(range(rows)))
            took.append((time.perf_counter() - due) * 1000)

        try:
            async with asyncio.TaskGroup() as group:
                start = time.perf_counter() + 0.1
                for number in range(int(rate * seconds)):
                    due = start + number / rate
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    group.create_task(one(due))
        finally:
            await pool.close()
        return took

    def copy(self, rows: pa.Table) -> Callable[[], None]:
        """COPY of the same rows, from text made ahead."""
        sink = io.BytesIO()
        options = pyarrow.csv.WriteOptions(include_header=False)
        pyarrow.csv.write_csv(rows, sink, options)
        text = sink.getvalue()

        async def work() -> None:
            connection = await asyncpg.connect(self._dsn)
            try:
                await connection.copy_to_table("load", source=io.BytesIO(text), format="csv")
            finally:
                await connection.close()

        return lambda: asyncio.run(work())

    def upserts(self, batches: Sequence[Sequence[int]]) -> list[float]:
        """Milliseconds of each batch of INSERT ... ON CONFLICT DO UPDATE."""
        return asyncio.run(self._upserts(batches))

    async def _upserts(self, batches: Sequence[Sequence[int]]) -> list[float]:
        connection = await asyncpg.connect(self._dsn)
        took = []
        try:
            for ids in batches:
                start = time.perf_counter()
                await connection.execute(_UPSERT, *_columns(ids))
                took.append((time.perf_counter() - start) * 1000)
        finally:
            await connection.close()
        return took


_INSERT = """
INSERT INTO load SELECT * FROM unnest($1::bigint[], $2::text[], $3::double precision[], $4::timestamptz[])
"""
_UPSERT = (
    _INSERT
    + """
ON CONFLICT (id) DO UPDATE SET kind = EXCLUDED.kind, amount = EXCLUDED.amount, "at" = EXCLUDED."at"
"""
)


def _columns(ids: Sequence[int]) -> tuple[list[object], ...]:
    return list(ids), ["order"] * len(ids), [i * 0.5 for i in ids], [_AT] * len(ids)
