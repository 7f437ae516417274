"""Clients that write to two ingest replicas while these are killed, and the check that every row is there once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from duckmesh_runtime.domain.tokens import parse_token
from tests.bench.client import Client
from tests.fakes.doors import key
from tests.lakes import LakeView
from tests.pods import Pod
from tests.services import Lake

TABLE = {"name": "orders", "columns": [{"name": "id", "type": "BIGINT", "nullable": False}]}
ROWS = 3
CLIENTS = 12
PAUSE_S = 0.02
ANSWER_S = 5.0


@dataclass(slots=True)
class Load:
    """Clients that write small requests; each goes to the other replica when one does not answer.

    Attributes:
        clients: One a replica.
        tries: How often a request may be sent; what fails as often is a problem.
        accepted: Ids of all rows sent: each is acknowledged in the end.
        tokens: Of all acks.
        retried: Requests sent again.
        longest_gap_s: Between two acks, of whichever client.
    """

    clients: list[Client]
    tries: int = 2
    sent: int = 0
    accepted: set[int] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)
    retried: int = 0
    problems: list[str] = field(default_factory=list)
    last_ack: float = 0.0
    longest_gap_s: float = 0.0

    async def one(self, number: int, stop: asyncio.Event) -> None:
        """One client: its next request leaves a little after the last answer."""
        at = number
        while not stop.is_set():
            ids = range(self.sent * ROWS, self.sent * ROWS + ROWS)
            self.sent += 1
            found = [{"idempotency_key": f"k{i}", "payload": {"id": i}} for i in ids]
            body = json.dumps({"records": found}).encode()
            for turn in range(self.tries):
                if await self._post(at, body):
                    break
                self.retried += 1
                at += 1
                if turn:
                    await asyncio.sleep(PAUSE_S * min(turn, 20))
            else:
                self.problems.append(f"the request for {ids} was not answered")
            self.accepted.update(ids)
            await asyncio.sleep(PAUSE_S)

    async def _post(self, at: int, body: bytes) -> bool:
        try:
            async with asyncio.timeout(
                ANSWER_S
            ):  # a stopped process takes connections and never answers
                status, answer = await self.clients[at % 2].post("/v1/ingest/orders", body)
        except OSError:
            return False
        told = json.loads(answer)
        if status == 200:
            assert told["accepted_count"] + told["duplicate_count"] == ROWS
            self.tokens.append(told["max_visibility_token"])
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - (self.last_ack or now))
            self.last_ack = now
            return True
        assert told["retryable"], told
        return False

    def last_number(self, lake: Lake) -> int:
        return max(parse_token(t, lake=lake.name, timeline=1).number for t in self.tokens)


@asynccontextmanager
async def load_on(
    pods: Sequence[Pod], *, tries: int = 2, longest_s: float = 60
) -> AsyncIterator[Load]:
    """Load until the block ends; then every request has its answer."""
    load = Load([Client(pod.url, key("admin")) for pod in pods], tries)
    stop = asyncio.Event()
    try:
        async with asyncio.timeout(longest_s), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(load.one(number, stop))
            try:
                yield load
            finally:
                stop.set()
    finally:
        for client in load.clients:
            client.close()


async def acked(load: Load, more: int) -> None:
    """Wait for so many further acks."""
    want = len(load.tokens) + more
    while len(load.tokens) < want:
        await asyncio.sleep(0.01)


async def check_rows(lake: Lake, load: Load) -> None:
    """Every acknowledged row is there, once."""
    view = LakeView(lake)
    await view.visible(load.last_number(lake), 30)
    found = await asyncio.to_thread(view.ids, "orders")
    assert sorted(load.accepted) == found
    assert load.problems == []
