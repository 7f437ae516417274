"""Upkeep of a lake under its maintenance login: files merged, snapshots given up, files removed. See `ports.LakeMaintenance`.

A connection of asyncpg finds out what there is to do and holds the lease; DuckDB is opened only for a change. The fence
holds every change to the lease (role `m`), so what a stopped process does when it goes on is refused. A COMMIT whose
answer is lost may have landed: `lake_commit.CommitGuard` keeps its files.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg
import duckdb

from duckmesh_runtime.adapters import duckdb_engine, postgres
from duckmesh_runtime.adapters.duckdb_engine import Engine
from duckmesh_runtime.adapters.lake_attach import attach_as
from duckmesh_runtime.adapters.lake_commit import CommitGuard
from duckmesh_runtime.adapters.lake_compact import (
    SETTINGS,
    SliceWork,
    is_conflict,
    is_fenced,
    read_files,
)
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import catalog_errors, quoted
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.domain.compaction import Bounds, Debt, LakeFiles, Slice
from duckmesh_runtime.domain.thinning import Snapshot
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import Compacted, Upkeep
from duckmesh_runtime.settings import StoreSettings
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

LEASE_S: Final = 90.0
"""How long the lease is kept without a word of its holder: more than any step takes in which it says none."""

_STATEMENT_TIMEOUT_MS: Final = 15_000
_TAKE_OVER_WAIT_MS: Final = 1_000
_ATTACH_TIMEOUT_S: Final = 15.0
_EXPIRE_TIMEOUT_S: Final = 40.0
_SLICE_TIMEOUT_S: Final = 540.0  # the login's sessions may idle in a transaction for ten minutes
_MEMORY_BYTES: Final = 256 * 2**20
_FENCED: Final = "DM001"  # SQLSTATE of sql/catalog/0001_fence.sql
_AT_ONCE: Final = 32
"""Files removed at a time."""

_LOOK: Final = """
SELECT clock_timestamp() AS now, coalesce(duckmesh.busy_since($3), clock_timestamp()) AS settled,
       (SELECT count(*) FROM {lake}.ducklake_snapshot) AS snapshots,
       coalesce((SELECT snapshot_id FROM {lake}.ducklake_snapshot ORDER BY snapshot_id DESC OFFSET $1 - 1 LIMIT 1), 0)
         AS newest_from,
       ARRAY(SELECT DISTINCT snapshot_id FROM {bus}.pin WHERE expires_at IS NULL OR expires_at > clock_timestamp()) AS pinned,
       (SELECT count(*) FROM {lake}.ducklake_files_scheduled_for_deletion WHERE path_is_relative) AS files,
       (SELECT count(*) FROM {lake}.ducklake_files_scheduled_for_deletion
         WHERE path_is_relative AND schedule_start < clock_timestamp() - make_interval(secs => $2)) AS old_files
"""
_SNAPSHOTS: Final = """
SELECT s.snapshot_id, s.snapshot_time,
       CASE WHEN c.commit_extra_info IS JSON OBJECT THEN c.commit_extra_info::jsonb ? 'tok' ELSE false END AS has_input
  FROM {lake}.ducklake_snapshot AS s LEFT JOIN {lake}.ducklake_snapshot_changes AS c USING (snapshot_id)
 WHERE s.snapshot_id >= $1 AND s.snapshot_time <= $2 ORDER BY s.snapshot_id LIMIT $3
"""

# One whose lease was not withdrawn is at work.
_LEASE: Final = """
SELECT l.epoch, coalesce(h.epoch = l.epoch AND h.expires_at > clock_timestamp(), false) AS working,
       EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = to_regclass($2) AND tgname = 'dm_32_clock' AND tgenabled IN ('O', 'A'))
         AS aged
  FROM duckmesh.lease AS l LEFT JOIN duckmesh.heartbeat AS h ON h.lake = l.lake AND h.role = l.role
 WHERE l.lake = $1 AND l.role = 'm'
