"""A proxy before the API server that does what networks, overloaded servers and other people do.

It ends TLS with a certificate of the control plane's own authority, passes requests and watches on, and asks one function
about each request what is to happen to it. Everything it saw is in `calls`.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from duckmesh_operator.canary import NAME as CANARY
from duckmesh_runtime.dev.processes import free_port
from tests.controlplane.world import Plane

_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_DROPPED: Final = ("host", "accept-encoding", "transfer-encoding", "content-length", "connection")
#: Written again and again whatever happens to the resources.
_HUM: Final = ("leases", "events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request.

    Attributes:
        verb: As RBAC calls it.
        plural: The resource.
        namespace: Its namespace; empty for all.
        name: Its name; empty for a collection.
        subresource: `status` or empty.
        body: What was sent.
        count: For a write of a resource or child, which one it is since `reset`, from 1; else 0.
    """

    verb: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    body: bytes = b""
    count: int = 0

    @property
    def is_write(self) -> bool:
        return self.verb in _VERBS.values()

    def __str__(self) -> str:
        what = "/".join(part for part in (self.plural, self.name, self.subresource) if part)
        return f"{self.verb} {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a request; the default passes it on.

    Attributes:
        delay_s: First wait this long.
        forward: Let the API server carry it out.
        answer: Then answer with this status; None gives the API server's own answer.
        message: Of that answer.
        retry_after_s: Of that answer.
        cut: Then break the connection in place of any answer.
        then: Called at the end, before any answer leaves when there is none to leave, else after it.
    """

    delay_s: float = 0
    forward: bool = True
    answer: int | None = None
    message: str = "injected"
    retry_after_s: int | None = None
    cut: bool = False
    then: Callable[[], None] | None = None


PASS: Final = Fault()
LOST: Final = Fault(cut=True)
"""Carried out, and nobody is told."""
Rule = Callable[[Call], Fault]


def no_faults(_: Call) -> Fault:
    """Pass everything."""
    return PASS


@dataclass
class FaultProxy:
    """Between operators and the API server; made by `running_proxy`.

    Attributes:
        port: Where it listens.
        kubeconfig: Leads through it.
        rule: Asked about every request; may be changed at any time.
        deaf: Watches stay open and bring nothing; what happens meanwhile is lost to them.
        replay: Lists are answered as they were when they were last passed on.
        calls: All requests since `reset`.
    """

    upstream: str
    session: aiohttp.ClientSession
    port: int
    kubeconfig: Path
    rule: Rule = no_faults
    deaf: bool = False
    replay: bool = False
    calls: list[Call] = field(default_factory=list)
    _writes: int = 0
    _lists: dict[str, bytes] = field(default_factory=dict)
    _streams: set[asyncio.Future[bytes]] = field(default_factory=set)

    @property
    def writes(self) -> list[Call]:
        """Writes of resources and children since `reset`: no Leases, Events and canaries."""
        return [call for call in self.calls if call.count]

    def reset(self) -> None:
        self.calls.clear()
        self._writes = 0

    def end_watches(self, *, gone: bool) -> int:
        """End every open watch; returns how many there were.

        Args:
            gone: Say that its version is too old, as after a compaction; else the stream just ends.
        """
        count = len(self._streams)
        for stream in self._streams:
            stream.set_result(_GONE if gone else b"")
        self._streams.clear()
        return count

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.read()
        call = self._note(request, body)
        fault = self.rule(call)
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        try:
            if call.verb == "watch" and fault.forward and fault.answer is None:
                return await self._watch(request)
            answer = await self._answer(request, body, fault)
            if fault.cut:
                if fault.then is not None:
                    fault.then()
                return self._cut(request)
            if fault.then is not None:
                await answer.prepare(request)
                await answer.write_eof()
                fault.then()
            return answer
        except (aiohttp.ClientError, ConnectionError):
            return self._cut(request)

    def _note(self, request: web.Request, body: bytes) -> Call:
        call = parse_call(request.method, request.path, request.query, body)
        if call.is_write and call.plural not in _HUM and call.name != CANARY:
            self._writes += 1
            call = Call(
                verb=call.verb,
                plural=call.plural,
                namespace=call.namespace,
                name=call.name,
                subresource=call.subresource,
                body=body,
                count=self._writes,
            )
        self.calls.append(call)
        return call

    async def _answer(self, request: web.Request, body: bytes, fault: Fault) -> web.Response:
        answer: web.Response | None = None
        if fault.forward:
            answer = await self._forward(request, body)
        if fault.answer is not None or answer is None:
            return _refusal(fault)
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        key = request.path_qs
        is_list = request.method == "GET" and not parse_call("GET", request.path, {}, b"").name
        if is_list and self.replay and key in self._lists:
            return web.Response(body=self._lists[key], content_type="application/json")
        async with self._ask(request, body) as answer:
            data = await answer.read()
            if is_list and answer.status == 200:
                self._lists[key] = data
            return web.Response(status=answer.status, headers=_kept(answer.headers), body=data)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """Pass a stream on, event by event, until either side ends it."""
        end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._streams.add(end)
        try:
            async with self._ask(request, b"") as answer:
                response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
                await response.prepare(request)
                passing = asyncio.create_task(self._pass(answer, response))
                await asyncio.wait({end, passing}, return_when=asyncio.FIRST_COMPLETED)
                passing.cancel()
                await asyncio.wait({passing})
                if end.done():
                    with suppress(ConnectionError):
                        await response.write(end.result())
                return response
        finally:
            self._streams.discard(end)

    async def _pass(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        with suppress(ConnectionError, aiohttp.ClientError):
            async for line in answer.content:
                if not self.deaf:
                    await response.write(line)

    def _ask(self, request: web.Request, body: bytes) -> aiohttp.client._RequestContextManager:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _DROPPED}
        return self.session.request(
            request.method, self.upstream + request.path_qs, headers=headers, data=body or None
        )

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)


@dataclass
class FailSome:
    """A rule: a share of all requests but those of Leases and canaries goes wrong in one of five ways.

    Attributes:
        share: From 0 to 1.
        choice: Source of luck; a seed makes a run that can be repeated as far as the requests are the same.
        done: How many went wrong in which way.
    """

    share: float
    choice: random.Random
    done: dict[str, int] = field(default_factory=dict)

    def __call__(self, call: Call) -> Fault:
        if call.plural == "leases" or call.name == CANARY or self.choice.random() >= self.share:
            return PASS
        name = self.choice.choice([*FAILURES] if call.is_write else ["429", "500", "cut"])
        self.done[name] = self.done.get(name, 0) + 1
        return FAILURES[name]


FAILURES: Final[Mapping[str, Fault]] = {
    "429": Fault(forward=False, answer=429, retry_after_s=1),
    "500": Fault(forward=False, answer=500),
    "409": Fault(forward=False, answer=409),
    "cut": Fault(forward=False, cut=True),
    "applied, then 504": Fault(answer=504),
    "applied, then cut": LOST,
}


def parse_call(method: str, path: str, query: Mapping[str, str], body: bytes) -> Call:
    """Read a request as RBAC reads it: /api/v1/... and /apis/group/version/..., with or without a namespace."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = [*rest, "", "", ""][:3]
    verb = _VERBS.get(method) or ("get" if name else "list")
    if query.get("watch") in ("1", "true"):
        verb = "watch"
    return Call(
        verb=verb,
        plural=plural,
        namespace=namespace,
        name=name,
        subresource=subresource,
        body=body,
    )


