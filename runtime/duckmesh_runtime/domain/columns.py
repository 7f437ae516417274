"""Column types: what each is in Arrow, and how JSON values become its array. Pure.

`typenames` finds them by name, `records` and `arrow_rows` fill them. HUGEINT, TIME WITH TIME ZONE and INTERVAL are left
out: DuckLake takes them, but its Parquet files keep them with loss (measured with DuckDB 1.5.5).
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import partial
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

Values = Sequence[object]

BAD_VALUE: Final = (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException)
"""What `ColumnType.build` raises for a value that does not fit; ArrowInvalid and UnicodeError are ValueErrors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnType:
    """One column type.

    Attributes:
        name: Canonical DuckDB name, fit for DDL.
        arrow: Arrow type of its arrays. UUID and JSON travel as checked strings, DuckDB casts them when inserting.
        expects: What a JSON value must be, for error messages.
        build: JSON values (None is NULL) to an array of `arrow`; raises one of `BAD_VALUE` if any value does not fit.
        scalar: Whether it may be a key and have a default.
    """

    name: str
    arrow: pa.DataType
    expects: str
    build: Callable[[Values], pa.Array]
    scalar: bool = True


def python_kinds(values: Iterable[object]) -> set[type]:
    """The types of the values, NULL apart."""
    return set(map(type, values)) - {type(None)}


def _require(values: Values, *allowed: type) -> None:
    if not python_kinds(values) <= set(allowed):
        raise TypeError


def _booleans(values: Values) -> pa.Array:
    _require(values, bool)
    return pa.array(values, pa.bool_())


def _whole(value: object) -> int | None:
    if isinstance(value, str):  # 64-bit numbers come as strings where JSON numbers are doubles
        if not re.fullmatch(r"-?[0-9]{1,20}", value):
            raise ValueError
        return int(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return None if value is None else int(value)  # type: ignore[call-overload]  # checked by the caller


def _integers(values: Values, *, arrow: pa.DataType) -> pa.Array:
    _require(values, int, float, str)
    if python_kinds(values) - {int}:
        values = [_whole(value) for value in values]
    return pa.array(values, arrow)


def _floats(values: Values, *, arrow: pa.DataType, largest: float) -> pa.Array:
    _require(values, int, float)
    found = [None if v is None else float(v) for v in values]  # type: ignore[arg-type]  # checked
    if not all(-largest <= v <= largest for v in found if v is not None):  # NaN is not within
        raise OverflowError
    return pa.array(found, arrow)


def _decimals(values: Values, *, arrow: pa.Decimal128Type) -> pa.Array:
    _require(values, int, float, str)
    # pyarrow 26 crashes the process on exponents such as 1E-999999999: never hand it a Decimal of unknown scale.
    exact = Context(prec=arrow.precision, traps=[Inexact, InvalidOperation])
    step = Decimal(1).scaleb(-arrow.scale)
    return pa.array(
        [None if v is None else _decimal(v).quantize(step, context=exact) for v in values], arrow
    )


def _decimal(value: object) -> Decimal:
    text = str(value)
    if len(text) > 100 or not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,6})?", text):
        raise ValueError
    return Decimal(text)


def _texts(values: Values) -> pa.Array:
    _require(values, str)
    if any("\0" in v for v in values if v is not None):  # type: ignore[operator]  # checked
        raise ValueError
    return pa.array(values, pa.string())  # lone surrogates raise


def check_text(array: pa.Array) -> None:
    """Refuse NUL in text: catalogs keep smallest and largest values as Postgres text, which cannot hold it."""
    if pc.any(pc.match_substring(array, "\0"), min_count=0).as_py():
        raise ValueError


def _bytes(values: Values) -> pa.Array:
    _require(values, str)
    return pa.array(
        [None if v is None else base64.b64decode(v, validate=True) for v in values],  # type: ignore[arg-type]  # checked
        pa.binary(),
    )


def _dates(values: Values) -> pa.Array:
    return _in_years(values, pc.cast(_texts(values), pa.date32()))


def _times(values: Values) -> pa.Array:
    texts = _texts(values)
    return pc.cast(
        pc.cast(pc.binary_join_element_wise("1970-01-01T", texts, ""), pa.timestamp("us")),
        pa.time64("us"),
    )


