"""Large bodies as Parquet in the store, before the bus names them. Called by `services/bulk_writer.py` through `ports.Stager`.

The file has exactly the table's columns in the lake's own types, so that the committer can make it part of the table
without reading it. One is written at a time: it bounds memory, and more at once are not faster on a pod's cores.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import asyncpg
import duckdb
import pyarrow as pa

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.duckdb_engine import Engine
from duckmesh_runtime.adapters.lake_files import table_folder
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.domain.lakesql import quote_name, quote_text
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import DuckmeshError, Unavailable
from duckmesh_runtime.ports import StagedFile, StoreState
from duckmesh_runtime.settings import StoreSettings

logger = logging.getLogger(__name__)

_ROWS: Final = "duckmesh_rows"
_STAGE_S: Final = 30.0
_OPEN_S: Final = 10.0
_DISCARD_S: Final = 5.0
_REST_S: Final = 5.0
"""After a failure nothing is tried for so long: the bodies that wait go through the bus at once. Then the store is asked
first whether it answers, which takes seconds where a file takes half a minute to fail."""

_MEMORY_BYTES: Final = 256 * 2**20
_SETTINGS: Final = (
    "SET python_enable_replacements = false",
    # The smallest that DuckDB takes: an upload's buffer is a ten-thousandth of it, and 80 MB with the default.
    "SET s3_uploader_max_filesize = '50GB'",
    "SET s3_uploader_thread_limit = 2",
    # A store that does not answer is given up in seconds, not minutes.
    "SET http_timeout = 10",
    "SET http_retries = 1",
)


class DuckDBStager:
    """`ports.Stager` of one lake. DuckDB is opened when first needed.

    Args:
        lake: Catalog schema.
        store: Where the Parquet lies.
        pool: Connections under the writer login; the caller closes it.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        lake: str,
        store: StoreSettings,
        pool: asyncpg.Pool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lake = lake
        self._store = store
        self._pool = pool
        self._clock = clock
        self._objects = StoreObjects(store)
        self._engine: Engine | None = None
        self._turn = asyncio.Lock()
        self._rest_until = 0.0
        self._failing = False

    async def stage(self, table: TableDef, batches: Sequence[pa.RecordBatch]) -> StagedFile | None:
        """See `Stager.stage`; callers wait for their turn."""
        async with self._turn:
            if self._clock() < self._rest_until:
                raise _unavailable()
            if self._failing and await self._objects.state(write=False) is not StoreState.OK:
                self._rest_until = self._clock() + _REST_S
                raise _unavailable()
            folder = await table_folder(self._pool, self._lake, table.name)
            if folder is None:
                return None
            path = f"{folder}staged-{uuid4().hex}.parquet"
            try:
                size = await self._write(table, batches, path)
            except (duckdb.Error, TimeoutError, OSError) as error:
                # The engine's text may hold values and addresses: it goes neither into the message nor into the chain.
                logger.warning("file not staged", extra={"error_type": type(error).__name__})
                await self._remove(path)
                self._failing, self._rest_until = True, self._clock() + _REST_S
                raise _unavailable() from None
            except asyncio.CancelledError:
                await self._remove(path)
                raise
            self._failing = False
            return StagedFile(path=path, rows=sum(map(len, batches)), size=size)

    async def discard(self, file: StagedFile) -> None:
        """See `Stager.discard`."""
        await self._remove(file.path)

    async def close(self) -> None:
        """Give up the engine; safe to repeat."""
        if self._engine is not None:
            await self._engine.close()

    async def _write(self, table: TableDef, batches: Sequence[pa.RecordBatch], path: str) -> int:
        """Write the file; returns its size in bytes."""
        rows = pa.Table.from_batches(batches)
        target = duckdb_engine.data_path(self._store) + path
        statement = _copy(table, target)

        def work(connection: duckdb.DuckDBPyConnection) -> int:
            duckdb_engine.use_store(connection, self._store)
            if self._store.secret_dir is None:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            connection.register(_ROWS, rows)
            try:
                ((_, _, size, *_),) = connection.execute(statement).fetchall()
            finally:
                connection.unregister(_ROWS)
            return int(size)

        engine = await self._opened()
        return await engine.run(work, timeout_s=_STAGE_S)

    async def _opened(self) -> Engine:
        if self._engine is None or self._engine.given_up:
            connection = await asyncio.to_thread(
                duckdb_engine.connect, extensions=("httpfs",), memory_bytes=_MEMORY_BYTES
            )
            self._engine = Engine(connection, name="stage")

            def settle(connection: duckdb.DuckDBPyConnection) -> None:
                for setting in _SETTINGS:
                    connection.execute(setting)

            await self._engine.run(settle, timeout_s=_OPEN_S)
        return self._engine

    async def _remove(self, path: str) -> None:
        with suppress(DuckmeshError, TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                await self._objects.remove(path)


def _copy(table: TableDef, target: str) -> str:
    columns = ", ".join(
        f"CAST({quote_name(c.name)} AS {c.type}) AS {quote_name(c.name)}" for c in table.columns
    )
    return (
        f"COPY (SELECT {columns} FROM {quote_name(_ROWS)}) TO {quote_text(target)} "  # noqa: S608 - quoted
        "(FORMAT parquet, COMPRESSION zstd, RETURN_STATS true)"
    )


def _unavailable() -> Unavailable:
    return Unavailable(
        "STORAGE_UNAVAILABLE", "the object store takes no file now: repeat", retry_after_s=_REST_S
    )
