"""Every widening that `domain.widening` allows, against DuckLake itself: values, filters over old files, deletes, merges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain.widening import WIDER, is_wider

# Smallest, middle and largest values: what statistics of files are about.
VALUES: dict[str, Sequence[str]] = {
    "TINYINT": ("-128", "0", "127"),
    "SMALLINT": ("-32768", "5", "32767"),
    "INTEGER": ("-2147483648", "7", "2147483647"),
    "BIGINT": ("-9223372036854775808", "7", "9223372036854775807"),
    "UTINYINT": ("0", "7", "255"),
    "USMALLINT": ("0", "7", "65535"),
    "UINTEGER": ("0", "7", "4294967295"),
    "UBIGINT": ("0", "7", "18446744073709551615"),
    "DATE": ("0001-01-01", "2024-02-29", "9999-12-31"),
    "TIMESTAMP_S": ("0001-01-01 00:00:00", "2024-02-29 12:00:01", "9999-12-31 23:59:59"),
    "TIMESTAMP_MS": ("0001-01-01 00:00:00.001", "2024-02-29 12:00:01.5", "9999-12-31 23:59:59.999"),
    "DECIMAL(4,2)": ("-99.99", "0.01", "99.99"),
    "DECIMAL(9,2)": ("-9999999.99", "0.01", "9999999.99"),
    "DECIMAL(18,3)": ("-999999999999999.999", "0.001", "999999999999999.999"),
    "DECIMAL(20,0)": ("-99999999999999999999", "1", "99999999999999999999"),
}
DECIMALS = (
    *("DECIMAL(3,0)", "DECIMAL(5,0)", "DECIMAL(10,0)", "DECIMAL(10,3)", "DECIMAL(19,0)"),
    *("DECIMAL(20,0)", "DECIMAL(18,3)", "DECIMAL(38,3)", "DECIMAL(38,10)"),
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    folder: Path = tmp_path_factory.mktemp("widening")
    connection = duckdb_engine.connect(threads=1)
    connection.execute(
        f"ATTACH 'ducklake:{folder}/catalog.db' AS lake "
        f"(DATA_PATH '{folder}/data/', DATA_INLINING_ROW_LIMIT 0)"
    )
    connection.execute("USE lake")
    yield connection
    connection.close()


def wider(old: str) -> list[str]:
    return [*WIDER.get(old, ()), *(new for new in DECIMALS if is_wider(old, new))]


def test_every_type_with_wider_ones_is_tried() -> None:
    assert {old for old in WIDER if WIDER[old]} <= VALUES.keys()
    assert all(wider(old) for old in VALUES)


@pytest.mark.parametrize("old", VALUES)
def test_a_widened_column_reads_filters_deletes_and_merges_right(
    lake: duckdb.DuckDBPyConnection, old: str
) -> None:
    news, values = wider(old), VALUES[old]

    def ask(statement: str) -> list[tuple[Any, ...]]:
        return lake.execute(statement).fetchall()

    def found(column: str, new: str) -> list[str]:
        return [str(row[0]) for row in ask(f"SELECT CAST({column} AS VARCHAR) FROM t ORDER BY k")]

    lake.execute("DROP TABLE IF EXISTS t")
    lake.execute(
        f"CREATE TABLE t (k INTEGER, {', '.join(f'c{i} {old}' for i in range(len(news)))})"
    )
    for k, value in enumerate(values):  # a file each
        cells = ", ".join([f"CAST('{value}' AS {old})"] * len(news))
        lake.execute(f"INSERT INTO t VALUES ({k}, {cells})")

    lake.execute("BEGIN")
    for i, new in enumerate(news):
        lake.execute(f"ALTER TABLE t ALTER COLUMN c{i} SET DATA TYPE {new}")
    lake.execute("COMMIT")

    for i, new in enumerate(news):
        wide = [f"CAST(CAST('{value}' AS {old}) AS {new})" for value in values]
        want = [str(row[0]) for row in ask(f"SELECT CAST(unnest([{', '.join(wide)}]) AS VARCHAR)")]
        assert found(f"c{i}", new) == want, new
        for k, value in enumerate(wide):
            for operator, ks in (("=", [k]), ("<=", range(k + 1)), (">=", range(k, len(values)))):
                rows = ask(f"SELECT k FROM t WHERE c{i} {operator} {value} ORDER BY k")
                assert [row[0] for row in rows] == list(ks), (new, operator, value)
        ends = ask(f"SELECT CAST(min(c{i}) AS VARCHAR), CAST(max(c{i}) AS VARCHAR) FROM t")
        assert ends == [(want[0], want[-1])], new

    lake.execute("CALL ducklake_merge_adjacent_files('lake')")
    last = len(values) - 1
    lake.execute(
        f"CREATE OR REPLACE TEMP TABLE gone AS SELECT CAST(CAST('{values[last]}' AS {old}) AS {news[-1]}) AS v"
    )
    lake.execute(f"DELETE FROM t USING gone WHERE c{len(news) - 1} = gone.v")
    assert ask("SELECT k FROM t ORDER BY k") == [(k,) for k in range(last)]


NESTED = {
    "INTEGER[]": ("BIGINT[]", "[1, NULL]", "[1, NULL]"),
    "MAP(VARCHAR, DATE)": (
        "MAP(VARCHAR, TIMESTAMP)",
        "MAP {'k': DATE '2024-02-29'}",
        "{k='2024-02-29 00:00:00'}",
    ),
    'STRUCT("a" TINYINT, "b" VARCHAR)': (
        'STRUCT("a" DOUBLE, "b" VARCHAR, "c" UUID)',
        "{'a': 1, 'b': 'x'}",
        "{'a': 1.0, 'b': x, 'c': NULL}",
    ),
    'STRUCT("a" STRUCT("x" DECIMAL(4,2)))[]': (
        'STRUCT("a" STRUCT("x" DECIMAL(9,3), "y" INTEGER[]))[]',
        "[{'a': {'x': 1.25}}]",
        "[{'a': {'x': 1.250, 'y': NULL}}]",
    ),
}


@pytest.mark.parametrize("old", NESTED)
def test_what_is_inside_of_a_type_widens(lake: duckdb.DuckDBPyConnection, old: str) -> None:
    new, value, want = NESTED[old]
    assert is_wider(old, new)
    lake.execute("DROP TABLE IF EXISTS t")
    lake.execute(f"CREATE TABLE t (k INTEGER, c {old})")
    lake.execute(f"INSERT INTO t VALUES (0, {value}), (1, NULL)")

    lake.execute(f"ALTER TABLE t ALTER COLUMN c SET DATA TYPE {new}")
    lake.execute("INSERT INTO t SELECT k + 2, c FROM t")
    lake.execute("CALL ducklake_merge_adjacent_files('lake')")

    rows = lake.execute("SELECT k, CAST(c AS VARCHAR) FROM t ORDER BY k").fetchall()
    assert rows == [(0, want), (1, None), (2, want), (3, None)]