def _timestamps(values: Values, *, arrow: pa.TimestampType) -> pa.Array:
    texts = _texts(values)
    zoned = _ZONE.search(next((v for v in values if isinstance(v, str)), "")) is not None
    try:  # most batches are of one kind
        found = pc.cast(texts, pa.timestamp(arrow.unit, "UTC" if zoned else None))
    except pa.ArrowInvalid:
        mixed = pa.array(list(map(_with_zone, texts.to_pylist())), pa.string())
        found = pc.cast(mixed, pa.timestamp(arrow.unit, "UTC"))
    return _in_years(values, found if found.type == arrow else pc.cast(found, arrow))


_ZONE: Final = re.compile(r"[T ][^ ]*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$")


def _with_zone(text: str | None) -> str | None:
    if text is None or _ZONE.search(text):
        return text
    return f"{text}T00Z" if len(text) == 10 else f"{text}Z"


_FIRST_YEAR_S: Final = -62_135_596_800  # 0001-01-01, in seconds since 1970
_AFTER_YEARS_S: Final = 253_402_300_800  # 10000-01-01
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _in_years(texts: Values, array: pa.Array) -> pa.Array:
    edges = ("0000", "0001-01-01", "9999-12-31")  # an offset may still lead out of the range
    if any(v.startswith(edges) for v in texts if v is not None):  # type: ignore[attr-defined]  # checked
        check_years(array)
    return array


def check_years(array: pa.Array) -> None:
    """Refuse dates and timestamps outside the years 1 to 9999, which many readers cannot show."""
    if pa.types.is_date32(array.type):
        numbers, low, after = (
            array.cast(pa.int32()),
            _FIRST_YEAR_S // 86400,
            _AFTER_YEARS_S // 86400,
        )
    else:
        if array.type.unit == "ns":
            return  # 64 bits of nanoseconds are the years 1677 to 2262
        scale = _PER_SECOND[array.type.unit]
        numbers, low, after = array.cast(pa.int64()), _FIRST_YEAR_S * scale, _AFTER_YEARS_S * scale
    ends = pc.min_max(numbers)
    if ends["min"].is_valid and not low <= ends["min"].as_py() <= ends["max"].as_py() < after:
        raise OverflowError


_UUID: Final = (
    r"^[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}(-?)[0-9a-fA-F]{4}(-?)[0-9a-fA-F]{4}(-?)[0-9a-fA-F]{12}$"
)


def _uuids(values: Values) -> pa.Array:
    array = _texts(values)
    check_uuids(array)
    return pc.utf8_lower(array)


def check_uuids(array: pa.Array) -> None:
    """Refuse texts that are no UUIDs."""
    if not pc.all(pc.match_substring_regex(array, _UUID), min_count=0).as_py():
        raise ValueError


def _documents(values: Values) -> pa.Array:
    return pa.array([None if v is None else json_text(v) for v in values], pa.string())


def json_text(value: object) -> str:
    """JSON in one canonical form.

    Raises:
        ValueError: It holds what JSON cannot say, or an integer of more than 4,300 digits.
    """
    return msgspec.json.encode(value, order="deterministic").decode()


def _lists(values: Values, *, inner: ColumnType) -> pa.Array:
    _require(values, list)
    flat: list[object] = []
    offsets = [0]
    for value in values:
        flat.extend(value or ())  # type: ignore[arg-type]  # checked: a list
        offsets.append(len(flat))
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), inner.build(flat), mask=_nulls(values)
    )


def _structs(values: Values, *, fields: Sequence[tuple[str, ColumnType]]) -> pa.Array:
    _require(values, dict)
    rows: list[dict[str, object]] = [value or {} for value in values]  # type: ignore[misc]  # checked: dicts
    names = {name for name, _ in fields}
    if any(row.keys() - names for row in rows):
        raise ValueError
    children = [inner.build([row.get(name) for row in rows]) for name, inner in fields]
    shape = pa.struct([pa.field(name, inner.arrow) for name, inner in fields])
    return pa.StructArray.from_arrays(children, fields=list(shape), mask=_nulls(values))


def _maps(values: Values, *, inner: ColumnType) -> pa.Array:
    _require(values, dict)
    keys: list[object] = []
    items: list[object] = []
    offsets = [0]
    for value in values:
        for key, item in (value or {}).items():  # type: ignore[attr-defined]  # checked: a dict
            keys.append(key)
            items.append(item)
        offsets.append(len(keys))
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()), _texts(keys), inner.build(items), mask=_nulls(values)
    )


def _nulls(values: Values) -> pa.Array | None:
    return pa.array([value is None for value in values], pa.bool_()) if None in values else None


