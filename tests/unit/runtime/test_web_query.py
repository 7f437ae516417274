from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Failed, Invalid
from duckmesh_runtime.web import query
from duckmesh_runtime.web.forward import QueryForward
from duckmesh_runtime.web.parts import Parts
from duckmesh_runtime.web.render import json_rows
from tests.fakes.doors import LAKE, NOON, key
from tests.fakes.server import Doors, serve

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
WATERMARK = str(Token(lake=LAKE, timeline=1, number=10))
ASK = {"sql": "SELECT n FROM t"}


@pytest.fixture
async def front(doors: Any, parts: Parts) -> AsyncIterator[Doors]:
    """An ingest process that passes queries on to the server of `doors`."""
    forward = QueryForward(doors.url)
    mine = replace_parts(parts, forward)
    async for found in serve(mine):
        yield found
    await forward.close()


def replace_parts(parts: Parts, forward: QueryForward) -> Parts:
    mine = Parts(settings=parts.settings, keys=parts.keys, health=parts.health)
    mine.forward = forward
    return mine


@pytest.fixture(params=["direct", "through ingest"])
def door(request: pytest.FixtureRequest) -> Any:
    """Both ways to a query must look the same."""
    return request.getfixturevalue("doors" if request.param == "direct" else "front")


async def test_a_json_answer_names_its_snapshot_and_cost(door: Any) -> None:
    status, body, _ = await door.call("POST", "/v1/query", json=ASK)

    assert status == 200
    assert body["stats"].pop("duration_ms") >= 0
    assert body == {
        "columns": [{"name": "n", "type": "BIGINT"}],
        "rows": [[1], [2]],
        "snapshot_id": 7,
        "snapshot_time": "2026-01-31T12:00:00Z",
        "max_visibility_token": WATERMARK,
        "lag_ms": 5,
        "truncated": False,
        "stats": {"waited_ms": 2, "scanned_files": 3, "scanned_bytes": 400},
    }


async def test_everything_asked_for_reaches_the_service(doors: Any, door: Any) -> None:
    envelope = {
        "sql": "SELECT $1",
        "params": [1, "x", None, [2]],
        "min_visibility_token": str(Token(lake=LAKE, timeline=1, number=9)),
        "consistency_timeout_ms": 50,
        "max_staleness_ms": 1000,
        "row_limit": 5,
        "timeout_ms": 70,
    }

    await door.call("POST", "/v1/query", json=envelope)

    (asked,) = doors.query.asked
    assert (asked.sql, list(asked.params), asked.min_number) == (
        "SELECT $1",
        [1, "x", None, [2]],
        9,
    )
    assert (asked.consistency_timeout_ms, asked.max_staleness_ms) == (50, 1000)
    assert (asked.row_limit, asked.timeout_ms, asked.caller) == (5, 70, "admin")


async def test_requests_cannot_ask_for_more_than_the_limits(doors: Any) -> None:
    await doors.call("POST", "/v1/query", json=ASK | {"row_limit": 10**9, "timeout_ms": 80_000_000})

    (asked,) = doors.query.asked
    assert (asked.row_limit, asked.timeout_ms) == (1000, 5000)


@pytest.mark.parametrize(
    ("asked", "at"),
    [
        ({"snapshot_id": 0}, 0),
        ({"snapshot_id": 2**63 - 1}, 2**63 - 1),
        ({"snapshot_time": "2026-01-31T12:00:00.5Z"}, NOON + timedelta(seconds=0.5)),
        ({"snapshot_time": "2026-01-31T05:00:00-07:00"}, NOON),
    ],
)
async def test_the_past_is_named_by_snapshot_or_time(
    doors: Any, door: Any, asked: dict[str, object], at: object
) -> None:
    status, _, _ = await door.call("POST", "/v1/query", json=ASK | asked)

    assert (status, doors.query.asked[0].at) == (200, at)


_CHOICES = {
    "snapshot_id": 3,
    "snapshot_time": "2026-01-31T12:00:00Z",
    "min_visibility_token": str(Token(lake=LAKE, timeline=1, number=9)),
    "max_staleness_ms": 0,
}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("snapshot_id", "snapshot_time"),
        ("snapshot_id", "min_visibility_token"),
        ("snapshot_id", "max_staleness_ms"),
        ("snapshot_time", "min_visibility_token"),
        ("snapshot_time", "max_staleness_ms"),
    ],
)
async def test_ways_of_choosing_a_snapshot_exclude_each_other(
    doors: Any, one: str, other: str
) -> None:
    both = {one: _CHOICES[one], other: _CHOICES[other]}

    status, body, _ = await doors.call("POST", "/v1/query", json=ASK | both)

    assert (status, body["error_code"]) == (400, "VALIDATION_FAILED")
    assert one in body["message"]
    assert other in body["message"]
    assert not doors.query.asked


