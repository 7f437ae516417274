"""The HTTP server of `serve`: the routes behind their keys, and two ports. Filled and run by `wiring`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from duckmesh_runtime import log
from duckmesh_runtime.errors import DuckmeshError, Invalid, Unauthorized
from duckmesh_runtime.web import health, nudge
from duckmesh_runtime.web.audit import IDENTITY
from duckmesh_runtime.web.auth import check_role
from duckmesh_runtime.web.errors import (
    TRACE,
    TRACE_HEADER,
    catalogued,
    error_response,
    internal,
    trace_of,
)
from duckmesh_runtime.web.openapi import Route
from duckmesh_runtime.web.parts import PARTS, Parts, parts_of
from duckmesh_runtime.web.routes import ANYONE, INTERNAL, ROUTES, routes_of

__all__ = ["ANYONE", "INTERNAL", "ROUTES", "Route", "Server", "build_api", "build_metrics"]

logger = logging.getLogger(__name__)

Expecting = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

_HEADER_BYTES: Final = 8_190  # of one header line; a bearer key has 70, a token 90
_HEADERS: Final = 64
_KEEP_ALIVE_S: Final = 120.0
"""Longer than clients and proxies keep an idle connection (Go 90 s, load balancers 60 s): the side that closes first never
closes on a request that is on its way."""
_BACKLOG: Final = (
    4_096  # thousands come back at once when a process ends; the kernel's somaxconn bounds it too
)
_LINGER_S: Final = 2.0  # reading on after an early answer (413), so that the client sees it


def build_api(parts: Parts, *, role: str) -> web.Application:
    """The application of the API port; `role` is `ingest` or `query`."""
    app = web.Application(middlewares=[catalogued])
    app[PARTS] = parts
    routes = routes_of(role, parts.health)
    for route in routes:
        if route.operation is not None and route.operation.open:
            app.router.add_route(route.method, route.path, route.handler)
        else:
            app.router.add_route(
                route.method, route.path, _guarded(route), expect_handler=_expecting(route)
            )
    # Else the last part of such a path would be taken for what another route names there.
    for path in {route.path for route in routes if "{" not in route.path}:
        app.router.add_route("*", path, _not_allowed(path, routes))
    app.on_response_prepare.append(_finish)
    app.on_shutdown.append(_end_streams)
    return app


def build_metrics(parts: Parts) -> web.Application:
    """The application of the metrics port: metrics and probes, no keys."""
    app = web.Application(middlewares=[catalogued])
    for path, handler in health.handlers(parts.health).items():
        app.router.add_get(path, handler, allow_head=False)
    app.on_response_prepare.append(_finish)
    return app


def _not_allowed(path: str, routes: Sequence[Route]) -> Handler:
    methods = [route.method for route in routes if route.path == path]

    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return handler


def _guarded(route: Route) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            _check_caller(route, request)
            return await route.handler(request)
        except DuckmeshError as error:
            _check_told(route, error)
            raise

    return handler


def _check_told(route: Route, error: DuckmeshError) -> None:
    """Note a failure that the API's description does not tell of this call."""
    if route.operation is not None and error.code not in route.operation.all_codes:
        told = {"method": route.method, "route": route.path, "error_code": error.code}
        logger.error("code is not described for this call", extra=told)


def _check_caller(route: Route, request: web.Request) -> None:
    parts = parts_of(request)
    if route.roles:
        request[IDENTITY] = parts.keys.identify(request.headers)
        check_role(request[IDENTITY], route.roles)
    else:
        parts.keys.check_internal(request.headers, nudge.HEADER, parts.settings.lake)


def _expecting(route: Route) -> Expecting:
    """Answer `Expect: 100-continue`: whose key is not good need not send the body."""

    async def expect(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Expect", "").lower() != "100-continue":
            return error_response(
                Invalid("VALIDATION_FAILED", "Expect: want 100-continue"), status=417
            )
        with suppress(Unauthorized):  # the handler says so
            _check_caller(route, request)
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun
        return None

    return expect


async def _end_streams(app: web.Application) -> None:
    """Streams have no end of their own: the process is ending, and nobody should wait for them."""
    barrier = app[PARTS].barrier
    if barrier is not None:
        barrier.hush()


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "duckmesh"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    if TRACE in request:
        response.headers[TRACE_HEADER] = request[TRACE]


class Server:
    """Both ports of a process.

    Args:
        api: Application of the API port.
        metrics: Application of the metrics port; None for none.
        bind: Address.
        api_port: 0 picks a free one.
        metrics_port: 0 picks a free one.
        answer_s: Seconds that requests under way get when the API port closes.
    """

    def __init__(
        self,
        api: web.Application,
        metrics: web.Application | None,
        *,
        bind: str,
        api_port: int,
        metrics_port: int,
        answer_s: float,
    ) -> None:
        self._bind = bind
        self._answer_s = answer_s
        self._wanted = [(api, api_port)] + ([(metrics, metrics_port)] if metrics else [])
        self._runners: list[_Runner] = []

    @property
    def ports(self) -> list[int]:
        """The ports listened on: API, then metrics."""
        return [int(runner.addresses[0][1]) for runner in self._runners]

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: A port is taken.
        """
        for app, port in self._wanted:
            runner = _Runner(
                app,
                handler_cancellation=True,  # a query whose client went away must not run on
                access_log=None,
                shutdown_timeout=self._answer_s,
                auto_decompress=False,  # web/body.py does it, with bounds
                max_line_size=_HEADER_BYTES,
                max_field_size=_HEADER_BYTES,
                max_headers=_HEADERS,
                keepalive_timeout=_KEEP_ALIVE_S,
                lingering_time=_LINGER_S,
            )
            self._runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, self._bind, port, backlog=_BACKLOG).start()

    async def stop_intake(self) -> None:
        """Take no more connections on the API port, close idle ones, let running requests be answered."""
        if self._runners:
            await self._runners[0].cleanup()

    async def close(self) -> None:
        """Close both ports and what is left of their connections. Safe to repeat."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners = []


class _Runner(web.AppRunner):
    """An AppRunner whose every answer is of the catalogue, also to what is no HTTP request at all."""

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server())


class _Server(web.Server):
    """Makes our connections instead of aiohttp's own; everything else is as the given server has it."""

    def __init__(self, made: web.Server) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """A connection that answers malformed HTTP from the catalogue."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never reached a handler; always closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way: there can be no second one")
        trace = trace_of(CIMultiDict(request.headers))
        mark = log.trace_id.set(trace)
        try:
            if (
                status < 500
            ):  # anyone can send these: no more than a debug line, without their words
                error: DuckmeshError = Invalid(
                    "VALIDATION_FAILED", "request: is not well-formed HTTP/1.1"
                )
                logger.debug("malformed request", extra={"error_code": error.code})
            else:
                error = internal()
                logger.error(
                    "request failed outside of its handler",
                    exc_info=exc,
                    extra={"error_code": error.code},
                )
            response = error_response(error, status=status)
        finally:
            log.trace_id.reset(mark)
        response.headers[TRACE_HEADER] = trace
        response.headers["Server"] = "duckmesh"
        response.force_close()
        return response
