"""Whatever comes in, the answer is a line of the catalogue and nothing is half done."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from duckmesh_runtime.errors import CATALOGUE, DuckmeshError, Failed, Invalid, Unavailable
from tests.fakes.doors import key

INGEST = "/v1/ingest/events"
ROW = {"payload": {"id": 1}}
TOO_BIG = b'{"records":[{"payload":{"id":"' + b"x" * 100_001 + b'"}}]}'


@dataclass(frozen=True)
class Case:
    """A request and the code it gets."""

    code: str
    method: str = "POST"
    path: str = INGEST
    json: Any = None
    data: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    says: str = ""


def body(text: bytes, code: str = "VALIDATION_FAILED", **more: Any) -> Case:
    headers = {"Content-Type": "application/json"} | more.pop("headers", {})
    return Case(code=code, data=text, headers=headers, **more)


CASES = {
    "malformed JSON": body(b'{"records": [', says="well-formed JSON"),
    "empty body": body(b""),
    "not UTF-8": body(b'{"records":[{"payload":{"id":"\xff"}}]}'),
    "lone surrogate": body(b'{"records":[{"payload":{"id":"\\ud800"}}]}'),
    "NaN": body(b'{"records":[{"payload":{"id":NaN}}]}'),
    "deeply nested": body(b'{"records":[{"payload":' + b"[" * 49_000, says="nested"),
    "a list instead of an object": body(b"[]"),
    "records missing": body(b"{}", says="records: is missing"),
    "no records": body(b'{"records":[]}', says="records: want at least 1 entry"),
    "records of a wrong type": body(
        b'{"records":7}', says="records: want a list, not a whole number"
    ),
    "unknown field": body(
        b'{"records":[{"payload":{}}],"recrods":1}', says="recrods: unknown field"
    ),
    "unknown record field": body(
        b'{"records":[{"payload":{},"key":"a"}]}', says="records[0].key: unknown field"
    ),
    "record without payload": body(b'{"records":[{}]}', says="records[0].payload: is missing"),
    "wrong type of a flag": body(
        b'{"records":[{"payload":{}}],"wait_for_visibility":"yes"}',
        says="want true or false, not text",
    ),
    "wait too long": body(
        b'{"records":[{"payload":{}}],"visibility_timeout_ms":60001}',
        says="visibility_timeout_ms: want a whole number of at most 60000",
    ),
    "a field twice": body(
        b'{"records":[{"payload":{}}],"records":[{"payload":{}}]}', says="records: is given twice"
    ),
    "a field of a record twice": body(b'{"records":[{"payload":{"id":1},"payload":{"id":2}}]}'),
    "a column twice": body(b'{"records":[{"payload":{"id":1,"id":2}}]}', says="id: is given twice"),
    "a column twice behind many": body(
        b'{"records":[' + b'{"payload":{"id":1}},' * 4_000 + b'{"payload":{"n":{"a":1,"a":2}}}]}',
        says="a: is given twice",
    ),
    "a field of a table twice": body(b'{"name":"t","name":"u","columns":[]}', path="/v1/tables"),
    "a field of a query twice": body(b'{"sql":"SELECT 1","sql":"SELECT 2"}', path="/v1/query"),
    "oversize body": body(TOO_BIG, "PAYLOAD_TOO_LARGE", says="100000 bytes"),
    "gzip bomb": body(
        gzip.compress(b"0" * 50_000_000), "PAYLOAD_TOO_LARGE", headers={"Content-Encoding": "gzip"}
    ),
    "cut gzip": body(gzip.compress(b"{}")[:-4], headers={"Content-Encoding": "gzip"}),
    "not gzip": body(b"{}", headers={"Content-Encoding": "gzip"}, says="gzip"),
    "gzip of nothing": body(b"", headers={"Content-Encoding": "gzip"}),
    "empty encoding": body(b"{}", "UNSUPPORTED_MEDIA_TYPE", headers={"Content-Encoding": ""}),
    "unknown encoding": body(b"{}", "UNSUPPORTED_MEDIA_TYPE", headers={"Content-Encoding": "br"}),
    "deflate": body(
        zlib.compress(b"{}"), "UNSUPPORTED_MEDIA_TYPE", headers={"Content-Encoding": "deflate"}
    ),
    "gzip twice": body(b"{}", "UNSUPPORTED_MEDIA_TYPE", headers={"Content-Encoding": "gzip, gzip"}),
    "unknown type": body(b"{}", "UNSUPPORTED_MEDIA_TYPE", headers={"Content-Type": "text/plain"}),
    "no type": Case(code="UNSUPPORTED_MEDIA_TYPE", data=b"{}"),
    "unknown table": body(
        b'{"records":[{"payload":{}}]}', "TABLE_NOT_FOUND", path="/v1/ingest/nowhere"
    ),
    "a request key for records": body(
        b'{"records":[{"payload":{}}]}', headers={"Idempotency-Key": "k"}
    ),
    "empty request key": Case(
        code="VALIDATION_FAILED",
        data=b"x",
        headers={"Content-Type": "application/vnd.apache.arrow.stream", "Idempotency-Key": ""},
    ),
    "long request key": Case(
        code="VALIDATION_FAILED",
        data=b"x",
        headers={
            "Content-Type": "application/vnd.apache.arrow.stream",
            "Idempotency-Key": "k" * 256,
        },
    ),
    "unknown parameter": body(
        b'{"records":[{"payload":{}}]}', path=INGEST + "?op=upsert", says="op:"
    ),
    "doubled parameter": Case(
        code="VALIDATION_FAILED",
        path=INGEST + "?wait_for_visibility=true&wait_for_visibility=true",
        data=b"x",
        headers={"Content-Type": "application/vnd.apache.arrow.stream"},
    ),
    "an operation that is none": Case(
        code="VALIDATION_FAILED",
        path=INGEST + "?op=replace",
        data=b"x",
        headers={"Content-Type": "text/csv"},
        says="op: want insert, upsert or delete",
    ),
    "an operation among the parameters of records": body(
        b'{"records":[{"payload":{}}]}', path=INGEST + "?op=insert", says="op: is no parameter"
    ),
    "flag that is none": Case(
        code="VALIDATION_FAILED",
        path=INGEST + "?wait_for_visibility=1",
        data=b"x",
        headers={"Content-Type": "application/vnd.apache.arrow.stream"},
        says="true or false",
    ),
    "unknown path": Case(code="ROUTE_NOT_FOUND", method="GET", path="/v1/nothing"),
    "unversioned path": Case(code="ROUTE_NOT_FOUND", path="/query", json={"sql": "SELECT 1"}),
    "table that is no name": Case(
        code="VALIDATION_FAILED",
        path="/v1/tables",
        json={"name": 'x"; DROP', "columns": [{"name": "a", "type": "BIGINT"}]},
    ),
    "unknown column type": Case(
        code="VALIDATION_FAILED",
        path="/v1/tables",
        json={"name": "t", "columns": [{"name": "a", "type": "CLOB"}]},
        says="columns[0].type",
    ),
    "query without sql": Case(
        code="VALIDATION_FAILED", path="/v1/query", json={}, says="sql: is missing"
    ),
    "query of a wrong type": Case(code="VALIDATION_FAILED", path="/v1/query", json={"sql": 1}),
    "query with an unknown field": Case(
        code="VALIDATION_FAILED", path="/v1/query", json={"sql": "SELECT 1", "limit": 1}
    ),
    "deep params": Case(
        code="VALIDATION_FAILED",
        path="/v1/query",
        data=b'{"sql":"SELECT 1","params":[' + b"[" * 60 + b"]" * 60 + b"]}",
        headers={"Content-Type": "application/json"},
        says="params",
    ),
    "statement too long": Case(
        code="VALIDATION_FAILED", path="/v1/query", json={"sql": "x" * 65_537}
    ),
    "unreadable token": Case(
        code="VISIBILITY_TOKEN_INVALID",
        path="/v1/query",
        json={"sql": "SELECT 1", "min_visibility_token": "12"},
    ),
    "another lake's token": Case(
        code="TOKEN_SCOPE_MISMATCH",
        path="/v1/query",
        json={"sql": "SELECT 1", "min_visibility_token": "v1_bGFrZV94LjEuNQ"},
    ),
    "unsupported answer": Case(
        code="UNSUPPORTED_MEDIA_TYPE",
        path="/v1/query",
        json={"sql": "SELECT 1"},
        headers={"Accept": "application/xml"},
    ),
    "visible without token": Case(
        code="VALIDATION_FAILED", method="GET", path="/v1/visible", says="token"
    ),
    "visible with a bad timeout": Case(
        code="VALIDATION_FAILED", method="GET", path="/v1/visible?token=x&timeout_ms=-1"
    ),
    "long query string": Case(
        code="VALIDATION_FAILED", method="GET", path="/v1/visible?token=" + "x" * 9000
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_bad_input_gets_its_code_and_changes_nothing(doors: Any, case: Case) -> None:
    options = {"json": case.json} if case.json is not None else {"data": case.data}
    if case.data is not None and "Content-Type" not in case.headers:
        options["skip_auto_headers"] = ["Content-Type"]

    status, answer, response = await doors.call(
        case.method, case.path, headers=case.headers, **options
    )

    assert (answer["error_code"], status) == (case.code, CATALOGUE[case.code].status)
    assert set(answer) == {"error_code", "message", "retryable", "context", "trace_id"}
    assert case.says in answer["message"]
    assert response.headers["X-Duckmesh-Trace-Id"] == answer["trace_id"]
    assert not doors.ingest.records
    assert not doors.ingest.bodies
    assert not doors.query.asked


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/tables", "GET, POST"),
        ("GET", "/v1/snapshots/pin", "POST"),
        ("GET", "/v1/snapshots/restore", "POST"),
        ("DELETE", "/v1/dead-letters/replay", "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_ones(
    doors: Any, method: str, path: str, allowed: str
) -> None:
    """Also where the last part of the path could be the name of something."""
    status, body, answer = await doors.call(method, path)

    assert (status, body["error_code"]) == (405, "ROUTE_NOT_FOUND")
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (
            INGEST,
            {
                "records": [{**ROW, "op": None, "idempotency_key": None, "event_time": None}],
                "wait_for_visibility": None,
                "visibility_timeout_ms": None,
            },
        ),
        (
            "/v1/query",
            {
                "sql": "SELECT 1",
                "params": None,
                "min_visibility_token": None,
                "max_staleness_ms": None,
                "consistency_timeout_ms": None,
                "row_limit": None,
                "timeout_ms": None,
                "snapshot_id": None,
                "snapshot_time": None,
            },
        ),
        (
            "/v1/tables",
            {
                "name": "t",
                "columns": [{"name": "a", "type": "BIGINT", "nullable": None, "default": None}],
                "primary_key": None,
                "partition_by": None,
                "sort_by": None,
            },
        ),
    ],
    ids=["ingest", "query", "table"],
)
async def test_null_is_like_a_field_that_is_not_sent(
    doors: Any, path: str, sent: dict[str, Any]
) -> None:
    status, _, _ = await doors.call("POST", path, json=sent)

    assert status in (200, 201)


async def test_both_of_two_fields_that_exclude_each_other_are_named(doors: Any) -> None:
    sent = {"sql": "SELECT 1", "snapshot_id": 1, "max_staleness_ms": 5}

    _, answer, _ = await doors.call("POST", "/v1/query", json=sent)

    assert answer["error_code"] == "VALIDATION_FAILED"
    assert answer["context"] == {"fields": ["snapshot_id", "max_staleness_ms"]}


@pytest.mark.parametrize(
    ("token", "code"),
    [("12", "VISIBILITY_TOKEN_INVALID"), ("v1_bGFrZV94LjEuNQ", "TOKEN_SCOPE_MISMATCH")],
)
async def test_a_bad_token_names_where_it_stands(doors: Any, token: str, code: str) -> None:
    sent = {"sql": "SELECT 1", "min_visibility_token": token}

    answers = [
        (await doors.call("POST", "/v1/query", json=sent))[1],
        (await doors.call("GET", f"/v1/visible?token={token}"))[1],
    ]

    assert [answer["error_code"] for answer in answers] == [code] * 2
    fields = [answer["context"]["field"] for answer in answers]
    assert fields == ["min_visibility_token", "token"]


async def test_a_body_that_says_it_is_too_long_is_refused_unread(doors: Any) -> None:
    reader, writer = await asyncio.open_connection(*_address(doors))
    writer.write(
        f"POST {INGEST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('admin')}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    await writer.wait_closed()

    assert b" 413 " in head


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="tls"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA B: 1\r\n\r\n", id="bad header name"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", id="long header"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", id="many headers"
        ),
        pytest.param(
            b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            id="two lengths",
        ),
        pytest.param(
            b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length and chunked",
        ),
    ],
)
async def test_what_is_no_http_gets_a_json_error(doors: Any, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection(*_address(doors))
    writer.write(raw)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert json.loads(body)["error_code"] == "VALIDATION_FAILED"


@pytest.mark.parametrize(
    ("holder", "expect", "first"),
    [
        pytest.param("admin", "100-continue", b"HTTP/1.1 100 Continue", id="good key"),
        pytest.param("stranger", "100-continue", b"HTTP/1.1 401 ", id="wrong key"),
        pytest.param("admin", "a-miracle", b"HTTP/1.1 417 ", id="unknown expectation"),
    ],
)
async def test_a_client_that_asks_first_learns_whether_to_send_its_body(
    doors: Any, holder: str, expect: str, first: bytes
) -> None:
    body = json.dumps({"records": [ROW]}).encode()
    reader, writer = await asyncio.open_connection(*_address(doors))
    writer.write(
        f"POST {INGEST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key(holder)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Expect: {expect}\r\n\r\n".encode()
    )
    answer = await asyncio.wait_for(reader.readline(), 10)
    if b"100" in answer:
        await reader.readline()
        writer.write(body)
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(first)


async def test_a_broken_chunked_body_is_refused(doors: Any) -> None:
    reader, writer = await asyncio.open_connection(*_address(doors))
    writer.write(
        f"POST {INGEST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('admin')}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n".encode()
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()

    assert b"VALIDATION_FAILED" in answer


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(RuntimeError("dsn=postgresql://u:secret@h/db"), id="unknown"),
        pytest.param(LookupError("/etc/duckmesh/writer/dsn"), id="lookup"),
    ],
)
async def test_a_fault_of_our_own_tells_nothing_but_its_trace(
    doors: Any, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    doors.ingest.failure = failure

    status, body, _ = await doors.call("POST", INGEST, json={"records": [ROW]})

    assert (status, body["error_code"], body["retryable"]) == (500, "INTERNAL", True)
    assert str(failure) not in json.dumps(body)
    assert str(failure) in caplog.text


@pytest.mark.parametrize(
    ("failure", "status", "wait"),
    [
        pytest.param(
            Unavailable("CATALOG_UNAVAILABLE", "the catalog is away", retry_after_s=2.2),
            503,
            "3",
            id="unavailable",
        ),
        pytest.param(Invalid("OVERLOADED", "too much"), 429, "1", id="overloaded"),
        pytest.param(Failed("QUERY_TIMEOUT", "too slow"), 504, None, id="not to be repeated"),
    ],
)
async def test_an_error_says_when_to_come_back(
    doors: Any, failure: DuckmeshError, status: int, wait: str | None
) -> None:
    doors.ingest.failure = failure

    found, body, answer = await doors.call("POST", INGEST, json={"records": [ROW]})

    assert (found, answer.headers.get("Retry-After")) == (status, wait)
    assert body["retryable"] is CATALOGUE[failure.code].retryable


async def test_before_the_catalog_answers_every_call_gets_a_catalogued_503(doors: Any) -> None:
    doors.parts.ingest = None

    status, body, answer = await doors.call("POST", INGEST, json={"records": [ROW]})

    assert (status, body["error_code"]) == (503, "CATALOG_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"


async def test_the_callers_trace_is_kept(doors: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"

    _, body, _ = await doors.call(
        "GET", "/v1/nothing", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    )

    assert body["trace_id"] == trace


async def test_too_many_large_bodies_at_once_are_overload(doors: Any) -> None:
    doors.parts.bodies.used_bytes = doors.parts.bodies.total_bytes

    status, body, _ = await doors.call("POST", INGEST, json={"records": [ROW]})

    assert (status, body["error_code"]) == (429, "OVERLOADED")
    assert doors.parts.bodies.used_bytes == doors.parts.bodies.total_bytes


def _address(doors: Any) -> tuple[str, int]:
    host, port = doors.url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("case", "field"),
    [
        (body(b"{}"), "records"),
        (body(b'{"records":7}'), "records"),
        (body(b'{"records":[{"payload":{}},{"key":"a"}]}'), "records[1].key"),
        (body(b'{"records":[{"payload":{}}],"visibility_timeout_ms":-1}'), "visibility_timeout_ms"),
        (body(b"{}", path=f"{INGEST}?atomic=yes"), "atomic"),
        (body(b"{}", path=f"{INGEST}?atomic=true&atomic=true"), "atomic"),
        (body(b"{}", path=f"{INGEST}?atmoic=true"), "atmoic"),
        (body(b"{}", headers={"Idempotency-Key": "a"}), "Idempotency-Key"),
        (Case(code="", method="GET", path="/v1/visible"), "token"),
        (Case(code="", method="GET", path="/v1/visible?token=a&timeout_ms=x"), "timeout_ms"),
        (Case(code="", method="GET", path="/v1/dead-letters?limit=0"), "limit"),
        (body(b'{"sql":"%s"}' % (b"x" * 65_537), path="/v1/query"), "sql"),
        (body(b'{"sql":"%s"}' % ("\u00e4".encode() * 40_000), path="/v1/query"), "sql"),
        (body(b'{"sql":"SELECT $1","params":[%d]}' % 2**128, path="/v1/query"), "params"),
        (body(b'{"sql":"SELECT $1","params":[{"a":-%d}]}' % 2**200, path="/v1/query"), "params"),
        (body(b'{"sql":"SELECT 1","snapshot_time":"now"}', path="/v1/query"), "snapshot_time"),
        (body(b'{"sql":"SELECT 1","sql":"SELECT 2"}', path="/v1/query"), "sql"),
        (body(b'{"records":[{"payload":{"id":1,"id":2}}]}'), "id"),
        (Case(code="", method="GET", path="/v1/dead-letters?table=No"), "table"),
        (body(b"["), None),
        (body(b"[]"), None),
    ],
)
async def test_an_answer_names_the_field_that_is_wrong(
    doors: Any, case: Case, field: str | None
) -> None:
    _, answer, _ = await doors.call(case.method, case.path, headers=case.headers, data=case.data)

    assert answer["error_code"] == "VALIDATION_FAILED"
    assert answer["context"].get("field") == field
