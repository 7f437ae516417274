"""A running HTTP server with services in memory; the fixtures are in tests/unit/runtime/conftest.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.settings import IngestLimits, QueryLimits, Settings, StoreSettings
from duckmesh_runtime.web.app import Server, build_api, build_metrics
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.health import Health
from duckmesh_runtime.web.parts import Parts
from tests.fakes.doors import (
    LAKE,
    FakeBarrier,
    FakeBus,
    FakeCommitter,
    FakeIngest,
    FakeQuery,
    FakeTables,
    key,
)

ADMIN = ["ingest_writer", "query_reader", "table_admin", "ops_admin"]
KEYS = {"admin": ADMIN, "nobody": [], **{role.replace("_", "-"): [role] for role in ADMIN}}
EVENTS = {"name": "events", "columns": [{"name": "id", "type": "BIGINT"}]}


@dataclass
class Doors:
    """The server under test and what is behind it."""

    parts: Parts
    ingest: FakeIngest
    barrier: FakeBarrier
    query: FakeQuery
    committer: FakeCommitter
    session: aiohttp.ClientSession
    url: str
    metrics_url: str

    async def call(
        self, method: str, path: str, *, as_key: str | None = "admin", **options: Any
    ) -> tuple[int, Any, aiohttp.ClientResponse]:
        """Status, body (JSON if it is), answer."""
        headers = dict(options.pop("headers", {}))
        if as_key is not None:
            headers.setdefault("Authorization", f"Bearer {key(as_key)}")
        async with self.session.request(
            method, self.url + path, headers=headers, **options
        ) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, (await answer.json() if is_json else body), answer


def make_settings(auth_dir: Path) -> Settings:
    """Settings with small limits."""
    return Settings(
        tenant="ns/t",
        lake=LAKE,
        store=StoreSettings(url="file:///nowhere/"),
        auth_dir=auth_dir,
        ingest=IngestLimits(body_bytes=100_000),
        query=QueryLimits(result_bytes=50_000, rows=1000, timeout_ms=5000),
    )


def make_parts(settings: Settings) -> Parts:
    """All parts of a laptop's one process, in memory, with the table `events`."""
    made = Parts(settings=settings, keys=KeyRing(settings.auth_dir), health=Health())
    made.health.started = True
    ingest = FakeIngest()
    ingest.known["events"] = parse_table(EVENTS)
    made.ingest, made.tables = ingest, FakeTables(ingest)
    made.bus, made.barrier = FakeBus(), FakeBarrier()
    made.query, made.committer = FakeQuery(), FakeCommitter()
    return made


async def serve(parts: Parts, role: str = "ingest", answer_s: float = 1) -> AsyncIterator[Doors]:
    """Run a server over the parts on free ports of loopback; at its end, calls under way get `answer_s`."""
    server = Server(
        build_api(parts, role=role),
        build_metrics(parts),
        bind="127.0.0.1",
        api_port=0,
        metrics_port=0,
        answer_s=answer_s,
    )
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            api, metrics = server.ports
            yield Doors(
                parts=parts,
                ingest=parts.ingest,
                barrier=parts.barrier,
                query=parts.query,
                committer=parts.committer,
                session=session,
                url=f"http://127.0.0.1:{api}",
                metrics_url=f"http://127.0.0.1:{metrics}",
            )
    finally:
        await server.close()
