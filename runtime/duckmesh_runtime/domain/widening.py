"""Which column types can become which, with every value and every file kept right. Pure.

DuckLake itself takes more than this. Left out is what it takes and then answers wrongly, measured with DuckDB 1.5.5:
FLOAT to DOUBLE (statistics hold short decimal texts, so filters skip files they must read), anything to JSON or TIMESTAMP_NS
(unchecked values raise at each read), time zones (their meaning would be the reader's), and what loses digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

_SIGNED: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")
_UNSIGNED: Final = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_DIGITS: Final[Mapping[str, int]] = {
    "TINYINT": 3, "UTINYINT": 3, "SMALLINT": 5, "USMALLINT": 5,
    "INTEGER": 10, "UINTEGER": 10, "BIGINT": 19, "UBIGINT": 20,
}  # fmt: skip
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),(\d+)\)")


def _wider() -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {
        "DATE": ("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP"),
        "TIMESTAMP_S": ("TIMESTAMP_MS", "TIMESTAMP"),
        "TIMESTAMP_MS": ("TIMESTAMP",),
    }
    floats = (("FLOAT", "DOUBLE"), ("FLOAT", "DOUBLE"), ("DOUBLE",), ())
    for i, exact in enumerate(floats):
        found[_SIGNED[i]] = (*_SIGNED[i + 1 :], *exact)
        found[_UNSIGNED[i]] = (*_UNSIGNED[i + 1 :], *_SIGNED[i + 1 :], *exact)
    return found


WIDER: Final[Mapping[str, Sequence[str]]] = _wider()
"""Per type the wider ones without parameters."""


def is_wider(old: str, new: str) -> bool:
    """Whether a column of type `old` can become `new`; both are canonical names."""
    if old == new:
        return False
    return new in WIDER.get(old, ()) or _is_wider_decimal(old, new) or _is_wider_inside(old, new)


def wider_than(old: str) -> str:
    """What a column of this type can become, for messages; empty when it stays as it is."""
    found = list(WIDER.get(old, ()))
    if old in _DIGITS:
        found.append(f"DECIMAL(p,s) with {_DIGITS[old]} digits before the point")
    elif match := _DECIMAL.fullmatch(old):
        precision, scale = map(int, match.groups())
        if precision < 38:
            found.append(
                f"DECIMAL(p,s) with at least {precision - scale} digits before and {scale} behind the point"
            )
    elif _inside(old) is not None:
        found.append("the same with wider types inside, a STRUCT also with further fields")
    return ", ".join(found)


def _is_wider_decimal(old: str, new: str) -> bool:
    wanted, present = _DECIMAL.fullmatch(new), _DECIMAL.fullmatch(old)
    if wanted is None:
        return False
    precision, scale = map(int, wanted.groups())
    if present is None:
        return old in _DIGITS and precision - scale >= _DIGITS[old]
    digits, behind = map(int, present.groups())
    return scale >= behind and precision - scale >= digits - behind


def _is_wider_inside(old: str, new: str) -> bool:
    """Whether both are of the same make and the new one begins with the old one's parts, each the same or wider."""
    one, other = _inside(old), _inside(new)
    if one is None or other is None or one[0] != other[0] or len(one[1]) > len(other[1]):
        return False
    return all(
        name == new_name and (part == new_part or is_wider(part, new_part))
        for (name, part), (new_name, new_part) in zip(one[1], other[1], strict=False)
    )


def _inside(name: str) -> tuple[str, Sequence[tuple[str, str]]] | None:
    """What a nested type is made of: its make, and its parts as name and type."""
    if name.endswith("[]"):
        return "list", [("", name[:-2])]
    if name.startswith("MAP("):
        return "map", [("", name.removeprefix("MAP(VARCHAR, ")[:-1])]
    if name.startswith("STRUCT("):
        fields = (field.partition(" ") for field in _split(name[len("STRUCT(") : -1]))
        return "struct", [(field, part) for field, _, part in fields]
    return None


def _split(text: str) -> Sequence[str]:
    """The fields of a STRUCT; commas inside of a type do not part them, and names hold none."""
    found: list[str] = []
    depth = start = 0
    for i, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            found.append(text[start:i])
            start = i + 2  # a space follows
    return [*found, text[start:]]
