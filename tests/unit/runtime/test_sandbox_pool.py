"""Who gets which slot when; the processes are stood in for."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.sandbox import pool as pool_module
from duckmesh_runtime.sandbox.child import Child, ChildSettings
from duckmesh_runtime.sandbox.pool import Pool

SETTINGS = ChildSettings(catalog_dir=Path("/catalogs"), memory_bytes=1)


class StubChild:
    """A process that ends when it is killed."""

    numbers = itertools.count(1)
    words = ""

    def __init__(self) -> None:
        self.pid = next(self.numbers)
        self.data_url: str | None = None
        self.catalog_path: str | None = None
        self.served = 0
        self.worn = False
        self._end = asyncio.Event()

    @property
    def alive(self) -> bool:
        return not self._end.is_set()

    def kill(self) -> None:
        self._end.set()

    async def ended(self) -> int:
        await self._end.wait()
        return -9


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch,
    concurrency: int = 1,
    starts: int = 100,
    delay_s: float = 0.0,
    **options: int,
) -> AsyncIterator[tuple[Pool, list[StubChild]]]:
    """A pool whose slots start at once, the first `starts` of them."""
    started: list[StubChild] = []

    async def start(_: ChildSettings) -> Child:
        if len(started) == starts:
            await asyncio.Event().wait()
        started.append(StubChild())
        return cast("Child", started[-1])

    monkeypatch.setattr(Child, "start", start)
    monkeypatch.setattr(pool_module, "_LONGEST_DELAY_S", delay_s)
    pool = Pool(concurrency, SETTINGS, **options)
    task = asyncio.create_task(pool.run())
    try:
        yield pool, started
    finally:
        task.cancel()
        await asyncio.wait({task})


async def take(pool: Pool, catalog: str = "a", url: str = "http://proxy/") -> Child:
    async with asyncio.timeout(30):
        return await pool.take(catalog_path=catalog, data_url=url)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def test_a_slot_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, started):
        first = await take(pool)
        pool.give(first)
        second = await take(pool)

    assert first is second
    assert second.served == 2
    assert len(started) == 2  # one stands by


async def test_the_slot_that_has_the_catalog_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 3) as (pool, _):
        taken = {catalog: await take(pool, catalog) for catalog in "abc"}
        for child in taken.values():
            pool.give(child)

        found = [await take(pool, catalog) for catalog in "bac"]

    assert found == [taken["b"], taken["a"], taken["c"]]


async def test_who_waits_first_is_served_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, _):
        child = await take(pool)
        waiting = [asyncio.create_task(take(pool)) for _ in range(3)]
        await asyncio.sleep(0)
        for expected in waiting:
            pool.give(child)
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert expected in done
            waiting = [task for task in waiting if task is not expected]


async def test_who_stops_waiting_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, _):
        child = await take(pool)
        leaving = asyncio.create_task(take(pool))
        staying = asyncio.create_task(take(pool))
        await asyncio.sleep(0)
        pool.give(child)
        leaving.cancel()  # in the same moment as the slot came

        assert await staying is child
        with pytest.raises(asyncio.CancelledError):
            await leaving


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, _):
        child = await take(pool)
        waiting = [asyncio.create_task(take(pool)) for _ in range(16)]
        await asyncio.sleep(0)

        with pytest.raises(Limited) as caught:
            await take(pool)

        assert caught.value.code == "OVERLOADED"
        assert caught.value.retry_after_s
        for task in waiting:
            pool.give(child)
            child = await task


async def test_those_who_left_do_not_fill_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, _):
        child = await take(pool)
        for _ in range(40):
            leaving = asyncio.create_task(take(pool))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
        staying = asyncio.create_task(take(pool))
        await asyncio.sleep(0)
        pool.give(child)

        assert await staying is child


async def test_a_dead_slot_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, started):
        child = await take(pool)
        child.kill()
        pool.give(child)
        other = await take(pool)

        assert other is not child
        pool.give(other)
        other.kill()  # while nobody uses it
        await until(lambda: len(started) == 4)
        assert (await take(pool)).alive


async def test_who_waits_gets_the_one_that_stands_by_when_a_slot_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, starts=2) as (pool, started):
        child = await take(pool)
        waiting = asyncio.create_task(take(pool))
        await asyncio.sleep(0)
        child.kill()
        pool.give(child)

        assert (await waiting).alive
        assert len(started) == 2


async def test_no_more_run_than_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 2) as (pool, started):
        taken = [await take(pool), await take(pool)]
        await until(lambda: len(started) == 3)
        waiting = asyncio.create_task(take(pool))
        await asyncio.sleep(0)

        assert not waiting.done()
        pool.give(taken[0])
        assert await waiting is taken[0]


async def test_as_many_are_used_as_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that stands by keeps the memory that it started with."""
    async with running(monkeypatch, 2) as (pool, started):
        await until(lambda: len(started) == 3)
        for catalog in "abcdefgh":
            taken = [await take(pool, catalog), await take(pool, catalog + "2")]
            for child in taken:
                pool.give(child)

    assert sorted(child.served for child in started) == [0, 8, 8]


