"""Every collector of the runtime; other modules call the small functions below. Names are API (docs/architecture.md).

Labels are bounded: operation kinds, error codes, results; never a query text, a key, a file or a batch. The tenant is
not a label here: a process serves one tenant, and the scrape adds it. Leaf module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["REGISTRY", "Collector", "CollectorRegistry"]

_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000)
_ROWS: Final = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
_BYTES: Final = (1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10)

LABELS: Final[Mapping[str, str]] = {
    "code": "`OK` or an [error code](errors.md)",
    "outcome": "`accepted`, `duplicate` or `rejected`",
    "reason": "`fenced`, `reread` or `rejected`, or an [error code](errors.md)",
    "action": "`replayed` or `dropped`",
    "result": "`done` or `undone`",
    "of": "`record` or `request`",
    "state": "`healthy`, `damaged`, or `failed`: it could not be done",
}
"""What each label may say: a closed set each."""

_ingest_requests = Counter("duckmesh_ingest_requests_total", "Ingest requests by answer.", ["code"])
_ingest_records = Counter("duckmesh_ingest_records_total", "Records by outcome.", ["outcome"])
_ingest_duplicates = Counter(
    "duckmesh_ingest_duplicates_total", "Records known by their idempotency key."
)
_ack_latency = Histogram(
    "duckmesh_ingest_ack_latency_ms", "Request to durable answer.", buckets=_MS
)
_lag_events = Gauge("duckmesh_ingest_lag_events", "Numbers accepted and not yet visible.")
_visibility_lag = Gauge(
    "duckmesh_visibility_lag_ms", "Age of the oldest accepted, not yet visible row."
)
_latest_token = Gauge("duckmesh_latest_visibility_token", "The watermark's number.")
_accepted_token = Gauge("duckmesh_latest_accepted_token", "The last accepted number.")
_pending_rows = Gauge("duckmesh_ingest_pending_rows", "Rows accepted and not yet visible.")
_pending_bytes = Gauge(
    "duckmesh_ingest_pending_bytes", "Bytes of the entries on the bus that they are in."
)
_claimed_rows = Gauge(
    "duckmesh_ingest_claimed_rows", "Those of the pending rows that are in the commit under way."
)
_latest_snapshot = Gauge("duckmesh_latest_snapshot_id", "The lake's newest snapshot; 0: none yet.")
_lag_seen_at = Gauge(
    "duckmesh_lag_observed_timestamp_seconds",
    "When the figures of the backlog were last read, database time, Unix time; 0: not yet.",
)
_write_to_visible = Histogram(
    "duckmesh_write_to_visible_latency_ms",
    "Accepted to published, on the database's clock.",
    buckets=_MS,
)
_consistency_timeouts = Counter("duckmesh_consistency_timeout_total", "Barrier waits that ran out.")
_barrier_wait = Histogram("duckmesh_barrier_wait_ms", "Time waited for a token.", buckets=_MS)
_barrier_waiters = Gauge("duckmesh_barrier_waiters", "Calls that wait for a token now.")
_event_streams = Gauge("duckmesh_event_streams", "Open streams of GET /v1/events.")
_commit_latency = Histogram("duckmesh_commit_batch_latency_ms", "One lake commit.", buckets=_MS)
_commit_rows = Histogram("duckmesh_commit_batch_rows", "Rows of one lake commit.", buckets=_ROWS)
_commit_failures = Counter(
    "duckmesh_commit_failures_total", "Lake commits that did not land.", ["reason"]
)
_fenced = Counter("duckmesh_fenced_commits_total", "Commits refused because the lease moved on.")
_dead_letters = Counter(
    "duckmesh_dead_letter_records_total", "Records kept aside with their error."
)
_letters_kept = Gauge(
    "duckmesh_dead_letters_kept", "Dead letters that are neither replayed nor dropped."
)
_letters_settled = Counter(
    "duckmesh_dead_letters_settled_total", "Dead letters by what was done with them.", ["action"]
)
_query_requests = Counter("duckmesh_query_requests_total", "Queries by answer.", ["code"])
_query_latency = Histogram("duckmesh_query_latency_ms", "Request to last byte.", buckets=_MS)
_query_files = Histogram("duckmesh_query_scanned_files", "Files a query read from.", buckets=_ROWS)
_query_bytes = Histogram("duckmesh_query_scanned_bytes", "Bytes a query read.", buckets=_BYTES)
_queries_waiting = Gauge("duckmesh_queries_waiting", "Queries that wait for a query process.")
_key_horizon = Gauge(
    "duckmesh_idempotency_horizon_seconds", "How far back every idempotency key is known.", ["of"]
)
_snapshots_kept = Gauge("duckmesh_snapshots_kept", "Snapshots of the lake, when last looked at.")
_snapshots_expired = Counter("duckmesh_snapshots_expired_total", "Snapshots given up.")
_gc_files_deleted = Counter(
    "duckmesh_gc_files_deleted_total", "Files removed from the store that no snapshot has any more."
)
_gc_files_waiting = Gauge(
    "duckmesh_gc_files_waiting", "Files that no snapshot has any more and that are still stored."
)
_maintenance = Histogram(
    "duckmesh_maintenance_seconds",
    "One round of maintenance that had something to do.",
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60),
)
_maintenance_failures = Counter(
    "duckmesh_maintenance_failures_total", "Rounds of maintenance that failed.", ["reason"]
)
_maintenance_at = Gauge(
    "duckmesh_maintenance_last_success_timestamp_seconds",
    "When a round of maintenance last ended well, Unix time; 0: none yet in this process.",
)
_integrity_runs = Counter(
    "duckmesh_integrity_runs_total",
    "Checks of the lake's files and rows, by what they found.",
    ["state"],
)
_integrity_files = Counter(
    "duckmesh_integrity_files_checked_total", "Files looked at by checks, each time anew."
)
_integrity_missing = Counter(
    "duckmesh_integrity_missing_files_total", "Files found missing by checks, each time anew."
)
_integrity_sizes = Counter(
    "duckmesh_integrity_size_mismatch_files_total",
    "Files found with another size than recorded, each time anew.",
)
_orphans_removed = Counter(
    "duckmesh_orphan_files_deleted_total", "Files removed from the store that nothing named."
)
_compaction_runs = Counter(
    "duckmesh_compaction_runs_total",
    "Slices of compaction: merges and rewrites, one transaction each.",
    ["result"],
)
_compaction_bytes = Counter(
    "duckmesh_compaction_bytes_rewritten_total", "Bytes of the files that compaction has read."
)
_compaction_seconds = Histogram(
    "duckmesh_compaction_slice_seconds",
    "One slice of compaction that landed.",
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120),
)
_compaction_debt = Gauge(
    "duckmesh_compaction_debt_files", "Files that compaction would save, when last looked at."
)
_committer = Gauge("duckmesh_committer_active", "1 while this process holds the commit lease.")


def ingest_answered(code: str, seconds: float) -> None:
    """Count one ingest answer: `OK` or an error code."""
    _ingest_requests.labels(code).inc()
    if code == "OK":
        _ack_latency.observe(seconds * 1000)


def records_settled(*, accepted: int, duplicates: int, rejected: int) -> None:
    """Count the records of one request by outcome."""
    _ingest_records.labels("accepted").inc(accepted)
    _ingest_records.labels("duplicate").inc(duplicates)
    _ingest_records.labels("rejected").inc(rejected)
    _ingest_duplicates.inc(duplicates)


def committed(*, token: int, rows: int, seconds: float) -> None:
    """Record one landed lake commit."""
    _latest_token.set(token)
    _commit_rows.observe(rows)
    _commit_latency.observe(seconds * 1000)


def published(write_to_visible_ms: float) -> None:
    """Record one entry's way from accepted to visible."""
    _write_to_visible.observe(write_to_visible_ms)


