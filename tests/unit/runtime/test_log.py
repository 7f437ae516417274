from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from duckmesh_runtime import log


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, "f.py", 1, "it happened", (), None)
    made.__dict__.update(extra)
    return made


def test_a_json_line_names_time_service_tenant_event_and_keys() -> None:
    line = json.loads(log.JsonFormatter("ingest", "ns/t").format(record(rows=5, at=object)))

    assert line["timestamp"].endswith("+00:00")
    assert (line["level"], line["service"], line["tenant"]) == ("warning", "ingest", "ns/t")
    assert (line["logger"], line["event"], line["rows"]) == ("a.b", "it happened", 5)
    assert "trace_id" not in line


def test_the_trace_of_the_request_is_in_its_lines() -> None:
    mark = log.trace_id.set("abc")
    try:
        line = json.loads(log.JsonFormatter("ingest", "ns/t").format(record()))
        text = log.TextFormatter().format(record(rows=5))
    finally:
        log.trace_id.reset(mark)

    assert line["trace_id"] == "abc"
    assert text.endswith("warning it happened rows=5 trace_id='abc'")


@pytest.mark.parametrize("formatter", [log.JsonFormatter("s", "t"), log.TextFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        text = formatter.format(record(exc_info=sys.exc_info()))

    assert "ValueError: inside" in text


def test_text_is_one_line_for_people() -> None:
    assert log.TextFormatter().format(record(rows=5)).endswith("warning it happened rows=5")


def test_a_newline_in_data_cannot_start_a_line_of_its_own() -> None:
    text = log.JsonFormatter("s", "t").format(record(sql='x\n{"level":"error"}'))

    assert "\n" not in text


def test_configured_logs_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(log_format="json", level="info", service="query", tenant="ns/t")

    logging.getLogger("x").info("seen")
    logging.getLogger("x").debug("not seen")

    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["seen"]
