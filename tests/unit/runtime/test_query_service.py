"""Which snapshot a query sees, and that it lets go of it however it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pyarrow as pa
import pytest

from duckmesh_runtime.errors import DuckmeshError, Failed, Unavailable
from duckmesh_runtime.ports import QueryJob, QueryRun, QueryStats
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.query import QueryRequest, QueryService
from duckmesh_runtime.settings import QueryLimits
from tests.fakes.freezer import FakeFreezer
from tests.fakes.progress import FakeProgress

BATCH = pa.record_batch({"x": [1, 2]})


class _Sandbox:
    """Answers two batches, or fails where it is told to."""

    def __init__(self, *, refuse: bool = False, fail_after: int | None = None) -> None:
        self.jobs: list[QueryJob] = []
        self.closed = False
        self._refuse = refuse
        self._fail_after = fail_after

    async def run(self, job: QueryJob) -> QueryRun:
        self.jobs.append(job)
        if self._refuse:
            raise Failed("SQL_ERROR", "no")
        return QueryRun(
            schema=BATCH.schema, type_names=["BIGINT"], batches=self._batches(), stats=QueryStats()
        )

    async def _batches(self) -> AsyncIterator[pa.RecordBatch]:
        try:
            for number in range(2):
                if number == self._fail_after:
                    raise Failed("QUERY_CRASHED", "gone")
                yield BATCH
        finally:
            self.closed = True


def request(**changes: object) -> QueryRequest:
    return QueryRequest(
        **{"sql": "SELECT x FROM t", "row_limit": 100, "timeout_ms": 1_000} | changes
    )  # type: ignore[arg-type]


class _Bench:
    def __init__(
        self, *, token: int = 10, lag_ms: int = 0, sandbox: _Sandbox | None = None
    ) -> None:
        self.progress = FakeProgress(token)
        self.freezer = FakeFreezer(self.progress, lag_ms=lag_ms)
        self.sandbox = sandbox or _Sandbox()
        self.service = QueryService(
            self.freezer,
            self.sandbox,
            Barrier(self.progress),
            limits=QueryLimits(rows=50, timeout_ms=500),
            data_url="http://127.0.0.1:1/lake/",
        )


async def test_the_answer_names_what_it_sees_and_lets_go_at_its_end() -> None:
    bench = _Bench(lag_ms=70)

    answer = await bench.service.run(request(min_number=10))
    held = dict(bench.freezer.held)
    rows = [batch async for batch in answer.run.batches]

    assert (answer.snapshot_id, answer.token, answer.lag_ms) == (10, 10, 70)
    assert len(rows) == 2
    assert held == {"/catalogs/10.db": 1}
    assert not bench.freezer.held


async def test_limits_of_the_service_bind_the_request() -> None:
    bench = _Bench()

    await bench.service.run(request())

    assert (bench.sandbox.jobs[0].row_limit, bench.sandbox.jobs[0].timeout_ms) == (50, 500)


async def test_a_token_that_does_not_come_runs_nothing() -> None:
    bench = _Bench(token=10)

    with pytest.raises(Unavailable) as caught:
        await bench.service.run(request(min_number=11, consistency_timeout_ms=50))

    assert caught.value.code == "CONSISTENCY_TIMEOUT"
    assert not bench.sandbox.jobs
    assert not bench.freezer.held


async def test_more_lag_than_allowed_is_refused() -> None:
    bench = _Bench(lag_ms=70)

    with pytest.raises(Unavailable) as caught:
        await bench.service.run(request(max_staleness_ms=69))

    assert caught.value.code == "STALENESS_EXCEEDED"
    assert not bench.freezer.held
    await bench.service.run(request(max_staleness_ms=70))


@pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param(_Sandbox(refuse=True), id="refused"),
        pytest.param(_Sandbox(fail_after=1), id="broke off"),
    ],
)
async def test_a_failed_query_lets_go(sandbox: _Sandbox) -> None:
    bench = _Bench(sandbox=sandbox)

    with pytest.raises(DuckmeshError):
        [batch async for batch in (await bench.service.run(request())).run.batches]

    assert not bench.freezer.held


async def test_a_cancelled_query_is_cancelled_in_the_sandbox_and_lets_go() -> None:
    bench = _Bench()

    answer = await bench.service.run(request())
    async with aclosing(answer.run.batches) as batches:  # type: ignore[type-var]  # closable, as ports.QueryRun says
        await anext(batches)

    assert bench.sandbox.closed
    assert not bench.freezer.held
