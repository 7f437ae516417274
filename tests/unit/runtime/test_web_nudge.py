from __future__ import annotations

import asyncio
from typing import Any

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.web.nudge import Nudger
from tests.fakes.doors import LAKE


async def nudged(doors: Any, times: int) -> None:
    async with asyncio.timeout(10):
        while doors.committer.nudges < times:
            await asyncio.sleep(0.01)


async def test_a_nudge_reaches_the_committer_of_another_process(doors: Any) -> None:
    async def find() -> str:
        return str(doors.url)

    nudger = Nudger(doors.parts.keys, LAKE, find)
    task = asyncio.create_task(nudger.run())

    nudger.send()
    await nudged(doors, 1)
    nudger.send()
    await nudged(doors, 2)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_committer_that_cannot_be_found_or_reached_is_looked_for_again(doors: Any) -> None:
    answers = iter([Unavailable("CATALOG_UNAVAILABLE", "away"), None, "http://127.0.0.1:1"])
    asked = []

    async def find() -> str | None:
        asked.append(1)
        found = next(answers, doors.url)
        if isinstance(found, Exception):
            raise found
        return found

    nudger = Nudger(doors.parts.keys, LAKE, find, keep_s=0)
    task = asyncio.create_task(nudger.run())

    async with asyncio.timeout(10):
        while not doors.committer.nudges:
            nudger.send()
            await asyncio.sleep(0.01)

    assert len(asked) >= 4
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
