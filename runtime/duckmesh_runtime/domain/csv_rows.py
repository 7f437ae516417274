"""CSV bodies (RFC 4180 with a header line), decoded a block of records at a time, columns all the way. Pure.

pyarrow splits a block into texts; the column types read those. It gets whole blocks and nothing that RFC 4180 does not
know: across its own blocks it loses bytes (https://github.com/apache/arrow/issues/51368), and stray quotes it guesses.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from functools import partial
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from duckmesh_runtime.domain.blocks import LONGEST_LINE, blocks, start_of
from duckmesh_runtime.domain.columns import ColumnType
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.sift import (
    MOST_CELLS,
    Harvest,
    Op,
    Problems,
    check_names,
    default_column,
    deleted_column,
    good_rows,
    is_read,
    shown,
    sift,
)
from duckmesh_runtime.errors import Invalid


def read_csv(table: TableDef, body: bytes, op: Op, harvest: Harvest) -> None:
    """Decode a body into `harvest`; empty lines do not count.

    Raises:
        Invalid: VALIDATION_FAILED for broken quotes, a missing header, or too many wrong rows; PAYLOAD_TOO_LARGE.
        Conflict: SCHEMA_INCOMPATIBLE naming a column that is unknown or missing.
    """
    names, start = _header(body)
    check_names(table, names, op)
    for block in blocks(body, start, table, quoted=True):
        if block.strip(b"\r\n"):
            _check_block(table, block, harvest.seen)
            _add_block(table, names, block, op, harvest)


def _header(body: bytes) -> tuple[list[str], int]:
    """The names of the header line, and where the next one begins."""
    found = _HEADER.match(body, start_of(body))
    try:
        line = found.group(1).decode() if found else ""
        (names,) = csv.reader([line], strict=True)
    except (ValueError, csv.Error):
        names = []
    if not found or not names:
        raise _broken("the first line must name the columns, in UTF-8 and with commas between them")
    return names, found.end()


_HEADER: Final = re.compile(rb"[\r\n]*([^\r\n]{1,1000000})(?:\r?\n|\r|\Z)")
_RFC_4180: Final = r'^(?:(?:[^",\r\n]*|"(?:[^"]|"")*")(?:[,\r\n]|$))*$'


def _check_block(table: TableDef, block: bytes, seen: int) -> None:
    if len(block) > LONGEST_LINE:
        raise _broken(
            f"a line after row {seen} is longer than {LONGEST_LINE} bytes, or its quotes do not end"
        )
    if block.count(b"\r") * len(table.columns) > 2 * MOST_CELLS:
        raise _broken("lines must end with LF or CR LF")
    if b'"' in block:
        whole = pc.match_substring_regex(pa.array([block], pa.binary()), _RFC_4180)
        if not whole[0].as_py():
            raise _broken(
                f"after row {seen} a quote stands inside a field without quotes, behind a closing quote, or alone: "
                'put quotes around the field and write "" for one inside'
            )


def _add_block(table: TableDef, names: list[str], block: bytes, op: Op, harvest: Harvest) -> None:
    skipped: Problems = {}

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        problem = f"line: has {row.actual_columns} fields, the header has {row.expected_columns}"
        skipped[row.number - 1] = problem
        return "skip"

    utf8 = _is_utf8(block)
    try:  # pyarrow shows a line it skips as text, and fails where it is none
        read = _split(block if utf8 else block.decode("latin-1").encode(), names, skip)
    except pa.ArrowException:
        raise _broken(f"the lines after row {harvest.seen} cannot be told apart") from None
    problems: Problems = {}
    arrays = [_column(table, column, read, op, problems, utf8=utf8) for column in table.columns]
    batch = good_rows(table, arrays, deleted_column(table, op, len(read)), problems)
    harvest.add(batch, _placed(problems, skipped, len(read)))


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(
    block: bytes, names: list[str], skip: Callable[[pyarrow.csv.InvalidRow], str]
) -> pa.Table:
    return pyarrow.csv.read_csv(
        pa.BufferReader(block),
        pyarrow.csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
        pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(
                names, pa.binary()
            ),  # texts are checked where a row can be blamed
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _column(
    table: TableDef, column: ColumnDef, read: pa.Table, op: Op, problems: Problems, *, utf8: bool
) -> pa.Array:
    if not is_read(table, column, op):
        return pa.nulls(len(read), column.kind.arrow)
    if column.name not in read.column_names:
        return default_column(column, len(read))
    cells = read.column(column.name).combine_chunks()
    if not utf8:
        cells = pa.array(
            [v if v is None else v.decode().encode("latin-1") for v in cells.to_pylist()],
            cells.type,
        )
    return sift(column, partial(_convert, column.kind), cells, partial(_show, cells), problems)


def _convert(kind: ColumnType, cells: pa.Array) -> pa.Array:
    return kind.parse(pc.cast(cells, pa.string()))


def _show(cells: pa.Array, i: int) -> str:
    return shown(cells[i].as_py().decode(errors="backslashreplace"))


def _placed(problems: Problems, skipped: Problems, rows: int) -> Problems:
    """All problems by the place of their line, where those of `rows` do not know of the skipped lines."""
    if not skipped:
        return problems
    places = [i for i in range(rows + len(skipped)) if i not in skipped]
    return skipped | {places[i]: problem for i, problem in problems.items()}


def _broken(problem: str) -> Invalid:
    return Invalid("VALIDATION_FAILED", f"body: is not CSV as RFC 4180 has it: {problem}")
