"""The barrier: a caller waits until its token is in the lake, or learns in time that it is not; a listener sees all moves.

One poller serves all waiters and listeners of a process, and reads only while there is one (docs/adr/0004).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.pace import Pace
from duckmesh_runtime.errors import DuckmeshError, Invalid, Limited, Unavailable
from duckmesh_runtime.ports import Progress, ProgressReader
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

MOST_WAITERS: Final = 50_000
MOST_LISTENERS: Final = 1_000
"""Of one process; more are OVERLOADED. A waiter takes some kilobytes, nearly all of them its connection's."""

_POLL_S: Final = 0.02  # a wait costs at most this much more than it must; 50 one-row reads a second while someone waits
_AFTER_FAILURE_S: Final = 0.2
_TRUST_S: Final = 1.0  # a watermark read this long ago may be of a catalog that was restored since
_WOKEN_AT_ONCE: Final = (
    128  # between so many answers the event loop turns: acknowledging rows does not wait for all
)
_LAG_S: Final = 0.5
_KEEP_LAG_S: Final = 1.0

Lag = Callable[[], Awaitable[int]]
Waiter = asyncio.Future["Progress | None"]


class Barrier:
    """Waits for numbers of one lake.

    Args:
        reader: Reads the watermark.
        lag: The lake's lag in milliseconds, for the text of a timeout; None leaves it out.
    """

    def __init__(self, reader: ProgressReader, *, lag: Lag | None = None) -> None:
        self._reader = reader
        self._lag = _Shared(lag) if lag is not None else None
        self._waiters: list[tuple[int, int, int | None, Waiter]] = []
        self._asked: list[asyncio.Future[Progress]] = []
        self._listeners = 0
        self._order = itertools.count()
        self._poller: asyncio.Task[None] | None = None
        self._last: Progress | None = None
        self._read_at = float("-inf")
        self._failure: DuckmeshError | None = None
        self._pace = Pace()
        self._moved = asyncio.Event()
        self._gone = 0
        self._quiet = False

    @property
    def last(self) -> Progress | None:
        """The watermark as last read; it falls only when the catalog loses commits or is restored."""
        return self._last

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return max(0, len(self._waiters) - self._gone)

    @property
    def listening(self) -> int:
        """Listeners there are now."""
        return self._listeners

    async def wait(self, number: int, timeout_ms: int, *, timeline: int | None = None) -> Progress:
        """Wait until the watermark is at `number` or past it; with `timeout_ms` 0 it is read once.

        Args:
            number: To wait for.
            timeout_ms: Longest wait.
            timeline: That the number is of; None takes it for one of the present timeline.

        Raises:
            Unavailable: CONSISTENCY_TIMEOUT (context: watermark, behind, waited_ms, lag_ms, estimated_wait_ms), or
                CATALOG_UNAVAILABLE when the watermark could not be read at the end of the wait.
            Invalid: TOKEN_SCOPE_MISMATCH when another timeline holds.
            Limited: OVERLOADED past `MOST_WAITERS`.
        """
        started = time.monotonic()
        last = self._last
        if timeout_ms == 0 or (last and timeline not in (None, last.timeline)):
            last = await self.present()
            if timeline not in (None, last.timeline):
                raise _foreign()
        if last and last.token >= number and started - self._read_at <= _TRUST_S:
            return last
        found = await self._wait(number, timeout_ms, timeline) if timeout_ms else None
        metrics.barrier_waited(time.monotonic() - started, timed_out=found is None)
        if found is None:
            raise await self._timeout(number, started)
        return found

    async def present(self) -> Progress:
        """The watermark by a read that begins after the call.

        Raises:
            Unavailable: CATALOG_UNAVAILABLE.
        """
        asked: asyncio.Future[Progress] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._ensure_poller()
        return await asked

    async def changes(self, silence_s: float) -> AsyncGenerator[Progress | None, None]:
        """The present state at once, then each newer one when it is read; None after so many seconds without one.

        Who takes long over one state misses those before the newest. Ends after `hush`. Close it when done.

        Raises:
            Limited: OVERLOADED past `MOST_LISTENERS`.
            Unavailable: CATALOG_UNAVAILABLE, before the first state only.
        """
        if self._listeners >= MOST_LISTENERS:
            raise Limited(
                "OVERLOADED",
                f"this process has {MOST_LISTENERS} listeners: repeat later, or share one stream",
                retry_after_s=10,
            )
        self._listeners += 1
        metrics.event_streams(1)
        try:
            seen: Progress = await self.present()
            yield seen
            while not self._quiet:
                moved = self._moved
                if self._last is not None and state_of(self._last) != state_of(seen):
                    seen = self._last
                    yield seen
                    continue
                try:
                    async with asyncio.timeout(silence_s):
                        await moved.wait()
                except TimeoutError:
                    yield None
        finally:
            self._listeners -= 1
            metrics.event_streams(-1)

    def hush(self) -> None:
        """End what listens now: the process drains. Waiters go on."""
        self._quiet = True
        self._moved.set()

    async def close(self) -> None:
        """Stop polling; waiters get CATALOG_UNAVAILABLE."""
        self.hush()
        if self._poller is not None:
            await end(self._poller)
        _settle(self._asked, _ending())
        _settle([entry[3] for entry in self._waiters], _ending())
        self._asked.clear()
        self._waiters.clear()
        self._gone = 0

    async def _wait(self, number: int, timeout_ms: int, timeline: int | None) -> Progress | None:
        """None when the time ran out."""
        if self.waiting >= MOST_WAITERS:
            raise Limited(
                "OVERLOADED", "too many requests wait for a token: repeat later", retry_after_s=1
            )
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        heapq.heappush(self._waiters, (number, next(self._order), timeline, waiter))
        self._ensure_poller()
        # Cheaper than a timeout of the task: nothing is cancelled, and thousands may end at once.
        timer = loop.call_later(timeout_ms / 1000, _run_out, waiter)
        try:
            found = await waiter
        except asyncio.CancelledError:
            self._gone += 1
            raise
        finally:
            timer.cancel()
        self._gone += found is None
        return found

    def _ensure_poller(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def _poll(self) -> None:
        while self._waiters or self._asked or self._listeners:
            asked = len(self._asked)
            outcome = await self._read()
            if isinstance(outcome, Progress):
                self._failure = None
                self._see(outcome)
            else:
                self._failure = outcome
            answered, self._asked = self._asked[:asked], self._asked[asked:]
            _settle(answered, outcome)
            await self._answer()
            metrics.barrier_waiters(self.waiting)
            if self._waiters or self._asked or self._listeners:
                await asyncio.sleep(_AFTER_FAILURE_S if self._failure else _POLL_S)

    async def _read(self) -> Progress | DuckmeshError:
        try:
            return await self._reader.progress()
        except DuckmeshError as error:
            return error
        except Exception:  # must not end the poller, on which all depend
            logger.exception("watermark cannot be read")
            return DuckmeshError("INTERNAL", "the watermark cannot be read: repeat the request")

    def _see(self, progress: Progress) -> None:
        last = self._last
        if last is None or last.timeline != progress.timeline:
            self._pace.clear()
            self._refuse_foreign(progress.timeline)
        elif progress.token < last.token:
            # Reads are one after the other: commits were lost, or someone restored without a new timeline.
            logger.error("watermark fell", extra={"before": last.token, "now": progress.token})
            self._pace.clear()
        self._last = progress
        self._read_at = time.monotonic()
        self._pace.see(progress.token, progress.now)
        if last is None or state_of(last) != state_of(progress):
            self._moved.set()
            self._moved = asyncio.Event()

    def _refuse_foreign(self, timeline: int) -> None:
        """Tokens of the timeline that ended will never be visible, whatever their numbers."""
        for _, _, theirs, waiter in self._waiters:
            if theirs not in (None, timeline) and not waiter.done():
                waiter.set_exception(_foreign())
                self._gone += 1

    async def _answer(self) -> None:
        """Wake who is satisfied, forget who has gone."""
        woken = 0
        while self._waiters:
            number, _, _, waiter = self._waiters[0]
            if waiter.done():
                self._gone -= 1
            elif self._last is None or self._last.token < number:
                break
            else:
                waiter.set_result(self._last)
                woken += 1
            heapq.heappop(self._waiters)
            if woken == _WOKEN_AT_ONCE:
                woken = 0
                await asyncio.sleep(0)
        # Those that gave up behind a patient one would otherwise stay until that one is answered.
        if self._gone * 2 > len(self._waiters):
            self._waiters = [entry for entry in self._waiters if not entry[3].done()]
            heapq.heapify(self._waiters)
            self._gone = 0

    async def _timeout(self, number: int, started: float) -> DuckmeshError:
        if self._failure is not None:
            return _again(self._failure)
        watermark = self._last.token if self._last is not None else None
        context: dict[str, int | None] = {
            "watermark": watermark,
            "behind": number - watermark if watermark is not None else None,
            "waited_ms": int((time.monotonic() - started) * 1000),
            "estimated_wait_ms": self._pace.wait_ms(number),
        }
        if self._lag is not None:
            context["lag_ms"] = await self._lag.get()
        return Unavailable(
            "CONSISTENCY_TIMEOUT",
            "the token is not visible yet: repeat the request, or wait longer for it",
            context=context,
            retry_after_s=1,
        )


def state_of(progress: Progress) -> tuple[int, int, int | None]:
    """What listeners are told changes of."""
    return progress.timeline, progress.token, progress.snapshot_id


class _Shared:
    """A figure that many ask for at once and one reads; None when it does not come in time."""

    def __init__(self, read: Lag) -> None:
        self._read = read
        self._value: int | None = None
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def get(self) -> int | None:
        if time.monotonic() - self._read_at > _KEEP_LAG_S:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.get_running_loop().create_task(self._renew())
            await asyncio.shield(self._reading)
        return self._value

    async def _renew(self) -> None:
        self._value = None
        with suppress(DuckmeshError, TimeoutError):
            async with asyncio.timeout(_LAG_S):
                self._value = await self._read()
        self._read_at = time.monotonic()


def _run_out(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _settle(
    asked: Sequence[asyncio.Future[Progress]] | Sequence[Waiter], outcome: Progress | DuckmeshError
) -> None:
    for future in asked:
        if future.done():
            continue
        if isinstance(outcome, Progress):
            future.set_result(outcome)
        else:
            future.set_exception(_again(outcome))


def _again(error: DuckmeshError) -> DuckmeshError:
    """The same error for one more caller: an exception raised by thousands would keep all their tracebacks."""
    return type(error)(
        error.code, error.message, context=error.context, retry_after_s=error.retry_after_s
    )


def _foreign() -> Invalid:
    return Invalid(
        "TOKEN_SCOPE_MISMATCH",
        "the visibility token was given before the catalog was restored: use a token given since",
    )


def _ending() -> Unavailable:
    return Unavailable(
        "CATALOG_UNAVAILABLE", "the process is ending: repeat the request", retry_after_s=1
    )
