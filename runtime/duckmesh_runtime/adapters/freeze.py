"""Frozen catalogs: the live rows of a lake's catalog at its newest snapshot, as a small DuckDB file for the sandbox.

One REPEATABLE READ transaction reads the rows, the watermark and the clock, so token and snapshot agree. Rows go by COPY
from Postgres into the file, columns all the way; this process needs no Postgres extension in DuckDB. The file's data path
is the read proxy's URL. A live-only copy is right for the newest snapshot only, which is the only one made here.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters.duckdb_engine import Engine, connect
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.domain.lakesql import quote_name, quote_text
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import FrozenCatalog

_SHARED_S: Final = 0.1  # "the newest" without a token is at most this old
_TIMEOUT_S: Final = 20.0
_BLOCK_BYTES: Final = (
    16_384  # the smallest: some 25 mostly tiny tables (measured: a quarter of the default's file)
)

# Not needed to read: what was deleted, who committed what.
_LEFT_EMPTY: Final = frozenset(
    {"ducklake_files_scheduled_for_deletion", "ducklake_snapshot_changes"}
)
_ALWAYS: Final = frozenset(
    {
        "ducklake_metadata",
        "ducklake_schema",
        "ducklake_table",
        "ducklake_column",
        "ducklake_table_stats",
        "ducklake_schema_versions",
        "ducklake_snapshot",
        "ducklake_data_file",
        "ducklake_file_column_stats",
    }
)
_OF_FILES: Final = frozenset(
    {"ducklake_file_column_stats", "ducklake_file_partition_value", "ducklake_file_variant_stats"}
)
_LIVE: Final = "{x}begin_snapshot <= {s} AND ({x}end_snapshot IS NULL OR {x}end_snapshot > {s})"
_PATH: Final = "CASE WHEN {x}.path_is_relative THEN {x}.path ELSE '/' END"  # an absolute path is no file of ours

_STATE: Final = """
SELECT s.snapshot_id, s.snapshot_time, l.token, clock_timestamp() AS now,
       (SELECT e.accepted_at FROM {bus}.entry e WHERE e.last > l.token ORDER BY e.last LIMIT 1) AS oldest
  FROM duckmesh.lake_status l, (SELECT * FROM {lake}.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1) s
 WHERE l.lake = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The lake as one transaction sees it."""

    snapshot_id: int
    snapshot_time: datetime
    token: int
    now: datetime
    oldest: datetime | None


class PostgresFreezer:
    """`ports.CatalogFreezer` over the reader login.

    Args:
        pool: Of the reader login.
        lake: Catalog schema.
        folder: Where the files go; shared read-only with the sandbox.
        data_url: What the files name as data path.
        allow: Called with a catalog's files before the catalog is given out.
        forget: Called with them after it was removed.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        lake: str,
        folder: Path,
        *,
        data_url: str,
        allow: Callable[[dict[str, int]], None],
        forget: Callable[[dict[str, int]], None],
    ) -> None:
        self._pool = pool
        self._lake = lake
        self._folder = folder
        self._data_url = data_url
        self._allow = allow
        self._forget = forget
        self._turn = asyncio.Lock()
        self._holds: dict[str, int] = {}
        self._made: dict[str, dict[str, int]] = {}
        self._newest: FrozenCatalog | None = None
        self._newest_s = 0.0
        self._engine: Engine | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="duckmesh-freeze-")
        self._tables: dict[str, dict[str, str]] = {}
        # A process before this one may have left files; a sandbox that still knows one must not take ours for it.
        self._run = secrets.token_hex(4)
        self._number = 0
        for left in folder.glob("snapshot-*"):
            left.unlink(missing_ok=True)

    async def freeze(self, min_token: int = 0) -> FrozenCatalog:
        """See `ports.CatalogFreezer`.

        Raises:
            Unavailable: CATALOG_UNAVAILABLE.
        """
        async with self._turn:
            catalog = self._newest
            shared = time.monotonic() - self._newest_s < _SHARED_S
            if catalog is None or not shared or catalog.token < min_token:
                catalog = await self._freeze_now()
            self._holds[catalog.path] = self._holds.get(catalog.path, 0) + 1
            return catalog

    def release(self, catalog: FrozenCatalog) -> None:
        """See `ports.CatalogFreezer`."""
        if catalog.path in self._holds:  # not after `close`
            self._holds[catalog.path] -= 1
            self._drop_unheld()

    async def close(self) -> None:
        """Remove all files; safe to repeat."""
        self._newest = None
        self._holds.clear()
        self._drop_unheld()
        if self._engine is not None:
            await self._engine.close()
            self._engine = None
        self._scratch.cleanup()

    async def _freeze_now(self) -> FrozenCatalog:
        started = time.monotonic()
        engine = self._engine
        if engine is None or engine.given_up:
            engine = await self._open_engine()
        with catalog_errors():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                state = await self._read_state(connection)
                known = self._newest
                if known is not None and (known.snapshot_id, known.token) == (
                    state.snapshot_id,
                    state.token,
                ):
                    catalog = replace(known, frozen_at=state.now, oldest_pending_at=state.oldest)
                else:
                    spooled = await self._spool(connection, state.snapshot_id)
                    catalog = await self._write(engine, spooled, state)
        self._newest, self._newest_s = catalog, started
        self._drop_unheld()
        return catalog

    async def _read_state(self, connection: asyncpg.Connection) -> _State:
        row = await connection.fetchrow(self._sql(_STATE), self._lake)
        if row is None:
            raise Unavailable(
                "CATALOG_UNAVAILABLE",
                "the lake is not made yet: repeat the request",
                retry_after_s=2,
            )
        return _State(
            snapshot_id=row["snapshot_id"],
            snapshot_time=row["snapshot_time"],
            token=row["token"],
            now=row["now"],
            oldest=row["oldest"],
        )

    async def _spool(self, connection: asyncpg.Connection, snapshot_id: int) -> dict[str, Path]:
        """Copy the live rows of each table that has any into CSV files."""
        optional = sorted(set(self._tables) - _ALWAYS - _LEFT_EMPTY)
        checks = ", ".join(f"EXISTS (SELECT FROM {self._table(name)})" for name in optional)
        found = await connection.fetchrow(f"SELECT {checks}")
        wanted = sorted(_ALWAYS) + [
            name for name, any_row in zip(optional, found, strict=True) if any_row
        ]
        files = {}
        for name in wanted:
            files[name] = Path(self._scratch.name) / f"{name}.csv"
            await connection.copy_from_query(
                self._select(name, snapshot_id), output=str(files[name]), format="csv", null="\\N"
            )
        return files

    def _select(self, name: str, snapshot_id: int) -> str:
        columns = self._tables[name]
        names = ", ".join(f"x.{quote_name(column)}" for column in columns)
        source = f"SELECT {names} FROM {self._table(name)} x"  # noqa: S608 - quoted names, a number
        if name == "ducklake_snapshot":
            return f"{source} WHERE x.snapshot_id = {snapshot_id:d}"
        if name in _OF_FILES:
            live = _LIVE.format(x="d.", s=snapshot_id)
            return f"{source} JOIN {self._table('ducklake_data_file')} d USING (data_file_id) WHERE {live}"
        if "end_snapshot" in columns:
            return f"{source} WHERE {_LIVE.format(x='x.', s=snapshot_id)}"
        return source

    async def _write(
        self, engine: Engine, spooled: dict[str, Path], state: _State
    ) -> FrozenCatalog:
        self._number += 1
        path = self._folder / f"snapshot-{state.snapshot_id}-{self._run}-{self._number}.db"
        try:
            files = await engine.run(lambda k: self._fill(k, spooled, path), timeout_s=_TIMEOUT_S)
        except BaseException:
            path.unlink(missing_ok=True)  # it may have been finished all the same
            raise
        self._made[str(path)] = files
        self._allow(files)
        return FrozenCatalog(
            path=str(path),
            snapshot_id=state.snapshot_id,
            snapshot_time=state.snapshot_time,
            token=state.token,
            frozen_at=state.now,
            oldest_pending_at=state.oldest,
            files=files,
        )

    def _fill(
        self, k: duckdb.DuckDBPyConnection, spooled: dict[str, Path], path: Path
    ) -> dict[str, int]:
        """Make the file; it gets its name when it is whole."""
        part = path.with_suffix(".part")
        try:
            shutil.copyfile(self._template, part)
            k.execute(f"ATTACH {quote_text(str(part))} AS f")
            k.execute("BEGIN")
            for name, file in spooled.items():
                k.execute(_insert(name, self._tables[name], file))
            k.execute(
                "UPDATE f.ducklake_metadata SET value = ? WHERE key = 'data_path'", [self._data_url]
            )
            k.execute("COMMIT")
            files: dict[str, int] = dict(k.execute(_FILES).fetchall())
            k.execute("DETACH f")
            part.chmod(0o644)
            part.rename(path)
        except BaseException:
            for undo in ("ROLLBACK", "DETACH f"):
                with suppress(duckdb.Error):
                    k.execute(undo)
            part.unlink(missing_ok=True)
            raise
        return files

    def _drop_unheld(self) -> None:
        """Remove files that nobody holds, but for the newest."""
        newest = self._newest.path if self._newest is not None else None
        for path in [p for p in self._made if p != newest and not self._holds.get(p)]:
            Path(path).unlink(missing_ok=True)
            self._holds.pop(path, None)
            self._forget(self._made.pop(path))

    async def _open_engine(self) -> Engine:
        connection = await asyncio.to_thread(connect, extensions=("ducklake",), threads=1)
        engine = Engine(connection, name="freeze")
        self._tables = await engine.run(self._make_template, timeout_s=_TIMEOUT_S)
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

    def _table(self, name: str) -> str:
        return f"{quote_name(self._lake)}.{quote_name(name)}"

    def _sql(self, text: str) -> str:
        return text.format(lake=quote_name(self._lake), bus=quote_name(f"{self._lake}_bus"))


