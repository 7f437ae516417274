"""The one door of decoding: JSON records and bulk bodies to Arrow batches for the bus, bad rows refused on their own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.arrow_rows import read_arrow
from duckmesh_runtime.domain.csv_rows import read_csv
from duckmesh_runtime.domain.json_rows import NO_ROW, Row, decode_rows
from duckmesh_runtime.domain.ndjson import read_ndjson
from duckmesh_runtime.domain.parquet_rows import read_parquet
from duckmesh_runtime.domain.records import LONGEST_KEY, RawRecord
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import (
    Decoded,
    Harvest,
    Op,
    Problems,
    Rejected,
    op_for,
    rows_at_once,
)
from duckmesh_runtime.errors import Invalid

__all__ = ["BulkFormat", "Decoded", "Op", "Rejected", "decode_bulk", "decode_records", "op_for"]


class BulkFormat(StrEnum):
    """How the rows of a bulk body are written."""

    NDJSON = "ndjson"
    CSV = "csv"
    ARROW = "arrow"
    PARQUET = "parquet"


_READERS: Final[Mapping[BulkFormat, Callable[[TableDef, bytes, Op, Harvest], None]]] = {
    BulkFormat.NDJSON: read_ndjson,
    BulkFormat.CSV: read_csv,
    BulkFormat.ARROW: read_arrow,
    BulkFormat.PARQUET: read_parquet,
}

_EVENT_TIME: Final = "event_time"
_NONE: Final[Mapping[int, str]] = {}


def decode_bulk(
    table: TableDef, body_format: BulkFormat, body: bytes, op: Op, *, max_bytes: int
) -> Decoded:
    """Decode a whole body; a row that does not fit is rejected on its own, by its place among the body's rows.

    Args:
        table: Where the rows go.
        body_format: What the body is.
        body: Decompressed.
        op: Of every row; what `op_for` gives for this table.
        max_bytes: What the decoded rows may take.

    Raises:
        Invalid: VALIDATION_FAILED for a body that cannot be read or has too many wrong rows, PAYLOAD_TOO_LARGE.
        Conflict: SCHEMA_INCOMPATIBLE naming a column that is unknown, missing, or of another type.
    """
    harvest = Harvest(max_bytes)
    _READERS[body_format](table, body, op, harvest)
    return harvest.decoded()


def decode_records(
    table: TableDef, records: Sequence[RawRecord], refused: Mapping[int, str] = _NONE
) -> Decoded:
    """Decode JSON records, each with its own operation.

    Args:
        table: Where they go.
        records: As sent.
        refused: Records that are rejected whatever they hold: what is wrong, by index.

    Raises:
        Invalid: VALIDATION_FAILED when more than `sift.MOST_REJECTED` are wrong, PAYLOAD_TOO_LARGE.
    """
    harvest = Harvest(_RECORDS_BYTES)
    size = rows_at_once(table)
    for start in range(0, len(records), size):
        problems: Problems = {
            i - start: problem for i, problem in refused.items() if start <= i < start + size
        }
        harvest.add(_records(table, records[start : start + size], problems), problems)
    return harvest.decoded()


_RECORDS_BYTES: Final = 256 * 2**20


def _records(table: TableDef, records: Sequence[RawRecord], problems: Problems) -> pa.RecordBatch:
    names = {column.name for column in table.columns}
    rows = [_row(record, names, problems, i) for i, record in enumerate(records)]
    return decode_rows(table, rows, _deletes(table, records, problems), problems)


def _row(record: RawRecord, names: set[str], problems: Problems, i: int) -> Row:
    key, row = record.idempotency_key, record.payload
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        problems[i] = f"idempotency_key: want 1 to {LONGEST_KEY} characters"
    if not isinstance(row, dict):
        problems.setdefault(i, "payload: want an object with one field per column")
        return NO_ROW
    if record.event_time is not None and _EVENT_TIME in names and _EVENT_TIME not in row:
        return {**row, _EVENT_TIME: record.event_time}
    return row


def _deletes(
    table: TableDef, records: Sequence[RawRecord], problems: Problems
) -> Sequence[bool] | None:
    """Which records are deletes, for a keyed table; an operation that the table does not take is a problem."""
    ops: dict[str | None, Op | None] = {}
    refusals: dict[str | None, str] = {}
    for text in {record.op for record in records}:
        try:
            ops[text] = op_for(table, text)
        except Invalid as error:
            refusals[text] = error.message
    if refusals:
        for i, record in enumerate(records):
            if record.op in refusals:
                problems.setdefault(i, refusals[record.op])
    if not table.primary_key:
        return None
    return [ops.get(record.op) is Op.DELETE for record in records]
