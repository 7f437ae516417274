"""Bodies that the domain reads by hand, as types: their fields and bounds for the API's description. No code."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from duckmesh_runtime.domain.changes import MOST_CHANGES
from duckmesh_runtime.domain.schema import MOST_COLUMNS, TABLE_NAME
from duckmesh_runtime.domain.typenames import IDENTIFIER
from duckmesh_runtime.web.answers import Plain

_TableName = Annotated[str, Meta(pattern=f"^{TABLE_NAME.pattern}$")]
_ColumnName = Annotated[str, Meta(pattern=f"^{IDENTIFIER.pattern}$")]
_Names = Annotated[list[str], Meta(extra_json_schema={"uniqueItems": True})]
ONE: Final = {"minProperties": 1, "maxProperties": 1}


class NewColumn(Struct, forbid_unknown_fields=True):
    """See `schema.parse_column`."""

    name: _ColumnName
    type: str
    nullable: bool | UnsetType = UNSET
    default: Plain = None


class NewTable(Struct, forbid_unknown_fields=True):
    """See `schema.parse_table`."""

    name: _TableName
    columns: Annotated[list[NewColumn], Meta(min_length=1, max_length=MOST_COLUMNS)]
    primary_key: _Names | None = None
    partition_by: _Names | None = None
    sort_by: _Names | None = None


class ColumnName(Struct, forbid_unknown_fields=True):
    """What is dropped."""

    name: _ColumnName


class RenameColumn(Struct, forbid_unknown_fields=True):
    """What is called otherwise."""

    name: _ColumnName
    to: _ColumnName


class WidenType(Struct, forbid_unknown_fields=True):
    """What is widened."""

    name: _ColumnName
    type: str


class SetDefault(Struct, forbid_unknown_fields=True):
    """Whose default is another."""

    name: _ColumnName
    default: Plain


class Change(Struct, forbid_unknown_fields=True):
    """See `changes.parse_changes`: exactly one of these."""

    add_column: NewColumn | UnsetType = UNSET
    drop_column: ColumnName | UnsetType = UNSET
    rename_column: RenameColumn | UnsetType = UNSET
    widen_type: WidenType | UnsetType = UNSET
    set_default: SetDefault | UnsetType = UNSET
    partition_by: _Names | UnsetType = UNSET
    sort_by: _Names | UnsetType = UNSET


class Changes(Struct, forbid_unknown_fields=True):
    """The body of `alter_table`."""

    changes: Annotated[
        list[Annotated[Change, Meta(extra_json_schema=ONE)]],
        Meta(min_length=1, max_length=MOST_CHANGES),
    ]
