"""DuckDB statements of the lake, as text. Pure; `adapters` run them.

Identifiers pass `quote_name`, texts `quote_text`; rows are never text.
DuckDB takes no parameters in ATTACH, CREATE SECRET, DDL and CALL, which is why these are built at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa

from duckmesh_runtime.domain.bus_rows import DELETED
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
from duckmesh_runtime.domain.columns import ColumnType
from duckmesh_runtime.domain.schema import ColumnDef, Default, TableDef
from duckmesh_runtime.domain.tally import Tally

LAKE: Final = "lake"
"""The lake's name inside our own DuckDB connections."""

PAST: Final = "past"
"""The lake as of an earlier snapshot, where it is attached a second time."""

Scope = Literal["GLOBAL", "SESSION"]

POSITION: Final = "duckmesh:position"
"""Column of a batch that says in which order its rows came."""


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


def attach_lake(
    conninfo_text: str, *, schema: str, data_path: str, version: int | None = None
) -> str:
    """ATTACH of a lake whose catalog is the Postgres schema `schema`; as of a snapshot: read only, as `PAST`.

    META_SCHEMA beside METADATA_SCHEMA keeps DuckDB from reading every other lake's tables.
    Inlined deletes are missing in DuckLake's check against merges: deleted rows come back, so inlining is off.
    """
    name = LAKE if version is None else PAST
    of_then = "" if version is None else f"READ_ONLY, SNAPSHOT_VERSION {version:d}, "
    return (
        f"ATTACH {quote_text(f'ducklake:postgres:{conninfo_text}')} AS {name} "
        f"({of_then}DATA_PATH {quote_text(data_path)}, METADATA_SCHEMA {quote_text(schema)}, "
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


def use_s3(scope: Scope, *, endpoint: str, retries: int) -> Sequence[str]:
    """Where S3 is found: a base URL, empty for AWS's own; and how often a request is repeated.

    Of a connection what is set for the SESSION holds, of what belongs to none what is GLOBAL.
    """
    url = urlsplit(endpoint)
    values = {
        "s3_endpoint": quote_text(url.netloc),
        "s3_url_style": "'path'" if endpoint else "'vhost'",
        "s3_use_ssl": "false" if url.scheme == "http" else "true",
        "http_retries": str(retries),
    }
    return [f"SET {scope} {name} = {value}" for name, value in values.items()]


def use_s3_key(*, key_id: str, secret: str, region: str) -> Sequence[str]:
    """The key that an engine has for all of S3, as long as no secret says otherwise."""
    values = {"s3_access_key_id": key_id, "s3_secret_access_key": secret, "s3_region": region}
    return [f"SET GLOBAL {name} = {quote_text(value)}" for name, value in values.items()]


def mark_commit(prev: int, tok: int, what: str, tally: Tally | None = None) -> str:
    """Say what the running transaction is: it moves the watermark from `prev` to `tok`. First statement after BEGIN.

    Said again before COMMIT, with what it did to which table; without that the lake's ledger ends.
    """
    info: dict[str, object] = {"role": "w", "prev": prev, "tok": tok}
    if tally is not None:
        info["rows"] = tally.rows
    if tally is not None and tally.ended:
        info["ended"] = tally.ended
    text = json.dumps(info, separators=(",", ":"))
    return (
        f"CALL {LAKE}.set_commit_message('duckmesh', {quote_text(what)}, "
        f"extra_info => {quote_text(text)})"
    )


def insert_rows(table: str, columns: Sequence[str], source: str) -> str:
    """Insert all rows of the view `source`, column by column of the same name."""
    names = _names(columns)
    return f"INSERT INTO {_in_lake(table)} ({names}) SELECT {names} FROM {quote_name(source)}"  # noqa: S608 - quoted


def make_batch(table: str, columns: Sequence[str], batch: str) -> str:
    """A temporary table for rows on their way into a keyed table: the lake's own types, so that keys compare as there."""
    names = _names(columns)
    return (
        f"CREATE OR REPLACE TEMP TABLE {quote_name(batch)} AS SELECT {names}, "  # noqa: S608 - quoted
        f"false AS {quote_name(DELETED)}, 0::BIGINT AS {quote_name(POSITION)} "
        f"FROM {_in_lake(table)} WHERE false"
    )


def fill_batch(columns: Sequence[str], batch: str, source: str) -> str:
    """Take the rows of the view `source` with what says which are deletes and in which order they came."""
    names = _names((*columns, DELETED, POSITION))
    return f"INSERT INTO {quote_name(batch)} ({names}) SELECT {names} FROM {quote_name(source)}"  # noqa: S608 - quoted


def delete_batch(table: str, key: Sequence[str], batch: str) -> str:
    """Delete the rows whose keys are in the batch."""
    names = _names(key)
    same = " AND ".join(f"t.{quote_name(name)} = b.{quote_name(name)}" for name in key)
    return (
        f"DELETE FROM {_in_lake(table)} AS t USING "  # noqa: S608 - quoted
        f"(SELECT DISTINCT {names} FROM {quote_name(batch)}) AS b WHERE {same}"
    )


def upsert_batch(table: str, columns: Sequence[str], key: Sequence[str], batch: str) -> str:
    """Insert the last row of each key of the batch, unless it is a delete."""
    names = _names(columns)
    return (
        f"INSERT INTO {_in_lake(table)} ({names}) SELECT {names} FROM (SELECT * FROM {quote_name(batch)} "  # noqa: S608 - quoted
        f"QUALIFY row_number() OVER (PARTITION BY {_names(key)} ORDER BY {quote_name(POSITION)} DESC) = 1) "
        f"WHERE NOT {quote_name(DELETED)}"
    )


def drop_batch(batch: str) -> str:
    """Free the batch's memory."""
    return f"DROP TABLE IF EXISTS temp.{quote_name(batch)}"


def register_file(table: str, path: str) -> str:
    """Make a Parquet file part of a table as it lies.

    Neither missing nor extra columns are allowed for: counts of such files came out wrong without an error.
    """
    return f"CALL ducklake_add_data_files('{LAKE}', {quote_text(table)}, {quote_text(path)})"


def insert_file(table: str, path: str) -> str:
    """Insert the rows of a Parquet file, column by column of the same name."""
    source = f"read_parquet({quote_text(path)}, hive_partitioning = false)"
    return f"INSERT INTO {_in_lake(table)} BY NAME SELECT * FROM {source}"  # noqa: S608 - quoted


def create_table(table: TableDef) -> Sequence[str]:
    """The statements that make a table: its columns, then how its files are laid out and sorted.

    Types are canonical names of `domain.typenames`; the primary key is a rule of ingest, not of the lake.
    """
    columns = ", ".join(_column(column) for column in table.columns)
    statements = [f"CREATE TABLE {_in_lake(table.name)} ({columns})"]
    if table.partition_by:
        statements.append(_arrange(table.name, "PARTITIONED", table.partition_by))
    if table.sort_by:
        statements.append(_arrange(table.name, "SORTED", table.sort_by))
    return statements


def alter_table(table: str, change: Change, kind: ColumnType | None = None) -> str:
    """One change of a table.

    Args:
        table: Its name.
        change: What changes.
        kind: The column's type, for a `SetDefault` with a value.
    """
    match change:
        case AddColumn():
            what = f"ADD COLUMN {_column(change.column)}"
        case DropColumn():
            what = f"DROP COLUMN {quote_name(change.name)}"
        case RenameColumn():
            what = f"RENAME COLUMN {quote_name(change.name)} TO {quote_name(change.to)}"
        case WidenType():
            what = f"ALTER COLUMN {quote_name(change.name)} SET DATA TYPE {change.type}"
        case SetDefault():
            what = f"ALTER COLUMN {quote_name(change.name)} {_set_default(change.default, kind)}"
        case PartitionBy():
            return _arrange(table, "PARTITIONED", change.columns)
        case SortBy():
            return _arrange(table, "SORTED", change.columns)
    return f"ALTER TABLE {_in_lake(table)} {what}"


def drop_table(name: str) -> str:
    """DROP TABLE; one that is not there is fine."""
    return f"DROP TABLE IF EXISTS {_in_lake(name)}"


def expire_snapshots(ids: Sequence[int]) -> str:
    """Give up snapshots, never the newest; its one row says how many there were."""
    versions = ", ".join(f"{number:d}" for number in ids)
    return f"SELECT count(*) FROM ducklake_expire_snapshots('{LAKE}', versions => [{versions}])"  # noqa: S608 - numbers


def mark_maintenance(what: str) -> str:
    """Say that the running transaction is maintenance: it merges and rewrites, the watermark stays."""
    info = quote_text('{"role":"m"}')
    return f"CALL {LAKE}.set_commit_message('duckmesh', {quote_text(what)}, extra_info => {info})"


def bound_merges(size: int) -> str:
    """Let no merge of this engine take a further file from so many bytes on; nothing is stored."""
    return f"SET GLOBAL ducklake_target_file_size = '{size:d}B'"


def merge_files(table: str, *, at_least: int, below: int, outputs: int) -> str:
    """Merge files of a table; a row for each file made: schema, table, input files, files made."""
    return (
        f"CALL ducklake_merge_adjacent_files('{LAKE}', {quote_text(table)}, schema => 'main', "
        f"min_file_size => {at_least:d}, max_file_size => {below:d}, max_compacted_files => {outputs:d})"
    )


def rewrite_files(table: str, ratio: float) -> str:
    """Write files again of whose rows at least this share is deleted; rows as of `merge_files`."""
    return (
        f"CALL ducklake_rewrite_data_files('{LAKE}', {quote_text(table)}, schema => 'main', "
        f"delete_threshold => {ratio!r}::DOUBLE)"
    )


def detach_past() -> str:
    """Let go of the lake as of an earlier snapshot; it need not be attached."""
    return f"DETACH DATABASE IF EXISTS {PAST}"


def copy_past(table: str, columns: Sequence[str]) -> str:
    """Insert all rows that a table of this name had."""
    names = _names(columns)
    return f"INSERT INTO {_in_lake(table)} ({names}) SELECT {names} FROM {_in_past(table)}"  # noqa: S608 - quoted


def delete_newer(table: str) -> str:
    """Delete the rows that the table did not have."""
    return f"DELETE FROM {_in_lake(table)} WHERE rowid NOT IN (SELECT rowid FROM {_in_past(table)})"  # noqa: S608 - quoted


def insert_older(table: str, columns: Sequence[str]) -> str:
    """Insert the rows that the table had and has no more."""
    names = _names(columns)
    return (
        f"INSERT INTO {_in_lake(table)} ({names}) SELECT {names} FROM {_in_past(table)} AS p "  # noqa: S608 - quoted
        f"ANTI JOIN (SELECT rowid AS there FROM {_in_lake(table)}) AS n ON p.rowid = n.there"
    )


def options_text(options: Mapping[str, str]) -> str:
    """Postgres start-up options, the value of libpq's `options`."""
    return " ".join(f"-c {key}={value}" for key, value in options.items())


def _in_lake(table: str) -> str:
    return f"{LAKE}.main.{quote_name(table)}"


def _in_past(table: str) -> str:
    return f"{PAST}.main.{quote_name(table)}"


def _arrange(table: str, how: str, columns: Sequence[str]) -> str:
    by = f"SET {how} BY ({_names(columns)})" if columns else f"RESET {how} BY"
    return f"ALTER TABLE {_in_lake(table)} {by}"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(quote_name(column) for column in columns)


def _column(column: ColumnDef) -> str:
    text = f"{quote_name(column.name)} {column.type}"
    if column.default is not None:
        text += f" DEFAULT {_literal(column.default, column.kind)}"
    return text if column.nullable else f"{text} NOT NULL"


def _set_default(value: Default, kind: ColumnType | None) -> str:
    if value is None or kind is None:
        return "DROP DEFAULT"
    return f"SET DEFAULT {_literal(value, kind)}"


def _literal(value: Default, kind: ColumnType) -> str:
    """A default as a quoted text, the one form that DuckLake takes for every type (a bare `true` it does not)."""
    (built,) = kind.build([value])
    if pa.types.is_binary(built.type):
        return quote_text("".join(f"\\x{byte:02X}" for byte in built.as_py()))
    return quote_text(built.cast(pa.string()).as_py())


def _conninfo_value(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
