"""Tables as users declare them: parse, check, and say as JSON and Arrow. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.columns import BAD_VALUE, ColumnType
from duckmesh_runtime.domain.typenames import IDENTIFIER, BadType, parse_type
from duckmesh_runtime.errors import Invalid

Default = str | int | float | bool | None

TABLE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
MOST_COLUMNS: Final = 1000
"""A guess: wide enough for event tables, and keeps one row's checks and one file's footer small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDef:
    """One column.

    Attributes:
        name: `[A-Za-z_][A-Za-z0-9_]{0,62}`, unique in the table without regard to case.
        type: DuckDB type name in canonical form (`BIGINT`, `DECIMAL(18,3)`, `TIMESTAMP WITH TIME ZONE`).
        nullable: Whether NULL is a value.
        default: SQL-free default, a JSON scalar; None means NULL.
    """

    name: str
    type: str
    nullable: bool = True
    default: Default = None

    @property
    def kind(self) -> ColumnType:
        """What the type is and takes."""
        return parse_type(self.type)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDef:
    """One table.

    Attributes:
        name: `[a-z][a-z0-9_]{0,62}`.
        columns: At least one, in the table's order.
        primary_key: Column names; empty for a table that takes inserts only.
        partition_by: Column names of the Parquet layout.
        sort_by: Column names that maintenance sorts by.
        version: Schema version that created the table, 0 before; tells a table from an earlier one of its name.
    """

    name: str
    columns: Sequence[ColumnDef]
    primary_key: Sequence[str] = ()
    partition_by: Sequence[str] = ()
    sort_by: Sequence[str] = ()
    version: int = field(default=0, compare=False)


def parse_table(raw: object) -> TableDef:
    """Read a table from decoded JSON.

    Raises:
        Invalid: VALIDATION_FAILED naming the field, the problem and what to do.
    """
    body = parse_object(raw, "table", {"name", "columns", "primary_key", "partition_by", "sort_by"})
    name = parse_table_name(body.get("name"))
    keys = parse_names(body.get("primary_key"), "primary_key")
    table = TableDef(
        name=name,
        columns=_columns(body.get("columns"), keys),
        primary_key=keys,
        partition_by=parse_names(body.get("partition_by"), "partition_by"),
        sort_by=parse_names(body.get("sort_by"), "sort_by"),
    )
    for where in ("primary_key", "partition_by", "sort_by"):
        check_names(table, getattr(table, where), where)
    return table


def parse_table_name(raw: object) -> str:
    """Check a table's name.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if not isinstance(raw, str) or not TABLE_NAME.fullmatch(raw):
        raise invalid("name", "want a small letter, then at most 62 small letters, digits or _")
    return raw


def parse_column(raw: object, where: str, keys: Sequence[str] = ()) -> ColumnDef:
    """Read one column; those named in `keys` cannot be NULL.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    body = parse_object(raw, where, {"name", "type", "nullable", "default"})
    name = parse_column_name(body.get("name"), f"{where}.name")
    kind = parse_column_type(body.get("type"), f"{where}.type")
    nullable = body.get("nullable")
    nullable = name not in keys if nullable is None else nullable
    if not isinstance(nullable, bool):
        raise invalid(f"{where}.nullable", "want true or false")
    if nullable and name in keys:
        raise invalid(f"{where}.nullable", f"{name} is in primary_key and cannot be NULL")
    default = parse_default(body.get("default"), f"{where}.default", kind)
    return ColumnDef(name=name, type=kind.name, nullable=nullable, default=default)


def parse_column_name(raw: object, where: str) -> str:
    """Check a column's name.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if not isinstance(raw, str) or not IDENTIFIER.fullmatch(raw):
        raise invalid(where, "want a letter or _, then at most 62 letters, digits or _")
    return raw


def parse_column_type(raw: object, where: str) -> ColumnType:
    """Read a column's type.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if not isinstance(raw, str):
        raise invalid(where, "want a DuckDB type name, for example BIGINT")
    try:
        return parse_type(raw)
    except BadType as error:
        raise invalid(where, str(error)) from None


def parse_default(raw: object, where: str, kind: ColumnType) -> Default:
    """Check a column's default.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if raw is None:
        return None
    if not kind.scalar or not isinstance(raw, str | int | float | bool):
        raise invalid(where, f"{kind.name} takes no default but null")
    try:
        kind.build([raw])
    except BAD_VALUE:
        raise invalid(where, f"want {kind.expects}") from None
    return raw


def parse_names(raw: object, where: str) -> tuple[str, ...]:
    """Read a list of column names; None is the empty one.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise invalid(where, "want a list of column names")
    if len(set(raw)) < len(raw):
        raise invalid(where, "names a column twice")
    return tuple(raw)


def check_names(table: TableDef, names: Sequence[str], where: str) -> None:
    """Check that these are columns of the table that a key or a layout can be of.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    kinds = {column.name: column.kind for column in table.columns}
    for name in names:
        if name not in kinds:
            raise invalid(where, f"{name[:64]!r} is no column of the table")
        if not kinds[name].scalar:
            raise invalid(where, f"{name} is {kinds[name].name[:64]}: want a plain type")


def parse_object(raw: object, where: str, known: Set[str]) -> Mapping[str, object]:
    """Check that a decoded JSON value is an object of known fields.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    if not isinstance(raw, dict):
        raise invalid(where, "want an object")
    if unknown := sorted(str(name) for name in raw.keys() - known):
        raise invalid(
            f"{where}.{unknown[0][:64]}", f"unknown field; known: {', '.join(sorted(known))}"
        )
    return raw


def invalid(where: str, problem: str) -> Invalid:
    """What a caller gets for a field that is wrong."""
    return Invalid("VALIDATION_FAILED", f"{where}: {problem}", context={"field": where})


def column_json(column: ColumnDef) -> dict[str, object]:
    """The column as JSON; `parse_column` reads it back."""
    return {
        "name": column.name,
        "type": column.type,
        "nullable": column.nullable,
        "default": column.default,
    }


def table_json(table: TableDef) -> dict[str, object]:
    """The table as JSON; `parse_table` reads it back."""
    return {
        "name": table.name,
        "columns": [column_json(column) for column in table.columns],
        "primary_key": list(table.primary_key),
        "partition_by": list(table.partition_by),
        "sort_by": list(table.sort_by),
    }


@lru_cache(maxsize=1024)
def arrow_schema(table: TableDef) -> pa.Schema:
    """Arrow schema of the table's rows on the bus, columns in the table's order."""
    return pa.schema([pa.field(c.name, c.kind.arrow, nullable=c.nullable) for c in table.columns])


def _columns(raw: object, keys: Sequence[str]) -> tuple[ColumnDef, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= MOST_COLUMNS:
        raise invalid("columns", f"want a list of 1 to {MOST_COLUMNS} columns")
    columns = tuple(parse_column(item, f"columns[{i}]", keys) for i, item in enumerate(raw))
    seen: dict[str, str] = {}
    for column in columns:
        other = seen.setdefault(column.name.lower(), column.name)
        if other is not column.name:
            raise invalid("columns", f"{column.name!r} is there twice (case does not count)")
    return columns
