"""Changes of a table: what each is, which are possible, and what the table is afterwards. Pure.

A list of changes is applied in order and whole: each one finds the table as those before it leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from duckmesh_runtime.domain.schema import (
    MOST_COLUMNS,
    ColumnDef,
    Default,
    TableDef,
    check_names,
    column_json,
    invalid,
    parse_column,
    parse_column_name,
    parse_column_type,
    parse_default,
    parse_names,
    parse_object,
    parse_table,
    table_json,
)
from duckmesh_runtime.domain.widening import is_wider, wider_than
from duckmesh_runtime.errors import Conflict

MOST_CHANGES: Final = 100
"""Changes of one request: each takes statements inside one commit, while rows wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddColumn:
    """A new last column; rows that are there get its default."""

    column: ColumnDef


@dataclass(frozen=True, slots=True, kw_only=True)
class DropColumn:
    """A column goes; snapshots before keep it."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameColumn:
    """A column gets another name."""

    name: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WidenType:
    """A column takes a type that holds every value of its present one; `type` is canonical."""

    name: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDefault:
    """Rows accepted from now on get this value where they name none."""

    name: str
    default: Default


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionBy:
    """Files written from now on are laid out by these columns; none ends it."""

    columns: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SortBy:
    """Maintenance sorts by these columns from now on."""

    columns: Sequence[str]


Change = AddColumn | DropColumn | RenameColumn | WidenType | SetDefault | PartitionBy | SortBy


def parse_changes(raw: object) -> tuple[Change, ...]:
    """Read `{"changes": [...]}` from decoded JSON, one to `MOST_CHANGES` of them.

    Raises:
        Invalid: VALIDATION_FAILED naming the field, the problem and what to do.
    """
    body = parse_object(raw, "body", {"changes"})
    return _parse_list(body.get("changes"), MOST_CHANGES)


def changes_json(changes: Sequence[Change]) -> list[dict[str, object]]:
    """The changes as JSON, as `parse_changes` reads each."""
    return [_change_json(change) for change in changes]


def alter_json(table: TableDef, changes: Sequence[Change]) -> dict[str, object]:
    """What an ALTER_TABLE entry says, as JSON: the table as it is afterwards, and the way there."""
    return {"table": table_json(table), "changes": changes_json(changes)}


def parse_alter(raw: object) -> tuple[TableDef, tuple[Change, ...]]:
    """Read back what `alter_json` gave.

    Raises:
        Invalid: VALIDATION_FAILED.
    """
    body = parse_object(raw, "body", {"table", "changes"})
    # Declared tables may differ by more than one request could say.
    return parse_table(body.get("table")), _parse_list(body.get("changes"), 4 * MOST_COLUMNS)


def apply_changes(table: TableDef, changes: Sequence[Change]) -> TableDef:
    """The table after the changes.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE naming the first change that is not possible, and why.
        Invalid: VALIDATION_FAILED, a value in a change does not fit its column.
    """
    for i, change in enumerate(changes):
        name = _NAMES[type(change)]
        table = _apply(table, change, f"changes[{i}].{name}")
    return table


def diff(existing: TableDef, declared: TableDef) -> tuple[Change, ...]:
    """The changes that make `existing` what is declared; they need not be possible, `apply_changes` tells.

    Columns that are not declared stay, since dropping one would drop its values.

    Raises:
        Conflict: SCHEMA_INCOMPATIBLE, no change can do it: another key, another NOT NULL, an undeclared column that rows
            must set.
    """
    if tuple(existing.primary_key) != tuple(declared.primary_key):
        key = ", ".join(existing.primary_key) or "none"
        raise _refuse("primary_key", f"is {key} and cannot be changed")
    present = {column.name: column for column in existing.columns}
    found: list[Change] = []
    for wanted in declared.columns:
        column = present.pop(wanted.name, None)
        found += [AddColumn(column=wanted)] if column is None else _differences(column, wanted)
    for left in present.values():
        if not left.nullable and left.default is None:
            raise _refuse(f"columns.{left.name}", "is NOT NULL in the lake: declare it too")
    if tuple(existing.partition_by) != tuple(declared.partition_by):
        found.append(PartitionBy(columns=tuple(declared.partition_by)))
    if tuple(existing.sort_by) != tuple(declared.sort_by):
        found.append(SortBy(columns=tuple(declared.sort_by)))
    return tuple(found)


def _differences(column: ColumnDef, wanted: ColumnDef) -> list[Change]:
    name = column.name
    if column.nullable != wanted.nullable:
        state = "nullable" if column.nullable else "NOT NULL"
        raise _refuse(f"columns.{name}.nullable", f"{name} is {state} and stays so")
    found: list[Change] = []
    if column.type != wanted.type:
        found.append(WidenType(name=name, type=wanted.type))
    if column.default != wanted.default:
        found.append(SetDefault(name=name, default=wanted.default))
    return found


# -- as JSON


def _parse_list(raw: object, most: int) -> tuple[Change, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= most:
        raise invalid("changes", f"want a list of 1 to {most} changes")
    return tuple(_parse(item, f"changes[{i}]") for i, item in enumerate(raw))


def _parse(raw: object, where: str) -> Change:
    body = parse_object(raw, where, _PARSERS.keys())
    if len(body) != 1:
        raise invalid(where, f"want exactly one of {', '.join(_PARSERS)}")
    ((name, value),) = body.items()
    return _PARSERS[name](value, f"{where}.{name}")


def _add(raw: object, where: str) -> Change:
    return AddColumn(column=parse_column(raw, where))


def _drop(raw: object, where: str) -> Change:
    return DropColumn(name=_name(parse_object(raw, where, {"name"}), where))


def _rename(raw: object, where: str) -> Change:
    body = parse_object(raw, where, {"name", "to"})
    return RenameColumn(
        name=_name(body, where), to=parse_column_name(body.get("to"), f"{where}.to")
    )


def _widen(raw: object, where: str) -> Change:
    body = parse_object(raw, where, {"name", "type"})
    kind = parse_column_type(body.get("type"), f"{where}.type")
    return WidenType(name=_name(body, where), type=kind.name)


def _set_default(raw: object, where: str) -> Change:
    body = parse_object(raw, where, {"name", "default"})
    default = body.get("default")
    if "default" not in body or not isinstance(default, str | int | float | bool | None):
        raise invalid(f"{where}.default", "want a plain value, or null for none")
    return SetDefault(name=_name(body, where), default=default)


def _partition_by(raw: object, where: str) -> Change:
    return PartitionBy(columns=_list(raw, where))


def _sort_by(raw: object, where: str) -> Change:
    return SortBy(columns=_list(raw, where))


def _name(body: Mapping[str, object], where: str) -> str:
    return parse_column_name(body.get("name"), f"{where}.name")


def _list(raw: object, where: str) -> tuple[str, ...]:
    if raw is None:
        raise invalid(where, "want a list of column names, [] for none")
    return parse_names(raw, where)


_PARSERS: Final[Mapping[str, Callable[[object, str], Change]]] = {
    "add_column": _add,
    "drop_column": _drop,
    "rename_column": _rename,
    "widen_type": _widen,
    "set_default": _set_default,
    "partition_by": _partition_by,
    "sort_by": _sort_by,
}
_NAMES: Final[Mapping[type[Change], str]] = dict(
    zip(
        (AddColumn, DropColumn, RenameColumn, WidenType, SetDefault, PartitionBy, SortBy),
        _PARSERS,
        strict=True,
    )
)


def _change_json(change: Change) -> dict[str, object]:
    said: object
    match change:
        case AddColumn():
            said = column_json(change.column)
        case PartitionBy() | SortBy():
            said = list(change.columns)
        case DropColumn():
            said = {"name": change.name}
        case RenameColumn():
            said = {"name": change.name, "to": change.to}
        case WidenType():
            said = {"name": change.name, "type": change.type}
        case SetDefault():
            said = {"name": change.name, "default": change.default}
    return {_NAMES[type(change)]: said}


# -- what is possible


def _apply(table: TableDef, change: Change, where: str) -> TableDef:
    match change:
        case AddColumn():
            return _added(table, change.column, where)
        case DropColumn():
            return _dropped(table, change.name, where)
        case RenameColumn():
            return _renamed(table, change, where)
        case WidenType():
            return _replaced(table, _widened(table, change, where))
        case SetDefault():
            column = _find(table, change.name, where)
            default = parse_default(change.default, f"{where}.default", column.kind)
            return _replaced(table, replace(column, default=default))
        case PartitionBy():
            check_names(table, change.columns, where)
            return replace(table, partition_by=tuple(change.columns))
        case SortBy():
            check_names(table, change.columns, where)
            return replace(table, sort_by=tuple(change.columns))


def _added(table: TableDef, column: ColumnDef, where: str) -> TableDef:
    if len(table.columns) >= MOST_COLUMNS:
        raise _refuse(where, f"the table has {MOST_COLUMNS} columns, which is the most")
    _check_free(table.columns, column.name, where)
    if not column.nullable:
        problem = f"{column.name}: a column that is added later must be nullable"
        raise _refuse(where, f"{problem}, since files written before lack it")
    if column.type == "VARCHAR" and column.default == "NULL":
        # DuckLake keeps the defaults of files without the column as text, where this means no value.
        raise _refuse(where, f"{column.name}: the text NULL cannot be the default of an added one")
    return replace(table, columns=(*table.columns, column))


def _dropped(table: TableDef, name: str, where: str) -> TableDef:
    column = _find(table, name, where)
    uses = (("primary_key", table.primary_key), ("partition_by", table.partition_by))
    for use, names in (*uses, ("sort_by", table.sort_by)):
        if name in names:
            advice = "" if use == "primary_key" else ": change that first"
            raise _refuse(where, f"{name} is in {use}{advice}")
    if len(table.columns) == 1:
        raise _refuse(where, f"{name} is the table's last column: drop the table instead")
    return replace(table, columns=tuple(c for c in table.columns if c is not column))


def _renamed(table: TableDef, change: RenameColumn, where: str) -> TableDef:
    column = _find(table, change.name, where)
    others = [c for c in table.columns if c is not column]
    _check_free(others, change.to, where)

    def names(old: Sequence[str]) -> tuple[str, ...]:
        return tuple(change.to if name == change.name else name for name in old)

    return replace(
        table,
        columns=tuple(replace(c, name=change.to) if c is column else c for c in table.columns),
        primary_key=names(table.primary_key),
        partition_by=names(table.partition_by),
        sort_by=names(table.sort_by),
    )


def _widened(table: TableDef, change: WidenType, where: str) -> ColumnDef:
    column = _find(table, change.name, where)
    if not is_wider(column.type, change.type):
        wider = wider_than(column.type)
        advice = f"it can become {wider}" if wider else "its type stays as it is"
        raise _refuse(
            where, f"{column.name} is {column.type[:64]}, not to be {change.type[:64]}: {advice}"
        )
    wide = replace(column, type=change.type)
    parse_default(column.default, f"{where}: the default of {column.name}", wide.kind)
    return wide


def _replaced(table: TableDef, column: ColumnDef) -> TableDef:
    columns = tuple(column if c.name == column.name else c for c in table.columns)
    return replace(table, columns=columns)


def _find(table: TableDef, name: str, where: str) -> ColumnDef:
    for column in table.columns:
        if column.name == name:
            return column
    raise _refuse(where, f"the table has no column {name[:64]!r}")


def _check_free(columns: Sequence[ColumnDef], name: str, where: str) -> None:
    for column in columns:
        if column.name.lower() == name.lower():
            raise _refuse(where, f"there is a column {column.name} (case does not count)")


def _refuse(where: str, problem: str) -> Conflict:
    return Conflict("SCHEMA_INCOMPATIBLE", f"{where}: {problem}", context={"field": where})
