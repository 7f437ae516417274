"""When a catalog is frozen ahead: at the start, while queries come, and never else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from duckmesh_runtime.adapters import freeze_ahead
from duckmesh_runtime.adapters.freeze_ahead import FreezeAhead
from duckmesh_runtime.errors import Unavailable


class Bench:
    """A freezer that counts; `down` makes it fail, `absent` is how often there is no process to attach."""

    def __init__(self, *, down: bool = False, absent: int = 0) -> None:
        self.down = down
        self.absent = absent
        self.renewed = self.prepared = 0
        self.ahead = FreezeAhead(self._renew, self._prepare)

    async def _renew(self) -> bool:
        self.renewed += 1
        if self.down:
            raise Unavailable("CATALOG_UNAVAILABLE", "no")
        return True

    async def _prepare(self) -> bool:
        self.prepared += 1
        return self.prepared > self.absent


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_ahead, "_EVERY_S", 0.001)
    monkeypatch.setattr(freeze_ahead, "_AFTER_FAILURE_S", 0.004)
    monkeypatch.setattr(freeze_ahead, "_FOR_S", 60)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_start_freezes_and_attaches_without_a_query_and_then_rests() -> None:
    bench = Bench(absent=2)

    async with bench.ahead.running():
        await until(lambda: bench.prepared == 3)
        await asyncio.sleep(0.05)

    assert (bench.renewed, bench.prepared) == (1, 3)


async def test_a_start_has_its_first_catalog() -> None:
    bench = Bench(absent=10**9)

    async with bench.ahead.running():
        assert bench.renewed == 1


async def test_a_start_does_not_wait_for_a_catalog_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(freeze_ahead, "_FIRST_S", 0.01)
    coming = asyncio.Event()
    begun: list[bool] = []

    async def renew() -> bool:
        begun.append(await coming.wait())
        return True

    ahead = FreezeAhead(renew, renew)
    async with ahead.running():
        assert not begun
        coming.set()
        await until(lambda: len(begun) == 2)


async def test_it_goes_on_while_queries_come_and_rests_when_none_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    async with bench.ahead.running():
        await until(lambda: bench.prepared)
        for _ in range(2):
            before = bench.renewed
            bench.ahead.asked()
            await until(lambda seen=before: bench.renewed > seen + 3)  # type: ignore[misc]  # mypy: lambda's default
        monkeypatch.setattr(freeze_ahead, "_FOR_S", 0)
        await until(lambda: not bench.ahead.busy)
        rested = bench.renewed
        await asyncio.sleep(0.05)

    assert bench.renewed == rested


async def test_a_query_at_the_start_does_not_wait_for_the_sandbox() -> None:
    bench = Bench(absent=10**9)

    async with bench.ahead.running():
        await until(lambda: bench.prepared)
        bench.ahead.asked()
        before = bench.renewed
        await until(lambda: bench.renewed > before + 3)


async def test_a_catalog_database_that_is_down_is_told_once_and_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(down=True)

    with caplog.at_level(logging.INFO):
        async with bench.ahead.running():
            await until(lambda: bench.renewed > 5)
            for _ in range(10):
                bench.ahead.asked()
                before = bench.renewed
                await until(lambda seen=before: bench.renewed > seen)  # type: ignore[misc]  # mypy: lambda's default
            bench.down = False
            before = bench.renewed
            bench.ahead.asked()
            await until(lambda: bench.renewed > before + 3)
            bench.down = True
            before = bench.renewed
            bench.ahead.asked()
            await until(lambda: bench.renewed > before + 3)

    assert [record.message for record in caplog.records] == ["catalog is not frozen ahead"] * 2