@pytest.mark.parametrize(
    "asked",
    [
        {"snapshot_id": -1},
        {"snapshot_id": 2**63},
        {"snapshot_id": "3"},
        {"snapshot_id": True},
        {"snapshot_time": "2026-01-31T12:00:00"},
        {"snapshot_time": "yesterday"},
        {"snapshot_time": 1769860800},
        {"snapshot_time": "9999-12-31T23:59:59-23:59"},
        {"snapshot_time": "0001-01-01T00:00:00+23:59"},
    ],
    ids=str,
)
async def test_a_moment_that_is_none_is_refused_by_name(
    doors: Any, asked: dict[str, object]
) -> None:
    status, body, _ = await doors.call("POST", "/v1/query", json=ASK | asked)

    assert (status, body["error_code"]) == (400, "VALIDATION_FAILED")
    assert next(iter(asked)) in body["message"]
    assert body["context"]["field"] == next(iter(asked))


FORMATS = {
    "application/x-ndjson": b'{"n":1}\n{"n":2}\n',
    "text/csv": b'"n"\n1\n2\n',
}


@pytest.mark.parametrize("media", FORMATS)
async def test_text_formats_are_streamed_with_the_snapshot_in_headers(
    door: Any, media: str
) -> None:
    status, body, answer = await door.call("POST", "/v1/query", json=ASK, headers={"Accept": media})

    assert (status, body, answer.content_type) == (200, FORMATS[media], media)
    assert {n: v for n, v in answer.headers.items() if n.startswith("X-Duckmesh-")}.items() >= {
        "X-Duckmesh-Snapshot-Id": "7",
        "X-Duckmesh-Snapshot-Time": "2026-01-31T12:00:00Z",
        "X-Duckmesh-Watermark": WATERMARK,
        "X-Duckmesh-Lag-Ms": "5",
        "X-Duckmesh-Row-Limit": "1000",
    }.items()


async def test_arrow_is_streamed(door: Any) -> None:
    _, body, answer = await door.call("POST", "/v1/query", json=ASK, headers={"Accept": ARROW})

    assert answer.content_type == ARROW
    with pa.ipc.open_stream(io.BytesIO(body)) as reader:
        assert reader.read_all().to_pydict() == {"n": [1, 2]}


async def test_parquet_is_streamed(door: Any) -> None:
    _, body, answer = await door.call("POST", "/v1/query", json=ASK, headers={"Accept": PARQUET})

    assert answer.content_type == PARQUET
    assert pq.read_table(io.BytesIO(body)).to_pydict() == {"n": [1, 2]}


@pytest.mark.parametrize("media", ["application/json", "text/csv", ARROW, PARQUET])
async def test_a_type_that_no_format_keeps_gets_its_error_answer(
    doors: Any, door: Any, media: str
) -> None:
    doors.query.type_names = ["TIME WITH TIME ZONE"]

    status, body, _ = await door.call("POST", "/v1/query", json=ASK, headers={"Accept": media})

    assert (status, body["error_code"]) == (400, "SQL_ERROR")
    assert "cast it to VARCHAR" in body["message"]


async def test_an_empty_result_keeps_its_columns_in_every_format(doors: Any) -> None:
    doors.query.batches = [pa.RecordBatch.from_pydict({"n": pa.array([], pa.int64())})]

    _, body, _ = await doors.call("POST", "/v1/query", json=ASK)
    _, csv, _ = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": "text/csv"})
    _, arrow, _ = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": ARROW})
    _, parquet, _ = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": PARQUET})

    assert pq.read_schema(io.BytesIO(parquet)).names == ["n"]
    assert (body["rows"], body["columns"]) == ([], [{"name": "n", "type": "BIGINT"}])
    assert csv == b'"n"\n'
    with pa.ipc.open_stream(io.BytesIO(arrow)) as reader:
        assert reader.schema.names == ["n"]


@pytest.mark.parametrize(
    ("accept", "want"),
    [
        ("*/*", "application/json"),
        ("text/html, application/json;q=0.9", "application/json"),
        ("application/json;q=0.1, text/csv;q=0.5", "text/csv"),
        ("text/*", "text/csv"),
        ("application/x-ndjson;q=0, */*", "application/json"),
        ("TEXT/CSV", "text/csv"),
    ],
)
async def test_the_wanted_format_is_found(doors: Any, accept: str, want: str) -> None:
    _, _, answer = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": accept})

    assert answer.content_type == want


async def test_a_cut_result_says_so(doors: Any) -> None:
    doors.query.truncated = True

    _, body, _ = await doors.call("POST", "/v1/query", json=ASK)

    assert body["truncated"] is True


async def test_a_json_result_beyond_its_bytes_is_refused(doors: Any) -> None:
    wide = pa.RecordBatch.from_pydict({"n": ["x" * 1000] * 30})
    doors.query.batches, doors.query.type_names = [wide, wide], ["VARCHAR"]

    status, body, _ = await doors.call("POST", "/v1/query", json=ASK)
    streamed, _, _ = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": "text/csv"})

    assert (status, body["error_code"]) == (413, "RESULT_TOO_LARGE")
    assert streamed == 200