"""
_TAKE_OVER: Final = "SELECT duckmesh.take_over($1, 'm', $2, $3)"
_BEAT: Final = "SELECT duckmesh.beat($1, 'm', $2, $3, '', make_interval(secs => $4))"

# What the fence asks a connection for; by its name the next holder ends it.
_BE: Final = """
SELECT set_config('duckmesh.role', 'm', false), set_config('duckmesh.epoch', $1, false),
       set_config('application_name', $2, false)
"""

# A file elsewhere than below the lake's data path is none of ours to remove. Nothing for one whose lease is gone.
# In no order, so that files which never go are not the first ones of every round.
_OLD_FILES: Final = """
SELECT f.path FROM {lake}.ducklake_files_scheduled_for_deletion AS f, duckmesh.lease AS l
 WHERE l.lake = $3 AND l.role = 'm' AND l.epoch = $4
   AND f.path_is_relative AND f.schedule_start < clock_timestamp() - make_interval(secs => $1)
   AND NOT f.path = ANY ($5)
 ORDER BY random() LIMIT $2
"""
_REPORT_DEBT: Final = "SELECT duckmesh.report_debt($1, $2, $3, $4, $5)"
_REPORT_MERGED: Final = "SELECT duckmesh.report_merged($1)"
_REPORT_RUN: Final = "SELECT duckmesh.report_run($1, $2)"
_REMOVED: Final = """
DELETE FROM {lake}.ducklake_files_scheduled_for_deletion WHERE path_is_relative AND path = ANY ($1)
"""


@asynccontextmanager
async def open_maintenance(
    *, lake: str, store: StoreSettings, secret_dir: Path, holder: str
) -> AsyncIterator[DuckLakeMaintenance]:
    """Connect to a lake's catalog; the lease is withdrawn at the end.

    Args:
        lake: Catalog schema.
        store: Where the Parquet lies.
        secret_dir: Folder with `dsn` of the maintenance login, read now.
        holder: Name of this process in the heartbeat.

    Raises:
        Unavailable: The catalog does not answer.
    """
    with catalog_errors():
        connection = await postgres.connect(
            secret_dir,
            application_name=f"duckmesh:{lake}:maintenance",
            statement_timeout_ms=_STATEMENT_TIMEOUT_MS,
        )
    found = DuckLakeMaintenance(
        connection, lake=lake, store=store, secret_dir=secret_dir, holder=holder
    )
    try:
        yield found
    finally:
        closing = asyncio.ensure_future(found.close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # a lease that is not withdrawn keeps others away until it expires
            raise


class DuckLakeMaintenance:
    """`LakeMaintenance` of one round; made by `open_maintenance`."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        lake: str,
        store: StoreSettings,
        secret_dir: Path,
        holder: str,
    ) -> None:
        self._connection = connection
        self._lake = lake
        self._store = store
        self._secret_dir = secret_dir
        self._holder = holder
        self._objects = StoreObjects(store)
        self._guard: CommitGuard | None = None
        self._epoch: int | None = None
        self._engine: Engine | None = None
        self._stuck: dict[str, BaseException] = {}  # files that could not be removed in this round

    async def look(self, *, keep_last: int, files_stay_s: float) -> Upkeep:
        """See `LakeMaintenance.look`."""
        with catalog_errors():
            row = await self._connection.fetchrow(
                self._sql(_LOOK), keep_last, files_stay_s, self._lake
            )
        return Upkeep(
            now=row["now"],
            settled=min(row["now"], row["settled"]),
            snapshots=row["snapshots"],
            newest_from=row["newest_from"],
            pinned=frozenset(row["pinned"]),
            files=row["files"],
            old_files=row["old_files"],
        )

    async def snapshots(self, *, since: int, until: datetime, limit: int) -> Sequence[Snapshot]:
        """See `LakeMaintenance.snapshots`."""
        with catalog_errors():
            rows = await self._connection.fetch(self._sql(_SNAPSHOTS), since, until, limit)
        return [Snapshot(id=number, time=time, has_input=own) for number, time, own in rows]

    async def claim(self) -> bool:
        """See `LakeMaintenance.claim`.

        Raises:
            Corrupt: INTEGRITY_CHECK_FAILED, nothing would keep the age of files by the database's clock.
        """
        with catalog_errors():
            if self._epoch is None:
                self._epoch = await self._take_over()
            return self._epoch is not None and await self._beat(LEASE_S)

    async def expire(self, ids: Sequence[int]) -> int:
        """See `LakeMaintenance.expire`."""
        statement = lakesql.expire_snapshots(ids)

        def work(connection: duckdb.DuckDBPyConnection) -> int:
            ((count,),) = connection.execute(statement).fetchall()
            return int(count)

        try:
            engine = await self._opened()
            return await engine.run(work, timeout_s=_EXPIRE_TIMEOUT_S)
        except (duckdb.Error, TimeoutError, OSError) as error:
            # The engine's text may hold the connection string: it goes neither into the message nor into the chain.
            logger.info("snapshots not expired", extra={"error_type": type(error).__name__})
            raise Unavailable(
                "CATALOG_UNAVAILABLE", "the snapshots cannot be given up now: a later round may"
            ) from None

    async def live_files(self, bounds: Bounds) -> LakeFiles:
        """See `LakeMaintenance.live_files`."""
        with catalog_errors():
            return await read_files(self._connection, self._lake, bounds)

    async def prepare(self) -> None:
        """See `LakeMaintenance.prepare`."""
        try:
            await self._opened()
        except (duckdb.Error, TimeoutError, OSError) as error:
            # As above: no text of the engine.
            logger.info("lake not attached", extra={"error_type": type(error).__name__})
            raise Unavailable(
                "CATALOG_UNAVAILABLE", "the lake cannot be attached now: a later round may"
            ) from None

    async def compact(self, piece: Slice) -> Compacted:
        """See `LakeMaintenance.compact`."""
        work = SliceWork(piece, self._commit_guard())
        try:
            engine = await self._opened()
            keeping = asyncio.create_task(self._keep_lease(), name="maintenance-lease")
            try:
                await engine.run(work, timeout_s=_SLICE_TIMEOUT_S)
            finally:
                await end(keeping)
        except (duckdb.Error, TimeoutError, OSError) as error:
            if is_conflict(error, work.step):
                return Compacted()
            # As above: no text of the engine.
            logger.info("slice not done", extra={"error_type": type(error).__name__})
            fenced = is_fenced(error)
        else:
            return Compacted(files_in=work.files_in, files_out=work.files_out)
        if work.step == "work" and not fenced and await self._goes_on():
            # A damaged file, one too large, or files that DuckLake cannot sort, those of before a column of the sort order
            # was widened. The rest of the lake can do without it.
            logger.warning("files cannot be merged", extra={"table": piece.table})
            return Compacted(hopeless=True)
        problem = (
            "another process maintains the lake by now"
            if fenced
            else "files cannot be merged now: a later round may"
        )
        raise Unavailable("CATALOG_UNAVAILABLE", problem)

    async def _goes_on(self) -> bool:
        """Whether the catalog answers and the lease is ours still; the engine, which may be of no use now, begins anew."""
        await self._close_engine()
        with catalog_errors():
            return await self._beat(LEASE_S)

    async def report_debt(self, debt: Debt) -> None:
        """See `LakeMaintenance.report_debt`."""
        values = (debt.files, debt.size, debt.most_files, debt.deleted_ratio)
        await self._report(_REPORT_DEBT, *values)

    async def report_merged(self) -> None:
        """See `LakeMaintenance.report_merged`."""
        await self._report(_REPORT_MERGED)

    async def report_run(self, run: Mapping[str, object]) -> None:
        """See `LakeMaintenance.report_run`."""
        await self._report(_REPORT_RUN, json.dumps(run))

    async def remove_files(self, *, stay_s: float, limit: int) -> int:
        """See `LakeMaintenance.remove_files`.

        The store comes first: what ends in between is found again, and a file that is gone is fine.
        """
        with catalog_errors():
            rows = await self._connection.fetch(
                self._sql(_OLD_FILES), stay_s, limit, self._lake, self._epoch, list(self._stuck)
            )
        removed: list[str] = []
        away = False
        for part in range(0, len(rows), _AT_ONCE):
            gone = await self._removed([row["path"] for row in rows[part : part + _AT_ONCE]])
            removed += gone
            if away := not gone:
                break  # the rest would only wait for it as well
        if removed:
            await self._record(removed)
        if self._stuck and (away or not removed):
            raise next(iter(self._stuck.values()))
        return len(removed)

    async def _removed(self, paths: Sequence[str]) -> Sequence[str]:
        """Those of the files that are gone now; why the others are not is kept."""
        results = await asyncio.gather(*map(self._objects.remove, paths), return_exceptions=True)
        found = dict(zip(paths, results, strict=True))
        self._stuck |= {path: problem for path, problem in found.items() if problem}
        return [path for path, problem in found.items() if not problem]

    async def close(self) -> None:
        """Withdraw the lease and close; safe to repeat."""
        await self._close_engine()
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if self._epoch is not None and not self._connection.is_closed():
                await self._beat(0)
        self._epoch = None
        try:
            await self._connection.close(timeout=1)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()

    async def _close_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def _take_over(self) -> int | None:
        files = f"{quoted(self._lake)}.ducklake_files_scheduled_for_deletion"
        row = await self._connection.fetchrow(_LEASE, self._lake, files)
        if row is None or row["working"]:
            return None
        if not row["aged"]:
            raise Corrupt(
                "INTEGRITY_CHECK_FAILED",
                f"lake {self._lake} lacks its trigger dm_32_clock: run `duckmesh migrate` for it",
            )
        epoch: int | None = await self._connection.fetchval(
            _TAKE_OVER, self._lake, _TAKE_OVER_WAIT_MS, row["epoch"]
        )
        if epoch is not None:
            name = f"dm:{self._lake}:m:{epoch}"
            await self._connection.execute(_BE, str(epoch), name)
        return epoch

    @catalog_errors()
    async def _record(self, removed: Sequence[str]) -> None:
        try:
            await self._connection.execute(self._sql(_REMOVED), removed)
        except asyncpg.PostgresError as error:
            if error.sqlstate != _FENCED:
                raise
            raise Unavailable(
                "CATALOG_UNAVAILABLE", "another process maintains the lake by now"
            ) from error

    @catalog_errors()
    async def _report(self, query: str, *values: object) -> None:
        await self._connection.execute(query, self._lake, *values)

    async def _keep_lease(self) -> None:
        """Say again and again that the holder lives; what it is told then, the fence tells it too."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._beat(LEASE_S)

    def _commit_guard(self) -> CommitGuard:
        if self._guard is None:
            try:
                self._guard = CommitGuard(self._store)
            except OSError as error:
                problem = "the store's key cannot be read now"
                raise Unavailable("STORAGE_UNAVAILABLE", problem) from error
        return self._guard

    async def _beat(self, ttl_s: float) -> bool:
        alive: bool = await self._connection.fetchval(
            _BEAT, self._lake, self._epoch, self._holder, ttl_s
        )
        return alive

    async def _opened(self) -> Engine:
        if self._engine is not None and not self._engine.given_up:
            return self._engine
        if self._epoch is None:
            raise RuntimeError("a change without the lease")
        attach = attach_as(
            "m",
            lake=self._lake,
            epoch=self._epoch,
            store=self._store,
            secret_dir=self._secret_dir,
        )
        connection = await asyncio.to_thread(
            duckdb_engine.connect, threads=1, memory_bytes=_MEMORY_BYTES
        )
        engine = self._engine = Engine(connection, name=f"maintenance-{self._epoch}")

        guard = self._commit_guard()

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            connection.execute("SET python_enable_replacements = false")
            for setting in SETTINGS:
                connection.execute(setting)
            guard.open_store(connection)
            connection.execute(attach)

        await engine.run(work, timeout_s=_ATTACH_TIMEOUT_S)
        return engine

    def _sql(self, text: str) -> str:
        return text.format(lake=quoted(self._lake), bus=quoted(f"{self._lake}_bus"))
