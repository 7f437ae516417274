"""Every metric of ingest, freshness, commit and query moves when its event comes through the public door."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import CATALOGUE
from duckmesh_runtime.metrics import LABELS
from tests.integration.test_lag import commits_held, idle, lag, with_a_table_that_refuses_null
from tests.lakes import LakeView
from tests.pods import Pod, Tenant

Figures = dict[tuple[str, ...], float]
REASONS = {"fenced", "reread", "rejected", *CATALOGUE}


def figures(pod: Pod) -> Figures:
    """All samples of duckmesh but buckets, by name without the prefix and label values."""
    url = f"http://127.0.0.1:{pod.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: Figures = {}
    for sample in (sample for family in families for sample in family.samples):
        if sample.name.startswith("duckmesh_") and "le" not in sample.labels:
            check_labels(sample.labels)
            found[(sample.name.removeprefix("duckmesh_"), *sample.labels.values())] = sample.value
    return found


def check_labels(labels: dict[str, str]) -> None:
    """Every label is of the closed list and says what it may."""
    assert labels.keys() <= LABELS.keys()
    assert labels.get("code", "OK") in {"OK", *CATALOGUE}
    assert labels.get("reason", "fenced") in REASONS


@contextmanager
def moved(pod: Pod) -> Iterator[Figures]:
    """What the block changed; filled at its end."""
    changes: Figures = {}
    before = figures(pod)
    yield changes
    after = figures(pod)
    changes.update({k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)})


def ingest(pod: Pod, *records: dict[str, Any], table: str = "events", **more: Any) -> Any:
    body = {"records": list(records), **more}
    return pod.call("POST", f"/v1/ingest/{table}", body)[1]


def row(number: object, text: object = "x", **more: object) -> dict[str, Any]:
    return {"payload": {"id": number, "text": text}, **more}


async def test_an_event_of_ingest_freshness_or_commit_moves_its_metrics(tenant: Tenant) -> None:
    await with_a_table_that_refuses_null(tenant)
    pod, lake = tenant.ingest(), tenant.lake
    pod.wait(lambda: pod.metric("duckmesh_committer_active") == 1)

    with moved(pod) as seen:
        answer = ingest(pod, row(1, idempotency_key="a"), row(2), wait_for_visibility=True)
        assert answer["status"] == "visible"
        ingest(pod, row(1, idempotency_key="a"), row("no number"))
        ingest(pod, row(1), table="nowhere")
        pod.wait(lambda: idle(pod))
    assert seen[("ingest_requests_total", "OK")] == 2
    assert seen[("ingest_requests_total", "TABLE_NOT_FOUND")] == 1
    outcomes = {o: seen[("ingest_records_total", o)] for o in ("accepted", "duplicate", "rejected")}
    assert outcomes == {"accepted": 2, "duplicate": 1, "rejected": 1}
    assert seen[("ingest_duplicates_total",)] == 1
    assert seen[("ingest_ack_latency_ms_count",)] == 2
    assert seen[("ingest_ack_latency_ms_sum",)] > 0
    assert seen[("barrier_wait_ms_count",)] == 1
    assert seen[("commit_batch_latency_ms_count",)] == seen[("write_to_visible_latency_ms_count",)]
    assert seen[("commit_batch_rows_sum",)] == 2
    assert figures(pod)[("latest_visibility_token",)] == lag(pod)["watermark"]

    with moved(pod) as seen:
        token = Token(lake=lake.name, timeline=1, number=10**6)
        assert pod.call("GET", f"/v1/visible?token={token}&timeout_ms=20")[0] == 504
    assert seen[("consistency_timeout_total",)] == seen[("barrier_wait_ms_count",)] == 1
    assert seen[("barrier_wait_ms_sum",)] >= 20

    with moved(pod) as seen:
        ingest(pod, row(3, None))
        pod.wait(lambda: lag(pod)["dead_letters"] == 1 and idle(pod))
        pod.wait(lambda: pod.metric("duckmesh_dead_letters_kept") == 1)
    assert seen[("dead_letter_records_total",)] == 1
    assert ("write_to_visible_latency_ms_count",) not in seen  # it never becomes visible

    with moved(pod) as seen:
        async with commits_held(lake):
            ingest(pod, row(4))
            pod.wait(lambda: pod.metric("duckmesh_ingest_claimed_rows") == 1, 4)
            held = lag(pod)["lag_ms"]
            assert figures(pod)[("visibility_lag_ms",)] > 0
        pod.wait(lambda: pod.metric("duckmesh_ingest_lag_events") == 0)
    # From accepted to published on the database's clock: at least as long as it was seen to wait.
    assert seen[("write_to_visible_latency_ms_count",)] == 1
    assert seen[("write_to_visible_latency_ms_sum",)] >= held > 0

    with moved(pod) as seen:
        async with commits_held(lake):
            ingest(pod, row(5))
            pod.wait(lambda: lag(pod)["claimed"] == 1, 4)
            await LakeView(lake).fetch(
                "UPDATE duckmesh.lease SET epoch = epoch + 1 WHERE lake = $1 AND role = 'w'",
                lake.name,
            )
        pod.wait(lambda: pod.metric("duckmesh_fenced_commits_total") >= 1)
        pod.wait(lambda: idle(pod))
    assert seen[("fenced_commits_total",)] == seen[("commit_failures_total", "fenced")] == 1


def test_an_event_of_query_moves_its_metrics(tenant: Tenant) -> None:
    front, query = tenant.ingest(), tenant.query()
    table = {"name": "events", "columns": [{"name": "id", "type": "BIGINT"}]}
    assert front.call("POST", "/v1/tables", table)[0] == 201
    records = [{"payload": {"id": 1}}]
    answer = ingest(front, *records, wait_for_visibility=True)
    assert answer["status"] == "visible"

    with moved(query) as seen:
        body = {
            "sql": "SELECT * FROM events",
            "min_visibility_token": answer["max_visibility_token"],
        }
        code, found = front.call("POST", "/v1/query", body)
        assert (code, found["rows"]) == (200, [[1]])
        for number in range(20):
            front.call("POST", "/v1/query", {"sql": f"SELECT * FROM nowhere_{number}"})
        front.call("POST", "/v1/query", {"sql": "DROP TABLE events"})
        late = Token(lake=tenant.lake.name, timeline=1, number=10**6)
        front.call(
            "POST",
            "/v1/query",
            {"sql": "SELECT 1", "min_visibility_token": str(late), "consistency_timeout_ms": 10},
        )

    counted = {key[1]: value for key, value in seen.items() if key[0] == "query_requests_total"}
    assert counted == {"OK": 1, "SQL_ERROR": 20, "SQL_NOT_ALLOWED": 1, "CONSISTENCY_TIMEOUT": 1}
    assert seen[("query_latency_ms_count",)] == 23
    assert seen[("query_latency_ms_sum",)] > 0
    assert seen[("query_scanned_files_sum",)] == found["stats"]["scanned_files"] == 1
    assert seen[("query_scanned_bytes_sum",)] == found["stats"]["scanned_bytes"] > 0
    assert seen[("consistency_timeout_total",)] == 1
    assert seen[("barrier_wait_ms_count",)] >= 1
