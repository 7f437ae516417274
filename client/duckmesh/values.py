"""JSON values of an answer as Python values, by their types; what pyarrow makes of the Arrow answer, without pyarrow."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final

Read = Callable[[Any], Any]

_SCALARS: Final[Mapping[str, Read]] = {
    **dict.fromkeys(("BIGINT", "UBIGINT"), int),
    **dict.fromkeys(("HUGEINT", "UHUGEINT", "DECIMAL"), Decimal),
    **dict.fromkeys(("FLOAT", "DOUBLE"), float),
    "BLOB": base64.b64decode,
}
_TOKEN: Final = re.compile(r'\s*("(?:[^"]|"")*"|\'(?:[^\']|\'\')*\'|[A-Za-z0-9_ ]*[A-Za-z0-9_]|.)')


def python_rows(
    columns: Sequence[Mapping[str, str]], rows: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """A dict a row.

    Args:
        columns: `name` and `type` of each, in order; types by their DuckDB names.
        rows: JSON values in the order of the columns.
    """
    names = [column["name"] for column in columns]
    reads = [reader(column["type"]) for column in columns]
    return [
        {
            name: None if value is None else read(value)
            for name, read, value in zip(names, reads, row, strict=True)
        }
        for row in rows
    ]


def reader(type_name: str) -> Read:
    """What makes a Python value of a JSON value that is not null. Types that it does not know stay as they are."""
    found, rest = _type(list(_tokens(type_name)))
    return _same if rest else found


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        yield match[1].strip()


def _type(tokens: list[str]) -> tuple[Read, list[str]]:
    """The first type of the tokens, and what comes behind it."""
    if not tokens:
        return _same, []
    name, rest = tokens[0].upper(), tokens[1:]
    inside: list[str] = []
    if rest[:1] == ["("]:
        inside, rest = _parenthesised(rest)
    read = _named(name, inside)
    while rest[:1] == ["["]:
        read = _list_of(read)
        rest = rest[rest.index("]") + 1 :]
    return read, rest


def _parenthesised(tokens: list[str]) -> tuple[list[str], list[str]]:
    depth = 0
    for place, part in enumerate(tokens):
        depth += (part == "(") - (part == ")")
        if not depth:
            return tokens[1:place], tokens[place + 1 :]
    return tokens[1:], []


def _named(name: str, inside: list[str]) -> Read:
    if name == "STRUCT":
        return _struct_of([(_unquoted(p[0]), _field(p)) for p in _parts(inside) if p])
    if name == "MAP":
        key, value = [_type(part)[0] for part in _parts(inside)]
        return _map_of(key, value)
    if name == "DATE":
        return _or_text(date.fromisoformat)
    if name.startswith("TIMESTAMP"):
        zoned = name == "TIMESTAMP WITH TIME ZONE"
        return _or_text(_moment if zoned else lambda text: _moment(text).replace(tzinfo=None))
    if name in ("TIME", "TIME_NS"):
        return _or_text(_time)
    return _SCALARS.get(name, _same)


def _field(part: list[str]) -> Read:
    """The type behind a field's name, which is one token with it when the name is not quoted."""
    if part[0].startswith('"'):
        return _type(part[1:])[0]
    return _type([part[0].partition(" ")[2].strip(), *part[1:]])[0]


def _unquoted(name: str) -> str:
    if name.startswith('"'):
        return name[1:-1].replace('""', '"')
    return name.partition(" ")[0]


def _parts(tokens: list[str]) -> list[list[str]]:
    """What stands between commas."""
    found: list[list[str]] = [[]]
    depth = 0
    for part in tokens:
        depth += (part in ("(", "[")) - (part in (")", "]"))
        if part == "," and not depth:
            found.append([])
        else:
            found[-1].append(part)
    return found


def _list_of(read: Read) -> Read:
    return lambda values: [None if v is None else read(v) for v in values]


def _struct_of(fields: Sequence[tuple[str, Read]]) -> Read:
    reads = dict(fields)

    def read(value: Any) -> Any:
        if not isinstance(value, dict):  # without field names: a list
            return value
        return {k: None if v is None else reads.get(k, _same)(v) for k, v in value.items()}

    return read


def _map_of(key: Read, item: Read) -> Read:
    def read(value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else value
        return {key(k): None if v is None else item(v) for k, v in pairs}

    return read


def _or_text(read: Read) -> Read:
    """What has no Python value (`infinity`, 24:00:00, nanoseconds) stays a text."""

    def tried(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            return text

    return tried


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(_whole_microseconds(text))


def _time(text: str) -> time:
    return time.fromisoformat(_whole_microseconds(text))


def _whole_microseconds(text: str) -> str:
    if re.search(r"\.\d{6}\d*[1-9]", text):  # Python would cut them without a word
        raise ValueError
    return text


def _same(value: Any) -> Any:
    return value
