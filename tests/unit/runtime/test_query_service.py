"""Which snapshot a query sees, and that it lets go of it however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pyarrow as pa
import pytest

from duckmesh_runtime.errors import (
    DuckmeshError,
    Failed,
    Invalid,
    Limited,
    NotFound,
    Unavailable,
)
from duckmesh_runtime.ports import QueryJob, QueryRun, QueryStats
from duckmesh_runtime.services import query
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
        self.refuse = refuse
        self.fail_after = fail_after
        self.code: str | None = None

    async def run(self, job: QueryJob) -> QueryRun:
        self.jobs.append(job)
        if self.refuse:
            raise Failed(self.code or "SQL_ERROR", "no")
        return QueryRun(
            schema=BATCH.schema, type_names=["BIGINT"], batches=self._batches(), stats=QueryStats()
        )

    async def _batches(self) -> AsyncIterator[pa.RecordBatch]:
        try:
            for number in range(2):
                if number == self.fail_after:
                    raise Failed(self.code or "QUERY_CRASHED", "gone")
                yield BATCH
        finally:
            self.closed = True


class _Clock:
    """In place of the module `time`; binary fractions, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1024.0

    def monotonic(self) -> float:
        return self.now


def request(**changes: object) -> QueryRequest:
    return QueryRequest(
        **{"sql": "SELECT x FROM t", "row_limit": 100, "timeout_ms": 1_000} | changes
    )  # type: ignore[arg-type]


class _Bench:
    def __init__(
        self,
        *,
        token: int = 10,
        lag_ms: int = 0,
        sandbox: _Sandbox | None = None,
        slots: int = 4,
    ) -> None:
        self.progress = FakeProgress(token)
        self.freezer = FakeFreezer(self.progress, lag_ms=lag_ms)
        self.sandbox = sandbox or _Sandbox()
        self.service = QueryService(
            self.freezer,
            self.sandbox,
            Barrier(self.progress),
            limits=QueryLimits(rows=50, timeout_ms=60_000, concurrency=slots),
            data_url="http://127.0.0.1:1/lake/",
        )

    async def queued(self) -> None:
        """Until a query waits for its turn."""
        async with asyncio.timeout(30):
            while not self.service._queue.waiting:
                await asyncio.sleep(0)


async def test_a_token_from_before_a_restore_is_refused_whatever_its_number() -> None:
    bench = _Bench(token=10)
    bench.progress.timeline = 2

    with pytest.raises(Invalid) as caught:
        await bench.service.run(request(min_number=5, min_timeline=1))

    assert caught.value.code == "TOKEN_SCOPE_MISMATCH"
    assert not bench.sandbox.jobs


async def test_the_answer_names_what_it_sees_and_lets_go_at_its_end() -> None:
    bench = _Bench(lag_ms=70)

    answer = await bench.service.run(request(min_number=10))
    held = dict(bench.freezer.held)
    rows = [batch async for batch in answer.run.batches]

    assert (answer.snapshot_id, answer.token, answer.lag_ms) == (10, 10, 70)
    assert len(rows) == 2
    assert held == {"/catalogs/10.db": 1}
    assert not bench.freezer.held


async def test_a_past_snapshot_is_attached_at_its_version_and_waits_for_nothing() -> None:
    bench = _Bench(lag_ms=70)

    by_id = await bench.service.run(request(at=7))
    by_time = await bench.service.run(request(at=bench.freezer.time_of(8)))
    newest = await bench.service.run(request())

    assert (by_id.snapshot_id, by_id.token, by_id.lag_ms, by_id.waited_ms) == (7, 7, 3_000, 0)
    assert (by_time.snapshot_id, by_time.snapshot_time) == (8, bench.freezer.time_of(8))
    assert [job.snapshot_version for job in bench.sandbox.jobs] == [7, 8, None]
    assert bench.progress.reads == 0
    for answer in (by_id, by_time, newest):
        [batch async for batch in answer.run.batches]
    assert not bench.freezer.held


