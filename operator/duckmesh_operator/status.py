"""The status of a Tenant or Compactor from what was observed. Pure; `reconcile` writes it when it differs.

Conditions carry the generation they are about; a message says what to do next and holds nothing that changes by itself,
so that a healthy Tenant's status is not written. Figures that move all the time (`_MOVING`) are written with the next
change, or after `lag.REFRESH`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from duckmesh_operator.lag import REFRESH, CatalogHealth, LagTrack
from duckmesh_operator.manifest import Json, Manifest, list_at, number_at, object_at, text_at
from duckmesh_operator.model import Compactor, Meta, Tenant

#: Every reason of a condition: API, so none is renamed.
REASONS: Final[Mapping[str, str]] = {
    "Pending": "The operator has not come to it yet.",
    "Valid": "The spec can be carried out.",
    "DataRetained": "The spec is valid, but deletionPolicy Delete is not carried out by this version.",
    "Invalid": "A field of the spec cannot be.",
    "PrefixInUse": "Another Tenant's data lies in the storage prefix.",
    "DataOwned": "The catalog keeps data of an earlier Tenant of the same name.",
    "NameConflict": "An object with a name the Tenant needs belongs to someone else.",
    "Reachable": "It answers.",
    "Unreachable": "It does not answer.",
    "AccessDenied": "It refuses the operator's rights.",
    "CatalogError": "The catalog answers with an error.",
    "LakeUnreadable": "The catalog answers, but this lake cannot be read.",
    "NotReported": "Nobody reports it.",
    "WithinTarget": "Lag is within the objective.",
    "AboveTarget": "Lag is above the objective, not for long.",
    "LagBreach": "Lag is above the objective for longer than sustainedFor.",
    "Healthy": "The newest snapshot is good.",
    "Stale": "Rows wait, and the newest snapshot is older than maxAge.",
    "Missing": "There is no lake yet.",
    "Current": "No more small files than queries take easily.",
    "Behind": "More small files wait for a merge than queries take easily.",
    "Disabled": "Merging is switched off in the spec.",
    "Migrating": "A Job makes or upgrades the lake.",
    "MigrationFailed": "The migrate Job failed.",
    "Applying": "Objects or declared tables are being made or changed.",
    "Waiting": "Objects with the Tenant's names are still being deleted.",
    "RollingOut": "Workers are being replaced or scaled.",
    "Stopping": "Workers are being stopped.",
    "Settled": "Nothing is under way.",
    "AllReady": "All workers are ready.",
    "WorkersNotReady": "A worker is not ready.",
    "RolloutStuck": "A worker did not become ready in five minutes.",
    "NoCommitter": "No ingest pod commits rows to the lake.",
    "Suspended": "The spec asks for no pods.",
    "Active": "The spec asks for pods.",
    "Paused": "The spec asks the operator to change nothing.",
    "Managed": "The operator carries out changes.",
    "Restricted": "Workers reach the catalog and the store only where they lie.",
    "PortsOpenAnywhere": "Workers may use the ports of catalog and store towards any address.",
    "Protected": "The API server refuses to delete the Tenant.",
    "ProtectionUnavailable": "The cluster lacks the policy that deletionProtection works by.",
    "Refused": "The API server refuses an object that the Tenant needs.",
    "NotSupportedYet": "A Compactor: this version runs no maintenance Jobs.",
    "Applied": "The tables are as declared.",
    "Incompatible": "A declared table cannot be, or not without losing values.",
    "LettersKept": "Input that the lake refused is kept until it is replayed or dropped.",
    "NoLetters": "The lake refused no input that is still kept.",
}

TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"
#: Small files of a whole lake past which queries suffer: this many times what starts a merge in one table. A guess.
_SMALL_FILES_FACTOR: Final = 10
#: A status is refreshed a little before the sweep's REFRESH, so that its reminder never comes too early.
_REFRESH_SLACK: Final = timedelta(seconds=5)
_MOVING: Final = {
    "ingest": (
        *("lagSeconds", "pendingRows", "oldestPendingAt", "watermark", "lastCommitAt"),
        "deadLetters",
    ),
    "snapshot": ("id", "committedAt", "files", "smallFiles", "bytes"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition before it gets its times."""

    kind: str
    status: str
    reason: str
    message: str


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
        reason: CamelCase reason.
        message: What is so, and what to do.
        stalled: Nothing changes before a person acts.
    """

    reason: str
    message: str
    stalled: bool = False


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
        workers: Ingest and query.
        problems: Conflicts, waits, refusals.
        changed: Objects were written in this run.
        track: Lag; None when unknown.
        version: Version that the workers should run.
        endpoints: `ingest` and `query` base URLs.
        egress_restricted: The NetworkPolicies name the places of catalog and store.
        protectable: The cluster has the policy that `spec.deletionProtection` works by.
        selector: Label selector of the query pods.
        tables_digest: What a report about the tables of the present spec carries.
    """

    meta: Meta
    tenant: Tenant | None
    previous: Json
    spec_problem: Problem | None = None
    catalog: CatalogHealth | None = None
    installed: bool | None = None
    migration: str = "absent"
    workers: Sequence[Worker] = ()
    problems: Sequence[Problem] = ()
    changed: bool = False
    track: LagTrack | None = None
    version: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    egress_restricted: bool = True
    protectable: bool = True
    selector: str = ""
    tables_digest: str = ""


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