def _integer(name: str, bits: int, signed: bool) -> ColumnType:
    arrow = getattr(pa, f"{'' if signed else 'u'}int{bits}")()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expects = f"a whole number from {low} to {high}"
    return ColumnType(
        name=name, arrow=arrow, expects=expects, build=partial(_integers, arrow=arrow)
    )


def _timestamp(name: str, unit: str, digits: int, zone: str | None = None) -> ColumnType:
    arrow = pa.timestamp(unit, zone)
    fraction = f" with at most {digits} digits of a second" if digits else " in whole seconds"
    example = "2024-01-31T12:00:00" + (".5" if digits else "") + "Z"
    return ColumnType(
        name=name,
        arrow=arrow,
        expects=f'a timestamp like "{example}"{fraction} (without an offset it is UTC)',
        build=partial(_timestamps, arrow=arrow),
    )


def _float(name: str, arrow: pa.DataType, largest: float) -> ColumnType:
    return ColumnType(
        name=name,
        arrow=arrow,
        expects=f"a finite number within the range of {name}",
        build=partial(_floats, arrow=arrow, largest=largest),
    )


def _scalars() -> dict[str, ColumnType]:
    def plain(
        name: str, arrow: pa.DataType, expects: str, build: Callable[[Values], pa.Array]
    ) -> ColumnType:
        return ColumnType(name=name, arrow=arrow, expects=expects, build=build)

    text = "text without NUL characters or lone surrogates"
    types = [
        plain("BOOLEAN", pa.bool_(), "true or false", _booleans),
        *(
            _integer(name, bits, name[0] != "U")
            for stem, bits in (("TINYINT", 8), ("SMALLINT", 16), ("INTEGER", 32), ("BIGINT", 64))
            for name in (stem, f"U{stem}")
        ),
        _float("FLOAT", pa.float32(), 3.4028234663852886e38),
        _float("DOUBLE", pa.float64(), sys.float_info.max),
        plain("VARCHAR", pa.string(), text, _texts),
        plain("BLOB", pa.binary(), "bytes as base64 text", _bytes),
        plain("DATE", pa.date32(), 'a date like "2024-01-31", years 0001 to 9999', _dates),
        plain("TIME", pa.time64("us"), 'a time of day like "12:00:00.5", without offset', _times),
        _timestamp("TIMESTAMP", "us", 6),
        _timestamp("TIMESTAMP_S", "s", 0),
        _timestamp("TIMESTAMP_MS", "ms", 3),
        _timestamp("TIMESTAMP_NS", "ns", 9),
        _timestamp("TIMESTAMP WITH TIME ZONE", "us", 6, "UTC"),
        plain("UUID", pa.string(), "a UUID as text", _uuids),
        ColumnType(
            name="JSON",
            arrow=pa.string(),
            expects="any JSON value",
            build=_documents,
            scalar=False,
        ),
    ]
    return {found.name: found for found in types}


SCALARS: Final = _scalars()
"""The types without parameters, by canonical name."""


def decimal_type(precision: int, scale: int) -> ColumnType:
    """DECIMAL with 1 to 38 digits, `scale` of them behind the point."""
    arrow = pa.decimal128(precision, scale)
    return ColumnType(
        name=f"DECIMAL({precision},{scale})",
        arrow=arrow,
        expects=f"a number with at most {precision - scale} digits before and {scale} behind the point",
        build=partial(_decimals, arrow=arrow),
    )


def list_type(inner: ColumnType) -> ColumnType:
    """A list of any length."""
    return ColumnType(
        name=f"{inner.name}[]",
        arrow=pa.list_(inner.arrow),
        expects=f"a list of {inner.name}",
        build=partial(_lists, inner=inner),
        scalar=False,
    )


def struct_type(fields: Sequence[tuple[str, ColumnType]]) -> ColumnType:
    """An object of named fields, in order."""
    # Quoted throughout: `end` or `order` as a field would not parse bare.
    inside = ", ".join(f'"{name}" {inner.name}' for name, inner in fields)
    return ColumnType(
        name=f"STRUCT({inside})",
        arrow=pa.struct([pa.field(name, inner.arrow) for name, inner in fields]),
        expects="an object of " + ", ".join(f"{name} {inner.name}" for name, inner in fields),
        build=partial(_structs, fields=tuple(fields)),
        scalar=False,
    )


def map_type(inner: ColumnType) -> ColumnType:
    """An object of any text keys."""
    return ColumnType(
        name=f"MAP(VARCHAR, {inner.name})",
        arrow=pa.map_(pa.string(), inner.arrow),
        expects=f"an object with {inner.name} values",
        build=partial(_maps, inner=inner),
        scalar=False,
    )
