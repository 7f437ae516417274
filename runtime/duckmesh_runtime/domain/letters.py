"""Rows of a dead letter, checked against the table as it is now: the rules are those of an Arrow body. Pure.

Nothing but a dead letter is older than the table that it comes to (docs/adr/0012).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from duckmesh_runtime.domain.bus_rows import DELETED, key_of
from duckmesh_runtime.domain.casts import add_rows, check_columns
from duckmesh_runtime.domain.parquet_rows import read_parquet
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import Harvest, Op
from duckmesh_runtime.errors import Conflict, Invalid


def read_letter(payload: bytes) -> pa.Table:
    """The rows as they were accepted; the payload is the bus's own."""
    with pa.ipc.open_stream(payload) as stream:
        return stream.read_all()


def fit_rows(table: TableDef, payload: bytes, *, max_bytes: int) -> Sequence[pa.RecordBatch]:
    """The rows of a letter as rows of the table as it is now, in their order; all of them fit, or none is taken.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE naming the column or the row, and why it does not fit.
    """
    rows = read_letter(payload)
    key = key_of(rows.schema)
    _check_key(table, key)

    def add(harvest: Harvest) -> None:
        for op, batch in _runs(rows, key):
            check_columns(table, batch.schema, op)
            add_rows(table, batch, op, harvest)

    return _all(add, Harvest(max_bytes))


def fit_file(table: TableDef, content: bytes, *, max_bytes: int) -> Sequence[pa.RecordBatch]:
    """The same for a staged file, whose rows came to a table without a primary key.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE as `fit_rows`.
    """
    _check_key(table, ())
    return _all(
        lambda harvest: read_parquet(table, content, Op.INSERT, harvest), Harvest(max_bytes)
    )


def _check_key(table: TableDef, key: Sequence[str]) -> None:
    if tuple(table.primary_key) != tuple(key):
        now, then = _key(table.primary_key), _key(key)
        raise _unfit(f"primary_key: is {now} and was {then} when the rows were accepted")


def _all(add: Callable[[Harvest], None], harvest: Harvest) -> Sequence[pa.RecordBatch]:
    """What is added to the harvest, if none of it is rejected."""
    try:
        add(harvest)
    except Invalid as error:
        raise _unfit(error.message) from None
    decoded = harvest.decoded()
    for each in decoded.rejected:
        raise _unfit(f"row {each.index}: {each.message}")
    return decoded.batches


def _runs(rows: pa.Table, key: Sequence[str]) -> Iterator[tuple[Op, pa.RecordBatch]]:
    """The rows in order, as long as they do the same."""
    for batch in rows.to_batches():
        if not key:
            yield Op.INSERT, batch
            continue
        deleted = batch.column(DELETED).to_pylist()
        values = batch.drop_columns([DELETED]).replace_schema_metadata(None)
        start = 0
        for i in range(1, len(deleted) + 1):
            if i == len(deleted) or deleted[i] != deleted[start]:
                run = values.slice(start, i - start)
                # A delete is its key: what else the table had then does not matter.
                yield (Op.DELETE, run.select(key)) if deleted[start] else (Op.UPSERT, run)
                start = i


def _key(columns: Sequence[str]) -> str:
    return ", ".join(columns) or "none"


def _unfit(problem: str) -> Conflict:
    return Conflict("SCHEMA_INCOMPATIBLE", problem)
