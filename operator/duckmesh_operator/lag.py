"""Lag of every lake as the sweep saw it last: buckets with hysteresis, the objective, and when a status is due.

`step` is pure and works on the catalog's clock only; `LagBoard` is the one place that `sweep` writes and `reconcile`
reads. It is a cache: after a restart the next sweep fills it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from duckmesh_operator.errors import Failing, Forbidden, OperatorError, SecretMissing
from duckmesh_operator.model import Tenant

#: Label and the lag in seconds up to which it is the nearest one; past the last it is ">1h".
_BUCKETS: Final = (
    ("0s", 0.5),
    ("1s", 1.5),
    ("2s", 3.5),
    ("5s", 7.5),
    ("10s", 20.0),
    ("30s", 45.0),
    ("1m", 180.0),
    ("5m", 600.0),
    ("15m", 2250.0),
    ("1h", 3600.0),
)
_LABELS: Final = (*(label for label, _ in _BUCKETS), ">1h")
#: The highest bucket of this time is shown, so that a value at a border writes nothing.
DOWN_AFTER: Final = timedelta(seconds=10)
#: While lag is not zero or commits happen, figures are refreshed this often without a change of bucket.
REFRESH: Final = timedelta(seconds=60)
#: A hand-over of the committer takes up to 5 s; past this time nobody is coming.
HEADLESS_AFTER: Final = timedelta(seconds=20)
#: A lake is unreadable when it is so for this long: someone who locks its tables for a moment says nothing.
UNREADABLE_AFTER: Final = timedelta(seconds=20)
#: The committer says each 20 s how the store is.
STORE_REPORT_HOLDS: Final = timedelta(seconds=60)
#: Files of one table that wait, past which queries suffer: so many times what starts a merge. A guess.
_FILES_FACTOR: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LagReport:
    """One lake as `duckmesh.sweep()` tells it; times are the catalog's, None where the lake could not be read.

    Attributes:
        lake: Catalog schema.
        tenant: `namespace/name` of the owner.
        tenant_uid: Uid of the owner.
        now: When it was read.
        token: The watermark's number.
        pending_rows: Accepted rows that are not in the lake.
        oldest_pending_at: When the oldest of them was accepted.
        committed_at: When the lake last changed.
        snapshot_id: Newest snapshot.
        snapshot_at: When it was committed.
        files: Its Parquet files.
        small_files: Those that wait for a merge.
        size_bytes: Size of its Parquet files.
        committer: Name of the process that holds the commit lease.
        committer_alive: Its heartbeat is fresh.
        error: Why the lake could not be read; empty when it could.
        tables_digest: Of the declared tables that the committer reported on last; empty when it never did.
        tables_ready: They are as declared.
        tables_problem: Why they are not.
        dead_letters: Inputs that the lake refused and that are kept; None where the catalog does not tell.
        store_state: How the committer found the object store: `ok`, `unreachable`, `access_denied` or `bucket_missing`;
            empty when none ever said it.
        store_since: Since when it is so.
        store_at: When that was said last.
        debt_at: When the five below were found; None when maintenance never said so.
        debt_files: Live files that maintenance would save.
        debt_bytes: Bytes it would rewrite for that.
        most_files: Live files of the table with most.
        deleted_ratio: Deleted rows of the rows in a table's files, of the worst table.
        merged_at: When a step of compaction ended well last.
        run: The last run of a Job: id, startedAt, finishedAt, result, filesIn, filesOut, bytesRewritten, error, why, tables.
        integrity: The last check of the files: checkedAt, mode, state, files, missing, damaged, message.
        deep: The last check of all of them, in the same words; None where the catalog does not tell.
        orphans: The last look for files that no snapshot has: checkedAt, files, bytes, deleted.
    """

    lake: str
    tenant: str
    tenant_uid: str
    now: datetime
    token: int | None = None
    pending_rows: int | None = None
    oldest_pending_at: datetime | None = None
    committed_at: datetime | None = None
    snapshot_id: int | None = None
    snapshot_at: datetime | None = None
    files: int | None = None
    small_files: int | None = None
    size_bytes: int | None = None
    committer: str = ""
    committer_alive: bool = False
    error: str = ""
    tables_digest: str = ""
    tables_ready: bool = False
    tables_problem: str = ""
    dead_letters: int | None = None
    store_state: str = ""
    store_since: datetime | None = None
    store_at: datetime | None = None
    debt_at: datetime | None = None
    debt_files: int | None = None
    debt_bytes: int | None = None
    most_files: int | None = None
    deleted_ratio: float | None = None
    merged_at: datetime | None = None
    run: Mapping[str, object] | None = None
    integrity: Mapping[str, object] | None = None
    deep: Mapping[str, object] | None = None
    orphans: Mapping[str, object] | None = None

    @property
    def small_of_a_table(self) -> int | None:
        """Files of one table that wait for a merge: no more than wait in all, or than the table with most has."""
        if self.debt_at is None or self.debt_files is None:
            return None
        return min(self.debt_files, self.debt_files if self.most_files is None else self.most_files)

    @property
    def maintained(self) -> bool:
        """Whether the lake is maintained by a version that says what it does."""
        said = (self.debt_at, self.merged_at, self.run, self.integrity, self.orphans)
        return any(one is not None for one in said)

    @property
    def damage(self) -> str:
        """What the last check of the files found missing or wrong; empty when nothing, or nobody checked."""
        found = self.integrity or {}
        if found.get("state") != "Damaged":
            return ""
        return str(found.get("message") or "") or "the check does not say which files"

    @property
    def lag_s(self) -> float:
        """Age of the oldest accepted row that no query can see; 0 when there is none."""
        if self.oldest_pending_at is None:
            return 0.0
        return max(0.0, (self.now - self.oldest_pending_at).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a Tenant asks of its lag, in milliseconds, and the files of a table that may wait for a merge."""

    target_ms: int = 5_000
    sustained_ms: int = 30_000
    max_age_ms: int = 600_000
    small_files: int = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class LagTrack:
    """A lake's lag over time.

    Attributes:
        report: The last look.
        bucket: What the LAG column shows.
        lag_class: `ok`, `warn`, `breach` or `unknown`.
        snapshot_state: `Healthy`, `Stale`, `Missing` or `Corrupt`; empty when the lake could not be read.
        behind: More files of a table wait for a merge than may; None when nobody said how many.
        headless: No committer for longer than a hand-over takes.
        recent: When each look of the last `DOWN_AFTER` was, and its bucket.
        above_since: Since when the lag is above the target.
        headless_since: Since when there is no committer.
        unreadable: The lake could not be read for a while.
        unreadable_since: Since when it cannot.
    """

    report: LagReport
    bucket: str = "0s"
    lag_class: str = "unknown"
    snapshot_state: str = ""
    behind: bool | None = None
    headless: bool = False
    recent: tuple[tuple[datetime, str], ...] = ()
    above_since: datetime | None = None
    headless_since: datetime | None = None
    unreadable: bool = False
    unreadable_since: datetime | None = None

    @property
    def store_state(self) -> str:
        """How the object store is; empty when nobody said so lately."""
        report = self.report
        if report.store_at is None or report.now - report.store_at > STORE_REPORT_HOLDS:
            return ""
        return report.store_state

    @property
    def committer(self) -> str:
        """The committing pod; empty while none does."""
        return self.report.committer if self.report.committer_alive else ""

    @property
    def shown(self) -> tuple[object, ...]:
        """What must be in the status at once when it changes."""
        return (
            *(self.bucket, self.lag_class, self.snapshot_state),
            *(self.headless, self.committer, bool(self.report.error)),
            *(self.report.tables_digest, self.report.tables_ready, self.report.tables_problem),
            *(bool(self.report.dead_letters), self.unreadable, self.behind, self.report.damage),
            *(self.store_state, self.report.store_since if self.store_state else None),
        )

    @property
    def moving(self) -> tuple[object, ...]:
        """What is refreshed now and then while it changes."""
        report = self.report
        return (report.snapshot_id, report.token, report.pending_rows, report.dead_letters)


