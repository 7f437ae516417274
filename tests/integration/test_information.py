"""What users see of their tables by SHOW, DESCRIBE, SUMMARIZE, EXPLAIN and information_schema, and that nothing else shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import duckdb
import pytest

from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.errors import Invalid
from tests.sandboxes import ENDLESS, ROWS, SmallLake, ask, running_sandbox, wait_for

MAKE: Final = "CREATE TABLE orders (id BIGINT NOT NULL, state VARCHAR DEFAULT 'new', price DECIMAL(9,2), \"Tags\" VARCHAR[])"
FILL: Final = (
    "INSERT INTO orders SELECT range, 's' || range % 3, range / 4, ['a', NULL] FROM range(1000)"
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLake]:
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    lake.freeze("first.db", MAKE, FILL, "CREATE TABLE gone (id INTEGER)", "DROP TABLE gone")
    yield lake
    lake.data.close()


@pytest.fixture(scope="module")
def client(lake: SmallLake) -> Iterator[SandboxClient]:
    with running_sandbox(lake, concurrency=1) as running:
        wait_for(lambda: len(running.slots()) >= 1)
        yield running.client


@pytest.fixture
def show(client: SandboxClient, lake: SmallLake) -> Any:
    async def show(sql: str, *params: object) -> list[tuple[Any, ...]]:
        answer = await ask(client, lake.job(sql, *params))
        return [tuple(row.values()) for row in answer.rows]

    return show


@pytest.fixture
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """In-process DuckDB with the same table."""
    with duckdb.connect() as connection:
        connection.execute(MAKE)
        connection.execute(FILL)
        yield connection


async def test_show_lists_the_tables_that_are_there(show: Any) -> None:
    assert await show("SHOW TABLES") == [("numbers",), ("orders",)]
    assert await show("SELECT name FROM (SHOW TABLES) WHERE name LIKE 'o%'") == [("orders",)]
    assert await show("SHOW ALL TABLES") == [
        ("lake", "main", "numbers", ["id", "name"], ["BIGINT", "VARCHAR"], False),
        (
            "lake",
            "main",
            "orders",
            ["id", "state", "price", "Tags"],
            ["BIGINT", "VARCHAR", "DECIMAL(9,2)", "VARCHAR[]"],
            False,
        ),
    ]


@pytest.mark.parametrize("sql", ["DESCRIBE orders", "SHOW orders", "DESCRIBE FROM lake.orders"])
async def test_describe_tells_name_type_and_null_of_each_column(show: Any, sql: str) -> None:
    found = await show(sql)

    assert [(name, kind) for name, kind, *_ in found] == [
        ("id", "BIGINT"),
        ("state", "VARCHAR"),
        ("price", "DECIMAL(9,2)"),
        ("Tags", "VARCHAR[]"),
    ]
    if "FROM" not in sql:
        assert [row[2] for row in found] == ["NO", "YES", "YES", "YES"]


async def test_describe_tells_the_types_of_a_select(show: Any) -> None:
    found = await show("DESCRIBE SELECT count(*) AS n, sum(price) AS total FROM orders")

    assert [(name, kind) for name, kind, *_ in found] == [
        ("n", "BIGINT"),
        ("total", "DECIMAL(38,2)"),
    ]


@pytest.mark.parametrize("source", ["orders", "SELECT id, state FROM orders WHERE id < 100"])
async def test_summarize_says_what_in_process_duckdb_says(
    show: Any, duck: duckdb.DuckDBPyConnection, source: str
) -> None:
    assert await show(f"SUMMARIZE {source}") == duck.execute(f"SUMMARIZE {source}").fetchall()


async def test_information_schema_has_the_tables_and_their_columns(show: Any) -> None:
    assert await show(
        "SELECT table_catalog, table_schema, table_name, table_type "
        "FROM information_schema.tables ORDER BY ALL"
    ) == [
        ("lake", "main", "numbers", "BASE TABLE"),
        ("lake", "main", "orders", "BASE TABLE"),
    ]
    assert await show(
        "SELECT column_name, ordinal_position, is_nullable, data_type, numeric_precision, numeric_scale "
        "FROM INFORMATION_SCHEMA.Columns WHERE table_name = $1 ORDER BY ordinal_position",
        "orders",
    ) == [
        ("id", 1, "NO", "BIGINT", 64, 0),
        ("state", 2, "YES", "VARCHAR", None, None),
        ("price", 3, "YES", "DECIMAL(9,2)", 9, 2),
        ("Tags", 4, "YES", "VARCHAR[]", None, None),
    ]


async def test_information_schema_shows_this_lake_only(show: Any) -> None:
    for view in ("tables", "columns"):
        where = await show(
            f"SELECT DISTINCT table_catalog, table_schema, table_name FROM information_schema.{view}"
        )
        assert {row[:2] for row in where} == {("lake", "main")}
        assert {row[2] for row in where} == {"numbers", "orders"}


async def test_explain_shows_the_plan_and_runs_nothing(show: Any) -> None:
    ((key, plan),) = await show("EXPLAIN SELECT state FROM orders WHERE id > $1", 5)
    ((_, endless),) = await show(f"EXPLAIN {ENDLESS}")

    assert key == "physical_plan"
    assert all(word in plan for word in ("orders", "id>5", "state"))
    assert "CROSS_PRODUCT" in endless


async def test_explain_analyze_counts_the_rows_of_each_step(show: Any) -> None:
    ((key, plan),) = await show("EXPLAIN ANALYZE SELECT name FROM numbers WHERE id < 7")

    assert key == "analyzed_plan"
    assert "7 rows" in plan
    assert "Total Files Read: 1" in plan
    assert f"{ROWS} rows" not in plan


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW DATABASES",
        "SHOW SCHEMAS",
        "SHOW VARIABLES",
        "SHOW TABLES FROM memory",
        "SELECT * FROM information_schema.views",
        "SELECT * FROM information_schema.schemata",
        "SELECT * FROM information_schema.table_constraints",
        "SELECT * FROM pg_catalog.pg_tables",
        "SELECT * FROM pg_tables",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM duckdb_tables()",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM __ducklake_metadata_lake.ducklake_data_file",
        "SELECT * FROM ducklake_snapshots('lake')",
        "SELECT * FROM ducklake_list_files('lake', 'orders')",
        "PRAGMA show_tables",
        "PRAGMA database_list",
        "DESCRIBE duckdb_settings",
        "SUMMARIZE duckdb_databases",
        "EXPLAIN SELECT * FROM duckdb_settings()",
        "EXPLAIN ANALYZE INSERT INTO orders VALUES (1)",
        "EXPLAIN SHOW DATABASES",
    ],
)
async def test_the_engine_and_its_catalogs_do_not_show(show: Any, sql: str) -> None:
    with pytest.raises(Invalid) as caught:
        await show(sql)

    assert caught.value.code in ("SQL_NOT_ALLOWED", "SQL_ERROR")
    # What it says besides the caller's own text.
    said = caught.value.message.partition("\n\nLINE ")[0]
    assert not [word for word in ("127.0.0.1", ".db", "/tmp", "data_file_id") if word in said]


@pytest.mark.parametrize("sql", ["SELECT * FROM gone", "DESCRIBE gone"])
async def test_a_dropped_table_is_unknown(show: Any, sql: str) -> None:
    with pytest.raises(Invalid, match="gone does not exist") as caught:
        await show(sql)

    assert caught.value.code == "SQL_ERROR"
