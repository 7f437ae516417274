"""The reconcile of a Compactor: look at its Tenants and Jobs -> decide (pure) -> stop, start, remove Jobs -> status.

A Job is made under a name that follows from the run before it, and Jobs are read from the API server each time: whoever
decides twice, or after a process that ended half way, makes no second one. Jobs are not watched: a run says in the
catalog that it ended, which the sweep sees, and a slow look finds those that could not.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from duckmesh_operator import log, metrics
from duckmesh_operator.compaction import (
    Job,
    Need,
    Run,
    Subject,
    choose,
    find_need,
    find_room,
    find_spent,
    is_run_of,
    mark_of,
    names_tenant,
    next_job,
    older_one,
    parse_job,
    read_run,
)
from duckmesh_operator.errors import Conflict, Forbidden, Invalid, NotFound, OperatorError
from duckmesh_operator.events import Note, Recorder
from duckmesh_operator.kube import Api
from duckmesh_operator.lag import LagBoard, LagReport, objective_of
from duckmesh_operator.manifest import Json, Manifest, dig, object_at, text_at
from duckmesh_operator.model import Compactor, Meta, parse_compactor, parse_meta, parse_tenant
from duckmesh_operator.names import (
    COMPACT,
    COMPACTOR,
    JOB,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_TENANT_UID,
    MANAGED_BY,
    NETWORK_POLICY,
    TENANT,
    child,
)
from duckmesh_operator.queue import Key
from duckmesh_operator.settings import Settings
from duckmesh_operator.specs.context import Context, build_context, fit_compaction
from duckmesh_operator.specs.job import build_compact_job
from duckmesh_operator.status import (
    Policy,
    Problem,
    build_compactor_status,
    build_denied_status,
    explain_end,
    find_debt,
    same,
)
from duckmesh_operator.troubles import troubles_of

logger = logging.getLogger(__name__)

#: Seconds until the next look at Jobs that run, and at one whose run has just ended.
LOOK_S: Final = 15.0
LOOK_SOON_S: Final = 2.0
#: Seconds until a Job that the API server refused is tried again.
REFUSED_S: Final = 60.0
#: The debt alone is written anew this often, and this often while a run changes it.
DEBT_REFRESH: Final = timedelta(minutes=5)
DEBT_REFRESH_RUNNING: Final = timedelta(minutes=1)

_TOO_OLD: Final = "its version has no Jobs yet: move it with kubectl duckmesh upgrade"
_JOBS: Final = {LABEL_COMPONENT: COMPACT, LABEL_MANAGED_BY: MANAGED_BY}


@dataclass(slots=True, kw_only=True)
class _Look:
    """One reconcile under way.

    Attributes:
        meta: Whose.
        previous: Its status as read.
        compactor: The parsed spec.
        problem: Why it cannot be parsed.
        contexts: What is known of each Tenant that can have a run, by its uid.
        needs: What each Tenant that it looks after needs.
        conflicts: Tenants of older Compactors, with that one's name.
        jobs: Its Jobs.
        busy: Uids of Tenants on which Jobs of other Compactors work.
        refused: Why the API server takes no Job.
        denied: Why it does not even show them.
        again: A Job was there that the list did not show, or one waits for its NetworkPolicy.
        failure: What to tell the queue after the status is written.
    """

    meta: Meta
    previous: Manifest
    compactor: Compactor | None = None
    problem: Problem | None = None
    contexts: dict[str, Context] = field(default_factory=dict)
    needs: list[Need] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    refused: str = ""
    denied: str = ""
    again: bool = False
    failure: OperatorError | None = None

    @property
    def running(self) -> list[Job]:
        """Its Jobs that have not ended."""
        return [job for job in self.jobs if job.ended is None]


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What the last reconcile of a Compactor came to.

    Attributes:
        compactor: Its spec.
        needs: What its Tenants needed.
        debt: What the status shows of it.
        written: When the status was written; at first, when this process saw it first.
        running: Names of Jobs that had not ended, or of whose end nobody was told.
        failing: The last look failed: it is repeated by itself.
    """

    compactor: Compactor | None
    needs: list[Need]
    debt: object
    written: datetime
    running: set[str] = field(default_factory=set)
    failing: bool = False


