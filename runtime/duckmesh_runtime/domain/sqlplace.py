"""Where in a statement something is wrong: line, column, and the line itself with a mark. Pure.

DuckDB counts the bytes of its own copy of the text, in which it has made plain spaces of Unicode's blanks.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

_QUOTED_COLUMNS: Final = 80
"""Of a longer line, a part around the mark is quoted."""

_DOTS: Final = "..."
_WIDE: Final = ("W", "F")
_BLANK: Final = re.compile(
    r"""
      (?P<kept> '[^']*' | "[^"]*" | --[^\n]*
      | \$ (?P<tag> [A-Za-z_\x80-\U0010ffff]* [0-9A-Za-z_\x80-\U0010ffff]* ) \$ .*? \$ (?P=tag) \$ )
    | [\u00a0\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a statement.

    Attributes:
        line: From 1.
        column: From 1, in characters (code points).
        quote: Two lines of text: that line, or a part of it, and a mark below the place.
    """

    line: int
    column: int
    quote: str


def place_of(sql: str, offset: int) -> Place | None:
    """The place that DuckDB names by an offset.

    Args:
        sql: The statement as it was sent.
        offset: In bytes of UTF-8, in the text as DuckDB reads it.

    Returns:
        None when the offset is not one of this text.
    """
    read = as_read(sql).encode("utf-8", "surrogatepass")
    if not 0 <= offset <= len(read):
        return None
    before = sql[: len(read[:offset].decode("utf-8", "ignore"))]
    start = before.rfind("\n") + 1
    line = sql[start:].partition("\n")[0]
    column = len(before) - start
    number = before.count("\n") + 1
    return Place(line=number, column=column + 1, quote=_quote(f"LINE {number}: ", line, column))


def as_read(sql: str) -> str:
    """The text as DuckDB's parser reads it: as many characters, but blanks outside of quotes and comments are spaces."""
    return _BLANK.sub(lambda found: found["kept"] or " ", sql)


def _quote(label: str, line: str, column: int) -> str:
    first = max(0, min(column - _QUOTED_COLUMNS // 2, len(line) - _QUOTED_COLUMNS))
    last = first + _QUOTED_COLUMNS
    before = _plain(line[first:column])
    head = label + (_DOTS if first else "") + before
    tail = _plain(line[column:last]) + (_DOTS if len(line) > last else "")
    return f"{head}{tail}\n{' ' * _width(head)}^"


def _plain(text: str) -> str:
    """A tab, a control or a mark of direction would move what follows it."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in _WIDE else 1
        for c in text
    )