def build_compactor_status(
    meta: Meta, compactor: Compactor | None, problem: Problem | None, previous: Json, now: datetime
) -> Manifest:
    """The status of a Compactor: what is wrong with its spec, and that nothing acts on it yet."""
    if compactor is None or problem is not None:
        found = problem or Problem(reason="Invalid", message="The spec cannot be read.")
        ready = _make("Ready", FALSE, found.reason, found.message)
        extra = [_make("Stalled", TRUE, found.reason, found.message)]
    else:
        message = (
            "The spec is valid, but this version of duckmesh runs no maintenance Jobs: nothing is merged, expired or "
            "checked by this Compactor. Keep it for a later version, or delete it."
        )
        ready, extra = _make("Ready", FALSE, "NotSupportedYet", message), []
    not_yet = "NotSupportedYet", "This version runs no maintenance Jobs."
    suspended = compactor is not None and compactor.suspend
    conditions = [
        ready,
        _make("CaughtUp", UNKNOWN, *not_yet),
        _make("LastRunSucceeded", UNKNOWN, *not_yet),
        _make(
            "Suspended",
            TRUE if suspended else FALSE,
            "Suspended" if suspended else "Active",
            f"spec.suspend is {'true' if suspended else 'false'}.",
        ),
        _make("Conflict", UNKNOWN, *not_yet),
        *extra,
    ]
    return {
        "observedGeneration": meta.generation,
        "conditions": stamp(conditions, previous, meta.generation, now),
    }


def phase(s: Situation) -> str:
    """One word for people."""
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
    if not any(worker.exists for worker in s.workers):
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
            "message": one.message,
            "observedGeneration": generation,
            "lastTransitionTime": _since(before.get(one.kind), one, now),
        }
        for one in conditions
    ]


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
        Condition(
            kind="StorageReachable",
            status=UNKNOWN,
            reason="NotReported",
            message="Workers do not report the object store to the operator; look at /v1/health of a worker.",
        ),
        _fresh(s),
        _snapshot_healthy(s),
        _compaction(s),
        progressing,
        _suspended(s),
        _paused(s),
        _egress(s),
        _dead_letters(s),
    ]
    if s.tenant is not None and s.tenant.tables:
        conditions.append(_tables(s))
    if s.tenant is not None and s.tenant.deletion_protection:
        conditions.append(_protected(s))
    stalled = _stalled(s)
    if stalled is not None:
        conditions.append(stalled)
    elif progressing.status == TRUE:
        conditions.append(
            Condition(
                kind="Reconciling",
                status=TRUE,
                reason=progressing.reason,
                message=progressing.message,
            )
        )
    return conditions


def _ready(s: Situation) -> Condition:
    reason, message = _not_ready(s) or (
        "AllReady",
        "All workers are ready; send rows to status.endpoints.ingest.",
    )
    return Condition(
        kind="Ready",
        status=TRUE if reason == "AllReady" else FALSE,
        reason=reason,
        message=message,
    )


def _not_ready(s: Situation) -> tuple[str, str] | None:
    if s.tenant is None or s.spec_problem is not None:
        problem = s.spec_problem or Problem(reason="Invalid", message="The spec cannot be read.")
        return problem.reason, f"{problem.message} Workers, if any, run on as they are."
    if s.tenant.suspend:
        return (
            "Suspended",
            "spec.suspend is true: there are no pods, the data is kept. Set it to false to resume.",
        )
    if s.problems:
        return s.problems[0].reason, s.problems[0].message
    if s.catalog is not None and not s.catalog.ok:
        return s.catalog.reason, s.catalog.message
    return _not_serving(s)


