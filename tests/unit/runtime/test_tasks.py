"""A task in the background ends, also when it forgets that it was cancelled."""

from __future__ import annotations

import asyncio

import pytest

from duckmesh_runtime import tasks
from duckmesh_runtime.adapters import freeze_ahead
from duckmesh_runtime.adapters.freeze_ahead import FreezeAhead
from duckmesh_runtime.tasks import end


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    monkeypatch.setattr(freeze_ahead, "_FIRST_S", 0.01)


async def _forget(times: int, begun: asyncio.Event) -> None:
    for _ in range(times):
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def test_it_is_cancelled_again_until_it_ends() -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(_forget(3, begun))
    await begun.wait()

    async with asyncio.timeout(10):
        await end(task)

    assert task.done()


async def test_what_it_ended_with_is_told() -> None:
    async def broken() -> None:
        raise ValueError("broken")

    task = asyncio.create_task(broken())
    await asyncio.wait({task})

    with pytest.raises(ValueError, match="broken"):
        await end(task)


async def test_freezing_ahead_ends_although_the_catalog_breaks_while_it_is_cancelled() -> None:
    begun = asyncio.Event()

    async def renew() -> bool:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as cancelled:
            raise OSError("ROLLBACK on a connection that broke") from cancelled
        return True

    async def prepare() -> bool:
        return True

    async with asyncio.timeout(10):
        async with FreezeAhead(renew, prepare).running():
            await begun.wait()
            begun.clear()

    assert not begun.is_set()
