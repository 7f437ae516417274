"""The deletion of a Tenant whose data goes with it: its workers end, a Job removes the lake, then our finalizer goes.

One step after another, each found out from what is there, so that a process that ends anywhere is followed by the next.
Bounded: after `Settings.deletion_timeout_s` the Tenant goes whatever is left, and what is left is kept as with Retain.
Where data is kept after all, the Job ends before the Tenant goes: a Job that nobody watches must not remove it yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from duckmesh_operator.catalog import Catalog, Lake, lakes_elsewhere
from duckmesh_operator.errors import Failing, Invalid, NotFound, OperatorError
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Json, Manifest, dig, list_at, text_at
from duckmesh_operator.model import Meta, parse_meta
from duckmesh_operator.names import (
    COMPACT,
    DEPLOYMENT,
    FINALIZER,
    JOB,
    LABEL_COMPONENT,
    LABEL_TENANT_UID,
    MIGRATION,
    child,
    lake_name,
    logins,
    migrate_job,
    purge_job,
)
from duckmesh_operator.reconcile.jobs import LOOK_S, is_of, read_job, run_job, stop_job
from duckmesh_operator.reconcile.workers import COMPONENTS
from duckmesh_operator.settings import Settings
from duckmesh_operator.specs.context import build_bare_context
from duckmesh_operator.specs.job import build_purge_job

logger = logging.getLogger(__name__)

#: After a failure, the part of the time since the deletion to wait; so a long outage is not asked after all the time.
_PATIENCE: Final = 0.1
_LONGEST_WAIT_S: Final = 30.0
#: Seconds after the time for a deletion in which a Job that still runs may end; a pod has 30 of its own.
_STOP_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where a deletion is.

    Attributes:
        reason: `Stopping`, `RemovingData`, `RemovalFailed`, or `DataKept` when its time is over.
        problem: What went wrong, for people; empty when nothing did.
        again_s: When to look again.
    """

    reason: str
    problem: str = ""
    again_s: float = LOOK_S


