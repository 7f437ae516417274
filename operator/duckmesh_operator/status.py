"""The status of a Tenant or Compactor from what was observed. Pure; `reconcile` writes it when it differs.

Conditions come from `conditions` and carry the generation they are about. Nothing in them changes by itself, so that a
healthy Tenant's status is not written. Figures that move all the time (`_MOVING`) are written with the next change, or
after `lag.REFRESH`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from duckmesh_operator.compaction import Need, Run, bounded
from duckmesh_operator.conditions import (
    FALSE,
    PROBLEMS,
    TRUE,
    Condition,
    say,
    say_of_compactor,
)
from duckmesh_operator.lag import REFRESH, CatalogHealth, LagTrack, files_limit
from duckmesh_operator.manifest import Json, Manifest, list_at, number_at, object_at, text_at
from duckmesh_operator.model import Compactor, Meta, Tenant

#: Characters of a condition's message; crds/tenant.yaml takes 4,096.
_LONGEST_MESSAGE: Final = 1_024
#: Names in a list of a condition's message.
_NAMED: Final = 5
#: A status is refreshed a little before the sweep's REFRESH, so that its reminder never comes too early.
_REFRESH_SLACK: Final = timedelta(seconds=5)
_MOVING: Final = {
    "ingest": (
        *("lagSeconds", "pendingRows", "oldestPendingAt", "watermark", "lastCommitAt"),
        "deadLetters",
    ),
    "snapshot": ("id", "committedAt", "files", "smallFiles", "bytes"),
}


#: What the committer says of the store, and the reason it is.
_STORE_REASONS: Final = {
    "ok": "Reachable",
    "unreachable": "Unreachable",
    "access_denied": "AccessDenied",
    "bucket_missing": "BucketMissing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One Deployment as observed.

    Attributes:
        component: `ingest` or `query`.
        wanted: Pods that there should be.
        pods: Pods that there are.
        ready: Pods that answer their readiness probe, which is the worker's own report.
        settled: The newest template is rolled out and nothing is left of an older one.
        stuck: The Deployment gave up waiting.
        exists: There is a Deployment.
        version: Runtime version of its newest template.
    """

    component: str
    wanted: int
    pods: int = 0
    ready: int = 0
    settled: bool = False
    stuck: bool = False
    exists: bool = False
    version: str = ""

    @property
    def complete(self) -> bool:
        """As many ready pods as wanted."""
        return self.exists and self.ready >= self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What keeps the Tenant from its goal and is not the spec's fault or not only.

    Attributes:
        reason: One of `conditions.PROBLEMS`.
        message: What is so, and what to do.
        stalled: Nothing changes before a person acts.
    """

    reason: str
    message: str
    stalled: bool = False

    def __post_init__(self) -> None:
        if self.reason not in PROBLEMS:
            raise ValueError(f"{self.reason} is not in conditions.PROBLEMS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a status is made of.

    Attributes:
        meta: Whose status.
        tenant: The parsed spec; None while it cannot be parsed.
        previous: The status as it is.
        spec_problem: Why the spec cannot be carried out.
        catalog: How the catalog answered.
        installed: The lake is there and at the current migration; None when the catalog does not tell.
        migration: State of the migrate Job: `absent`, `running` or `failed`.
        deletion: Where its deletion is, a reason of Progressing or `DataKept`; empty while it is not deleted.
        deletion_problem: What went wrong in it.
        workers: Ingest and query.
        problems: Conflicts, waits, refusals.
        failure: What went wrong in this run so that not all of it was done; empty when nothing did.
        changed: Objects were written in this run.
        track: Lag; None when unknown.
        version: Version that the workers should run.
        endpoints: `ingest` and `query` base URLs.
        egress_restricted: The NetworkPolicies name the places of catalog and store.
        protectable: The cluster has the policy that `spec.deletionProtection` works by.
        selector: Label selector of the query pods.
        tables_digest: What a report about the tables of the present spec carries.
        store_key: The platform's Secret of the store has its key.
    """

    meta: Meta
    tenant: Tenant | None
    previous: Json
    spec_problem: Problem | None = None
    catalog: CatalogHealth | None = None
    installed: bool | None = None
    migration: str = "absent"
    deletion: str = ""
    deletion_problem: str = ""
    workers: Sequence[Worker] = ()
    problems: Sequence[Problem] = ()
    failure: str = ""
    changed: bool = False
    track: LagTrack | None = None
    version: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    egress_restricted: bool = True
    protectable: bool = True
    selector: str = ""
    tables_digest: str = ""
    store_key: bool = True


