"""JSON records: many payloads to one Arrow batch of the table, each bad record refused on its own. Pure.

Columns are converted whole; only a column that fails is searched, by halves, for its bad values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.columns import BAD_VALUE, ColumnType, Values, json_text
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, arrow_schema

LONGEST_KEY: Final = 255
_EVENT_TIME: Final = "event_time"
_NO_ROW: Final[Mapping[str, object]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecord:
    """One record as sent.

    Attributes:
        idempotency_key: 1 to 255 characters; None when the writer does not repeat itself.
        op: `insert` or None, which means the same.
        payload: A JSON object of column values.
        event_time: Value of the column `event_time` if the table has one and the payload does not set it.
    """

    payload: object
    idempotency_key: str | None = None
    op: str | None = None
    event_time: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that was not accepted: its index in the request, an error code, and what is wrong with which field."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The good records of a request.

    Attributes:
        batch: Their rows, complete (defaults filled in), in the table's column order.
        kept: For each row, the index of its record.
        rejected: The others.
    """

    batch: pa.RecordBatch
    kept: Sequence[int]
    rejected: Sequence[Rejected]


def decode_records(table: TableDef, records: Sequence[RawRecord]) -> Decoded:
    """Check records and make one batch of the good ones."""
    names = frozenset(column.name for column in table.columns)
    problems = dict(_envelope_problems(records))
    rows = [_row(record, names) for record in records]
    _check_rows(records, rows, names, problems)
    rows = [_NO_ROW if i in problems else row for i, row in enumerate(rows)]
    arrays = [_column(column, rows, problems) for column in table.columns]
    batch = pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(table))
    kept = [i for i in range(len(records)) if i not in problems]
    return Decoded(
        batch=batch.take(pa.array(kept, pa.int64())) if problems else batch,
        kept=kept,
        rejected=[
            Rejected(index=i, code="VALIDATION_FAILED", message=problems[i])
            for i in sorted(problems)
        ],
    )


def key_digest(table: TableDef, scope: str, key: str) -> bytes:
    """16 bytes that stand for an idempotency key of this very table; `scope` keeps record and request keys apart."""
    text = "\0".join((table.name, str(table.version), scope, key))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def content_digest(record: RawRecord) -> bytes:
    """16 bytes that stand for what a record says, whatever the order of its fields."""
    text = json_text([record.payload, record.event_time])
    return blake2b(text.encode(), digest_size=16).digest()


def body_digest(body: bytes) -> bytes:
    """16 bytes that stand for a whole request body."""
    return blake2b(body, digest_size=16).digest()


def _envelope_problems(records: Sequence[RawRecord]) -> Sequence[tuple[int, str]]:
    return [
        (i, problem)
        for i, record in enumerate(records)
        if (problem := _envelope_problem(record)) is not None
    ]


def _envelope_problem(record: RawRecord) -> str | None:
    key = record.idempotency_key
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        return f"idempotency_key: want 1 to {LONGEST_KEY} characters"
    if record.op in ("upsert", "delete"):
        return f"op: {record.op} needs a table with a primary key: send insert"
    if record.op not in (None, "insert"):
        return f"op: {_show(record.op)} is not known: send insert"
    if not isinstance(record.payload, dict):
        return "payload: want an object with one field per column"
    return None


def _row(record: RawRecord, names: frozenset[str]) -> Mapping[str, object]:
    row = record.payload
    if not isinstance(row, dict):
        return _NO_ROW
    if record.event_time is not None and _EVENT_TIME in names and _EVENT_TIME not in row:
        return {**row, _EVENT_TIME: record.event_time}
    return row


def _check_rows(
    records: Sequence[RawRecord],
    rows: Sequence[Mapping[str, object]],
    names: frozenset[str],
    problems: dict[int, str],
) -> None:
    if names.issuperset(chain.from_iterable(rows)):
        return
    for i, row in enumerate(rows):
        if (unknown := row.keys() - names) and i not in problems:
            known = ", ".join(sorted(names)[:20]) + (", ..." if len(names) > 20 else "")
            problems[i] = f"{_show(min(unknown))}: no such column; the table has {known}"


def _column(
    column: ColumnDef, rows: Sequence[Mapping[str, object]], problems: dict[int, str]
) -> pa.Array:
    name, kind = column.name, column.kind
    values = [row.get(name, column.default) for row in rows]
    array, bad = _build(kind, values)
    for i in bad:
        problems.setdefault(i, f"{name}: want {kind.expects}, got {_show(values[i])}")
    if not column.nullable and array.null_count:
        for i, value in enumerate(values):
            if value is None:
                problems.setdefault(i, f"{name}: is missing or null, want {kind.expects}")
    return array


def _build(kind: ColumnType, values: Values) -> tuple[pa.Array, list[int]]:
    """The array with NULL for bad values, and the indexes of those."""
    try:
        return kind.build(values), []
    except BAD_VALUE:
        if len(values) == 1:
            return pa.nulls(1, kind.arrow), [0]
    middle = len(values) // 2
    left, bad = _build(kind, values[:middle])
    right, more = _build(kind, values[middle:])
    return pa.concat_arrays([left, right]), bad + [middle + i for i in more]


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of very many digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
