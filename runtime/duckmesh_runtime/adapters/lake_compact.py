"""Compaction of a lake by DuckLake: what there is to do, read from its catalog, and one slice of it at a time.

DuckLake merges what it finds itself; `ducklake_target_file_size`, set for the engine and never stored, bounds the bytes of
one merge, so that thousands of small files are not one statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import asyncpg
import duckdb

from duckmesh_runtime.adapters.lake_commit import CommitGuard
from duckmesh_runtime.adapters.postgres import quoted
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.compaction import (
    Bounds,
    Group,
    Holed,
    LakeFiles,
    Merge,
    Slice,
    TableTotals,
)

Step = Literal["begin", "work", "commit"]

#: Shares of deleted rows of a table's files that are looked at in one go.
MOST_HOLED: Final = 1_000

SETTINGS: Final = (
    "SET ducklake_max_retry_count = 5",
    "SET ducklake_retry_wait_ms = 10",
    # As the committer's: an upload's buffer is a ten-thousandth of it.
    "SET s3_uploader_max_filesize = '50GB'",
)

# The engine's own groups and order: only files of one schema and partition become one, the oldest first.
_GROUPS: Final = """
WITH schemas AS (
  SELECT table_id, schema_version, begin_snapshot,
         lead(begin_snapshot) OVER (PARTITION BY table_id ORDER BY begin_snapshot) AS end_snapshot
    FROM {lake}.ducklake_schema_versions),
mergeable AS (
  SELECT f.*, s.schema_version, width_bucket(f.file_size_bytes, $1::bigint[]) AS tier,
         (SELECT string_agg(p.partition_key_index || '=' || coalesce(p.partition_value, ''), '/' ORDER BY p.partition_key_index)
            FROM {lake}.ducklake_file_partition_value AS p WHERE p.data_file_id = f.data_file_id) AS keys
    FROM {lake}.ducklake_data_file AS f
    LEFT JOIN schemas AS s ON s.table_id = f.table_id AND f.begin_snapshot >= s.begin_snapshot
                          AND (s.end_snapshot IS NULL OR f.begin_snapshot < s.end_snapshot)
   WHERE f.end_snapshot IS NULL AND f.file_size_bytes < $2
     AND NOT EXISTS (SELECT 1 FROM {lake}.ducklake_delete_file AS d WHERE d.data_file_id = f.data_file_id)),
placed AS (
  SELECT table_id, tier, schema_version, partition_id, keys, file_size_bytes AS size,
         row_number() OVER oldest AS place, sum(file_size_bytes) OVER oldest AS up_to
    FROM mergeable
  WINDOW oldest AS (PARTITION BY table_id, tier, schema_version, partition_id, keys
                        ORDER BY begin_snapshot, row_id_start, data_file_id))
SELECT t.table_name, p.tier, count(*), sum(p.size)::bigint,
       count(*) FILTER (WHERE p.place <= 2 OR p.place <= $3 AND p.up_to <= $4),
       sum(p.size) FILTER (WHERE p.place <= 2 OR p.place <= $3 AND p.up_to <= $4)::bigint
  FROM placed AS p JOIN {lake}.ducklake_table AS t ON t.table_id = p.table_id AND t.end_snapshot IS NULL
 GROUP BY t.table_id, t.table_name, p.tier, p.schema_version, p.partition_id, p.keys HAVING count(*) > 1
"""
_TABLES: Final = """
SELECT t.table_name, count(*), coalesce(sum(f.record_count), 0)::bigint, coalesce(sum(d.delete_count), 0)::bigint
  FROM {lake}.ducklake_data_file AS f
  JOIN {lake}.ducklake_table AS t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
  LEFT JOIN {lake}.ducklake_delete_file AS d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
 WHERE f.end_snapshot IS NULL GROUP BY t.table_id, t.table_name
