"""The reconcile of a Tenant: parse -> read -> build -> plan -> apply -> status, in this order, each one call.

Every step may run twice or stop half way; a run with nothing changed writes nothing. A status is written also when a
step fails; the failure then goes to the queue, which tries again later.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from duckmesh_operator import log, metrics
from duckmesh_operator.catalog import Catalog, Lake, lakes_elsewhere
from duckmesh_operator.conditions import PROBLEMS
from duckmesh_operator.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OperatorError,
    Unavailable,
)
from duckmesh_operator.events import Note, Recorder, notes_of
from duckmesh_operator.kube import Api
from duckmesh_operator.lag import CatalogHealth, LagBoard, catalog_health, objective_of
from duckmesh_operator.manifest import Manifest, list_at, object_at, text_at
from duckmesh_operator.model import Meta, Tenant, parse_meta, parse_tenant
from duckmesh_operator.names import (
    CONFIG_MAP,
    LABEL_COMPONENT,
    LABEL_TENANT,
    LABEL_TENANT_UID,
    MIGRATION,
    TENANT,
    adoption,
    pod_selector,
)
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.queue import Key
from duckmesh_operator.reconcile.children import Outcome, apply_children, read_children, read_worker
from duckmesh_operator.reconcile.credentials import Credentials, read_store
from duckmesh_operator.reconcile.deletion import Deletion, is_guarded
from duckmesh_operator.reconcile.jobs import LOOK_S, read_job, run_job
from duckmesh_operator.reconcile.workers import COMPONENTS, build_desired, pinned_version
from duckmesh_operator.settings import Settings
from duckmesh_operator.specs.context import Context, build_context
from duckmesh_operator.specs.job import build_migrate_job
from duckmesh_operator.specs.networkpolicy import is_restricted
from duckmesh_operator.specs.service import endpoint
from duckmesh_operator.specs.tables import tables_digest
from duckmesh_operator.status import Problem, Situation, Worker, build_status, phase, same
from duckmesh_operator.troubles import troubles_of

logger = logging.getLogger(__name__)

_ELSEWHERE: Final = (
    " It lies in another place than spec.storage says: make the Tenant again with the spec.storage of the earlier "
    "one first."
)
#: Seconds until the next look while an object of an earlier Tenant is being deleted.
_WAIT_S: Final = 2.0
#: The default of `kubectl duckmesh adopt --operator-namespace`.
_USUAL_NAMESPACE: Final = "duckmesh-system"


@dataclass(slots=True, kw_only=True)
class _Run:
    """One reconcile under way.

    Attributes:
        meta: Whose.
        previous: Its status as read.
        live: Its children as read and written.
        tenant: The parsed spec.
        context: The spec with what its names stand for.
        spec_problem: Why the spec cannot be carried out.
        catalog: How the catalog answered.
        installed: The lake is there; None when the catalog does not tell.
        unmade: It never was: its first migrate Job has not ended.
        migration: State of the migrate Job.
        deletion: Where its deletion is; empty while it is not deleted.
        deletion_problem: What went wrong in it.
        problems: What keeps the Tenant from its goal.
        repaired: Objects that others had changed.
        failure: What to tell the queue after the status is written.
        again_s: When to look again; None means at the usual time.
    """

    meta: Meta
    previous: Manifest
    live: list[Manifest] = field(default_factory=list)
    tenant: Tenant | None = None
    context: Context | None = None
    spec_problem: Problem | None = None
    catalog: CatalogHealth | None = None
    installed: bool | None = None
    unmade: bool = False
    migration: str = "absent"
    deletion: str = ""
    deletion_problem: str = ""
    problems: list[Problem] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    failure: OperatorError | None = None
    again_s: float | None = None

    def found_lake(self, lake: Lake) -> None:
        """Name everything after the Tenant's lake as the catalog has it: one that was handed over has another's name."""
        self.meta = replace(self.meta, recorded=lake.lake)
        if self.tenant is not None:
            self.tenant = replace(self.tenant, meta=self.meta)
        if self.context is not None and self.tenant is not None:
            self.context = replace(self.context, tenant=self.tenant)


class TenantReconciler:
    """Reconciles Tenants; see the module.

    Args:
        api: The API server.
        catalogs: By name, as configured.
        settings: The operator's configuration.
        board: Lag as swept.
        prefixes: Storage prefixes of all Tenants.
        recorder: Posts Events.
        credentials: Makes logins and Secrets.
        now: Time of day, in UTC.
    """

    def __init__(
        self,
        *,
        api: Api,
        catalogs: Mapping[str, Catalog],
        settings: Settings,
        board: LagBoard,
        prefixes: Prefixes,
        recorder: Recorder,
        credentials: Credentials,
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._catalogs = catalogs
        self._settings = settings
        self._board = board
        self._prefixes = prefixes
        self._recorder = recorder
        self._credentials = credentials
        self._now = now
        self._deletion = Deletion(api=api, catalogs=catalogs, settings=settings, now=now)
        self.phases: dict[str, str] = {}
        self.troubles: dict[str, frozenset[tuple[str, str]]] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring one Tenant on. Returns the seconds after which to look again; None when it is gone.

        Raises:
            OperatorError: A step failed; the status says so already.
        """
        try:
            obj = await self._api.get(TENANT, key.namespace, key.name)
        except NotFound:
            self._forget(f"{key.namespace}/{key.name}")
            return None
        run = _Run(meta=parse_meta(obj), previous=object_at(obj, "status"))
        log.note(generation=run.meta.generation)
        if run.meta.deleting:
            again_s = await self._delete(run, obj) if is_guarded(obj) else None
            if again_s is None:
                # Another's finalizer may hold it for long, and its workers: its prefix stays its own.
                self._fall_silent(run.meta.full_name)
            return again_s
        await self._advance(run, obj)
        await self._report(run)
        if run.failure is not None:
            raise run.failure
        if run.again_s is not None:
            return run.again_s
        return self._settings.resync_s * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load

    async def _delete(self, run: _Run, obj: Manifest) -> float | None:
        """Bring a deletion on. Returns the seconds after which to look again; None when the Tenant may go."""
        step = await self._deletion.advance(obj)
        if step is not None:
            self._parse(run, obj)
            run.live = await read_children(self._api, run.meta)
            run.deletion, run.deletion_problem = step.reason, step.problem
            await self._report(run)
            if step.reason != "DataKept":
                return step.again_s
            note = Note(reason="DataKept", message=PROBLEMS["DataKept"])
            await self._recorder.record(TENANT, run.meta, note)
        # The status that was just written has made it another version of itself.
        with suppress(NotFound):
            await self._deletion.release(
                await self._api.get(TENANT, run.meta.namespace, run.meta.name)
            )
        return None

    async def _advance(self, run: _Run, obj: Manifest) -> None:
        """All steps but the report; a failure ends them and is kept."""
        try:
            self._parse(run, obj)
            run.live = await read_children(self._api, run.meta)
            self._resolve(run)
            await self._deletion.guard(obj)  # before anything is made
            await self._ask_catalog(run)
            if run.context is not None and run.tenant is not None and run.spec_problem is None:
                if run.tenant.paused:
                    await self._look_only(run, run.context)
                else:
                    await self._provision(run, run.context)
                    await self._apply(run, run.context)
        except Invalid as error:
            run.problems.append(Problem(reason="Refused", message=str(error), stalled=True))
        except Forbidden as error:
            run.problems.append(Problem(reason="AccessDenied", message=_advice(error)))
            run.failure = error
        except OperatorError as error:
            run.failure = error

    def _parse(self, run: _Run, obj: Manifest) -> None:
        try:
            run.tenant = parse_tenant(obj)
        except Invalid as error:
            run.spec_problem = Problem(reason=error.reason, message=_sentence(error))
            return
        tenant = run.tenant
        self._board.forget(run.meta.full_name, but=run.meta.uid)
        self._board.watch(
            run.meta.uid,
            tenant=run.meta.full_name,
            catalog=tenant.catalog,
            objective=objective_of(tenant),
        )

    def _resolve(self, run: _Run) -> None:
        """Look the Tenant's names up and see that its prefix is its own."""
        if run.tenant is None:
            return
        # What runs before what was asked for: a version that did not come up is left by taking it out of the spec, too.
        pinned = next(
            (v for key in ("current", "target") if (v := text_at(run.previous, "version", key))),
            pinned_version(run.live, run.meta.uid),
        )
        try:
            run.context = build_context(
                run.tenant,
                self._settings,
                pinned_version=pinned,
                postgres_ports=self._postgres_ports(run),
            )
        except Invalid as error:
            run.spec_problem = Problem(reason=error.reason, message=_sentence(error))
            return
        other = self._prefixes.claim(run.meta, run.tenant.store, run.tenant.prefix)
        if other is not None:
            run.spec_problem = _prefix_in_use("another Tenant's data lies there")
            logger.warning("prefix in use", extra={"tenant": run.meta.full_name, "other": other})

    def _postgres_ports(self, run: _Run) -> tuple[int, ...]:
        catalog = self._catalogs.get(run.tenant.catalog) if run.tenant else None
        try:
            return catalog.ports if catalog else ()
        except OperatorError as error:
            # Without the address nothing can be built, not even a NetworkPolicy: what runs stays as it is.
            run.catalog = catalog_health(error)
            raise

    async def _ask_catalog(self, run: _Run) -> None:
        """See whether the lake is there and whose it is. A silent catalog stops no repair of what exists."""
        if run.context is None:
            return
        catalog, context = self._catalogs[run.context.catalog.name], run.context
        try:
            lakes = await catalog.lakes(
                lake=run.meta.lake, tenant=run.meta.full_name, data_url=context.data_url
            )
        except OperatorError as error:
            self._catalog_failed(run, error)
            run.spec_problem = run.spec_problem or _still_owned(run.previous)
            return
        run.catalog = CatalogHealth(ok=True)
        own = next((one for one in lakes if one.tenant_uid == run.meta.uid), None)
        if own is None and (left := _left_behind(lakes, run.meta)) is not None:
            own = await self._adopt(run, catalog, left, context)
        if own is not None:
            run.found_lake(own)
            lakes = [one for one in lakes if one.lake != own.lake]
        run.installed = own is not None and own.migration >= self._needed(context)
        run.unmade = own is None or own.migration == 0
        run.spec_problem = run.spec_problem or _owned_by_others(lakes, own, run.meta, context)
        # Asked before its lake is made, never again: once it is there, it is others who have to look.
        if (
            own is None
            and run.spec_problem is None
            and await lakes_elsewhere(self._catalogs, context.catalog.name, context.data_url)
        ):
            run.spec_problem = _prefix_in_use("data of another catalog's lake lies there")

    async def _adopt(
        self, run: _Run, catalog: Catalog, left: Lake, context: Context
    ) -> Lake | None:
        """Take over the lake of a Tenant before this one, where the platform says so; its word is used up then."""
        where = self._settings.namespace, adoption(run.meta.namespace, run.meta.name)
        try:
            word = await self._api.get(CONFIG_MAP, *where)
        except NotFound:
            return None
        if text_at(word, "data", "uid") != run.meta.uid or left.data_url != context.data_url:
            return None
        if run.tenant is None or run.tenant.paused:
            return None
        try:
            if not await catalog.adopt_lake(left.lake, owner=left.tenant_uid, heir=run.meta.uid):
                return None
        except OperatorError as error:
            message = f"The data of an earlier Tenant is not handed over yet. {_advice(error)}"
            run.spec_problem = Problem(reason="DataOwned", message=message)
            run.failure = error
            return None
        extra = {"tenant": run.meta.full_name, "lake": left.lake, "from_uid": left.tenant_uid}
        logger.info("lake handed over", extra=extra)
        note = Note(
            reason="DataHandedOver", message="The Tenant has the data of the one before it."
        )
        await self._recorder.record(TENANT, run.meta, note)
        await self._api.delete(CONFIG_MAP, *where, text_at(word, "metadata", "uid"))
        return replace(left, tenant_uid=run.meta.uid)

    def _needed(self, context: Context) -> int:
        # Only the images of the configured version are known to bring a lake to our newest migration.
        return MIGRATION if context.images.version == self._settings.runtime_version else 1

    def _catalog_failed(self, run: _Run, error: OperatorError) -> None:
        run.catalog = catalog_health(error)
        run.failure = error

    async def _look_only(self, run: _Run, context: Context) -> None:
        if run.installed is False:
            run.migration = await read_job(self._api, build_migrate_job(context))

    async def _provision(self, run: _Run, context: Context) -> None:
        """Logins, Secrets and the lake."""
        if run.catalog is None or not run.catalog.ok:
            return
        try:
            outcome = await self._credentials.ensure(context, self._catalogs[context.catalog.name])
        except Conflict as error:
            run.failure = error
            return
        self._take(run, outcome)
        if run.installed is False and not outcome.problems and not context.tenant.suspend:
            run.migration = await run_job(self._api, build_migrate_job(context), self._now())
            run.again_s = LOOK_S

    async def _apply(self, run: _Run, context: Context) -> None:
        """NetworkPolicies, Services, Deployments with their revisions, PodDisruptionBudgets."""
        # Workers wait for a lake that is being made, and start meanwhile. One of an earlier migration has others at work.
        making = run.unmade and run.migration == "running"
        # Pods of a Tenant without its credentials could not even start.
        startable = (run.installed or making) and not run.problems and run.failure is None
        desired = build_desired(
            context, run.live, startable=None if run.installed is None else bool(startable)
        )
        outcome = await apply_children(self._api, run.meta, desired.manifests, desired.live)
        self._take(run, outcome)
        run.live = outcome.live

    def _take(self, run: _Run, outcome: Outcome) -> None:
        run.problems += outcome.problems
        run.repaired += outcome.repaired
        if any(problem.reason == "Waiting" for problem in outcome.problems):
            run.again_s = _WAIT_S

    async def _report(self, run: _Run) -> None:
        """Write the status when it differs, and tell what changed."""
        situation = self._situation(run)
        status = build_status(situation, self._now())
        self.phases[run.meta.full_name] = phase(situation)
        self.troubles[run.meta.full_name] = troubles_of(status)
        for note in [*notes_of(run.previous, status), *_repairs(run)]:
            await self._recorder.record(TENANT, run.meta, note)
        if same(status, run.previous):
            return
        manifest: Manifest = {
            "apiVersion": TENANT.api_version,
            "kind": TENANT.kind,
            "metadata": {
                "name": run.meta.name,
                "namespace": run.meta.namespace,
                "uid": run.meta.uid,
            },
            "status": status,
        }
        try:
            await self._api.apply(manifest, subresource="status")
        except NotFound:
            return
        except Conflict:
            if await self._is_there(run.meta):
                raise  # no event would tell what was not written
            return
        metrics.status_written(TENANT.kind)

    async def _is_there(self, meta: Meta) -> bool:
        """Whether it is still this very Tenant."""
        try:
            live = await self._api.get(TENANT, meta.namespace, meta.name)
        except NotFound:
            return False
        return parse_meta(live).uid == meta.uid

    def _situation(self, run: _Run) -> Situation:
        tenant, context = run.tenant, run.context
        return Situation(
            meta=run.meta,
            tenant=tenant,
            previous=run.previous,
            spec_problem=run.spec_problem,
            catalog=self._health(run),
            installed=run.installed,
            migration=run.migration,
            deletion=run.deletion,
            deletion_problem=run.deletion_problem,
            workers=_workers(run),
            problems=run.problems,
            failure=_failure(run),
            track=self._board.track(run.meta.uid),
            version=context.images.version if context else "",
            endpoints={part: endpoint(tenant, part) for part in COMPONENTS} if tenant else {},
            egress_restricted=is_restricted(context) if context else True,
            protectable=self._settings.deletion_protection,
            selector=_selector(run.meta),
            tables_digest=tables_digest(run.tenant) if run.tenant else "",
            store_key=bool(read_store(context.store.secret_dir)) if context else True,
        )

    def _health(self, run: _Run) -> CatalogHealth | None:
        """What this run saw, else what the sweep saw."""
        if run.catalog is not None or run.tenant is None:
            return run.catalog
        return self._board.health(run.tenant.catalog, CatalogHealth(ok=True))

    def _forget(self, full_name: str) -> None:
        self._prefixes.release(full_name)
        self._fall_silent(full_name)

    def _fall_silent(self, full_name: str) -> None:
        """Metrics tell no more of it."""
        self._board.forget(full_name)
        self.phases.pop(full_name, None)
        self.troubles.pop(full_name, None)


