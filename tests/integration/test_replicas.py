"""Two ingest replicas under load and the end of one of them: nothing lost, nothing twice, acks go on."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.lakes import LakeView
from tests.pods import Pod, Tenant
from tests.services import Lake
from tests.writers import CLIENTS, TABLE, acked, check_rows, load_on


@pytest.fixture
async def pods(tenant: Tenant) -> tuple[Pod, Pod]:
    """The committer, and its sibling."""
    first, second = await asyncio.to_thread(lambda: (tenant.ingest(), tenant.ingest()))
    await asyncio.to_thread(first.call, "POST", "/v1/tables", TABLE)
    active = first.metric("duckmesh_committer_active") == 1
    return (first, second) if active else (second, first)


@pytest.mark.parametrize("which", ["the committer", "the other one"])
async def test_a_replica_killed_under_load_costs_each_client_one_retry(
    lake: Lake, pods: tuple[Pod, Pod], which: str
) -> None:
    victim = pods[0] if which == "the committer" else pods[1]
    async with load_on(pods) as load:
        await acked(load, 200)
        victim.process.kill()
        victim.process.wait()
        await acked(load, 400)

    await check_rows(lake, load)
    # Each client had one request under way, or sent its next one to the dead address; after that it knows better.
    assert 0 < load.retried <= CLIENTS


async def test_an_orderly_end_under_load_loses_nothing(lake: Lake, pods: tuple[Pod, Pod]) -> None:
    committer, other = pods
    async with load_on(pods) as load:
        await acked(load, 200)
        committer.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(committer.process.wait, 20)
        await acked(load, 200)

    await check_rows(lake, load)
    assert code == 0
    assert other.metric("duckmesh_committer_active") == 1


async def test_after_a_killed_committer_new_rows_are_visible(
    lake: Lake, pods: tuple[Pod, Pod]
) -> None:
    committer, _ = pods
    view = LakeView(lake)
    async with load_on(pods) as load:
        await acked(load, 200)
        committer.process.kill()
        committer.process.wait()
        await acked(load, CLIENTS)
        await view.visible(load.last_number(lake), 15)

    await check_rows(lake, load)


async def test_rows_that_both_replicas_took_outlive_both(
    lake: Lake, tenant: Tenant, pods: tuple[Pod, Pod]
) -> None:
    async with load_on(pods) as load:
        await acked(load, 200)
    for pod in pods:
        pod.process.kill()
        pod.process.wait()

    await asyncio.to_thread(tenant.ingest)

    await check_rows(lake, load)