def build_status(s: Situation, now: datetime) -> Manifest:
    """The status to have; equal to `s.previous` when nothing needs to be written."""
    status: Manifest = {
        "observedGeneration": s.meta.generation,
        "phase": phase(s),
        "conditions": stamp(_conditions(s), s.previous, s.meta.generation, now),
        **_pods(s),
        "ingest": _ingest(s),
        "version": _version(s),
    }
    if s.endpoints:
        status["endpoints"] = dict(s.endpoints)
    if s.track is not None and s.track.snapshot_state:
        status["snapshot"] = _snapshot(s.track)
        status["observedAt"] = rfc3339(s.track.report.now)
    else:
        status |= _kept(s.previous, "snapshot", "observedAt")
    return _calm(status, s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything the status of a Compactor is made of.

    Attributes:
        meta: Whose status.
        compactor: The parsed spec; None while it cannot be parsed.
        previous: The status as it is.
        problem: Why the spec cannot be carried out.
        needs: What each Tenant that it looks after needs.
        conflicts: Tenants that it names and an older Compactor looks after, with that one's name.
        refused: Why the API server takes no Job; empty when it does.
        run: The run that ended last.
        next_at: When a schedule starts the next one.
        refresh: The debt's figures may be written although nothing else has changed.
    """

    meta: Meta
    compactor: Compactor | None
    previous: Json
    problem: Problem | None = None
    needs: Sequence[Need] = ()
    conflicts: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    run: Run | None = None
    next_at: datetime | None = None
    refresh: bool = True


def build_compactor_status(p: Policy, now: datetime) -> Manifest:
    """The status of a Compactor to have; equal to `p.previous` when nothing needs to be written."""
    status: Manifest = {
        "observedGeneration": p.meta.generation,
        "conditions": stamp(_compactor_conditions(p), p.previous, p.meta.generation, now),
        "tenants": {
            "matched": len(p.needs),
            "behind": sum(one.behind for one in p.needs),
        },
    }
    if (debt := find_debt(p.needs)) is not None:
        status["debt"] = debt
    run = _last_run(p)
    if run:
        status["lastRun"] = run
    if p.next_at is not None:
        status["nextRunAt"] = rfc3339(p.next_at)
    rest = {key: value for key, value in p.previous.items() if key != "debt"}
    if (
        not p.refresh
        and "debt" in p.previous
        and same(status | {"debt": None}, rest | {"debt": None})
    ):
        return dict(p.previous)
    return status


def build_denied_status(meta: Meta, why: str, previous: Json, now: datetime) -> Manifest:
    """The status of a Compactor whose Jobs the operator may not even read: all else as it was."""
    ready = say_of_compactor("Ready", "AccessDenied", problem=why)
    (condition,) = stamp([ready], previous, meta.generation, now)
    others = [one for one in list_at(previous, "conditions") if text_at(one, "type") != "Ready"]
    return {
        **previous,
        "observedGeneration": meta.generation,
        "conditions": [condition, *others],
    }


def find_debt(needs: Sequence[Need]) -> Manifest | None:
    """The work that waits in all Tenants whose lakes say so; None while none does."""
    told = [one.subject.report for one in needs if one.subject.report is not None]
    told = [one for one in told if one.debt_at is not None]
    if not told:
        return None
    return {
        "files": bounded(sum(bounded(one.debt_files or 0) for one in told)),
        "bytes": bounded(sum(bounded(one.debt_bytes or 0) for one in told)),
    }


def _compactor_conditions(p: Policy) -> list[Condition]:
    tell = say_of_compactor
    suspended = p.compactor is not None and p.compactor.suspend
    conditions = [
        _compactor_ready(p),
        _caught_up(p),
        _last_run_succeeded(p),
        tell("Suspended", "Suspended" if suspended else "Active"),
        tell(
            "Conflict",
            "OlderCompactor" if p.conflicts else "NoConflict",
            conflicts=_conflicts(p),
        ),
    ]
    if p.compactor is None:
        conditions.append(tell("Stalled", "Invalid", problem=_invalid(p)))
    return conditions


def _invalid(p: Policy) -> str:
    return p.problem.message if p.problem is not None else "The spec cannot be read."


def _compactor_ready(p: Policy) -> Condition:
    kind, tell = "Ready", say_of_compactor
    if p.compactor is None:
        return tell(kind, "Invalid", problem=_invalid(p))
    if p.compactor.suspend:
        return tell(kind, "Suspended")
    if not p.needs:
        if p.conflicts:
            return tell(kind, "Conflict", conflicts=_conflicts(p))
        return tell(kind, "NoTenants")
    if p.refused:
        return tell(kind, "Refused", problem=p.refused)
    skipped = [one.subject for one in p.needs if one.subject.skipped]
    told = _listed(f"{one.name} ({one.skipped})" for one in skipped)
    if len(skipped) == len(p.needs):
        return tell(kind, "AllSkipped", skipped=told)
    return tell(kind, "SomeSkipped" if skipped else "Active", skipped=told)


def _caught_up(p: Policy) -> Condition:
    kind, tell = "CaughtUp", say_of_compactor
    if not p.needs:
        return tell(kind, "NoTenants")
    behind = [one.subject.name for one in p.needs if one.behind]
    if behind:
        return tell(kind, "Behind", tenants=_listed(behind), hindrance=_hindrance(p))
    return tell(kind, "NotReported" if find_debt(p.needs) is None else "CaughtUp")


def _last_run_succeeded(p: Policy) -> Condition:
    kind, tell = "LastRunSucceeded", say_of_compactor
    runs = [one.last for one in p.needs if one.last is not None]
    failed = sorted((one for one in runs if one.result == "Failed"), key=lambda one: one.tenant)
    if failed:
        newest = max(failed, key=lambda one: one.finished)
        return tell(
            kind,
            "Failed",
            tenants=_listed(one.tenant for one in failed),
            problem=(newest.error or "It gave no reason").rstrip(". "),
        )
    # Of a Tenant that is gone since, a failure is nobody's any more.
    result = text_at(_last_run(p), "result")
    last = max(runs, key=lambda one: one.finished, default=None)
    if last is not None:
        result = last.result
    if result not in ("Succeeded", "Partial"):
        return tell(kind, "NoRun")
    return tell(kind, result, ended=explain_end(last))


def explain_end(run: Run | None) -> str:
    """What ended a run that was `Partial`, as the end of a sentence about it."""
    match run.why if run is not None else "":
        case "bytes":
            return "ended when it had rewritten target.maxBytesPerRun"
        case "stopped":
            return "was told to stop before its end"
        case "stuck":
            return f"could not merge {_unmerged(run)}, as the log of its Job says"
    return "ended well, and before all was done"


def _unmerged(run: Run | None) -> str:
    tables = run.tables if run is not None else ()
    return f"the tables {', '.join(tables)}" if tables else "some tables"


def _hindrance(p: Policy) -> str:
    """What keeps work from being done that goes on by itself otherwise; empty, or sentences after a space."""
    held = [f"{one.subject.name} (Job {one.held})" for one in p.needs if one.held]
    runs = [one.last for one in p.needs if one.last is not None]
    stuck = [one for one in runs if one.result == "Partial" and one.why == "stuck"]
    told = ""
    if held:
        told += (
            f" No pod comes up for: {_listed(held)}. See kubectl describe job: a quota is used up, no node has room, or the "
            "image is not there. Raise the quota or lower spec.resources; it goes on by itself."
        )
    if stuck:
        left = _listed(f"{_unmerged(one)} of {one.tenant}" for one in stuck)
        told += f" The last run could not merge {left}; the log of its Job says why."
    return told


def _last_run(p: Policy) -> Manifest:
    """The run that ended last, as before where none ended since."""
    before, run = object_at(p.previous, "lastRun"), p.run
    if run is None or text_at(before, "finishedAt") > rfc3339(run.finished):
        return before
    found: Manifest = {"startedAt": rfc3339(run.started)} if run.started is not None else {}
    found |= {
        "finishedAt": rfc3339(run.finished),
        "result": run.result,
        "filesIn": run.files_in,
        "filesOut": run.files_out,
        "bytesRewritten": run.bytes_rewritten,
    }
    return found | ({"error": run.error} if run.error else {})


def _conflicts(p: Policy) -> str:
    return _listed(f"{tenant} (by {other})" for tenant, other in sorted(p.conflicts.items()))


def _listed(words: Iterable[str]) -> str:
    """Some of them by name, the others by number."""
    found = list(words)
    shown = found[:_NAMED]
    rest = len(found) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def phase(s: Situation) -> str:
    """One word for people."""
    if s.deletion:
        return "Deleting"
    if s.spec_problem is not None:
        return "Invalid"
    if s.tenant is None:
        return "Pending"
    if any(problem.stalled for problem in s.problems):
        return "Conflict"
    if s.tenant.paused:
        return "Paused"
    if s.tenant.suspend:
        return "Suspended" if _total(s, "pods") == 0 else "Suspending"
    waiting = s.installed is False and _total(s, "ready") == 0
    if waiting or not any(worker.exists for worker in s.workers):
        return {"running": "Migrating", "failed": "Failed"}.get(s.migration, "Pending")
    if _ready(s).status == TRUE:
        return "Ready"
    return "Degraded" if _total(s, "ready") else "Starting"


def stamp(
    conditions: Sequence[Condition], previous: Json, generation: int, now: datetime
) -> list[Manifest]:
    """Conditions with generation and times; a time moves only when the status does."""
    before = {
        text_at(item, "type"): item
        for item in list_at(previous, "conditions")
        if isinstance(item, Mapping)
    }
    return [
        {
            "type": one.kind,
            "status": one.status,
            "reason": one.reason,
            "message": _short(one.message),
            "observedGeneration": generation,
            "lastTransitionTime": _since(before.get(one.kind), one, now),
        }
        for one in conditions
    ]


def _short(message: str) -> str:
    """A message of any length as the schema takes it: one that is longer would lose the whole status."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return message[: _LONGEST_MESSAGE - 4] + " ..."


def _since(before: object, one: Condition, now: datetime) -> str:
    # A condition without a generation is the schema's seed, whose time means nothing.
    seeded = number_at(before, "observedGeneration") == 0
    if seeded or text_at(before, "status") != one.status:
        return rfc3339(now)
    return text_at(before, "lastTransitionTime")


def rfc3339(moment: datetime) -> str:
    """Whole seconds in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(s: Situation) -> list[Condition]:
    progressing = _progressing(s)
    conditions = [
        _ready(s),
        _spec_valid(s),
        _catalog(s),
        _storage(s),
        _fresh(s),
        _snapshot_healthy(s),
        _compaction(s),
        progressing,
        _suspended(s),
        _paused(s),
        say("EgressRestricted", "Restricted" if s.egress_restricted else "PortsOpenAnywhere"),
        _dead_letters(s),
    ]
    if s.tenant is not None and s.tenant.tables:
        conditions.append(_tables(s))
    if s.tenant is not None and s.tenant.deletion_protection:
        reason = "Protected" if s.protectable else "ProtectionUnavailable"
        conditions.append(say("DeletionProtected", reason))
    stalled = _stalled(s)
    if stalled is not None:
        conditions.append(say("Stalled", stalled.reason, problem=stalled.message))
    elif progressing.reason == "RolloutStuck":
        # Pods of before may serve on, so that Ready is True: nothing else tells that the spec is not carried out.
        conditions.append(say("Stalled", progressing.reason, problem=progressing.message))
    elif progressing.status == TRUE:
        conditions.append(say("Reconciling", progressing.reason, problem=progressing.message))
    return conditions


def _ready(s: Situation) -> Condition:
    kind = "Ready"
    if s.deletion:
        return say(kind, "Deleting")
    if s.tenant is None or s.spec_problem is not None:
        problem = s.spec_problem or Problem(reason="Invalid", message="The spec cannot be read.")
        return say(kind, problem.reason, problem=problem.message)
    if s.tenant.suspend:
        return say(kind, "Suspended")
    if s.problems:
        return say(kind, s.problems[0].reason, problem=s.problems[0].message)
    catalog = _catalog(s)
    if catalog.status == FALSE:
        return say(kind, catalog.reason, problem=catalog.message)
    return _serving(s)


def _serving(s: Situation) -> Condition:
    kind = "Ready"
    if s.installed is False:
        return say(kind, _migration(s))
    missing = [worker for worker in s.workers if not worker.complete]
    if missing or not s.workers:
        stuck = any(worker.stuck for worker in s.workers)
        counts = ", ".join(f"{w.ready} of {w.wanted} {w.component} pods" for w in missing)
        return say(kind, "RolloutStuck" if stuck else "WorkersNotReady", counts=counts or "no pods")
    if s.track is not None and (s.track.headless or _still_headless(s, s.track)):
        return say(kind, "NoCommitter")
    return say(kind, "AllReady")


def _migration(s: Situation) -> str:
    return "MigrationFailed" if s.migration == "failed" else "Migrating"


def _spec_valid(s: Situation) -> Condition:
    kind = "SpecValid"
    if s.spec_problem is not None:
        return say(kind, s.spec_problem.reason, problem=s.spec_problem.message)
    return say(kind, "Valid")


def _catalog(s: Situation) -> Condition:
    kind = "CatalogReachable"
    if s.catalog is None:
        return say(kind, "Pending")
    if s.catalog.ok and s.track is not None and _is_unreadable(s, s.track):
        return say(kind, "LakeUnreadable")
    return say(kind, s.catalog.reason, catalog=s.tenant.catalog if s.tenant else "")


def _is_unreadable(s: Situation, track: LagTrack) -> bool:
    # A fresh process does not know since when: what was so goes on.
    return track.unreadable or (
        bool(track.report.error) and _was(s, "CatalogReachable", "LakeUnreadable")
    )


def _still_headless(s: Situation, track: LagTrack) -> bool:
    return not track.committer and _was(s, "Ready", "NoCommitter")


def _was(s: Situation, kind: str, reason: str) -> bool:
    """Whether the status as it is gives a condition that reason."""
    return any(
        (text_at(item, "type"), text_at(item, "reason")) == (kind, reason)
        for item in list_at(s.previous, "conditions")
    )


def _storage(s: Situation) -> Condition:
    kind, report = "StorageReachable", s.track.report if s.track is not None else None
    store = s.tenant.store if s.tenant is not None else ""
    if not s.store_key:
        return say(kind, "SecretMissing", store=store)
    if s.tenant is not None and s.tenant.suspend:
        return say(kind, "Suspended")
    if s.installed is False:
        return say(kind, "NoLake")
    if report is None or s.track is None or not s.track.store_state:
        return say(kind, "NotReported")
    since = rfc3339(report.store_since) if report.store_since is not None else ""
    return say(kind, _STORE_REASONS[s.track.store_state], store=store, since=since)


def _fresh(s: Situation) -> Condition:
    reasons = {"ok": "WithinTarget", "warn": "AboveTarget", "breach": "LagBreach"}
    known = s.track is not None and s.track.lag_class in reasons
    return say("Fresh", reasons[s.track.lag_class] if s.track and known else _unknown(s))


def _snapshot_healthy(s: Situation) -> Condition:
    state = s.track.snapshot_state if s.track is not None else ""
    damage = s.track.report.damage if s.track is not None else ""
    return say("SnapshotHealthy", state or _unknown(s), damage=damage)


def _compaction(s: Situation) -> Condition:
    kind = "CompactionCurrent"
    if s.tenant is not None and not s.tenant.compaction_enabled:
        return say(kind, "Disabled")
    if s.tenant is None or s.track is None or s.track.behind is None:
        return say(kind, _unknown(s))
    limit = files_limit(s.tenant.compaction_small_files)
    return say(kind, "Behind" if s.track.behind else "Current", limit=limit)


def _tables(s: Situation) -> Condition:
    kind, report = "TablesReady", s.track.report if s.track is not None else None
    if report is not None and report.tables_digest and report.tables_digest == s.tables_digest:
        if report.tables_ready:
            return say(kind, "Applied")
        return say(kind, "Incompatible", problem=report.tables_problem)
    if s.tenant is not None and s.tenant.paused:
        return say(kind, "Paused")
    if s.tenant is not None and s.tenant.suspend:
        return say(kind, "Suspended")
    return say(kind, "Applying")


def _dead_letters(s: Situation) -> Condition:
    kind, kept = "DeadLetters", s.track.report.dead_letters if s.track is not None else None
    if kept is None:
        return say(kind, _unknown(s))
    return say(kind, "LettersKept" if kept else "NoLetters")


def _unknown(s: Situation) -> str:
    if s.installed is False:
        return "NoLake"
    if s.track is not None and s.track.report.error:
        return "LakeUnreadable"
    return "NotReported"


def _progressing(s: Situation) -> Condition:
    kind = "Progressing"
    if s.deletion == "DataKept":
        return say(kind, "Settled")
    if s.deletion:
        return say(kind, s.deletion, problem=s.deletion_problem)
    if s.tenant is None or s.spec_problem is not None or s.tenant.paused:
        return say(kind, "Settled")
    waits = [problem for problem in s.problems if not problem.stalled]
    if waits:
        return say(kind, waits[0].reason, problem=waits[0].message)
    if s.failure:
        return say(kind, "Retrying", problem=s.failure)
    if s.installed is False and not s.tenant.suspend:
        return say(kind, _migration(s))
    if s.tenant.suspend and _total(s, "pods"):
        return say(kind, "Stopping")
    if any(worker.stuck for worker in s.workers):
        return say(kind, "RolloutStuck", **_stuck(s))
    if any(not worker.settled for worker in s.workers):
        return say(kind, "RollingOut")
    return say(kind, "Settled")


def _stuck(s: Situation) -> dict[str, str]:
    current = text_at(s.previous, "version", "current")
    moved = current not in ("", s.version)
    return {
        "parts": " and ".join(worker.component for worker in s.workers if worker.stuck),
        "older": "; those of before serve on" if _total(s, "ready") else "",
        "revert": f", or set spec.version back to {current}" if moved else "",
    }


def _stalled(s: Situation) -> Problem | None:
    if s.deletion:
        kept = s.deletion == "DataKept"
        return Problem(reason="DataKept", message=PROBLEMS["DataKept"]) if kept else None
    stops = [problem for problem in s.problems if problem.stalled]
    return s.spec_problem or (stops[0] if stops else None)


def _suspended(s: Situation) -> Condition:
    suspended = s.tenant is not None and s.tenant.suspend
    return say("Suspended", "Suspended" if suspended else "Active")


def _paused(s: Situation) -> Condition:
    paused = s.tenant is not None and s.tenant.paused
    return say("Paused", "Paused" if paused else "Managed")


def _pods(s: Situation) -> Manifest:
    query = [worker for worker in s.workers if worker.component == "query"]
    found: Manifest = {
        "replicas": sum(worker.pods for worker in query),
        "readyReplicas": sum(worker.ready for worker in query),
        "workers": f"{_total(s, 'ready')}/{sum(worker.wanted for worker in s.workers)}",
    }
    return found | ({"selector": s.selector} if s.selector else {})


def _total(s: Situation, what: str) -> int:
    return sum(worker.ready if what == "ready" else worker.pods for worker in s.workers)


def _version(s: Situation) -> Manifest:
    current = text_at(s.previous, "version", "current")
    runs = {worker.version for worker in s.workers if worker.exists and worker.settled}
    if len(runs) == 1 and all(worker.settled for worker in s.workers):
        current = runs.pop() or current
    target = s.version or text_at(s.previous, "version", "target")
    pair = {"current": current, "target": target}
    return {key: value for key, value in pair.items() if value}


def _ingest(s: Situation) -> Manifest:
    track = s.track
    if track is None or track.lag_class == "unknown":
        # Old figures would look like news: only that nothing is known is said.
        return {"lagClass": "unknown"}
    report = track.report
    found: Manifest = {
        "lag": track.bucket,
        "lagSeconds": round(report.lag_s, 1),
        "lagClass": track.lag_class,
        "pendingRows": report.pending_rows or 0,
        "watermark": report.token or 0,
    }
    if report.oldest_pending_at is not None:
        found["oldestPendingAt"] = rfc3339(report.oldest_pending_at)
    if report.committed_at is not None:
        found["lastCommitAt"] = rfc3339(report.committed_at)
    if report.dead_letters is not None:
        found["deadLetters"] = report.dead_letters
    if track.committer:
        found["committer"] = track.committer
    return found


def _snapshot(track: LagTrack) -> Manifest:
    report = track.report
    found: Manifest = {"state": track.snapshot_state}
    if report.snapshot_id is not None and report.snapshot_at is not None:
        found |= {
            "id": report.snapshot_id,
            "committedAt": rfc3339(report.snapshot_at),
            "files": report.files or 0,
            "smallFiles": report.small_files or 0,
            "bytes": report.size_bytes or 0,
        }
    return found


def _kept(previous: Json, *keys: str) -> Manifest:
    return {key: previous[key] for key in keys if key in previous}


def same(one: Json, other: Json) -> bool:
    """Whether two statuses say the same; conditions are a map by type, their order says nothing."""
    return _by_type(one) == _by_type(other)


def _by_type(status: Json) -> Manifest:
    conditions = {text_at(item, "type"): item for item in list_at(status, "conditions")}
    return {**status, "conditions": conditions}


def _calm(status: Manifest, s: Situation) -> Manifest:
    """The previous status when only moving figures differ and they are not due."""
    if not same(_still(status), _still(s.previous)) or _is_due(status, s):
        return status
    return dict(s.previous)


def _still(status: Json) -> Manifest:
    kept = {key: value for key, value in status.items() if key != "observedAt"}
    for part, moving in _MOVING.items():
        if part in kept:
            inner = object_at(kept, part)
            kept[part] = {key: value for key, value in inner.items() if key not in moving}
    return kept


def _is_due(status: Manifest, s: Situation) -> bool:
    if s.track is None or same(status, s.previous):
        return False
    seen = text_at(s.previous, "observedAt")
    if not seen:
        return True
    age = s.track.report.now - datetime.fromisoformat(seen)
    if age < REFRESH - _REFRESH_SLACK:
        return False
    return s.track.report.lag_s > 0 or _progress(s.previous) != _progress(status)


def _progress(status: Json) -> tuple[object, ...]:
    parts = ("ingest", "watermark"), ("ingest", "deadLetters"), ("snapshot", "id")
    return tuple(number_at(status, *part) for part in parts)