"""
# Equal ratios make equal numbers: DuckLake's threshold divides the same two.
_HOLED: Final = """
WITH holed AS (
  SELECT t.table_id, t.table_name, f.file_size_bytes AS size, f.record_count AS rows, d.delete_count AS deleted,
         d.delete_count::float8 / greatest(f.record_count, 1) AS ratio
    FROM {lake}.ducklake_data_file AS f
    JOIN {lake}.ducklake_table AS t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
    JOIN {lake}.ducklake_delete_file AS d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL
   WHERE f.end_snapshot IS NULL),
classes AS (
  SELECT table_name, ratio, count(*) AS files, sum(size)::bigint AS size, sum(rows)::bigint AS rows,
         sum(deleted)::bigint AS deleted,
         rank() OVER (PARTITION BY table_id ORDER BY ratio DESC) AS place
    FROM holed GROUP BY table_id, table_name, ratio, size < $1)
SELECT table_name, files, size, rows, deleted FROM classes WHERE place <= $2 ORDER BY ratio DESC, table_name
"""
_HELD: Final = "SELECT EXISTS (SELECT 1 FROM {bus}.pin WHERE starts_with(name, 'restore:'))"


async def read_files(connection: asyncpg.Connection, lake: str, bounds: Bounds) -> LakeFiles:
    """The live files of a lake at one moment; see `LakeFiles`."""

    def sql(text: str) -> str:
        return text.format(lake=quoted(lake), bus=quoted(f"{lake}_bus"))

    limits = list(bounds.limits)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        tables = await connection.fetch(sql(_TABLES))
        groups = await connection.fetch(sql(_GROUPS), limits, limits[-1], bounds.files, bounds.size)
        holed = await connection.fetch(sql(_HOLED), limits[0], MOST_HOLED)
        held = await connection.fetchval(sql(_HELD))
    return LakeFiles(
        tables=[
            TableTotals(table=name, files=files, rows=rows, deleted=deleted)
            for name, files, rows, deleted in tables
        ],
        groups=[
            Group(table=name, tier=tier, files=files, size=size, head=head, head_size=head_size)
            for name, tier, files, size, head, head_size in groups
        ],
        holed=[
            Holed(table=name, files=files, size=size, rows=rows, deleted=deleted)
            for name, files, size, rows, deleted in holed
        ],
        held=held,
    )


class SliceWork:
    """One slice as blocking work for an engine.

    Attributes:
        step: How far it came.
        files_in: Input files.
        files_out: Files made.

    Args:
        piece: What to do.
        guard: Ends the transaction.
    """

    def __init__(self, piece: Slice, guard: CommitGuard) -> None:
        self._guard = guard
        self._before: Sequence[str] = ()
        if isinstance(piece, Merge):
            self._before = [lakesql.bound_merges(piece.up_to)]
            self._statement = lakesql.merge_files(
                piece.table, at_least=piece.at_least, below=piece.below, outputs=piece.outputs
            )
            self._what = "merge"
        else:
            self._statement = lakesql.rewrite_files(piece.table, piece.ratio)
            self._what = "rewrite"
        self.step: Step = "begin"
        self.files_in = 0
        self.files_out = 0

    def __call__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Do it in one transaction of the fence's role `m`."""
        for statement in self._before:
            connection.execute(statement)
        connection.execute("BEGIN")
        try:
            connection.execute(lakesql.mark_maintenance(self._what))
            self.step = "work"
            for _, _, files_in, files_out in connection.execute(self._statement).fetchall():
                self.files_in += files_in
                self.files_out += files_out
            self.step = "commit"
            self._guard.commit(connection)
        except BaseException:
            if self.step != "commit":
                self._guard.rollback(connection)
            raise


def is_conflict(error: BaseException, step: Step) -> bool:
    """Whether rows of these files were deleted meanwhile, or the table is another: a later slice may go through."""
    text = str(error)
    if step == "commit":
        return "Transaction conflict" in text
    return isinstance(error, duckdb.CatalogException) and "does not exist" in text


def is_fenced(error: BaseException) -> bool:
    """Whether the lease is another's by now."""
    return "DUCKMESH_FENCED" in str(error)
