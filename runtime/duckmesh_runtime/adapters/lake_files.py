"""Where a table's files lie: what staging a file and making it part of the table must agree on."""

from __future__ import annotations

from typing import Final

import asyncpg

from duckmesh_runtime.adapters.postgres import catalog_errors, quoted

# A table that was partitioned and is no more keeps an info row without columns.
_FOLDER: Final = """
SELECT s.path || t.path
  FROM {lake}.ducklake_table AS t JOIN {lake}.ducklake_schema AS s USING (schema_id)
 WHERE s.schema_name = 'main' AND t.table_name = $1 AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL
   AND s.path_is_relative AND t.path_is_relative
   AND NOT EXISTS (SELECT 1 FROM {lake}.ducklake_partition_info AS i
                     JOIN {lake}.ducklake_partition_column AS c USING (partition_id)
                    WHERE i.table_id = t.table_id AND i.end_snapshot IS NULL)
"""
_REGISTERED: Final = """
SELECT EXISTS (
  SELECT 1 FROM {lake}.ducklake_data_file AS f JOIN {lake}.ducklake_table AS t USING (table_id)
   WHERE t.table_name = $1 AND t.end_snapshot IS NULL AND f.path_is_relative AND f.path = $2)
"""


async def table_folder(pool: asyncpg.Pool, lake: str, table: str) -> str | None:
    """The table's own folder, relative to the lake's data path, `/` at its end.

    None when files cannot be put there: the table is not in the lake (yet), or its files are laid out by partitions.

    Raises:
        Unavailable: CATALOG_UNAVAILABLE.
    """
    with catalog_errors():
        folder: str | None = await pool.fetchval(_FOLDER.format(lake=quoted(lake)), table)
    return folder


async def is_registered(pool: asyncpg.Pool, lake: str, table: str, name: str) -> bool:
    """Whether the file of this name in the table's folder is, or was, part of the table.

    DuckLake itself would take it twice, and delete it when one of the two goes.

    Raises:
        Unavailable: CATALOG_UNAVAILABLE.
    """
    with catalog_errors():
        return bool(await pool.fetchval(_REGISTERED.format(lake=quoted(lake)), table, name))
