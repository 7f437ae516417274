"""Every collector of the runtime; other modules call the small functions below. Names are API (docs/architecture.md).

Labels are bounded: operation kinds, error codes, results; never a query text, a key, a file or a batch. The tenant is
not a label here: a process serves one tenant, and the scrape adds it. Leaf module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["REGISTRY", "Collector", "CollectorRegistry"]

_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000)
_ROWS: Final = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)

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
_write_to_visible = Histogram(
    "duckmesh_write_to_visible_latency_ms",
    "Accepted to published, on the database's clock.",
    buckets=_MS,
)
_consistency_timeouts = Counter("duckmesh_consistency_timeout_total", "Barrier waits that ran out.")
_barrier_wait = Histogram("duckmesh_barrier_wait_ms", "Time waited for a token.", buckets=_MS)
_commit_latency = Histogram("duckmesh_commit_batch_latency_ms", "One lake commit.", buckets=_MS)
_commit_rows = Histogram("duckmesh_commit_batch_rows", "Rows of one lake commit.", buckets=_ROWS)
_commit_failures = Counter(
    "duckmesh_commit_failures_total", "Lake commits that did not land.", ["reason"]
)
_fenced = Counter("duckmesh_fenced_commits_total", "Commits refused because the lease moved on.")
_dead_letters = Counter(
    "duckmesh_dead_letter_records_total", "Records kept aside with their error."
)
_query_requests = Counter("duckmesh_query_requests_total", "Queries by answer.", ["code"])
_query_latency = Histogram("duckmesh_query_latency_ms", "Request to last byte.", buckets=_MS)
_query_files = Histogram("duckmesh_query_scanned_files", "Files a query read from.", buckets=_ROWS)
_query_bytes = Counter("duckmesh_query_scanned_bytes", "Bytes read for queries.")
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


def lag_seen(*, events: int, lag_ms: float, token: int) -> None:
    """Show the backlog as last read."""
    _lag_events.set(events)
    _visibility_lag.set(lag_ms)
    _latest_token.set(token)


def barrier_waited(seconds: float, *, timed_out: bool) -> None:
    """Record one barrier wait."""
    _barrier_wait.observe(seconds * 1000)
    if timed_out:
        _consistency_timeouts.inc()


def query_answered(code: str, seconds: float, *, files: int = 0, size_bytes: int = 0) -> None:
    """Count one query answer: `OK` or an error code."""
    _query_requests.labels(code).inc()
    _query_latency.observe(seconds * 1000)
    if code == "OK":
        _query_files.observe(files)
        _query_bytes.inc(size_bytes)


def committing(active: bool) -> None:
    """Show whether this process is the committer."""
    _committer.set(1 if active else 0)


def gauge(name: str, help_text: str, read: Callable[[], float]) -> Gauge:
    """Register a gauge that is read at scrape time (queue lengths, pool sizes)."""
    made = Gauge(name, help_text)
    made.set_function(read)
    return made