class Deletion:
    """Deletes Tenants; see the module.

    Args:
        api: The API server.
        catalogs: By name, as configured.
        settings: The operator's configuration.
        now: Time of day, in UTC.
    """

    def __init__(
        self,
        *,
        api: Api,
        catalogs: Mapping[str, Catalog],
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._catalogs = catalogs
        self._settings = settings
        self._now = now

    async def guard(self, obj: Manifest) -> None:
        """Put our finalizer on a Tenant with deletionPolicy Delete, and take it off any other.

        Raises:
            OperatorError: The API server cannot be used; Conflict: the Tenant was changed meanwhile.
        """
        if is_guarded(obj) != _is_wanted(obj):
            await self._set(obj, wanted=_is_wanted(obj))

    async def advance(self, obj: Manifest) -> Step | None:
        """Bring the deletion of a guarded Tenant on.

        Returns:
            Where it is; None when nothing is left to do but `release`, which follows on `DataKept` as well.
        """
        meta, since_s = parse_meta(obj), self._since_s(obj)
        left_s = self._settings.deletion_timeout_s - since_s
        if not _is_wanted(obj):
            return await self._stop_purge(meta, left_s + _STOP_S)
        if left_s <= 0:
            stopping = await self._stop_purge(meta, left_s + _STOP_S)
            return stopping or Step(reason="DataKept")
        try:
            return await self._remove(meta, obj)
        except OperatorError as error:
            logger.warning("data not removed", extra={"error": str(error)})
            wait_s = min(max(LOOK_S, since_s * _PATIENCE), _LONGEST_WAIT_S, left_s)
            return Step(reason="RemovalFailed", problem=str(error), again_s=wait_s)

    async def release(self, obj: Manifest) -> None:
        """Take our finalizer off: the API server lets the Tenant go.

        Raises:
            OperatorError: The API server cannot be used; Conflict: the Tenant was changed meanwhile.
        """
        await self._set(obj, wanted=False)
        logger.info("tenant released", extra={"tenant": parse_meta(obj).full_name})

    async def _set(self, obj: Manifest, *, wanted: bool) -> None:
        others = [str(one) for one in list_at(obj, "metadata", "finalizers") if one != FINALIZER]
        try:
            await self._api.set_finalizers(obj, [*others, FINALIZER] if wanted else others)
        except NotFound:
            return

    def _since_s(self, obj: Json) -> float:
        since = datetime.fromisoformat(text_at(obj, "metadata", "deletionTimestamp"))
        return (self._now() - since).total_seconds()

    async def _remove(self, meta: Meta, obj: Json) -> Step | None:
        if await self._stop_workers(meta):
            return Step(reason="Stopping")
        name = text_at(obj, "spec", "catalog", "name") or "default"
        catalog = self._catalogs.get(name)
        if catalog is None:
            raise Invalid([f"spec.catalog.name: {name} is not configured any more"])
        lakes = await catalog.records(uid=meta.uid, lake=lake_name(meta.uid))
        if lakes is None and _had_lake(obj):
            raise Failing(
                "the catalog's database knows of no lake at all, though this Tenant had one"
            )
        lakes = lakes or []
        own = next((one for one in lakes if one.tenant_uid == meta.uid), None)
        lake = own.lake if own is not None else lake_name(meta.uid)
        if await stop_job(self._api, self._settings.namespace, migrate_job(lake), meta.uid):
            return Step(reason="Stopping")
        if own is None and lakes:
            return None  # handed over to another Tenant, and its logins with it
        if own is None or own.purged:
            if await self._stop_migrations(meta, lake):
                return Step(reason="Stopping")
            await catalog.drop_logins(logins(lake))
            await catalog.forget_lake(lake, meta.uid)
            return None
        await catalog.retire_logins(logins(lake))
        return await self._purge(replace(meta, recorded=lake), obj, own)

    async def _stop_workers(self, meta: Meta) -> bool:
        """Delete Deployments and runs of Compactors; whether any of them, or of their pods, is still there."""
        busy = False
        for component in COMPONENTS:
            name = child(meta.name, component)
            try:
                live = await self._api.get(DEPLOYMENT, meta.namespace, name)
            except NotFound:
                continue
            if not is_of(live, meta.uid):
                continue  # someone else's
            busy = True
            if dig(live, "metadata", "deletionTimestamp") is None:
                uid = text_at(live, "metadata", "uid")
                await self._api.delete(DEPLOYMENT, meta.namespace, name, uid, wait=True)
        return await self._stop_runs(meta) or busy

    async def _stop_runs(self, meta: Meta) -> bool:
        """Delete the Jobs of Compactors; whether any of them, or of their pods, is still there."""
        wanted = {LABEL_TENANT_UID: meta.uid, LABEL_COMPONENT: COMPACT}
        live = await self._api.list(JOB, meta.namespace, wanted)
        for job in live:
            if dig(job, "metadata", "deletionTimestamp") is None:
                name, uid = text_at(job, "metadata", "name"), text_at(job, "metadata", "uid")
                await self._api.delete(JOB, meta.namespace, name, uid, wait=True)
        return bool(live)

    async def _stop_migrations(self, meta: Meta, lake: str) -> bool:
        """Stop Jobs of earlier releases as well: one that waits for a node would make the lake anew."""
        namespace = self._settings.namespace
        names = [migrate_job(lake, number) for number in range(1, MIGRATION)]
        return any([await stop_job(self._api, namespace, name, meta.uid) for name in names])

    async def _purge(self, meta: Meta, obj: Json, own: Lake) -> Step:
        context = build_bare_context(meta, obj, self._settings)
        job = build_purge_job(context)
        if await read_job(self._api, job) == "absent":
            await self._refuse_shared(context.catalog.name, own)
        state = await run_job(self._api, job, self._now())
        if state == "running":
            return Step(reason="RemovingData")
        problem = f"the Job {purge_job(meta.uid)} failed; its log is in the operator's namespace"
        return Step(reason="RemovalFailed", problem=problem)

    async def _refuse_shared(self, name: str, own: Lake) -> None:
        """Begin no purge of a place where another catalog keeps data; the Job knows of its own catalog only."""
        found = await lakes_elsewhere(self._catalogs, name, own.data_url)
        if any((one.lake, one.tenant_uid) != (own.lake, own.tenant_uid) for one in found):
            raise Invalid(["data of another lake, in another catalog, lies in the same place"])

    async def _stop_purge(self, meta: Meta, left_s: float) -> Step | None:
        """See that no Job goes on with what is kept from now on; None when there is none, or its time is over."""
        try:
            busy = await stop_job(
                self._api, self._settings.namespace, purge_job(meta.uid), meta.uid
            )
            step = Step(reason="Stopping") if busy else None
        except OperatorError as error:
            logger.warning("purge job not removed", extra={"error": str(error)})
            problem = f"the Job {purge_job(meta.uid)} cannot be stopped ({error})"
            step = Step(reason="RemovalFailed", problem=problem)
        if step is not None and left_s <= 0:
            logger.error("purge job left behind", extra={"job": purge_job(meta.uid)})
            return None
        return step


def is_guarded(obj: Json) -> bool:
    """Whether our finalizer is on it."""
    return FINALIZER in list_at(obj, "metadata", "finalizers")


def _had_lake(obj: Json) -> bool:
    """Whether its status tells of a lake: one that was looked at, or workers, which start when it is there."""
    told = dig(obj, "status", "snapshot"), dig(obj, "status", "version", "current")
    return any(one is not None for one in told)


def _is_wanted(obj: Json) -> bool:
    # From the object itself, not from the parsed spec: a Tenant whose spec cannot be is deleted as well.
    return text_at(obj, "spec", "deletionPolicy") == "Delete"
