"""The DuckDB of one slot: opened, locked at the first statement, a cursor for each statement that does not end well.

Locked means: no file but frozen catalogs, no address but the read proxy's, no setting, no extension. The lock comes
with the first statement because only that says where the read proxy listens.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from duckmesh_runtime.domain import sqlgate, sqlplace, wire
from duckmesh_runtime.domain.lakesql import LAKE, quote_text
from duckmesh_runtime.errors import Invalid, Unavailable
from duckmesh_runtime.extensions import connect
from duckmesh_runtime.sandbox import landlock
from duckmesh_runtime.sandbox.failures import clean, with_reason
from duckmesh_runtime.sandbox.limits import CORES

EXTENSIONS: Final = ("ducklake", "httpfs")
BATCH_ROWS: Final = 16_384
_MOST_THREADS: Final = 4
# DuckDB counts most of what it allocates, not all: the kernel's bound is for the rest.
_COUNTED_PART: Final = 0.8

_SETTINGS: Final = (
    "SET TimeZone = 'UTC'",
    "SET enable_progress_bar = false",
    "SET temp_directory = ''",
    "SET python_enable_replacements = false",
    "SET allow_community_extensions = false",
    # Data files never change, so what is cached is right.
    "SET validate_external_file_cache = 'NO_VALIDATION'",
    "SET http_retries = 2",
    "SET http_retry_wait_ms = 50",
    "SET http_timeout = 20",
    # Else each file, and each return to it, opens a connection of its own.
    "SET httpfs_connection_caching = true",
    "SET allow_persistent_secrets = false",
    # Without this, the first HTTP read of a locked engine fails: the secret manager starts itself too late.
    "FROM duckdb_secrets()",
    # The only ones that the lock leaves: the slot says them anew for each statement.
    "SET allowed_configs = ['enable_profiling', 'custom_profiling_settings', 'threads']",
)
_READY: Final = (
    "PRAGMA enable_profiling = 'no_output'",
    # What `scanned` asks for: all that DuckDB can tell would cost a small statement another millisecond.
    'SET custom_profiling_settings = \'{"EXTRA_INFO": "true", "TOTAL_BYTES_READ": "true"}\'',
    # With the schema's name: else DuckLake looks for a schema of the lake's name first.
    f"USE {LAKE}.main",
)
"""Each cursor begins with these."""

_EXPLAINED: Final = "RESET custom_profiling_settings"
"""EXPLAIN ANALYZE shows what is measured."""

_LOAD_SCHEMA: Final = f"SELECT count(*) FROM duckdb_tables() WHERE database_name = '{LAKE}'"  # noqa: S608 - a constant
_SERIALIZE: Final = "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_default := true, skip_empty := true)"
_KEPT_TEXTS: Final = 256
_KEPT_CHARACTERS: Final = 4_096
_BUILT_IN: Final = (
    "SELECT DISTINCT function_name FROM duckdb_functions() "
    "WHERE internal AND function_type IN ('scalar', 'aggregate', 'macro')"
)
_SYSTEM_VIEWS: Final = "SELECT DISTINCT view_name FROM duckdb_views() WHERE internal"
_WARM_UP: Final = "SELECT sum(n), $1, $2, $3, $4, $5 FROM (SELECT count(*) AS n FROM range(500000) GROUP BY range % 7)"
# Atomic: a text of comments only must not be tried in all its ways.
_BLANKS: Final = r"(?>\s|--[^\n\r]*[\n\r]|/\*.*?\*/)"
_NOT_IN_ARROW: Final = re.compile(r"Unsupported Arrow type (\w+)")
_EXPLAIN: Final = re.compile(
    rf"{_BLANKS}*+explain{_BLANKS}++(analyze{_BLANKS}++)?", re.IGNORECASE | re.DOTALL
)


@dataclass(slots=True, kw_only=True)
class Result:
    """A running statement.

    Attributes:
        type_names: DuckDB's type name of each column.
        schema: Of the batches.
        batches: At most `BATCH_ROWS` rows each; raises DuckDB's and Arrow's errors.
    """

    type_names: Sequence[str]
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class Engine:
    """One DuckDB instance.

    Args:
        catalog_dir: Folder of the frozen catalogs, absolute.
        gated: False only in tests, which show that the lock alone holds.
        checked: An earlier slot has checked the signatures of the extensions.
    """

    def __init__(self, *, catalog_dir: Path, gated: bool = True, checked: bool = False) -> None:
        self._catalog_dir = catalog_dir
        self._gated = gated
        self._locked = False
        self._attached: tuple[str, int | None] | None = None
        self._root = _open(checked)
        self._kept_check = lru_cache(_KEPT_TEXTS)(self._checked_text)
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._plain = False  # the statement left its cursor as `_READY` made it
        self._stopped = False
        self._spread_over = 0
        self._next: duckdb.DuckDBPyConnection | None = None  # of the catalog that is attached
        self._rules = sqlgate.Rules(
            functions=sqlgate.allowed_functions(self._names(_BUILT_IN)),
            system_views=frozenset(self._names(_SYSTEM_VIEWS)),
        )
        self._warm_up()

    def bound(self, memory_bytes: int) -> None:
        """Let DuckDB use this much at most: it then fails in order, before the kernel refuses it memory."""
        mib = int(memory_bytes * _COUNTED_PART) // 2**20
        self._root.execute(f"SET memory_limit = '{mib}MiB'")

    def start(self, job: wire.Job) -> Result:
        """Check a statement and start it; `finish` must follow.

        Raises:
            DuckmeshError: SQL_NOT_ALLOWED, SQL_ERROR, QUERY_UNAVAILABLE.
            duckdb.Error: It does not bind or run.
        """
        self._lock(job.data_url)
        self._use(job.catalog_path, job.snapshot_version)
        self._stopped = False
        self._spread(job.threads)
        types, reader = self._execute(job)
        return Result(
            type_names=types,
            schema=reader.schema,
            batches=with_reason(reader, lambda: self._again(job), lambda: self._stopped),
        )

    def interrupt(self) -> None:
        """Stop the running statement, from another thread; it then raises InterruptException."""
        self._stopped = True
        if (cursor := self._cursor) is not None:
            cursor.interrupt()

    def scanned(self) -> tuple[int, int]:
        """Files and bytes that the statement read, after its last batch; (0, 0) when DuckDB does not say."""
        if self._cursor is None:
            return 0, 0
        try:
            profile = json.loads(self._cursor.get_profiling_information(format="json"))
        except (duckdb.Error, ValueError):
            return 0, 0
        return _files_of(profile), int(profile.get("total_bytes_read", 0))

    def finish(self, *, ended: bool) -> None:
        """End the statement and forget all it made.

        Args:
            ended: It gave all its rows. A SELECT leaves nothing behind then, and the next statement takes its cursor,
                which costs less than a new one.
        """
        cursor, self._cursor = self._cursor, None
        if cursor is None:
            return
        if ended and self._plain and not self._stopped:
            self._next = cursor
        else:
            cursor.close()

    def prepare(self, order: wire.Prepare) -> None:
        """Attach the newest catalog and load its schema, which the next statement would have to.

        Raises:
            Unavailable: QUERY_UNAVAILABLE: it cannot be opened.
        """
        self._lock(order.data_url)
        self._use(order.catalog_path, None)
        self._root.execute(_LOAD_SCHEMA).fetchall()

    def make_ready(self) -> None:
        """Do what the next statement needs, whichever it is, while nobody waits."""
        if self._attached is not None and self._next is None:
            self._next = self._new_cursor()

    def _new_cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._root.cursor()
        for statement in _READY:
            cursor.execute(statement)
        return cursor

    def _execute(self, job: wire.Job) -> tuple[Sequence[str], pa.RecordBatchReader]:
        """Start the statement; returns DuckDB's types and the rows."""
        statement = self._check(job.sql)
        self._cursor = cursor = self._next or self._new_cursor()
        self._next = None
        self._plain = statement.type != duckdb.StatementType.EXPLAIN
        if not self._plain:
            cursor.execute(_EXPLAINED)
        cursor.execute(statement, list(job.params))
        columns = cursor.description or []
        types = [str(column[1]) for column in columns]
        try:
            return types, cursor.to_arrow_reader(BATCH_ROWS)
        except (duckdb.Error, OSError) as error:
            _check_types(error, [str(column[0]) for column in columns], types)
            raise

    def _again(self, job: wire.Job) -> pa.RecordBatchReader:
        self.finish(ended=False)
        self._spread(1)
        return self._execute(job)[1]

    def _check(self, sql: str) -> duckdb.Statement:
        """The statement to run. Texts come again and again; what was found to be allowed stays so."""
        check = self._kept_check if len(sql) <= _KEPT_CHARACTERS else self._checked_text
        (statement,) = self._root.extract_statements(check(sql))
        return statement

    def _checked_text(self, sql: str) -> str:
        """The text of the one statement to run.

        Raises:
            Invalid: SQL_NOT_ALLOWED.
        """
        sqlgate.check_text(sql)
        statements = self._root.extract_statements(sql)
        if len(statements) != 1:
            raise sqlgate.refused(_count_problem(sql, len(statements)))
        (statement,) = statements
        if not self._gated:
            return sql
        start = len(sqlplace.as_read(sql).partition(statement.query)[0].encode())
        if statement.type == duckdb.StatementType.EXPLAIN:
            return self._check_explain(statement, start)
        self._check_select(statement, start)
        return sql

    def _check_explain(self, statement: duckdb.Statement, start: int) -> str:
        """DuckDB serialises no EXPLAIN: check what it explains, and run EXPLAIN of exactly that, at its place."""
        found = _EXPLAIN.match(statement.query)
        if found is None:
            raise sqlgate.refused("this form of EXPLAIN is not allowed", "use EXPLAIN SELECT ...")
        start += len(found[0].encode())
        (explained,) = self._root.extract_statements(" " * start + statement.query[found.end() :])
        self._check_select(explained, 0)
        explain = "EXPLAIN ANALYZE " if found[1] else "EXPLAIN "
        return explain.rjust(start) + explained.query.lstrip(" ")

    def _check_select(self, statement: duckdb.Statement, start: int) -> None:
        """Check it; it starts so many bytes behind the beginning of what was sent."""
        if statement.type != duckdb.StatementType.SELECT:
            raise sqlgate.refused(f"{statement.type.name} statements are not allowed")
        placed = " " * start + statement.query
        ((text,),) = self._root.execute(_SERIALIZE, [placed]).fetchall()
        try:
            tree = json.loads(text)
        except RecursionError:
            raise sqlgate.refused("the statement is nested too deeply", "nest less") from None
        if tree.get("error"):
            reason = clean(str(tree.get("error_message")))
            raise sqlgate.refused(f"the statement cannot be checked ({reason})")
        sqlgate.check_tree(tree, self._rules)

    def _lock(self, data_url: str) -> None:
        if self._locked:
            return
        self._confine(data_url)
        for statement in _SETTINGS:
            self._root.execute(statement)
        folders = ", ".join(quote_text(_folder(f)) for f in (data_url, str(self._catalog_dir)))
        self._root.execute(f"SET allowed_directories = [{folders}]")
        self._root.execute("SET enable_external_access = false")
        self._root.execute("SET lock_configuration = true")
        self._locked = True

    def _confine(self, data_url: str) -> None:
        """Put the kernel's box around the engine: should its own lock fail, there is still nothing to reach."""
        # A thread is bound only when it starts after this: the engine's start anew.
        self._root.execute("SET threads = 1")
        landlock.confine(
            readable=[self._catalog_dir, *_python_code()], port=urlsplit(data_url).port or 0
        )
        self._root.execute(f"SET threads = {_threads()}")

    def _use(self, catalog: str, version: int | None) -> None:
        if self._attached == (catalog, version):
            return
        if self._next is not None:
            self._next.close()
            self._next = None
        if self._attached is not None:
            self._root.execute(f"DETACH {LAKE}")
            self._attached = None
        at = "" if version is None else f", SNAPSHOT_VERSION {version:d}"
        try:
            self._root.execute(
                f"ATTACH {quote_text(f'ducklake:{catalog}')} AS {LAKE} (READ_ONLY{at})"
            )
        except duckdb.Error as error:
            raise Unavailable(
                "QUERY_UNAVAILABLE", "the catalog of this snapshot cannot be opened: repeat"
            ) from error
        self._attached = (catalog, version)

    def _spread(self, threads: int) -> None:
        """Use so many threads, as far as there are cores."""
        threads = min(threads or _threads(), _threads())
        if threads != self._spread_over:
            self._root.execute(f"SET threads = {threads:d}")
            self._spread_over = threads

    def _names(self, statement: str) -> list[str]:
        return [row[0] for row in self._root.execute(statement).fetchall()]

    def _warm_up(self) -> None:
        """Run what a statement needs once: threads, imports (parameters: 0.2 s) and memory that they map."""
        self._root.execute(_SERIALIZE, ["SELECT 1"]).fetchall()
        self._root.execute(_WARM_UP, ["a", 1, 1.5, None, [1]]).to_arrow_reader(
            BATCH_ROWS
        ).read_all()


