"""What a restore does in the lake, statement by statement, and which tables it finds there. Called by `ducklake.py`.

The lake is attached a second time as of the snapshot, read only, under the name `lakesql.PAST`: inside one transaction
`AT (VERSION => ..)` finds a table that was dropped and made anew as the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters.lake_writes import Differs, changed_rows, check_columns
from duckmesh_runtime.adapters.postgres import catalog_errors, quoted
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.restore import LakeTable, RestorePlan
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.tally import Tally

_LIVE: Final = "{x}.begin_snapshot <= $1 AND ({x}.end_snapshot IS NULL OR {x}.end_snapshot > $1)"

# Whole rows but for what changes with no meaning: a shape that says too much only means that more rows are copied.
_TABLES: Final = """
SELECT t.table_name, t.table_id, c.names,
       jsonb_build_array(c.columns,
         (SELECT jsonb_agg(to_jsonb(p) - 'partition_id' ORDER BY p.partition_key_index)
            FROM {lake}.ducklake_partition_info AS i JOIN {lake}.ducklake_partition_column AS p USING (partition_id)
           WHERE i.table_id = t.table_id AND {live_i}),
         (SELECT jsonb_agg(to_jsonb(e) - 'sort_id' ORDER BY e.sort_key_index)
            FROM {lake}.ducklake_sort_info AS i JOIN {lake}.ducklake_sort_expression AS e USING (sort_id)
           WHERE i.table_id = t.table_id AND {live_i}))::text AS shape
  FROM {lake}.ducklake_table AS t JOIN {lake}.ducklake_schema AS s USING (schema_id)
 CROSS JOIN LATERAL (
   SELECT array_agg(c.column_name ORDER BY c.column_order) FILTER (WHERE c.parent_column IS NULL) AS names,
          jsonb_agg(to_jsonb(c) - '{{begin_snapshot,end_snapshot}}'::text[] ORDER BY c.column_id) AS columns
     FROM {lake}.ducklake_column AS c WHERE c.table_id = t.table_id AND {live_c}) AS c
 WHERE s.schema_name = 'main' AND {live_t} AND {live_s} ORDER BY t.table_name COLLATE "C"
"""
_KEPT: Final = "SELECT EXISTS (SELECT 1 FROM {lake}.ducklake_snapshot WHERE snapshot_id = $1)"
_NOW: Final = 2**62
"""A snapshot that no lake comes to: what lives there has no end."""


class TooMuch(Differs):
    """It takes more memory than there is."""

    def __str__(self) -> str:
        return (
            "the rows to bring back are more than the committer has memory for; nothing was changed"
        )


class Expired(Differs):
    """The snapshot is not there any more."""

    def __str__(self) -> str:
        return "SNAPSHOT_EXPIRED: the snapshot was removed before its turn came"


async def read_tables(
    pool: asyncpg.Pool, lake: str, snapshot_id: int
) -> tuple[Sequence[LakeTable], Sequence[LakeTable]]:
    """The tables of the snapshot and those of today, by name.

    Raises:
        Expired: The snapshot is not there any more.
        Unavailable: CATALOG_UNAVAILABLE.
    """
    live = {f"live_{x}": _LIVE.format(x=x) for x in "tsci"}
    query = _TABLES.format(lake=quoted(lake), **live)
    with catalog_errors():
        if not await pool.fetchval(_KEPT.format(lake=quoted(lake)), snapshot_id):
            raise Expired
        then, now = [await pool.fetch(query, at) for at in (snapshot_id, _NOW)]
    return [_table(row) for row in then], [_table(row) for row in now]


def restore_tables(
    connection: duckdb.DuckDBPyConnection, plan: RestorePlan, tables: Sequence[TableDef]
) -> Tally:
    """Do what is planned; returns the rows that came and went.

    Args:
        connection: In a transaction, the lake attached, and as `PAST` as of the snapshot.
        plan: What to do.
        tables: The tables as they were accepted; they must be those of the snapshot.

    Raises:
        Differs: They are not.
        TooMuch: There is not enough memory.
    """
    definitions = {table.name: table for table in tables}
    if definitions.keys() != {*plan.create, *plan.reconcile}:
        raise Differs
    tally = Tally()
    try:
        for name in plan.drop:
            connection.execute(lakesql.drop_table(name))
            tally.end(name)
        for name in plan.create:
            check_columns(connection, definitions[name], lakesql.PAST)
            for statement in lakesql.create_table(definitions[name]):
                connection.execute(statement)
            copied = changed_rows(connection, lakesql.copy_past(name, _names(definitions[name])))
            tally.add(name, inserted=copied)
        for name in plan.reconcile:
            deleted = changed_rows(connection, lakesql.delete_newer(name))
            columns = _names(definitions[name])
            inserted = changed_rows(connection, lakesql.insert_older(name, columns))
            tally.add(name, inserted=inserted, deleted=deleted)
    except duckdb.OutOfMemoryException as error:
        raise TooMuch from error
    return tally


def _table(row: asyncpg.Record) -> LakeTable:
    return LakeTable(
        name=row["table_name"], table_id=row["table_id"], shape=row["shape"], columns=row["names"]
    )


def _names(table: TableDef) -> Sequence[str]:
    return [column.name for column in table.columns]