def files_limit(small_files: int) -> int:
    """Files of a table that may wait for a merge, where so many start one."""
    return small_files * _FILES_FACTOR


def objective_of(tenant: Tenant) -> Objective:
    """What a Tenant's spec asks."""
    return Objective(
        target_ms=tenant.freshness_target_ms,
        sustained_ms=tenant.freshness_sustained_ms,
        max_age_ms=tenant.snapshots_max_age_ms,
        small_files=files_limit(tenant.compaction_small_files),
    )


def bucket_of(lag_s: float) -> str:
    """The nearest label of a lag in seconds."""
    return next((label for label, edge in _BUCKETS if lag_s <= edge), _LABELS[-1])


def step(track: LagTrack | None, report: LagReport, objective: Objective) -> LagTrack:
    """The track after one more look."""
    before = track or LagTrack(report=report)
    if report.error or report.token is None:
        since = before.unreadable_since or report.now
        return replace(
            before,
            report=report,
            lag_class="unknown",
            snapshot_state="",
            behind=None,
            unreadable_since=since,
            unreadable=report.now - since >= UNREADABLE_AFTER,
        )
    looks = [*before.recent, (report.now, bucket_of(report.lag_s))]
    recent = tuple(look for look in looks if report.now - look[0] < DOWN_AFTER)
    above_since = _above_since(before, report, objective)
    headless_since = None if report.committer_alive else before.headless_since or report.now
    return LagTrack(
        report=report,
        bucket=max((bucket for _, bucket in recent), key=_LABELS.index),
        recent=recent,
        above_since=above_since,
        lag_class=_lag_class(above_since, report, objective),
        snapshot_state=_snapshot_state(report, objective),
        behind=_is_behind(report, objective),
        headless_since=headless_since,
        headless=headless_since is not None and report.now - headless_since >= HEADLESS_AFTER,
    )


