"""Both clients over a service that is made of one function, and a clock that only pauses move."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest

from duckmesh import AsyncClient, Client, steps

URL = "http://lake.test:8080"
KEY = "dmk_admin_" + "5" * 64

Answer = httpx.Response | Exception
Handler = Callable[[httpx.Request], Answer]


@dataclass
class Service:
    """What is sent, what is answered, and how long the client paused.

    Attributes:
        answers: For the next requests in turn; the last one stays.
        requests: What came.
        pauses: Seconds.
    """

    kind: str
    answers: list[Answer] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    now: float = 1000.0

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        # A client binds an answer to itself: give each its own.
        return httpx.Response(found.status_code, headers=found.headers, stream=found.stream)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def run(self, call: Callable[[Any], Any], **options: Any) -> Any:
        """What `call` of a client gives."""
        if self.kind == "sync":
            with Client(URL, KEY, transport=httpx.MockTransport(self.answer), **options) as client:
                return call(client)
        return asyncio.run(self._run(call, options))

    async def _run(self, call: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        transport = httpx.MockTransport(self.answer)
        async with AsyncClient(URL, KEY, transport=transport, **options) as client:
            found = call(client)
            return await found if inspect.isawaitable(found) else found


@pytest.fixture(params=["sync", "async"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service(request.param)

    async def asleep(seconds: float) -> None:
        found.pause(seconds)

    monkeypatch.setattr(steps, "monotonic", lambda: found.now)
    monkeypatch.setattr("duckmesh.api.monotonic", lambda: found.now)
    monkeypatch.setattr("duckmesh.client.time.sleep", found.pause)
    monkeypatch.setattr(anyio, "sleep", asleep)
    return found