class CompactorReconciler:
    """Reconciles Compactors; see the module.

    Args:
        api: The API server.
        settings: The operator's configuration.
        board: What the sweep found of each lake.
        recorder: Posts Events.
        now: Time of day, in UTC.
    """

    def __init__(
        self,
        *,
        api: Api,
        settings: Settings,
        board: LagBoard,
        recorder: Recorder,
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._settings = settings
        self._board = board
        self._recorder = recorder
        self._now = now
        self._seen: dict[Key, _Seen] = {}
        self._marks: dict[Key, object] = {}
        self.troubles: dict[str, frozenset[tuple[str, str]]] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring one Compactor on. Returns the seconds after which to look again; None when it is gone.

        Raises:
            OperatorError: A step failed; the status says so already.
        """
        try:
            obj = await self._api.get(COMPACTOR, key.namespace, key.name)
        except NotFound:
            self._forget(key)
            return None
        look = _Look(meta=parse_meta(obj), previous=object_at(obj, "status"))
        log.note(generation=look.meta.generation)
        if look.meta.deleting:
            self._forget(key)
            return None  # its Jobs go with it
        try:
            look.compactor = parse_compactor(obj)
        except Invalid as error:
            look.problem = Problem(reason=error.reason, message="; ".join(error.problems) + ".")
        try:
            tenants = await self._look(look)
            if look.compactor is not None:
                await self._advance(look, look.compactor, tenants)
        except Forbidden as error:
            look.denied, look.failure = f"{error}.", error
        except OperatorError as error:
            look.failure = error
        await self._report(key, look)
        if look.failure is not None:
            raise look.failure
        return self._again_s(look)

    # ---------------------------------------------------------------- what makes one due

    def due(self) -> list[Key]:
        """Compactors for which the last sweep of the catalogs changes something."""
        now = self._now()
        return [key for key, seen in self._seen.items() if self._is_due(seen, now)]

    def touched(self, obj: Json, *, gone: bool) -> list[Key]:
        """Compactors to look at since a Tenant or another Compactor of their namespace changed."""
        kind, meta = text_at(obj, "kind"), parse_meta(obj)
        near = [one for one in self._seen if one.namespace == meta.namespace]
        key = Key(kind, meta.namespace, meta.name)
        if kind not in (TENANT.kind, COMPACTOR.kind) or not near:
            return []
        mark = (meta.uid, meta.generation, meta.deleting, object_at(obj, "metadata", "labels"))
        if gone:
            self._marks.pop(key, None)
        elif self._marks.get(key) == mark:
            return []
        else:
            self._marks[key] = mark
        return [one for one in near if one != key]

    def _is_due(self, seen: _Seen, now: datetime) -> bool:
        if seen.compactor is None or seen.failing:
            return False
        needs = [
            replace(one, subject=replace(one.subject, report=self._report_of(one.subject.uid)))
            for one in seen.needs
        ]
        if any(
            mark_of(seen.compactor, before) != mark_of(seen.compactor, after)
            for before, after in zip(seen.needs, needs, strict=True)
        ):
            return True
        if now - seen.written < (DEBT_REFRESH_RUNNING if seen.running else DEBT_REFRESH):
            return False
        debt = find_debt(needs)
        return debt is not None and debt != seen.debt

    def _forget(self, key: Key) -> None:
        self._seen.pop(key, None)
        self.troubles.pop(f"{key.namespace}/{key.name}", None)
        if all(one.namespace != key.namespace for one in self._seen):
            self._marks = {
                one: mark for one, mark in self._marks.items() if one.namespace != key.namespace
            }

    # ---------------------------------------------------------------- the steps

    async def _look(self, look: _Look) -> list[Manifest]:
        """The Tenants of the namespace; runs of those that are to have no pods are ended, whatever the spec says."""
        found = await self._api.list(JOB, look.meta.namespace, _JOBS)
        jobs = [job for job in map(parse_job, found) if job is not None]
        look.jobs = [job for job in jobs if job.owner == look.meta.uid]
        look.busy = {
            job.tenant_uid for job in jobs if job.ended is None and job.owner != look.meta.uid
        }
        tenants = await self._api.list(TENANT, look.meta.namespace)
        going = {parse_meta(one).uid for one in tenants if not _is_stopped(one)}
        for job in look.running:
            if job.tenant_uid not in going:
                await self._delete(look, job)  # it ends in order, with what it has done
        return tenants

    async def _advance(
        self, look: _Look, compactor: Compactor, tenants: Sequence[Manifest]
    ) -> None:
        rivals = await self._rivals(look.meta)
        by_tenant: dict[str, list[Job]] = defaultdict(list)
        for job in look.jobs:
            by_tenant[job.tenant_uid].append(job)
        now = self._now()
        for tenant in tenants:
            meta, labels = parse_meta(tenant), object_at(tenant, "metadata", "labels")
            if not names_tenant(compactor, meta.name, labels):
                continue
            if other := older_one(compactor, rivals, meta.name, labels):
                look.conflicts[meta.name] = other
                continue
            subject = self._subject(look, compactor, tenant)
            look.needs.append(find_need(compactor, subject, by_tenant[meta.uid], now))
        await self._start(look, compactor)
        for job in find_spent(look.needs, look.jobs, compactor.history_limit, now):
            await self._delete(look, job)

    async def _rivals(self, meta: Meta) -> list[Compactor]:
        """Compactors of the namespace that can be acted on."""
        found: list[Compactor] = []
        for obj in await self._api.list(COMPACTOR, meta.namespace):
            with suppress(Invalid):
                one = parse_compactor(obj)
                found += [] if one.meta.deleting else [one]
        return found

    def _subject(self, look: _Look, compactor: Compactor, obj: Manifest) -> Subject:
        meta = parse_meta(obj)
        subject = Subject(
            name=meta.name,
            uid=meta.uid,
            created=datetime.fromisoformat(meta.created),
            busy=meta.uid in look.busy,
        )
        if meta.deleting:
            return replace(subject, skipped="being deleted")
        try:
            tenant = parse_tenant(obj)
            self._board.watch(  # a process that is new may come here before it came to the Tenant
                meta.uid,
                tenant=meta.full_name,
                catalog=tenant.catalog,
                objective=objective_of(tenant),
            )
            report = self._report_of(meta.uid)
            subject = replace(subject, report=report)
            if tenant.suspend:
                return replace(subject, skipped="suspended")
            if tenant.paused:
                return replace(subject, skipped="paused")
            if report is None:
                return replace(subject, skipped="its lake is not there yet or does not answer")
            tenant = replace(tenant, meta=replace(tenant.meta, recorded=report.lake))
            runs = (text_at(obj, "status", "version", key) for key in ("current", "target"))
            context = build_context(
                tenant,
                self._settings,
                pinned_version=next((one for one in runs if one), ""),
                postgres_ports=(),
            )
            current = text_at(obj, "status", "version", "current") or context.images.version
            if current != self._settings.runtime_version and not report.maintained:
                return replace(subject, skipped=_TOO_OLD)
            fit_compaction(compactor.resources, context.profile)
        except Invalid as error:
            return replace(subject, skipped="; ".join(error.problems))
        look.contexts[meta.uid] = context
        return subject

    def _report_of(self, uid: str) -> LagReport | None:
        """What a lake says; None while it cannot be read."""
        track = self._board.track(uid)
        known = track is not None and not track.report.error and track.report.token is not None
        return track.report if track is not None and known else None

    async def _start(self, look: _Look, compactor: Compactor) -> None:
        if compactor.suspend:
            return
        room = find_room(compactor, look.running, self._now())
        for need in choose(look.needs):
            if room <= 0:
                return
            if not await self._is_fenced(need.subject, look.meta.namespace):
                look.again = True
                continue
            room -= 1
            context = look.contexts[need.subject.uid]
            manifest = build_compact_job(
                context,
                compactor,
                name=next_job(compactor, need),
                resources=fit_compaction(compactor.resources, context.profile),
                attempt=need.attempt,
                deep=need.deep,
            )
            try:
                made = await self._api.create(manifest)
            except Conflict:
                look.again = True  # made by whoever was here before; the next look shows it
                continue
            except (Invalid, Forbidden) as error:
                look.refused = f"{error}."
                return
            metrics.child_written(JOB.kind, "create")
            if (job := parse_job(made)) is not None:
                look.jobs.append(job)
            await self._tell_start(look, need, text_at(made, "metadata", "name"))

    async def _is_fenced(self, subject: Subject, namespace: str) -> bool:
        """Whether the Tenant's reconcile has made the NetworkPolicy of its Jobs: none runs before it."""
        own = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_TENANT_UID: subject.uid}
        found = await self._api.list(NETWORK_POLICY, namespace, own)
        name = child(subject.name, COMPACT)
        return any(text_at(one, "metadata", "name") == name for one in found)

    async def _delete(self, look: _Look, job: Job) -> None:
        await self._api.delete(JOB, look.meta.namespace, job.name, job.uid)
        metrics.child_written(JOB.kind, "delete")
        logger.info("job removed", extra={"job": job.name})
        look.jobs.remove(job)

    # ---------------------------------------------------------------- what is told

    async def _tell_start(self, look: _Look, need: Need, name: str) -> None:
        again = f", after {need.attempt - 1} that failed" if need.attempt > 1 else ""
        deep = " that checks all files" if need.deep else ""
        message = f"Tenant {need.subject.name}: Job {name} started{deep}{again}."
        logger.info("run started", extra={"job": name, "attempt": need.attempt})
        note = Note(reason="RunStarted", message=message, about=name)
        await self._recorder.record(COMPACTOR, look.meta, note)

    async def _tell_ends(self, look: _Look, seen: _Seen | None) -> None:
        """Tell of runs that ended since the last reconcile, or, to a process that is new, since the last status."""
        before = text_at(look.previous, "lastRun", "finishedAt")
        running = {job.name for job in look.running}
        for need in look.needs:
            run = need.last
            if run is None or not is_run_of(look.meta, run) or run.name in running:
                continue
            known = seen is not None and run.name in seen.running
            if not known and (seen is not None or _is_old(run, before)):
                continue
            metrics.run_ended(run.result)
            logger.info("run ended", extra={"job": run.name, "result": run.result})
            await self._recorder.record(COMPACTOR, look.meta, _note(run))

    async def _report(self, key: Key, look: _Look) -> None:
        """Write the status when it differs."""
        now, seen = self._now(), self._seen.get(key)
        written = seen.written if seen is not None else now
        if look.failure is None:
            await self._tell_ends(look, seen)
        wait = DEBT_REFRESH_RUNNING if look.running else DEBT_REFRESH
        policy = Policy(
            meta=look.meta,
            compactor=look.compactor,
            previous=look.previous,
            problem=look.problem,
            needs=look.needs,
            conflicts=look.conflicts,
            refused=look.refused,
            run=self._last_run(look),
            next_at=_next_at(look.compactor, now),
            refresh=now - written >= wait,
        )
        if look.failure is None or look.denied or look.compactor is None:
            status = (
                build_denied_status(look.meta, look.denied, look.previous, now)
                if look.denied and look.compactor is not None
                else build_compactor_status(policy, now)
            )
            self.troubles[look.meta.full_name] = troubles_of(status)
            if not same(status, look.previous) and await self._write(look.meta, status):
                written = now
            look.previous = status
        running = {job.name for job in look.running}
        if seen is not None and (look.failure is not None or look.compactor is None):
            running |= (
                seen.running
            )  # what ended meanwhile is told by the next look that gets through
        if look.failure is not None:
            if seen is not None:
                seen.written, seen.running, seen.failing = written, running, True
            return
        self._seen[key] = _Seen(
            compactor=look.compactor,
            needs=look.needs,
            debt=look.previous.get("debt"),
            written=written,
            running=running | _unsettled(look),
        )

    async def _write(self, meta: Meta, status: Manifest) -> bool:
        manifest: Manifest = {
            "apiVersion": COMPACTOR.api_version,
            "kind": COMPACTOR.kind,
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "status": status,
        }
        try:
            await self._api.apply(manifest, subresource="status")
        except NotFound:
            return False  # deleted meanwhile
        metrics.status_written(COMPACTOR.kind)
        return True

    def _last_run(self, look: _Look) -> Run | None:
        runs = [one.last for one in look.needs if one.last is not None]
        own = [run for run in runs if is_run_of(look.meta, run)]
        return max(own, key=lambda run: run.finished, default=None)

    def _again_s(self, look: _Look) -> float:
        now = self._now()
        waits = [self._settings.resync_s * random.uniform(0.9, 1.1)]  # noqa: S311 - spreads load
        ended = {run.name for one in look.needs if (run := read_run(one.subject)) is not None}
        if look.running or look.again or any(one.due and one.subject.busy for one in look.needs):
            waits.append(LOOK_SOON_S if ended & {job.name for job in look.running} else LOOK_S)
        if _unsettled(look):
            waits.append(LOOK_SOON_S)
        if look.refused:
            waits.append(REFUSED_S)
        moments = [one.at for one in look.needs if one.at is not None and one.at > now]
        moments += [at] if (at := _next_at(look.compactor, now)) is not None else []
        waits += [(at - now).total_seconds() for at in moments]
        return max(0.1, min(waits))


