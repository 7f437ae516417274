"""Health, readiness and metrics over HTTP. Called by `__main__`; the process's only open port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from duckmesh_operator import metrics

_TICK_S: Final = 1.0


class Health:
    """What the probes answer.

    Args:
        alive: Problems that a restart cures; none means alive.
        ready: Problems that pass by themselves; none means ready. A standby is ready: it could take over.
    """

    def __init__(self, alive: Callable[[], list[str]], ready: Callable[[], list[str]]) -> None:
        self._alive = alive
        self._ready = ready

    @asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[int]:
        """Serve until the block ends; yields the port."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._alive())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer([*self._alive(), *self._ready()])

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=metrics.expose(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def watch_loop() -> None:
    """Measure until cancelled how late the event loop runs: late probes and lost leases begin there."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _TICK_S
        await asyncio.sleep(_TICK_S)
        metrics.loop_lagged(max(0.0, loop.time() - due))


def _answer(problems: list[str]) -> web.Response:
    if problems:
        return web.Response(status=503, text="\n".join(problems) + "\n")
    return web.Response(text="ok\n")
