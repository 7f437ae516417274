"""Tables as users declare them, and type names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.schema import arrow_schema, parse_table, table_json
from duckmesh_runtime.domain.typenames import BadType, parse_type
from duckmesh_runtime.errors import Invalid


def raw(**changes: Any) -> dict[str, Any]:
    column = {"name": "id", "type": "BIGINT"}
    return {"name": "events", "columns": [column], **changes}


def problem(body: object) -> str:
    with pytest.raises(Invalid) as caught:
        parse_table(body)
    assert caught.value.code == "VALIDATION_FAILED"
    return caught.value.message


FULL = {
    "name": "orders",
    "columns": [
        {"name": "id", "type": "UUID", "nullable": False, "default": None},
        {"name": "total", "type": "DECIMAL(18,3)", "nullable": False, "default": "0.5"},
        {"name": "at", "type": "TIMESTAMP WITH TIME ZONE", "nullable": True, "default": None},
        {"name": "tags", "type": "VARCHAR[]", "nullable": True, "default": None},
    ],
    "primary_key": ["id"],
    "partition_by": ["at"],
    "sort_by": ["at", "total"],
}


def test_a_table_reads_back() -> None:
    table = parse_table(FULL)

    assert table_json(table) == FULL
    assert parse_table(table_json(table)) == table


def test_the_arrow_schema_keeps_order_types_and_nulls() -> None:
    assert arrow_schema(parse_table(FULL)) == pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("total", pa.decimal128(18, 3), nullable=False),
            pa.field("at", pa.timestamp("us", "UTC")),
            pa.field("tags", pa.list_(pa.string())),
        ]
    )


def test_key_columns_are_not_null_without_saying_so() -> None:
    table = parse_table(raw(primary_key=["id"]))

    assert table.columns[0].nullable is False


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param([], "table: want an object", id="no object"),
        pytest.param(raw(colour=1), "table.colour: unknown field", id="unknown field"),
        pytest.param(raw(name="Events"), "name: want a small letter", id="name"),
        pytest.param(raw(name="e" * 64), "name: want a small letter", id="long name"),
        pytest.param(raw(columns=[]), "columns: want a list of 1 to", id="no columns"),
        pytest.param(raw(columns="id"), "columns: want a list of 1 to", id="columns no list"),
        pytest.param(
            raw(columns=[{"name": "a-b", "type": "INT"}]), "columns[0].name: want", id="column name"
        ),
        pytest.param(
            raw(columns=[{"name": "a", "type": "INT", "comment": ""}]),
            "columns[0].comment: unknown field",
            id="unknown column field",
        ),
        pytest.param(raw(columns=[{"name": "a"}]), "columns[0].type: want", id="no type"),
        pytest.param(
            raw(columns=[{"name": "a", "type": "HUGEINT"}]),
            "columns[0].type: 'HUGEINT' is not supported: use DECIMAL(38,0)",
            id="type with loss",
        ),
        pytest.param(
            raw(columns=[{"name": "a", "type": "INT"}, {"name": "A", "type": "INT"}]),
            "columns: 'A' is there twice",
            id="same name",
        ),
        pytest.param(
            raw(columns=[{"name": "a", "type": "INT", "nullable": "no"}]),
            "columns[0].nullable: want true or false",
            id="nullable",
        ),
        pytest.param(
            raw(columns=[{"name": "a", "type": "INT", "default": "x"}]),
            "columns[0].default: want a whole number",
            id="default",
        ),
        pytest.param(
            raw(columns=[{"name": "a", "type": "INT[]", "default": 1}]),
            "columns[0].default: INTEGER[] takes no default",
            id="default of a list",
        ),
        pytest.param(raw(primary_key=["x"]), "primary_key: 'x' is no column", id="key"),
        pytest.param(raw(primary_key="id"), "primary_key: want a list", id="key no list"),
        pytest.param(raw(sort_by=["id", "id"]), "sort_by: names a column twice", id="sort twice"),
        pytest.param(
            raw(columns=[{"name": "a", "type": "JSON"}], partition_by=["a"]),
            "partition_by: a is JSON: want a plain type",
            id="partition by a document",
        ),
        pytest.param(
            raw(columns=[{"name": "id", "type": "INT", "nullable": True}], primary_key=["id"]),
            "columns[0].nullable: id is in primary_key",
            id="nullable key",
        ),
    ],
)
def test_a_bad_table_is_refused_by_field(body: object, said: str) -> None:
    assert problem(body).startswith(said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "columns", "type", "default", "nullable", "primary_key"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(body=JSON)
def test_any_json_is_a_table_or_a_clear_refusal(body: object) -> None:
    try:
        table = parse_table(body)
    except Invalid:
        return
    assert parse_table(table_json(table)) == table


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int", "INTEGER"),
        ("Text", "VARCHAR"),
        ("timestamptz", "TIMESTAMP WITH TIME ZONE"),
        ("timestamp  with time zone", "TIMESTAMP WITH TIME ZONE"),
        ("timestamp without time zone", "TIMESTAMP"),
        ("decimal", "DECIMAL(18,3)"),
        ("NUMERIC(10)", "DECIMAL(10,0)"),
        ("decimal(10, 2)", "DECIMAL(10,2)"),
        ("int[][]", "INTEGER[][]"),
        ('struct(a int, "end" text[])', 'STRUCT("a" INTEGER, "end" VARCHAR[])'),
        ("map(text, double)", "MAP(VARCHAR, DOUBLE)"),
    ],
)
def test_type_names_become_canonical(text: str, name: str) -> None:
    assert parse_type(text).name == name
    assert parse_type(name).name == name


@pytest.mark.parametrize(
    "text",
    [
        "", "foo", "int int", "varchar(3)", "int[3]", "decimal(39)", "decimal(3,4)", "decimal()",
        "decimal(1,2,3)", "decimal(-1)", "decimal(999999999999)", "struct()", "struct(a)",
        "struct(a int, A int)", 'struct("a b" int)', "map(int, int)", "map(text)", "interval",
        "time with time zone", "timestamp with", "int[", "int)", "a" * 5000, "int" + "[]" * 9,
        "struct(a " * 9 + "int" + ")" * 9, "int; drop table t", "int default 1", "int\x00",
    ],
)  # fmt: skip
def test_a_bad_type_name_is_refused(text: str) -> None:
    with pytest.raises(BadType):
        parse_type(text)


@given(text=st.text(alphabet='INTEGERSTRUCTMAP()[]," 0189ab', max_size=40))
def test_any_text_is_a_type_or_a_refusal(text: str) -> None:
    try:
        found = parse_type(text)
    except BadType:
        return
    assert parse_type(found.name).name == found.name


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_every_type_makes_an_array_of_nulls(name: str) -> None:
    kind = SCALARS[name]

    array = kind.build([None, None])

    assert (array.type, array.null_count) == (kind.arrow, 2)
    assert kind.build([]).type == kind.arrow


def test_the_page_of_types_lists_every_one() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "column-types.md").read_text()

    assert {name for name in SCALARS if f"`{name}`" not in page} == set()