def _open(checked: bool) -> duckdb.DuckDBPyConnection:
    # The errors say where in the statement.
    return connect(EXTENSIONS, {"threads": _threads(), "errors_as_json": True}, checked=checked)


def _python_code() -> set[Path]:
    """Folders of installed code, which is no secret: Python and its packages import some of their parts late."""
    paths = sysconfig.get_paths()
    found = {Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return {folder for folder in found if folder.is_dir()}


def _threads() -> int:
    return min(_MOST_THREADS, CORES)


def _folder(name: str) -> str:
    return name if name.endswith("/") else name + "/"


def _count_problem(sql: str, count: int) -> str:
    if count == 0:
        return "there is no statement"
    if re.search(r"\bpivot", sql, re.IGNORECASE):
        return "PIVOT without its list of values is several statements; write FROM t PIVOT (... FOR x IN (...))"
    return f"there are {count} statements"


def _check_types(error: Exception, names: Sequence[str], types: Sequence[str]) -> None:
    """Say which columns have a type that Arrow has no form for."""
    if found := _NOT_IN_ARROW.search(str(error)):
        columns = [name[:60] for name, type_ in zip(names, types, strict=True) if found[1] in type_]
        raise Invalid(
            "SQL_ERROR",
            f"sql: no answer holds the type {found[1]} of {', '.join(map(repr, columns))}: "
            "cast it, for example to JSON or VARCHAR",
        ) from error


def _files_of(profile: object) -> int:
    """Sum over the operators that read files."""
    total, todo = 0, [profile]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            info = item.get("extra_info")
            if isinstance(info, dict):
                total += int(info.get("Total Files Read", 0))
            todo.extend(item.get("children", ()))
    return total
