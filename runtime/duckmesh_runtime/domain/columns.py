"""Column types: what each is in Arrow, and how JSON values become its array. Pure.

`typenames` finds them by name, `records` and `arrow_rows` fill them. HUGEINT, TIME WITH TIME ZONE and INTERVAL are left
out: DuckLake takes them, but its Parquet files keep them with loss (measured with DuckDB 1.5.5).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Final

import msgspec
import pyarrow as pa

from duckmesh_runtime.domain.texts import (
    YEARS_TO_CHECK,
    check_years,
    parse_booleans,
    parse_bytes,
    parse_dates,
    parse_decimals,
    parse_floats,
    parse_integers,
    parse_texts,
    parse_times,
    parse_timestamps,
    parse_uuids,
    read_timestamps,
)

Values = Sequence[object]
Parse = Callable[[pa.Array], pa.Array]

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
        parse: Texts to the same, for formats that know only text; JSON documents for lists, structs, maps and JSON.
        scalar: Whether it may be a key and have a default.
    """

    name: str
    arrow: pa.DataType
    expects: str
    build: Callable[[Values], pa.Array]
    parse: Parse
    scalar: bool = True


def python_kinds(values: Iterable[object]) -> set[type]:
    """The types of the values, NULL apart."""
    return set(map(type, values)) - {type(None)}


def _require(values: Values, *allowed: type) -> None:
    if not python_kinds(values) <= set(allowed):
        raise TypeError


def json_number(text: str) -> float | Decimal:
    """A JSON number with point or exponent: a Decimal where a double might not give back all digits.

    For `msgspec` decoders, as `float_hook`.
    """
    plain = len(text) <= _SURE_DIGITS and "e" not in text and "E" not in text
    return float(text) if plain else Decimal(text)


_SURE_DIGITS: Final = 15


def _booleans(values: Values) -> pa.Array:
    _require(values, bool)
    return pa.array(values, pa.bool_())


def _whole(value: object) -> int | None:
    if isinstance(value, str):  # 64-bit numbers come as strings where JSON numbers are doubles
        if not re.fullmatch(r"-?[0-9]{1,20}", value):
            raise ValueError
        return int(value)
    if isinstance(value, float | Decimal):
        if not (-_FAR < value < _FAR and value == int(value)):
            raise ValueError
        return int(value)
    return value  # type: ignore[return-value]  # checked by the caller: a whole number or None


_FAR: Final = 10**20  # beyond all integer types; what is whole and far would take long to write out


def _integers(values: Values, *, arrow: pa.DataType) -> pa.Array:
    _require(values, int, float, Decimal, str)
    if python_kinds(values) - {int}:
        values = [_whole(value) for value in values]
    return pa.array(values, arrow)


def _floats(values: Values, *, arrow: pa.DataType, largest: float) -> pa.Array:
    _require(values, int, float, Decimal)
    found = [None if v is None else float(v) for v in values]  # type: ignore[arg-type]  # checked
    if not all(-largest <= v <= largest for v in found if v is not None):  # NaN is not within
        raise OverflowError
    return pa.array(found, arrow)


def _decimals(values: Values, *, arrow: pa.Decimal128Type) -> pa.Array:
    _require(values, int, float, Decimal, str)
    # repr gives the digits of a float that were sent; str of an integer has a limit, which is a ValueError
    texts = pa.array(
        [v if v is None or isinstance(v, str) else str(v) for v in values], pa.string()
    )
    return parse_decimals(texts, arrow)


def _texts(values: Values) -> pa.Array:
    _require(values, str)
    if any("\0" in v for v in values if v is not None):  # type: ignore[operator]  # checked
        raise ValueError
    return pa.array(values, pa.string())  # lone surrogates raise


def _parsed(values: Values, *, parse: Parse) -> pa.Array:
    return parse(_texts(values))


def _timestamps(values: Values, *, arrow: pa.TimestampType) -> pa.Array:
    texts = _texts(values)
    found = read_timestamps(texts, arrow, next((v for v in values if isinstance(v, str)), None))
    # For a few rows the check of an array takes longer than all the rest.
    if any(v.startswith(YEARS_TO_CHECK) for v in values if v is not None):  # type: ignore[attr-defined]  # texts
        check_years(found)
    return found


def _documents(values: Values) -> pa.Array:
    return pa.array([None if v is None else json_text(v) for v in values], pa.string())


def canonical_documents(array: pa.Array) -> pa.Array:
    """Texts that hold JSON documents, in the form that `json_text` gives them.

    Raises:
        ValueError: Some text holds none. RecursionError: It is nested too deeply.
    """
    return pa.array(
        [None if v is None else json_text(parse_json(v)) for v in array.to_pylist()], pa.string()
    )


def _from_documents(texts: pa.Array, *, build: Callable[[Values], pa.Array]) -> pa.Array:
    return build([None if v is None else parse_json(v) for v in texts.to_pylist()])


