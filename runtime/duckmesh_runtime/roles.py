"""The two roles of a lake's processes as context managers: entered when the catalog answers, left in order.

Each fills the `Parts` that the HTTP handlers work with. Called by `wiring`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import Final

import asyncpg

from duckmesh_runtime import heap
from duckmesh_runtime.adapters.ducklake import open_writer
from duckmesh_runtime.adapters.election import PostgresElection
from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.integrity import open_check
from duckmesh_runtime.adapters.maintenance import open_maintenance
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.adapters.progress import PostgresProgress
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.adapters.snapshots import PostgresSnapshots
from duckmesh_runtime.adapters.stage import DuckDBStager
from duckmesh_runtime.adapters.store_report import PostgresStoreReporter
from duckmesh_runtime.adapters.tables_report import PostgresTablesReporter
from duckmesh_runtime.errors import Corrupt, SettingsError, Unavailable
from duckmesh_runtime.ports import IngestBus, LakeCheck, LakeMaintenance, LakeWriter, ObjectStore
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.commit import Committer
from duckmesh_runtime.services.compaction import Compaction
from duckmesh_runtime.services.dead_letters import DeadLetterService
from duckmesh_runtime.services.declared import DeclaredTables
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.services.ingest import IngestService
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.integrity import IntegrityService, IntegrityWatch
from duckmesh_runtime.services.query import QueryService
from duckmesh_runtime.services.restore import RestoreService
from duckmesh_runtime.services.snapshots import SnapshotService
from duckmesh_runtime.services.store_watch import StoreWatch
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import FILES_STAY_S, Settings
from duckmesh_runtime.web.forward import QueryForward
from duckmesh_runtime.web.health import Check
from duckmesh_runtime.web.nudge import Nudger
from duckmesh_runtime.web.parts import Parts
from duckmesh_runtime.web.proxy import ReadProxy

logger = logging.getLogger(__name__)

# With the election's and DuckDB's own connections a process stays well below its login's limit.
_POOL_SIZE: Final = 3
_CLOSE_S: Final = 3.0
_HAND_OVER_PART: Final = 0.4
_NO_FILE: Final = "duckmesh-health"


@asynccontextmanager
async def ingest_role(parts: Parts) -> AsyncIterator[None]:
    """Accept rows and take part in the election of the committer.

    Raises:
        Unavailable: The catalog does not answer, or the lake is not made yet: enter again.
    """
    settings = parts.settings
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, _folder(settings.writer_dir, "WRITER"), f"ingest:{settings.lake}")
        bus = PostgresBus(pool, settings.lake)
        parts.timeline = (await bus.head()).timeline
        election = _election(settings, pool)
        stack.push_async_callback(election.close)
        progress = PostgresProgress(pool, settings.lake)
        opener = _writer_opener(settings, pool)
        if await election.speaks_more():
            # The release before commits no more from here on: not before this one has shown that it can attach the lake. One
            # that lacks its fence is nobody's to commit to; the committer says so.
            with suppress(Corrupt):
                await (await opener(0)).close()
            await election.require_protocol()

        def restored() -> None:
            if parts.declared is not None:
                parts.declared.recheck()

        committer = Committer(bus, election, opener, progress, settings.batch, on_restored=restored)
        nudger = Nudger(parts.keys, settings.lake, _sibling(settings, election))

        def accepted(_: int) -> None:
            if committer.active:
                committer.nudge()
            else:
                nudger.send()

        stager = DuckDBStager(lake=settings.lake, store=settings.store, pool=pool)
        stack.push_async_callback(stager.close)
        inlet = Inlet(bus, lake=settings.lake, limits=settings.ingest, on_accepted=accepted)
        await inlet.start()
        stack.push_async_callback(inlet.drain)
        barrier = Barrier(progress, lag=_bus_lag(bus))
        stack.push_async_callback(barrier.close)
        if settings.query_url:
            parts.forward = QueryForward(settings.query_url)
            stack.push_async_callback(parts.forward.close)
        parts.ingest, parts.tables = IngestService(inlet, stager), TableService(inlet, bus)
        parts.bus, parts.barrier, parts.committer = bus, barrier, committer
        parts.health.before_scrape = inlet.show_lag
        store = StoreObjects(settings.store)
        parts.dead_letters = DeadLetterService(inlet, bus, store)
        parts.snapshots = SnapshotService(PostgresSnapshots(pool, settings.lake))
        parts.restore = RestoreService(inlet, bus)
        if settings.tables_file is not None:
            parts.declared = DeclaredTables(
                settings.tables_file,
                parts.tables,
                barrier,
                PostgresTablesReporter(pool, settings.lake),
                active=lambda: committer.active,
            )
            await stack.enter_async_context(parts.declared.following())
        if settings.maintenance_dir is not None:
            opener_m = _maintenance_opener(settings, settings.maintenance_dir)
            parts.expiry = Expiry(
                opener_m,
                active=lambda: committer.active,
                keep=settings.snapshots,
                files_stay_s=FILES_STAY_S,
            )
            parts.compaction = Compaction(
                opener_m,
                active=lambda: committer.active,
                settings=settings.compaction,
                turn=committer.turn,
            )
            await stack.enter_async_context(parts.expiry.running())
            await stack.enter_async_context(parts.compaction.running())
            parts.integrity = _integrity(settings, settings.maintenance_dir, store)
            checks = IntegrityWatch(
                parts.integrity,
                active=lambda: committer.active,
                busy=lambda: committer.backing_off,
            )
            await stack.enter_async_context(checks.running())
        parts.health.checks = {
            "catalog": _catalog_check(parts, bus),
            "storage": _storage_check(store),
            "committer": _committer_check(election),
        }
        watch = StoreWatch(
            store,
            PostgresStoreReporter(pool, settings.lake),
            active=lambda: committer.active,
            failing=lambda: committer.backing_off,
        )
        await stack.enter_async_context(watch.running())
        async with _running(committer, nudger, settings.drain_s * _HAND_OVER_PART):
            yield
            await inlet.drain()


@asynccontextmanager
async def query_role(parts: Parts) -> AsyncIterator[None]:
    """Answer statements.

    Raises:
        Unavailable: The catalog does not answer, or the lake is not made yet: enter again.
    """
    settings = parts.settings
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, _folder(settings.reader_dir, "READER"), f"query:{settings.lake}")
        bus = PostgresBus(pool, settings.lake)
        parts.timeline = (await bus.head()).timeline
        store = StoreObjects(settings.store)
        heap.keep_freed()
        proxy = ReadProxy(store)
        await proxy.start()
        stack.push_async_callback(proxy.close)
        sandbox = SandboxClient(settings.sandbox_socket)
        freezer = PostgresFreezer(
            pool,
            settings.lake,
            settings.catalog_dir,
            data_url=proxy.data_url,
            allow=proxy.allow,
            forget=proxy.release,
            prepare=lambda catalog: sandbox.prepare(catalog.path, proxy.data_url),
        )
        stack.push_async_callback(freezer.close)
        await stack.enter_async_context(freezer.ahead())
        barrier = Barrier(PostgresProgress(pool, settings.lake), lag=_frozen_lag(freezer))
        stack.push_async_callback(barrier.close)
        parts.query = QueryService(
            freezer,
            sandbox,
            barrier,
            limits=settings.query,
            data_url=proxy.data_url,
        )
        parts.barrier = parts.barrier or barrier
        parts.health.checks = {
            "catalog": _catalog_check(parts, bus),
            "storage": _storage_check(store),
            **parts.health.checks,
        }
        yield


def _folder(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise SettingsError(f"DUCKMESH_{name}_DIR: missing; it holds the login of this process")
    return folder


async def _pool(stack: AsyncExitStack, secret_dir: Path, name: str) -> asyncpg.Pool:
    pool = await open_pool(secret_dir, application_name=f"duckmesh-{name}"[:63], size=_POOL_SIZE)

    async def close() -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    stack.push_async_callback(close)
    return pool


def _election(settings: Settings, pool: asyncpg.Pool) -> PostgresElection:
    return PostgresElection(
        lake=settings.lake,
        secret_dir=_folder(settings.writer_dir, "WRITER"),
        holder=settings.pod_name,
        address=_address(settings),
        pool=pool,
    )


def _address(settings: Settings) -> str:
    host = f"[{settings.pod_address}]" if ":" in settings.pod_address else settings.pod_address
    return f"{host}:{settings.api_port}"


def _sibling(settings: Settings, election: PostgresElection) -> Callable[[], Awaitable[str | None]]:
    async def find() -> str | None:
        address = await election.committer_address()
        return None if address in (None, _address(settings)) else f"http://{address}"

    return find


def _writer_opener(
    settings: Settings, pool: asyncpg.Pool
) -> Callable[[int], Awaitable[LakeWriter]]:
    async def opener(epoch: int) -> LakeWriter:
        return await open_writer(
            lake=settings.lake,
            epoch=epoch,
            store=settings.store,
            secret_dir=_folder(settings.writer_dir, "WRITER"),
            pool=pool,
        )

    return opener


def _integrity(settings: Settings, secret_dir: Path, store: StoreObjects) -> IntegrityService:
    def opener() -> AbstractAsyncContextManager[LakeCheck]:
        return open_check(lake=settings.lake, secret_dir=secret_dir)

    return IntegrityService(opener, store)


def _maintenance_opener(
    settings: Settings, secret_dir: Path
) -> Callable[[], AbstractAsyncContextManager[LakeMaintenance]]:
    turn = asyncio.Lock()

    @asynccontextmanager
    async def opener() -> AsyncIterator[LakeMaintenance]:
        # One at a time: the lease is given to a process, and what another of its services does would end this one's.
        async with (
            turn,
            open_maintenance(
                lake=settings.lake,
                store=settings.store,
                secret_dir=secret_dir,
                holder=settings.pod_name,
            ) as found,
        ):
            yield found

    return opener


@asynccontextmanager
async def _running(committer: Committer, nudger: Nudger, hand_over_s: float) -> AsyncIterator[None]:
    """Commit and nudge in the background; at the end the lease goes to a sibling."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(committer.run(), name="committer")
        nudging = group.create_task(nudger.run(), name="nudger")
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(hand_over_s):
                    await committer.hand_over()
            running.cancel()
            nudging.cancel()


def _bus_lag(bus: IngestBus) -> Callable[[], Awaitable[int]]:
    async def lag_ms() -> int:
        return (await bus.backlog()).lag_ms

    return lag_ms


def _frozen_lag(freezer: PostgresFreezer) -> Callable[[], Awaitable[int]]:
    async def lag_ms() -> int:
        catalog = await freezer.freeze()
        freezer.release(catalog)
        return catalog.lag_ms

    return lag_ms


def _catalog_check(parts: Parts, bus: IngestBus) -> Check:
    async def check() -> None:
        # A catalog restored to an earlier time begins another timeline: tokens follow it without a restart.
        parts.timeline = (await bus.head()).timeline

    return check


def _storage_check(store: ObjectStore) -> Check:
    async def check() -> None:
        with suppress(Corrupt):  # "there is no such object" is an answer
            await store.size(_NO_FILE)

    return check


def _committer_check(election: PostgresElection) -> Check:
    async def check() -> None:
        if await election.committer_address() is None:
            raise Unavailable("CATALOG_UNAVAILABLE", "no process commits now", retry_after_s=1)

    return check
