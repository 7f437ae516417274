"""The lake for the committer: DuckLake transactions that carry the watermark, and what became of them.

Called by `services/commit.py` through `ports.LakeWriter`. After every COMMIT, landed or not, the truth is read from
Postgres (lease epoch and watermark). What a transaction does is in `lake_writes.py` and `lake_restore.py`, what an error
of it means in `lake_verdict.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.duckdb_engine import Engine
from duckmesh_runtime.adapters.lake_attach import attach_as
from duckmesh_runtime.adapters.lake_commit import CommitGuard
from duckmesh_runtime.adapters.lake_engine import LakeEngine
from duckmesh_runtime.adapters.lake_files import is_registered, table_folder
from duckmesh_runtime.adapters.lake_probe import takes_writes
from duckmesh_runtime.adapters.lake_restore import Expired, read_tables, restore_tables
from duckmesh_runtime.adapters.lake_verdict import Failure, Step, is_conflict, judge
from duckmesh_runtime.adapters.lake_writes import (
    Differs,
    change_table,
    drop_table,
    foretold,
    make_table,
    write_parts,
)
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import catalog_errors, is_unavailable
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.changes import Change
from duckmesh_runtime.domain.restore import plan_restore
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.tally import Tally
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import CommitOutcome, CommitResult, TableFile, TableRows
from duckmesh_runtime.settings import StoreSettings

logger = logging.getLogger(__name__)

Work = Callable[[duckdb.DuckDBPyConnection], Tally]

_ATTACH_TIMEOUT_S: Final = 15.0
_COMMIT_TIMEOUT_S: Final = 60.0
_CHANGE_TIMEOUT_S: Final = 300.0
"""Nothing smaller can be tried in its place: thousands of changes to a wide table take half a minute."""
_RESTORE_TIMEOUT_S: Final = 900.0
"""Nothing else is committed meanwhile. A person waits for it, and can do with less: restore sooner, or copy by query."""

# With 0 retries a merge of another table between INSERT and COMMIT kills the batch; the default wait of 100 ms is then
# the p99 of commits (measured: 61-93 ms with these).
_SETTINGS: Final = (
    "SET ducklake_max_retry_count = 5",
    "SET ducklake_retry_wait_ms = 10",
    "SET python_enable_replacements = false",
    # Files are written once: no request to ask whether a cached piece is still true (keyed tables read theirs again).
    "SET validate_external_file_cache = 'NO_VALIDATION'",
    # An upload's buffer is a ten-thousandth of it: 5 MB a file instead of 80, as many files as a commit has partitions.
    "SET s3_uploader_max_filesize = '50GB'",
)

# Trigger names of sql/catalog/0001_fence.sql. DuckLake's own schema migrations may drop and remake tables.
_GUARDS: Final = """
WITH wanted (tab, trg) AS (VALUES
  ('ducklake_snapshot', 'dm_10_fence'), ('ducklake_snapshot', 'dm_11_expire'), ('ducklake_snapshot', 'dm_12_frozen'),
  ('ducklake_snapshot', 'dm_14_clock'),
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
_SET_ASIDE: Final = "SELECT duckmesh.set_aside($1, $2, $3, $4, $5, $6)"
_SET_ASIDE_CHANGE: Final = "SELECT duckmesh.set_aside_change($1, $2, $3, $4, $5)"

_FENCED: Final = "DM001"  # SQLSTATEs of sql/catalog/0001_fence.sql
_MOVED: Final = "DM003"
_NO_CATALOG: Final = "the catalog does not answer"
_GLOB: Final = frozenset("*?[{")


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
    attach = partial(attach_as, "w", lake=lake, epoch=epoch, store=store, secret_dir=secret_dir)
    guard = _guard(store)

    async def open_engine() -> Engine:
        return await _open_engine(f"lake-{epoch}", guard, attach)

    return DuckLakeWriter(
        engine=await LakeEngine.open(open_engine),
        guard=guard,
        pool=pool,
        lake=lake,
        epoch=epoch,
        store=store,
        attach=attach,
    )


def _guard(store: StoreSettings) -> CommitGuard:
    try:
        return CommitGuard(store)
    except OSError as error:
        raise Unavailable("CATALOG_UNAVAILABLE", "the store's key cannot be read now") from error


async def _open_engine(name: str, guard: CommitGuard, attach: Callable[[], str]) -> Engine:
    try:
        engine = Engine(await asyncio.to_thread(duckdb_engine.connect), name=name)
    except (duckdb.Error, OSError) as error:
        raise Unavailable("CATALOG_UNAVAILABLE", "no engine can be started now") from error
    try:
        statement = attach()

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            for setting in _SETTINGS:
                connection.execute(setting)
            guard.open_store(connection)
            connection.execute(statement)

        await engine.run(work, timeout_s=_ATTACH_TIMEOUT_S)
    except (duckdb.Error, TimeoutError, OSError) as error:
        await engine.close()
        # The engine's text may hold the connection string: it goes neither into the message nor into the chain.
        logger.warning("lake not attached", extra={"error_type": type(error).__name__})
        raise Unavailable("CATALOG_UNAVAILABLE", "the lake cannot be attached now") from None
    except BaseException:
        await engine.close()
        raise
    return engine


class DuckLakeWriter:
    """`LakeWriter` of one lease epoch; made by `open_writer`."""

    def __init__(
        self,
        *,
        engine: LakeEngine,
        guard: CommitGuard,
        pool: asyncpg.Pool,
        lake: str,
        epoch: int,
        store: StoreSettings,
        attach: Callable[..., str],
    ) -> None:
        self._engine = engine
        self._attach = attach
        self._guard = guard
        self._pool = pool
        self._lake = lake
        self._epoch = epoch
        self._root = duckdb_engine.data_path(store)
        self._objects = StoreObjects(store)

    async def commit(
        self, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        """See `LakeWriter.commit`."""
        await self._engine.freshen()
        files = [part for part in parts if isinstance(part, TableFile)]
        if not files:
            return await self._commit_parts(prev, tok, parts)
        try:
            register = [part.file.path for part in files if await self._may_register(part)]
        except Unavailable:
            return CommitResult(outcome=CommitOutcome.REREAD, error=_NO_CATALOG)
        except Corrupt as error:
            return _refuse(error)
        result = await self._commit_parts(prev, tok, parts, register)
        if result.outcome is CommitOutcome.REJECTED and register:
            # What cannot become part of its table as it lies may still be read.
            result = await self._commit_parts(prev, tok, parts)
        if result.outcome in (CommitOutcome.REJECTED, CommitOutcome.REREAD):
            return await self._check_objects(files) or result
        return result

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        """See `LakeWriter.create_table`."""
        return await self._change(prev, tok, "create table", partial(make_table, table=table))

    async def alter_table(
        self, prev: int, tok: int, table: TableDef, changes: Sequence[Change]
    ) -> CommitResult:
        """See `LakeWriter.alter_table`."""
        work = partial(change_table, table=table, changes=changes)
        return await self._change(prev, tok, "alter table", work)

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        """See `LakeWriter.drop_table`."""
        return await self._change(prev, tok, "drop table", partial(drop_table, name=name))

    async def restore(
        self, prev: int, tok: int, snapshot_id: int, tables: Sequence[TableDef]
    ) -> CommitResult:
        """See `LakeWriter.restore`."""
        try:
            plan = plan_restore(*await read_tables(self._pool, self._lake, snapshot_id))
        except Expired as error:
            return _refused(str(error))
        except Unavailable:
            return CommitResult(outcome=CommitOutcome.REREAD, error=_NO_CATALOG)
        started = time.monotonic()
        write = partial(restore_tables, plan=plan, tables=tables)
        async with self._past(snapshot_id) as attached:
            if not attached:
                return CommitResult(outcome=CommitOutcome.REREAD, error=_NO_CATALOG)
            result = await self._commit(
                prev, tok, "restore", write, _RESTORE_TIMEOUT_S, restores=True
            )
        late = time.monotonic() - started >= _RESTORE_TIMEOUT_S
        if late and result.outcome is CommitOutcome.REREAD:
            return _refused(f"it was not done in {_RESTORE_TIMEOUT_S:.0f} s; nothing was changed")
        return result

    async def set_aside(
        self, prev: int, tok: int, payload: bytes | None, error: str
    ) -> CommitResult:
        """See `LakeWriter.set_aside`."""
        return await self._call(_SET_ASIDE, prev, tok, payload, error)

    async def set_aside_change(self, prev: int, tok: int, error: str) -> CommitResult:
        """See `LakeWriter.set_aside_change`."""
        return await self._call(_SET_ASIDE_CHANGE, prev, tok, error)

    async def probe(self) -> bool:
        """See `LakeWriter.probe`."""
        return await takes_writes(
            self._engine,
            self._pool,
            self._objects,
            lake=self._lake,
            epoch=self._epoch,
            root=self._root,
        )

    async def close(self) -> None:
        """See `LakeWriter.close`."""
        await self._engine.close()

    async def _commit_parts(
        self,
        prev: int,
        tok: int,
        parts: Sequence[TableRows | TableFile],
        register: Collection[str] = (),
    ) -> CommitResult:
        write = partial(write_parts, parts=parts, root=self._root, register=register)

        def reaching(connection: duckdb.DuckDBPyConnection) -> Tally:
            with self._guard.reaching(connection):
                return write(connection)

        work = reaching if register else write
        return await self._commit(
            prev, tok, "rows", work, _COMMIT_TIMEOUT_S, expected=foretold(parts)
        )

    async def _change(self, prev: int, tok: int, what: str, write: Work) -> CommitResult:
        return await self._commit(prev, tok, what, write, _CHANGE_TIMEOUT_S)

    @asynccontextmanager
    async def _past(self, snapshot_id: int) -> AsyncIterator[bool]:
        """The lake as of a snapshot beside it; whether it could be attached."""

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            connection.execute(lakesql.detach_past())
            connection.execute(self._attach(version=snapshot_id))

        try:
            await self._engine.run(work, timeout_s=_ATTACH_TIMEOUT_S)
        except (duckdb.Error, TimeoutError, OSError) as error:
            logger.warning("snapshot not attached", extra={"error_type": type(error).__name__})
            yield False
            return
        try:
            yield True
        finally:
            with suppress(duckdb.Error, TimeoutError):
                await self._engine.run(_detach_past, timeout_s=_ATTACH_TIMEOUT_S)

    async def _may_register(self, part: TableFile) -> bool:
        """Whether the file can become part of its table as it lies.

        DuckLake keeps the path of a file elsewhere than in the table's own folder as an absolute one, which moves with
        nothing, and takes a path for a pattern.

        Raises:
            Unavailable: CATALOG_UNAVAILABLE.
            Corrupt: INTEGRITY_CHECK_FAILED, it is part of the table already.
        """
        folder = await table_folder(self._pool, self._lake, part.table)
        name = part.file.path.removeprefix(folder or "")
        if folder is None or name == part.file.path or "/" in name or _GLOB & set(name):
            return False
        if await is_registered(self._pool, self._lake, part.table, name):
            raise Corrupt("INTEGRITY_CHECK_FAILED", "the staged file is in the table already")
        return True

    async def _check_objects(self, files: Sequence[TableFile]) -> CommitResult | None:
        """Why a commit of these files cannot succeed, when the store knows; None when it is not for their sake."""
        for part in files:
            try:
                await self._objects.size(part.file.path)
            except Corrupt:
                return _refuse(
                    Corrupt("DATA_FILE_MISSING", "the staged file is not in the store any more")
                )
            except Unavailable:
                return CommitResult(outcome=CommitOutcome.REREAD, error="the store does not answer")
        return None

    async def _commit(
        self,
        prev: int,
        tok: int,
        what: str,
        write: Work,
        timeout_s: float,
        *,
        expected: Tally | None = None,
        restores: bool = False,
    ) -> CommitResult:
        transaction = partial(
            self._transaction,
            partial(lakesql.mark_commit, prev, tok, what),
            write,
            timeout_s,
            expected,
        )
        failure = await transaction()
        if failure is not None and is_conflict(failure) and not restores:
            failure = await transaction()
        try:
            with catalog_errors():
                token, epoch, committed_at = await self._pool.fetchrow(_TRUTH, self._lake)
        except Unavailable:
            return CommitResult(outcome=CommitOutcome.REREAD, error=_NO_CATALOG)
        if failure is None and token >= tok:
            return CommitResult(outcome=CommitOutcome.DONE, committed_at=committed_at)
        if failure is None and token == prev:
            # Nothing changed in the lake, so DuckLake made no snapshot and no trigger fired. Or there is no trigger any more:
            # then this commit is made good, and it is the last.
            result = await self._call(_ADVANCE, prev, tok)
            await _check_guards(self._pool, self._lake)
            return result
        if epoch != self._epoch:
            return CommitResult(outcome=CommitOutcome.FENCED)
        if failure is None or token != prev:
            return CommitResult(outcome=CommitOutcome.REREAD, error="the watermark has moved")
        return judge(failure, root=self._root, doubt=restores)

    async def _transaction(
        self,
        mark: Callable[[Tally | None], str],
        write: Work,
        timeout_s: float,
        expected: Tally | None,
    ) -> Failure | None:
        step: Step = "begin"

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            nonlocal step
            connection.execute("BEGIN")
            try:
                connection.execute(mark(expected))
                step = "write"
                tally = write(connection)
                if tally != expected:  # to say it again takes a third of a millisecond
                    connection.execute(mark(tally))
                step = "commit"
                self._guard.commit(connection)
            except BaseException:
                if step != "commit":
                    self._guard.rollback(connection)
                raise

        try:
            await self._engine.run(work, timeout_s=timeout_s)
        except (duckdb.Error, TimeoutError, Differs) as error:
            return Failure(error=error, step=step)
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


def _detach_past(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(lakesql.detach_past())


def _refuse(error: Corrupt) -> CommitResult:
    return _refused(f"{error.code}: {error.message}")


def _refused(text: str) -> CommitResult:
    return CommitResult(outcome=CommitOutcome.REJECTED, error=text, whole=True)
