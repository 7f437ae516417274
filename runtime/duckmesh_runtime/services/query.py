"""Queries: choose the snapshot, wait for a token, freeze its catalog, run the statement in the sandbox."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import CatalogFreezer, FrozenCatalog, QueryJob, QueryRun, Sandbox
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.settings import QueryLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRequest:
    """One query as asked.

    Attributes:
        sql: The statement.
        params: Values of its parameters, in order.
        min_number: The answer must contain everything up to this number; None asks for the newest snapshot.
        consistency_timeout_ms: Longest wait for it.
        max_staleness_ms: Refuse rather than answer with more lag than this.
        row_limit: Rows after which the answer is cut.
        timeout_ms: Longest run of the statement.
    """

    sql: str
    params: Sequence[object] = ()
    min_number: int | None = None
    consistency_timeout_ms: int = 5_000
    max_staleness_ms: int | None = None
    row_limit: int
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswer:
    """A running query and what it sees.

    Attributes:
        run: Schema and batches.
        snapshot_id: The snapshot it reads.
        snapshot_time: When that was committed (database time).
        token: The snapshot's watermark.
        lag_ms: Age of the oldest accepted row that the snapshot lacks.
        waited_ms: Time spent at the barrier.
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

    async def run(self, request: QueryRequest) -> QueryAnswer:
        """Start a query; its rows are read from the answer.

        Raises:
            Unavailable: CONSISTENCY_TIMEOUT, STALENESS_EXCEEDED, CATALOG_UNAVAILABLE.
            DuckmeshError: What the sandbox raises.
        """
        started = time.monotonic()
        number = request.min_number or 0
        if number:
            await self._barrier.wait(number, request.consistency_timeout_ms)
        waited_ms = int((time.monotonic() - started) * 1000)
        catalog = await self._freezer.freeze(number)
        try:
            _check(catalog, request)
            run = await self._sandbox.run(self._job(catalog, request))
        except BaseException:
            self._freezer.release(catalog)
            raise
        return QueryAnswer(
            run=replace(run, batches=self._held(catalog, run.batches)),
            snapshot_id=catalog.snapshot_id,
            snapshot_time=catalog.snapshot_time,
            token=catalog.token,
            lag_ms=catalog.lag_ms,
            waited_ms=waited_ms,
        )

    def _job(self, catalog: FrozenCatalog, request: QueryRequest) -> QueryJob:
        return QueryJob(
            sql=request.sql,
            params=request.params,
            catalog_path=catalog.path,
            data_url=self._data_url,
            row_limit=min(request.row_limit, self._limits.rows),
            timeout_ms=min(request.timeout_ms, self._limits.timeout_ms),
        )

    def _held(
        self, catalog: FrozenCatalog, batches: AsyncIterator[pa.RecordBatch]
    ) -> AsyncIterator[pa.RecordBatch]:
        return _Held(self._freezer, catalog, batches)


class _Held(AsyncIterator[pa.RecordBatch]):
    """Batches that keep their catalog until they end or are closed, even when never begun."""

    def __init__(
        self,
        freezer: CatalogFreezer,
        catalog: FrozenCatalog,
        batches: AsyncIterator[pa.RecordBatch],
    ) -> None:
        self._freezer = freezer
        self._catalog: FrozenCatalog | None = catalog
        self._batches = batches

    async def __anext__(self) -> pa.RecordBatch:
        try:
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
        catalog, self._catalog = self._catalog, None
        if catalog is not None:
            self._freezer.release(catalog)


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