_JSON: Final = msgspec.json.Decoder(float_hook=json_number)
_CANONICAL: Final = msgspec.json.Encoder(order="deterministic", decimal_format="number")


def parse_json(text: str | bytes | memoryview) -> object:
    """Decode one JSON value; numbers keep their digits (see `json_number`).

    Raises:
        ValueError: It is not JSON in UTF-8. RecursionError: It is nested too deeply.
    """
    return _JSON.decode(text)


def json_text(value: object) -> str:
    """JSON in one canonical form.

    Raises:
        ValueError: It holds what JSON cannot say, or an integer of more than 4,300 digits.
    """
    return _CANONICAL.encode(value).decode()


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
        name=name,
        arrow=arrow,
        expects=expects,
        build=partial(_integers, arrow=arrow),
        parse=partial(parse_integers, arrow=arrow),
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
        parse=partial(parse_timestamps, arrow=arrow),
    )


FLOATS: Final = {"FLOAT": 3.4028234663852886e38, "DOUBLE": sys.float_info.max}
"""The floating types, and the largest number of each."""


def _float(name: str, arrow: pa.DataType) -> ColumnType:
    largest = FLOATS[name]
    return ColumnType(
        name=name,
        arrow=arrow,
        expects=f"a finite number within the range of {name}",
        build=partial(_floats, arrow=arrow, largest=largest),
        parse=partial(parse_floats, arrow=arrow, largest=largest),
    )


def _scalars() -> dict[str, ColumnType]:
    def plain(
        name: str,
        arrow: pa.DataType,
        expects: str,
        parse: Parse,
        build: Callable[[Values], pa.Array] | None = None,
    ) -> ColumnType:
        build = build or partial(_parsed, parse=parse)
        return ColumnType(name=name, arrow=arrow, expects=expects, build=build, parse=parse)

    text = "text in UTF-8 without NUL characters or lone surrogates"
    types = [
        plain("BOOLEAN", pa.bool_(), "true or false", parse_booleans, _booleans),
        *(
            _integer(name, bits, name[0] != "U")
            for stem, bits in (("TINYINT", 8), ("SMALLINT", 16), ("INTEGER", 32), ("BIGINT", 64))
            for name in (stem, f"U{stem}")
        ),
        _float("FLOAT", pa.float32()),
        _float("DOUBLE", pa.float64()),
        plain("VARCHAR", pa.string(), text, parse_texts, _texts),
        plain("BLOB", pa.binary(), "bytes as base64 text", parse_bytes),
        plain("DATE", pa.date32(), 'a date like "2024-01-31", years 0001 to 9999', parse_dates),
        plain(
            "TIME", pa.time64("us"), 'a time of day like "12:00:00.5", without offset', parse_times
        ),
        _timestamp("TIMESTAMP", "us", 6),
        _timestamp("TIMESTAMP_S", "s", 0),
        _timestamp("TIMESTAMP_MS", "ms", 3),
        _timestamp("TIMESTAMP_NS", "ns", 9),
        _timestamp("TIMESTAMP WITH TIME ZONE", "us", 6, "UTC"),
        plain("UUID", pa.string(), "a UUID as text", parse_uuids),
        ColumnType(
            name="JSON",
            arrow=pa.string(),
            expects="any JSON value",
            build=_documents,
            parse=canonical_documents,
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
        parse=partial(parse_decimals, arrow=arrow),
    )


def list_type(inner: ColumnType) -> ColumnType:
    """A list of any length."""
    build = partial(_lists, inner=inner)
    return ColumnType(
        name=f"{inner.name}[]",
        arrow=pa.list_(inner.arrow),
        expects=f"a list of {inner.name}",
        build=build,
        parse=partial(_from_documents, build=build),
        scalar=False,
    )


def struct_type(fields: Sequence[tuple[str, ColumnType]]) -> ColumnType:
    """An object of named fields, in order."""
    # Quoted throughout: `end` or `order` as a field would not parse bare.
    inside = ", ".join(f'"{name}" {inner.name}' for name, inner in fields)
    build = partial(_structs, fields=tuple(fields))
    return ColumnType(
        name=f"STRUCT({inside})",
        arrow=pa.struct([pa.field(name, inner.arrow) for name, inner in fields]),
        expects="an object of " + ", ".join(f"{name} {inner.name}" for name, inner in fields),
        build=build,
        parse=partial(_from_documents, build=build),
        scalar=False,
    )


def map_type(inner: ColumnType) -> ColumnType:
    """An object of any text keys."""
    build = partial(_maps, inner=inner)
    return ColumnType(
        name=f"MAP(VARCHAR, {inner.name})",
        arrow=pa.map_(pa.string(), inner.arrow),
        expects=f"an object with {inner.name} values",
        build=build,
        parse=partial(_from_documents, build=build),
        scalar=False,
    )
