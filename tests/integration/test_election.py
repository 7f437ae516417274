"""Who commits, decided by a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from duckmesh_runtime.adapters import election as adapter
from duckmesh_runtime.adapters.election import PostgresElection
from duckmesh_runtime.errors import Unavailable
from tests.lakes import LakeView, eventually, writer_pool
from tests.services import Lake

SOON_S = 20  # a busy machine


@asynccontextmanager
async def candidate(lake: Lake, holder: str) -> AsyncIterator[PostgresElection]:
    async with writer_pool(lake) as pool:
        subject = PostgresElection(
            lake=lake.name,
            secret_dir=lake.writer_dir,
            holder=holder,
            address=f"{holder}:8080",
            pool=pool,
        )
        try:
            yield subject
        finally:
            await subject.close()


async def _is_waiting(lake: Lake) -> bool:
    """Whether a candidate has asked in vain."""
    name = f"duckmesh:{lake.name}:standby"
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%try_advisory%'"
    return bool(await LakeView(lake).fetchval(query, name))


async def test_the_first_candidate_is_elected_and_can_be_found(lake: Lake) -> None:
    async with candidate(lake, "one") as one:
        term = await asyncio.wait_for(one.campaign(), SOON_S)

        assert term.epoch == await LakeView(lake).epoch() == 1
        assert await one.committer_address() == "one:8080"


async def test_of_two_candidates_one_is_elected(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_TTL_S", 3 * SOON_S)
    async with candidate(lake, "one") as one, candidate(lake, "two") as two:
        campaigns = [asyncio.create_task(each.campaign()) for each in (one, two)]
        done, waiting = await asyncio.wait(campaigns, return_when=asyncio.FIRST_COMPLETED)
        await eventually(lambda: _is_waiting(lake))

        assert (len(done), len(waiting)) == (1, 1)
        assert await LakeView(lake).epoch() == 1
        waiting.pop().cancel()
        await asyncio.wait(campaigns)


async def test_an_elected_holder_beats_from_the_moment_its_epoch_is_seen(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_INTERVAL_S", 3600.0)
    monkeypatch.setattr(adapter, "BEAT_TTL_S", 3600.0)
    async with candidate(lake, "one") as one, candidate(lake, "two") as two:
        term = await asyncio.wait_for(one.campaign(), SOON_S)
        campaign = asyncio.create_task(two.campaign())
        await eventually(lambda: _is_waiting(lake))

        assert await two.committer_address() == "one:8080"
        assert not term.lost.is_set()
        assert await LakeView(lake).epoch() == term.epoch
        campaign.cancel()
        await asyncio.wait({campaign})


async def test_a_released_role_is_taken_before_the_heartbeat_expires(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_TTL_S", 3 * SOON_S)
    async with candidate(lake, "one") as one, candidate(lake, "two") as two:
        first = await asyncio.wait_for(one.campaign(), SOON_S)
        campaign = asyncio.create_task(two.campaign())
        await eventually(lambda: _is_waiting(lake))

        await one.release()
        second = await asyncio.wait_for(campaign, SOON_S)

        assert first.lost.is_set()
        assert second.epoch == 2


async def test_a_holder_whose_connection_died_is_followed_before_its_heartbeat_expires(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_TTL_S", 3600.0)
    async with candidate(lake, "one") as one, candidate(lake, "two") as two:
        first = await asyncio.wait_for(one.campaign(), SOON_S)
        campaign = asyncio.create_task(two.campaign())
        await eventually(lambda: _is_waiting(lake))

        await LakeView(lake).fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            f"dm:{lake.name}:w:1",
        )
        second = await asyncio.wait_for(campaign, SOON_S)

        assert second.epoch == 2
        await asyncio.wait_for(first.lost.wait(), SOON_S)


async def test_a_holder_that_stops_beating_is_followed_though_it_is_connected(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_TTL_S", 0.2)
    monkeypatch.setattr(adapter, "BEAT_INTERVAL_S", 3600.0)
    async with candidate(lake, "hangs") as one, candidate(lake, "two") as two:
        await asyncio.wait_for(one.campaign(), SOON_S)

        second = await asyncio.wait_for(two.campaign(), SOON_S)

        assert second.epoch == 2


async def test_a_followed_holder_learns_it_at_its_next_beat(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "BEAT_INTERVAL_S", 0.05)
    async with candidate(lake, "one") as one:
        first = await asyncio.wait_for(one.campaign(), SOON_S)
        await LakeView(lake).fetch("SELECT duckmesh.take_over($1, 'w')", lake.name)

        await asyncio.wait_for(first.lost.wait(), SOON_S)


@asynccontextmanager
async def earlier_release(lake: Lake) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the writer that says no protocol, to a lake as the release before made it."""
    await LakeView(lake).fetch("UPDATE duckmesh.lease SET protocol = 1 WHERE lake = $1", lake.name)
    connection = await asyncpg.connect((lake.writer_dir / "dsn").read_text().strip())
    try:
        yield connection
    finally:
        await connection.close()


