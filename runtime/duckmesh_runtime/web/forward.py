"""Passing `/v1/query` on to the query Service, streamed, so that one URL serves the whole API (ingest only)."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import web

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.web.errors import traceparent

logger = logging.getLogger(__name__)

_UP: Final = ("Authorization", "Accept", "Content-Type")
_DOWN: Final = ("Content-Type", "Content-Length", "Retry-After", "WWW-Authenticate")
_CONNECT_S: Final = 3.0
_TRIES: Final = 2  # a query changes nothing, so one that found a closing connection may go again
# The query process keeps the deadline of the statement (an hour at most); this is for one that vanished.
_SILENCE_S: Final = 3_700.0


class QueryForward:
    """A client of the query Service; `close` it at the end."""

    def __init__(self, base_url: str) -> None:
        self._url = base_url.rstrip("/") + "/v1/query"
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Ask the query Service and stream its answer; ends there too when the client here goes away.

        Raises:
            Unavailable: QUERY_UNAVAILABLE when no query process answers.
        """
        async with await self._ask(request, body) as found:
            response = web.StreamResponse(status=found.status)
            for name, value in found.headers.items():
                if name in _DOWN or name.startswith("X-Duckmesh-"):
                    response.headers[name] = value
            await response.prepare(request)
            try:
                async for chunk in found.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            except aiohttp.ClientPayloadError:
                logger.warning("query answer broke off")
                abort(request)
            return response

    async def _ask(self, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
                ),
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0),
            )
        headers = {n: request.headers[n] for n in _UP if n in request.headers}
        headers["traceparent"] = traceparent()
        failure: Exception | None = None
        for _ in range(_TRIES):
            try:
                return await self._session.post(self._url, data=body, headers=headers)
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                failure = error
        raise Unavailable(
            "QUERY_UNAVAILABLE", "no query process answers: repeat in a second", retry_after_s=1
        ) from failure


def abort(request: web.Request) -> None:
    """Break the connection, so that a cut answer cannot be taken for a whole one."""
    with suppress(Exception):  # the client may be gone already
        if request.transport is not None:
            request.transport.abort()