def _workers(run: _Run) -> list[Worker]:
    tenant = run.tenant if run.spec_problem is None else None
    wanted: dict[str, int | None] = {"ingest": None, "query": None}
    if tenant is not None and not tenant.paused:
        wanted = {
            "ingest": 0 if tenant.suspend else tenant.ingest.replicas,
            "query": 0 if tenant.suspend else tenant.query.replicas,
        }
    return [read_worker(run.live, run.meta, part, wanted[part]) for part in COMPONENTS]


def _left_behind(lakes: list[Lake], meta: Meta) -> Lake | None:
    """What the catalog keeps of an earlier Tenant of the same namespace and name."""
    return next((one for one in lakes if one.tenant == meta.full_name), None)


def _still_owned(previous: Manifest) -> Problem | None:
    """What the catalog said of others before it fell silent: silence makes nothing theirs ours."""
    for item in list_at(previous, "conditions"):
        reason = text_at(item, "reason")
        if text_at(item, "type") == "SpecValid" and reason in ("DataOwned", "PrefixInUse"):
            return Problem(reason=reason, message=text_at(item, "message"))
    return None


def _owned_by_others(
    others: list[Lake], own: Lake | None, meta: Meta, context: Context
) -> Problem | None:
    if own is not None and own.purging:
        message = (
            "Part of the data is removed already: a deletion of it was begun. Set spec.deletionPolicy to Delete and "
            "delete the Tenant, which removes the rest; then make it again."
        )
        return Problem(reason="DataOwned", message=message)
    left = _left_behind(others, meta)
    if left is not None:
        elsewhere = "" if left.data_url == context.data_url else _ELSEWHERE
        message = (
            "The catalog keeps data of an earlier Tenant of this namespace and name, which nobody may take over by "
            "chance. Choose another name, or ask the platform team to hand the data over (kubectl duckmesh adopt "
            f"{meta.name} --namespace {meta.namespace}{_operator_option(context)}).{elsewhere}"
        )
        return Problem(reason="DataOwned", message=message)
    url = context.data_url
    if any(one.data_url.startswith(url) or url.startswith(one.data_url) for one in others):
        return _prefix_in_use("data of another lake lies there")
    return None


