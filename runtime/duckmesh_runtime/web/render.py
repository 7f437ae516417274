"""Arrow batches as JSON, NDJSON, CSV and Arrow bytes, each batch by itself. Used by `query`; no I/O.

JSON values: 64-bit and larger integers are numbers up to 2^53 and strings beyond it; decimals, dates and times are
strings, timestamps RFC 3339 in UTC (a TIMESTAMP without zone is taken as UTC); a BLOB is base64; NaN and infinities are
the strings `NaN`, `Infinity`, `-Infinity`; structs and maps with text keys are objects, other maps lists of pairs.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from duckmesh_runtime.errors import Invalid

_SAFE: Final = 2**53  # largest run of integers that a JSON reader with doubles keeps apart
_HUGE: Final = frozenset(
    {"HUGEINT", "UHUGEINT"}
)  # Arrow has no such integer: they come as decimals
_BEYOND: Final = "<value out of range"  # what Arrow writes for a timestamp that is none of its own

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class Writer(Protocol):
    """One answer format."""

    def start(self) -> bytes:
        """What comes before the first row."""
        ...

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The rows of a batch."""
        ...

    def end(self) -> bytes:
        """What comes after the last row."""
        ...


def json_rows(batch: pa.RecordBatch, type_names: Sequence[str]) -> bytes:
    """The rows as JSON arrays, comma-separated and without the outer brackets; empty for no rows."""
    columns = _columns(batch, type_names)
    return _encode(list(zip(*columns, strict=True)))[1:-1]