async def test_a_wide_batch_is_written_piece_by_piece(
    doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def spied(batch: pa.RecordBatch, type_names: Sequence[str]) -> bytes:
        written.append(batch.num_rows * batch.num_columns)
        return json_rows(batch, type_names)

    monkeypatch.setattr(query, "json_rows", spied)
    columns = 4_000
    wide = pa.record_batch([pa.array([True] * 600)] * columns, [f"c{i}" for i in range(columns)])
    doors.query.batches, doors.query.type_names = [wide], ["BOOLEAN"] * columns

    status, body, _ = await doors.call("POST", "/v1/query", json=ASK)
    _, csv, _ = await doors.call("POST", "/v1/query", json=ASK, headers={"Accept": "text/csv"})

    assert (status, body["error_code"]) == (413, "RESULT_TOO_LARGE")
    assert written == [262 * columns]  # no more than it takes to find out
    assert csv.count(b"\n") == 601


@pytest.mark.parametrize("media", ["application/json", "text/csv"])
@pytest.mark.parametrize("after", [-1, 0], ids=["before the schema", "before the first row"])
async def test_a_failing_statement_gets_its_error_answer(
    doors: Any, door: Any, media: str, after: int
) -> None:
    doors.query.failure = Failed("QUERY_MEMORY", "the query needs more memory than its limit")
    doors.query.failure_after = after

    status, body, _ = await door.call("POST", "/v1/query", json=ASK, headers={"Accept": media})

    assert (status, body["error_code"]) == (507, "QUERY_MEMORY")


async def test_an_error_says_where_the_statement_is_wrong(doors: Any, door: Any) -> None:
    where = {"line": 2, "column": 7}
    doors.query.failure = Invalid("SQL_ERROR", "no such column", context=where)
    doors.query.failure_after = -1

    _, body, _ = await door.call("POST", "/v1/query", json=ASK)

    assert (body["error_code"], body["context"]) == ("SQL_ERROR", where)


async def test_a_stream_that_fails_later_is_broken_off(doors: Any, door: Any) -> None:
    doors.query.failure = Failed("QUERY_CRASHED", "the process ended")
    doors.query.failure_after = 1
    doors.query.batches = [pa.RecordBatch.from_pydict({"n": [1]})] * 2

    with pytest.raises(aiohttp.ClientPayloadError):
        await door.call("POST", "/v1/query", json=ASK, headers={"Accept": "text/csv"})


async def test_a_client_that_goes_away_ends_its_statement(doors: Any, door: Any) -> None:
    doors.query.hang = True
    headers = {"Authorization": f"Bearer {key('admin')}", "Accept": "application/x-ndjson"}

    async with door.session.post(door.url + "/v1/query", json=ASK, headers=headers) as answer:
        assert await answer.content.readline() == b'{"n":1}\n'
        answer.close()

    await asyncio.wait_for(doors.query.closed.wait(), 10)


async def test_a_client_that_goes_away_before_the_answer_ends_its_statement(
    doors: Any, door: Any
) -> None:
    doors.query.hang = True

    with pytest.raises(TimeoutError):
        await door.call("POST", "/v1/query", json=ASK, timeout=aiohttp.ClientTimeout(total=0.3))

    await asyncio.wait_for(doors.query.closed.wait(), 10)


async def test_ingest_and_query_share_one_trace(door: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"

    _, body, answer = await door.call(
        "POST",
        "/v1/query",
        json={"sql": 1},
        headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
    )

    assert body["trace_id"] == trace
    assert answer.headers.getall("X-Duckmesh-Trace-Id") == [trace]


async def test_without_a_query_process_the_answer_is_a_catalogued_503(parts: Parts) -> None:
    forward = QueryForward("http://127.0.0.1:1")
    async for front in serve(replace_parts(parts, forward)):
        status, body, answer = await front.call("POST", "/v1/query", json=ASK)
    await forward.close()

    assert (status, body["error_code"], answer.headers["Retry-After"]) == (
        503,
        "QUERY_UNAVAILABLE",
        "1",
    )


async def test_the_query_process_serves_queries_only(parts: Parts) -> None:
    async for doors in serve(parts, role="query"):
        asked = await doors.call("POST", "/v1/query", json=ASK)
        listed = await doors.call("GET", "/v1/tables")

    assert (asked[0], listed[0]) == (200, 404)


async def test_the_key_is_checked_before_anything_is_passed_on(doors: Any, front: Any) -> None:
    status, _, _ = await front.call("POST", "/v1/query", as_key="ingest-writer", json=ASK)

    assert status == 403
    assert not doors.query.asked


async def test_big_integers_survive_the_json_answer(doors: Any) -> None:
    doors.query.batches = [pa.RecordBatch.from_pydict({"n": [2**60]})]

    _, body, _ = await doors.call("POST", "/v1/query", json=ASK)

    assert json.dumps(body["rows"]) == '[["1152921504606846976"]]'