_COLUMNS: Final = """
SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = 'n' ORDER BY table_name, column_index
"""

_FILES: Final = f"""
SELECT {_PATH.format(x="s")} || {_PATH.format(x="t")} || {_PATH.format(x="x")} AS path, x.file_size_bytes
  FROM (SELECT table_id, path, path_is_relative, file_size_bytes FROM f.ducklake_data_file
        UNION ALL SELECT table_id, path, path_is_relative, file_size_bytes FROM f.ducklake_delete_file) x
  JOIN f.ducklake_table t USING (table_id) JOIN f.ducklake_schema s USING (schema_id)
"""  # noqa: S608 - constants only


def _insert(name: str, columns: dict[str, str], file: Path) -> str:
    r"""INSERT of a spooled CSV; an unquoted \N is NULL, a quoted one is text, as COPY writes them."""
    types = ", ".join(
        f"{quote_text(column)}: {quote_text(kind)}" for column, kind in columns.items()
    )
    target, source = f"f.{quote_name(name)}", quote_text(str(file))
    return (
        f"INSERT INTO {target} SELECT * FROM read_csv({source}, columns = {{{types}}}, "  # noqa: S608 - quoted
        "auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"', nullstr = '\\N', "
        "allow_quoted_nulls = false, parallel = false, max_line_size = 16777216)"
    )
