"""Queries: wait for a token and a place, choose the snapshot, freeze its catalog, run the statement in the sandbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.moments import Moment
from duckmesh_runtime.errors import Failed, Unavailable
from duckmesh_runtime.ports import CatalogFreezer, FrozenCatalog, QueryJob, QueryRun, Sandbox
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.query_queue import QueryQueue
from duckmesh_runtime.settings import QueryLimits

_ENDED_S: Final = 1.0
"""Past its deadline no statement runs: the sandbox has killed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRequest:
    """One query as asked.

    Attributes:
        sql: The statement.
        params: Values of its parameters, in order.
        min_number: The answer must contain everything up to this number; None asks for the newest snapshot.
        min_timeline: The timeline of that number.
        consistency_timeout_ms: Longest wait for it.
        max_staleness_ms: Refuse rather than answer with more lag than this.
        at: The snapshot to read, in place of the newest; then without the two above.
        row_limit: Rows after which the answer is cut.
        timeout_ms: Longest run of the statement, the wait for a place included.
        caller: Whose it is, by name of the API key; callers have their turn one after the other.
    """

    sql: str
    params: Sequence[object] = ()
    min_number: int | None = None
    min_timeline: int | None = None
    consistency_timeout_ms: int = 5_000
    max_staleness_ms: int | None = None
    at: Moment | None = None
    row_limit: int
    timeout_ms: int
    caller: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswer:
    """A running query and what it sees.

    Attributes:
        run: Schema and batches.
        snapshot_id: The snapshot it reads.
        snapshot_time: When that was committed (database time).
        token: The snapshot's watermark; of a past one at least that.
        lag_ms: Age of the oldest accepted row that the snapshot lacks; of a past snapshot its own age.
        waited_ms: Time spent at the barrier and in the queue.
    """

    run: QueryRun
    snapshot_id: int
    snapshot_time: datetime
    token: int
    lag_ms: int
    waited_ms: int


class QueryService:
    """Runs statements over one lake.

    Args:
        freezer: Makes catalogs.
        sandbox: Runs statements.
        barrier: Waits for tokens.
        limits: Bounds of every query.
        data_url: Where the read proxy serves files.
    """

    def __init__(
        self,
        freezer: CatalogFreezer,
        sandbox: Sandbox,
        barrier: Barrier,
        *,
        limits: QueryLimits,
        data_url: str,
    ) -> None:
        self._freezer = freezer
        self._sandbox = sandbox
        self._barrier = barrier
        self._limits = limits
        self._data_url = data_url
        self._queue = QueryQueue(limits.concurrency)

    async def run(self, request: QueryRequest) -> QueryAnswer:
        """Start a query; its rows are read from the answer.

        Raises:
            Unavailable: CONSISTENCY_TIMEOUT, STALENESS_EXCEEDED, CATALOG_UNAVAILABLE.
            NotFound: SNAPSHOT_NOT_FOUND, SNAPSHOT_EXPIRED.
            Limited: OVERLOADED: too many queries wait, or no place came free in time.
            DuckmeshError: What the sandbox raises.
        """
        started = time.monotonic()
        number = request.min_number or 0
        if number:
            await self._barrier.wait(
                number, request.consistency_timeout_ms, timeline=request.min_timeline
            )
        timeout_ms = min(request.timeout_ms, self._limits.timeout_ms)
        queued = time.monotonic()
        await self._queue.enter(request.caller, timeout_ms / 1000)
        with ExitStack() as taken:  # given back here when it fails, else by the batches
            taken.callback(self._queue.leave)
            now = time.monotonic()
            waited_ms = int((now - started) * 1000)
            limit = _Limit(timeout_ms=timeout_ms, waited_ms=int((now - queued) * 1000))
            left_ms = max(1, timeout_ms - limit.waited_ms)
            catalog = await self._freezer.freeze(number, at=request.at)
            taken.callback(self._freezer.release, catalog)
            _check(catalog, request)
            with limit.named():
                run = await self._sandbox.run(self._job(catalog, request, left_ms))
            let_go, longest_s = taken.pop_all().close, left_ms / 1000 + _ENDED_S
            batches = _Held(run.batches, let_go, longest_s, limit)
        return QueryAnswer(
            run=replace(run, batches=batches),
            snapshot_id=catalog.snapshot_id,
            snapshot_time=catalog.snapshot_time,
            token=catalog.token,
            lag_ms=catalog.lag_ms,
            waited_ms=waited_ms,
        )

    def _job(self, catalog: FrozenCatalog, request: QueryRequest, timeout_ms: int) -> QueryJob:
        return QueryJob(
            sql=request.sql,
            params=request.params,
            catalog_path=catalog.path,
            snapshot_version=catalog.version,
            data_url=self._data_url,
            row_limit=min(request.row_limit, self._limits.rows),
            timeout_ms=timeout_ms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """The time of one query as its caller knows it; the sandbox only knows what the queue left of it."""

    timeout_ms: int
    waited_ms: int

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say it when it was not enough."""
        try:
            yield
        except Failed as error:
            if error.code != "QUERY_TIMEOUT":
                raise
            raise Failed(
                "QUERY_TIMEOUT",
                f"the query took longer than its limit (timeout_ms) of {self.timeout_ms} ms, "
                f"{self.waited_ms} ms of which it waited for its turn",
                context={"timeout_ms": self.timeout_ms, "waited_ms": self.waited_ms},
            ) from error


class _Held(AsyncIterator[pa.RecordBatch]):
    """Batches that keep catalog and place until they end or are closed, even when never begun.

    A client that does not read keeps them no longer than the statement can run: the sandbox's process is free then.

    Args:
        batches: The rows.
        let_go: Gives both back; may be called again.
        longest_s: When the statement has surely ended.
        limit: Of the query.
    """

    def __init__(
        self,
        batches: AsyncIterator[pa.RecordBatch],
        let_go: Callable[[], None],
        longest_s: float,
        limit: _Limit,
    ) -> None:
        self._batches = batches
        self._limit = limit
        self._give_back = let_go
        self._alarm = asyncio.get_running_loop().call_later(longest_s, let_go)

    async def __anext__(self) -> pa.RecordBatch:
        try:
            with self._limit.named():
                return await anext(self._batches)
        except BaseException:
            self._let_go()
            raise

    async def aclose(self) -> None:
        """Cancel the query; safe to repeat."""
        try:
            close = getattr(self._batches, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._alarm.cancel()
        self._give_back()


def _check(catalog: FrozenCatalog, request: QueryRequest) -> None:
    if request.min_number is not None and catalog.token < request.min_number:
        raise Unavailable(
            "CONSISTENCY_TIMEOUT",
            "the token was visible and is not in the newest snapshot: the catalog was restored; use a new token",
            context={"watermark": catalog.token, "lag_ms": catalog.lag_ms},
            retry_after_s=1,
        )
    if request.max_staleness_ms is not None and catalog.lag_ms > request.max_staleness_ms:
        raise Unavailable(
            "STALENESS_EXCEEDED",
            f"the lake lags {catalog.lag_ms} ms, more than max_staleness_ms: repeat later, or allow more",
            context={"lag_ms": catalog.lag_ms, "watermark": catalog.token},
            retry_after_s=1,
        )
