"""Texts to values: arrays of what people and JSON write to arrays of a column's type, whole columns at a time. Pure.

`columns` uses them for the strings of JSON, CSV for its cells. Each raises one of `columns.BAD_VALUE` when any text does
not say a value that fits; NULL stays NULL.
"""

from __future__ import annotations

import base64
import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc


def parse_booleans(texts: pa.Array) -> pa.Array:
    """`true` and `false`, in any case."""
    at = pc.index_in(pc.utf8_lower(texts), pa.array(["false", "true"]))
    if at.null_count != texts.null_count:
        raise ValueError
    return pc.cast(at, pa.bool_())


def parse_integers(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    """Whole numbers of at most 20 digits."""
    _require_match(texts, r"^-?[0-9]{1,20}$")  # the cast alone would take +1 and 0x1
    return pc.cast(texts, arrow)


def parse_floats(texts: pa.Array, arrow: pa.DataType, largest: float) -> pa.Array:
    """Finite numbers, with exponent or without."""
    _require_match(texts, r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?$")
    found = pc.cast(texts, pa.float64())
    check_finite(found, largest)
    return pc.cast(found, arrow)


def check_finite(array: pa.Array, largest: float) -> None:
    """Refuse NaN, infinities and what is beyond the largest number."""
    if not pc.all(pc.less_equal(pc.abs(array), largest), min_count=0).as_py():
        raise OverflowError


def parse_decimals(texts: pa.Array, arrow: pa.Decimal128Type) -> pa.Array:
    """Numbers that fit without rounding."""
    # pyarrow 26 crashes the process on exponents such as 1E-999999999, and wraps what 128 bits cannot hold: only plain
    # digits are left to it, with room for all of them.
    if _all_match(texts, r"^[+-]?[0-9]{0,38}(\.[0-9]{0,38})?$"):
        return pc.cast(pc.cast(texts, pa.decimal256(76, 38)), arrow)
    return exact_decimals([None if v is None else _decimal(v) for v in texts.to_pylist()], arrow)


def _decimal(text: str) -> Decimal:
    if len(text) > 100 or not _DECIMAL.fullmatch(text):
        raise ValueError
    return Decimal(text)


_DECIMAL: Final = re.compile(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,6})?")


def exact_decimals(values: list[Decimal | None], arrow: pa.Decimal128Type) -> pa.Array:
    """Decimals of any scale, if they fit without rounding."""
    exact = Context(prec=arrow.precision, traps=[Inexact, InvalidOperation])
    step = Decimal(1).scaleb(-arrow.scale)
    return pa.array([None if v is None else v.quantize(step, context=exact) for v in values], arrow)


def check_text(array: pa.Array) -> None:
    """Refuse NUL in text: catalogs keep smallest and largest values as Postgres text, which cannot hold it."""
    if _has_zero_byte(array) and pc.any(pc.match_substring(array, "\0"), min_count=0).as_py():
        raise ValueError


def _has_zero_byte(texts: pa.StringArray) -> bool:
    """Whether there can be a NUL at all: the bytes of all texts at a go, 25 times as fast as text by text.

    The bytes of a NULL count too, and they may be anything.
    """
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return False
    places = pa.Array.from_buffers(pa.int32(), len(texts) + 1, [None, offsets], offset=texts.offset)
    first, end = places[0].as_py(), places[-1].as_py()
    content = pa.Array.from_buffers(pa.uint8(), end - first, [None, data], offset=first)
    return bool(pc.min(content).as_py() == 0)


def parse_texts(texts: pa.Array) -> pa.Array:
    """Any text without NUL."""
    check_text(texts)
    return texts


def parse_bytes(texts: pa.Array) -> pa.Array:
    """Base64."""
    return pa.array(
        [None if v is None else base64.b64decode(v, validate=True) for v in texts.to_pylist()],
        pa.binary(),
    )


def parse_dates(texts: pa.Array) -> pa.Array:
    """`2024-01-31`."""
    found = pc.cast(texts, pa.date32())
    check_years(found)
    return found


def parse_times(texts: pa.Array) -> pa.Array:
    """`12:00:00.5`, without offset."""
    moments = pc.binary_join_element_wise("1970-01-01T", texts, "")
    return pc.cast(pc.cast(moments, pa.timestamp("us")), pa.time64("us"))


def parse_timestamps(texts: pa.Array, arrow: pa.TimestampType) -> pa.Array:
    """`2024-01-31T12:00:00.5+01:00`; without offset it is UTC."""
    found = read_timestamps(texts, arrow, first=pc.first(texts).as_py())
    check_years(found)
    return found


def read_timestamps(texts: pa.Array, arrow: pa.TimestampType, first: str | None) -> pa.Array:
    """The same with years not checked; `first` is a text of them, of which kind most of them are."""
    utc = pa.timestamp(arrow.unit, "UTC")
    zoned = first is not None and _ZONE_AT_END.search(first) is not None
    try:
        found = pc.cast(texts, utc if zoned else pa.timestamp(arrow.unit))
    except pa.ArrowInvalid:
        found = pc.cast(_with_zone(texts), utc)
    return found if found.type == arrow else pc.cast(found, arrow)


_ZONE: Final = r"[T ][^ ]*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"

_ZONE_AT_END: Final = re.compile(_ZONE)


def _with_zone(texts: pa.Array) -> pa.Array:
    is_date = pc.equal(pc.binary_length(texts), len("2024-01-31"))
    missing = pc.if_else(is_date, "T00Z", "Z")
    zone = pc.if_else(pc.match_substring_regex(texts, _ZONE), "", missing)
    return pc.binary_join_element_wise(texts, zone, "")


_FIRST_YEAR_S: Final = -62_135_596_800  # 0001-01-01, in seconds since 1970
_AFTER_YEARS_S: Final = 253_402_300_800  # 10000-01-01
_FIRST_NS: Final = -(2**63) + 2
_AFTER_NS: Final = 2**63 - 1
_PER_SECOND: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


YEARS_TO_CHECK: Final = ("0000", "0001-01-01", "9999-12-31", "1677-09-2", "2262-04-1")
"""How texts begin that `check_years` may refuse, be it by their offset."""


def check_years(array: pa.Array) -> None:
    """Refuse dates and timestamps outside the years 1 to 9999, which many readers cannot show.

    64 bits of nanoseconds are the years 1677 to 2262; the engine takes the first and the last of them for infinity.
    """
    if pa.types.is_date32(array.type):
        numbers, low, after = (
            array.view(pa.int32()),
            _FIRST_YEAR_S // 86400,
            _AFTER_YEARS_S // 86400,
        )
    else:
        scale = _PER_SECOND[array.type.unit]
        numbers = array.view(pa.int64())
        low = max(_FIRST_YEAR_S * scale, _FIRST_NS)
        after = min(_AFTER_YEARS_S * scale, _AFTER_NS)
    ends = pc.min_max(numbers)
    if ends["min"].is_valid and not low <= ends["min"].as_py() <= ends["max"].as_py() < after:
        raise OverflowError


_UUID: Final = "^([0-9a-fA-F]{8})-?" + "([0-9a-fA-F]{4})-?" * 3 + "([0-9a-fA-F]{12})$"


def parse_uuids(texts: pa.Array) -> pa.Array:
    """UUIDs, which come out in small letters with hyphens."""
    _require_match(texts, _UUID)
    lower = pc.utf8_lower(texts)
    if pc.min(pc.binary_length(lower)).as_py() in (36, None):
        return lower
    return pc.replace_substring_regex(lower, _UUID, r"\1-\2-\3-\4-\5")


def _require_match(texts: pa.Array, pattern: str) -> None:
    if not _all_match(texts, pattern):
        raise ValueError


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py())
