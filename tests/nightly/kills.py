"""A loop of kills under load: a replica, both, Postgres, the store; after each one every acknowledged row is there once."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.bench.stack import Stack
from tests.lakes import LakeView
from tests.pods import Pod, Tenant, tenant_of
from tests.writers import TABLE, acked, check_rows, load_on

ANSWERS = 300
STOPPED_S = 6.0
"""Longer than a heartbeat lives: the sibling takes over, then the stopped one wakes."""


@dataclass(slots=True)
class Ground:
    """What can be killed."""

    stack: Stack
    tenant: Tenant
    pods: list[Pod]

    def again(self, place: int) -> None:
        """Start a process in the place of one that ended, at the same address."""
        self.pods[place] = self.tenant.start("serve", "ingest", port=self.pods[place].port)

    def committer(self) -> int:
        """Place of the replica that commits, as far as one can tell."""
        for place, pod in enumerate(self.pods):
            try:
                if pod.metric("duckmesh_committer_active") == 1:
                    return place
            except OSError:
                continue
        return 0


async def kill_committer(ground: Ground) -> None:
    place = await asyncio.to_thread(ground.committer)
    ground.pods[place].process.kill()
    ground.pods[place].process.wait()
    ground.again(place)


async def kill_other(ground: Ground) -> None:
    place = 1 - await asyncio.to_thread(ground.committer)
    ground.pods[place].process.kill()
    ground.pods[place].process.wait()
    ground.again(place)


async def kill_both(ground: Ground) -> None:
    for place in (0, 1):
        ground.pods[place].process.kill()
        ground.pods[place].process.wait()
        ground.again(place)


async def end_committer(ground: Ground) -> None:
    place = await asyncio.to_thread(ground.committer)
    ground.pods[place].process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(ground.pods[place].process.wait, 60)
    ground.again(place)


async def stop_committer(ground: Ground) -> None:
    place = await asyncio.to_thread(ground.committer)
    ground.pods[place].process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED_S)
    ground.pods[place].process.send_signal(signal.SIGCONT)


async def crash_postgres(ground: Ground) -> None:
    await asyncio.to_thread(ground.stack.postgres.stop, signal.SIGQUIT)
    await asyncio.to_thread(ground.stack.postgres.start)


async def crash_store(ground: Ground) -> None:
    await asyncio.to_thread(ground.stack.s3.stop, signal.SIGKILL)
    await asyncio.to_thread(ground.stack.s3.start)


KILLS: Sequence[Callable[[Ground], Awaitable[None]]] = (
    kill_committer,
    kill_other,
    kill_both,
    end_committer,
    stop_committer,
    crash_postgres,
    crash_store,
)


def kills(stack: Stack, minutes: float) -> Sequence[str]:
    """Run, print the figures; returns what is violated."""
    with tenant_of(stack.lake()) as tenant:
        pods = [tenant.ingest(), tenant.ingest()]
        status, answer = pods[0].call("POST", "/v1/tables", TABLE)
        assert status == 201, answer
        return asyncio.run(_loop(Ground(stack, tenant, pods), minutes))


async def _loop(ground: Ground, minutes: float) -> Sequence[str]:
    choice, done, slowest = random.Random(), Counter[str](), Counter[str]()  # noqa: S311 - not a secret
    view, end = LakeView(ground.tenant.lake), time.monotonic() + minutes * 60
    found: list[str] = []
    # A request is sent until it is answered: Postgres may be away for seconds.
    async with load_on(ground.pods, tries=200, longest_s=minutes * 60 + 300) as load:
        turns = list(KILLS)
        while time.monotonic() < end:
            kill = turns.pop() if turns else choice.choice(KILLS)
            await acked(load, ANSWERS)
            started = time.monotonic()
            await kill(ground)
            await acked(load, ANSWERS)
            await view.visible(load.last_number(ground.tenant.lake), 120)
            done[kill.__name__] += 1
            took = int((time.monotonic() - started) * 1000)
            slowest[kill.__name__] = max(slowest[kill.__name__], took)
    try:
        await check_rows(ground.tenant.lake, load)
    except AssertionError as error:
        found.append(f"rows differ from what was acknowledged: {str(error)[:500]}")
    print(
        f"kills: {minutes:g} min, two replicas, {load.sent:,} requests, {load.retried:,} sent again"
    )
    print(f"  longest time without any ack {load.longest_gap_s:.1f} s")
    for name, count in sorted(done.items()):
        print(f"  {name}: {count} times, slowest until new rows were visible {slowest[name]:,} ms")
    return found
