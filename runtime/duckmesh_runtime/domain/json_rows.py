"""Rows of JSON objects, one for each record, to a batch. Used for JSON records and for lines of NDJSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.sift import (
    Problems,
    check_defaults,
    good_rows,
    known_columns,
    shown,
    sift,
)

Row = Mapping[str, object]

NO_ROW: Final[Row] = {}
"""Stands where a record has a problem that leaves nothing to convert."""


def decode_rows(
    table: TableDef, rows: Sequence[Row], deleted: Sequence[bool] | None, problems: Problems
) -> pa.RecordBatch:
    """Make a batch of the good rows.

    Args:
        table: Whose rows they are.
        rows: Column values by name; what is missing takes the default.
        deleted: For a keyed table, which rows are deletes: only their key is looked at.
        problems: By row; what is in it already is left out, what is found is added.
    """
    _check_names(table, rows, problems)
    if problems:
        rows = [NO_ROW if i in problems else row for i, row in enumerate(rows)]
    deletes = deleted if deleted and any(deleted) else None
    arrays = [_column(table, column, rows, deletes, problems) for column in table.columns]
    mask = None if deleted is None else pa.array(deleted, pa.bool_())
    return good_rows(table, arrays, mask, problems)


def _check_names(table: TableDef, rows: Sequence[Row], problems: Problems) -> None:
    names = {column.name for column in table.columns}
    if names.issuperset(chain.from_iterable(rows)):
        return
    for i, row in enumerate(rows):
        if unknown := row.keys() - names:
            problems.setdefault(
                i, f"{shown(min(unknown))}: no such column; the table has {known_columns(table)}"
            )


def _column(
    table: TableDef,
    column: ColumnDef,
    rows: Sequence[Row],
    deletes: Sequence[bool] | None,
    problems: Problems,
) -> pa.Array:
    name = column.name
    values = [row.get(name, column.default) for row in rows]
    check_defaults(column, sum(name not in row for row in rows) if column.default else 0)
    if deletes is not None:
        key = name in table.primary_key  # never a default: what is deleted must be said
        values = [
            (row.get(name) if key else None) if gone else value
            for value, row, gone in zip(values, rows, deletes, strict=True)
        ]
    return sift(column, column.kind.build, values, lambda i: shown(values[i]), problems)
