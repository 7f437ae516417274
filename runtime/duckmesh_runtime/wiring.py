"""The processes of a lake: which adapters and services make up a role, how a process starts, and how it ends.

A process listens before its parts are there and opens them until the catalog answers: an outage at the start gives
catalogued 503s, not a crash loop. It ends in order: not ready, no more requests, accepted rows written, the commit
lease goes to a sibling, connections close. Called by `__main__` and `duckmesh dev`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Final

from duckmesh_runtime.errors import DuckmeshError, SettingsError, Unavailable
from duckmesh_runtime.ports import LakeCheck, LakeMaintenance
from duckmesh_runtime.roles import ingest_role, query_role
from duckmesh_runtime.settings import CompactSettings, MigrateSettings, PurgeSettings, Settings
from duckmesh_runtime.web.app import Server, build_api, build_metrics
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.health import Health
from duckmesh_runtime.web.parts import Parts

logger = logging.getLogger(__name__)

Role = Callable[[Parts], AbstractAsyncContextManager[None]]
Ready = Callable[[Sequence[int]], None]
Ended = Callable[[], str | None]

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_WATCH_S: Final = 0.5
# Thousands may wait for a token, each on a connection; the soft limit that a shell gives is often 1,024.
_OPEN_FILES: Final = 65_536
# Of `drain_s`: what running requests get; ingest has accepted rows to write and a lease to hand over after that.
_INGEST_ANSWER_PART: Final = 0.4
_QUERY_ANSWER_PART: Final = 0.9


def serve_ingest(settings: Settings) -> int:
    """Take rows, commit them, front the API, until SIGTERM; returns the exit code."""
    answer_s = settings.drain_s * _INGEST_ANSWER_PART
    return asyncio.run(_serve(settings, "ingest", [ingest_role], answer_s))


def serve_query(settings: Settings) -> int:
    """Answer statements, until SIGTERM; returns the exit code."""
    answer_s = settings.drain_s * _QUERY_ANSWER_PART
    return asyncio.run(_serve(settings, "query", [query_role], answer_s))


def serve_all(settings: Settings, ready: Ready, ended: Ended) -> int:
    """All of it in one process.

    Args:
        settings: Of the process.
        ready: Gets the ports when everything runs.
        ended: Names a child process that ended by itself; the exit code is 1 then.
    """
    answer_s = settings.drain_s * _INGEST_ANSWER_PART
    roles = [ingest_role, query_role]
    return asyncio.run(_serve(settings, "ingest", roles, answer_s, ready, ended))


def run_migrate(settings: MigrateSettings) -> int:
    """Bring the catalog and one lake to this release; returns the exit code. Safe to repeat."""
    from duckmesh_runtime.adapters.migrate import migrate

    try:
        asyncio.run(migrate(settings))
    except DuckmeshError as error:
        logger.error("migration failed", extra={"error_code": error.code, "problem": error.message})
        return 1
    return 0


def run_purge(settings: PurgeSettings) -> int:
    """Remove one lake for good; returns the exit code. Safe to repeat. SIGTERM ends the process at once."""
    from duckmesh_runtime.adapters.purge import purge

    # The first process of a container has no default action: without a handler the purge would go on.
    signal.signal(signal.SIGTERM, _end_at_once)
    try:
        asyncio.run(purge(settings))
    except DuckmeshError as error:
        logger.error("purge failed", extra={"error_code": error.code, "problem": error.message})
        return 1
    return 0


def run_compact(settings: CompactSettings) -> int:
    """Do the run of a Compactor's Job; returns the exit code. Safe to repeat. SIGTERM ends it in order."""
    return asyncio.run(_compact(settings))


async def _compact(settings: CompactSettings) -> int:
    from duckmesh_runtime.adapters.integrity import open_check
    from duckmesh_runtime.adapters.maintenance import open_maintenance
    from duckmesh_runtime.adapters.objects import StoreObjects
    from duckmesh_runtime.services.compact_job import CompactJob
    from duckmesh_runtime.services.job_steps import steps_of

    def opener() -> AbstractAsyncContextManager[LakeMaintenance]:
        return open_maintenance(
            lake=settings.lake,
            store=settings.store,
            secret_dir=settings.maintenance_dir,
            holder=settings.pod_name,
        )

    def checking() -> AbstractAsyncContextManager[LakeCheck]:
        return open_check(lake=settings.lake, secret_dir=settings.maintenance_dir)

    stop = _stop_on_signals()
    steps = steps_of(
        settings.run,
        open_check=checking,
        open_maintenance=opener,
        store=StoreObjects(settings.store),
        stop=stop,
    )
    job = CompactJob(opener, run=settings.run, stop=stop, steps=steps)
    return 0 if await job.run() else 1


def _end_at_once(number: int, _: object) -> None:
    os._exit(128 + number)


def _nothing(_: Sequence[int]) -> None:
    return None


def _no_child() -> str | None:
    return None


async def _serve(
    settings: Settings,
    role: str,
    roles: Sequence[Role],
    answer_s: float,
    ready: Ready = _nothing,
    ended: Ended = _no_child,
) -> int:
    parts = Parts(settings=settings, keys=KeyRing(settings.auth_dir), health=Health())
    stop = _stop_on_signals()
    _allow_connections()
    server = Server(
        build_api(parts, role=role),
        build_metrics(parts),
        bind=settings.bind,
        api_port=settings.api_port,
        metrics_port=settings.metrics_port,
        answer_s=answer_s,
    )
    try:
        await _listen(server)
        async with AsyncExitStack() as stack:
            for each in roles:
                await _open(stack, each, parts, stop)
            if not stop.is_set():
                parts.health.started = True
                logger.info("serving", extra={"role": role, "ports": server.ports})
                # What is there by now stays: looking through it again took 40 ms each time, with everybody waiting.
                gc.collect()
                gc.freeze()
                ready(server.ports)
            lost = await _until_stopped(stop, ended)
            parts.health.draining = True
            logger.info("draining", extra={"role": role})
            await server.stop_intake()
    finally:
        await server.close()
    logger.info("ended", extra={"role": role})
    return 1 if lost else 0


async def _until_stopped(stop: asyncio.Event, ended: Ended) -> str | None:
    """Wait for the signal, or for the end of a child; returns its name."""
    while not stop.is_set():
        if lost := ended():
            logger.error("a child process ended by itself", extra={"child": lost})
            return lost
        with suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_S):
                await stop.wait()
    return None


def _allow_connections() -> None:
    """Raise the soft limit of open files as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _listen(server: Server) -> None:
    try:
        await server.start()
    except OSError as error:
        raise SettingsError(
            f"cannot listen: {error.strerror}; choose another address or port"
        ) from error


async def _open(stack: AsyncExitStack, role: Role, parts: Parts, stop: asyncio.Event) -> None:
    """Open a role's parts, again and again until they are there or the process is told to end."""
    began = time.monotonic()
    told = False
    while not stop.is_set():
        try:
            await stack.enter_async_context(role(parts))
            return
        except Unavailable as error:
            extra = {"error_code": error.code, "problem": error.message}
            logger.warning("cannot start yet", extra=extra)
        except SettingsError:
            raise
        except Exception:  # the process's edge: it must go on
            logger.warning("cannot start yet", exc_info=not told)
            told = True
        # A tenth of the time it has waited: what it waits for is seen soon, and who is away for long is left in peace.
        pause_s = min(max(_FIRST_PAUSE_S, 0.1 * (time.monotonic() - began)), _LONGEST_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await stop.wait()