def commit_failed(reason: str) -> None:
    """Count a lake commit that did not land; `reason` is a `CommitOutcome` or an error code."""
    _commit_failures.labels(reason).inc()
    if reason == "fenced":
        _fenced.inc()


def dead_lettered(records: int) -> None:
    """Count records put aside."""
    _dead_letters.inc(records)


def letters_settled(action: str, letters: int = 1) -> None:
    """Count dead letters that are no longer kept; `action` is `replayed` or `dropped`."""
    _letters_settled.labels(action).inc(letters)


def lag_seen(
    *, accepted: int, token: int, lag_ms: float, dead_letters: int, observed_at: float
) -> None:
    """Show how far the lake is; `accepted` and `token` are numbers, `observed_at` is Unix time."""
    _letters_kept.set(dead_letters)
    _lag_events.set(max(0, accepted - token))
    _visibility_lag.set(lag_ms)
    _accepted_token.set(accepted)
    _latest_token.set(token)
    _lag_seen_at.set(observed_at)


def backlog_seen(*, rows: int, size_bytes: int, claimed_rows: int, snapshot_id: int) -> None:
    """Show what waits, and the newest snapshot."""
    _pending_rows.set(rows)
    _pending_bytes.set(size_bytes)
    _claimed_rows.set(claimed_rows)
    _latest_snapshot.set(snapshot_id)


