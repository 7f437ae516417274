from __future__ import annotations

from collections.abc import Callable

import pytest

from duckmesh_runtime import metrics


def value(name: str, labels: dict[str, str] | None = None) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels or {}) or 0.0


@pytest.mark.parametrize(
    ("event", "name", "labels", "by"),
    [
        (
            lambda: metrics.ingest_answered("OK", 0.01),
            "duckmesh_ingest_requests_total",
            {"code": "OK"},
            1,
        ),
        (lambda: metrics.ingest_answered("OK", 0.01), "duckmesh_ingest_ack_latency_ms_sum", {}, 10),
        (
            lambda: metrics.ingest_answered("OVERLOADED", 1),
            "duckmesh_ingest_ack_latency_ms_count",
            {},
            0,
        ),
        (
            lambda: metrics.records_settled(accepted=3, duplicates=2, rejected=1),
            "duckmesh_ingest_records_total",
            {"outcome": "accepted"},
            3,
        ),
        (
            lambda: metrics.records_settled(accepted=3, duplicates=2, rejected=1),
            "duckmesh_ingest_duplicates_total",
            {},
            2,
        ),
        (
            lambda: metrics.committed(token=9, rows=5, seconds=0.002),
            "duckmesh_commit_batch_rows_sum",
            {},
            5,
        ),
        (lambda: metrics.published(12), "duckmesh_write_to_visible_latency_ms_sum", {}, 12),
        (lambda: metrics.commit_failed("fenced"), "duckmesh_fenced_commits_total", {}, 1),
        (
            lambda: metrics.commit_failed("rejected"),
            "duckmesh_commit_failures_total",
            {"reason": "rejected"},
            1,
        ),
        (lambda: metrics.commit_failed("rejected"), "duckmesh_fenced_commits_total", {}, 0),
        (lambda: metrics.queries_waiting(3), "duckmesh_queries_waiting", {}, 3),
        (lambda: metrics.dead_lettered(4), "duckmesh_dead_letter_records_total", {}, 4),
        (
            lambda: metrics.letters_settled("dropped", 3),
            "duckmesh_dead_letters_settled_total",
            {"action": "dropped"},
            3,
        ),
        (
            lambda: metrics.barrier_waited(0.05, timed_out=True),
            "duckmesh_consistency_timeout_total",
            {},
            1,
        ),
        (
            lambda: metrics.barrier_waited(0.05, timed_out=False),
            "duckmesh_barrier_wait_ms_sum",
            {},
            50,
        ),
        (
            lambda: metrics.query_answered("OK", 0.1, files=3, size_bytes=70),
            "duckmesh_query_scanned_bytes_sum",
            {},
            70,
        ),
        (
            lambda: metrics.query_answered("SQL_ERROR", 0.1),
            "duckmesh_query_scanned_files_count",
            {},
            0,
        ),
    ],
)
def test_an_event_moves_its_metric(
    event: Callable[[], None], name: str, labels: dict[str, str], by: float
) -> None:
    before = value(name, labels)

    event()

    assert value(name, labels) - before == pytest.approx(by)


def test_gauges_show_the_last_state() -> None:
    metrics.keys_kept(record_s=60, request_s=90)
    assert value("duckmesh_idempotency_horizon_seconds", {"of": "record"}) == 60
    assert value("duckmesh_idempotency_horizon_seconds", {"of": "request"}) == 90

    metrics.lag_seen(accepted=47, token=40, lag_ms=120, dead_letters=2, observed_at=1.5)
    metrics.backlog_seen(rows=6, size_bytes=600, claimed_rows=5, snapshot_id=9)
    metrics.committing(True)

    assert value("duckmesh_ingest_lag_events") == 7
    assert value("duckmesh_visibility_lag_ms") == 120
    assert value("duckmesh_latest_visibility_token") == 40
    assert value("duckmesh_latest_accepted_token") == 47
    assert value("duckmesh_lag_observed_timestamp_seconds") == 1.5
    assert value("duckmesh_ingest_pending_rows") == 6
    assert value("duckmesh_ingest_pending_bytes") == 600
    assert value("duckmesh_ingest_claimed_rows") == 5
    assert value("duckmesh_latest_snapshot_id") == 9
    assert value("duckmesh_dead_letters_kept") == 2
    assert value("duckmesh_committer_active") == 1


def test_a_gauge_can_be_read_at_scrape_time() -> None:
    made = metrics.gauge("duckmesh_test_queue_length", "A queue of this test.", lambda: 3.0)
    try:
        assert value("duckmesh_test_queue_length") == 3
    finally:
        metrics.REGISTRY.unregister(made)


def test_every_name_begins_with_the_product_and_has_help() -> None:
    mine = [m for m in metrics.REGISTRY.collect() if not m.name.startswith(("python_", "process_"))]

    assert all(m.name.startswith("duckmesh_") and m.documentation for m in mine)