def take_idle(pool: Pool, catalog: str) -> Child | None:
    return pool.take_idle(catalog_path=catalog, data_url="http://proxy/")


async def test_the_slot_that_got_a_catalog_ahead_is_the_one_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, 2) as (pool, started):
        await until(lambda: len(started) == 3)
        first = take_idle(pool, "a")
        assert first is not None
        pool.give(first)
        assert await take(pool, "a") is first
        pool.give(first)
        second = take_idle(pool, "b")  # statements over "a" go on in the first
        assert second not in (None, first)
        assert await take(pool, "a") is first
        pool.give(first)
        pool.give(cast("Child", second))

        assert await take(pool, "b") is second
        assert take_idle(pool, "c") is None  # its only other one was used last


async def test_attaching_ahead_takes_no_slot_from_a_statement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, 1) as (pool, started):
        await until(lambda: len(started) == 2)
        child = await take(pool, "a")
        while_it_runs = take_idle(pool, "b")
        pool.give(child)
        afterwards = take_idle(pool, "b")

    assert (while_it_runs, afterwards) == (None, None)
    assert sorted(child.served for child in started) == [0, 1]


async def test_no_more_than_run_statements_ever_attach_a_catalog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, 2) as (pool, started):
        await until(lambda: len(started) == 3)
        for catalog in "abcdefgh":
            if (ahead := take_idle(pool, catalog)) is not None:
                pool.give(ahead)
            taken = [await take(pool, catalog), await take(pool, catalog + "2")]
            for child in taken:
                pool.give(child)

    assert [child.catalog_path for child in started].count(None) == 1


async def test_a_slot_of_another_read_proxy_gets_no_catalog_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, 1) as (pool, started):
        await until(lambda: len(started) == 2)
        for child in started:
            child.data_url = "http://other/"

        assert take_idle(pool, "a") is None


async def test_a_worn_out_slot_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, recycle_after=3) as (pool, started):
        for _ in range(7):
            pool.give(await take(pool))

    assert [child.served for child in started if child.served] == [3, 3, 1]


async def test_a_slot_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, started):
        child = await take(pool)
        await until(lambda: len(started) == 2)
        started[0].worn = started[1].worn = True
        pool.give(child)

        assert (await take(pool)) is not child
        assert not child.alive


async def test_no_slot_starts_beside_a_statement_for_a_while_unless_somebody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "_STARTS_AT_ONCE", 1)
    async with running(monkeypatch, 2, delay_s=60) as (pool, started):
        await take(pool)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(started) == 1

        await take(pool)
        assert len(started) == 2


async def test_another_read_proxy_gets_another_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as (pool, started):
        pool.give(await take(pool, url="http://one/"))
        other = await take(pool, url="http://two/")

        assert other.data_url == "http://two/"
        assert not started[0].alive


async def test_a_slot_that_does_not_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "_FIRST_PAUSE_S", 0.001)
    failures = iter([OSError("no memory"), TimeoutError("slow")])

    async def start(_: ChildSettings) -> Child:
        if error := next(failures, None):
            raise error
        return cast("Child", StubChild())

    monkeypatch.setattr(Child, "start", start)
    pool = Pool(1, SETTINGS)
    task = asyncio.create_task(pool.run())
    with caplog.at_level(logging.ERROR):
        assert (await take(pool)).alive
    task.cancel()
    await asyncio.wait({task})

    assert [record.message for record in caplog.records] == ["slot does not start"] * 2


async def test_a_pool_that_ends_kills_its_slots_and_tells_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as (pool, started):
        await take(pool)
        waiting = asyncio.create_task(take(pool))
        await asyncio.sleep(0)

    with pytest.raises(Unavailable) as caught:
        await waiting
    with pytest.raises(Unavailable):
        await take(pool)
    assert caught.value.code == "QUERY_UNAVAILABLE"
    assert not started[0].alive
