"""Statements that try to reach what is not the lake's tables: one table for the gate, the engine's lock and the kernel's box.

`{file}` holds a secret, `{folder}` is its folder, `{link}` a symlink to it inside of the catalog folder, `{catalogs}` that
folder, `{proxy}` the read proxy's URL, `{port}` a listener that nobody may reach, `{parent}` the supervisor's process id.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One statement.

    Attributes:
        name: Test id.
        sql: With the placeholders above.
        code: The answer of the whole sandbox.
    """

    name: str
    sql: str
    code: str = "SQL_NOT_ALLOWED"


def _attacks(group: str, *statements: str, code: str = "SQL_NOT_ALLOWED") -> list[Attack]:
    return [
        Attack(name=f"{group}-{number}", sql=sql, code=code)
        for number, sql in enumerate(statements, 1)
    ]


ATTACKS = [
    *_attacks(
        "files",
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_blob('{file}')",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM read_csv_auto('{file}', header = false)",
        "SELECT * FROM read_json_objects('{file}')",
        "SELECT * FROM read_ndjson_objects('{file}')",
        "SELECT * FROM read_parquet('{file}')",
        "SELECT * FROM parquet_scan('{file}')",
        "SELECT * FROM parquet_metadata('{file}')",
        "SELECT * FROM parquet_full_metadata('{file}')",
        "SELECT * FROM sniff_csv('{file}')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM read_duckdb('{file}')",
        "SELECT * FROM read_text('/proc/self/environ')",
        "SELECT * FROM read_text('/proc/{parent}/environ')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_text('/var/run/secrets/kubernetes.io/serviceaccount/token')",
        "FROM '{file}'",
        "SELECT * FROM '{file}'",
        'SELECT * FROM "{file}"',
    ),
    *_attacks(
        "paths",
        "SELECT * FROM read_text('{catalogs}/../secret')",
        "SELECT * FROM read_text('{catalogs}//..//secret')",
        "SELECT * FROM read_text('{link}')",
        "SELECT * FROM read_text('file://{file}')",
        "SELECT * FROM read_text('~/secret')",
        "SELECT * FROM read_text(['{catalogs}/s.db', '{file}'])",
        "SELECT * FROM read_text('{catalogs}-twin/secret')",
        "SELECT * FROM (SELECT content FROM read_text('{file}')) t(c)",
        "WITH t AS (FROM read_text('{file}')) SELECT * FROM t",
        "SELECT (SELECT content FROM read_text('{file}'))",
        "SELECT * FROM flights WHERE EXISTS (FROM read_text('{file}'))",
        "SELECT * FROM flights LIMIT (SELECT count(*) FROM read_text('{file}'))",
        "SELECT * FROM flights ORDER BY (SELECT content FROM read_text('{file}'))",
        "DESCRIBE SELECT * FROM read_csv('{file}')",
        "SUMMARIZE SELECT * FROM read_csv('{file}')",
        "SELECT * FROM flights, LATERAL (SELECT * FROM read_text('{file}'))",
        "EXPLAIN ANALYZE SELECT * FROM read_text('{file}')",
    ),
    *_attacks(
        "network",
        "SELECT * FROM read_text('http://127.0.0.1:{port}/')",
        "SELECT * FROM read_parquet('http://169.254.169.254/latest/meta-data/')",
        "SELECT * FROM read_csv('https://127.0.0.1:{port}/x.csv')",
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
        "SELECT * FROM read_parquet('hf://datasets/x/y.parquet')",
        "SELECT * FROM 'http://127.0.0.1:{port}/x.parquet'",
        "SELECT * FROM read_text('{proxy}../secret')",
        "SELECT * FROM read_text('{proxy}other')",
        "ATTACH 'http://127.0.0.1:{port}/x.db' AS x",
    ),
    *_attacks(
        "catalog",
        "SELECT * FROM postgres_scan('host=127.0.0.1 port={port}', 'public', 't')",
        "SELECT * FROM postgres_query('p', 'SELECT 1')",
        "ATTACH 'host=127.0.0.1 port={port}' AS p (TYPE postgres)",
        "ATTACH 'ducklake:postgres:host=127.0.0.1 port={port}' AS p",
        "ATTACH 'ducklake:{catalogs}/s.db' AS x (DATA_PATH '/etc/')",
        "SELECT * FROM __ducklake_metadata_lake.ducklake_data_file",
        "SELECT * FROM __ducklake_metadata_lake.main.ducklake_metadata",
        "SELECT * FROM ducklake_snapshots('lake')",
        "SELECT * FROM ducklake_list_files('lake', 'flights')",
        "SELECT * FROM ducklake_scan()",
        "CALL ducklake_cleanup_old_files('lake', cleanup_all => true)",
    ),
    *_attacks(
        "extensions",
        "INSTALL postgres_scanner",
        "LOAD postgres_scanner",
        "LOAD '{file}'",
        "INSTALL shellfs FROM community",
        "FORCE INSTALL spatial FROM 'http://127.0.0.1:{port}'",
    ),
    *_attacks(
        "writes",
        "COPY flights TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{catalogs}/out.csv'",
        "COPY (SELECT 1) TO '{proxy}out.parquet'",
        "EXPORT DATABASE '{folder}/all'",
        "ATTACH '{catalogs}/new.db' AS x",
        "ATTACH ':memory:' AS x",
        "DETACH lake",
        "CREATE TABLE memory.main.t AS SELECT 1",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE MACRO f() AS 1",
        "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
        "INSERT INTO flights VALUES (1)",
        "DELETE FROM flights",
        "UPDATE flights SET id = 0",
        "DROP TABLE flights",
        "CHECKPOINT",
        "VACUUM",
        "BEGIN",
    ),
    *_attacks(
        "settings",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET allowed_directories = ['/']",
        "SET VARIABLE x = 1",
        "RESET memory_limit",
        "PRAGMA enable_profiling = 'json'",
        "PRAGMA profiling_output = '{folder}/profile'",
        "PRAGMA database_list",
        "CALL enable_logging()",
        "USE memory",
        "SELECT current_setting('allowed_directories')",
        "SELECT getvariable('x')",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_databases()",
        "SELECT * FROM duckdb_databases",
        "SELECT * FROM pragma_database_list",
        "SELECT path FROM main.duckdb_databases",
        'FROM "MAIN".Pragma_Database_List',
        "SUMMARIZE main.duckdb_logs",
        "SELECT * FROM duckdb_extensions()",
        "SELECT * FROM duckdb_functions()",
        "SELECT * FROM duckdb_logs()",
        "SELECT * FROM duckdb_external_file_cache()",
        "SELECT * FROM pg_catalog.pg_settings",
        "SELECT * FROM system.main.duckdb_tables",
        "SELECT * FROM which_secret('s3://x', 's3')",
        "SHOW DATABASES",
    ),
    *_attacks(
        "disguise",
        "SELECT 1; DROP TABLE flights",
        "SELECT 1; SELECT 2",
        "; ;",
        "",
        "/* SELECT */ DROP TABLE flights",
        "\ufeffDROP TABLE flights",
        "DROP\u200b TABLE flights",
        "EXPLAIN DELETE FROM flights",
        "EXPLAIN ANALYZE DELETE FROM flights",
        "/* */ EXPLAIN ANALYZE COPY flights TO '{folder}/out.csv'",
        "PIVOT flights ON id USING count(*)",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "SELECT * FROM query('SELECT content FROM read_text(''{file}'')')",
        "SELECT * FROM query_table(['flights', 'duckdb_settings'])",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT json_serialize_plan('SELECT * FROM flights')",
        "SELECT main.read_text('{file}')",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM seq_scan('flights')",
        "SELECT * FROM test_all_types()",
        "SELECT write_log('x')",
        "SELECT nextval('s')",
        "SELECT getenv('HOME')",
        "SELECT sleep_ms(1)",
        "SELECT 1\x00; DROP TABLE flights",
        "SELECT " + "1," * 40_000 + "1",
    ),
    *_attacks(
        "broken",
        "WITH x AS (DELETE FROM flights RETURNING *) SELECT * FROM x",
        "SELEC 1",
        "EXPLAIN EXPLAIN SELECT 1",
        "SELECT '",
        "SELECT * FROM flights AT (VERSION => 0)",
        "SELECT * FROM arguments",
        "SELECT * FROM job",
        code="SQL_ERROR",
    ),
]
