"""The gate over trees as DuckDB makes them: what tenants write passes, everything else is refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain import sqlgate
from duckmesh_runtime.errors import Invalid

SERIALIZE = "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_default := true, skip_empty := true)"
BUILT_IN = (
    "SELECT DISTINCT function_name FROM duckdb_functions() "
    "WHERE internal AND function_type IN ('scalar', 'aggregate', 'macro')"
)
VIEWS = "SELECT DISTINCT view_name FROM duckdb_views() WHERE internal"


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def rules(connection: duckdb.DuckDBPyConnection) -> sqlgate.Rules:
    built_in, views = (connection.execute(text).fetchall() for text in (BUILT_IN, VIEWS))
    return sqlgate.Rules(
        functions=sqlgate.allowed_functions(row[0] for row in built_in),
        system_views=frozenset(row[0] for row in views),
    )


@pytest.fixture(scope="module")
def check(connection: duckdb.DuckDBPyConnection, rules: sqlgate.Rules) -> Callable[[str], None]:
    """Parse with DuckDB, then ask the gate."""

    def check(sql: str) -> None:
        ((text,),) = connection.execute(SERIALIZE, [sql]).fetchall()
        tree = json.loads(text)
        assert not tree["error"], tree
        sqlgate.check_tree(tree, rules)

    return check


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM flights",
        "FROM flights",
        "TABLE flights",
        "VALUES (1, 'a'), (2, 'b')",
        "SELECT 1",
        "SELECT f.a.b, lake.main.flights.c FROM lake.main.flights f, main.flights",
        "SELECT * FROM LAKE.MAIN.Flights",
        "SELECT carrier, count(*), avg(delay) FILTER (delay > 0) FROM flights GROUP BY ALL HAVING max(delay) > 3",
        "SELECT carrier, grouping(carrier) FROM flights GROUP BY ROLLUP (carrier, day)",
        "SELECT a, row_number() OVER w, lag(a, 1) OVER w, sum(a) OVER w FROM t WINDOW w AS (PARTITION BY b ORDER BY c)",
        "SELECT * FROM t QUALIFY rank() OVER (ORDER BY a) = 1",
        "SELECT first(a ORDER BY b), string_agg(DISTINCT c, ',') FROM t",
        "WITH x AS (SELECT 1 AS a), y AS MATERIALIZED (FROM x) SELECT * FROM y JOIN x USING (a)",
        "WITH RECURSIVE q AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM q WHERE n < 9) SELECT * FROM q",
        "SELECT 1 UNION SELECT 2 INTERSECT SELECT 3 EXCEPT ALL SELECT 4",
        "SELECT 1 AS a UNION BY NAME SELECT 2 AS b",
        "SELECT * FROM a LEFT JOIN b ON a.x = b.y CROSS JOIN c ASOF JOIN d ON a.t >= d.t SEMI JOIN e USING (x)",
        "SELECT * FROM t, LATERAL (SELECT t.a + 1)",
        "SELECT * FROM t WHERE a IN (SELECT b FROM u) AND EXISTS (FROM v) AND c > ALL (SELECT d FROM w)",
        "SELECT (SELECT max(a) FROM t), ARRAY(SELECT a FROM t), NOT EXISTS (SELECT 1)",
        "SELECT * EXCLUDE (a) REPLACE (lower(b) AS b) RENAME (c AS d), COLUMNS('x.*') FROM t",
        "SELECT min(COLUMNS(*)) FROM t",
        "SELECT CASE WHEN a THEN 1 ELSE 2 END, coalesce(a, b), nullif(a, b), ifnull(a, b), if(a, 1, 2) FROM t",
        "SELECT CAST(a AS INTEGER), TRY_CAST(a AS DOUBLE), a::DECIMAL(10, 2)[], 'x'::ENUM('x', 'y') FROM t",
        "SELECT {'a': 1}.a, [1, 2][1], [1, 2, 3][1:2], MAP {'k': 1}['k'], (1, 2), struct_extract(s, 'a') FROM t",
        "SELECT list_transform([1], x -> x + 1), [x * 2 FOR x IN [1, 2] IF x > 1], list_filter(l, lambda x: x > 1)",
        "SELECT a LIKE 'b%', a ILIKE 'b', a SIMILAR TO 'b+', a NOT LIKE 'x' ESCAPE '$', a GLOB '*b', a ~ 'c' FROM t",
        "SELECT a BETWEEN 1 AND 2, a IS DISTINCT FROM b, a IS NULL, NOT a, -a, a % 2, a // 2, a ** 2, a << 1, @ a, 5 ! FROM t",
        "SELECT a COLLATE nocase FROM t ORDER BY a COLLATE de DESC NULLS LAST LIMIT 10 OFFSET 5",
        "SELECT extract(year FROM d), date_trunc('month', d), d + INTERVAL 1 DAY, d AT TIME ZONE 'UTC' FROM t",
        "SELECT time_bucket(INTERVAL '5 minutes', ts), now(), current_date, today(), epoch_ms(ts) FROM t",
        "SELECT j->'a'->>'b', json_extract(j, '$.a'), j::JSON FROM t",
        "SELECT * FROM json_each('[1]'), unnest([1, 2]) u(x), range(3), generate_series(1, 3), repeat('x', 3)",
        "SELECT unnest([1, 2]), unnest({'a': 1}, recursive := true)",
        "SELECT a.lower(), l.list_transform(x -> x + 1) FROM t",
        "SELECT regexp_extract(a, '(b)', 1), split_part(a, '-', 1), concat_ws(',', a, b), printf('%d', 1) FROM t",
        "SELECT approx_quantile(a, 0.5), quantile_cont(a, [0.1, 0.9]), arg_max(a, b), histogram(a), mode(a) FROM t",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
        "SELECT * FROM t TABLESAMPLE 10%",
        "SELECT * FROM t USING SAMPLE reservoir(50 ROWS) REPEATABLE (1)",
        "SELECT DISTINCT ON (a) a, b FROM t ORDER BY ALL",
        "SELECT a FROM t LIMIT 10%",
        "SELECT * FROM t PIVOT (sum(b) FOR a IN (1, 2) GROUP BY c)",
        "SELECT * FROM t UNPIVOT (v FOR n IN (a, b))",
        "SELECT $1 + $2",
        "SELECT #1 FROM t ORDER BY 1",
        "SELECT typeof(a), hash(a), md5(a), uuid(), random(), gen_random_uuid(), pg_typeof(a) FROM t",
        "SELECT current_user, current_schema, version()",
        "DESCRIBE flights",
        "DESCRIBE SELECT a FROM flights",
        "SUMMARIZE flights",
        "SHOW flights",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SELECT * FROM (DESCRIBE flights)",
        "SELECT * FROM information_schema.tables",
        "SELECT column_name FROM information_schema.columns",
        "SELECT * FROM lake.main.duckdb_tables",
        'SELECT "weird name", "a""b" FROM "flights" AS "f.x"',
    ],
)
def test_what_tenants_write_passes(sql: str, check: Callable[[str], None]) -> None:
    check(sql)


PLACES = [
    "SELECT {call}",
    "SELECT 1 + {call}",
    "SELECT * FROM t WHERE a = {call}",
    "SELECT a FROM t GROUP BY {call}",
    "SELECT a FROM t GROUP BY a HAVING {call} > 1",
    "SELECT a FROM t ORDER BY {call}",
    "SELECT a FROM t LIMIT {call}",
    "SELECT a FROM t LIMIT 1 OFFSET {call}",
    "SELECT a FROM t QUALIFY row_number() OVER (PARTITION BY {call}) = 1",
    "SELECT sum(a) OVER (ORDER BY b ROWS BETWEEN {call} PRECEDING AND CURRENT ROW) FROM t",
    "SELECT sum(a) FILTER ({call}) FROM t",
    "SELECT sum(a ORDER BY {call}) FROM t",
    "SELECT DISTINCT ON ({call}) a FROM t",
    "SELECT * REPLACE ({call} AS a) FROM t",
    "SELECT CASE WHEN a THEN {call} END FROM t",
    "SELECT CASE {call} WHEN 1 THEN 2 END FROM t",
    "SELECT [{call}], {{'a': {call}}}",
    "SELECT list_transform([1], x -> {call})",
    "SELECT CAST({call} AS VARCHAR)",
    "SELECT a BETWEEN {call} AND 2 FROM t",
    "SELECT a IN (1, {call}) FROM t",
    "SELECT (SELECT {call})",
    "SELECT * FROM (SELECT {call})",
    "SELECT * FROM t JOIN u ON t.a = {call}",
    "SELECT * FROM t, LATERAL (SELECT {call})",
    "SELECT * FROM range({call})",
    "SELECT * FROM unnest([{call}])",
    "WITH x AS (SELECT {call}) SELECT 1",
    "WITH RECURSIVE x AS (SELECT 1 UNION ALL SELECT {call} FROM x) SELECT 1",
    "SELECT 1 UNION SELECT {call}",
    "VALUES (1), ({call})",
    "DESCRIBE SELECT {call}",
    "SUMMARIZE SELECT {call}",
    "SELECT * FROM t PIVOT (sum({call}) FOR a IN (1, 2))",
    "SELECT * FROM t AT (VERSION => {call})",
    "SELECT upper(lower({call}))",
    "SELECT a.{call} FROM t",
    "SELECT COLUMNS(c -> {call}) FROM t",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", ["current_setting('x')", "Nextval('s')", "not_a_function(1)"])
def test_a_refused_function_is_found_wherever_it_stands(
    place: str, call: str, check: Callable[[str], None]
) -> None:
    with pytest.raises(Invalid, match=call.split("(")[0].lower()) as caught:
        check(place.format(call=call))

    assert caught.value.code == "SQL_NOT_ALLOWED"


@pytest.mark.parametrize("moment", ["VERSION => 3", "TIMESTAMP => now() - INTERVAL 1 HOUR"])
@pytest.mark.parametrize("statement", ["FROM t {at}", "SELECT 1 FROM t JOIN (FROM t {at}) ON true"])
def test_another_snapshot_is_asked_for_in_the_request_and_not_in_the_statement(
    moment: str, statement: str, check: Callable[[str], None]
) -> None:
    with pytest.raises(Invalid, match="give snapshot_id or snapshot_time") as caught:
        check(statement.format(at=f"AT ({moment})"))

    assert caught.value.code == "SQL_NOT_ALLOWED"
    assert "offset" in caught.value.context


TABLE_PLACES = [
    "FROM {table}",
    "SELECT 1 FROM t JOIN {table} ON true",
    "SELECT 1 FROM t, {table}",
    "SELECT 1 FROM {table} x TABLESAMPLE 1%",
    "SELECT (SELECT 1 FROM {table})",
    "SELECT 1 WHERE EXISTS (FROM {table})",
    "WITH x AS (FROM {table}) SELECT 1",
    "FROM t UNION ALL FROM {table}",
    "DESCRIBE FROM {table}",
    "SUMMARIZE FROM {table}",
    "FROM {table} PIVOT (sum(a) FOR b IN (1))",
    "FROM {table} UNPIVOT (v FOR n IN (a, b))",
    "FROM (FROM {table})",
    "FROM (FROM t JOIN {table} ON true) JOIN u ON true",
    "SELECT 1 LIMIT (SELECT count(*) FROM {table})",
]


@pytest.mark.parametrize("place", TABLE_PLACES)
@pytest.mark.parametrize(
    "table",
    [
        "read_text('/etc/passwd')",
        "duckdb_settings()",
        "query('SELECT 1')",
        "'/etc/passwd'",
        "'x.parquet'",
        '"http://127.0.0.1/x"',
        "__ducklake_metadata_lake.ducklake_table",
        "__ducklake_metadata_lake.main.ducklake_table",
        "memory.main.x",
        "temp.x",
        "system.main.duckdb_tables",
        "duckdb_tables",
        "main.duckdb_databases",
        '"MAIN".pragma_database_list',
        "SQLITE_MASTER",
        "pg_catalog.pg_class",
        "information_schema.schemata",
        "memory.information_schema.tables",
        "lake.snapshots()",
    ],
)
def test_a_foreign_table_is_found_wherever_it_stands(
    place: str, table: str, check: Callable[[str], None]
) -> None:
    with pytest.raises(Invalid) as caught:
        check(place.format(table=table))

    assert caught.value.code == "SQL_NOT_ALLOWED"


@pytest.mark.parametrize(
    "sql", ["SHOW DATABASES", "SHOW SCHEMAS", "SHOW TABLES FROM memory", "SHOW VARIABLES"]
)
def test_only_the_lakes_tables_are_shown(sql: str, check: Callable[[str], None]) -> None:
    with pytest.raises(Invalid, match="SHOW"):
        check(sql)


@pytest.mark.parametrize(
    "node",
    [
        {"type": "INSERT_NODE"},
        {"from_table": {"type": "COLUMN_DATA"}},
        {"left": {"type": "NEW_KIND_OF_TABLE"}},
        {"select_list": [{"class": "NEW_KIND", "type": "NEW_KIND"}]},
        {"select_list": [{"class": "CONSTANT", "function_name": "nextval"}]},
        {"anything": [[{"function_name": "lower"}]]},
    ],
)
def test_what_a_new_engine_may_add_is_refused(node: object, rules: sqlgate.Rules) -> None:
    with pytest.raises(Invalid) as caught:
        sqlgate.check_tree({"statements": [{"node": node}]}, rules)

    assert caught.value.code == "SQL_NOT_ALLOWED"


def test_a_deep_tree_is_walked(rules: sqlgate.Rules) -> None:
    deep: Any = {"class": "FUNCTION", "function_name": "nextval"}
    for _ in range(100_000):
        deep = {"class": "OPERATOR", "children": [deep]}

    with pytest.raises(Invalid, match="nextval"):
        sqlgate.check_tree(deep, rules)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "class", "function", "from_table", "function_name", "query"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON)
def test_any_tree_passes_or_is_refused(found: object) -> None:
    rules = sqlgate.Rules(functions=frozenset({"lower"}), system_views=frozenset())
    with suppress(Invalid):
        sqlgate.check_tree(found, rules)


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("SELECT '" + "x" * 65_536 + "'", "65536 bytes"),
        ("é" * 32_769, "65536 bytes"),
        ("SELECT 1\x00", "NUL"),
    ],
    ids=["long", "long-in-bytes", "nul"],
)
def test_a_text_that_no_parser_should_see_is_refused(sql: str, word: str) -> None:
    with pytest.raises(Invalid, match=word):
        sqlgate.check_text(sql)


def test_a_text_of_64_kib_is_fine() -> None:
    sqlgate.check_text("x" * 65_536)
    sqlgate.check_text("\ud800")


def test_internal_functions_are_left_out() -> None:
    names = ["lower", "SUM", "__internal_compress_string_ubigint", "pg_get_viewdef", "pg_typeof"]

    allowed = sqlgate.allowed_functions([*names, "has_table_privilege", "current_setting"])

    assert allowed == {"lower", "sum", "pg_typeof", "unnest"}


def test_every_refused_function_has_a_reason_and_mostly_exists(
    connection: duckdb.DuckDBPyConnection, rules: sqlgate.Rules
) -> None:
    """A name that DuckDB dropped is harmless; a list that has gone stale as a whole is not."""
    rows = connection.execute("SELECT function_name FROM duckdb_functions()").fetchall()
    known = {row[0] for row in rows}

    assert all(sqlgate.REFUSED_FUNCTIONS.values())
    assert len(sqlgate.REFUSED_FUNCTIONS.keys() & known) > len(sqlgate.REFUSED_FUNCTIONS) * 0.9
    assert not sqlgate.REFUSED_FUNCTIONS.keys() & rules.functions
