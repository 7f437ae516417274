"""NDJSON bodies: one JSON object a line, decoded a block of lines at a time. Pure.

A block goes through pyarrow's reader, which keeps columns columns (1.2 million rows a second of one core where the way by
records makes 0.2 million, measured 2026-11-26). What that reader takes otherwise than JSON records are taken, or what it
does not take at all, goes by records instead, so what comes out never depends on the way.
"""

from __future__ import annotations

from math import inf
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.types as pt

from duckmesh_runtime.domain.blocks import LONGEST_LINE, blocks, start_of
from duckmesh_runtime.domain.columns import BAD_VALUE, FLOATS, ColumnType, parse_json
from duckmesh_runtime.domain.json_rows import NO_ROW, Row, decode_rows
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.sift import (
    Harvest,
    Op,
    Problems,
    default_column,
    deleted_column,
    good_rows,
    is_read,
)
from duckmesh_runtime.domain.texts import check_finite


def read_ndjson(table: TableDef, body: bytes, op: Op, harvest: Harvest) -> None:
    """Decode a body into `harvest`; empty lines do not count.

    Raises:
        Invalid: PAYLOAD_TOO_LARGE, VALIDATION_FAILED when too many rows are wrong.
    """
    wire = _wire_schema(table)
    for block in blocks(body, start_of(body), table):
        batch, problems = _by_columns(table, wire, block, op) if wire else (None, {})
        if batch is None:
            batch, problems = _by_records(table, block, op)
        harvest.add(batch, problems)


# ------------------------------------------------------------------------------------------------------- by records


def _by_records(table: TableDef, block: bytes, op: Op) -> tuple[pa.RecordBatch, Problems]:
    problems: Problems = {}
    lines = [line for line in block.split(b"\n") if line and not line.isspace()]
    rows = [_row(line, i, problems) for i, line in enumerate(lines)]
    deleted = [op is Op.DELETE] * len(rows) if table.primary_key else None
    return decode_rows(table, rows, deleted, problems), problems


def _row(line: bytes, i: int, problems: Problems) -> Row:
    if len(line) > LONGEST_LINE:
        problems[i] = f"line: is longer than {LONGEST_LINE} bytes"
        return NO_ROW
    try:
        row = parse_json(line)
    except BAD_VALUE as error:
        deep = isinstance(error, RecursionError)
        problems[i] = "line: " + (
            "is nested too deeply" if deep else "want one JSON object in UTF-8"
        )
        return NO_ROW
    if not isinstance(row, dict):
        problems[i] = "line: want an object with one field per column"
        return NO_ROW
    return row


# ------------------------------------------------------------------------------------------------------- by columns


def _wire_schema(table: TableDef) -> pa.Schema | None:
    """How pyarrow is to read the table's columns; None when some are not for it."""
    fields = [(column.name, _wire_type(column.kind)) for column in table.columns]
    return pa.schema(fields) if all(found is not None for _, found in fields) else None


def _wire_type(kind: ColumnType) -> pa.DataType | None:
    if pt.is_boolean(kind.arrow) or pt.is_integer(kind.arrow):
        return kind.arrow
    if kind.name in FLOATS:
        return pa.float64()
    if pt.is_decimal(kind.arrow):
        return pa.decimal256(38, kind.arrow.scale)  # 38 digits times 10**38 are within its bits
    return pa.string() if kind.scalar else None


def _by_columns(
    table: TableDef, wire: pa.Schema, block: bytes, op: Op
) -> tuple[pa.RecordBatch | None, Problems]:
    """The batch, or None when the block has to go by records."""
    block = block.strip()
    lines = block.count(b"\n") + 1
    if not _may_be_read(wire, block, lines):
        return None, {}
    try:
        read = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(explicit_schema=wire, unexpected_field_behavior="error"),
        )
        if len(read) != lines:
            return None, {}
        arrays = [_column(table, column, read, block, op) for column in table.columns]
    except BAD_VALUE:
        return None, {}
    problems: Problems = {}
    return good_rows(table, arrays, deleted_column(table, op, lines), problems), problems


_EXPONENT: Final = r':[ \t\r]*"?[+-]?[0-9]*\.?[0-9]*[eE][+-]?[0-9]+"?[ \t\r]*[,}]'


def _has_exponent(block: bytes) -> bool:
    return bool(pc.match_substring_regex(pa.array([block], pa.binary()), _EXPONENT)[0].as_py())


def _may_be_read(wire: pa.Schema, block: bytes, lines: int) -> bool:
    """Whether pyarrow reads the block safely, and an object on each line.

    It does not look at line ends. But where each line begins with { and ends with }, no object goes on over a line's end
    (what follows on such a } is , or } or ]), so as many objects as lines are one on each.
    """
    if len(block) > LONGEST_LINE or not (block.startswith(b"{") and block.endswith(b"}")):
        return False
    if block.count(b"}\n{") + block.count(b"}\r\n{") != lines - 1:
        return False
    if any(pt.is_decimal(kind) for kind in wire.types):
        # pyarrow 26 crashes the process on decimals such as 1E-999999999, however they are written
        return b"\\u" not in block and not _has_exponent(block)
    return True


def _column(table: TableDef, column: ColumnDef, read: pa.Table, block: bytes, op: Op) -> pa.Array:
    if not is_read(table, column, op):
        return pa.nulls(len(read), column.kind.arrow)
    array = read.column(column.name).combine_chunks()
    if array.null_count and column.default is not None and op is not Op.DELETE:
        if array.null_count < len(array) or b"\\u" in block or column.name.encode() in block:
            raise ValueError  # missing, which is the default, or null: pyarrow does not tell
        return default_column(column, len(read))
    return _converted(column.kind, array)


def _converted(kind: ColumnType, array: pa.Array) -> pa.Array:
    if pt.is_string(array.type):
        array.validate(full=True)  # pyarrow takes any bytes for text
        return kind.parse(array)
    if kind.name in FLOATS:
        check_finite(array, FLOATS[kind.name])
        if pc.min(pc.divide(1.0, array)).as_py() == -inf:
            raise ValueError  # -0.0, or -0 which is 0: pyarrow does not tell
    return array if array.type == kind.arrow else pc.cast(array, kind.arrow)
