from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from duckmesh_operator import kube
from duckmesh_operator.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OperatorError,
    Unavailable,
)
from duckmesh_operator.kube import KubeApi, TokenBucket, error_of
from duckmesh_operator.names import CONFIG_MAP, SERVICE, TENANT
from tests.tenants import tenant_object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An API server of one handler."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.answer: Handler = self._echo

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        query = dict(request.query) | {"type": request.headers.get("Content-Type", "")}
        self.seen.append((request.method, request.path, query, body))
        return await self.answer(request)

    async def _echo(self, _: web.Request) -> web.Response:
        return web.json_response(self.seen[-1][3] or {})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]  # type: ignore[attr-defined]
    yield made
    await runner.cleanup()


def kubeconfig(folder: Path, port: int) -> Path:
    file = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
async def api(server: Server, tmp_path: Path) -> AsyncIterator[KubeApi]:
    async with kube.connect(kubeconfig(tmp_path, server.port)) as made:  # type: ignore[attr-defined]
        yield made


async def test_apply_is_forced_server_side_apply_under_our_name(
    api: KubeApi, server: Server
) -> None:
    await api.apply(tenant_object(), subresource="status")

    method, path, query, body = server.seen[0]
    assert method == "PATCH"
    assert path == "/apis/duckmesh.io/v1alpha1/namespaces/team/tenants/acme/status"
    assert query == {
        "fieldManager": "duckmesh",
        "force": "true",
        "type": "application/apply-patch+yaml",
    }
    assert body["metadata"]["name"] == "acme"


async def test_a_list_is_read_page_by_page(api: KubeApi, server: Server) -> None:
    pages = [
        {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "a"}}]},
        {"metadata": {}, "items": [{"metadata": {"name": "b"}}]},
    ]

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(pages[len(server.seen) - 1])

    server.answer = answer
    found = await api.list(TENANT, None, {"a": "b", "c": "d"})

    assert [one["metadata"]["name"] for one in found] == ["a", "b"]  # type: ignore[index]
    assert {one["kind"] for one in found} == {"Tenant"}
    assert [seen[2].get("continue", "") for seen in server.seen] == ["", "more"]
    assert server.seen[0][2]["labelSelector"] == "a=b,c=d"


async def test_what_anyone_may_make_large_comes_in_smaller_pages(
    api: KubeApi, server: Server
) -> None:
    for kind in (SERVICE, CONFIG_MAP):
        await api.list(kind, None)

    services, config_maps = [int(query["limit"]) for _, _, query, _ in server.seen]
    assert config_maps < services


@pytest.mark.parametrize(
    ("live", "there"), [("u1", True), ("u2", False), (None, False)], ids=["same", "other", "gone"]
)
async def test_a_refused_delete_is_done_only_where_the_object_is_another_or_gone(
    api: KubeApi, server: Server, live: str | None, there: bool
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        if request.method == "DELETE":
            return web.json_response({"message": "busy"}, status=409)
        if live is None:
            return web.json_response({}, status=404)
        return web.json_response({"metadata": {"name": "acme-ingest", "uid": live}})

    server.answer = refuse
    refused = False
    try:
        await api.delete(SERVICE, "team", "acme-ingest", "u1")
    except Conflict:
        refused = True

    assert refused is there


async def test_a_delete_names_the_very_object(api: KubeApi, server: Server) -> None:
    await api.delete(SERVICE, "team", "acme-ingest", "u1")

    assert server.seen[0][0] == "DELETE"
    assert server.seen[0][3]["preconditions"] == {"uid": "u1"}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Invalid),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (422, Invalid),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_each_status_is_one_of_our_errors(
    api: KubeApi, server: Server, status: int, error: type[OperatorError]
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(
            {"reason": "Because", "message": "of this"}, status=status, headers={"Retry-After": "7"}
        )

    server.answer = answer
    with pytest.raises(error) as caught:
        await api.get(SERVICE, "team", "x")

    assert "of this" in str(caught.value)
    if isinstance(caught.value, Unavailable):
        assert caught.value.retry_after_s == 7


@pytest.mark.parametrize("status", [429, 500, 504])
async def test_what_may_be_done_twice_outlives_two_failures(
    api: KubeApi, server: Server, status: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, status=200 if len(server.seen) % 3 == 0 else status)

    server.answer = answer
    await api.get(SERVICE, "team", "x")
    await api.apply(tenant_object())
    await api.delete(SERVICE, "team", "x", "u1")

    assert [seen[0] for seen in server.seen] == ["GET"] * 3 + ["PATCH"] * 3 + ["DELETE"] * 3


async def test_a_replace_that_failed_is_left_to_the_next_look(api: KubeApi, server: Server) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({}, status=500)

    server.answer = answer
    with pytest.raises(Unavailable):
        await api.replace(tenant_object())

    assert len(server.seen) == 1


async def test_a_proxys_page_is_unavailable(api: KubeApi, server: Server) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>")

    server.answer = answer
    with pytest.raises(Unavailable):
        await api.get(SERVICE, "team", "x")


async def test_a_request_that_hangs_ends(
    api: KubeApi, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "REQUEST_TIMEOUT_S", 0.05)
    release = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    server.answer = answer
    with pytest.raises(Unavailable, match="TimeoutError"):
        await api.get(SERVICE, "team", "x")
    release.set()


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with kube.connect(kubeconfig(tmp_path, 1)) as api:
        with pytest.raises(Unavailable):
            await api.get(SERVICE, "team", "x")


async def test_no_credentials_are_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="kubeconfig"):
        async with kube.connect(tmp_path / "absent"):
            pass
    with pytest.raises(Unavailable, match="service account"):
        async with kube.connect(None):
            pass


def test_the_body_may_ask_for_a_pause_too() -> None:
    error = error_of(503, {}, {"details": {"retryAfterSeconds": 3}}, "GET /x")

    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 3


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    now = [0.0]
    bucket = TokenBucket(50, 100, lambda: now[0])

    waits = [bucket.reserve() for _ in range(150)]

    assert waits[:100] == [0.0] * 100
    assert waits[149] == pytest.approx(1.0)
    now[0] = 10.0
    assert bucket.reserve() == 0.0
