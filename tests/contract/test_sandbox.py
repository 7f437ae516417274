"""What every sandbox does: the double in memory and the processes pass the same suite."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pytest

from duckmesh_runtime.errors import DuckmeshError, Failed, Invalid
from duckmesh_runtime.ports import QueryJob, QueryRun, Sandbox
from tests.fakes.sandbox import FakeSandbox
from tests.sandboxes import ENDLESS, ROWS, SOON_S, SmallLake, ask, running_sandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUnderTest:
    """A sandbox over a lake with the table `numbers` (id, name)."""

    sandbox: Sandbox
    lake: SmallLake

    def job(self, sql: str, *params: object, row_limit: int = 1_000_000) -> QueryJob:
        return self.lake.job(sql, *params, row_limit=row_limit)


@pytest.fixture(scope="module", params=["fake", "processes"])
def under_test(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SandboxUnderTest]:
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    try:
        if request.param == "fake":
            ids = range(ROWS)
            table = pa.table({"id": ids, "name": [f"n{i}" for i in ids]})
            yield SandboxUnderTest(sandbox=FakeSandbox(tables={"numbers": table}), lake=lake)
        else:
            lake.freeze("first.db")
            with running_sandbox(lake) as running:
                yield SandboxUnderTest(sandbox=running.client, lake=lake)
    finally:
        lake.data.close()


async def test_schema_and_types_are_known_before_the_rows(under_test: SandboxUnderTest) -> None:
    run = await under_test.sandbox.run(under_test.job("SELECT id, name FROM numbers ORDER BY id"))

    assert run.schema.names == ["id", "name"]
    assert list(run.type_names) == ["BIGINT", "VARCHAR"]
    rows = await _rows(run)
    assert rows[:2] == [{"id": 0, "name": "n0"}, {"id": 1, "name": "n1"}]
    assert len(rows) == ROWS


async def test_figures_are_complete_when_the_rows_are_read(under_test: SandboxUnderTest) -> None:
    run = await under_test.sandbox.run(under_test.job("FROM range(50000)"))
    await _rows(run)

    assert run.stats.rows == 50_000
    assert not run.stats.truncated
    assert run.stats.duration_ms >= 0


async def test_rows_come_in_bounded_batches(under_test: SandboxUnderTest) -> None:
    run = await under_test.sandbox.run(under_test.job("FROM range(100000)"))

    sizes = [batch.num_rows async for batch in run.batches]

    assert sum(sizes) == 100_000
    assert min(sizes) > 0
    assert max(sizes) <= 32_768


async def test_parameters_are_bound_in_order(under_test: SandboxUnderTest) -> None:
    job = under_test.job("SELECT name FROM numbers WHERE id = ? OR name = ? ORDER BY id", 3, "n5")

    assert [row["name"] for row in (await ask(under_test.sandbox, job)).rows] == ["n3", "n5"]


@pytest.mark.parametrize(
    ("limit", "rows", "truncated"),
    [(10, 10, True), (20_000, 20_000, True), (30_000, 30_000, False)],
)
async def test_the_row_limit_cuts(
    under_test: SandboxUnderTest, limit: int, rows: int, truncated: bool
) -> None:
    answer = await ask(under_test.sandbox, under_test.job("FROM range(30000)", row_limit=limit))

    assert len(answer.rows) == answer.stats.rows == rows
    assert answer.stats.truncated == truncated


async def test_no_rows_still_have_columns(under_test: SandboxUnderTest) -> None:
    run = await under_test.sandbox.run(under_test.job("SELECT id FROM numbers WHERE id < 0"))

    assert run.schema.names == ["id"]
    assert await _rows(run) == []


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT nope FROM numbers", "SQL_ERROR"),
        ("SELECT * FROM nope", "SQL_ERROR"),
        ("SELEC 1", "SQL_ERROR"),
        ("SELECT $1", "SQL_ERROR"),
        ("CREATE TABLE t (a INTEGER)", "SQL_NOT_ALLOWED"),
        ("SELECT 1; SELECT 2", "SQL_NOT_ALLOWED"),
        ("", "SQL_NOT_ALLOWED"),
    ],
)
async def test_a_bad_statement_is_refused(
    under_test: SandboxUnderTest, sql: str, code: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(under_test.sandbox, under_test.job(sql))

    assert caught.value.code == code


async def test_a_failure_after_rows_reaches_the_reader(under_test: SandboxUnderTest) -> None:
    sql = "SELECT CASE WHEN range > 500000 THEN error('boom') ELSE 'fine' END FROM range(1000000)"
    run = await under_test.sandbox.run(under_test.job(sql))

    assert (await anext(run.batches)).num_rows > 0
    with pytest.raises(Invalid, match="boom"):
        await _rows(run)
    assert await _rows(run) == []


async def test_a_statement_ends_at_its_deadline(under_test: SandboxUnderTest) -> None:
    job = under_test.lake.job(ENDLESS, timeout_ms=300)

    async with asyncio.timeout(SOON_S):
        with pytest.raises(Failed) as caught:
            await ask(under_test.sandbox, job)

    assert caught.value.code == "QUERY_TIMEOUT"


async def test_batches_can_be_closed_at_any_time(under_test: SandboxUnderTest) -> None:
    """Before the first, between two, after the last, twice: then nothing runs and no rows come."""
    for read in (0, 1, 99):
        run = await under_test.sandbox.run(under_test.job("FROM range(100000)"))
        for _ in range(read):
            await anext(run.batches, None)
        await run.batches.aclose()  # type: ignore[attr-defined]  # what the port's docstring promises
        await run.batches.aclose()  # type: ignore[attr-defined]  # as above
        assert await _rows(run) == []

    assert (await ask(under_test.sandbox, under_test.job("SELECT 42"))).value == 42


async def test_statements_run_beside_each_other(under_test: SandboxUnderTest) -> None:
    jobs = [under_test.job("SELECT $1 + count(*) FROM numbers", n) for n in range(8)]

    answers = await asyncio.gather(*(ask(under_test.sandbox, job) for job in jobs))

    assert [answer.value for answer in answers] == [ROWS + n for n in range(8)]


async def test_a_failed_statement_leaves_nothing_behind(under_test: SandboxUnderTest) -> None:
    for sql in ("SELECT nope", "DROP TABLE numbers", "SELECT 'x'::INTEGER"):
        with pytest.raises(DuckmeshError):
            await ask(under_test.sandbox, under_test.job(sql))

    count = await ask(under_test.sandbox, under_test.job("SELECT count(*) FROM numbers"))
    assert count.value == ROWS


async def _rows(run: QueryRun) -> list[dict[str, object]]:
    return [row async for batch in run.batches for row in batch.to_pylist()]
