"""DuckDB statements of the lake, as text. Pure; `adapters` run them.

Identifiers pass `quote_name`, texts `quote_text`; rows are never text.
DuckDB takes no parameters in ATTACH, CREATE SECRET, DDL and CALL, which is why these are built at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from duckmesh_runtime.domain.schema import ColumnDef, TableDef

LAKE: Final = "lake"
"""The lake's name inside our own DuckDB connections."""


def quote_name(name: str) -> str:
    """A DuckDB or Postgres identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """A DuckDB or Postgres string literal."""
    return "'" + text.replace("'", "''") + "'"


def conninfo(dsn: str, **settings: str) -> str:
    """A libpq URI as keywords and values, the form that takes further settings; `settings` win.

    Args:
        dsn: `postgresql://user:password@host:port/database?key=value`.
        settings: Further libpq keywords, for example `application_name`.
    """
    url = urlsplit(dsn)
    found: dict[str, str] = {}
    if url.hostname:
        found["host"] = url.hostname
    if url.port:
        found["port"] = str(url.port)
    if url.username:
        found["user"] = unquote(url.username)
    if url.password:
        found["password"] = unquote(url.password)
    if url.path.strip("/"):
        found["dbname"] = unquote(url.path[1:])
    found.update(parse_qsl(url.query))
    found.update(settings)
    return " ".join(f"{key}={_conninfo_value(value)}" for key, value in found.items())


def attach_lake(conninfo_text: str, *, schema: str, data_path: str) -> str:
    """ATTACH of a lake whose catalog is the Postgres schema `schema`.

    META_SCHEMA beside METADATA_SCHEMA keeps DuckDB from reading every other lake's tables.
    Inlined deletes are missing in DuckLake's check against merges: deleted rows come back, so inlining is off.
    """
    return (
        f"ATTACH {quote_text(f'ducklake:postgres:{conninfo_text}')} AS {LAKE} "
        f"(DATA_PATH {quote_text(data_path)}, METADATA_SCHEMA {quote_text(schema)}, "
        f"META_SCHEMA {quote_text(schema)}, DATA_INLINING_ROW_LIMIT 0)"
    )


def store_inlining_off() -> str:
    """Store the option in the catalog: what ATTACH says holds for that connection only."""
    return f"CALL {LAKE}.set_option('data_inlining_row_limit', 0)"


def s3_secret(
    *, scope: str, key_id: str, secret: str, endpoint: str, region: str, name: str = "store"
) -> str:
    """Credentials for the objects below `scope`; `endpoint` is a base URL, empty for AWS's own."""
    options = {
        "KEY_ID": quote_text(key_id),
        "SECRET": quote_text(secret),
        "REGION": quote_text(region),
        "SCOPE": quote_text(scope),
    }
    if endpoint:
        url = urlsplit(endpoint)
        options["ENDPOINT"] = quote_text(url.netloc)
        options["URL_STYLE"] = "'path'"
        options["USE_SSL"] = "true" if url.scheme == "https" else "false"
    body = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"CREATE OR REPLACE SECRET {quote_name(name)} (TYPE s3, {body})"


def mark_commit(prev: int, tok: int, what: str) -> str:
    """Say what the running transaction is: it moves the watermark from `prev` to `tok`. First statement after BEGIN."""
    info = f'{{"role":"w","prev":{prev:d},"tok":{tok:d}}}'
    return (
        f"CALL {LAKE}.set_commit_message('duckmesh', {quote_text(what)}, "
        f"extra_info => {quote_text(info)})"
    )


def insert_rows(table: str, columns: Sequence[str], source: str) -> str:
    """Insert all rows of the view `source`, column by column of the same name."""
    names = ", ".join(quote_name(column) for column in columns)
    return f"INSERT INTO {_in_lake(table)} ({names}) SELECT {names} FROM {quote_name(source)}"  # noqa: S608 - quoted


def create_table(table: TableDef) -> str:
    """CREATE TABLE; types are canonical names of `domain.typenames`, the key is a rule of ingest, not of the lake."""
    columns = ", ".join(_column(column) for column in table.columns)
    return f"CREATE TABLE {_in_lake(table.name)} ({columns})"


def partition_table(table: TableDef) -> str | None:
    """Lay the table's Parquet out by its partition columns; None without any."""
    if not table.partition_by:
        return None
    names = ", ".join(quote_name(name) for name in table.partition_by)
    return f"ALTER TABLE {_in_lake(table.name)} SET PARTITIONED BY ({names})"


def drop_table(name: str) -> str:
    """DROP TABLE; one that is not there is fine."""
    return f"DROP TABLE IF EXISTS {_in_lake(name)}"


def options_text(options: Mapping[str, str]) -> str:
    """Postgres start-up options, the value of libpq's `options`."""
    return " ".join(f"-c {key}={value}" for key, value in options.items())


def _in_lake(table: str) -> str:
    return f"{LAKE}.main.{quote_name(table)}"


def _column(column: ColumnDef) -> str:
    text = f"{quote_name(column.name)} {column.type}"
    if column.default is not None:
        text += f" DEFAULT {_literal(column.default)}"
    return text if column.nullable else f"{text} NOT NULL"


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quote_text(value) if isinstance(value, str) else repr(value)


def _conninfo_value(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