def _above_since(before: LagTrack, report: LagReport, objective: Objective) -> datetime | None:
    target = timedelta(milliseconds=objective.target_ms)
    if report.oldest_pending_at is None or report.now - report.oldest_pending_at <= target:
        return None
    # The oldest row tells when the lag crossed the target, also to a process that was not there.
    crossed = report.oldest_pending_at + target
    return crossed if before.above_since is None else min(before.above_since, crossed)


def _lag_class(above_since: datetime | None, report: LagReport, objective: Objective) -> str:
    if above_since is None:
        return "ok"
    sustained = timedelta(milliseconds=objective.sustained_ms)
    return "breach" if report.now - above_since >= sustained else "warn"


def _snapshot_state(report: LagReport, objective: Objective) -> str:
    if report.snapshot_id is None or report.snapshot_at is None:
        return "Missing"
    if report.damage:
        return "Corrupt"
    old = report.now - report.snapshot_at > timedelta(milliseconds=objective.max_age_ms)
    return "Stale" if old and report.pending_rows else "Healthy"


def _is_behind(report: LagReport, objective: Objective) -> bool | None:
    waiting = report.small_of_a_table
    return None if waiting is None else waiting > objective.small_files


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogHealth:
    """How the last look at a catalog database went.

    Attributes:
        ok: It answered.
        reason: Reason of the condition CatalogReachable.
    """

    ok: bool
    reason: str = "Reachable"


def catalog_health(error: OperatorError) -> CatalogHealth:
    """What a failed look at a catalog says of it."""
    reasons = {
        Forbidden: "AccessDenied",
        SecretMissing: "SecretMissing",
        Failing: "CatalogError",
    }
    found = (reason for kind, reason in reasons.items() if isinstance(error, kind))
    return CatalogHealth(ok=False, reason=next(found, "Unreachable"))


