"""Good rows from bad: what the decoders of all body formats share. Pure.

A column is converted whole; only when that fails is it searched, by halves, for the values that do not fit. Each bad row
is refused on its own with its first problem; the others make batches of the table's bus schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from duckmesh_runtime.domain.bus_rows import bus_schema
from duckmesh_runtime.domain.columns import BAD_VALUE
from duckmesh_runtime.domain.partitions import long_partitions
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Conflict, Invalid

BLOCK_ROWS: Final = 65_536
"""Rows converted at a time; no batch has more."""

MOST_CELLS: Final = 8 * 2**20
"""Rows times columns converted at a time: a few bytes of body may be a row of a thousand columns."""

MOST_ROWS: Final = 10_000_000
MOST_REJECTED: Final = 10_000
"""More wrong rows than this refuse the body: their search and their messages would take more than the rows."""


class Op(StrEnum):
    """What a row does to its table."""

    INSERT = "insert"
    UPSERT = "upsert"
    DELETE = "delete"


def op_for(table: TableDef, text: str | None) -> Op:
    """The operation asked for; without one, upsert where there is a primary key and insert where there is none.

    Raises:
        Invalid: VALIDATION_FAILED naming `op`.
    """
    takes = (Op.UPSERT, Op.DELETE) if table.primary_key else (Op.INSERT,)
    if text is None:
        return takes[0]
    if text in takes:
        return Op(text)
    send = " or ".join(takes)
    if text not in set(Op):
        problem = f"{shown(text)} is not known: send {send}"
    elif table.primary_key:
        problem = f"{text} needs a table without primary key: send {send}"
    else:
        problem = f"{text} needs a table with a primary key: send {send}"
    raise Invalid("VALIDATION_FAILED", f"op: {problem}", context={"field": "op"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that was not accepted: its index in the request, an error code, and what is wrong with which field."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The rows of a request.

    Attributes:
        batches: The good ones, complete (defaults filled in), in order, of the table's bus schema; none is empty.
        rows: How many they are.
        kept: For each row, the index of its record.
        rejected: The others, by index.
    """

    batches: Sequence[pa.RecordBatch]
    rows: int
    kept: Sequence[int]
    rejected: Sequence[Rejected]


Problems = dict[int, str]
"""By row of a block, the first thing that is wrong with it."""


S = TypeVar("S", pa.Array, Sequence[object])


def sift(
    column: ColumnDef,
    convert: Callable[[S], pa.Array],
    source: S,
    show: Callable[[int], str],
    problems: Problems,
) -> pa.Array:
    """Convert a column; bad values become NULL and a problem of their row.

    Args:
        column: Its name and type are told in the problem.
        convert: Makes an array of the column's Arrow type, or raises one of `BAD_VALUE`.
        source: What to convert.
        show: Says what stands at a place of the source.
        problems: Gets what is found, unless the row has a problem already.
    """
    try:
        return convert(source)
    except BAD_VALUE:
        array, bad = _halve(convert, source, column.kind.arrow)
    for i in bad:
        problems.setdefault(i, f"{column.name}: want {column.kind.expects}, got {show(i)}")
    return array


def _halve(
    convert: Callable[[S], pa.Array], source: S, arrow: pa.DataType
) -> tuple[pa.Array, list[int]]:
    """The array with NULL for bad values, and where those are."""
    pieces: list[pa.Array] = []
    bad: list[int] = []
    spans = [(0, len(source))]
    while spans:
        start, stop = spans.pop()
        try:
            pieces.append(convert(source[start:stop]))
        except BAD_VALUE:
            if stop - start > 1:
                middle = (start + stop) // 2
                spans += [(middle, stop), (start, middle)]
                continue
            pieces.append(pa.nulls(1, arrow))
            bad.append(start)
            if len(bad) > MOST_REJECTED:
                raise _too_many() from None
    return pa.concat_arrays(pieces), bad


def good_rows(
    table: TableDef, arrays: Sequence[pa.Array], deleted: pa.Array | None, problems: Problems
) -> pa.RecordBatch:
    """The rows without problems, once those with a NULL where none may be or too long a partition are found too.

    Args:
        table: Whose rows they are.
        arrays: One for each column; NULL where a value was bad.
        deleted: For a keyed table, which rows are deletes.
        problems: By row; gets what is found.
    """
    for column, array in zip(table.columns, arrays, strict=True):
        if array.null_count and not column.nullable:
            whole = deleted is None or column.name in table.primary_key
            nulls = pc.is_null(array)
            _refuse_nulls(column, nulls if whole else pc.and_not(nulls, deleted), problems)
    if table.partition_by:
        for i, problem in long_partitions(table, arrays, deleted):
            problems.setdefault(i, problem)
    columns = arrays if deleted is None else [*arrays, deleted]
    batch = pa.RecordBatch.from_arrays(columns, schema=bus_schema(table))
    if not problems:
        return batch
    kept = [i for i in range(len(batch)) if i not in problems]
    return batch.take(pa.array(kept, pa.int64()))


