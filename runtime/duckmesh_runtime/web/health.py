"""Probes and metrics: `/v1/health`, `/v1/ready`, `/metrics`; open to anyone who reaches the port.

Ready means started, migrated and not draining. What the process depends on is shown in the body and never in the
status: an outage of the object store must not take the ack path away, and an outage of Postgres must give a catalogued
503 rather than a refused connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.metrics import REGISTRY
from duckmesh_runtime.web.errors import json_response

Check = Callable[[], Awaitable[None]]

_KEEP_S: Final = 2.0  # open to anyone, so a check costs the catalog at most one query in this time
_CHECK_S: Final = 1.5


class Health:
    """State of the process for probes.

    Attributes:
        started: The services run and the lake is migrated.
        draining: The process is ending.
        checks: Per dependency a coroutine that raises when it does not answer.
        before_scrape: Brings figures up to date that others change too; what it does not bring in time is shown as before.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self.checks: Mapping[str, Check] = {}
        self.before_scrape: Check | None = None
        self._seen: dict[str, str] = {}
        self._seen_at = float("-inf")
        self._lock = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether this process should get requests."""
        return self.started and not self.draining

    async def dependencies(self) -> dict[str, str]:
        """`ok` or `unavailable` per dependency, at most two seconds old."""
        async with self._lock:
            # What was seen before the parts were there says nothing of them.
            if (
                self._seen.keys() != self.checks.keys()
                or time.monotonic() - self._seen_at > _KEEP_S
            ):
                states = await asyncio.gather(*(_state(check) for check in self.checks.values()))
                self._seen = dict(zip(self.checks, states, strict=True))
                self._seen_at = time.monotonic()
        return self._seen


async def _state(check: Check) -> str:
    try:
        async with asyncio.timeout(_CHECK_S):
            await check()
    except (DuckmeshError, TimeoutError, OSError):
        return "unavailable"
    return "ok"


def handlers(health: Health) -> dict[str, Callable[[web.Request], Awaitable[web.Response]]]:
    """The open handlers by path; the API port serves all but `/metrics`."""

    async def live(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        body = {
            "status": "ok" if health.ready else ("draining" if health.draining else "starting"),
            "dependencies": await health.dependencies(),
        }
        return json_response(body, status=200 if health.ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        if health.before_scrape is not None:
            await _state(health.before_scrape)
        text = await asyncio.to_thread(generate_latest, REGISTRY)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return {"/v1/health": live, "/v1/ready": ready, "/metrics": metrics}
