"""What is told of a snapshot: its tables, its Parquet files, and how other engines read them right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from duckmesh_runtime.domain.lakesql import quote_name

_TYPES: Final = {
    "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "int128": "HUGEINT",
    "uint8": "UTINYINT", "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT", "uint128": "UHUGEINT",
    "float32": "FLOAT", "float64": "DOUBLE",
    "timetz": "TIME WITH TIME ZONE", "timestamptz": "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip
"""DuckLake's names of types (https://ducklake.select/docs/stable/specification/data_types) where DuckDB has others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Why expiry leaves a snapshot alone.

    Attributes:
        name: A person's, or empty; with a colon, of the product itself.
        pinned_at: Since when.
        expires_at: Until when; None until it is taken off.
    """

    name: str
    pinned_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot that is kept.

    Attributes:
        snapshot_id: Its number.
        snapshot_time: Database time of its commit.
        token: The watermark: every number up to here is in it. 0, the empty lake's, when no commit that is kept tells.
        schema_version: Snapshots of one version have the same tables.
        schema_changed: Whether the tables differ from those of the snapshot kept before it.
        pins: Those that hold it now.
    """

    snapshot_id: int
    snapshot_time: datetime
    token: int
    schema_version: int
    schema_changed: bool
    pins: Sequence[Pin] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSize:
    """A table in a snapshot, by its files.

    Attributes:
        name: Its name there.
        files: Data files.
        size_bytes: Of them.
        delete_files: Files that name deleted rows.
    """

    name: str
    files: int
    size_bytes: int
    delete_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotColumn:
    """A column, or a field inside one.

    Attributes:
        field_id: What the Parquet files call it; the name may be another there.
        name: Its name in the snapshot; `element`, `key` and `value` inside lists and maps.
        type: DuckDB type name; a file may hold a narrower one.
        nullable: Whether it may be NULL.
        initial_default: Its value where a file lacks it, as text that DuckDB casts to the type; None for NULL.
        fields: What a STRUCT, a list or a MAP is made of.
    """

    field_id: int
    name: str
    type: str
    nullable: bool
    initial_default: str | None
    fields: Sequence[SnapshotColumn] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTable:
    """A table as it is in a snapshot."""

    name: str
    columns: Sequence[SnapshotColumn]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFile:
    """A Parquet file whose column `pos` has the places of a data file's deleted rows, from 0.

    Attributes:
        path: Relative to the lake's data, or absolute.
        size_bytes: Of the file.
        row_count: How many rows it names.
        upto_snapshot_id: Set when it names rows that were deleted later, too: only those count whose
            `_ducklake_internal_snapshot_id` is not above this.
    """

    path: str
    size_bytes: int
    row_count: int
    upto_snapshot_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionValue:
    """What all rows of a file have in common: in `transform` of a column, as text; None for NULL."""

    field_id: int
    transform: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStatistics:
    """Of one column over all rows of a file, those that do not count included; a bound that is not known is None."""

    field_id: int
    size_bytes: int | None
    value_count: int | None
    null_count: int | None
    min: str | None
    max: str | None
    contains_nan: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldName:
    """What a file without field ids calls a column.

    Attributes:
        field_id: Of the column, or of a field inside one.
        name: In the file.
        fields: Likewise of what it is made of.
    """

    field_id: int
    name: str
    fields: Sequence[FieldName] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A Parquet file with rows of a snapshot.

    Attributes:
        file_id: Its number; a file that replaces others has a higher one.
        table: Whose rows.
        path: Relative to the lake's data, or absolute.
        size_bytes: Of the file.
        row_count: All its rows.
        upto_snapshot_id: Set when it holds newer rows, too: only those count whose `_ducklake_internal_snapshot_id` is not
            above this.
        delete_files: What is deleted of it.
        partition: In the order of the partition's columns; empty without.
        statistics: By column.
        names: Set for a file without field ids.
    """

    file_id: int
    table: str
    path: str
    size_bytes: int
    row_count: int
    upto_snapshot_id: int | None
    delete_files: Sequence[DeleteFile] = ()
    partition: Sequence[PartitionValue] = ()
    statistics: Sequence[ColumnStatistics] = ()
    names: Sequence[FieldName] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRow:
    """A row of DuckLake's column table; `parent` is the `field_id` of what it is inside of."""

    field_id: int
    parent: int | None
    name: str
    type: str
    nullable: bool
    initial_default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRow:
    """A row of DuckLake's name mapping; `parent` is the `key` of what it is inside of."""

    key: int
    parent: int | None
    field_id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFiles:
    """Some files of a snapshot.

    Attributes:
        snapshot: The snapshot.
        tables: All of it, or the one that is asked for.
        files: By `file_id`.
        more: Whether there are others behind them.
        before: How many there are up to the number after which these begin.
    """

    snapshot: SnapshotInfo
    tables: Sequence[SnapshotTable]
    files: Sequence[DataFile]
    more: bool
    before: int = field(default=0)


def column_tree(rows: Iterable[ColumnRow]) -> Sequence[SnapshotColumn]:
    """The columns of a table from their rows, in their order."""
    inside: dict[int | None, list[ColumnRow]] = {}
    for row in rows:
        inside.setdefault(row.parent, []).append(row)
    return _columns(inside, None)


def _columns(
    inside: Mapping[int | None, Sequence[ColumnRow]], parent: int | None
) -> Sequence[SnapshotColumn]:
    found = []
    for row in inside.get(parent, ()):
        fields = _columns(inside, row.field_id)
        found.append(
            SnapshotColumn(
                field_id=row.field_id,
                name=row.name,
                type=_type_name(row.type, fields),
                nullable=row.nullable,
                initial_default=row.initial_default,
                fields=fields,
            )
        )
    return found


def _type_name(type_name: str, fields: Sequence[SnapshotColumn]) -> str:
    match type_name:
        case "struct":
            return f"STRUCT({', '.join(f'{quote_name(f.name)} {f.type}' for f in fields)})"
        case "list":
            return f"{fields[0].type}[]"
        case "map":
            return f"MAP({fields[0].type}, {fields[1].type})"
    return _TYPES.get(type_name, type_name.upper())


def name_tree(rows: Iterable[NameRow]) -> Sequence[FieldName]:
    """The names of a file's columns from their rows, in their order."""
    inside: dict[int | None, list[NameRow]] = {}
    for row in rows:
        inside.setdefault(row.parent, []).append(row)
    return _names(inside, None)


def _names(
    inside: Mapping[int | None, Sequence[NameRow]], parent: int | None
) -> Sequence[FieldName]:
    return [
        FieldName(field_id=row.field_id, name=row.name, fields=_names(inside, row.key))
        for row in inside.get(parent, ())
    ]
