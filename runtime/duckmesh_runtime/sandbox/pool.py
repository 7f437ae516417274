"""The slots of a sandbox: always as many as configured, handed out first come, first served."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.sandbox.child import Child, ChildSettings

logger = logging.getLogger(__name__)

RECYCLE_AFTER: Final = 500
"""Statements after which a slot is replaced: what leaks in an engine stays bounded."""

_WAITING_PER_SLOT: Final = 16
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class Pool:
    """Keeps slots running while `run` runs.

    Args:
        concurrency: How many.
        settings: How each is started.
        recycle_after: See `RECYCLE_AFTER`.
    """

    def __init__(
        self, concurrency: int, settings: ChildSettings, *, recycle_after: int = RECYCLE_AFTER
    ) -> None:
        self._concurrency = concurrency
        self._settings = settings
        self._recycle_after = recycle_after
        self._closed = False
        self._idle: list[Child] = []
        self._waiting: deque[asyncio.Future[Child]] = deque()

    async def run(self) -> None:
        """Start all slots and replace each that ends, until cancelled; then end them."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._concurrency):
                    tasks.create_task(self._keep())
        finally:
            self._closed = True
            for place in self._waiting:
                if not place.done():
                    place.set_exception(_stopping())

    async def take(self, *, catalog_path: str, data_url: str) -> Child:
        """A slot for one statement, preferably one that has the catalog attached; `give` must follow.

        Raises:
            Limited: OVERLOADED when too many wait already.
            Unavailable: QUERY_UNAVAILABLE when the pool ends.
        """
        while True:
            child = self._pick(catalog_path) or await self._wait()
            if child.alive and child.data_url in (None, data_url):
                child.data_url, child.catalog_path = data_url, catalog_path
                child.served += 1
                return child
            child.kill()  # locked to another read proxy: its replacement is not

    def give(self, child: Child) -> None:
        """Hand a slot back after its statement; one that is killed or worn out is replaced."""
        if child.alive and child.served >= self._recycle_after:
            child.kill()
        if child.alive:
            self._offer(child)

    def _pick(self, catalog_path: str) -> Child | None:
        if not self._idle:
            return None
        # The most recently used is the warmest.
        same = [i for i, child in enumerate(self._idle) if child.catalog_path == catalog_path]
        return self._idle.pop(same[-1] if same else -1)

    async def _wait(self) -> Child:
        if self._closed:
            raise _stopping()
        if len(self._waiting) >= self._concurrency * _WAITING_PER_SLOT:
            raise Limited(
                "OVERLOADED",
                "too many queries wait for a query process: repeat a little later",
                retry_after_s=1,
            )
        place: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled() and place.exception() is None:
                self._offer(place.result())  # it came in the same moment: pass it on
            raise

    def _offer(self, child: Child) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(child)
                return
        self._idle.append(child)

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                child = await Child.start(self._settings)
            except OSError:  # TimeoutError is one
                logger.exception("slot does not start", extra={"pause_s": pause_s})
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _FIRST_PAUSE_S
            await self._live(child)

    async def _live(self, child: Child) -> None:
        self._offer(child)
        try:
            status = await child.ended()
        except asyncio.CancelledError:
            child.kill()
            await child.ended()
            raise
        finally:
            if child in self._idle:
                self._idle.remove(child)
        logger.info("slot ended", extra={"status": status, "served": child.served})


def _stopping() -> Unavailable:
    return Unavailable("QUERY_UNAVAILABLE", "the query processes are stopping: repeat")
