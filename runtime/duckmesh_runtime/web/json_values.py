"""Arrow columns as JSON-ready values, by the type that DuckDB names. Used by `render`; no I/O.

64-bit and larger integers are numbers up to 2^53 and strings beyond it; decimals, dates and times are strings, timestamps
RFC 3339 in UTC (a TIMESTAMP without zone is taken as UTC); a BLOB is base64, a BIT its digits; NaN and infinities are the
strings `NaN`, `Infinity`, `-Infinity`; structs and maps with text keys are objects, other maps lists of pairs, structs
without field names lists; a UNION is an object of its one member.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from duckmesh_runtime.domain.result_types import ResultType, parse_result_type
from duckmesh_runtime.errors import Invalid

_SAFE: Final = 2**53  # largest run of integers that a JSON reader with doubles keeps apart
_BEYOND: Final = "<value out of range"  # what Arrow writes for a timestamp that is none of its own
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_ENDLESS: Final = 2**63 - 1  # DuckDB's infinite timestamps, either sign
_ENDLESS_DAYS: Final = 2**31 - 1  # DuckDB's infinite dates, either sign
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NOT_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def json_column(column: pa.Array, type_name: str) -> list[Any]:
    """A column as JSON-ready values.

    Raises:
        Invalid: SQL_ERROR: it holds a date or time that there is no text for.
    """
    with sayable(type_name):
        return _values(column, parse_result_type(type_name))


@contextmanager
def sayable(type_name: str) -> Iterator[None]:
    """DuckDB has dates that neither Arrow nor Python can hold: the statement's error, not a fault of ours."""
    try:
        yield
    except (ValueError, OverflowError):
        raise Invalid(
            "SQL_ERROR",
            f"the result holds a {type_name[:64]} that this answer format cannot say (years 1 to 9999): "
            "cast it to VARCHAR",
        ) from None


def times(column: pa.Array) -> pa.Array:
    """Timestamps as RFC 3339 text in UTC, without the zeros at the end of the fraction.

    Raises:
        ValueError: There is no text for one of them.
    """
    raw = pc.cast(column, pa.int64())
    text = pc.cast(raw.cast(pa.timestamp(column.type.unit)), pa.string())
    beyond = pc.starts_with(text, _BEYOND)
    if column.type.unit != "s":  # there is a fraction, so the zeros are not the seconds'
        text = pc.ascii_rtrim(pc.ascii_rtrim(text, "0"), ".")
    text = pc.binary_join_element_wise(pc.replace_substring(text, " ", "T"), "Z", "")
    above, below = pc.equal(raw, _ENDLESS), pc.equal(raw, -_ENDLESS)
    endless = pc.or_(above, below)
    if pc.any(pc.and_not(beyond, endless)).as_py():
        raise ValueError("a timestamp is out of range")
    if not pc.any(endless).as_py():
        return text
    return pc.if_else(below, "-infinity", pc.if_else(above, "infinity", text))


def bits(value: bytes) -> str:
    """A BIT's digits: DuckDB keeps the number of unused bits in the first byte, and those bits set."""
    digits = "".join(f"{byte:08b}" for byte in value[1:])
    return digits[value[0] :]


def duration(value: Any) -> str:
    """An INTERVAL as an ISO 8601 duration: months, days and seconds as DuckDB keeps them apart."""
    return f"P{value.months}M{value.days}DT{_seconds(value.nanoseconds)}S"


def _values(array: pa.Array, shape: ResultType) -> list[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode(), shape)
    if pa.types.is_map(kind):
        return _map(array, shape)
    if pa.types.is_struct(kind):
        return _struct(array, shape)
    if pa.types.is_union(kind):
        return _union(array, shape)
    if pa.types.is_nested(kind):
        return _list(array, shape)
    return _leaves(array, shape.name)


def _list(array: pa.Array, shape: ResultType) -> list[Any]:
    items = iter(_values(array.flatten(), shape.parts(1)[0]))
    lengths = pc.list_value_length(array).to_pylist()
    return [None if length is None else list(islice(items, length)) for length in lengths]


def _map(array: pa.Array, shape: ResultType) -> list[Any]:
    kind = array.type
    pairs = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    entries = pairs.flatten()
    keys, items = (
        _values(part, inner) for part, inner in zip(entries.flatten(), shape.parts(2), strict=True)
    )
    as_object = pa.types.is_string(kind.key_type)
    both = iter(zip(keys, items, strict=True))
    make: Callable[[Any], Any] = dict if as_object else _pairs
    lengths = pc.list_value_length(pairs).to_pylist()
    return [None if length is None else make(islice(both, length)) for length in lengths]


