"""The process `duckmesh sandbox`: settings, log, signals, and the supervisor."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping

from duckmesh_runtime import log
from duckmesh_runtime.sandbox.supervisor import serve
from duckmesh_runtime.settings import SandboxSettings, sandbox_from_env

logger = logging.getLogger(__name__)


def run(env: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    settings = sandbox_from_env(env)
    # It runs what a tenant wrote and is told no more than it needs, so not even whose it is.
    log.configure(
        log_format=settings.log_format, level=settings.log_level, service="sandbox", tenant=""
    )
    asyncio.run(_until_signal(settings))
    return 0


async def _until_signal(settings: SandboxSettings) -> None:
    serving = asyncio.create_task(
        serve(
            settings.socket,
            settings.catalog_dir,
            concurrency=settings.concurrency,
            memory_bytes=settings.memory_bytes,
            timeout_ms=settings.timeout_ms,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        logger.info("sandbox ends")