def _operator_option(context: Context) -> str:
    """What `kubectl duckmesh adopt` has to be told where the operator is not where it looks by itself."""
    here = context.operator_namespace
    return "" if here == _USUAL_NAMESPACE else f" --operator-namespace {here}"


def _prefix_in_use(why: str) -> Problem:
    return Problem(
        reason="PrefixInUse",
        message=f"spec.storage.prefix cannot be used: {why}. Make the Tenant again with another prefix.",
    )


def _failure(run: _Run) -> str:
    """What kept this run from its end and no other condition tells; who was only outrun tries again at once."""
    told = run.catalog is not None and not run.catalog.ok
    return str(run.failure) if isinstance(run.failure, Unavailable) and not told else ""


def _repairs(run: _Run) -> list[Note]:
    if not run.repaired:
        return []
    message = f"Repaired what others had changed: {', '.join(run.repaired)}."
    return [Note(reason="DriftRepaired", message=message)]


def _selector(meta: Meta) -> str:
    labels = pod_selector(meta.name, meta.uid, "query")
    return ",".join(
        f"{key}={labels[key]}" for key in (LABEL_COMPONENT, LABEL_TENANT, LABEL_TENANT_UID)
    )


def _sentence(error: Invalid) -> str:
    return "; ".join(error.problems) + "."


def _advice(error: OperatorError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}; it is tried again. If it stays, ask the platform team."
