"""Telling the committer of this lake about accepted rows, when it is another replica: `POST /v1/internal/nudge`.

Only a hint: the committer polls the head row as well. Not part of the public API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from aiohttp import web

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.parts import parts_of

logger = logging.getLogger(__name__)

HEADER: Final = "X-Duckmesh-Internal"
PATH: Final = "/v1/internal/nudge"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=1.0)
_KEEP_ADDRESS_S: Final = 1.0


async def nudge(request: web.Request) -> web.StreamResponse:
    """Wake the committer of this process, if it is the one."""
    parts = parts_of(request)
    if parts.committer is not None:
        parts.committer.nudge()
    return web.Response(status=204)


class Nudger:
    """Sends at most one nudge at a time; rows accepted meanwhile are covered by the next.

    Args:
        keys: Give the secret that siblings know each other by.
        lake: The lake.
        find: Base URL of the committer's process, or None when it is unknown or this very one.
        keep_s: How long a found address is used before it is looked for again.
    """

    def __init__(
        self,
        keys: KeyRing,
        lake: str,
        find: Callable[[], Awaitable[str | None]],
        *,
        keep_s: float = _KEEP_ADDRESS_S,
    ) -> None:
        self._keep_s = keep_s
        self._keys = keys
        self._lake = lake
        self._find = find
        self._due = asyncio.Event()

    def send(self) -> None:
        """Ask for a nudge; returns at once."""
        self._due.set()

    async def run(self) -> None:
        """Send what is asked for, until cancelled."""
        loop = asyncio.get_running_loop()
        url: str | None = None
        found_at = float("-inf")
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                await self._due.wait()
                self._due.clear()
                try:
                    if loop.time() - found_at > self._keep_s:
                        url, found_at = await self._find(), loop.time()
                    if url is not None:
                        await self._post(session, url)
                except (aiohttp.ClientError, TimeoutError, DuckmeshError, OSError):
                    found_at = float("-inf")
                    logger.debug("nudge failed", exc_info=True)

    async def _post(self, session: aiohttp.ClientSession, url: str) -> None:
        headers = {HEADER: self._keys.internal_key(self._lake)}
        async with session.post(url + PATH, headers=headers) as answer:
            answer.raise_for_status()
