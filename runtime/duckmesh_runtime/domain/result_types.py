"""DuckDB's names of result types as a tree, since Arrow's types do not tell all of them apart. Pure.

`HUGEINT[]` and `DECIMAL(38,0)[]` are the same Arrow type, and so are `BIT` and `BLOB`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultType:
    """One type.

    Attributes:
        name: Without parameters: `DECIMAL`, `ENUM`; `LIST` and `ARRAY` for `T[]` and `T[3]`; empty when it is not known.
        inner: Types of the elements, of key and value, or of the fields, in order.
    """

    name: str
    inner: tuple[ResultType, ...] = ()

    def parts(self, count: int) -> tuple[ResultType, ...]:
        """The inner types, or as many unknown ones when there are not that many."""
        return self.inner if len(self.inner) == count else (UNKNOWN,) * count

    def names(self) -> frozenset[str]:
        """Names of the type and of all inside it."""
        return frozenset({self.name}).union(*(part.names() for part in self.inner))


UNKNOWN: Final = ResultType(name="")


@lru_cache(maxsize=256)
def parse_result_type(text: str) -> ResultType:
    """Read a type name as DuckDB writes it; `UNKNOWN` when it cannot be read."""
    names = _Names(text)
    try:
        return names.type()
    except IndexError:
        return UNKNOWN


class _Names:
    """Recursive descent over `NAME`, `NAME(...)`, `STRUCT([field] TYPE, ...)`, `MAP(TYPE, TYPE)`, with `[]` behind."""

    _TOKEN = re.compile(r""""(?:[^"]|"")*"|'(?:[^']|'')*'|\w+|\S""")
    _ENDS = frozenset({"(", ")", "[", ","})

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = [*self._TOKEN.findall(text), ""]
        self._at = 0

    def type(self) -> ResultType:
        name = self._name()
        inner: tuple[ResultType, ...] = ()
        if self._take("("):
            inner = self._list() if name in ("STRUCT", "MAP", "UNION") else self._skip()
        found = ResultType(name=name, inner=inner)
        while self._take("["):
            kind = "LIST" if self._take("]") else "ARRAY"
            if kind == "ARRAY":
                self._at += 2  # the length and the bracket
            found = ResultType(name=kind, inner=(found,))
        return found

    def _name(self) -> str:
        words = [self._next()]
        while self._tokens[self._at] in ("WITH", "TIME", "ZONE"):
            words.append(self._next())
        return " ".join(words)

    def _list(self) -> tuple[ResultType, ...]:
        found: list[ResultType] = []
        while not found or self._take(","):
            if self._is_named():
                self._at += 1
            found.append(self.type())
        self._take(")")
        return tuple(found)

    def _is_named(self) -> bool:
        """A field's name stands before a type, and no type begins with WITH."""
        return self._tokens[self._at + 1] not in self._ENDS | {"WITH"}

    def _skip(self) -> tuple[ResultType, ...]:
        """Parameters, which are no types: of DECIMAL and ENUM."""
        depth = 1
        while depth:
            depth += {"(": 1, ")": -1}.get(self._next(), 0)
        return ()

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, token: str) -> bool:
        found = self._tokens[self._at] == token
        self._at += found
        return found
