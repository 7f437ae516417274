"""DuckDB connections of trusted processes: how one is made, and how its blocking calls run beside asyncio.

The sandbox has its own, stricter way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import duckdb

from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.extensions import connect as open_with
from duckmesh_runtime.settings import StoreSettings, read_secret

T = TypeVar("T")

logger = logging.getLogger(__name__)

TRUSTED: Final = ("postgres_scanner", "ducklake", "httpfs")
_NO_FOLDER: Final = "/dev/null/none"
_AFTER_INTERRUPT_S: Final = 2.0
"""An interrupted statement ends in milliseconds, unless it waits for a dead peer; then its thread is given up."""


def connect(
    *,
    extensions: Sequence[str] = TRUSTED,
    threads: int = 2,
    memory_bytes: int = 512 * 2**20,
    database: str = ":memory:",
) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB of its own with the extensions loaded.

    Args:
        extensions: Names of extension wheels, dependencies first.
        threads: Threads of one statement.
        memory_bytes: DuckDB's memory limit; data past it goes to its temporary files.
        database: A file, or memory.
    """
    connection = open_with(
        extensions,
        {
            "threads": threads,
            "memory_limit": f"{memory_bytes // 2**20}MiB",
            # Made when data is spilled, and each instance's own: their files have the same names.
            "temp_directory": str(Path(gettempdir()) / f"duckmesh-{uuid4().hex}"),
            # A person's stored secrets are not ours. They cannot be forbidden: DuckLake asks for their storage.
            "secret_directory": _NO_FOLDER,
        },
        database=database,
    )
    try:
        connection.execute("SET enable_progress_bar = false")
    except BaseException:
        connection.close()
        raise
    return connection


def data_path(store: StoreSettings) -> str:
    """The store's URL as DuckLake keeps it: a `file://` URL becomes its folder."""
    url = urlsplit(store.url)
    return unquote(url.path) if url.scheme == "file" else store.url


def use_store(connection: duckdb.DuckDBPyConnection, store: StoreSettings) -> None:
    """Give a connection the key of the store; nothing to do for files. Repeat it to take up a rotated key."""
    if store.secret_dir is None:
        return
    connection.execute(
        lakesql.s3_secret(
            scope=store.url,
            key_id=read_secret(store.secret_dir, "access-key-id"),
            secret=read_secret(store.secret_dir, "secret-access-key"),
            endpoint=store.endpoint,
            region=store.region,
        )
    )


class Engine:
    """One DuckDB connection and the one thread that uses it; calls run one after the other.

    Args:
        connection: Owned from now on: `close` closes it.
        name: Of the thread, for stack dumps.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, name: str) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._turn = asyncio.Lock()
        self._given_up = False

    @property
    def given_up(self) -> bool:
        """Whether it takes no more calls: a statement hangs, or it was closed."""
        return self._given_up

    async def run(self, work: Callable[[duckdb.DuckDBPyConnection], T], *, timeout_s: float) -> T:
        """Run blocking `work` in the thread.

        On timeout or cancellation the running statement is interrupted and its end awaited, so the connection is free
        for the next call; what was in a COMMIT then may or may not have landed.

        Raises:
            TimeoutError: It ran too long, or an earlier call never came back and the engine is given up.
        """
        async with self._turn:
            if self._given_up:
                raise TimeoutError("an earlier statement hangs")
            running = asyncio.get_running_loop().run_in_executor(
                self._thread, work, self._connection
            )
            try:
                async with asyncio.timeout(timeout_s):
                    return await asyncio.shield(running)
            except (TimeoutError, asyncio.CancelledError):
                await self._interrupt(running)
                raise

    async def close(self) -> None:
        """Close the connection in its thread; safe to repeat."""
        if self._given_up:
            return
        try:
            await self.run(_close, timeout_s=_AFTER_INTERRUPT_S)
        except TimeoutError:
            self._give_up()
        else:
            self._given_up = True
            self._thread.shutdown(wait=False)

    async def _interrupt(self, running: asyncio.Future[T]) -> None:
        if running.done():
            return
        with suppress(duckdb.ConnectionException):  # closed, and the thread has yet to say so
            self._connection.interrupt()
        done, _ = await asyncio.wait({running}, timeout=_AFTER_INTERRUPT_S)
        if not done:
            self._give_up()
        elif not running.cancelled():
            running.exception()  # looked at: the caller gets the timeout instead

    def _give_up(self) -> None:
        if not self._given_up:
            logger.warning("a DuckDB statement does not end; its thread is left behind")
        self._given_up = True
        self._thread.shutdown(wait=False, cancel_futures=True)


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    # Closed with a transaction open whose Postgres is gone, DuckDB ends the process: its destructor's ROLLBACK raises.
    with suppress(duckdb.Error):
        connection.rollback()
    connection.close()
