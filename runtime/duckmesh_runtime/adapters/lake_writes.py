"""What one lake transaction does, statement by statement: rows, upserts, files, tables. Called by `ducklake.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import duckdb
import pyarrow as pa

from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.bus_rows import DELETED, key_of
from duckmesh_runtime.domain.changes import (
    AddColumn,
    Change,
    DropColumn,
    RenameColumn,
    SetDefault,
    WidenType,
)
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.tally import Tally
from duckmesh_runtime.domain.typenames import parse_type
from duckmesh_runtime.ports import TableFile, TableRows

_ROWS: Final = "duckmesh_rows"
_BATCH: Final = "duckmesh_batch"

_COLUMNS: Final = """
SELECT column_name, data_type, is_nullable FROM duckdb_columns()
 WHERE database_name = $1 AND schema_name = 'main' AND table_name = $2 ORDER BY column_index
"""


class Differs(Exception):
    """The table in the lake is not the one that was expected."""

    def __str__(self) -> str:
        return "the table in the lake is another one"


def write_parts(
    connection: duckdb.DuckDBPyConnection,
    parts: Sequence[TableRows | TableFile],
    *,
    root: str,
    register: Collection[str] = (),
) -> Tally:
    """Write parts in order; returns the rows that came and went.

    Args:
        connection: In a transaction, the lake attached.
        parts: What to write.
        root: The lake's data path.
        register: Paths of those files that become part of their table as they lie; the rows of others are inserted.
    """
    tally = Tally()
    for part in parts:
        if isinstance(part, TableFile):
            write = lakesql.register_file if part.file.path in register else lakesql.insert_file
            connection.execute(write(part.table, root + part.file.path))
            tally.add(part.table, inserted=part.file.rows)
        elif key := key_of(part.rows.schema):
            _upsert(connection, part, key, tally)
        else:
            _insert(connection, part)
            tally.add(part.table, inserted=part.rows.num_rows)
    return tally


def foretold(parts: Sequence[TableRows | TableFile]) -> Tally | None:
    """What `write_parts` will return, if that can be said before: not of keyed tables."""
    tally = Tally()
    for part in parts:
        if isinstance(part, TableFile):
            tally.add(part.table, inserted=part.file.rows)
        elif key_of(part.rows.schema):
            return None
        else:
            tally.add(part.table, inserted=part.rows.num_rows)
    return tally


def make_table(connection: duckdb.DuckDBPyConnection, table: TableDef) -> Tally:
    """Create a table; one with the same columns may be there.

    Raises:
        Differs: Another one is there.
    """
    there = _columns(connection, table.name)
    tally = Tally()
    if not there:
        for statement in lakesql.create_table(table):
            connection.execute(statement)
        tally.add(table.name)
    elif there != _wanted(table):
        raise Differs
    return tally


def change_table(
    connection: duckdb.DuckDBPyConnection, table: TableDef, changes: Sequence[Change]
) -> Tally:
    """Apply changes in order; no row comes or goes.

    Args:
        connection: In a transaction, the lake attached.
        table: What must come out.
        changes: The way there.

    Raises:
        Differs: Something else came out.
    """
    types = {name: type_ for name, type_, _ in _columns(connection, table.name)}
    for change in changes:
        type_ = types.get(change.name) if isinstance(change, SetDefault) else None
        kind = None if type_ is None else parse_type(type_)
        connection.execute(lakesql.alter_table(table.name, change, kind))
        _follow(types, change)
    if _columns(connection, table.name) != _wanted(table):
        raise Differs
    return Tally()


def drop_table(connection: duckdb.DuckDBPyConnection, name: str) -> Tally:
    """Drop a table; one that is not there is fine."""
    connection.execute(lakesql.drop_table(name))
    tally = Tally()
    tally.end(name)
    return tally


def changed_rows(connection: duckdb.DuckDBPyConnection, statement: str) -> int:
    """Run an INSERT or DELETE; returns how many rows it says it has changed."""
    ((count,),) = connection.execute(statement).fetchall()
    return int(count)


def check_columns(connection: duckdb.DuckDBPyConnection, table: TableDef, database: str) -> None:
    """Check that a table of an attached lake has just these columns.

    Raises:
        Differs: It has not.
    """
    if _columns(connection, table.name, database) != _wanted(table):
        raise Differs


def _follow(types: dict[str, str], change: Change) -> None:
    """Keep what the lake has just taken: to ask it each time takes milliseconds for each column."""
    match change:
        case AddColumn():
            types[change.column.name] = change.column.type
        case DropColumn():
            types.pop(change.name, None)
        case RenameColumn() if change.name in types:
            types[change.to] = types.pop(change.name)
        case WidenType():
            types[change.name] = change.type
        case _:
            pass


def _insert(connection: duckdb.DuckDBPyConnection, part: TableRows) -> None:
    connection.register(_ROWS, part.rows)
    try:
        connection.execute(lakesql.insert_rows(part.table, part.rows.column_names, _ROWS))
    finally:
        connection.unregister(_ROWS)


def _upsert(
    connection: duckdb.DuckDBPyConnection, part: TableRows, key: Sequence[str], tally: Tally
) -> None:
    columns = [name for name in part.rows.column_names if name != DELETED]
    connection.execute(lakesql.make_batch(part.table, columns, _BATCH))
    positions = pa.arange(0, part.rows.num_rows)
    connection.register(_ROWS, part.rows.append_column(lakesql.POSITION, positions))
    try:
        connection.execute(lakesql.fill_batch(columns, _BATCH, _ROWS))
    finally:
        connection.unregister(_ROWS)
    deleted = changed_rows(connection, lakesql.delete_batch(part.table, key, _BATCH))
    inserted = changed_rows(connection, lakesql.upsert_batch(part.table, columns, key, _BATCH))
    tally.add(part.table, inserted=inserted, deleted=deleted)
    connection.execute(lakesql.drop_batch(_BATCH))


def _columns(
    connection: duckdb.DuckDBPyConnection, table: str, database: str = lakesql.LAKE
) -> Sequence[tuple[str, str, bool]]:
    rows = connection.execute(_COLUMNS, [database, table]).fetchall()
    # DuckDB quotes the names of fields only where it must: our own form quotes them all.
    return [(name, parse_type(type_).name, nullable) for name, type_, nullable in rows]


def _wanted(table: TableDef) -> Sequence[tuple[str, str, bool]]:
    return [(column.name, column.type, column.nullable) for column in table.columns]