def _not_serving(s: Situation) -> tuple[str, str] | None:
    if s.installed is False:
        return _migration(s)
    missing = [worker for worker in s.workers if not worker.complete]
    if missing or not s.workers:
        stuck = any(worker.stuck for worker in s.workers)
        counts = ", ".join(f"{w.ready} of {w.wanted} {w.component} pods" for w in missing)
        reason = "RolloutStuck" if stuck else "WorkersNotReady"
        return (
            reason,
            f"Ready are {counts or 'no pods'}; look at their events with kubectl describe.",
        )
    if s.track is not None and s.track.headless:
        return "NoCommitter", "No ingest pod commits rows; look at the logs of the ingest pods."
    return None


def _migration(s: Situation) -> tuple[str, str]:
    if s.migration == "failed":
        return (
            "MigrationFailed",
            "The Job that makes the lake failed; its log is in the operator's namespace. It is tried again.",
        )
    return "Migrating", "A Job in the operator's namespace makes or upgrades the lake."


def _spec_valid(s: Situation) -> Condition:
    if s.spec_problem is not None:
        return _make("SpecValid", FALSE, s.spec_problem.reason, s.spec_problem.message)
    if s.tenant is not None and s.tenant.deletion_policy == "Delete":
        message = (
            "This version does not remove data: when the Tenant is deleted, its catalog schemas and files are retained "
            "as with deletionPolicy Retain. Remove them by hand."
        )
        return _make("SpecValid", TRUE, "DataRetained", message)
    return _make("SpecValid", TRUE, "Valid", "The spec can be carried out.")


def _catalog(s: Situation) -> Condition:
    if s.catalog is None:
        return _make("CatalogReachable", UNKNOWN, "Pending", "The catalog was not asked yet.")
    status = TRUE if s.catalog.ok else FALSE
    return _make("CatalogReachable", status, s.catalog.reason, s.catalog.message)


def _fresh(s: Situation) -> Condition:
    track = s.track
    if track is None or track.lag_class == "unknown":
        return _make("Fresh", UNKNOWN, *_unknown(s))
    if track.lag_class == "breach":
        message = (
            "Lag is above spec.freshness.target for longer than sustainedFor; look at the committer's log and at "
            "CatalogReachable, or raise ingest resources."
        )
        return _make("Fresh", FALSE, "LagBreach", message)
    if track.lag_class == "warn":
        return _make(
            "Fresh", TRUE, "AboveTarget", "Lag is above spec.freshness.target, not yet for long."
        )
    return _make("Fresh", TRUE, "WithinTarget", "Lag is within spec.freshness.target.")


def _snapshot_healthy(s: Situation) -> Condition:
    state = s.track.snapshot_state if s.track is not None else ""
    if not state:
        return _make("SnapshotHealthy", UNKNOWN, *_unknown(s))
    if state == "Healthy":
        return _make("SnapshotHealthy", TRUE, state, "The newest snapshot is good.")
    if state == "Stale":
        message = "Rows wait and the newest snapshot is older than spec.snapshots.maxAge; look at the committer's log."
        return _make("SnapshotHealthy", FALSE, state, message)
    return _make(
        "SnapshotHealthy",
        FALSE,
        state,
        "There is no lake yet; it is made before the workers start.",
    )


def _compaction(s: Situation) -> Condition:
    kind = "CompactionCurrent"
    if s.tenant is not None and not s.tenant.compaction_enabled:
        return _make(
            kind,
            UNKNOWN,
            "Disabled",
            "spec.compaction.enabled is false: small files are not watched.",
        )
    small = s.track.report.small_files if s.track is not None else None
    if s.tenant is None or small is None:
        return _make(kind, UNKNOWN, *_unknown(s))
    limit = s.tenant.compaction_small_files * _SMALL_FILES_FACTOR
    if small <= limit:
        return _make(kind, TRUE, "Current", f"At most {limit} small files.")
    message = f"More than {limit} small files; queries get slower with their number. Send rows in larger batches."
    return _make(kind, FALSE, "Behind", message)


def _tables(s: Situation) -> Condition:
    kind, report = "TablesReady", s.track.report if s.track is not None else None
    if report is not None and report.tables_digest and report.tables_digest == s.tables_digest:
        if report.tables_ready:
            return _make(kind, TRUE, "Applied", "The tables are as spec.tables declares them.")
        message = f"{report.tables_problem}. Change spec.tables; all other tables are as declared."
        return _make(kind, FALSE, "Incompatible", message)
    if s.tenant is not None and s.tenant.paused:
        return _make(kind, FALSE, "Paused", "spec.paused is true: what spec.tables says now waits.")
    if s.tenant is not None and s.tenant.suspend:
        message = "spec.suspend is true: there is no pod that could make the tables."
        return _make(kind, FALSE, "Suspended", message)
    message = (
        "The tables are being made or changed; a running pod sees a new spec.tables within two minutes. If it takes "
        "longer, look at the log of the ingest pods."
    )
    return _make(kind, FALSE, "Applying", message)