class NdjsonWriter:
    """One JSON object a row; a repeated column name gets a number."""

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._names = unique_names(schema.names)
        self._type_names = type_names

    def start(self) -> bytes:
        """Nothing."""
        return b""

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """One line a row."""
        columns = _columns(batch, self._type_names)
        names = self._names
        return _encode_lines(
            [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        )

    def end(self) -> bytes:
        """Nothing."""
        return b""


class CsvWriter:
    """RFC 4180 with a header line; NULL is an empty field, empty text is quoted, nested values are JSON."""

    def __init__(self, schema: pa.Schema, type_names: Sequence[str]) -> None:
        self._names = schema.names
        self._type_names = type_names

    def start(self) -> bytes:
        """The header line."""
        empty = pa.table([pa.array([], pa.string()) for _ in self._names], names=self._names)
        return self._write(empty, header=True)

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The rows."""
        flat = [_flat(c, t) for c, t in zip(batch.columns, self._type_names, strict=True)]
        return self._write(pa.table(flat, names=self._names), header=False)

    def end(self) -> bytes:
        """Nothing."""
        return b""

    def _write(self, table: pa.Table, *, header: bool) -> bytes:
        sink = io.BytesIO()
        options = pa.csv.WriteOptions(include_header=header)
        pa.csv.write_csv(table, sink, options)
        return sink.getvalue()


class ArrowWriter:
    """An Arrow IPC stream."""

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = _Sink()
        self._writer = pa.ipc.new_stream(self._sink, schema)

    def start(self) -> bytes:
        """Nothing: Arrow writes the schema with the first batch, or at the end."""
        return self._sink.take()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        """The batch's messages."""
        self._writer.write_batch(batch)
        return self._sink.take()

    def end(self) -> bytes:
        """The end-of-stream mark."""
        self._writer.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """Hands over what was written and forgets it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        self._at += len(self._parts[-1])
        return len(self._parts[-1])

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def unique_names(names: Sequence[str]) -> list[str]:
    """The names with `_1`, `_2`, ... after repeated ones, so that no value of an object is lost."""
    taken, unique = set(names), []
    seen: set[str] = set()
    for name in names:
        new, number = name, 0
        while new in seen or (number and new in taken):
            number += 1
            new = f"{name}_{number}"
        seen.add(new)
        unique.append(new)
    return unique


def _columns(batch: pa.RecordBatch, type_names: Sequence[str]) -> list[list[Any]]:
    return [_values(c, t) for c, t in zip(batch.columns, type_names, strict=True)]


@contextmanager
def _sayable(type_name: str) -> Iterator[None]:
    """DuckDB has dates that neither Arrow nor Python can hold: the statement's error, not a fault of ours."""
    try:
        yield
    except (ValueError, OverflowError):
        raise Invalid(
            "SQL_ERROR",
            f"the result holds a {type_name[:64]} that this answer format cannot say (years 1 to 9999): "
            "cast it to VARCHAR",
        ) from None


def _values(column: pa.Array, type_name: str) -> list[Any]:
    """A column as JSON-ready values."""
    with _sayable(type_name):
        return _written(column, type_name)


def _written(column: pa.Array, type_name: str) -> list[Any]:
    """The values; the common types without a Python call per value."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _written(column.dictionary_decode(), type_name)
    if pa.types.is_timestamp(kind):
        found: list[Any] = _times(column).to_pylist()
        return found
    found = column.to_pylist()
    if pa.types.is_integer(kind):
        return found if kind.bit_width < 64 or _all_safe(column) else [_plain(v) for v in found]
    if pa.types.is_decimal(kind) and type_name in _HUGE:
        return [None if v is None else _plain(int(v)) for v in found]
    if pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return found
    if pa.types.is_nested(kind):
        return [_nested(kind)(v) for v in found]
    return [_plain(v) for v in found]


def _all_safe(column: pa.Array) -> bool:
    ends = pc.min_max(column).as_py()
    return ends["min"] is None or (ends["min"] >= -_SAFE and ends["max"] <= _SAFE)


def _times(column: pa.Array) -> pa.Array:
    """Timestamps as RFC 3339 text in UTC, without the zeros at the end of the fraction.

    Raises:
        ValueError: There is no text for one of them.
    """
    text = pc.cast(pc.cast(column, pa.int64()).cast(pa.timestamp(column.type.unit)), pa.string())
    beyond = pc.starts_with(text, _BEYOND)
    text = pc.replace_substring_regex(text, r"\.0+$", "")
    text = pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$", r"\1")
    text = pc.binary_join_element_wise(pc.replace_substring(text, " ", "T"), "Z", "")
    raw = pc.cast(column, pa.int64())
    above, below = pc.equal(raw, 2**63 - 1), pc.equal(raw, -(2**63 - 1))
    if pc.any(pc.and_not(beyond, pc.or_(above, below))).as_py():
        raise ValueError("a timestamp is out of range")
    return pc.if_else(below, "-infinity", pc.if_else(above, "infinity", text))


def _nested(kind: pa.DataType) -> Callable[[Any], Any]:
    """A function that makes nested values JSON-ready. Timestamps inside follow the same rule as outside."""
    if pa.types.is_map(kind):
        key, item = _nested(kind.key_type), _nested(kind.item_type)
        if pa.types.is_string(kind.key_type):
            return lambda v: None if v is None else {k: item(i) for k, i in v}
        return lambda v: None if v is None else [[key(k), item(i)] for k, i in v]
    if pa.types.is_struct(kind):
        fields = {f.name: _nested(f.type) for f in kind}
        return lambda v: None if v is None else {n: fields[n](i) for n, i in v.items()}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _nested(kind.value_type)
        return lambda v: None if v is None else [item(i) for i in v]
    if pa.types.is_timestamp(kind):
        return lambda v: None if v is None else _times(pa.array([v], kind))[0].as_py()
    return _plain


def _plain(value: Any) -> Any:
    """One value that is not nested."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if -_SAFE <= value <= _SAFE else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOT_FINITE[str(value)]
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, pa.MonthDayNano):
        return _duration(value)
    if isinstance(value, timedelta):
        return f"PT{_seconds(value // timedelta(microseconds=1) * 1000)}S"
    return str(value)


_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _duration(value: Any) -> str:
    """An INTERVAL as an ISO 8601 duration: months, days and seconds as DuckDB keeps them apart."""
    return f"P{value.months}M{value.days}DT{_seconds(value.nanoseconds)}S"


def _seconds(nanoseconds: int) -> str:
    return format((Decimal(nanoseconds) / 10**9).normalize(), "f")


def _flat(column: pa.Array, type_name: str) -> pa.Array:
    """A column that a CSV writer takes: numbers and text as they are, all else as the text of its JSON value."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        with _sayable(type_name):
            return _times(column)
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return column
    if pa.types.is_floating(kind):
        return column
    values = _values(column, type_name)
    return pa.array(
        [v if v is None or isinstance(v, str) else _encode(v).decode() for v in values], pa.string()
    )