async def test_an_earlier_release_commits_until_one_of_this_release_is_there(lake: Lake) -> None:
    query, advance = "SELECT duckmesh.take_over($1, 'w')", "SELECT duckmesh.advance($1, $2, $3, $4)"
    async with earlier_release(lake) as earlier, candidate(lake, "new") as new:
        epoch = await earlier.fetchval(query, lake.name)
        await earlier.execute(advance, lake.name, epoch, 0, 1)

        await new.require_protocol()

        with pytest.raises(asyncpg.PostgresError, match="DUCKMESH_FENCED"):
            await earlier.execute(advance, lake.name, epoch, 1, 2)
        with pytest.raises(asyncpg.PostgresError, match="needs protocol 3, not 1"):
            await earlier.fetchval(query, lake.name)
        term = await asyncio.wait_for(new.campaign(), SOON_S)
        await new.require_protocol()
        assert await LakeView(lake).epoch() == term.epoch == epoch + 2


async def test_a_new_lake_speaks_the_protocol_of_its_release(lake: Lake) -> None:
    async with candidate(lake, "one") as one:
        assert not await one.speaks_more()
        await one.require_protocol()
        assert await LakeView(lake).epoch() == 0
    async with earlier_release(lake), candidate(lake, "new") as new:
        assert await new.speaks_more()


async def test_raising_the_protocol_ends_a_holder_that_hangs_in_a_commit(lake: Lake) -> None:
    async with earlier_release(lake) as earlier, candidate(lake, "new") as new:
        await earlier.execute(f"SET application_name = 'dm:{lake.name}:w:0'")
        await earlier.execute("BEGIN")
        await earlier.execute("SELECT duckmesh.advance($1, 0, 0, 1)", lake.name)

        await new.require_protocol()

        assert await LakeView(lake).epoch() == 1
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await earlier.execute("COMMIT")


async def test_raising_the_protocol_waits_for_a_running_commit(lake: Lake) -> None:
    async with earlier_release(lake) as earlier, candidate(lake, "new") as new:
        async with earlier.transaction():
            await earlier.execute("SELECT duckmesh.advance($1, 0, 0, 1)", lake.name)
            with pytest.raises(Unavailable):
                await new.require_protocol()
        await new.require_protocol()

        assert await LakeView(lake).epoch() == 1


async def test_a_take_over_from_an_older_epoch_takes_nothing(lake: Lake) -> None:
    async with writer_pool(lake) as pool:
        query = "SELECT duckmesh.take_over($1, 'w', 1000, $2)"

        assert await pool.fetchval(query, lake.name, 0) == 1
        assert await pool.fetchval(query, lake.name, 0) is None
        assert await LakeView(lake).epoch() == 1


async def test_a_take_over_ends_a_holder_that_stopped_inside_a_commit(lake: Lake) -> None:
    holder = await asyncpg.connect(
        (lake.writer_dir / "dsn").read_text().strip(),
        server_settings={"application_name": f"dm:{lake.name}:w:0"},
    )
    try:
        await holder.execute("BEGIN")
        # As a commit does, which holds the lease's row to its end.
        await holder.execute("SELECT duckmesh.advance($1, 0, 0, 0)", lake.name)
        async with candidate(lake, "two") as two:
            term = await asyncio.wait_for(two.campaign(), SOON_S)
            assert term.epoch == 1
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await holder.execute("COMMIT")
    finally:
        await holder.close()


async def test_a_campaign_waits_for_a_lake_that_is_not_made(lake: Lake) -> None:
    await LakeView(lake).fetch(
        "UPDATE duckmesh.lease SET lake = 'elsewhere' WHERE lake = $1", lake.name
    )
    async with candidate(lake, "one") as one:
        campaign = asyncio.create_task(one.campaign())
        await eventually(lambda: _is_waiting(lake))
        assert not campaign.done()

        back = "UPDATE duckmesh.lease SET lake = $1 WHERE lake = 'elsewhere'"
        await LakeView(lake).fetch(back, lake.name)
        assert (await asyncio.wait_for(campaign, SOON_S)).epoch == 1
