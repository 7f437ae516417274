"""The slots of a sandbox: as many run statements as configured, handed out first come, first served.

One more stands by: a start takes half a second of processor and more, and nobody is to wait for that when a slot was
killed. The one that stands by has run nothing, so it holds what any slot holds at its start; it is taken only when no
used one is idle, so never more than `concurrency` processes hold the memory of statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.sandbox.child import Child, ChildSettings
from duckmesh_runtime.sandbox.limits import CORES

logger = logging.getLogger(__name__)

RECYCLE_AFTER: Final = 20_000
"""Statements after which a slot is replaced in any case; one that grows is before (`Child.worn`)."""

_WAITING_PER_SLOT: Final = 16
_SPARE: Final = 1
_STARTS_AT_ONCE: Final = max(1, CORES // 2)
"""More would take the processor from each other and from statements, and the first be ready later."""

_LONGEST_DELAY_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One who waits for a slot."""

    catalog_path: str
    slot: asyncio.Future[Child]


class Pool:
    """Keeps slots running while `run` runs.

    Args:
        concurrency: How many statements run at once.
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
        self._taken = 0
        self._idle: list[Child] = []
        self._waiting: deque[_Place] = deque()
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._calm = (
            asyncio.Event()
        )  # a start takes nothing from a statement, or somebody waits for it
        self._calm.set()

    @property
    def taken(self) -> int:
        """Slots that are at work."""
        return self._taken

    async def run(self) -> None:
        """Start all slots and replace each that ends, until cancelled; then end them."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._concurrency + _SPARE):
                    tasks.create_task(self._keep())
        finally:
            self._closed = True
            for place in self._waiting:
                if not place.slot.done():
                    place.slot.set_exception(_stopping())

    async def take(self, *, catalog_path: str, data_url: str) -> Child:
        """A slot for one statement, preferably one that has the catalog attached; `give` must follow.

        Raises:
            Limited: OVERLOADED when too many wait already.
            Unavailable: QUERY_UNAVAILABLE when the pool ends.
        """
        while True:
            child = await self._wait(catalog_path)
            if child.alive and child.data_url in (None, data_url):
                child.data_url, child.catalog_path = data_url, catalog_path
                child.served += 1
                return child
            child.kill()  # locked to another read proxy: its replacement is not
            self._release(child)

    def take_idle(self, *, catalog_path: str, data_url: str) -> Child | None:
        """A slot that is to attach a catalog which jobs will name, or None; `give` must follow.

        Not the one that was used last: jobs of the catalog before are its. Not one more than may run statements.
        """
        if self._closed or self._waiting or not self._free():
            return None
        used = [child for child in self._idle if child.catalog_path is not None]
        unused = [child for child in self._idle if child.catalog_path is None]
        found = used[:-1]
        if self._taken + len(used) < self._concurrency:
            found += unused
        for child in found:
            if child.alive and child.data_url in (None, data_url):
                self._idle.remove(child)
                self._taken += 1
                child.data_url, child.catalog_path = data_url, catalog_path
                return child
        return None

    def give(self, child: Child) -> None:
        """Hand a slot back after its statement; one that is killed or worn out is replaced."""
        if child.alive and (child.served >= self._recycle_after or child.worn):
            child.kill()
        self._release(child)

    async def _wait(self, catalog_path: str) -> Child:
        if self._closed:
            raise _stopping()
        if not self._free() and len(self._waiting) >= self._concurrency * _WAITING_PER_SLOT:
            raise Limited(
                "OVERLOADED",
                "too many queries wait for a query process: repeat a little later",
                retry_after_s=1,
            )
        slot: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        place = _Place(catalog_path=catalog_path, slot=slot)
        self._waiting.append(place)
        self._hand_out()
        try:
            return await slot
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not slot.cancelled() and slot.exception() is None:
                self._release(slot.result())  # it came in the same moment: pass it on
            raise

    def _release(self, child: Child) -> None:
        self._taken -= 1
        if child.alive:
            self._idle.append(child)
        self._hand_out()

    def _free(self) -> bool:
        return bool(self._idle) and self._taken < self._concurrency

    def _hand_out(self) -> None:
        while self._waiting and self._free():
            place = self._waiting.popleft()
            if not place.slot.done():
                self._taken += 1
                place.slot.set_result(self._pick(place.catalog_path))
        if self._waiting or not self._taken:
            self._calm.set()
        else:
            self._calm.clear()

    def _pick(self, catalog_path: str) -> Child:
        """Of the idle ones the best: it has the catalog attached, or was used last; one that was never used comes last."""
        same = [i for i, child in enumerate(self._idle) if child.catalog_path == catalog_path]
        used = [i for i, child in enumerate(self._idle) if child.catalog_path is not None]
        return self._idle.pop((same or used or [-1])[-1])

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with self._starts:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LONGEST_DELAY_S):
                            await self._calm.wait()
                    child = await Child.start(self._settings)
            except OSError:  # TimeoutError is one
                logger.exception("slot does not start", extra={"pause_s": pause_s})
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _FIRST_PAUSE_S
            self._settings = replace(self._settings, checked=True)
            await self._live(child)

    async def _live(self, child: Child) -> None:
        self._idle.append(child)
        self._hand_out()
        try:
            status = await child.ended()
        except asyncio.CancelledError:
            child.kill()
            await child.ended()
            raise
        finally:
            if child in self._idle:
                self._idle.remove(child)
        if child.words:
            logger.warning("slot ended with words", extra={"slot": child.pid, "words": child.words})
        logger.info("slot ended", extra={"status": status, "served": child.served})


def _stopping() -> Unavailable:
    return Unavailable("QUERY_UNAVAILABLE", "the query processes are stopping: repeat")
