"""The lake for the committer: DuckLake transactions that carry the watermark, and what became of them.

Called by `services/commit.py` through `ports.LakeWriter`. After every COMMIT, landed or not, the truth is read from
Postgres (lease epoch and watermark). Error texts decide only what the truth cannot tell: they may hold pieces of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import asyncpg
import duckdb

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.duckdb_engine import Engine
from duckmesh_runtime.adapters.postgres import catalog_errors, is_unavailable
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import CommitOutcome, CommitResult, TableRows
from duckmesh_runtime.settings import StoreSettings, read_secret

logger = logging.getLogger(__name__)

Work = Callable[[duckdb.DuckDBPyConnection], None]
_Step = Literal["begin", "write", "commit"]

_ATTACH_TIMEOUT_S: Final = 15.0
_COMMIT_TIMEOUT_S: Final = 60.0
_ROWS: Final = "duckmesh_rows"

# A peer that vanished without a word is noticed within these; DuckDB itself knows no timeout. Seconds, but the second.
_NETWORK: Final = {
    "connect_timeout": "3",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}

# With 0 retries a merge of another table between INSERT and COMMIT kills the batch; the default wait of 100 ms is then
# the p99 of commits (measured: 61-93 ms with these).
_SETTINGS: Final = (
    "SET ducklake_max_retry_count = 5",
    "SET ducklake_retry_wait_ms = 10",
    "SET python_enable_replacements = false",
)

# Trigger names of sql/catalog/0001_fence.sql. DuckLake's own schema migrations may drop and remake tables.
_GUARDS: Final = """
WITH wanted (tab, trg) AS (VALUES
  ('ducklake_snapshot', 'dm_10_fence'), ('ducklake_snapshot', 'dm_11_expire'), ('ducklake_snapshot', 'dm_12_frozen'),
  ('ducklake_snapshot_changes', 'dm_20_fence'), ('ducklake_snapshot_changes', 'dm_21_expire'),
  ('ducklake_snapshot_changes', 'dm_22_frozen'), ('ducklake_snapshot_changes', 'dm_23_commit'),
  ('ducklake_files_scheduled_for_deletion', 'dm_30_fence'), ('ducklake_files_scheduled_for_deletion', 'dm_31_clean'),
  ('ducklake_metadata', 'dm_40_fence'), ('ducklake_metadata', 'dm_41_option'))
SELECT (SELECT array_agg(w.trg) FROM wanted AS w WHERE NOT EXISTS (
          SELECT 1 FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid
           WHERE c.relnamespace = to_regnamespace({lake_text})::oid AND c.relname = w.tab AND t.tgname = w.trg
             AND t.tgenabled IN ('O', 'A') AND p.pronamespace = 'duckmesh'::regnamespace)) AS missing,
       (SELECT count(*) FILTER (WHERE scope IS NULL) = 1 AND bool_and(value = '0')
          FROM {lake}.ducklake_metadata WHERE key = 'data_inlining_row_limit') AS inlining_off
"""

_TRUTH: Final = """
SELECT s.token, l.epoch, s.committed_at
  FROM duckmesh.lake_status AS s JOIN duckmesh.lease AS l ON l.lake = s.lake AND l.role = 'w' WHERE s.lake = $1
"""
_ADVANCE: Final = "SELECT duckmesh.advance($1, $2, $3, $4)"
_SET_ASIDE: Final = "SELECT duckmesh.set_aside($1, $2, $3, $4, $5)"

_COLUMNS: Final = """
SELECT column_name, data_type, is_nullable FROM duckdb_columns()
 WHERE database_name = $1 AND schema_name = 'main' AND table_name = $2 ORDER BY column_index
"""

_FENCED: Final = "DM001"  # SQLSTATEs of sql/catalog/0001_fence.sql
_MOVED: Final = "DM003"
# What DuckDB raises while it checks and casts rows: their fault. All else may pass: store, catalog, engine in trouble.
_CONTENT: Final = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.InvalidTypeException,
    duckdb.NotImplementedException,
    duckdb.OutOfMemoryException,  # a smaller batch may fit
    duckdb.OutOfRangeException,
    duckdb.TypeMismatchException,
)


class _Differs(Exception):
    """A table of that name is there, and it is another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """A transaction that raised: the error, and how far it had come."""

    error: duckdb.Error | TimeoutError | _Differs
    step: _Step


