"""Freezing ahead: while queries come, the newest catalog is made before the next of them asks for it.

`freeze` says how; this is when. A lake that nobody queries costs nothing, and a catalog database that is down is asked
once a second, while queries come, and told once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

_FOR_S: Final = 2.0
"""After the last query; who asks more seldom waits for a freeze as if there were nothing ahead."""

_EVERY_S: Final = 0.025
"""A look is one statement. With freeze and attaching (30 ms each) this stays below the 100 ms that a catalog is shared."""

_AFTER_FAILURE_S: Final = 1.0
_START_S: Final = 60.0
"""At a start the sandbox may come later than this process."""

_FIRST_S: Final = 2.0
"""Longest that a start waits for its first catalog, without which its first query would."""


class FreezeAhead:
    """When to look for a newer snapshot.

    Args:
        renew: Freezes the newest snapshot unless that is done; may fail. False when it did not look.
        prepare: Has a query process attach the newest catalog. False when none did.
    """

    def __init__(
        self, renew: Callable[[], Awaitable[bool]], prepare: Callable[[], Awaitable[bool]]
    ) -> None:
        self._renew = renew
        self._prepare = prepare
        self._asked_s = 0.0
        self._asked = asyncio.Event()
        self._begun = asyncio.Event()
        self._failed = False

    @property
    def busy(self) -> bool:
        """Whether queries came lately, so that it looks."""
        return self._asked.is_set()

    def asked(self) -> None:
        """A query has asked for the newest catalog."""
        self._asked_s = time.monotonic()
        self._asked.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Freeze ahead while the block runs, which begins when that was tried once."""
        task = asyncio.create_task(self._run())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_S):
                    await self._begun.wait()
            yield
        finally:
            await end(task)

    async def _run(self) -> None:
        await self._begin()
        while True:
            await self._asked.wait()
            if time.monotonic() - self._asked_s > _FOR_S:
                self._asked.clear()
                continue
            await asyncio.sleep(_AFTER_FAILURE_S if self._failed else _EVERY_S)
            await self._try(self._renew)

    async def _begin(self) -> None:
        """Be ready for the first query, whenever it comes."""
        until = time.monotonic() + _START_S
        renewed = prepared = False
        while not self._asked.is_set() and time.monotonic() < until and not prepared:
            renewed = renewed or await self._try(self._renew)
            self._begun.set()
            if renewed:
                prepared = await self._try(self._prepare)
            if not prepared:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AFTER_FAILURE_S / 4):
                        await self._asked.wait()
        self._begun.set()

    async def _try(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do it; False also when it fails."""
        try:
            done = await work()
        except Exception as error:  # the queries themselves say what is wrong, each to its caller
            if not self._failed:
                logger.warning(
                    "catalog is not frozen ahead", extra={"problem": type(error).__name__}
                )
            self._failed = True
            return False
        self._failed = self._failed and not done
        return done
