"""The memory of request bodies is bounded by what they become, not by what was sent."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.web.body import BodyBudget


@pytest.mark.parametrize(
    ("growth", "said"),
    [
        pytest.param(1, "600 bytes", id="columns stay what they are"),
        pytest.param(24, "OVERLOADED", id="JSON grows"),
        pytest.param(1_000_000, "OVERLOADED", id="grows past all memory"),
    ],
)
async def test_a_body_counts_as_what_it_becomes(growth: int, said: str) -> None:
    budget = BodyBudget(1_000, total_bytes=4_000)

    answer = await _post(budget, b"x" * 600, growth)

    assert said in answer
    assert budget.used_bytes == 0


async def test_the_largest_body_is_one_of_sent_bytes() -> None:
    budget = BodyBudget(1_000, total_bytes=10**9)

    assert "1000 bytes" in await _post(budget, b"x" * 1_000, 24)
    assert "PAYLOAD_TOO_LARGE" in await _post(budget, b"x" * 1_001, 24)


async def _post(budget: BodyBudget, body: bytes, growth: int) -> str:
    async def handler(request: web.Request) -> web.Response:
        try:
            async with budget.read(request, growth=growth) as read:
                return web.Response(text=f"{len(read)} bytes")
        except DuckmeshError as error:
            return web.Response(text=error.code)

    app = web.Application()
    app.router.add_post("/", handler)
    async with TestClient(TestServer(app)) as client, client.post("/", data=body) as answer:
        return await answer.text()
