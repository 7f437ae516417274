"""Bursts through the HTTP door of real processes: one key many times at once, clients that leave, more than is taken."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain.tokens import parse_token
from tests.bench.client import Client
from tests.fakes.doors import arrow_stream, key
from tests.lakes import LakeView
from tests.pods import Pod, Tenant, tenant_of
from tests.services import Lake, new_lake

AT_ONCE = 50
COLUMNS = [
    {"name": "id", "type": "BIGINT", "nullable": False},
    {"name": "n", "type": "BIGINT"},
]
JSON, NDJSON = "application/json", "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"


_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Door:
    """Two replicas of one lake, and a test's own tables: one without a primary key, one with."""

    lake: Lake
    pods: tuple[Pod, Pod]
    orders: str
    keyed: str

    async def burst(
        self, bodies: Sequence[bytes], content_type: str = JSON, **headers: str
    ) -> list[tuple[int, Any]]:
        """Send all bodies at once, over both replicas in turn."""
        clients = [Client(pod.url, key("admin"), **headers) for pod in self.pods]
        path = f"/v1/ingest/{self.orders}"
        try:
            for client in clients:
                await client.connect(-(-len(bodies) // 2))
            sent = [
                clients[i % 2].post(path, body, content_type=content_type)
                for i, body in enumerate(bodies)
            ]
            return [(status, json.loads(body)) for status, body in await asyncio.gather(*sent)]
        finally:
            for client in clients:
                client.close()

    def send(self, at: int, body: bytes, content_type: str = JSON) -> tuple[int, Any]:
        """One body to one of the replicas."""
        path = f"/v1/ingest/{self.orders}"
        return self.pods[at % 2].send("POST", path, body, content_type=content_type)

    def seen(self, token: str, table: str = "") -> list[tuple[Any, ...]]:
        """All rows, once the token is visible."""
        status, answer = self.pods[0].call("GET", f"/v1/visible?token={token}&timeout_ms=30000")
        assert status == 200, answer
        return sorted(LakeView(self.lake).query(f"SELECT id, n FROM {table or self.orders}"))


@pytest.fixture(scope="module")
def tenant(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """Two ingest processes over one lake for all tests: each has tables of its own."""
    lake = asyncio.run(new_lake(tmp_path_factory.mktemp("bursts"), postgres))
    with tenant_of(lake) as found:
        found.ingest(), found.ingest()
        yield found


@pytest.fixture
def door(tenant: Tenant) -> Door:
    """The replicas, with two fresh tables."""
    number = next(_numbers)
    door = Door(
        tenant.lake, (tenant.pods[0], tenant.pods[1]), f"orders_{number}", f"keyed_{number}"
    )
    for name, primary_key in ((door.orders, []), (door.keyed, ["id"])):
        table = {"name": name, "columns": COLUMNS, "primary_key": primary_key}
        status, answer = door.pods[0].call("POST", "/v1/tables", table)
        assert status == 201, answer
    return door


def records(*pairs: tuple[str | None, int, int]) -> bytes:
    """A JSON body of (idempotency key, id, n)."""
    made = [{"idempotency_key": k, "payload": {"id": i, "n": n}} for k, i, n in pairs]
    return json.dumps({"records": made}).encode()


async def test_one_record_key_sent_fifty_times_at_once_is_one_row(
    door: Door,
) -> None:
    answers = await door.burst([records(("one", 1, 1))] * AT_ONCE)

    assert {status for status, _ in answers} == {200}
    assert sum(a["accepted_count"] for _, a in answers) == 1
    assert sum(a["duplicate_count"] for _, a in answers) == AT_ONCE - 1
    (token,) = {a["max_visibility_token"] for _, a in answers}
    assert door.seen(token) == [(1, 1)]


async def test_of_fifty_contents_under_one_key_one_is_taken(
    door: Door,
) -> None:
    answers = await door.burst([records(("one", 1, n)) for n in range(AT_ONCE)])

    taken = [n for n, (status, _) in enumerate(answers) if status == 200]
    refused = Counter(a["error_code"] for status, a in answers if status != 200)
    assert len(taken) == 1
    assert refused == {"IDEMPOTENCY_CONFLICT": AT_ONCE - 1}
    token = answers[taken[0]][1]["max_visibility_token"]
    assert door.seen(token) == [(1, taken[0])]


@pytest.mark.parametrize(
    ("rows", "times", "content_type"),
    [(3, AT_ONCE, NDJSON), (3, AT_ONCE, ARROW), (60_000, 8, ARROW)],
    ids=["NDJSON", "Arrow", "staged as a file"],
)
async def test_one_body_sent_many_times_at_once_under_one_key_is_written_once(
    door: Door, rows: int, times: int, content_type: str
) -> None:
    numbers: list[object] = list(range(rows))
    if content_type == ARROW:
        body = arrow_stream({"id": numbers, "n": numbers})
    else:
        body = "\n".join(json.dumps({"id": i, "n": i}) for i in numbers).encode()

    answers = await door.burst([body] * times, content_type, Idempotency_Key="whole")

    assert {status for status, _ in answers} == {200}, answers
    assert sum(a["accepted_count"] for _, a in answers) == rows
    assert sum(a["duplicate_count"] for _, a in answers) == rows * (times - 1)
    (token,) = {a["max_visibility_token"] for _, a in answers}
    assert door.seen(token) == [(i, i) for i in numbers]
    await _no_file_without_owner(door)


async def _no_file_without_owner(door: Door) -> None:
    """All Parquet in the store belongs to the lake: what lost the race was taken away."""
    name = door.lake.name
    query = f"SELECT count(*) FROM {name}.ducklake_data_file JOIN {name}.ducklake_table USING (table_id) WHERE table_name = $1"
    owned = await LakeView(door.lake).fetchval(query, door.orders)
    folder = f"{door.lake.store.url.removeprefix('file://')}main/{door.orders}"
    found = await asyncio.to_thread(_parquet_below, folder)
    assert len(found) == owned, found


def _parquet_below(folder: str) -> list[str]:
    return [str(path) for path in Path(folder).rglob("*.parquet")]


def test_a_key_repeated_inside_one_request_counts_once(
    door: Door,
) -> None:
    body = records(("a", 1, 1), ("b", 2, 2), ("a", 1, 1), ("b", 2, 3), (None, 3, 3), ("a", 1, 1))

    status, answer = door.send(1, body)

    assert (status, answer["accepted_count"], answer["duplicate_count"]) == (200, 3, 2)
    assert [(r["index"], r["error_code"]) for r in answer["rejected"]] == [
        (3, "IDEMPOTENCY_CONFLICT")
    ]
    token = answer["max_visibility_token"]
    assert door.seen(token) == [(1, 1), (2, 2), (3, 3)]


async def test_upserts_of_one_row_from_many_clients_leave_the_last_by_token(
    door: Door,
) -> None:
    clients = [Client(pod.url, key("admin")) for pod in door.pods]

    async def one(n: int) -> tuple[str, int]:
        status, body = await clients[n % 2].post(
            f"/v1/ingest/{door.keyed}", records((f"k{n}", 1, n))
        )
        assert status == 200, body
        return json.loads(body)["max_visibility_token"], n

    answers = await asyncio.gather(*(one(n) for n in range(AT_ONCE)))
    for client in clients:
        client.close()

    last, n = max(answers, key=lambda a: parse_token(a[0], lake=door.lake.name, timeline=1).number)
    assert door.seen(last, door.keyed) == [(1, n)]


def test_a_client_that_is_gone_before_the_answer_finds_its_rows_once(
    door: Door,
) -> None:
    tokens = []
    for n in range(40):
        body = records((f"{n}a", n, 1), (f"{n}b", n, 2))
        part = (
            len(body) if n % 4 else len(body) // 2
        )  # every fourth is gone with half of its body unsent
        _send_and_leave(door, n, body, part, (n * 7 % 10) / 1000)
        status, answer = door.send(n + 1, body)
        assert status == 200
        assert answer["accepted_count"] + answer["duplicate_count"] == 2
        tokens.append(answer["max_visibility_token"])

    found = door.seen(tokens[-1])
    assert found == [(n, m) for n in range(40) for m in (1, 2)]


def _send_and_leave(door: Door, at: int, body: bytes, part: int, after_s: float) -> None:
    head = (
        f"POST /v1/ingest/{door.orders} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key('admin')}\r\n"
        f"Content-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", door.pods[at % 2].port), 10) as connection:
        connection.sendall(head.encode() + body[:part])
        time.sleep(after_s)  # not waiting for anything: the moment of leaving is what varies
        # Close with a reset, as a killed client does.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_past_the_pending_limit_writes_are_refused_until_the_lake_takes_rows_again(
    lake: Lake,
) -> None:
    with tenant_of(lake) as tenant:
        pod = await asyncio.to_thread(tenant.ingest, DUCKMESH_PENDING_BYTES=str(2**20))
        door = Door(lake, (pod, pod), "orders", "")
        assert pod.call("POST", "/v1/tables", {"name": "orders", "columns": COLUMNS})[0] == 201
        accepted: list[int] = []
        bodies = itertools.count()

        def send() -> tuple[int, Any]:
            first = next(bodies) * 5_000
            numbers: list[object] = list(range(first, first + 5_000))
            status, answer = door.send(0, arrow_stream({"id": numbers, "n": numbers}), ARROW)
            if status == 200:
                accepted.extend(range(first, first + 5_000))
            return status, answer

        async def send_until(wanted: int) -> Any:
            async with asyncio.timeout(30):
                status, answer = await asyncio.to_thread(send)
                while status != wanted:
                    status, answer = await asyncio.to_thread(send)
            return answer

        holder = await asyncpg.connect(lake.catalog_dsn)
        try:
            # Whoever holds this row holds up every commit of the lake, not what it accepts.
            await holder.execute("BEGIN; SELECT FROM duckmesh.lake_status FOR UPDATE")
            answer = await send_until(429)
            assert (answer["error_code"], answer["retryable"]) == ("OVERLOADED", True)
            assert pod.is_ready()
        finally:
            await holder.close()

        token = (await send_until(200))["max_visibility_token"]
        assert door.seen(token) == [(i, i) for i in accepted]
