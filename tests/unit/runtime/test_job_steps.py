"""The further steps of a Compactor's Job: which there are, how they wait for the lease, and how they end early."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services.job_steps import claimed, steps_of, unless
from tests.fakes.maintenance import FakeMaintenance


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run asks for."""

    orphans: str
    integrity: str
    orphans_older_than_s: float = 86_400


@pytest.mark.parametrize(
    ("orphans", "integrity", "names"),
    [
        ("None", "None", []),
        ("Report", "None", ["orphans"]),
        ("None", "Cheap", ["integrity"]),
        ("Delete", "Deep", ["orphans", "integrity"]),
    ],
)
def test_a_run_has_the_steps_it_asks_for(orphans: str, integrity: str, names: list[str]) -> None:
    steps = steps_of(
        Run(orphans=orphans, integrity=integrity),
        open_check=None,  # type: ignore[arg-type]
        open_maintenance=None,  # type: ignore[arg-type]
        store=None,  # type: ignore[arg-type]
        stop=asyncio.Event(),
    )

    assert [name for name, _ in steps] == names


async def test_a_holder_that_has_a_round_to_end_is_waited_for() -> None:
    class Busy(FakeMaintenance):
        tries = 0

        async def claim(self) -> bool:
            self.tries += 1
            return self.tries > 3

    busy = Busy()

    assert await claimed(busy, wait_s=600, pause_s=0)
    assert busy.tries == 4


async def test_one_that_never_ends_is_not() -> None:
    lake = FakeMaintenance()
    lake.ours = False

    assert not await claimed(lake, wait_s=0, pause_s=0)


async def test_work_ends_early_when_the_run_is_told_to_end() -> None:
    stop, begun, tidied = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            tidied.set()

    running = asyncio.create_task(unless(stop, work()))
    await begun.wait()
    stop.set()
    await asyncio.wait_for(running, 60)

    assert tidied.is_set()


async def test_work_that_fails_says_so_and_work_that_is_done_is_done() -> None:
    done = asyncio.Event()

    async def fails() -> None:
        raise Unavailable("STORAGE_UNAVAILABLE", "away")

    async def works() -> None:
        done.set()

    with pytest.raises(Unavailable, match="away"):
        await unless(asyncio.Event(), fails())
    await unless(asyncio.Event(), works())
    assert done.is_set()
