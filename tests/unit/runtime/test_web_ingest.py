from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.sift import Rejected
from duckmesh_runtime.domain.tokens import Token, parse_token
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.web import ingest
from tests.fakes.doors import LAKE, arrow_stream

INGEST = "/v1/ingest/events"
ROWS = arrow_stream({"id": [1, 2]})
ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}
TABLE = {
    "name": "orders",
    "columns": [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "at", "type": "date"},
    ],
}


def number(token: str) -> int:
    return parse_token(token, lake=LAKE, timeline=1).number


async def test_records_are_accepted_with_a_token(doors: Any) -> None:
    record = {
        "idempotency_key": "k1",
        "op": "insert",
        "payload": {"id": 1},
        "event_time": "2026-01-01T00:00:00Z",
    }

    status, body, _ = await doors.call("POST", INGEST, json={"records": [record]})

    assert status == 200
    assert doors.ingest.records == [RawRecord(**record)]
    assert number(body.pop("max_visibility_token")) == 1
    assert body == {
        "accepted_count": 1,
        "duplicate_count": 0,
        "rejected": [],
        "rejected_count": 0,
        "visible_snapshot_id": None,
        "status": "accepted",
    }


@pytest.mark.parametrize("inline_bytes", [0, 1000], ids=["in a thread", "at once"])
async def test_numbers_of_records_keep_their_digits(
    doors: Any, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr(ingest, "_INLINE_BYTES", inline_bytes)
    body = b'{"records":[{"payload":{"x":0.12345678901234567890}}]}'

    status, _, _ = await doors.call(
        "POST", INGEST, data=body, headers={"Content-Type": "application/json"}
    )

    assert status == 200
    assert doors.ingest.records[0].payload == {"x": Decimal("0.12345678901234567890")}


async def test_a_gzipped_body_of_several_members_is_read(doors: Any) -> None:
    text = json.dumps({"records": [{"payload": {"id": i}} for i in range(1000)]}).encode()
    packed = gzip.compress(text[:500]) + gzip.compress(text[500:])

    status, body, _ = await doors.call(
        "POST",
        INGEST,
        data=packed,
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )

    assert (status, body["accepted_count"]) == (200, 1000)


async def test_an_arrow_body_keeps_its_request_key(doors: Any) -> None:
    status, body, _ = await doors.call(
        "POST", INGEST, data=ROWS, headers=ARROW | {"Idempotency-Key": "file-1"}
    )

    assert (status, body["accepted_count"]) == (200, 2)
    (sent,) = doors.ingest.bodies
    assert sent == ("events", "arrow", ROWS, None, "file-1", False)


PARQUET_SINK = pa.BufferOutputStream()
pq.write_table(pa.table({"id": [1, 2]}), PARQUET_SINK)


@pytest.mark.parametrize(
    ("content_type", "form", "data"),
    [
        ("application/x-ndjson", "ndjson", b'{"id":1}\n{"id":2}\n'),
        ("application/jsonl", "ndjson", b'{"id":1}\n{"id":2}\n'),
        ("text/csv", "csv", b"id\n1\n2\n"),
        ("text/csv; charset=utf-8", "csv", b"id\n1\n2\n"),
        ("application/vnd.apache.arrow.stream", "arrow", ROWS),
        ("application/vnd.apache.parquet", "parquet", bytes(PARQUET_SINK.getvalue())),
    ],
)
async def test_bulk_bodies_of_every_format_are_taken(
    doors: Any, content_type: str, form: str, data: bytes
) -> None:
    path = INGEST + "?op=insert&atomic=true"

    status, body, _ = await doors.call(
        "POST", path, data=data, headers={"Content-Type": content_type}
    )

    assert (status, body["accepted_count"]) == (200, 2)
    assert doors.ingest.bodies == [("events", form, data, "insert", None, True)]


async def test_json_records_may_be_atomic(doors: Any) -> None:
    for query in ("", "?atomic=true", "?atomic=false"):
        await doors.call("POST", INGEST + query, json={"records": [{"payload": {"id": 1}}]})

    assert doors.ingest.atomic == [False, True, False]


async def test_a_large_json_body_is_decoded_the_same_way(
    doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_INLINE_BYTES", 0)
    record = {"idempotency_key": "k", "op": "insert", "payload": {"id": [1.5, None, {"a": "b"}]}}

    status, _, _ = await doors.call("POST", INGEST, json={"records": [record]})
    refused, body, _ = await doors.call(
        "POST",
        INGEST,
        data=b'{"records":[{"payload":{"id":"\xff"}}]}',
        headers={"Content-Type": "application/json"},
    )

    assert status == 200
    assert doors.ingest.records == [RawRecord(**record)]
    assert (refused, body["message"]) == (400, "body: is not well-formed JSON in UTF-8")


async def test_at_most_a_thousand_refusals_are_named_and_all_are_counted(doors: Any) -> None:
    doors.ingest.rejected = [
        Rejected(index=i, code="VALIDATION_FAILED", message="id: want a whole number")
        for i in range(1_500)
    ]
    records = [{"payload": {"id": i}} for i in range(1_501)]

    _, partly, _ = await doors.call("POST", INGEST, json={"records": records})
    status, wholly, _ = await doors.call("POST", INGEST, json={"records": records[:1_500]})

    assert (len(partly["rejected"]), partly["rejected_count"]) == (1_000, 1_500)
    assert (status, len(wholly["rejected"]), wholly["rejected_count"]) == (400, 1_000, 1_500)


async def test_waiting_answers_with_the_snapshot_that_shows_the_rows(doors: Any) -> None:
    envelope = {
        "records": [{"payload": {"id": 1}}],
        "wait_for_visibility": True,
        "visibility_timeout_ms": 700,
    }

    _, body, _ = await doors.call("POST", INGEST, json=envelope)

    assert (body["status"], body["visible_snapshot_id"]) == ("visible", 7)
    assert doors.barrier.waits == [(1, 700)]


async def test_waiting_works_for_arrow_bodies_too(doors: Any) -> None:
    path = INGEST + "?wait_for_visibility=true&visibility_timeout_ms=5"

    _, body, _ = await doors.call("POST", path, data=ROWS, headers=ARROW)

    assert body["status"] == "visible"
    assert doors.barrier.waits == [(2, 5)]


async def test_json_records_may_wait_by_parameters_as_other_bodies_do(doors: Any) -> None:
    envelope = {"records": [{"payload": {"id": 1}}], "visibility_timeout_ms": 700}
    path = INGEST + "?wait_for_visibility=true&visibility_timeout_ms=5"

    _, body, _ = await doors.call("POST", path, json=envelope)

    assert body["status"] == "visible"
    assert doors.barrier.waits == [(1, 5)]


async def test_rows_that_are_not_visible_in_time_are_still_accepted(doors: Any) -> None:
    doors.barrier.token = 0
    envelope = {"records": [{"payload": {"id": 1}}], "wait_for_visibility": True}

    status, body, _ = await doors.call("POST", INGEST, json=envelope)

    assert (status, body["status"], body["visible_snapshot_id"]) == (200, "accepted", None)


async def test_known_records_are_counted_as_duplicates(doors: Any) -> None:
    doors.ingest.duplicates = 1
    records = [{"payload": {"id": i}} for i in range(2)]

    _, body, _ = await doors.call("POST", INGEST, json={"records": records})

    assert body["status"] == "partial_duplicate"
    assert (body["accepted_count"], body["duplicate_count"]) == (1, 1)


REJECTED = Rejected(index=1, code="VALIDATION_FAILED", message="id: want a whole number")


async def test_a_bad_record_is_named_and_the_others_are_accepted(doors: Any) -> None:
    doors.ingest.rejected = [REJECTED]
    records = [{"payload": {"id": i}} for i in range(2)]

    status, body, _ = await doors.call("POST", INGEST, json={"records": records})

    assert (status, body["accepted_count"]) == (200, 1)
    assert body["rejected"] == [
        {"index": 1, "error_code": REJECTED.code, "message": REJECTED.message}
    ]


async def test_a_request_of_bad_records_only_is_an_error(doors: Any) -> None:
    doors.ingest.rejected = [
        REJECTED,
        Rejected(index=0, code="VALIDATION_FAILED", message="id: want a whole number"),
    ]
    records = [{"payload": {"id": "x"}} for _ in range(2)]

    status, body, _ = await doors.call("POST", INGEST, json={"records": records})

    assert (status, body["error_code"]) == (400, "VALIDATION_FAILED")
    assert body["message"] == "record 1: id: want a whole number (and 1 more, see rejected)"
    assert [r["index"] for r in body["rejected"]] == [1, 0]


async def test_a_refused_atomic_request_says_that_nothing_was_written(doors: Any) -> None:
    doors.ingest.rejected = [REJECTED]
    doors.ingest.duplicates = 0

    status, body, _ = await doors.call(
        "POST", INGEST + "?atomic=true", json={"records": [{"payload": {"id": "x"}}]}
    )

    assert (status, body["error_code"]) == (400, "VALIDATION_FAILED")
    assert body["message"].endswith("the request is atomic: nothing was written")


async def test_visible_answers_when_the_token_is(doors: Any) -> None:
    token = str(Token(lake=LAKE, timeline=1, number=5))

    status, body, _ = await doors.call(
        "GET", "/v1/visible", params={"token": token, "timeout_ms": "100"}
    )

    assert (status, body["visible"], body["visible_snapshot_id"]) == (200, True, 7)
    assert number(body["max_visibility_token"]) == 1000
    assert doors.barrier.waits == [(5, 100)]


async def test_visible_fails_when_the_token_stays_away(doors: Any) -> None:
    token = str(Token(lake=LAKE, timeline=1, number=5000))

    status, body, _ = await doors.call("GET", "/v1/visible", params={"token": token})

    assert (status, body["error_code"]) == (504, "CONSISTENCY_TIMEOUT")
    assert body["context"]["watermark"] == 1000


@pytest.mark.parametrize(
    ("holder", "status"),
    [
        ("admin", 200),
        ("ops-admin", 200),
        ("ingest-writer", 403),
        ("query-reader", 403),
        ("table-admin", 403),
        ("nobody", 403),
    ],
)
async def test_lag_is_for_ops_admin(doors: Any, holder: str, status: int) -> None:
    assert (await doors.call("GET", "/v1/lag", as_key=holder))[0] == status


async def test_lag_is_told(doors: Any) -> None:
    status, body, _ = await doors.call("GET", "/v1/lag")

    assert (status, body["lag_ms"]) == (200, 0)
    assert (body["latest_token"], number(body["latest_visibility_token"])) == (11, 11)
    assert (body["watermark"], number(body["watermark_token"])) == (10, 10)
    assert (body["latest_snapshot_id"], body["latest_snapshot_at"]) == (8, "2026-01-31T12:00:00Z")


async def test_a_table_is_made_read_listed_and_dropped(doors: Any) -> None:
    made_status, made, _ = await doors.call("POST", "/v1/tables", json=TABLE)
    _, listed, _ = await doors.call("GET", "/v1/tables")
    _, read, _ = await doors.call("GET", "/v1/tables/orders")
    _, dropped, _ = await doors.call("DELETE", "/v1/tables/orders")
    gone, _, _ = await doors.call("GET", "/v1/tables/orders")

    assert (made_status, made["visible_snapshot_id"]) == (201, 7)
    assert number(made["max_visibility_token"]) == 1
    assert read["columns"][1] == {"name": "at", "type": "DATE", "nullable": True, "default": None}
    assert [t["name"] for t in listed["tables"]] == ["events", "orders"]
    assert (dropped["name"], number(dropped["max_visibility_token"])) == ("orders", 2)
    assert gone == 404


async def test_a_table_change_that_is_not_visible_in_time_says_so(doors: Any) -> None:
    doors.barrier.token = 0

    status, body, _ = await doors.call("POST", "/v1/tables?visibility_timeout_ms=50", json=TABLE)

    assert (status, body["error_code"]) == (504, "CONSISTENCY_TIMEOUT")
    assert number(body["context"]["max_visibility_token"]) == 1
    assert doors.barrier.waits == [(1, 50)]


async def test_probes_tell_state_by_status_and_dependencies_by_body(doors: Any) -> None:
    async def well() -> None:
        return None

    async def away() -> None:
        raise Unavailable("STORAGE_UNAVAILABLE", "away")

    doors.parts.health.checks = {"catalog": well, "storage": away}

    for base in (doors.url, doors.metrics_url):
        async with doors.session.get(base + "/v1/ready") as answer:
            assert answer.status == 200
            assert (await answer.json())["dependencies"] == {
                "catalog": "ok",
                "storage": "unavailable",
            }


@pytest.mark.parametrize(
    ("started", "draining", "want"),
    [
        pytest.param(False, False, (503, "starting"), id="starting"),
        pytest.param(True, False, (200, "ok"), id="ready"),
        pytest.param(True, True, (503, "draining"), id="draining"),
    ],
)
async def test_ready_is_started_and_not_draining(
    doors: Any, started: bool, draining: bool, want: tuple[int, str]
) -> None:
    doors.parts.health.started, doors.parts.health.draining = started, draining

    async with doors.session.get(doors.url + "/v1/ready") as answer:
        assert (answer.status, (await answer.json())["status"]) == want
    async with doors.session.get(doors.url + "/v1/health") as answer:
        assert answer.status == 200


async def test_metrics_are_on_their_own_port_only(doors: Any) -> None:
    await doors.call("POST", INGEST, json={"records": [{"payload": {"id": 1}}]})

    async with doors.session.get(doors.metrics_url + "/metrics") as answer:
        text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")
    async with doors.session.get(doors.url + "/metrics") as answer:
        assert answer.status == 404
    assert 'duckmesh_ingest_requests_total{code="OK"}' in text
