"""The tables that a Tenant declares, as the operator writes them: `{"tables": [...]}` of `schema.parse_table`'s form. Pure.

Defaults are texts there, since a custom resource knows one type for them; they become what the column's type takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import msgspec

from duckmesh_runtime.domain.schema import TABLE_NAME, TableDef, parse_object, parse_table
from duckmesh_runtime.domain.typenames import BadType, parse_type
from duckmesh_runtime.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is declared.

    Attributes:
        digest: Of the text; says in reports which declaration is meant.
        names: Of all tables, those with problems included.
        tables: Those that can be read.
        problems: Why others cannot, for the Tenant's owner.
    """

    digest: str = ""
    names: frozenset[str] = frozenset()
    tables: Sequence[TableDef] = ()
    problems: Sequence[str] = field(default=())


def parse_declaration(text: bytes) -> Declaration:
    """Read a declaration; what is wrong with a table does not hurt the others."""
    digest = sha256(text).hexdigest()
    try:
        raw = parse_object(msgspec.json.decode(text), "file", {"tables"}).get("tables", [])
        if not isinstance(raw, list):
            raise msgspec.DecodeError
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Invalid):
        return Declaration(digest=digest, problems=["the declared tables cannot be read"])
    tables: list[TableDef] = []
    problems: list[str] = []
    for i, item in enumerate(raw):
        try:
            tables.append(parse_table(_with_defaults(item)))
        except Invalid as error:
            problems.append(f"table {_name(item) or f'number {i + 1}'}: {error.message}")
    names = frozenset(name for item in raw if (name := _name(item)))
    return Declaration(digest=digest, names=names, tables=tables, problems=problems)


def _name(raw: object) -> str:
    name = raw.get("name") if isinstance(raw, dict) else None
    return name if isinstance(name, str) and TABLE_NAME.fullmatch(name) else ""


def _with_defaults(raw: object) -> object:
    columns = raw.get("columns") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(columns, list):
        return raw
    return {**raw, "columns": [_with_default(column) for column in columns]}


def _with_default(raw: object) -> object:
    """The column with a default of its type; what cannot be made one is left for `parse_table` to refuse."""
    if not isinstance(raw, dict) or not isinstance(raw.get("default"), str):
        return raw
    try:
        convert = _FROM_TEXT.get(parse_type(str(raw.get("type"))).name)
        return {**raw, "default": convert(raw["default"])} if convert else raw
    except (BadType, LookupError, ValueError):
        return raw


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_FROM_TEXT: Final[Mapping[str, Callable[[str], object]]] = {
    "BOOLEAN": _boolean,
    "FLOAT": float,
    "DOUBLE": float,
}
