"""The barrier: a caller waits until its token is in the lake, or learns in time that it is not.

One poller serves all waiters of a process, and only while someone waits (docs/adr/0004).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import DuckmeshError, Unavailable
from duckmesh_runtime.ports import Progress, ProgressReader

_POLL_S: Final = 0.02  # a wait costs at most this much more than it must; 50 one-row reads a second while someone waits
_AFTER_FAILURE_S: Final = 0.2

Lag = Callable[[], Awaitable[int]]


class Barrier:
    """Waits for numbers of one lake.

    Args:
        reader: Reads the watermark.
        lag: The lake's lag in milliseconds, for the text of a timeout; None leaves it out.
    """

    def __init__(self, reader: ProgressReader, *, lag: Lag | None = None) -> None:
        self._reader = reader
        self._lag = lag
        self._waiters: list[tuple[int, int, asyncio.Future[Progress]]] = []
        self._order = itertools.count()
        self._poller: asyncio.Task[None] | None = None
        self._last: Progress | None = None
        self._failure: DuckmeshError | None = None
        self._gone = 0

    @property
    def last(self) -> Progress | None:
        """The watermark as last read; it never falls."""
        return self._last

    async def wait(self, number: int, timeout_ms: int) -> Progress:
        """Wait until the watermark is at `number` or past it.

        Raises:
            Unavailable: CONSISTENCY_TIMEOUT (context: watermark, lag_ms, waited_ms), or CATALOG_UNAVAILABLE when the
                watermark could not be read at the end of the wait.
        """
        started = time.monotonic()
        if self._last is not None and self._last.token >= number:
            return self._last
        waiter: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (number, next(self._order), waiter))
        self._ensure_poller()
        try:
            found = await asyncio.wait_for(waiter, timeout_ms / 1000)
        except asyncio.CancelledError:
            self._gone += 1
            raise
        except TimeoutError:
            self._gone += 1
            metrics.barrier_waited(time.monotonic() - started, timed_out=True)
            raise await self._timeout(number, started) from None
        metrics.barrier_waited(time.monotonic() - started, timed_out=False)
        return found

    async def close(self) -> None:
        """Stop polling; waiters get CATALOG_UNAVAILABLE."""
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        for _, _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(
                    Unavailable(
                        "CATALOG_UNAVAILABLE",
                        "the process is ending: repeat the request",
                        retry_after_s=1,
                    )
                )
        self._waiters.clear()

    def _ensure_poller(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def _poll(self) -> None:
        while self._waiters:
            pause_s = _POLL_S
            try:
                self._see(await self._reader.progress())
                self._failure = None
            except DuckmeshError as error:
                self._failure = error
                pause_s = _AFTER_FAILURE_S
            self._answer()
            if self._waiters:
                await asyncio.sleep(pause_s)

    def _see(self, progress: Progress) -> None:
        if self._last is None or progress.token >= self._last.token:
            self._last = progress

    def _answer(self) -> None:
        """Wake who is satisfied, forget who has gone."""
        while self._waiters:
            number, _, waiter = self._waiters[0]
            if not waiter.done():
                if self._last is None or self._last.token < number:
                    break
                waiter.set_result(self._last)
            heapq.heappop(self._waiters)
        # Those that gave up behind a patient one would otherwise stay until that one is answered.
        if self._gone * 2 > len(self._waiters):
            self._waiters = [entry for entry in self._waiters if not entry[2].done()]
            heapq.heapify(self._waiters)
            self._gone = 0

    async def _timeout(self, number: int, started: float) -> DuckmeshError:
        if self._failure is not None:
            return self._failure
        watermark = self._last.token if self._last is not None else None
        context: dict[str, int | None] = {
            "watermark": watermark,
            "behind": number - watermark if watermark is not None else None,
            "waited_ms": int((time.monotonic() - started) * 1000),
        }
        if self._lag is not None:
            with suppress(DuckmeshError):
                context["lag_ms"] = await self._lag()
        return Unavailable(
            "CONSISTENCY_TIMEOUT",
            "the token is not visible yet: repeat the request, or allow a longer consistency_timeout_ms",
            context=context,
            retry_after_s=1,
        )
