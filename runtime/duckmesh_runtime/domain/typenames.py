"""DuckDB type names as users write them: parse, check, make canonical. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from duckmesh_runtime.domain import columns
from duckmesh_runtime.domain.columns import SCALARS, ColumnType

IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
"""Names of columns and of fields inside them."""

_DEEPEST: Final = 8
_LONGEST: Final = 4096


class BadType(ValueError):
    """The type name cannot be used; the text says why."""


_ALIASES: Final = {
    "BOOL": "BOOLEAN", "LOGICAL": "BOOLEAN", "INT1": "TINYINT", "INT2": "SMALLINT", "SHORT": "SMALLINT",
    "INT": "INTEGER", "INT4": "INTEGER", "SIGNED": "INTEGER", "INT8": "BIGINT", "LONG": "BIGINT",
    "REAL": "FLOAT", "FLOAT4": "FLOAT", "FLOAT8": "DOUBLE", "TEXT": "VARCHAR", "STRING": "VARCHAR",
    "CHAR": "VARCHAR", "BPCHAR": "VARCHAR", "BYTEA": "BLOB", "BINARY": "BLOB", "VARBINARY": "BLOB",
    "DATETIME": "TIMESTAMP", "TIMESTAMP_US": "TIMESTAMP", "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
    "NUMERIC": "DECIMAL", "DEC": "DECIMAL", "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP",
}  # fmt: skip
_INSTEAD: Final = {
    "HUGEINT": "DECIMAL(38,0)",
    "UHUGEINT": "DECIMAL(38,0)",
    "TIME WITH TIME ZONE": "TIMESTAMP WITH TIME ZONE",
    "TIMETZ": "TIMESTAMP WITH TIME ZONE",
    "INTERVAL": "BIGINT (of microseconds, say)",
    "ENUM": "VARCHAR",
    "BIT": "BLOB",
}


@lru_cache(maxsize=4096)
def parse_type(text: str) -> ColumnType:
    """Read a DuckDB type name, aliases included.

    Raises:
        BadType: It is unknown or cannot be kept without loss; the text says what to use.
    """
    if len(text) > _LONGEST:
        raise BadType(f"is longer than {_LONGEST} characters")
    parser = _Parser(text)
    found = parser.type(0)
    parser.end()
    return found


class _Parser:
    """Recursive descent over `NAME`, `NAME(n, ...)`, `STRUCT(field TYPE, ...)`, `MAP(TYPE, TYPE)`, with `[]` behind."""

    _TOKEN = re.compile(r'\s*("(?:[^"]|"")*"|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[(),\[\]]|\S)')

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = self._TOKEN.findall(text)
        self._at = 0

    def type(self, depth: int) -> ColumnType:
        if depth > _DEEPEST:
            raise BadType(f"is nested more than {_DEEPEST} levels deep")
        name = self._name()
        if name == "STRUCT":
            found = self._struct(depth)
        elif name == "MAP":
            found = self._map(depth)
        elif name == "DECIMAL":
            found = _decimal(self._numbers())
        else:
            found = self._scalar(name)
        while self._accept("["):
            if not self._accept("]"):
                raise BadType("is an array of fixed length: use a list, for example BIGINT[]")
            found = columns.list_type(found)
            depth += 1
            if depth > _DEEPEST:
                raise BadType(f"is nested more than {_DEEPEST} levels deep")
        return found

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise BadType(f"has an unexpected {self._tokens[self._at][:40]!r}")

    def _name(self) -> str:
        word = self._next().upper()
        if word in ("TIMESTAMP", "TIME") and self._accept("WITH", "WITHOUT"):
            word += f" {self._tokens[self._at - 1].upper()} TIME ZONE"
            self._expect("TIME")
            self._expect("ZONE")
        return _ALIASES.get(word, word)

    def _scalar(self, name: str) -> ColumnType:
        if name not in SCALARS:
            instead = f": use {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise BadType(f"{name[:40]!r} is not supported{instead}" if instead else _unknown(name))
        if self._accept("("):
            raise BadType(f"{name} takes no parameters")
        return SCALARS[name]

    def _numbers(self) -> list[int]:
        found: list[int] = []
        if self._accept("("):
            while not found or self._accept(","):
                word = self._next()
                if not word.isascii() or not word.isdigit() or len(word) > 3:
                    raise BadType("DECIMAL wants two whole numbers, for example DECIMAL(18,3)")
                found.append(int(word))
            self._expect(")")
        return found

    def _struct(self, depth: int) -> ColumnType:
        self._expect("(")
        fields: list[tuple[str, ColumnType]] = []
        while not fields or self._accept(","):
            name = self._next().strip('"')
            if not IDENTIFIER.fullmatch(name):
                raise BadType(f"field {name[:40]!r}: want a letter, then letters, digits and _")
            if name.lower() in {known.lower() for known, _ in fields}:
                raise BadType(f"field {name}: is there twice")
            fields.append((name, self.type(depth + 1)))
        self._expect(")")
        return columns.struct_type(fields)

    def _map(self, depth: int) -> ColumnType:
        self._expect("(")
        key = self.type(depth + 1)
        if key.name != "VARCHAR":
            raise BadType("MAP keys must be VARCHAR: JSON knows no others")
        self._expect(",")
        inner = self.type(depth + 1)
        self._expect(")")
        return columns.map_type(inner)

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise BadType("ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _accept(self, *words: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at].upper() in words:
            self._at += 1
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            got = self._tokens[self._at][:40] if self._at < len(self._tokens) else "the end"
            raise BadType(f"wants {word!r} where {got!r} stands")


def _unknown(name: str) -> str:
    return f"{name[:40]!r} is no type; known: {', '.join(SCALARS)}, DECIMAL(p,s), T[], STRUCT, MAP"


def _decimal(numbers: Sequence[int]) -> ColumnType:
    precision, scale = {0: (18, 3), 1: (*numbers, 0), 2: tuple(numbers)}.get(len(numbers), (0, 0))
    if not 1 <= precision <= 38 or scale > precision:
        raise BadType("DECIMAL(p,s) wants p from 1 to 38 and s from 0 to p")
    return columns.decimal_type(precision, scale)
