"""Pins against expiry in Postgres: whichever comes first, a pin that was acknowledged holds its snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from duckmesh_runtime.adapters import snapshots as adapter
from duckmesh_runtime.adapters.snapshots import PostgresSnapshots
from duckmesh_runtime.errors import Invalid, NotFound
from duckmesh_runtime.settings import read_secret
from tests import direct
from tests.lakes import LakeView, eventually, writer_pool
from tests.services import Lake

KEPT = "SELECT array_agg(snapshot_id ORDER BY snapshot_id) FROM {lake}.ducklake_snapshot"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
async def kept(lake: Lake) -> Lake:
    """Snapshots 0 to 4."""
    writer = await direct.lake_writer(lake)
    with closing(writer.connection):
        writer.commit("CREATE TABLE lake.t (id BIGINT)")
        for number in range(3):
            writer.commit(f"INSERT INTO lake.t VALUES ({number})")
    return lake


@pytest.fixture
async def store(kept: Lake) -> AsyncIterator[PostgresSnapshots]:
    async with writer_pool(kept) as pool:
        yield PostgresSnapshots(pool, kept.name)


@asynccontextmanager
async def expiring(lake: Lake) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of maintenance that has looked at the lake already, as the engine's has when it deletes."""
    epoch = await direct.take_over(lake, "m")
    connection = await asyncpg.connect(
        read_secret(lake.maintenance_dir, "dsn"),
        server_settings={"duckmesh.role": "m", "duckmesh.epoch": str(epoch)},
    )
    try:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.fetchval(KEPT.format(lake=lake.name))
        yield connection
    finally:
        await connection.close()


async def expire(connection: asyncpg.Connection, lake: Lake, number: int) -> None:
    await connection.execute(
        f"DELETE FROM {lake.name}.ducklake_snapshot WHERE snapshot_id = $1", number
    )


async def numbers(lake: Lake) -> list[int]:
    found: list[int] = await LakeView(lake).fetchval(KEPT.format(lake=lake.name))
    return found


async def wait_for_lock(lake: Lake) -> None:
    async def waits() -> bool:
        return bool(await LakeView(lake).fetchval(WAITING))

    await eventually(waits)


async def test_an_expiry_that_began_before_a_pin_does_not_take_its_snapshot(
    kept: Lake, store: PostgresSnapshots
) -> None:
    async with expiring(kept) as connection:
        await store.pin(2, "late", None)

        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await expire(connection, kept, 2)

    assert await numbers(kept) == [0, 1, 2, 3, 4]


async def test_a_pin_waits_for_an_expiry_under_way_and_finds_the_snapshot_gone(
    kept: Lake, store: PostgresSnapshots
) -> None:
    async with expiring(kept) as connection:
        await expire(connection, kept, 2)
        pinning = asyncio.create_task(store.pin(2, "late", None))
        await wait_for_lock(kept)

        await connection.execute("COMMIT")
        with pytest.raises(NotFound) as caught:
            await pinning

    assert caught.value.code == "SNAPSHOT_EXPIRED"
    assert await numbers(kept) == [0, 1, 3, 4]


async def test_a_pin_that_waited_for_an_expiry_that_fails_holds(
    kept: Lake, store: PostgresSnapshots
) -> None:
    async with expiring(kept) as connection:
        await expire(connection, kept, 2)
        pinning = asyncio.create_task(store.pin(2, "late", None))
        await wait_for_lock(kept)

        await connection.execute("ROLLBACK")
        pinned = await pinning

    assert [pin.name for pin in pinned.pins] == ["late"]


async def test_an_expiry_waits_for_a_pin_that_is_being_written(kept: Lake) -> None:
    pin = f"INSERT INTO {kept.name}_bus.pin (snapshot_id, name) VALUES (2, '')"
    async with writer_pool(kept) as pool, pool.acquire() as writer, expiring(kept) as connection:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(pin)
        deleting = asyncio.create_task(expire(connection, kept, 2))
        await wait_for_lock(kept)

        await transaction.commit()
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await deleting

    assert await numbers(kept) == [0, 1, 2, 3, 4]


async def test_a_pin_past_its_time_that_is_prolonged_meanwhile_holds(
    kept: Lake, store: PostgresSnapshots
) -> None:
    past = f"INSERT INTO {kept.name}_bus.pin VALUES (2, 'old', now() - interval '2h', now() - interval '1h')"
    await LakeView(kept).fetch(past)
    async with expiring(kept) as connection:
        pinned = await store.pin(2, "old", None)

        with pytest.raises(asyncpg.SerializationError):
            await expire(connection, kept, 3)

    assert [pin.expires_at for pin in pinned.pins] == [None]
    assert await numbers(kept) == [0, 1, 2, 3, 4]


async def test_a_pinned_snapshot_reads_the_same_after_all_around_it_expired(
    kept: Lake, store: PostgresSnapshots
) -> None:
    await store.pin(3, "", None)
    keeper = direct.attach(kept, "m", await direct.take_over(kept, "m"))

    with closing(keeper):
        keeper.execute("CALL ducklake_expire_snapshots('lake', versions => [0, 1, 2])")
        keeper.execute("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)")
        rows = keeper.execute("SELECT id FROM lake.t AT (VERSION => 3) ORDER BY id").fetchall()

    assert rows == [(0,), (1,)]
    assert await numbers(kept) == [3, 4]


async def test_a_lake_has_so_many_pins_and_no_more(
    kept: Lake, store: PostgresSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_MOST_PINS", 2)
    await store.pin(2, "a", None)
    await store.pin(2, "b", None)

    with pytest.raises(Invalid, match="2 pins"):
        await store.pin(3, "", None)
    assert len((await store.pin(2, "a", datetime.now(UTC) + timedelta(days=1))).pins) == 2
    await store.unpin(2, "a")

    assert (await store.pin(3, "", None)).pins


async def test_pins_are_the_lake_s_own(kept: Lake) -> None:
    for folder in (kept.reader_dir, kept.maintenance_dir):
        connection = await asyncpg.connect(read_secret(folder, "dsn"))
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"DELETE FROM {kept.name}_bus.pin")
        finally:
            await connection.close()