@asynccontextmanager
async def running_proxy(plane: Plane, kubeconfig: Path) -> AsyncIterator[FaultProxy]:
    """A proxy in this event loop; writes the kubeconfig that leads through it."""
    plane.keys.sign_server("proxy")
    port = free_port()
    plane.keys.write_kubeconfig(kubeconfig, f"https://127.0.0.1:{port}")
    connector = aiohttp.TCPConnector(ssl=plane.keys.client_tls(), limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=2**24
    ) as session:
        proxy = FaultProxy(plane.url, session, port, kubeconfig)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=_server_tls(plane)).start()
            yield proxy
        finally:
            await runner.cleanup()


_GONE: Final = (
    json.dumps(
        {
            "type": "ERROR",
            "object": {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": "too old resource version",
                "reason": "Expired",
                "code": 410,
            },
        }
    ).encode()
    + b"\n"
)


def _refusal(fault: Fault) -> web.Response:
    status = fault.answer or 503
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    reasons = {403: "Forbidden", 409: "Conflict", 429: "TooManyRequests", 504: "Timeout"}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": fault.message,
        "reason": reasons.get(status, "InternalError"),
        "code": status,
    }
    return web.json_response(body, status=status, headers=headers)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key.lower() not in _DROPPED}


def _server_tls(plane: Plane) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*plane.keys.pair("proxy"))
    return context
