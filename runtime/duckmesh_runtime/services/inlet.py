"""The one way into a lake's bus: admission, the tables as known here, group commit. Rows, table changes and replays use it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final, TypeVar

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Head,
    IngestBus,
    KeyHash,
    KnownKey,
    Receipt,
    StagedFile,
)
from duckmesh_runtime.services.group_commit import GroupCommit
from duckmesh_runtime.services.intake import PendingBytes, RateLimit
from duckmesh_runtime.services.table_cache import TableCache
from duckmesh_runtime.settings import IngestLimits

logger = logging.getLogger(__name__)

T = TypeVar("T")

RECORD_KEYS_S: Final = 24 * 3600.0
REQUEST_KEYS_S: Final = 7 * 24 * 3600.0
"""How long idempotency keys are remembered at least."""

TRIES: Final = 20
"""How often an append is made anew because the tables changed under it, before the caller is told to repeat."""

_EXPIRE_EVERY_S: Final = 60.0


class Inlet:
    """What the services of one process write through.

    Args:
        bus: The lake's input.
        lake: Name of the lake, for logs.
        limits: What is refused.
        on_accepted: Called with the highest number after each transaction that wrote; wakes the committer.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        bus: IngestBus,
        *,
        lake: str,
        limits: IngestLimits,
        on_accepted: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._lake = lake
        self.limits = limits
        self.tables = TableCache(bus)
        self.timeline = 1
        self._group = GroupCommit(bus, on_accepted)
        self._on_accepted = on_accepted
        self._rate = RateLimit(limits.requests_per_second, clock)
        self._pending = PendingBytes(bus, limits.pending_bytes)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._tasks: list[asyncio.Task[None]] = []
        self._active = 0
        self._stopping = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def start(self) -> None:
        """Read the tables and begin to accept.

        Raises:
            Unavailable: The bus does not answer; call again.
        """
        self.timeline = (await self._bus.head()).timeline
        await self.tables.fresh()
        if not self._tasks:
            runs = (self._group.run(), self._pending.run(), self._expire_keys())
            self._tasks = [asyncio.create_task(run) for run in runs]

    async def drain(self) -> None:
        """Refuse new requests, finish the ones under way, stop. Safe to repeat."""
        self._stopping = True
        await self._quiet.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._executor.shutdown(wait=False)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Let one request in, and hold up `drain` until it is answered.

        Raises:
            Limited: RATE_LIMITED or OVERLOADED.
        """
        if self._stopping:
            raise Limited(
                "OVERLOADED", "this process is stopping: repeat the request", retry_after_s=1
            )
        self._rate.take()
        self._pending.check()
        self._active += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._quiet.set()

    async def submit(self, append: Append, *, staged: StagedFile | None = None) -> Receipt:
        """Append durably; `staged` is the file that it names, whose bytes are pending with it.

        Raises:
            Limited: OVERLOADED.
            Unavailable: The bus does not answer; the append may be there or not.
        """
        receipt = await self._group.submit(append)
        if receipt.result is AppendResult.ACCEPTED:
            self.timeline = receipt.timeline
            size = staged.size if staged else sum(len(part.payload) for part in append.parts)
            self._pending.add(size)
        return receipt

    async def restore(self, snapshot_id: int, key: KeyHash | None) -> Receipt:
        """Accept a restore, as `IngestBus.restore`."""
        receipt = await self._bus.restore(snapshot_id, key)
        if receipt.result is AppendResult.ACCEPTED:
            self.timeline = receipt.timeline
            self._on_accepted(receipt.last)
            await self.tables.fresh()
        return receipt

    async def known(self, keys: Sequence[KeyHash]) -> Sequence[KnownKey | None]:
        """What the bus keeps of these keys; an append may find more."""
        return await self._bus.known(keys)

    async def show_lag(self) -> None:
        """Have the metrics show the backlog as it is now, or was a second ago."""
        await self._pending.show()

    def look(self) -> None:
        """Have the backlog read soon, so that the metrics show it as it is now."""
        self._pending.add(0)

    async def is_current(self, version: int) -> bool:
        """Whether a refusal holds: it must not rest on tables that have changed since. Accepted rows the bus checks."""
        return (await self.tables.fresh()).version == version

    async def head(self) -> Head:
        """Where input ends now."""
        return await self._bus.head()

    async def threaded(self, function: Callable[..., T], *args: object) -> T:
        """Run work that would hold up the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *args)

    async def _expire_keys(self) -> None:
        """Forget keys past their age, or past the space they may take, until cancelled."""
        told = False
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            try:
                horizon = await self._bus.expire_keys(
                    record_age_s=RECORD_KEYS_S,
                    request_age_s=REQUEST_KEYS_S,
                    max_bytes=self.limits.idempotency_bytes,
                )
            except Exception as error:
                kept = {"lake": self._lake, "error": repr(error)}
                logger.warning("idempotency keys are kept longer", extra=kept)
                continue
            metrics.keys_kept(record_s=horizon.record_s, request_s=horizon.request_s)
            short = horizon.record_s < RECORD_KEYS_S or horizon.request_s < REQUEST_KEYS_S
            if short and not told:
                logger.warning(
                    "idempotency keys are known for less than promised: raise DUCKMESH_IDEMPOTENCY_BYTES",
                    extra={"lake": self._lake, **asdict(horizon)},
                )
            told = short


def unsettled() -> Unavailable:
    """What a request gets whose append was made anew too often."""
    return Unavailable(
        "CATALOG_UNAVAILABLE",
        "the lake's tables change faster than this request can be written: repeat it",
        retry_after_s=1,
    )