@dataclass(slots=True, kw_only=True)
class _Entry:
    tenant: str
    catalog: str
    objective: Objective
    track: LagTrack | None = None
    due_at: datetime | None = None
    due_moving: tuple[object, ...] = ()


class LagBoard:
    """The last known lag of every Tenant that the reconcile told about.

    Reports come for all lakes, also before the reconcile of a Tenant told about it: a fresh process knows the lag at
    its first reconcile, and its start changes no status.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._health: dict[str, CatalogHealth] = {}
        self._reports: dict[str, dict[str, LagReport]] = {}

    def watch(self, uid: str, *, tenant: str, catalog: str, objective: Objective) -> None:
        """Follow a Tenant; repeated calls renew its objective."""
        entry = self._entries.get(uid)
        if entry is not None and entry.catalog == catalog:
            entry.objective = objective
            return
        entry = _Entry(tenant=tenant, catalog=catalog, objective=objective)
        self._entries[uid] = entry
        report = self._reports.get(catalog, {}).get(uid)
        if report is not None:
            self._advance(entry, report)

    def forget(self, tenant: str, *, but: str = "") -> None:
        """Follow a `namespace/name` no longer, except under one uid."""
        gone = [uid for uid, one in self._entries.items() if one.tenant == tenant and uid != but]
        for uid in gone:
            del self._entries[uid]

    def track(self, uid: str) -> LagTrack | None:
        """The lag of a Tenant; None before the first look and while its catalog does not answer."""
        entry = self._entries.get(uid)
        if entry is None or not self.health(entry.catalog, CatalogHealth(ok=True)).ok:
            return None
        return entry.track

    def health(self, catalog: str, default: CatalogHealth) -> CatalogHealth:
        """How the last look at a catalog went; the default before the first."""
        return self._health.get(catalog, default)

    def tracks(self) -> list[tuple[str, LagTrack]]:
        """`namespace/name` and track of every Tenant with one."""
        return [(one.tenant, one.track) for one in self._entries.values() if one.track]

    def targets_s(self) -> dict[str, float]:
        """The lag that each Tenant asks for, by `namespace/name`."""
        return {one.tenant: one.objective.target_ms / 1000 for one in self._entries.values()}

    def update(self, catalog: str, reports: Iterable[LagReport]) -> list[str]:
        """Take in one look at a catalog; returns the `namespace/name` whose status is due."""
        due = self._set_health(catalog, CatalogHealth(ok=True))
        found = {report.tenant_uid: report for report in reports}
        self._reports[catalog] = found
        for uid, report in found.items():
            entry = self._entries.get(uid)
            if entry is not None and entry.catalog == catalog and self._advance(entry, report):
                due.add(entry.tenant)
        return sorted(due)

    def fail(self, catalog: str, health: CatalogHealth) -> list[str]:
        """Take in that a catalog did not answer; returns the `namespace/name` whose status is due."""
        return sorted(self._set_health(catalog, health))

    def _set_health(self, catalog: str, health: CatalogHealth) -> set[str]:
        before = self._health.get(catalog, CatalogHealth(ok=True))
        self._health[catalog] = health
        if before == health:
            return set()
        return {one.tenant for one in self._entries.values() if one.catalog == catalog}

    def _advance(self, entry: _Entry, report: LagReport) -> bool:
        before, entry.track = entry.track, step(entry.track, report, entry.objective)
        changed = before is None or before.shown != entry.track.shown
        moved = bool(report.lag_s) or entry.track.moving != entry.due_moving
        aged = entry.due_at is None or report.now - entry.due_at >= REFRESH
        if not (changed or (moved and aged)):
            return False
        entry.due_at, entry.due_moving = report.now, entry.track.moving
        return True
