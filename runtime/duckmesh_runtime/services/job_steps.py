"""What the run of a Compactor's Job does after compaction: files that nothing names, and the check of all others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from duckmesh_runtime.domain.integrity import Mode
from duckmesh_runtime.ports import LakeCheck, LakeMaintenance, StoreInventory
from duckmesh_runtime.services import orphans
from duckmesh_runtime.services.integrity import IntegrityService
from duckmesh_runtime.services.orphans import Removal
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

WAIT_S: Final = 120.0
"""So long it is waited for the process that maintains the lake now: its rounds take seconds."""
PAUSE_S: Final = 2.0
"""Seconds between two tries to get the lease."""
TELL_S: Final = 10.0
"""Seconds between two lines about how far a check is."""


class Wanted(Protocol):
    """Of a run's settings, what counts here."""

    @property
    def orphans(self) -> str:
        """`None`, or a `Removal`."""
        ...

    @property
    def orphans_older_than_s(self) -> float:
        """How old by the store's clock files must be."""
        ...

    @property
    def integrity(self) -> str:
        """`None`, `Cheap` or `Deep`."""
        ...


Step = tuple[str, Callable[[], Awaitable[None]]]
"""A part of a run: its name and what it does."""


def steps_of(
    run: Wanted,
    *,
    open_check: Callable[[], AbstractAsyncContextManager[LakeCheck]],
    open_maintenance: Callable[[], AbstractAsyncContextManager[LakeMaintenance]],
    store: StoreInventory,
    stop: asyncio.Event,
) -> Sequence[Step]:
    """The steps that a run asks for; each ends early, without an error, when `stop` is set."""

    @asynccontextmanager
    async def lease() -> AsyncIterator[bool]:
        async with open_maintenance() as lake:
            yield await claimed(lake)

    async def look_for_orphans() -> None:
        async with open_check() as check:
            await orphans.run(
                check,
                store,
                lease=lease,
                removal=Removal(run.orphans),
                older_than_s=run.orphans_older_than_s,
            )

    async def check_integrity() -> None:
        service = IntegrityService(open_check, store)
        await service.check(Mode(run.integrity.lower()), Teller())

    steps: list[Step] = []
    if run.orphans != "None":
        steps.append(("orphans", lambda: unless(stop, look_for_orphans())))
    if run.integrity != "None":
        steps.append(("integrity", lambda: unless(stop, check_integrity())))
    return steps


async def claimed(
    lake: LakeMaintenance, *, wait_s: float = WAIT_S, pause_s: float = PAUSE_S
) -> bool:
    """Take or keep the lease, waiting for a holder that has a round to end."""
    until = time.monotonic() + wait_s
    while not await lake.claim():
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(pause_s)
    return True


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or give it up when `stop` is set.

    Raises:
        Exception: What the work raises.
    """
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            logger.info("given up: the run is told to end")
        await end(working)
    finally:
        stopping.cancel()
        working.cancel()


class Teller:
    """Logs how far a check is, now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + TELL_S

    def __call__(self, done: int, of: int) -> None:
        """Take note of how many files are done."""
        if self._clock() >= self._next:
            self._next = self._clock() + TELL_S
            logger.info("integrity", extra={"files_done": done, "files": of})