def default_column(column: ColumnDef, rows: int) -> pa.Array:
    """The column where the body does not have it.

    Raises:
        Invalid: PAYLOAD_TOO_LARGE when a long default would be repeated beyond all measure.
    """
    one = column.kind.build([column.default])
    check_defaults(column, rows)
    return one.take(pa.repeat(0, rows))


def check_defaults(column: ColumnDef, rows: int) -> None:
    """Check that so many rows may take the default of a column, which can be much longer than what was sent.

    Raises:
        Invalid: PAYLOAD_TOO_LARGE.
    """
    if isinstance(column.default, str) and len(column.default) * rows > _DEFAULTS_BYTES:
        raise too_large(f"{column.name}: the column's default takes too much in so many rows")


_DEFAULTS_BYTES: Final = 64 * 2**20


def _refuse_nulls(column: ColumnDef, nulls: pa.Array, problems: Problems) -> None:
    for i in pc.indices_nonzero(nulls).to_pylist():
        problems.setdefault(i, f"{column.name}: is missing or null, want {column.kind.expects}")


def check_names(table: TableDef, names: Iterable[str], op: Op) -> None:
    """Check the columns of a body: each is the table's and there once, and none is missing that must be there.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE naming the column.
    """
    columns = {column.name for column in table.columns}
    seen: set[str] = set()
    for name in names:
        if name not in columns:
            raise incompatible(name, f"no such column; the table has {known_columns(table)}")
        if name in seen:
            raise incompatible(name, "is there twice")
        seen.add(name)
    for column in table.columns:
        if column.name in seen or column.nullable or not is_read(table, column, op):
            continue
        if op is Op.DELETE:
            raise incompatible(column.name, "is missing, and a delete needs the whole key")
        if column.default is None:
            raise incompatible(column.name, "is missing, and the column is NOT NULL")


def incompatible(column: str, problem: str) -> Conflict:
    """A body whose columns are not the table's."""
    return Conflict(
        "SCHEMA_INCOMPATIBLE", f"{column[:64]}: {problem}", context={"column": column[:64]}
    )


def deleted_column(table: TableDef, op: Op, rows: int) -> pa.Array | None:
    """What `good_rows` wants to know of rows that all do the same."""
    return pa.repeat(op is Op.DELETE, rows) if table.primary_key else None


def is_read(table: TableDef, column: ColumnDef, op: Op) -> bool:
    """Whether the operation looks at a column: a delete does at its key only."""
    return op is not Op.DELETE or column.name in table.primary_key


def rows_at_once(table: TableDef) -> int:
    """How many rows of this table are converted at a time."""
    return max(1, min(BLOCK_ROWS, MOST_CELLS // len(table.columns)))


class Harvest:
    """The rows of one request as they are decoded, counted against its limits.

    Args:
        max_bytes: Of decoded rows.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._batches: list[pa.RecordBatch] = []
        self._rejected: list[Rejected] = []
        self.room_bytes = max_bytes
        self.seen = 0

    def expect(self, rows: int) -> None:
        """Check that so many more rows may come, before anything is done for them.

        Raises:
            Invalid: PAYLOAD_TOO_LARGE.
        """
        if self.seen + rows > MOST_ROWS:
            raise too_large(f"more than {MOST_ROWS} rows")

    def add(self, batch: pa.RecordBatch, problems: Problems) -> None:
        """Take in a block: its good rows, and the problems of the others by their place in the block.

        Raises:
            Invalid: PAYLOAD_TOO_LARGE, or VALIDATION_FAILED when too many rows are wrong.
        """
        self.expect(len(batch) + len(problems))
        if len(self._rejected) + len(problems) > MOST_REJECTED:
            raise _too_many()
        self._rejected += [
            Rejected(index=self.seen + i, code="VALIDATION_FAILED", message=problems[i])
            for i in sorted(problems)
        ]
        self.seen += len(batch) + len(problems)
        self.room_bytes -= batch.nbytes
        if self.room_bytes < 0:
            raise too_large(f"more than {self._max_bytes} bytes when unfolded")
        if 0 < len(batch) <= BLOCK_ROWS:
            self._batches.append(batch)
        else:
            self._batches += [
                batch.slice(start, BLOCK_ROWS) for start in range(0, len(batch), BLOCK_ROWS)
            ]

    def decoded(self) -> Decoded:
        """All of it."""
        bad = {each.index for each in self._rejected}
        return Decoded(
            batches=self._batches,
            rows=self.seen - len(bad),
            kept=[i for i in range(self.seen) if i not in bad] if bad else range(self.seen),
            rejected=self._rejected,
        )


def too_large(how: str) -> Invalid:
    """A body that unfolds to more than is taken."""
    return Invalid("PAYLOAD_TOO_LARGE", f"body: {how}: send it in smaller parts")


def _too_many() -> Invalid:
    return Invalid(
        "VALIDATION_FAILED",
        f"body: more than {MOST_REJECTED} rows are wrong: send some of them alone to see what is",
    )


def shown(value: object) -> str:
    """A JSON value for a message: short, on one line, in ASCII."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of very many digits"
    text = str(value) if isinstance(value, Decimal) else ascii(value)
    return text if len(text) <= 40 else f"{text[:36]}..."


def known_columns(table: TableDef) -> str:
    """The table's columns for a message."""
    names = [column.name for column in table.columns]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
