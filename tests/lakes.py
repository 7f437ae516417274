"""Input for a lake and a look into it, for tests with the real thing; and a committer as `duckmesh serve ingest` makes it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg
import duckdb
import msgspec
import pyarrow as pa

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.ducklake import DuckLakeWriter, open_writer
from duckmesh_runtime.adapters.election import PROTOCOL, PostgresElection
from duckmesh_runtime.adapters.postgres import LOCK_TIMEOUT_MS, open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.adapters.progress import PostgresProgress
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.bus_rows import DELETED, bus_schema
from duckmesh_runtime.domain.changes import Change, alter_json
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, arrow_schema, table_json
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    EntryKind,
    IngestBus,
    Part,
    StagedFile,
)
from duckmesh_runtime.services.commit import Committer
from duckmesh_runtime.settings import BatchSettings, StoreSettings, read_secret
from tests.services import Lake

QUICK = BatchSettings(min_interval_ms=10, max_delay_ms=20)

EVENTS = TableDef(
    name="events",
    columns=(
        ColumnDef(name="id", type="BIGINT", nullable=False),
        ColumnDef(name="text", type="VARCHAR"),
    ),
)


def rows_of(ids: Iterable[int | None], table: TableDef = EVENTS) -> pa.Table:
    """Rows of a table whose first column is a number and whose others are NULL."""
    numbers = pa.array(list(ids), pa.int64())
    # Not null is the lake's rule here: the bus would take such rows, and a test wants them refused later.
    schema = pa.schema([field.with_nullable(True) for field in arrow_schema(table)])
    others = [pa.nulls(len(numbers), field.type) for field in list(schema)[1:]]
    return pa.Table.from_arrays([numbers, *others], schema=schema)


def append_rows(ids: Iterable[int | None], *, version: int, table: TableDef = EVENTS) -> Append:
    rows = rows_of(ids, table)
    return append_table(rows, version=version, table=table.name)


KEYED = TableDef(
    name="keyed",
    columns=(
        ColumnDef(name="id", type="BIGINT", nullable=False),
        ColumnDef(name="value", type="VARCHAR"),
    ),
    primary_key=("id",),
)


def changes_of(
    *changes: Mapping[str, object] | tuple[object, ...], table: TableDef = KEYED
) -> pa.Table:
    """Rows of a keyed table: a mapping is an upsert, a tuple the key of a row to delete."""
    rows = [
        {**change, DELETED: False}
        if isinstance(change, Mapping)
        else {**dict(zip(table.primary_key, change, strict=True)), DELETED: True}
        for change in changes
    ]
    return pa.Table.from_pylist(rows, schema=bus_schema(table))


def append_table(rows: pa.Table, *, version: int, table: str) -> Append:
    """Rows as they are, of any schema."""
    batch = rows.combine_chunks().to_batches()[0]
    return Append(
        kind=EntryKind.ROWS,
        table=table,
        parts=[Part(rows=rows.num_rows, payload=batch.serialize().to_pybytes())],
        schema_version=version,
        header=rows.schema.serialize().to_pybytes(),
    )


def append_file(file: StagedFile, *, version: int, table: str = "events") -> Append:
    part = Part(rows=file.rows, payload=msgspec.json.encode(file))
    return Append(kind=EntryKind.FILE, table=table, parts=[part], schema_version=version)


def append_alter(table: TableDef, *changes: Change, version: int) -> Append:
    """Changes of a table, and `table` as it is afterwards."""
    payload = json.dumps(alter_json(table, changes)).encode()
    part = Part(rows=1, payload=payload)
    return Append(
        kind=EntryKind.ALTER_TABLE, table=table.name, parts=[part], schema_version=version
    )


async def stage(
    lake: Lake, rows: pa.Table, name: str = "staged-1.parquet", *, folder: str = "main/events/"
) -> StagedFile:
    """Write rows as Parquet below the lake's data path."""
    path = folder + name
    connection = duckdb_engine.connect(extensions=("httpfs",), threads=1)
    try:
        duckdb_engine.use_store(connection, lake.store)
        target = duckdb_engine.data_path(lake.store) + path
        if lake.store.secret_dir is None:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        connection.register("staged", rows)
        connection.execute(f"COPY staged TO '{target}' (FORMAT parquet)")
    finally:
        connection.close()
    return StagedFile(path=path, rows=rows.num_rows, size=1)


def append_create(table: TableDef, *, version: int) -> Append:
    payload = json.dumps(table_json(table)).encode()
    part = Part(rows=1, payload=payload)
    return Append(
        kind=EntryKind.CREATE_TABLE, table=table.name, parts=[part], schema_version=version
    )


def append_drop(name: str, *, version: int) -> Append:
    part = Part(rows=1, payload=b"")
    return Append(kind=EntryKind.DROP_TABLE, table=name, parts=[part], schema_version=version)


async def send(bus: IngestBus, *appends: Append) -> int:
    """Append one after the other; returns the last number."""
    last = 0
    for append in appends:
        (receipt,) = await bus.append([append])
        assert receipt.result is AppendResult.ACCEPTED
        last = receipt.last
    return last


