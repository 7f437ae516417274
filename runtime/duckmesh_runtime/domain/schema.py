"""Tables as users declare them: parse, check, and say as JSON, Arrow and DuckDB types. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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
    default: str | int | float | bool | None = None


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
