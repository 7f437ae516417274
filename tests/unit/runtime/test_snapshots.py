"""Columns and names of a snapshot out of the catalog's rows."""

from __future__ import annotations

import pytest

from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.snapshots import (
    ColumnRow,
    FieldName,
    NameRow,
    column_tree,
    name_tree,
)
from duckmesh_runtime.domain.typenames import parse_type


def row(field_id: int, name: str, type_name: str, parent: int | None = None) -> ColumnRow:
    return ColumnRow(
        field_id=field_id,
        parent=parent,
        name=name,
        type=type_name,
        nullable=True,
        initial_default=None,
    )


@pytest.mark.parametrize(
    ("lake", "duckdb"),
    [
        ("boolean", "BOOLEAN"),
        ("int8", "TINYINT"),
        ("int64", "BIGINT"),
        ("uint16", "USMALLINT"),
        ("int128", "HUGEINT"),
        ("float32", "FLOAT"),
        ("float64", "DOUBLE"),
        ("decimal(10,3)", "DECIMAL(10,3)"),
        ("timestamptz", "TIMESTAMP WITH TIME ZONE"),
        ("timestamp_ns", "TIMESTAMP_NS"),
        ("json", "JSON"),
        ("uuid", "UUID"),
    ],
)
def test_types_have_the_names_that_duckdb_gives_them(lake: str, duckdb: str) -> None:
    (column,) = column_tree([row(1, "c", lake)])

    assert column.type == duckdb
    assert duckdb not in SCALARS or parse_type(column.type).name == duckdb


def test_nested_columns_have_what_they_are_made_of() -> None:
    rows = [
        row(1, "id", "int64"),
        row(2, "s", "struct"),
        row(3, "a", "int32", 2),
        row(4, "b c", "list", 2),
        row(5, "element", "varchar", 4),
        row(6, "m", "map"),
        row(7, "key", "varchar", 6),
        row(8, "value", "struct", 6),
        row(9, 'x"y', "date", 8),
    ]

    found = column_tree(rows)

    assert [(c.name, c.type) for c in found] == [
        ("id", "BIGINT"),
        ("s", 'STRUCT("a" INTEGER, "b c" VARCHAR[])'),
        ("m", 'MAP(VARCHAR, STRUCT("x""y" DATE))'),
    ]
    assert [c.field_id for c in found[1].fields] == [3, 4]
    assert found[1].fields[1].fields[0].name == "element"


def test_names_of_a_file_are_found_by_place_not_by_field() -> None:
    rows = [
        NameRow(key=0, parent=None, field_id=7, name="id"),
        NameRow(key=1, parent=None, field_id=8, name="s"),
        NameRow(key=2, parent=1, field_id=9, name="a"),
    ]

    assert name_tree(rows) == [
        FieldName(field_id=7, name="id", fields=[]),
        FieldName(field_id=8, name="s", fields=[FieldName(field_id=9, name="a", fields=[])]),
    ]
