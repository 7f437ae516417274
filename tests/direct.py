"""Statements straight into a lake, as the holder of its commit lease: what tests of the read path start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import duckdb

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.settings import read_secret
from tests.services import Lake


class Writer:
    """One commit a call, each moving the watermark by one.

    Args:
        connection: With the lake attached as `lake`.
        token: Where the watermark is.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, token: int = 0) -> None:
        self.connection = connection
        self.token = token

    def commit(self, *statements: str) -> int:
        """Run the statements in one commit; returns the new watermark."""
        self.connection.execute("BEGIN")
        self.connection.execute(lakesql.mark_commit(self.token, self.token + 1, "test"))
        for statement in statements:
            self.connection.execute(statement)
        self.connection.execute("COMMIT")
        self.token += 1
        return self.token

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self.connection.execute(sql).fetchall()


async def lake_writer(lake: Lake) -> Writer:
    """Take the lease of role w and attach; close `connection` when done."""
    epoch = await take_over(lake, "w")
    return Writer(attach(lake, "w", epoch))


async def take_over(lake: Lake, role: str) -> int:
    """A new lease epoch."""
    admin = await asyncpg.connect(lake.catalog_dsn)
    try:
        await admin.execute("SET ROLE duckmesh_admin")
        return int(await admin.fetchval("SELECT duckmesh.take_over($1, $2)", lake.name, role))
    finally:
        await admin.close()


def attach(lake: Lake, role: str, epoch: int) -> duckdb.DuckDBPyConnection:
    """A DuckDB with the lake attached in a role."""
    folder = lake.writer_dir if role == "w" else lake.maintenance_dir
    conninfo = lakesql.conninfo(
        read_secret(folder, "dsn"),
        application_name=f"dm:{lake.name}:{role}:{epoch}",
        options=f"-c duckmesh.role={role} -c duckmesh.epoch={epoch}",
    )
    connection = duckdb_engine.connect()
    duckdb_engine.use_store(connection, lake.store)
    path = duckdb_engine.data_path(lake.store)
    connection.execute(lakesql.attach_lake(conninfo, schema=lake.name, data_path=path))
    return connection


@contextmanager
def attached_file(path: str, version: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB with a frozen catalog attached read-only as `lake`, at a snapshot or not."""
    connection = duckdb_engine.connect(extensions=("ducklake", "httpfs"))
    at = "" if version is None else f", SNAPSHOT_VERSION {version}"
    try:
        connection.execute(f"ATTACH 'ducklake:{path}' AS lake (READ_ONLY{at})")
        yield connection
    finally:
        connection.close()
