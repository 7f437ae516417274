from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.schema import ColumnDef, TableDef

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


@given(TEXTS)
def test_a_quoted_text_is_read_back_as_it_was(text: str) -> None:
    with duckdb.connect() as connection:
        row = connection.execute(f"SELECT {lakesql.quote_text(text)}").fetchone()

    assert row == (text,)


@given(TEXTS.filter(bool))
def test_a_quoted_name_names_the_column(name: str) -> None:
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT 1 AS {lakesql.quote_name(name)}").description

    assert found is not None
    assert found[0][0] == name


def test_a_uri_becomes_keywords_with_every_value_quoted() -> None:
    dsn = "postgresql://lake_w:it%27s%20a%20%5C%20secret@db.example:5433/cat%20alog?sslmode=require"

    text = lakesql.conninfo(dsn, application_name="dm:lake:w:1", options="-c a=b -c c=d")

    assert text == (
        r"host='db.example' port='5433' user='lake_w' password='it\'s a \\ secret' dbname='cat alog' "
        "sslmode='require' application_name='dm:lake:w:1' options='-c a=b -c c=d'"
    )


def test_settings_win_over_the_uri_and_missing_parts_are_left_out() -> None:
    text = lakesql.conninfo("postgresql:///db?application_name=other", application_name="mine")

    assert text == "dbname='db' application_name='mine'"


def test_attach_names_the_schema_twice_and_never_inlines() -> None:
    text = lakesql.attach_lake("host='h' password='it\\'s'", schema="lake_1", data_path="s3://b/p/")

    assert text == (
        "ATTACH 'ducklake:postgres:host=''h'' password=''it\\''s''' AS lake (DATA_PATH 's3://b/p/', "
        "METADATA_SCHEMA 'lake_1', META_SCHEMA 'lake_1', DATA_INLINING_ROW_LIMIT 0)"
    )


def test_inlining_is_stored_as_off() -> None:
    assert lakesql.store_inlining_off() == "CALL lake.set_option('data_inlining_row_limit', 0)"


def test_a_commit_says_where_it_starts_and_ends() -> None:
    assert lakesql.mark_commit(41, 58, "rows") == (
        "CALL lake.set_commit_message('duckmesh', 'rows', "
        """extra_info => '{"role":"w","prev":41,"tok":58}')"""
    )


def test_rows_are_inserted_column_by_column() -> None:
    assert lakesql.insert_rows("events", ["id", 'a"b'], "rows") == (
        'INSERT INTO lake.main."events" ("id", "a""b") SELECT "id", "a""b" FROM "rows"'
    )


def test_a_table_with_defaults_and_required_columns() -> None:
    table = TableDef(
        name="events",
        columns=(
            ColumnDef(name="id", type="BIGINT", nullable=False),
            ColumnDef(name="text", type="VARCHAR", default="it's"),
            ColumnDef(name="on", type="BOOLEAN", default=False),
            ColumnDef(name="amount", type="DOUBLE", default=1.5),
        ),
    )

    assert lakesql.create_table(table) == (
        'CREATE TABLE lake.main."events" ("id" BIGINT NOT NULL, "text" VARCHAR DEFAULT \'it\'\'s\', '
        '"on" BOOLEAN DEFAULT false, "amount" DOUBLE DEFAULT 1.5)'
    )


@pytest.mark.parametrize(
    ("names", "statement"),
    [
        ((), None),
        (("day", "id"), 'ALTER TABLE lake.main."t" SET PARTITIONED BY ("day", "id")'),
    ],
    ids=["none", "two"],
)
def test_the_layout_follows_the_partition_columns(
    names: tuple[str, ...], statement: str | None
) -> None:
    columns = tuple(ColumnDef(name=name, type="BIGINT") for name in ("id", "day"))

    table = TableDef(name="t", columns=columns, partition_by=names)

    assert lakesql.partition_table(table) == statement


def test_dropping_a_table_that_is_gone_is_fine() -> None:
    assert lakesql.drop_table("t") == 'DROP TABLE IF EXISTS lake.main."t"'


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        ("", ""),
        ("http://s3:8333", ", ENDPOINT 's3:8333', URL_STYLE 'path', USE_SSL false"),
        ("https://s3.example", ", ENDPOINT 's3.example', URL_STYLE 'path', USE_SSL true"),
    ],
    ids=["aws", "http", "https"],
)
def test_the_store_s_key_holds_for_the_lake_s_prefix(endpoint: str, options: str) -> None:
    text = lakesql.s3_secret(
        scope="s3://b/p/", key_id="id", secret="se'cret", endpoint=endpoint, region="r"
    )

    assert text == (
        "CREATE OR REPLACE SECRET \"store\" (TYPE s3, KEY_ID 'id', SECRET 'se''cret', REGION 'r', "
        f"SCOPE 's3://b/p/'{options})"
    )


def test_start_up_options() -> None:
    options = {"duckmesh.role": "w", "duckmesh.epoch": "4"}

    assert lakesql.options_text(options) == "-c duckmesh.role=w -c duckmesh.epoch=4"
