"""How the object store is, looked at beside the committer and reported to the catalog, where the operator reads it.

Reading is asked for at all times. While commits fail, writing is too, and more often: a key that may read but not write
shows only then. Nothing that goes wrong here reaches the committer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import StoreProbe, StoreReporter, StoreState
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
DOUBT_S: Final = 1.0
REPEAT_S: Final = 20.0
"""The same is said again after this time: a report that is older than a minute counts as none."""


class StoreWatch:
    """The looks of one process.

    Args:
        probe: Asks the store.
        reporter: Tells the catalog.
        active: Whether this process is the committer: only one speaks for the lake.
        failing: Whether the last commit failed.
        look_s: Seconds between two looks.
        doubt_s: The same while something fails.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        probe: StoreProbe,
        reporter: StoreReporter,
        *,
        active: Callable[[], bool],
        failing: Callable[[], bool],
        look_s: float = LOOK_S,
        doubt_s: float = DOUBT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._reporter = reporter
        self._active = active
        self._failing = failing
        self._look_s = look_s
        self._doubt_s = doubt_s
        self._clock = clock
        self._failures = 0
        self._said: StoreState | None = None
        self._say_again_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look in the background."""
        task = asyncio.create_task(self._run(), name="store-watch")
        try:
            yield
        finally:
            await end(task)

    async def look(self) -> None:
        """Ask once, while this process is the committer, and report what is new or was said long ago.

        Raises:
            Unavailable: The catalog does not answer; the next look says it.
        """
        if not self._active():
            self._said, self._failures = None, 0
            return
        state = await self._probe.state(write=self._failing())
        self._failures = 0 if state is StoreState.OK else self._failures + 1
        if self._failures == 1:
            return  # one request may fail; it is asked again soon
        now = self._clock()
        if state is self._said and now < self._say_again_at:
            return
        await self._reporter.report(state)
        if state is not self._said:
            logger.info("object store", extra={"state": state.value})
        self._said, self._say_again_at = state, now + REPEAT_S

    async def _run(self) -> None:
        told = False
        while True:
            try:
                await self.look()
                told = False
            except DuckmeshError:
                pass
            except (
                Exception
            ) as error:  # a lake of an earlier migration takes no report: nobody's loss
                if not told:
                    extra = {"error_type": type(error).__name__}
                    logger.warning("object store not reported", extra=extra)
                told = True
            doubtful = self._failures or (self._active() and self._failing())
            await asyncio.sleep(self._doubt_s if doubtful else self._look_s)
