"""Ending a lake transaction where DuckLake removes only files that nothing names. Called by `ducklake.py`, maintenance.

DuckLake removes the files of a transaction whose COMMIT raised. But a COMMIT that raised because its answer was lost may
have landed, and then these files are what the lake has just published. So from a COMMIT on, nothing that DuckLake does
can remove a file: what did not land stays behind as orphans (docs/adr/0015).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

import duckdb

from duckmesh_runtime import keeping
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.settings import StoreSettings, read_secret

logger = logging.getLogger(__name__)

# Nothing listens there. A refused connection is not tried again, or each file would cost seconds.
_NOWHERE: Final = lakesql.use_s3("GLOBAL", endpoint="http://127.0.0.1:1", retries=0)
_RETRIES: Final = 3
_THREADS: Final = "SELECT current_setting('threads')"


class CommitGuard:
    """Ends the transactions of one engine.

    Statements of the engine's connection find S3 by settings of that connection. DuckLake's own clean-up belongs to no
    connection: it goes by the engine's settings, and these say an address where nothing listens, except while `reaching`.
    Files on disk know no address: there the COMMIT runs in a thread in which removing a file does nothing.

    Args:
        store: Where the Parquet lies; its key is read now.
    """

    def __init__(self, store: StoreSettings) -> None:
        self._is_s3 = store.secret_dir is not None
        self._mine: Sequence[str] = ()
        self._all: Sequence[str] = ()
        self._key: Sequence[str] = ()
        if store.secret_dir is not None:
            self._mine = lakesql.use_s3("SESSION", endpoint=store.endpoint, retries=_RETRIES)
            self._all = lakesql.use_s3("GLOBAL", endpoint=store.endpoint, retries=_RETRIES)
            self._key = lakesql.use_s3_key(
                key_id=read_secret(store.secret_dir, "access-key-id"),
                secret=read_secret(store.secret_dir, "secret-access-key"),
                region=store.region,
            )
        elif not keeping.supported():
            logger.warning("no filters of calls here: a lost answer to a COMMIT may cost files")

    def open_store(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Let the connection reach the store. By settings and not by a secret, which would hold for the clean-up too."""
        if self._is_s3:
            _run(connection, [*_NOWHERE, *self._key, *self._mine])

    def commit(self, connection: duckdb.DuckDBPyConnection) -> None:
        """COMMIT; what raises may have landed, and no transaction is open any more."""
        try:
            if self._is_s3:
                connection.execute("COMMIT")
            else:
                _commit_on_disk(connection)
        except BaseException:
            with suppress(duckdb.Error):  # there is one left only when the COMMIT did not begin
                connection.execute("ROLLBACK")
            raise

    def rollback(self, connection: duckdb.DuckDBPyConnection) -> None:
        """ROLLBACK of what was not to be committed: its files go too. Nothing to roll back is fine."""
        with self.reaching(connection), suppress(duckdb.Error):
            connection.execute("ROLLBACK")

    @contextmanager
    def reaching(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Let what belongs to no connection of ours reach the store for a while.

        Registering a file needs it too: DuckLake reads the file by a connection of its own.
        """
        if not self._is_s3:
            yield
            return
        # Beside the connection: its transaction may be aborted, its statements may be interrupted.
        with connection.cursor() as beside:
            try:
                _run(beside, self._all)
                yield
            finally:
                _run(beside, _NOWHERE)


def _commit_on_disk(connection: duckdb.DuckDBPyConnection) -> None:
    if not keeping.supported():
        connection.execute("COMMIT")
        return
    ((threads,),) = connection.execute(_THREADS).fetchall()
    # The engine hands a statement to any thread of its own that is free, and those remove files.
    connection.execute("SET threads = 1")
    try:
        with ThreadPoolExecutor(1, "commit", initializer=keeping.keep_files) as thread:
            thread.submit(connection.execute, "COMMIT").result()
    finally:
        connection.execute(f"SET threads = {threads:d}")


def _run(connection: duckdb.DuckDBPyConnection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement)