def _pairs(entries: Any) -> list[Any]:
    return [list(entry) for entry in entries]


def _struct(array: pa.Array, shape: ResultType) -> list[Any]:
    names = [field.name for field in array.type]
    inner = zip(array.flatten(), shape.parts(len(names)), strict=True)
    rows = zip(*(_values(part, part_shape) for part, part_shape in inner), strict=True)
    there = array.is_valid().to_pylist()
    if not any(names):  # row(1, 2)
        return [list(row) if is_there else None for row, is_there in zip(rows, there, strict=True)]
    return [
        dict(zip(names, row, strict=True)) if is_there else None
        for row, is_there in zip(rows, there, strict=True)
    ]


def _union(array: pa.Array, shape: ResultType) -> list[Any]:
    whole = array.take(pa.array(range(len(array)), pa.int64()))  # Arrow forgets a slice's offset
    kind = whole.type
    members = [
        (kind.field(i).name, _values(whole.field(i), inner))
        for i, inner in enumerate(shape.parts(kind.num_fields))
    ]
    by_code = dict(zip(kind.type_codes, members, strict=True))
    found: list[Any] = []
    for row, code in enumerate(whole.type_codes.to_pylist()):
        name, values = by_code[code]
        found.append(None if values[row] is None else {name: values[row]})
    return found


def _leaves(array: pa.Array, name: str) -> list[Any]:
    """Values that are not nested; the common types without a Python call per value."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        return _listed(times(array))
    if pa.types.is_integer(kind):
        found = _listed(array)
        return found if kind.bit_width < 64 or _all_safe(array) else _each(_integer, found)
    if pa.types.is_floating(kind):
        return _floats(array)
    if pa.types.is_date32(kind):
        return _each(_date, _listed(pc.cast(array, pa.int32())))
    if pa.types.is_time(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        per_second = _PER_SECOND[kind.unit]
        return _each(lambda v: _clock(v, per_second), _listed(pc.cast(array, width)))
    return _each(_writer(kind, name), _listed(array))


def _listed(array: pa.Array) -> list[Any]:
    found: list[Any] = array.to_pylist()
    return found


def _each(write: Callable[[Any], Any] | None, values: list[Any]) -> list[Any]:
    return values if write is None else [None if v is None else write(v) for v in values]


def _writer(kind: pa.DataType, name: str) -> Callable[[Any], Any] | None:
    """What makes one value JSON-ready; None when it is."""
    if pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return None
    if name == "HUGEINT":  # Arrow has no such integer: they come as decimals
        return lambda v: _integer(int(v))
    if name == "UHUGEINT":  # the same 128 bits, read as signed
        return lambda v: _integer(int(v) % 2**128)
    if pa.types.is_decimal(kind):
        return lambda v: format(v, "f")
    if name == "BIT":
        return bits
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return lambda v: base64.b64encode(v).decode()
    if pa.types.is_interval(kind):
        return duration
    if pa.types.is_duration(kind):
        return lambda v: f"PT{_seconds(v // timedelta(microseconds=1) * 1000)}S"
    return str


def _integer(value: int) -> int | str:
    return value if -_SAFE <= value <= _SAFE else str(value)


def _all_safe(column: pa.Array) -> bool:
    ends = pc.min_max(column).as_py()
    return ends["min"] is None or (ends["min"] >= -_SAFE and ends["max"] <= _SAFE)


def _floats(array: pa.Array) -> list[Any]:
    """Numbers; a FLOAT with no more digits than it has."""
    short = array.type.bit_width < 64
    found = _each(float, _listed(pc.cast(array, pa.string()))) if short else _listed(array)
    if pc.all(pc.is_finite(array)).as_py() is not False:
        return found
    return _each(lambda v: v if math.isfinite(v) else _NOT_FINITE[str(v)], found)


def _date(days: int) -> str:
    """A date from its days since 1970."""
    if abs(days) == _ENDLESS_DAYS:
        return "infinity" if days > 0 else "-infinity"
    return date.fromordinal(days + _EPOCH_DAY).isoformat()


def _clock(value: int, per_second: int) -> str:
    """A time of day, of which DuckDB has 24:00:00 too."""
    whole, part = divmod(value, per_second)
    text = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    digits = len(str(per_second)) - 1
    return text + (f".{part:0{digits}}".rstrip("0") if part else "")


def _seconds(nanoseconds: int) -> str:
    return format((Decimal(nanoseconds) / 10**9).normalize(), "f")