async def open_writer(
    *,
    lake: str,
    epoch: int,
    store: StoreSettings,
    secret_dir: Path,
    pool: asyncpg.Pool,
) -> DuckLakeWriter:
    """Attach the lake for one lease epoch.

    Args:
        lake: Catalog schema.
        epoch: The lease epoch that every commit will claim.
        store: Where the Parquet lies.
        secret_dir: Folder with `dsn` of the writer login, read now.
        pool: Connections under the same login; the caller closes it.

    Raises:
        Unavailable: The catalog does not answer.
        Corrupt: INTEGRITY_CHECK_FAILED, the lake lacks its fence or may inline changes: committing would risk rows.
    """
    await _check_guards(pool, lake)
    engine = Engine(duckdb_engine.connect(), name=f"lake-{epoch}")
    try:
        attach = _attach(lake, epoch, store, secret_dir)

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            for setting in _SETTINGS:
                connection.execute(setting)
            duckdb_engine.use_store(connection, store)
            connection.execute(attach)

        await engine.run(work, timeout_s=_ATTACH_TIMEOUT_S)
    except (duckdb.Error, TimeoutError, OSError) as error:
        await engine.close()
        # The engine's text may hold the connection string: it goes neither into the message nor into the chain.
        logger.warning("lake not attached", extra={"error_type": type(error).__name__})
        raise Unavailable("CATALOG_UNAVAILABLE", "the lake cannot be attached now") from None
    except BaseException:
        await engine.close()
        raise
    return DuckLakeWriter(engine=engine, pool=pool, lake=lake, epoch=epoch)


class DuckLakeWriter:
    """`LakeWriter` of one lease epoch; made by `open_writer`."""

    def __init__(self, *, engine: Engine, pool: asyncpg.Pool, lake: str, epoch: int) -> None:
        self._engine = engine
        self._pool = pool
        self._lake = lake
        self._epoch = epoch

    async def commit_rows(self, prev: int, tok: int, parts: Sequence[TableRows]) -> CommitResult:
        """See `LakeWriter.commit_rows`."""

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            for part in parts:
                connection.register(_ROWS, part.rows)
                try:
                    connection.execute(
                        lakesql.insert_rows(part.table, part.rows.column_names, _ROWS)
                    )
                finally:
                    connection.unregister(_ROWS)

        return await self._commit(prev, tok, "rows", write)

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        """See `LakeWriter.create_table`."""

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            there = connection.execute(_COLUMNS, [lakesql.LAKE, table.name]).fetchall()
            if there:
                if there != [(c.name, c.type, c.nullable) for c in table.columns]:
                    raise _Differs
                return
            connection.execute(lakesql.create_table(table))
            if (layout := lakesql.partition_table(table)) is not None:
                connection.execute(layout)

        return await self._commit(prev, tok, "create table", write)

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        """See `LakeWriter.drop_table`."""
        statement = lakesql.drop_table(name)

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            connection.execute(statement)

        return await self._commit(prev, tok, "drop table", write)

    async def set_aside(self, prev: int, tok: int, error: str) -> CommitResult:
        """See `LakeWriter.set_aside`."""
        return await self._call(_SET_ASIDE, prev, tok, error)

    async def close(self) -> None:
        """See `LakeWriter.close`."""
        await self._engine.close()

    async def _commit(self, prev: int, tok: int, what: str, write: Work) -> CommitResult:
        failure = await self._transaction(lakesql.mark_commit(prev, tok, what), write)
        try:
            with catalog_errors():
                token, epoch, committed_at = await self._pool.fetchrow(_TRUTH, self._lake)
        except Unavailable:
            return CommitResult(outcome=CommitOutcome.REREAD, error="the catalog does not answer")
        if failure is None and token >= tok:
            return CommitResult(outcome=CommitOutcome.DONE, committed_at=committed_at)
        if failure is None and token == prev:
            # Nothing changed in the lake, so DuckLake made no snapshot and no trigger fired.
            return await self._call(_ADVANCE, prev, tok)
        if epoch != self._epoch:
            return CommitResult(outcome=CommitOutcome.FENCED)
        if failure is None or token != prev:
            return CommitResult(outcome=CommitOutcome.REREAD, error="the watermark has moved")
        return _judge(failure)

    async def _transaction(self, mark: str, write: Work) -> _Failure | None:
        step: _Step = "begin"

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            nonlocal step
            connection.execute("BEGIN")
            try:
                connection.execute(mark)
                step = "write"
                write(connection)
                step = "commit"
                connection.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):  # after a failed COMMIT there is nothing to roll back
                    connection.execute("ROLLBACK")
                raise

        try:
            await self._engine.run(work, timeout_s=_COMMIT_TIMEOUT_S)
        except (duckdb.Error, TimeoutError, _Differs) as error:
            return _Failure(error=error, step=step)
        return None

    async def _call(self, query: str, *args: object) -> CommitResult:
        """Call a function of the lease holder: lake, epoch, then `args`."""
        try:
            await self._pool.execute(query, self._lake, self._epoch, *args)
        except Exception as error:
            state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
            if state == _FENCED:
                return CommitResult(outcome=CommitOutcome.FENCED)
            if state == _MOVED or is_unavailable(error):
                return CommitResult(
                    outcome=CommitOutcome.REREAD, error="the watermark did not move"
                )
            raise
        return CommitResult(outcome=CommitOutcome.DONE)