@pytest.mark.parametrize(
    ("at", "code"), [(11, "SNAPSHOT_NOT_FOUND"), (2, "SNAPSHOT_EXPIRED")], ids=["never", "gone"]
)
async def test_a_snapshot_that_is_not_there_runs_nothing(at: int, code: str) -> None:
    bench = _Bench(token=10)
    bench.freezer.oldest = 3

    with pytest.raises(NotFound) as caught:
        await bench.service.run(request(at=at))

    assert caught.value.code == code
    assert not bench.sandbox.jobs
    assert [batch async for batch in (await bench.service.run(request(at=3))).run.batches]


async def test_limits_of_the_service_bind_the_request(clock: _Clock) -> None:
    bench = _Bench()

    await bench.service.run(request(timeout_ms=90_000))

    assert (bench.sandbox.jobs[0].row_limit, bench.sandbox.jobs[0].timeout_ms) == (50, 60_000)


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Time stands still but for what a test adds."""
    made = _Clock()
    monkeypatch.setattr(query, "time", made)
    return made


async def test_as_many_statements_run_as_there_are_slots_and_waiting_counts(
    clock: _Clock,
) -> None:
    bench = _Bench(slots=1)
    first = await bench.service.run(request(caller="a"))

    waiting = asyncio.create_task(bench.service.run(request(caller="b", timeout_ms=60_000)))
    await bench.queued()
    clock.now += 0.0625
    ran_before = len(bench.sandbox.jobs)
    async with aclosing(first.run.batches):  # type: ignore[type-var]  # closable, as ports.QueryRun says
        pass
    second = await waiting

    assert (ran_before, len(bench.sandbox.jobs)) == (1, 2)
    assert second.waited_ms == 62
    assert bench.sandbox.jobs[1].timeout_ms == 60_000 - 62


@pytest.mark.parametrize("at_once", [True, False], ids=["before the first row", "later"])
async def test_a_query_that_takes_too_long_names_its_caller_s_limit_and_what_it_waited(
    at_once: bool, clock: _Clock
) -> None:
    """The sandbox speaks of what the queue had left of it."""
    bench = _Bench(slots=1)
    first = await bench.service.run(request())
    waiting = asyncio.create_task(bench.service.run(request(timeout_ms=60_000)))
    await bench.queued()
    clock.now += 0.25
    bench.sandbox.code = "QUERY_TIMEOUT"
    bench.sandbox.refuse, bench.sandbox.fail_after = at_once, 1

    async with aclosing(first.run.batches):  # type: ignore[type-var]  # closable, as ports.QueryRun says
        pass
    with pytest.raises(Failed) as caught:
        [batch async for batch in (await waiting).run.batches]

    assert caught.value.context == {"timeout_ms": 60_000, "waited_ms": 250}
    assert "limit (timeout_ms) of 60000 ms, 250 ms of which" in caught.value.message


async def test_no_place_in_time_is_overload_and_holds_nothing() -> None:
    bench = _Bench(slots=1)
    await bench.service.run(request())

    with pytest.raises(Limited) as caught:
        await bench.service.run(request(timeout_ms=20))

    assert (caught.value.code, caught.value.retry_after_s) == ("OVERLOADED", 1)
    assert bench.freezer.held.total() == 1
    assert len(bench.sandbox.jobs) == 1


async def test_every_end_of_a_query_gives_its_place_back() -> None:
    bench = _Bench(slots=1, lag_ms=70)

    for _ in range(2):
        with pytest.raises(Unavailable):
            await bench.service.run(request(max_staleness_ms=1))
        [batch async for batch in (await bench.service.run(request())).run.batches]
        answer = await bench.service.run(request())
        for _ in range(2):
            await answer.run.batches.aclose()  # type: ignore[attr-defined]  # closable, as ports.QueryRun says

    assert not bench.freezer.held


async def test_a_client_that_does_not_read_keeps_its_place_no_longer_than_the_statement_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query, "_ENDED_S", 0.0)
    bench = _Bench(slots=1)
    unread = await bench.service.run(request(timeout_ms=30))

    other = await bench.service.run(request(timeout_ms=60_000))
    await unread.run.batches.aclose()  # type: ignore[attr-defined]  # closable, as ports.QueryRun says

    assert bench.freezer.held.total() == 1
    [batch async for batch in other.run.batches]
    assert not bench.freezer.held
