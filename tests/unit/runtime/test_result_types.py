"""DuckDB's own spelling of types is read back as it means."""

from __future__ import annotations

import duckdb
import pytest

from duckmesh_runtime.domain.result_types import UNKNOWN, ResultType, parse_result_type


def tree(found: ResultType) -> object:
    return (found.name, *map(tree, found.inner)) if found.inner else found.name


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("1::HUGEINT", "HUGEINT"),
        ("1::DECIMAL(9,4)", "DECIMAL"),
        ("'a'::ENUM('a', 'b,)''c', 'INTEGER[')", "ENUM"),
        ("TIMESTAMPTZ '2024-01-01 00:00:00Z'", "TIMESTAMP WITH TIME ZONE"),
        ("[[1::HUGEINT]]", ("LIST", ("LIST", "HUGEINT"))),
        ("[[1]]::INTEGER[1][]", ("LIST", ("ARRAY", "INTEGER"))),
        ("{'a': 1, 'b': {'c': '1'::BIT}}", ("STRUCT", "INTEGER", ("STRUCT", "BIT"))),
        ("""{'a."b c': 1, 'x,y)': 2::DECIMAL(4,1)}""", ("STRUCT", "INTEGER", "DECIMAL")),
        ("{'time': '12:00:00'::TIMETZ, 'with': 1}", ("STRUCT", "TIME WITH TIME ZONE", "INTEGER")),
        ("{'zone': 1, 'INTEGER': 'x'}", ("STRUCT", "INTEGER", "VARCHAR")),
        (
            "row('12:00:00'::TIMETZ, [1], 2.5, row('x'))",
            (
                "STRUCT",
                "TIME WITH TIME ZONE",
                ("LIST", "INTEGER"),
                "DECIMAL",
                ("STRUCT", "VARCHAR"),
            ),
        ),
        ("MAP{[1]: {'a': 1}}", ("MAP", ("LIST", "INTEGER"), ("STRUCT", "INTEGER"))),
        (
            "union_value(a := 1)::UNION(a INTEGER, b VARCHAR[])",
            ("UNION", "INTEGER", ("LIST", "VARCHAR")),
        ),
    ],
)
def test_what_duckdb_writes_is_read(expression: str, want: object) -> None:
    with duckdb.connect() as connection:
        (column,) = connection.execute(f"SELECT {expression}").description or ()

    assert tree(parse_result_type(str(column[1]))) == want


@pytest.mark.parametrize("text", ["", "STRUCT(", "ENUM('a'", "INTEGER[", "MAP(", "UNION(a"])
def test_what_is_no_type_name_is_unknown_or_harmless(text: str) -> None:
    found = parse_result_type(text)

    assert found.parts(2) == (UNKNOWN, UNKNOWN)


def test_names_are_those_of_all_levels() -> None:
    assert parse_result_type("STRUCT(a HUGEINT[], b MAP(VARCHAR, BIT))").names() == {
        "STRUCT", "LIST", "HUGEINT", "MAP", "VARCHAR", "BIT",
    }  # fmt: skip