def _attach(lake: str, epoch: int, store: StoreSettings, secret_dir: Path) -> str:
    options = {
        "duckmesh.role": "w",
        "duckmesh.epoch": str(epoch),
        "statement_timeout": "30s",
        "lock_timeout": "5s",
    }
    conninfo = lakesql.conninfo(
        read_secret(secret_dir, "dsn"),
        application_name=f"dm:{lake}:w:{epoch}",
        options=lakesql.options_text(options),
        **_NETWORK,
    )
    return lakesql.attach_lake(conninfo, schema=lake, data_path=duckdb_engine.data_path(store))


async def _check_guards(pool: asyncpg.Pool, lake: str) -> None:
    query = _GUARDS.format(lake=lakesql.quote_name(lake), lake_text=lakesql.quote_text(lake))
    with catalog_errors():
        row = await pool.fetchrow(query)
    if row["missing"]:
        raise Corrupt(
            "INTEGRITY_CHECK_FAILED",
            f"lake {lake} lacks its triggers {', '.join(row['missing'])}: run `duckmesh migrate` for it",
        )
    if not row["inlining_off"]:
        raise Corrupt(
            "INTEGRITY_CHECK_FAILED",
            f"lake {lake} may keep changes inside the catalog: "
            "data_inlining_row_limit must be stored as 0, and for no table otherwise",
        )


def _judge(failure: _Failure) -> CommitResult:
    """What to do about a transaction of which nothing landed, while the catalog answers and the lease is ours."""
    error = failure.error
    if isinstance(error, _Differs):
        return CommitResult(outcome=CommitOutcome.REJECTED, error="another table has this name")
    if failure.step == "commit" and _verdict(error).startswith("DUCKMESH_POLICY"):
        raise RuntimeError("the fence refused a commit that is never allowed") from error
    # Before the rows are touched the newest snapshot is asked for, and a refusal of that (a lock, a lost connection) comes
    # as a BinderException too: only what is raised while writing can be the rows' fault.
    if failure.step == "write" and isinstance(error, _CONTENT):
        return CommitResult(outcome=CommitOutcome.REJECTED, error=_first_line(str(error)))
    logger.warning("commit did not land", extra={"error_type": type(error).__name__})
    return CommitResult(outcome=CommitOutcome.REREAD, error="store or catalog did not take it")


def _verdict(error: BaseException) -> str:
    """Postgres's own words: they come last, after the statement with pieces of rows in it."""
    return str(error).rpartition("ERROR:")[2].lstrip()


def _first_line(text: str) -> str:
    """The engine's own summary: what follows may name files and connections."""
    return text.partition("\n")[0][:500]
