"""W3C trace context: a good `traceparent` is taken, a bad one replaced (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from multidict import CIMultiDict

from duckmesh_runtime import log
from duckmesh_runtime.web.errors import trace_of, traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(f"00-{TRACE}-{PARENT}-01", id="sampled"),
        pytest.param(f"00-{TRACE}-{PARENT}-00", id="not sampled"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01", id="later version"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", id="more behind it"),
    ],
)
def test_a_good_one_is_taken(said: str) -> None:
    assert trace_of(CIMultiDict(Traceparent=said)) == TRACE


@pytest.mark.parametrize(
    "said",
    [
        [],
        [""],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE[:-1]}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01\r\nX: y"],
        [f" 00-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"],
    ],
    ids=repr,
)
def test_a_bad_one_is_replaced(said: list[str]) -> None:
    made = {trace_of(CIMultiDict([("traceparent", one) for one in said])) for _ in range(2)}

    assert len(made) == 2
    assert all(len(trace) == 32 and int(trace, 16) for trace in made - {TRACE})
    assert TRACE not in made


def test_what_is_passed_on_is_of_the_same_trace_and_another_parent() -> None:
    mark = log.trace_id.set(TRACE)
    try:
        passed = {traceparent() for _ in range(2)}
    finally:
        log.trace_id.reset(mark)

    assert len(passed) == 2
    assert {trace_of(CIMultiDict(traceparent=one)) for one in passed} == {TRACE}


async def test_a_failed_request_has_its_trace_and_code_in_log_body_and_header(
    doors: Any,
) -> None:
    lines: list[dict[str, Any]] = []
    form = log.JsonFormatter("ingest", "team/acme")

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(form.format(record)))

    doors.ingest.failure = RuntimeError("planted")
    keep = Keep()
    logging.getLogger("duckmesh_runtime.web.errors").addHandler(keep)
    try:
        _, body, answer = await doors.call(
            "POST",
            "/v1/ingest/events",
            json={"records": [{"payload": {"id": 1}}]},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
    finally:
        logging.getLogger("duckmesh_runtime.web.errors").removeHandler(keep)

    assert (body["error_code"], body["trace_id"]) == ("INTERNAL", TRACE)
    assert answer.headers["X-Duckmesh-Trace-Id"] == TRACE
    (line,) = [line for line in lines if line["level"] == "error"]
    assert (line["trace_id"], line["error_code"]) == (TRACE, "INTERNAL")
    assert (line["service"], line["tenant"]) == ("ingest", "team/acme")
    assert line["timestamp"]
    assert "planted" not in json.dumps(body)
