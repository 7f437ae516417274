"""Bulk bodies: from the first byte sent to all rows visible, as Arrow and as NDJSON."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from tests.bench.figures import Figure, cpu_used
from tests.bench.mode import Mode
from tests.bench.peers import PostgresHeap, direct_arrow, direct_lake, direct_ndjson, timed
from tests.bench.stack import Stack, one_ingest
from tests.fakes.doors import key
from tests.pods import Pod

ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"
_AT = datetime(2026, 1, 1, tzinfo=UTC)


def rows_of(count: int, first: int = 0) -> pa.Table:
    """Rows of the measured table; texts of 20 letters, so that Parquet has something to do."""
    ids = np.arange(first, first + count)
    random = np.random.default_rng(first)
    kinds = pa.array([f"kind-{n:015d}" for n in range(1000)])
    return pa.table(
        {
            "id": pa.array(ids),
            "kind": kinds.take(pa.array(random.integers(0, 1000, count))),
            "amount": pa.array(random.random(count)),
            "at": pa.array([_AT] * count, pa.timestamp("us", tz="UTC")),
        }
    )


def arrow_body(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def ndjson_body(rows: pa.Table) -> bytes:
    """One object a line."""
    columns = (rows["id"].to_pylist(), rows["kind"].to_pylist(), rows["amount"].to_pylist())
    lines = [
        f'{{"id":{i},"kind":"{k}","amount":{a!r},"at":"2026-01-01T00:00:00Z"}}'
        for i, k, a in zip(*columns, strict=True)
    ]
    return "\n".join(lines).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Seconds to the ack and to visibility."""

    ack: float
    visible: float


def send(pod: Pod, path: str, body: bytes, content_type: str) -> Sent:
    """Post a body and wait until its token is visible; RuntimeError when it is not."""
    connection = http.client.HTTPConnection("127.0.0.1", pod.port, timeout=120)
    head = {"Authorization": f"Bearer {key('admin')}"}
    try:
        start = time.perf_counter()
        connection.request("POST", path, body, {**head, "Content-Type": content_type})
        answer = json.load(connection.getresponse())
        acked = time.perf_counter()
        if answer.get("rejected") or "max_visibility_token" not in answer:
            raise RuntimeError(f"the body was not accepted whole: {str(answer)[:500]}")
        token = answer["max_visibility_token"]
        connection.request("GET", f"/v1/visible?token={token}&timeout_ms=60000", headers=head)
        answer = json.load(connection.getresponse())
        if not answer.get("visible"):
            raise RuntimeError(f"not visible: {str(answer)[:500]}")
        return Sent(ack=acked - start, visible=time.perf_counter() - start)
    finally:
        connection.close()


def arrow(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """One Arrow body, against DuckLake's own insert of the same bytes and Postgres' COPY."""
    count = mode.pick(1_000_000, 200_000)
    rows = rows_of(count)
    body = arrow_body(rows)
    lake = direct_lake(stack)
    peer = direct_arrow(lake, body)
    heap = PostgresHeap(stack).copy(rows)
    sent, direct, copied, used = _in_turn(stack, mode, body, ARROW, peer, heap)
    ratio = statistics.median(d / s.visible for s, d in zip(sent, direct, strict=True))
    return [
        Figure(
            what=f"Arrow body of {count:,} rows ({len(body) / 2**20:.0f} MiB) to visible",
            goal=">= 0.8x DuckLake direct",
            ours=f"{_rate(count, [s.visible for s in sent])}; {ratio:.2f}x direct",
            peers=f"DuckLake direct insert {_rate(count, direct)}; Postgres COPY {_rate(count, copied)}",
            notes=f"{len(sent)} rounds in turn; ack after {statistics.median(s.ack for s in sent):.2f} s; {used}",
        )
    ]


def ndjson(stack: Stack, mode: Mode) -> Sequence[Figure]:
    """One NDJSON body, against DuckDB's reader inserting the same bytes and Postgres' COPY."""
    count = mode.pick(500_000, 100_000)
    rows = rows_of(count)
    body = ndjson_body(rows)
    peer = direct_ndjson(direct_lake(stack), body)
    heap = PostgresHeap(stack).copy(rows)
    sent, direct, copied, used = _in_turn(stack, mode, body, NDJSON, peer, heap)
    return [
        Figure(
            what=f"NDJSON body of {count:,} rows ({len(body) / 2**20:.0f} MiB) to visible",
            goal=">= 150,000 rows/s",
            ours=_rate(count, [s.visible for s in sent]),
            peers=f"DuckLake direct from read_json {_rate(count, direct)}; Postgres COPY of CSV {_rate(count, copied)}",
            notes=f"{len(sent)} rounds in turn; ack after {statistics.median(s.ack for s in sent):.2f} s; {used}",
        )
    ]


def _in_turn(
    stack: Stack,
    mode: Mode,
    body: bytes,
    content_type: str,
    peer: Callable[[], object],
    heap: Callable[[], object],
) -> tuple[list[Sent], list[float], list[float], str]:
    """Ours, DuckLake, Postgres, and again: the machine's drift hits all three. The first turn is not counted."""
    sent, direct, copied = [], [], []
    with one_ingest(stack) as pod:
        path = "/v1/ingest/load"
        send(pod, path, body, content_type)
        timed(peer, 1)
        with cpu_used(stack.roots(ingest=pod)) as used:
            for _ in range(max(3, mode.rounds)):
                sent.append(send(pod, path, body, content_type))
                direct += timed(peer, 1)
                copied += timed(heap, 1)
    return sent, direct, copied, f"peers included, {used}"


def _rate(rows: int, seconds: Sequence[float]) -> str:
    middle = statistics.median(seconds)
    return f"{rows / middle:,.0f} rows/s ({middle:.2f} s, {min(seconds):.2f} to {max(seconds):.2f})"