class LakeView:
    """A lake from outside, under its reader login, and its catalog under the superuser's."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of a statement over the lake as it is now."""
        with self._attached() as connection:
            return connection.execute(statement).fetchall()

    def dicts(self, statement: str) -> list[dict[str, Any]]:
        """The same with names, by way of Arrow."""
        with self._attached() as connection:
            found: list[dict[str, Any]] = connection.execute(statement).to_arrow_table().to_pylist()
            return found

    @contextmanager
    def _attached(self) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = duckdb_engine.connect(threads=1)
        try:
            duckdb_engine.use_store(connection, self._lake.store)
            conninfo = lakesql.conninfo(read_secret(self._lake.reader_dir, "dsn"))
            path = duckdb_engine.data_path(self._lake.store)
            attach = lakesql.attach_lake(conninfo, schema=self._lake.name, data_path=path)
            connection.execute(attach.replace("(DATA_PATH", "(READ_ONLY, DATA_PATH"))
            connection.execute(f"USE {lakesql.LAKE}")
            yield connection
        finally:
            connection.close()

    def ids(self, table: str = "events") -> list[int]:
        return [row[0] for row in self.query(f"SELECT id FROM {table} ORDER BY id")]

    async def fetch(self, statement: str, *args: object) -> Sequence[asyncpg.Record]:
        connection = await asyncpg.connect(self._lake.catalog_dsn)
        try:
            rows: Sequence[asyncpg.Record] = await connection.fetch(statement, *args)
            return rows
        finally:
            await connection.close()

    async def fetchval(self, statement: str, *args: object) -> Any:
        return (await self.fetch(statement, *args))[0][0]

    async def token(self) -> int:
        query = "SELECT token FROM duckmesh.lake_status WHERE lake = $1"
        return int(await self.fetchval(query, self._lake.name))

    async def epoch(self) -> int:
        query = "SELECT epoch FROM duckmesh.lease WHERE lake = $1 AND role = 'w'"
        return int(await self.fetchval(query, self._lake.name))

    async def visible(self, number: int, deadline_s: float = 60) -> None:
        """Wait for the watermark."""
        await eventually(lambda: self._reached(number), deadline_s)

    async def _reached(self, number: int) -> bool:
        return await self.token() >= number


async def eventually(condition: Callable[[], Awaitable[bool]], deadline_s: float = 60) -> None:
    """Wait until it holds; TimeoutError past the deadline."""
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def force_inlining(lake: Lake) -> None:
    """Let small changes be kept inside the catalog, behind the fence's back."""
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        await connection.execute(
            "SET session_replication_role = replica;"
            f"UPDATE {lake.name}.ducklake_metadata SET value = '10' WHERE key = 'data_inlining_row_limit';"
            f"GRANT CREATE ON SCHEMA {lake.name} TO {lake.name}_w"
        )
    finally:
        await connection.close()


@asynccontextmanager
async def writer_pool(
    lake: Lake, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS
) -> AsyncIterator[asyncpg.Pool]:
    speaks = {"duckmesh.protocol": str(PROTOCOL)}
    pool = await open_pool(
        lake.writer_dir,
        application_name="test-writer",
        settings=speaks,
        lock_timeout_ms=lock_timeout_ms,
    )
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def elected_writer(lake: Lake, epoch: int | None = None) -> AsyncIterator[DuckLakeWriter]:
    """A writer under a fresh lease, or under the given epoch."""
    async with writer_pool(lake) as pool:
        if epoch is None:
            epoch = await pool.fetchval("SELECT duckmesh.take_over($1, 'w')", lake.name)
        writer = await open_writer(
            lake=lake.name, epoch=epoch, store=lake.store, secret_dir=lake.writer_dir, pool=pool
        )
        try:
            yield writer
        finally:
            await writer.close()


@asynccontextmanager
async def committer_of(
    lake: Lake, *, holder: str = "one", batch: BatchSettings = QUICK
) -> AsyncIterator[Committer]:
    """A committer with its adapters, not running."""
    async with writer_pool(lake) as pool:

        async def open_one(epoch: int) -> DuckLakeWriter:
            return await open_writer(
                lake=lake.name, epoch=epoch, store=lake.store, secret_dir=lake.writer_dir, pool=pool
            )

        election = PostgresElection(
            lake=lake.name,
            secret_dir=lake.writer_dir,
            holder=holder,
            address=f"{holder}:8080",
            pool=pool,
        )
        try:
            yield Committer(
                PostgresBus(pool, lake.name),
                election,
                open_one,
                PostgresProgress(pool, lake.name),
                batch,
            )
        finally:
            await election.close()


@asynccontextmanager
async def running(committer: Committer) -> AsyncIterator[Committer]:
    """Run a committer for the block's time, then hand over."""
    task = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        await asyncio.wait_for(committer.hand_over(), 20)
        await task


@contextmanager
def committer_process(lake: Lake, holder: str, *, die: tuple[str, str] | None = None) -> Any:
    """A process that campaigns and commits for the lake; killed at the end.

    Args:
        lake: The lake.
        holder: Its name.
        die: When and at which statement it kills itself, see `tests.failpoints`.
    """
    store = {key: str(value) for key, value in asdict(lake.store).items() if value is not None}
    arguments = json.dumps(
        {
            "name": lake.name,
            "writer_dir": str(lake.writer_dir),
            "store": store,
            "holder": holder,
            "die": die,
        }
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.committer_process", arguments],
        cwd=Path(__file__).parent.parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def store_of(values: dict[str, str]) -> StoreSettings:
    secret = values.pop("secret_dir", None)
    return StoreSettings(**values, secret_dir=Path(secret) if secret else None)
