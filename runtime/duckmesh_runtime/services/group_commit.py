"""Group commit: appends of many requests in one bus transaction.

While one transaction is under way the next group gathers; when the bus is idle an append starts one at once. So a lone
request pays one transaction, and under load the groups grow by themselves. One transaction at a time per process: they
would wait for each other at the lake's head anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.ports import Append, AppendResult, IngestBus, Receipt

logger = logging.getLogger(__name__)

GROUP_BYTES: Final = 32 * 2**20
GROUP_APPENDS: Final = 2_000
QUEUE_BYTES: Final = 128 * 2**20
QUEUE_APPENDS: Final = 10_000
"""What may wait before more is OVERLOADED: seconds of work. One append may be as large as a request body."""

Waiting = tuple[Append, int, "asyncio.Future[Receipt]"]


class GroupCommit:
    """Submits appends in groups.

    Args:
        bus: Where to.
        on_accepted: Called with the highest accepted number after each transaction that wrote.
    """

    def __init__(self, bus: IngestBus, on_accepted: Callable[[int], None]) -> None:
        self._bus = bus
        self._on_accepted = on_accepted
        self._queue: deque[Waiting] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()

    async def submit(self, append: Append) -> Receipt:
        """Append durably; a caller that is cancelled while its group commits finds the append either absent or whole.

        Raises:
            Limited: OVERLOADED when too much waits.
            Unavailable: The bus does not answer; the append may be there (`IngestBus.append`).
        """
        size = sum(len(part.payload) for part in append.parts)
        if len(self._queue) >= QUEUE_APPENDS or (
            self._queue and self._queued_bytes + size > QUEUE_BYTES
        ):
            raise Limited(
                "OVERLOADED", "too many writes wait for the catalog: repeat later", retry_after_s=1
            )
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._queue.append((append, size, future))
        self._queued_bytes += size
        self._wake.set()
        return await future

    async def run(self) -> None:
        """Commit groups until cancelled; what still waits then fails."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while group := self._take():
                    await self._commit(group)
        finally:
            _fail([waiting[2] for waiting in self._queue], _stopped())

    def _take(self) -> Sequence[Waiting]:
        """The next group; a request whose caller is gone is left out."""
        group: list[Waiting] = []
        room = GROUP_BYTES
        while self._queue and len(group) < GROUP_APPENDS and (room > 0 or not group):
            waiting = self._queue.popleft()
            self._queued_bytes -= waiting[1]
            if not waiting[2].done():
                group.append(waiting)
                room -= waiting[1]
        # Neighbours of one table share an entry of the bus; among requests under way at once any order is right.
        return sorted(group, key=lambda waiting: waiting[0].table)

    async def _commit(self, group: Sequence[Waiting]) -> None:
        futures = [future for _, _, future in group]
        try:
            receipts = await self._bus.append([append for append, _, _ in group])
        except asyncio.CancelledError:
            _fail(futures, _unknown())
            raise
        except Exception as error:
            logger.warning(
                "group commit failed", extra={"appends": len(group), "error": repr(error)}
            )
            _fail(futures, error)
            return
        for future, receipt in zip(futures, receipts, strict=True):
            if not future.done():
                future.set_result(receipt)
        accepted = [r.last for r in receipts if r.result is AppendResult.ACCEPTED]
        if accepted:
            self._tell(max(accepted))

    def _tell(self, number: int) -> None:
        try:
            self._on_accepted(number)
        except Exception:  # the listener's fault must not end the writing
            logger.exception("listener failed")


def _fail(futures: Sequence[asyncio.Future[Receipt]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def _stopped() -> Exception:
    return Limited("OVERLOADED", "this process is stopping: repeat the request", retry_after_s=1)


def _unknown() -> Exception:
    return Unavailable(
        "CATALOG_UNAVAILABLE",
        "this process stopped while it wrote: the write may be there, repeat it with the same keys",
        retry_after_s=1,
    )
