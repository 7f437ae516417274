"""Changes of tables: their JSON, what they lead to, and the reason where they lead nowhere."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.changes import (
    MOST_CHANGES,
    AddColumn,
    Change,
    PartitionBy,
    SetDefault,
    SortBy,
    WidenType,
    alter_json,
    apply_changes,
    changes_json,
    diff,
    parse_alter,
    parse_changes,
)
from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.schema import (
    MOST_COLUMNS,
    ColumnDef,
    TableDef,
    parse_table,
    table_json,
)
from duckmesh_runtime.domain.widening import is_wider, wider_than
from duckmesh_runtime.errors import Conflict, Invalid

ORDERS = parse_table(
    {
        "name": "orders",
        "columns": [
            {"name": "id", "type": "INTEGER"},
            {"name": "day", "type": "DATE", "default": "2024-01-31"},
            {"name": "Total", "type": "DECIMAL(9,2)", "default": 0},
            {"name": "tags", "type": "VARCHAR[]"},
            {"name": "note", "type": "VARCHAR"},
        ],
        "primary_key": ["id"],
        "partition_by": ["day"],
        "sort_by": ["Total"],
    }
)
EVERY: dict[str, list[dict[str, Any]]] = {
    "changes": [
        {"add_column": {"name": "n", "type": "int8", "default": 7}},
        {"rename_column": {"name": "id", "to": "key"}},
        {"widen_type": {"name": "key", "type": "long"}},
        {"set_default": {"name": "Total", "default": None}},
        {"partition_by": ["n"]},
        {"sort_by": []},
        {"drop_column": {"name": "day"}},
    ]
}


def parse(*changes: dict[str, Any]) -> tuple[Change, ...]:
    return parse_changes({"changes": list(changes)})


def after(*changes: dict[str, Any], table: TableDef = ORDERS) -> TableDef:
    return apply_changes(table, parse(*changes))


def refusal(*changes: dict[str, Any], table: TableDef = ORDERS) -> str:
    with pytest.raises(Conflict) as caught:
        after(*changes, table=table)
    assert caught.value.code == "SCHEMA_INCOMPATIBLE"
    assert str(caught.value.context["field"]).startswith(f"changes[{len(changes) - 1}].")
    return caught.value.message


def test_each_change_finds_the_table_as_those_before_it_leave_it() -> None:
    found = after(*EVERY["changes"])

    assert [(c.name, c.type, c.nullable, c.default) for c in found.columns] == [
        ("key", "BIGINT", False, None),
        ("Total", "DECIMAL(9,2)", True, None),
        ("tags", "VARCHAR[]", True, None),
        ("note", "VARCHAR", True, None),
        ("n", "BIGINT", True, 7),
    ]
    assert (found.primary_key, found.partition_by, found.sort_by) == (("key",), ("n",), ())


def test_what_an_entry_says_reads_back() -> None:
    changes = parse_changes(EVERY)
    table = apply_changes(ORDERS, changes)

    text = msgspec.json.encode(alter_json(table, changes))

    assert parse_alter(msgspec.json.decode(text)) == (table, changes)
    assert parse_changes({"changes": changes_json(changes)}) == changes


def test_a_renamed_column_stays_in_key_partition_and_sort_order() -> None:
    found = after(
        {"rename_column": {"name": "day", "to": "Day"}},
        {"rename_column": {"name": "Total", "to": "total"}},
    )

    assert (found.partition_by, found.sort_by) == (("Day",), ("total",))
    assert parse_table(table_json(found)) == found


def test_two_columns_can_swap_names_over_a_third() -> None:
    found = after(
        {"rename_column": {"name": "note", "to": "x"}},
        {"rename_column": {"name": "tags", "to": "note"}},
        {"rename_column": {"name": "x", "to": "tags"}},
    )

    assert [(c.name, c.type) for c in found.columns[3:]] == [
        ("note", "VARCHAR[]"),
        ("tags", "VARCHAR"),
    ]


def test_a_dropped_name_is_free_for_another_type() -> None:
    found = after(
        {"drop_column": {"name": "note"}}, {"add_column": {"name": "NOTE", "type": "INT"}}
    )

    assert found.columns[-1] == ColumnDef(name="NOTE", type="INTEGER")


def test_the_version_that_created_the_table_stays() -> None:
    table = TableDef(name="t", columns=ORDERS.columns, version=9)

    assert apply_changes(table, parse({"drop_column": {"name": "note"}})).version == 9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"drop_column": {"name": "id"}}, "in primary_key"),
        ({"drop_column": {"name": "day"}}, "in partition_by: change that first"),
        ({"drop_column": {"name": "Total"}}, "in sort_by: change that first"),
        ({"drop_column": {"name": "total"}}, "no column 'total'"),
        ({"add_column": {"name": "TOTAL", "type": "INT"}}, "there is a column Total"),
        ({"add_column": {"name": "n", "type": "INT", "nullable": False}}, "must be nullable"),
        (
            {"add_column": {"name": "n", "type": "INT", "nullable": False, "default": 1}},
            "must be nullable",
        ),
        ({"add_column": {"name": "n", "type": "TEXT", "default": "NULL"}}, "the text NULL"),
        ({"rename_column": {"name": "id", "to": "NOTE"}}, "there is a column note"),
        ({"rename_column": {"name": "ids", "to": "x"}}, "no column 'ids'"),
        ({"widen_type": {"name": "id", "type": "SMALLINT"}}, "it can become BIGINT, DOUBLE"),
        ({"widen_type": {"name": "id", "type": "INTEGER"}}, "INTEGER, not to be INTEGER"),
        ({"widen_type": {"name": "tags", "type": "BLOB[]"}}, "the same with wider types inside"),
        ({"widen_type": {"name": "note", "type": "BLOB"}}, "its type stays as it is"),
        ({"widen_type": {"name": "Total", "type": "DECIMAL(9,3)"}}, "7 digits before and 2 behind"),
        ({"set_default": {"name": "nope", "default": 1}}, "no column 'nope'"),
    ],
)
def test_an_impossible_change_is_refused_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(change)


def test_the_refusal_names_the_change_that_fails() -> None:
    message = refusal({"drop_column": {"name": "note"}}, {"drop_column": {"name": "note"}})

    assert message == "changes[1].drop_column: the table has no column 'note'"


def test_the_last_column_stays() -> None:
    table = parse_table({"name": "t", "columns": [{"name": "a", "type": "INT"}]})

    assert "last column" in refusal({"drop_column": {"name": "a"}}, table=table)


def test_a_table_grows_to_the_most_columns_and_no_further() -> None:
    columns = [{"name": f"c{i}", "type": "INT"} for i in range(MOST_COLUMNS)]
    table = parse_table({"name": "t", "columns": columns})

    assert str(MOST_COLUMNS) in refusal({"add_column": {"name": "x", "type": "INT"}}, table=table)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ([], "body"),
        ({}, "changes"),
        ({"changes": []}, "changes"),
        ({"changes": [{"sort_by": []}] * (MOST_CHANGES + 1)}, "changes"),
        ({"changes": [], "atomic": True}, "body.atomic"),
        ({"changes": ["drop"]}, "changes[0]"),
        ({"changes": [{}]}, "changes[0]"),
        ({"changes": [{"sort_by": [], "partition_by": []}]}, "changes[0]"),
        ({"changes": [{"truncate": {}}]}, "changes[0].truncate"),
        ({"changes": [{"sort_by": None}]}, "changes[0].sort_by"),
        ({"changes": [{"sort_by": ["a", "a"]}]}, "changes[0].sort_by"),
        ({"changes": [{"partition_by": [1]}]}, "changes[0].partition_by"),
        ({"changes": [{"drop_column": {"name": 1}}]}, "changes[0].drop_column.name"),
        (
            {"changes": [{"drop_column": {"name": "a", "cascade": 1}}]},
            "changes[0].drop_column.cascade",
        ),
        (
            {"changes": [{"rename_column": {"name": "a", "to": 'b"'}}]},
            "changes[0].rename_column.to",
        ),
        ({"changes": [{"rename_column": {"name": "a"}}]}, "changes[0].rename_column.to"),
        (
            {"changes": [{"widen_type": {"name": "a", "type": "HUGE"}}]},
            "changes[0].widen_type.type",
        ),
        ({"changes": [{"set_default": {"name": "a"}}]}, "changes[0].set_default.default"),
        (
            {"changes": [{"set_default": {"name": "a", "default": []}}]},
            "changes[0].set_default.default",
        ),
        ({"changes": [{"add_column": {"name": "a"}}]}, "changes[0].add_column.type"),
        (
            {"changes": [{"add_column": {"name": "a", "type": "INT", "default": "x"}}]},
            "changes[0].add_column.default",
        ),
    ],
)
def test_bad_input_names_the_field(raw: object, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_changes(raw)

    assert caught.value.code == "VALIDATION_FAILED"
    assert caught.value.context["field"] == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"set_default": {"name": "id", "default": "x"}}, "changes[0].set_default.default"),
        ({"set_default": {"name": "tags", "default": "x"}}, "changes[0].set_default.default"),
        ({"partition_by": ["ID"]}, "changes[0].partition_by"),
        ({"sort_by": ["tags"]}, "changes[0].sort_by"),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_bad_input(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        after(change)

    assert caught.value.context["field"] == field


def test_a_wider_type_must_still_read_the_default() -> None:
    table = after({"set_default": {"name": "id", "default": "5"}})

    with pytest.raises(Invalid, match="the default of id: want a finite number"):
        after({"widen_type": {"name": "id", "type": "DOUBLE"}}, table=table)


@pytest.mark.parametrize(
    ("old", "new", "possible"),
    [
        ("UTINYINT", "SMALLINT", True),
        ("UTINYINT", "TINYINT", False),
        ("TINYINT", "UBIGINT", False),
        ("INTEGER", "FLOAT", False),
        ("SMALLINT", "FLOAT", True),
        ("BIGINT", "DOUBLE", False),
        ("BIGINT", "DECIMAL(19,0)", True),
        ("UBIGINT", "DECIMAL(21,2)", False),
        ("UBIGINT", "DECIMAL(22,2)", True),
        ("DECIMAL(9,2)", "DECIMAL(10,3)", True),
        ("DECIMAL(9,2)", "DECIMAL(38,1)", False),
        ("FLOAT", "DOUBLE", False),
        ("FLOAT", "DECIMAL(38,10)", False),
        ("DATE", "TIMESTAMP", True),
        ("DATE", "TIMESTAMP WITH TIME ZONE", False),
        ("TIMESTAMP_MS", "TIMESTAMP_NS", False),
        ("TIMESTAMP_S", "TIMESTAMP_MS", True),
        ("VARCHAR", "JSON", False),
        ("INTEGER[]", "BIGINT[]", True),
        ("BIGINT[]", "INTEGER[]", False),
        ("INTEGER[]", "INTEGER[]", False),
        ("INTEGER[]", "BIGINT[][]", False),
        ("INTEGER", "INTEGER[]", False),
        ("FLOAT[]", "DOUBLE[]", False),
        ("MAP(VARCHAR, DATE)", "MAP(VARCHAR, TIMESTAMP)", True),
        ("MAP(VARCHAR, DATE)", "DATE[]", False),
        ('STRUCT("a" DECIMAL(4,2), "b" DATE)', 'STRUCT("a" DECIMAL(9,2), "b" DATE)', True),
        ('STRUCT("a" DECIMAL(4,2))', 'STRUCT("a" DECIMAL(4,2), "b" UUID)', True),
        ('STRUCT("a" DECIMAL(4,2))', 'STRUCT("b" UUID, "a" DECIMAL(4,2))', False),
        ('STRUCT("a" INTEGER, "b" DATE)', 'STRUCT("a" BIGINT)', False),
        ('STRUCT("a" INTEGER)', 'STRUCT("A" BIGINT)', False),
        (
            'STRUCT("a" STRUCT("x" TINYINT[], "y" MAP(VARCHAR, DATE)), "b" DATE)[]',
            'STRUCT("a" STRUCT("x" DOUBLE[], "y" MAP(VARCHAR, DATE), "z" JSON), "b" DATE)[]',
            True,
        ),
    ],
)
def test_types_widen_only_where_every_value_stays(old: str, new: str, possible: bool) -> None:
    assert is_wider(old, new) is possible


def test_what_a_type_can_become_is_told() -> None:
    assert wider_than("DECIMAL(38,2)") == ""
    assert "DECIMAL(p,s) with 3 digits" in wider_than("UTINYINT")


# -- declared tables


def declared(**changes: Any) -> TableDef:
    return parse_table(table_json(ORDERS) | changes)


def column(name: str, type_name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_name, **more}


COLUMNS: list[dict[str, Any]] = table_json(ORDERS)["columns"]  # type: ignore[assignment]


def test_an_equal_table_differs_in_nothing() -> None:
    assert diff(ORDERS, ORDERS) == ()
    assert diff(ORDERS, declared(columns=COLUMNS[::-1])) == ()


def test_the_difference_leads_to_the_declared_table() -> None:
    wanted = declared(
        columns=[
            column("id", "BIGINT", nullable=False),
            *COLUMNS[1:3],
            column("new", "UUID"),
            {**COLUMNS[4], "default": "none"},
        ],
        partition_by=[],
        sort_by=["new"],
    )

    changes = diff(ORDERS, wanted)

    assert changes == (
        WidenType(name="id", type="BIGINT"),
        AddColumn(column=ColumnDef(name="new", type="UUID")),
        SetDefault(name="note", default="none"),
        PartitionBy(columns=()),
        SortBy(columns=("new",)),
    )
    found = apply_changes(ORDERS, changes)
    assert [c.name for c in found.columns] == ["id", "day", "Total", "tags", "note", "new"]
    assert diff(found, wanted) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"primary_key": []}, "primary_key: is id"),
        (
            {"primary_key": ["id", "k"], "columns": [*COLUMNS, column("k", "INT", nullable=False)]},
            "primary_key: is id",
        ),
        ({"columns": [*COLUMNS[:4], {**COLUMNS[4], "nullable": False}]}, "note is nullable"),
    ],
)
def test_what_no_change_can_do_is_refused(changes: dict[str, Any], reason: str) -> None:
    wanted = declared(**changes)
    with pytest.raises(Conflict, match=reason):
        diff(ORDERS, wanted)


def test_an_undeclared_column_that_rows_must_set_is_refused() -> None:
    columns = [column("a", "INT"), column("b", "INT", nullable=False)]
    existing = parse_table({"name": "t", "columns": columns})

    with pytest.raises(Conflict, match="is NOT NULL in the lake"):
        diff(existing, parse_table({"name": "t", "columns": columns[:1]}))

    columns[1]["default"] = 1
    existing = parse_table({"name": "t", "columns": columns})
    assert diff(existing, parse_table({"name": "t", "columns": columns[:1]})) == ()


def test_a_declared_name_in_another_case_is_refused_when_applied() -> None:
    wanted = declared(columns=[*COLUMNS[:4], column("Note", "VARCHAR")])

    with pytest.raises(Conflict, match="there is a column note"):
        apply_changes(ORDERS, diff(ORDERS, wanted))


NAMES = st.sampled_from(["a", "b", "c", "d", "A"])
TYPES = st.sampled_from([*SCALARS, "DECIMAL(9,2)", "DECIMAL(38,2)", "INTEGER[]"])
CHANGES = st.one_of(
    st.builds(lambda n, t: {"add_column": {"name": n, "type": t}}, NAMES, TYPES),
    st.builds(lambda n: {"drop_column": {"name": n}}, NAMES),
    st.builds(lambda n, m: {"rename_column": {"name": n, "to": m}}, NAMES, NAMES),
    st.builds(lambda n, t: {"widen_type": {"name": n, "type": t}}, NAMES, TYPES),
    st.builds(lambda n: {"set_default": {"name": n, "default": "1"}}, NAMES),
    st.builds(lambda n: {"partition_by": n}, st.lists(NAMES, unique=True, max_size=2)),
    st.builds(lambda n: {"sort_by": n}, st.lists(NAMES, unique=True, max_size=2)),
)


@given(st.lists(CHANGES, min_size=1, max_size=12))
def test_any_changes_lead_to_a_table_that_could_be_declared_or_are_refused(
    changes: list[dict[str, Any]],
) -> None:
    start = parse_table(
        {
            "name": "t",
            "columns": [
                column("a", "INTEGER"),
                column("b", "DECIMAL(9,2)"),
                column("c", "VARCHAR"),
            ],
            "primary_key": ["a"],
        }
    )
    try:
        found = after(*changes, table=start)
    except (Conflict, Invalid):
        return
    assert parse_table(table_json(found)) == found
    assert len(found.primary_key) == 1