def _is_stopped(tenant: Json) -> bool:
    """Whether a Tenant is to have no pods: it is suspended or being deleted."""
    return parse_meta(tenant).deleting or dig(tenant, "spec", "suspend") is True


def _next_at(compactor: Compactor | None, now: datetime) -> datetime | None:
    """When a schedule comes next; None without one, and while it starts nothing."""
    if compactor is None or compactor.suspend:
        return None
    schedules = [one for one in (compactor.schedule, compactor.integrity) if one is not None]
    return min((one.following(now) for one in schedules), default=None)


def _unsettled(look: _Look) -> set[str]:
    """Names of Jobs that ended and of whose run nothing is known yet."""
    return {one.after for one in look.needs if one.settling}


def _is_old(run: Run, before: str) -> bool:
    return bool(before) and run.finished <= datetime.fromisoformat(before)


def _note(run: Run) -> Note:
    if run.result == "Failed":
        reason = (run.error or "it gave no reason").rstrip(". ")
        message = f"Tenant {run.tenant}: the run {run.name} failed: {reason}."
        return Note(reason="RunFailed", message=message, about=run.name)
    partial = f" It {explain_end(run)}; the next one goes on from there."
    rest = partial if run.result == "Partial" else ""
    done = f"made {run.files_out} files of {run.files_in}, {run.bytes_rewritten} bytes"
    done = done if run.files_in else "found nothing to merge"
    message = f"Tenant {run.tenant}: the run {run.name} {done}.{rest}"
    return Note(reason="RunSucceeded", message=message, about=run.name)