def _dead_letters(s: Situation) -> Condition:
    kind, kept = "DeadLetters", s.track.report.dead_letters if s.track is not None else None
    if kept is None:
        return _make(kind, UNKNOWN, *_unknown(s))
    if not kept:
        return _make(kind, FALSE, "NoLetters", "Nothing that was accepted is set aside.")
    message = (
        "The lake refused input that was accepted; it is kept. See why with `duckmesh dead-letters list` (GET "
        "/v1/dead-letters), remove the cause, then replay or drop it."
    )
    return _make(kind, TRUE, "LettersKept", message)


def _unknown(s: Situation) -> tuple[str, str]:
    if s.installed is False:
        return "NotReported", "There is no lake yet; it is made before the workers start."
    if s.track is not None and s.track.report.error:
        return (
            "LakeUnreadable",
            "The catalog answers, but this lake's tables cannot be read; look at the operator's log.",
        )
    return "NotReported", "The lag of this lake is not known yet, or its catalog does not answer."


def _progressing(s: Situation) -> Condition:
    kind = "Progressing"
    if s.tenant is None or s.spec_problem is not None or s.tenant.paused:
        return _make(kind, FALSE, "Settled", "Nothing is under way.")
    waits = [problem for problem in s.problems if not problem.stalled]
    if waits:
        return _make(kind, TRUE, waits[0].reason, waits[0].message)
    if s.installed is False and not s.tenant.suspend:
        reason, message = _migration(s)
        return _make(kind, FALSE if reason == "MigrationFailed" else TRUE, reason, message)
    if s.tenant.suspend and _total(s, "pods"):
        return _make(kind, TRUE, "Stopping", "Workers answer what they accepted and stop.")
    if any(worker.stuck for worker in s.workers):
        return _make(kind, FALSE, "RolloutStuck", _stuck(s))
    if any(not worker.settled for worker in s.workers):
        return _make(kind, TRUE, "RollingOut", "Workers are being started, replaced or scaled.")
    return _make(kind, FALSE, "Settled", "Nothing is under way.")


def _stuck(s: Situation) -> str:
    parts = " and ".join(worker.component for worker in s.workers if worker.stuck)
    older = "; those of before serve on" if _total(s, "ready") else ""
    current = text_at(s.previous, "version", "current")
    revert = f", or set spec.version back to {current}" if current not in ("", s.version) else ""
    return f"New {parts} pods did not become ready in five minutes{older}. Look at their events with kubectl describe{revert}."


def _stalled(s: Situation) -> Condition | None:
    stops = [problem for problem in s.problems if problem.stalled]
    problem = s.spec_problem or (stops[0] if stops else None)
    return None if problem is None else _make("Stalled", TRUE, problem.reason, problem.message)


def _suspended(s: Situation) -> Condition:
    if s.tenant is not None and s.tenant.suspend:
        return _make(
            "Suspended", TRUE, "Suspended", "spec.suspend is true: no pods, the data is kept."
        )
    return _make("Suspended", FALSE, "Active", "spec.suspend is false.")


def _paused(s: Situation) -> Condition:
    if s.tenant is not None and s.tenant.paused:
        return _make(
            "Paused",
            TRUE,
            "Paused",
            "spec.paused is true: the operator reports and changes nothing.",
        )
    return _make("Paused", FALSE, "Managed", "spec.paused is false.")


def _egress(s: Situation) -> Condition:
    if s.egress_restricted:
        return _make(
            "EgressRestricted",
            TRUE,
            "Restricted",
            "Workers reach catalog and store only where they lie.",
        )
    message = (
        "The operator's configuration does not say where the catalog or the store lies, so workers may use their ports "
        "towards any address; the platform team can set egress.cidrs or egress.peers."
    )
    return _make("EgressRestricted", FALSE, "PortsOpenAnywhere", message)


def _protected(s: Situation) -> Condition:
    kind = "DeletionProtected"
    if s.protectable:
        message = (
            "The API server refuses to delete the Tenant while spec.deletionProtection is true."
        )
        return _make(kind, TRUE, "Protected", message)
    message = (
        "deletionProtection is unavailable: the cluster lacks duckmesh's admission policy, so the Tenant can be deleted. "
        "Ask the platform team to install it (admissionPolicy of the chart)."
    )
    return _make(kind, FALSE, "ProtectionUnavailable", message)


def _make(kind: str, status: str, reason: str, message: str) -> Condition:
    return Condition(kind=kind, status=status, reason=reason, message=message)


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
