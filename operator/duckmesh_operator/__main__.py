"""Process start: settings, logs, health, leadership; a leader watches, reconciles and sweeps until told to end.

A leader that loses its lease or its watch ends at once: what runs in the cluster does not need it, and a fresh process
knows where it stands.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

import kopf

from duckmesh_operator import handlers, kube, log, metrics
from duckmesh_operator.cache import OWN, CachedApi, owner_of
from duckmesh_operator.canary import COMPONENT, Audit, Canary
from duckmesh_operator.errors import Deaf, OperatorError, SettingsError
from duckmesh_operator.events import Recorder
from duckmesh_operator.health import Health, watch_loop
from duckmesh_operator.kube import Api
from duckmesh_operator.lag import LagBoard
from duckmesh_operator.lease import RETRY_S, Lease
from duckmesh_operator.manifest import Json, dig, number_at, text_at
from duckmesh_operator.model import parse_meta
from duckmesh_operator.names import COMPACTOR, LABEL_COMPONENT, TENANT
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.queue import Key, Queue
from duckmesh_operator.reconcile.compactor import CompactorReconciler
from duckmesh_operator.reconcile.credentials import STORE_KEY
from duckmesh_operator.reconcile.sparing import SparingCatalog, SparingCredentials
from duckmesh_operator.reconcile.tenant import TenantReconciler
from duckmesh_operator.release import release
from duckmesh_operator.rotation import SecretWatch
from duckmesh_operator.settings import Settings, from_env
from duckmesh_operator.sweep import Sweeper

logger = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

#: A standby reads the cluster as often, so that it has little left to read when it takes over.
WARM_EVERY_S: Final = 300.0
#: At start, what nobody changed meanwhile is looked at within this time at most, not all of it at once ...
START_SPREAD_S: Final = 10.0
#: ... and so many of it in a second. The watch, which reads everything once more, waits up to twice as long for that.
START_LOOKS_A_SECOND: Final = 100
#: After that each Tenant is looked at once more, spread over this time: then its Secrets are compared as well.
SECRETS_SPREAD_S: Final = 90.0
#: What a leader could not read of the cluster at its start is asked for again after this time.
LOAD_AGAIN_S: Final = 2.0
#: A queue whose oldest key waits longer than this does not move.
LATE_S: Final = 60.0


class Operator:
    """All parts of one operator process.

    Args:
        api: The API server.
        settings: The configuration.
        on_lost: Called when the lease is lost; must not return to normal work.
    """

    def __init__(self, api: Api, settings: Settings, on_lost: Callable[[], None]) -> None:
        clock = asyncio.get_running_loop().time
        identity = f"{settings.pod_name}_{secrets.token_hex(4)}"
        self._api = api
        self._settings = settings
        self._on_lost = on_lost
        self._watching = asyncio.Event()
        self._unseen: set[Key] = set()
        self._seen = asyncio.Event()
        self._leading = False
        self._prefixes = Prefixes(settings.stores)
        self._board = LagBoard()
        self._catalogs = {
            name: SparingCatalog(name, found.secret_dir, clock=clock)
            for name, found in settings.catalogs.items()
        }
        self._cache = CachedApi(
            api, namespaces=settings.watch_namespaces, changed=self._add, clock=clock
        )
        self.lease = Lease(api, namespace=settings.namespace, identity=identity, clock=clock)
        self._canary = Canary(api, namespace=settings.namespace, identity=identity, clock=clock)
        self._audit = Audit(self._cache, found=self._add, clock=clock)
        self._tenants = TenantReconciler(
            api=self._cache,
            catalogs=self._catalogs,
            settings=settings,
            board=self._board,
            prefixes=self._prefixes,
            recorder=Recorder(api, instance=settings.pod_name, clock=clock, now=_now),
            credentials=SparingCredentials(self._cache, clock=clock),
            now=_now,
        )
        self._compactors = CompactorReconciler(
            api=self._cache,
            settings=settings,
            board=self._board,
            recorder=Recorder(api, instance=settings.pod_name, clock=clock, now=_now),
            now=_now,
        )
        self._work: dict[str, Callable[[Key], Awaitable[float | None]]] = {
            TENANT.kind: self._tenants.reconcile,
            COMPACTOR.kind: self._compactors.reconcile,
        }
        self._queue = Queue(self._reconcile, workers=settings.workers, clock=clock)
        self._sweeper = Sweeper(
            catalogs=self._catalogs,
            board=self._board,
            due=lambda tenant: self._queue.add(Key(TENANT.kind, *tenant.split("/", 1))),
            swept=lambda: self._add_each(self._compactors.due()),
            alive=self._alive_uids,
            namespaces=settings.watch_namespaces,
            interval_s=settings.sweep_s,
            clock=clock,
        )

        self._secrets = SecretWatch(
            {
                **{
                    ("catalog", name): (found.secret_dir, ("control-dsn",))
                    for name, found in settings.catalogs.items()
                },
                **{
                    ("storage", name): (found.secret_dir, STORE_KEY)
                    for name, found in settings.stores.items()
                },
            },
            self._rotated,
        )

    def alive(self) -> list[str]:
        """Problems that only a restart cures."""
        problems = ["the watch does not bring what was written"] if self._canary.deaf else []
        return [*problems, *(f"the watch of {kind} is silent" for kind in self._audit.deaf)]

    def ready(self) -> list[str]:
        """Problems that pass by themselves: a leader is ready while it reconciles."""
        if not self._leading:
            return []
        problems = [] if self._watching.is_set() else ["the watch is starting"]
        problems += [f"the API server refuses to list {kind}" for kind in self._audit.refused]
        late_s = self._queue.age_s
        return [*problems, f"reconciles wait for {late_s:.0f} s"] if late_s > LATE_S else problems

    async def run(self, on_watching: Callable[[], None]) -> None:
        """Stand by, then lead, until something ends or it is cancelled.

        Args:
            on_watching: Called when kopf runs; it takes the process's signals when it starts.

        Raises:
            ExceptionGroup, OperatorError: What ended the leadership.
        """
        await self._stand_by()
        self._leading = True
        metrics.leading(True)
        self._canary.noticed()  # a standby has no watch: its silence counts from here
        collectors = self._collectors()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hold())
                await self._load()
                await self._load_prefixes()
                await self._sweeper.look()
                spread_s = await self._add_all()
                group.create_task(self._queue.run())
                group.create_task(self._sweeper.run())
                group.create_task(self._canary.run())
                group.create_task(self._secrets.run())
                group.create_task(self._audit_when_watching())
                group.create_task(self._look_at_secrets())
                group.create_task(self._tell_when_watching(on_watching))
                group.create_task(self._watch(patience_s=2 * spread_s))
        finally:
            metrics.leading(False)
            metrics.remove(collectors)
            for catalog in self._catalogs.values():
                await catalog.close()

    async def _hold(self) -> None:
        await self.lease.hold()
        self._on_lost()

    async def _stand_by(self) -> None:
        """Wait for the lease, and read the cluster now and then meanwhile."""
        warming = asyncio.create_task(self._warm())
        try:
            await self.lease.acquire()
        finally:
            warming.cancel()
            await asyncio.wait({warming})

    async def _warm(self) -> None:
        await asyncio.sleep(RETRY_S)  # who gets the lease at once reads everything anyway
        while True:
            await self._is_loaded()
            await asyncio.sleep(WARM_EVERY_S)

    async def _load(self) -> None:
        """Read the cluster, however long the API server takes: a restart would begin anew."""
        while True:
            if await self._is_loaded():
                return
            await asyncio.sleep(LOAD_AGAIN_S)

    async def _is_loaded(self) -> bool:
        try:
            await self._cache.load()
        except* OperatorError as errors:
            told = "; ".join(str(error) for error in errors.exceptions)
            logger.warning("cluster not read", extra={"error": told})
        else:
            return True
        return False

    async def _load_prefixes(self) -> None:
        for obj in await self._cache.list(TENANT, None):
            meta = parse_meta(obj)
            store = text_at(obj, "spec", "storage", "name") or "default"
            prefix = text_at(obj, "spec", "storage", "prefix") or meta.full_name
            self._prefixes.claim(meta, store, prefix)

    async def _add_all(self) -> float:
        """Queue every Tenant and Compactor: at once what changed while no operator looked, the rest within the seconds told."""
        found = [(kind, obj) for kind in OWN for obj in await self._cache.list(kind, None)]
        spread_s = min(START_SPREAD_S, len(found) / START_LOOKS_A_SECOND)
        for kind, obj in found:
            meta = parse_meta(obj)
            seen = number_at(obj, "status", "observedGeneration") == meta.generation
            rest = seen and dig(obj, "metadata", "deletionTimestamp") is None
            delay_s = random.uniform(0, spread_s) if rest else 0.0  # noqa: S311 - spreads load
            key = Key(kind.kind, meta.namespace, meta.name)
            self._unseen.add(key)
            self._queue.add_after(key, delay_s)
        return spread_s

    async def _reconcile(self, key: Key) -> float | None:
        try:
            return await self._work[key.kind](key)
        finally:
            self._unseen.discard(key)
            if not self._unseen:
                self._seen.set()

    async def _look_at_secrets(self) -> None:
        """Have the Secrets that a predecessor made compared, some at a time."""
        await asyncio.sleep(START_SPREAD_S)
        for obj in await self._cache.list(TENANT, None):
            meta = parse_meta(obj)
            delay_s = random.uniform(0, SECRETS_SPREAD_S)  # noqa: S311 - spreads load
            self._queue.add_after(Key(TENANT.kind, meta.namespace, meta.name), delay_s)

    async def _watch(self, *, patience_s: float) -> NoReturn:
        # Its first lists bring what is known already: a look at every Tenant comes first.
        with suppress(TimeoutError):
            # Not wait_for, which before Python 3.12 forgets a cancellation that comes with what it waited for.
            async with asyncio.timeout(patience_s):
                await self._seen.wait()
        namespaces = self._settings.watch_namespaces
        await kopf.operator(
            registry=handlers.build_registry(self._notice),
            settings=handlers.build_settings(),
            standalone=True,
            clusterwide=not namespaces,
            # The operator's own namespace too: the canary sings there.
            namespaces=sorted({*namespaces, self._settings.namespace}) if namespaces else (),
            ready_flag=self._watching,
        )
        raise Deaf("the watch ended")

    def _notice(self, obj: Json, gone: bool) -> None:
        """Take in an event of the watch; what it says already known, nobody needs to look."""
        self._canary.noticed()
        self._audit.heard(obj)
        if text_at(obj, "metadata", "labels", LABEL_COMPONENT) == COMPONENT:
            self._canary.seen(obj)
        if self._cache.notice(obj, gone=gone) and (owner := owner_of(obj)) is not None:
            self._add(owner)
            self._add_each(self._compactors.touched(obj, gone=gone))

    def _add(self, key: Key) -> None:
        served = self._settings.watch_namespaces
        if not served or key.namespace in served:  # the canary's namespace is watched for itself
            self._queue.add(key)

    def _add_each(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._add(key)

    async def _tell_when_watching(self, on_watching: Callable[[], None]) -> None:
        await self._watching.wait()
        on_watching()
        logger.info("watching", extra={"namespaces": self._settings.watch_namespaces or "all"})

    async def _audit_when_watching(self) -> None:
        await self._watching.wait()
        await self._audit.run()

    async def _rotated(self, part: str, name: str) -> None:
        """Queue the Tenants of a catalog or a store whose Secret was replaced."""
        for obj in await self._list_tenants():
            if (text_at(obj, "spec", part, "name") or "default") == name:
                meta = parse_meta(obj)
                self._queue.add(Key(TENANT.kind, meta.namespace, meta.name))

    async def _alive_uids(self) -> Collection[str]:
        return {text_at(obj, "metadata", "uid") for obj in await self._list_tenants()}

    async def _list_tenants(self) -> list[dict[str, object]]:
        namespaces: tuple[str | None, ...] = self._settings.watch_namespaces or (None,)
        found: list[dict[str, object]] = []
        for namespace in namespaces:
            found += await self._api.list(TENANT, namespace)
        return found

    def _collectors(self) -> list[metrics.Collector]:
        metrics.show_watch_age(lambda: self._canary.last_event_age_s)
        return metrics.add(
            metrics.QueueCollector(lambda: self._queue.depth, lambda: self._queue.age_s),
            metrics.TenantCollector(
                lambda: Counter(self._tenants.phases.values()),
                lambda: {tenant: track.report.lag_s for tenant, track in self._board.tracks()},
                self._board.targets_s,
                lambda: self._tenants.troubles,
            ),
            metrics.CompactorCollector(
                lambda: {
                    tenant: track.report.debt_files
                    for tenant, track in self._board.tracks()
                    if track.report.debt_files is not None
                },
                lambda: self._compactors.troubles,
            ),
        )


async def run(settings: Settings) -> int:
    """Run one process until a signal or a failure; returns its exit code."""
    stop = asyncio.Event()
    _take_signals(stop)
    async with kube.connect(settings.kubeconfig) as api:
        operator = Operator(api, settings, on_lost=_end_at_once)
        health = Health(operator.alive, operator.ready)
        async with health.serve(settings.bind, settings.port) as port:
            logger.info("started", extra={"port": port, "version": settings.runtime_version})
            work = asyncio.create_task(operator.run(lambda: _take_signals(stop)))
            loop_watch = asyncio.create_task(watch_loop())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            code = _tell_end(work)
            for task in (work, stopping, loop_watch):
                task.cancel()
            await asyncio.wait({work, stopping, loop_watch}, timeout=10)
            await operator.lease.release()
            return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the settings and run."""
    parser = argparse.ArgumentParser(
        prog="duckmesh-operator",
        description="Turn Tenant and Compactor resources into lakehouse workers. Runs in a pod of the chart.",
        epilog="Settings come from the environment and from the YAML file that DUCKMESH_OPERATOR_CONFIG names.",
    )
    parser.add_argument("--version", action="version", version=version("duckmesh-operator"))
    commands = parser.add_subparsers(dest="command", metavar="[release]")
    letting_go = commands.add_parser(
        "release",
        help="before an uninstall: stop the operator, take its finalizers off all Tenants",
    )
    letting_go.add_argument("--deployment", required=True, help="the operator's")
    letting_go.add_argument(
        "--namespace", action="append", default=[], help="of Tenants; can be repeated; none: all"
    )
    given = parser.parse_args(arguments)
    if given.command == "release":
        return _release(given.deployment, given.namespace)
    try:
        settings = from_env(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    log.configure(log_format=settings.log_format, level=settings.log_level)
    try:
        return asyncio.run(run(settings))
    except OperatorError as error:
        logger.error("cannot start", extra={"error": str(error)})
        return 1


def _release(deployment: str, served: Sequence[str]) -> int:
    log.configure(log_format="json", level="info")
    namespace = os.environ.get("DUCKMESH_OPERATOR_NAMESPACE", "")
    kubeconfig = os.environ.get("KUBECONFIG", "").split(":")[0]
    if not namespace:
        print("DUCKMESH_OPERATOR_NAMESPACE: missing", file=sys.stderr)
        return 2

    async def run_release() -> None:
        async with kube.connect(Path(kubeconfig) if kubeconfig else None) as api:
            await release(api, namespace=namespace, deployment=deployment, served=served)

    try:
        asyncio.run(run_release())
    except OperatorError as error:
        logger.error("tenants not released", extra={"error": str(error)})
        return 1
    return 0


def _tell_end(work: asyncio.Task[None]) -> int:
    if not work.done():
        logger.info("stopping on a signal")
        return 0
    error = None if work.cancelled() else work.exception()
    logger.error("ended", exc_info=error, extra={"error": str(error)})
    return 1


def _take_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)


def _end_at_once() -> None:
    # No clean-up: each further write could meet the new leader's.
    logger.error("lease lost")
    logging.shutdown()
    os._exit(1)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
