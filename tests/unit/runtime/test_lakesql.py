from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.changes import (
    AddColumn,
    Change,
    DropColumn,
    PartitionBy,
    RenameColumn,
    SetDefault,
    SortBy,
    WidenType,
)
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.domain.tally import Tally
from duckmesh_runtime.domain.typenames import parse_type

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


def test_a_commit_says_what_it_did_to_which_table() -> None:
    tally = Tally()
    tally.add("events", inserted=3)
    tally.add("gone", inserted=1)
    tally.add("events", inserted=4, deleted=2)
    tally.end("gone")

    assert lakesql.mark_commit(1, 2, "rows", Tally()).endswith(
        """'{"role":"w","prev":1,"tok":2,"rows":{}}')"""
    )
    assert lakesql.mark_commit(1, 2, "rows", tally).endswith(
        """'{"role":"w","prev":1,"tok":2,"rows":{"events":[7,2]},"ended":["gone"]}')"""
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

    assert lakesql.create_table(table) == [
        'CREATE TABLE lake.main."events" ("id" BIGINT NOT NULL, "text" VARCHAR DEFAULT \'it\'\'s\', '
        "\"on\" BOOLEAN DEFAULT 'false', \"amount\" DOUBLE DEFAULT '1.5')"
    ]


def test_the_layout_and_order_follow_the_definition() -> None:
    columns = tuple(ColumnDef(name=name, type="BIGINT") for name in ("id", "day"))

    table = TableDef(name="t", columns=columns, partition_by=("day", "id"), sort_by=("id",))

    assert lakesql.create_table(table)[1:] == [
        'ALTER TABLE lake.main."t" SET PARTITIONED BY ("day", "id")',
        'ALTER TABLE lake.main."t" SET SORTED BY ("id")',
    ]


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        (AddColumn(column=ColumnDef(name='a"b', type="DATE")), 'ADD COLUMN "a""b" DATE'),
        (
            AddColumn(column=ColumnDef(name="a", type="BLOB", default="qgA=")),
            "ADD COLUMN \"a\" BLOB DEFAULT '\\xAA\\x00'",
        ),
        (DropColumn(name="a"), 'DROP COLUMN "a"'),
        (RenameColumn(name="a", to="b"), 'RENAME COLUMN "a" TO "b"'),
        (WidenType(name="a", type="BIGINT"), 'ALTER COLUMN "a" SET DATA TYPE BIGINT'),
        (SetDefault(name="a", default=None), 'ALTER COLUMN "a" DROP DEFAULT'),
        (SetDefault(name="a", default="x"), 'ALTER COLUMN "a" SET DEFAULT \'"x"\''),
        (PartitionBy(columns=("a", "b")), 'SET PARTITIONED BY ("a", "b")'),
        (PartitionBy(columns=()), "RESET PARTITIONED BY"),
        (SortBy(columns=("a",)), 'SET SORTED BY ("a")'),
        (SortBy(columns=()), "RESET SORTED BY"),
    ],
    ids=str,
)
def test_each_change_is_one_statement(change: Change, statement: str) -> None:
    text = lakesql.alter_table("t", change, parse_type("JSON"))

    assert text == f'ALTER TABLE lake.main."t" {statement}'


def test_an_upsert_is_a_batch_a_delete_and_an_insert() -> None:
    assert lakesql.make_batch("t", ["k", "v"], "b") == (
        'CREATE OR REPLACE TEMP TABLE "b" AS SELECT "k", "v", false AS "duckmesh:deleted", '
        '0::BIGINT AS "duckmesh:position" FROM lake.main."t" WHERE false'
    )
    assert lakesql.fill_batch(["k", "v"], "b", "rows") == (
        'INSERT INTO "b" ("k", "v", "duckmesh:deleted", "duckmesh:position") '
        'SELECT "k", "v", "duckmesh:deleted", "duckmesh:position" FROM "rows"'
    )
    assert lakesql.delete_batch("t", ["k", "l"], "b") == (
        'DELETE FROM lake.main."t" AS t USING (SELECT DISTINCT "k", "l" FROM "b") AS b '
        'WHERE t."k" = b."k" AND t."l" = b."l"'
    )
    assert lakesql.upsert_batch("t", ["k", "v"], ["k"], "b") == (
        'INSERT INTO lake.main."t" ("k", "v") SELECT "k", "v" FROM (SELECT * FROM "b" '
        'QUALIFY row_number() OVER (PARTITION BY "k" ORDER BY "duckmesh:position" DESC) = 1) '
        'WHERE NOT "duckmesh:deleted"'
    )
    assert lakesql.drop_batch("b") == 'DROP TABLE IF EXISTS temp."b"'


def test_a_file_is_registered_or_read() -> None:
    assert lakesql.register_file("t", "s3://b/it's") == (
        "CALL ducklake_add_data_files('lake', 't', 's3://b/it''s')"
    )
    assert lakesql.insert_file("t", "s3://b/x") == (
        'INSERT INTO lake.main."t" BY NAME SELECT * FROM '
        "read_parquet('s3://b/x', hive_partitioning = false)"
    )


def test_snapshots_are_given_up_by_id() -> None:
    assert lakesql.expire_snapshots([3, 17]) == (
        "SELECT count(*) FROM ducklake_expire_snapshots('lake', versions => [3, 17])"
    )


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


def test_an_earlier_snapshot_is_attached_beside_the_lake_to_be_read() -> None:
    text = lakesql.attach_lake("host=h", schema="lake_1", data_path="s3://b/p/", version=7)

    assert text.startswith("ATTACH 'ducklake:postgres:host=h' AS past (READ_ONLY, ")
    assert "SNAPSHOT_VERSION 7" in text
    assert lakesql.detach_past() == "DETACH DATABASE IF EXISTS past"


def test_a_restore_compares_by_row_id() -> None:
    assert lakesql.copy_past('a"b', ["id", "v"]) == (
        'INSERT INTO lake.main."a""b" ("id", "v") SELECT "id", "v" FROM past.main."a""b"'
    )
    assert lakesql.delete_newer("t") == (
        'DELETE FROM lake.main."t" WHERE rowid NOT IN (SELECT rowid FROM past.main."t")'
    )
    assert lakesql.insert_older("t", ["id"]) == (
        'INSERT INTO lake.main."t" ("id") SELECT "id" FROM past.main."t" AS p '
        'ANTI JOIN (SELECT rowid AS there FROM lake.main."t") AS n ON p.rowid = n.there'
    )