def barrier_waited(seconds: float, *, timed_out: bool) -> None:
    """Record one barrier wait."""
    _barrier_wait.observe(seconds * 1000)
    if timed_out:
        _consistency_timeouts.inc()


def barrier_waiters(calls: int) -> None:
    """Show how many calls wait for a token."""
    _barrier_waiters.set(calls)


def event_streams(change: int) -> None:
    """Follow how many streams of events are open."""
    _event_streams.inc(change)


def query_answered(code: str, seconds: float, *, files: int = 0, size_bytes: int = 0) -> None:
    """Count one query answer: `OK` or an error code."""
    _query_requests.labels(code).inc()
    _query_latency.observe(seconds * 1000)
    if code == "OK":
        _query_files.observe(files)
        _query_bytes.observe(size_bytes)


def queries_waiting(queries: int) -> None:
    """Show how many queries wait for their turn."""
    _queries_waiting.set(queries)


def keys_kept(*, record_s: float, request_s: float) -> None:
    """Show how far back the keys of records and of whole requests are known."""
    _key_horizon.labels("record").set(record_s)
    _key_horizon.labels("request").set(request_s)


def lake_looked_at(*, snapshots: int, files_waiting: int) -> None:
    """Show how many snapshots and files without one there are."""
    _snapshots_kept.set(snapshots)
    _gc_files_waiting.set(files_waiting)


def snapshots_expired(snapshots: int) -> None:
    """Count snapshots given up."""
    _snapshots_expired.inc(snapshots)


def files_removed(files: int) -> None:
    """Count files removed from the store."""
    _gc_files_deleted.inc(files)


def compacted(*, size: int, seconds: float) -> None:
    """Count a slice of compaction that landed."""
    _compaction_runs.labels("done").inc()
    _compaction_bytes.inc(size)
    _compaction_seconds.observe(seconds)


def compaction_undone() -> None:
    """Count a slice that came to nothing, since rows in its files were deleted meanwhile."""
    _compaction_runs.labels("undone").inc()


def compaction_debt(files: int) -> None:
    """Show how many files compaction would save."""
    _compaction_debt.set(files)


def maintained(seconds: float | None) -> None:
    """Record a round of maintenance that ended well; None: there was nothing to do."""
    _maintenance_at.set_to_current_time()
    if seconds is not None:
        _maintenance.observe(seconds)


def maintenance_failed(reason: str) -> None:
    """Count a round that failed; `reason` is an error code."""
    _maintenance_failures.labels(reason).inc()


def integrity_checked(*, files: int, missing: int, wrong_size: int, healthy: bool) -> None:
    """Count one check and the files that it looked at."""
    _integrity_runs.labels("healthy" if healthy else "damaged").inc()
    _integrity_files.inc(files)
    _integrity_missing.inc(missing)
    _integrity_sizes.inc(wrong_size)


def integrity_failed() -> None:
    """Count a check that could not be done."""
    _integrity_runs.labels("failed").inc()


def orphans_removed(files: int) -> None:
    """Count files removed that nothing named."""
    _orphans_removed.inc(files)


def committing(active: bool) -> None:
    """Show whether this process is the committer."""
    _committer.set(1 if active else 0)


def gauge(name: str, help_text: str, read: Callable[[], float]) -> Gauge:
    """Register a gauge that is read at scrape time (queue lengths, pool sizes)."""
    made = Gauge(name, help_text)
    made.set_function(read)
    return made
