"""The operator under faults of the API server and of its own life: every end must be that of a run without faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tests.bench.stack import Stack
from tests.faults.cases import CASES
from tests.faults.ground import FIRST, Ground, running_ground
from tests.faults.kills import MODES, PHASES, kill_everywhere
from tests.nightly.deletion import bucket, left_of_lakes


def operator_faults(stack: Stack, minutes: float) -> Sequence[str]:
    """Run, print what was seen; returns what is violated. As many cases whatever the minutes; needs no stack."""
    return asyncio.run(run())


async def run(cases: Sequence[str] = (), phases: Sequence[str] = PHASES) -> Sequence[str]:
    """All cases, or those named; then kills at every write of the phases."""
    found: list[str] = []
    async with running_ground() as ground:
        for case in CASES:
            if cases and case.__name__ not in cases:
                continue
            try:
                print(f"operator: {case.__name__}: {await case(ground)}", flush=True)
            except AssertionError as error:
                found.append(f"{case.__name__}: {error}")
                print(f"operator: {case.__name__}: FAILED {error}", flush=True)
                await ground.reset()
    async with running_ground() as ground:
        for phase in phases:
            found += await _kills(ground, phase)
    with bucket() as (server, _):
        place = {"bucket": server.bucket, "endpoint": server.endpoint}
        wholly = FIRST | {"deletionPolicy": "Delete"}
        async with running_ground(store=place, first=wholly) as ground:
            found += await _kills(ground, "delete")
            found += [
                f"left of removed lakes: {each}" for each in await left_of_lakes(ground.world)
            ]
    return found


async def _kills(ground: Ground, phase: str) -> list[str]:
    found: list[str] = []
    for mode in MODES:
        started, done = time.monotonic(), 0
        async for killed in kill_everywhere(ground, phase, mode):
            done += 1
            if killed.problem:
                where = f"killed {mode} write {killed.number} ({killed.call}) of {phase}"
                found.append(f"{where}: {killed.problem}")
        took = time.monotonic() - started
        policy = ground.first.get("deletionPolicy", "Retain")
        print(
            f"operator: killed {mode} each of {done} writes of {phase} ({policy}), {took:.0f} s",
            flush=True,
        )
    return found
