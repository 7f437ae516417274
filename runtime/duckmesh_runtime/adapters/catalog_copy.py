"""The live rows of a lake's catalog at one snapshot, copied into a small DuckDB file for the sandbox.

Rows go by COPY from Postgres into the file, columns all the way; this process needs no Postgres extension in DuckDB. The
file's data path is the read proxy's URL. Called by `freeze`, which says which snapshot and who holds the file.

The newest snapshot is kept in a working file, which is brought forward by what differs (`catalog_rows`) and then copied.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters.catalog_rows import LISTS, NOTHING, CatalogRows, Change, Held, Plan
from duckmesh_runtime.adapters.duckdb_engine import Engine, connect
from duckmesh_runtime.domain.lakesql import quote_name, quote_text

_TIMEOUT_S: Final = 20.0
_BLOCK_BYTES: Final = (
    16_384  # the smallest: some 25 mostly tiny tables (measured: a quarter of the default's file)
)
_PATH: Final = "CASE WHEN {x}.path_is_relative THEN {x}.path ELSE '/' END"  # an absolute path is no file of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogFile:
    """A copied catalog.

    Attributes:
        path: The file.
        files: Its data and delete files, path relative to the lake's data path -> size in bytes.
    """

    path: Path
    files: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Working:
    """The working file: attached as `w`, whole, and written by nobody.

    Attributes:
        held: What it holds.
        files: As `CatalogFile`.
    """

    held: Held
    files: Mapping[str, int]


class CatalogCopier:
    """Makes the files: of the newest snapshot one at a time, of past ones several.

    Args:
        lake: Catalog schema.
        folder: Where they go; those that an earlier process left there are removed.
        data_url: What they name as data path.
    """

    def __init__(self, lake: str, folder: Path, *, data_url: str) -> None:
        self._lake = lake
        self._folder = folder
        self._data_url = data_url
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()
        # A thread that was given up may still write there while it is removed.
        self._scratch = tempfile.TemporaryDirectory(
            prefix="duckmesh-freeze-", ignore_cleanup_errors=True
        )
        self._tables: dict[str, dict[str, str]] = {}
        self._rows = CatalogRows(lake, {})
        self._working: _Working | None = None  # None when nobody knows what it holds
        self._working_file = Path(self._scratch.name) / "working.db"
        # A process before this one may have left files; a sandbox that still knows one must not take ours for it.
        self._run = secrets.token_hex(4)
        self._number = 0
        for left in folder.glob("snapshot-*"):
            left.unlink(missing_ok=True)

    async def copy(
        self, connection: asyncpg.Connection, snapshot_id: int, *, past: bool = False
    ) -> CatalogFile:
        """Copy one snapshot; the caller's transaction is REPEATABLE READ and removes nothing while it lasts.

        Args:
            connection: In that transaction.
            snapshot_id: There must be such a snapshot.
            past: It may not be the newest: the file must be attached with its SNAPSHOT_VERSION.
        """
        engine = await self._ready_engine()
        self._number += 1
        path = self._folder / f"snapshot-{snapshot_id}-{self._run}-{self._number}.db"
        make = self._copy_past if past else self._copy_newest
        try:
            files = await make(engine, connection, snapshot_id, path)
        except BaseException:
            path.unlink(missing_ok=True)  # it may have been finished all the same
            raise
        return CatalogFile(path=path, files=files)

    async def close(self) -> None:
        """Free what it works with; the files stay. Safe to repeat."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None
        self._scratch.cleanup()

    async def _copy_newest(
        self, engine: Engine, connection: asyncpg.Connection, snapshot_id: int, path: Path
    ) -> Mapping[str, int]:
        working, self._working = self._working, None  # whatever ends this half way
        held = working.held if working else NOTHING
        plan = await self._rows.plan(connection, snapshot_id, held, past=False)
        self._working = await engine.run(
            lambda k: self._bring_forward(k, working, plan, path), timeout_s=_TIMEOUT_S
        )
        return self._working.files

    async def _copy_past(
        self, engine: Engine, connection: asyncpg.Connection, snapshot_id: int, path: Path
    ) -> Mapping[str, int]:
        plan = await self._rows.plan(connection, snapshot_id, NOTHING, past=True)
        return await engine.run(lambda k: self._write_past(k, plan, path), timeout_s=_TIMEOUT_S)

    def _bring_forward(
        self, k: duckdb.DuckDBPyConnection, working: _Working | None, plan: Plan, path: Path
    ) -> _Working:
        """Change the working file, or begin another one, and copy it."""
        with _undone(k, path):
            if working is None:
                self._begin_working(k)
            self._write(k, "w", plan)
            k.execute("CHECKPOINT w")
            shutil.copyfile(self._working_file, _part(path))
            only_added = working is not None and plan.only_adds_files
            files = dict(working.files) if working is not None and only_added else {}
            files |= _files(k, "w", after=working.held.last if working and only_added else {})
            _finish(path)
        held = Held(digests=plan.digests, lists=plan.lists, last=_last(k, "w"))
        return _Working(held=held, files=files)

    def _begin_working(self, k: duckdb.DuckDBPyConnection) -> None:
        with suppress(duckdb.Error):
            k.execute("DETACH w")
        # Another name each time: a thread that was given up may still write to the one before.
        for left in Path(self._scratch.name).glob("working-*"):
            left.unlink(missing_ok=True)
        self._working_file = Path(self._scratch.name) / f"working-{secrets.token_hex(4)}.db"
        shutil.copyfile(self._template, self._working_file)
        k.execute(f"ATTACH {quote_text(str(self._working_file))} AS w")

    def _write_past(
        self, k: duckdb.DuckDBPyConnection, plan: Plan, path: Path
    ) -> Mapping[str, int]:
        with _undone(k, path):
            shutil.copyfile(self._template, _part(path))
            k.execute(f"ATTACH {quote_text(str(_part(path)))} AS f")
            self._write(k, "f", plan)
            files = _files(k, "f", after={})
            k.execute("DETACH f")
            _finish(path)
        return files

    def _write(self, k: duckdb.DuckDBPyConnection, into: str, plan: Plan) -> None:
        """Make the changes in an attached file."""
        spool = Path(self._scratch.name) / f"{secrets.token_hex(4)}.csv"
        try:
            k.execute("BEGIN")
            for change in plan.changes:
                spool.write_bytes(change.rows)
                k.execute(_statement(into, change, self._tables[change.table], spool))
            # No parameter, here and below: where pandas is installed, DuckDB imports it with the first (0.2 s).
            url = quote_text(self._data_url)
            k.execute(
                f"UPDATE {into}.ducklake_metadata SET value = {url} WHERE key = 'data_path' AND value != {url}"  # noqa: S608 - quoted
            )
            k.execute("COMMIT")
        finally:
            spool.unlink(missing_ok=True)

    async def _ready_engine(self) -> Engine:
        async with self._opening:
            engine = self._engine
            if engine is None or engine.given_up:
                connection = await asyncio.to_thread(connect, extensions=("ducklake",), threads=1)
                engine = Engine(connection, name="freeze")
                self._working = None
                self._tables = await engine.run(self._make_template, timeout_s=_TIMEOUT_S)
                self._rows = CatalogRows(
                    self._lake, {name: [*columns] for name, columns in self._tables.items()}
                )
                self._engine = engine
            return engine

    def _make_template(self, k: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
        """Make a file with DuckLake's empty tables; returns table -> column -> type."""
        native = Path(self._scratch.name) / "native.db"
        self._template.unlink(missing_ok=True)
        native.unlink(missing_ok=True)
        k.execute(
            f"ATTACH {quote_text(f'ducklake:{native}')} AS n (DATA_PATH {quote_text(self._scratch.name)})"
        )
        k.execute("DETACH n")
        k.execute(f"ATTACH {quote_text(str(native))} AS n (READ_ONLY)")
        k.execute(f"ATTACH {quote_text(str(self._template))} AS f (BLOCK_SIZE {_BLOCK_BYTES})")
        tables: dict[str, dict[str, str]] = {}
        for table, column, type_name in k.execute(_COLUMNS).fetchall():
            tables.setdefault(table, {})[column] = type_name
        for table in tables:
            k.execute(f"CREATE TABLE f.{quote_name(table)} AS FROM n.{quote_name(table)} LIMIT 0")
        k.execute("DETACH f")
        k.execute("DETACH n")
        return tables

    @property
    def _template(self) -> Path:
        return Path(self._scratch.name) / "template.db"


_COLUMNS: Final = """
SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = 'n' ORDER BY table_name, column_index
"""

_FILES: Final = f"""
SELECT {_PATH.format(x="s")} || {_PATH.format(x="t")} || {_PATH.format(x="x")} AS path, x.file_size_bytes
  FROM (SELECT table_id, path, path_is_relative, file_size_bytes FROM {{db}}.ducklake_data_file
         WHERE data_file_id > {{data_file:d}}
        UNION ALL
        SELECT table_id, path, path_is_relative, file_size_bytes FROM {{db}}.ducklake_delete_file
         WHERE delete_file_id > {{delete_file:d}}) x
  JOIN {{db}}.ducklake_table t USING (table_id) JOIN {{db}}.ducklake_schema s USING (schema_id)
"""  # noqa: S608 - constants only


def _files(k: duckdb.DuckDBPyConnection, db: str, *, after: Mapping[str, int]) -> dict[str, int]:
    """Path -> size of the files with ids above these."""
    data_file, delete_file = (after.get(name, -1) for name in LISTS)
    statement = _FILES.format(db=db, data_file=data_file, delete_file=delete_file)
    return dict(k.execute(statement).fetchall())


def _last(k: duckdb.DuckDBPyConnection, db: str) -> dict[str, int]:
    """The highest id in each list of files."""
    found = {}
    for table, column in LISTS.items():
        ((last,),) = k.execute(f"SELECT coalesce(max({column}), -1) FROM {db}.{table}").fetchall()  # noqa: S608 - constants
        found[table] = last
    return found


def _statement(into: str, change: Change, columns: Mapping[str, str], file: Path) -> str:
    r"""Writes spooled CSV to a table; an unquoted \N is NULL, a quoted one is text, as COPY writes them."""
    target = f"{into}.{quote_name(change.table)}"
    if not change.rows and not change.added:
        return f"CREATE OR REPLACE TABLE {target} AS FROM {target} LIMIT 0"
    types = ", ".join(
        f"{quote_text(column)}: {quote_text(kind)}" for column, kind in columns.items()
    )
    rows = (
        f"SELECT * FROM read_csv({quote_text(str(file))}, columns = {{{types}}}, "  # noqa: S608 - quoted
        "auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"', nullstr = '\\N', "
        "allow_quoted_nulls = false, parallel = false, max_line_size = 16777216)"
    )
    # Not DELETE and INSERT: the deleted rows would stay in the file.
    return (
        f"INSERT INTO {target} {rows}"
        if change.added
        else f"CREATE OR REPLACE TABLE {target} AS {rows}"
    )


def _part(path: Path) -> Path:
    return path.with_suffix(".part")


def _finish(path: Path) -> None:
    """A file gets its name when it is whole."""
    _part(path).chmod(0o644)
    _part(path).rename(path)


@contextmanager
def _undone(k: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    """Leave nothing of a file that is not finished."""
    try:
        yield
    except BaseException:
        for undo in ("ROLLBACK", "DETACH f"):
            with suppress(duckdb.Error):
                k.execute(undo)
        _part(path).unlink(missing_ok=True)
        raise
