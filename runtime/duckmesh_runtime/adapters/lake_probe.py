"""Whether a lake takes anything at all right now, found out without changing it. Called by `ducklake.py`.

The committer asks when a piece of input fails again and again: only what alone fails is set aside.
"""

from __future__ import annotations

import logging
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters.lake_engine import LakeEngine
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import is_unavailable
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.errors import Unavailable

logger = logging.getLogger(__name__)

_TIMEOUT_S: Final = 10.0
"""A store that takes longer for a few bytes is not well."""

_EPOCH: Final = "SELECT epoch FROM duckmesh.lease WHERE lake = $1 AND role = 'w'"

# Someone who holds the lake's tables (a backup, a person) fails every commit, and setting aside needs none of them.
_LOCK: Final = """
SELECT 'LOCK TABLE ' || string_agg(c.oid::regclass::text, ', ') || ' IN ROW EXCLUSIVE MODE NOWAIT'
  FROM pg_class AS c
 WHERE c.relnamespace = to_regnamespace($1)::oid AND c.relkind = 'r' AND has_table_privilege(c.oid, 'INSERT')
"""

# So does a transaction that hangs with changes of its own: one of maintenance, or a person's.
_OTHERS: Final = """
SELECT EXISTS (
  SELECT 1 FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
   WHERE l.granted AND l.pid <> pg_backend_pid() AND c.relnamespace = to_regnamespace($1)::oid
     AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
     AND l.mode IN ('RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
"""


async def takes_writes(
    engine: LakeEngine,
    pool: asyncpg.Pool,
    objects: StoreObjects,
    *,
    lake: str,
    epoch: int,
    root: str,
) -> bool:
    """Whether the catalog answers and lets us write, the lease is ours, and the store keeps a small object and removes it.

    Args:
        engine: The one that commits: what it cannot do, another may.
        pool: Connections of the writer login.
        objects: The store, at `root`.
        lake: Catalog schema.
        epoch: The lease epoch that is ours.
        root: The lake's data path.
    """
    # One name for each lease: what a crash leaves is no more than one object, and orphaned files are cleaned up.
    name = f"probe-{epoch}.parquet"
    statement = f"COPY (SELECT 1 AS one) TO {lakesql.quote_text(root + name)} (FORMAT parquet)"

    def write(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(statement)

    try:
        if not await _is_ours(pool, lake, epoch):
            return False
        await engine.run(write, timeout_s=_TIMEOUT_S)
        await objects.remove(name)
    except (duckdb.Error, TimeoutError, Unavailable) as error:
        logger.warning("probe failed", extra={"error_type": type(error).__name__})
        return False
    return True


async def _is_ours(pool: asyncpg.Pool, lake: str, epoch: int) -> bool:
    try:
        async with pool.acquire() as connection, connection.transaction():
            lock = await connection.fetchval(_LOCK, lakesql.quote_name(lake))
            if lock is None:
                return False
            await connection.execute(lock)
            if await connection.fetchval(_OTHERS, lakesql.quote_name(lake)):
                return False
            return bool(await connection.fetchval(_EPOCH, lake) == epoch)
    except Exception as error:
        if isinstance(error, asyncpg.PostgresError) or is_unavailable(error):
            logger.warning("probe failed", extra={"error_type": type(error).__name__})
            return False
        raise
