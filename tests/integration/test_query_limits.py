"""What a query may cost, over the processes of a Tenant: time, rows, bytes, memory, and the turn of others."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.fakes.doors import key, write_keys
from tests.pods import ADMIN, Pod, Tenant
from tests.sandboxes import ENDLESS, SOON_S, wait_for

JSON = "application/json"
STREAMED = [
    "application/x-ndjson",
    "text/csv",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.parquet",
]
MANY = 10_000_000
FLAT_BYTES = 64 * 2**20
"""Above what a first, smaller answer took; 10 million rows of two numbers are 160 MB as Arrow and 350 MB as NDJSON."""


@pytest.fixture
def pods(tenant: Tenant) -> dict[str, Pod]:
    """Sandbox with one slot, query and ingest."""
    tenant.env()
    write_keys(tenant.folder / "auth", {"admin": ADMIN, "quiet": ["query_reader"]})
    limits = {"DUCKMESH_QUERY_TIMEOUT_MS": "120000", "DUCKMESH_QUERY_ROWS": "20000000"}
    sandbox = tenant.start("sandbox", **limits)
    query = tenant.start("serve", "query", port=tenant.query_port, **limits)
    ingest = tenant.ingest()
    query.wait(lambda: query.call("POST", "/v1/query", {"sql": "SELECT 1"})[0] == 200)
    return {"sandbox": sandbox, "query": query, "ingest": ingest}


@contextmanager
def answering(
    pod: Pod, sql: str, *, accept: str = JSON, as_key: str = "admin", **more: object
) -> Iterator[http.client.HTTPConnection]:
    """A connection on which the statement was sent; nothing is read yet, and it is closed at the end."""
    connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=120)
    headers = {
        "Authorization": f"Bearer {key(as_key)}",
        "Content-Type": JSON,
        "Accept": accept,
    }
    try:
        connection.request("POST", "/v1/query", json.dumps({"sql": sql, **more}), headers)
        yield connection
    finally:
        connection.close()


def whole(pod: Pod, sql: str, **more: Any) -> tuple[int, bytes]:
    with answering(pod, sql, **more) as connection, connection.getresponse() as answer:
        return answer.status, answer.read()


def busy(pod: Pod) -> bool:
    """Whether a statement computes: a process of the sandbox takes a good part of a processor."""
    slots = psutil.Process(pod.process.pid).children()
    before = {slot.pid: _cpu_s(slot) for slot in slots}
    started = time.monotonic()
    psutil.wait_procs(slots, timeout=0.25)  # they do not end: a time to measure over
    spent = [_cpu_s(slot) - before[slot.pid] for slot in slots]
    return max(spent, default=0) > 0.05 * (time.monotonic() - started)


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def test_a_client_that_goes_away_ends_its_statement_and_frees_the_slot(
    pods: dict[str, Pod],
) -> None:
    query, sandbox = pods["query"], pods["sandbox"]
    for door, accept in (("query", JSON), ("ingest", STREAMED[0])):
        with answering(pods[door], ENDLESS, accept=accept):
            wait_for(lambda: busy(sandbox))

        wait_for(lambda: not busy(sandbox))
        assert whole(query, "SELECT 1", timeout_ms=30_000)[0] == 200, (door, accept)

    sql = f"SELECT range, hash(range) FROM range({MANY})"
    for door, accept in (*(("query", each) for each in STREAMED), ("ingest", STREAMED[1])):
        with answering(pods[door], sql, accept=accept) as connection:
            assert len(connection.getresponse().read(4)) == 4

        assert whole(query, "SELECT 1", timeout_ms=30_000)[0] == 200, (door, accept)
    wait_for(lambda: not busy(sandbox))

    with answering(query, ENDLESS):
        wait_for(lambda: busy(pods["sandbox"]))
        with answering(query, "SELECT 1"):
            wait_for(lambda: query.metric("duckmesh_queries_waiting") == 1)
        wait_for(lambda: query.metric("duckmesh_queries_waiting") == 0)


def test_one_noisy_key_delays_the_query_of_another_by_one_at_most(pods: dict[str, Pod]) -> None:
    query = pods["query"]
    noisy = "SELECT sum(hash(a.range + b.range)) FROM range(10000) a, range(1500) b"
    done: list[float] = []

    def one_of_many() -> None:
        assert whole(query, noisy)[0] == 200
        done.append(time.monotonic())

    with ThreadPoolExecutor(10) as pool:
        many = [pool.submit(one_of_many) for _ in range(10)]
        wait_for(lambda: query.metric("duckmesh_queries_waiting") >= 6)
        before = len(done)
        status, body = whole(query, "SELECT 1", as_key="quiet")
        passed = len(done) - before
        for each in many:
            each.result()

    assert status == 200
    assert passed <= 2  # the one that ran, and one whose end fell together with the start
    assert json.loads(body)["stats"]["waited_ms"] > 0


def test_time_rows_and_bytes_of_an_answer_are_bounded(pods: dict[str, Pod]) -> None:
    query = pods["query"]
    for accept in (JSON, "text/csv"):
        started = time.monotonic()
        status, body = whole(pods["ingest"], ENDLESS, accept=accept, timeout_ms=300)

        assert (status, json.loads(body)["error_code"]) == (504, "QUERY_TIMEOUT")
        assert time.monotonic() - started < SOON_S

    endless = f"SELECT range, md5(range::VARCHAR) AS h FROM range({2 * MANY})"
    with (
        answering(pods["ingest"], endless, accept="text/csv", timeout_ms=700) as connection,
        connection.getresponse() as answer,
    ):
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead):
            answer.read()

    _, cut = whole(query, "SELECT range FROM range(1000)", row_limit=10)
    _, all_of_it = whole(query, "SELECT range FROM range(10)", row_limit=10)
    _, lines = whole(query, "SELECT range FROM range(1000)", accept=STREAMED[0], row_limit=10)
    large, body = whole(query, "SELECT repeat('x', 1000) FROM range(100000)")

    assert [json.loads(answer)["truncated"] for answer in (cut, all_of_it)] == [True, False]
    assert len(json.loads(cut)["rows"]) == len(lines.splitlines()) == 10
    assert (large, json.loads(body)["error_code"]) == (413, "RESULT_TOO_LARGE")


def test_memory_is_flat_over_ten_million_rows(pods: dict[str, Pod]) -> None:
    processes = [psutil.Process(pods[name].process.pid) for name in ("query", "ingest")]
    for accept in STREAMED:
        door = "ingest" if accept == STREAMED[2] else "query"
        length, _ = _drain(pods[door], MANY // 10, accept, processes)
        before = [process.memory_info().rss for process in processes]

        total, peaks = _drain(pods[door], MANY, accept, processes)

        grown = [peak - start for peak, start in zip(peaks, before, strict=True)]
        assert total > 8 * length
        assert max(grown) < FLAT_BYTES, (accept, grown)


def test_a_client_that_does_not_read_holds_the_statement_and_no_memory(
    pods: dict[str, Pod],
) -> None:
    query = psutil.Process(pods["query"].process.pid)
    sql = f"SELECT range, hash(range) FROM range({MANY})"
    whole(pods["query"], "SELECT range FROM range(1000000)", accept=STREAMED[0])
    before = query.memory_info().rss

    with answering(pods["query"], sql, accept=STREAMED[0]) as connection:
        answer = connection.getresponse()
        assert answer.read(1)
        wait_for(lambda: not busy(pods["sandbox"]))
        grown = query.memory_info().rss - before
        more = sum(len(answer.read(2**20)) for _ in range(20))

    assert grown < FLAT_BYTES
    assert more == 20 * 2**20
    with answering(pods["query"], sql, accept=STREAMED[0], timeout_ms=1_000) as connection:
        assert connection.getresponse().read(1)
        assert whole(pods["query"], "SELECT 1", timeout_ms=10_000)[0] == 200


def _drain(
    pod: Pod, rows: int, accept: str, processes: list[psutil.Process]
) -> tuple[int, list[int]]:
    """Read an answer; its length, and the most that each process took meanwhile."""
    sql = f"SELECT range, range * 0.5::DOUBLE AS half FROM range({rows})"
    length, peaks = 0, [0] * len(processes)
    with answering(pod, sql, accept=accept) as connection, connection.getresponse() as answer:
        assert answer.status == 200
        while part := answer.read(2**20):
            length += len(part)
            now = [process.memory_info().rss for process in processes]
            peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
    return length, peaks
