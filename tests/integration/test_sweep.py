"""`duckmesh.sweep()`: what the operator sees of all lakes of a catalog."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from tests.lakes import (
    EVENTS,
    LakeView,
    append_create,
    append_rows,
    committer_of,
    eventually,
    running,
    send,
    writer_pool,
)
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]


@pytest.fixture
async def control(lake: Lake) -> AsyncIterator[asyncpg.Connection]:
    """The operator's login: a member of duckmesh_control and nothing else."""
    login = f"{lake.name}_operator"
    await LakeView(lake).fetch(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE duckmesh_control")
    where = lake.catalog_dsn.rpartition("@")[2]
    connection = await asyncpg.connect(f"postgresql://{login}:x@{where}")
    try:
        yield connection
    finally:
        await connection.close()


async def _row(control: asyncpg.Connection, lake: Lake) -> asyncpg.Record:
    return await control.fetchrow("SELECT * FROM duckmesh.sweep() WHERE lake = $1", lake.name)


async def test_a_new_lake_is_empty_and_without_a_committer(
    lake: Lake, control: asyncpg.Connection
) -> None:
    row = await _row(control, lake)

    assert (row["tenant"], row["tenant_uid"]) == (lake.tenant, lake.tenant_uid)
    assert (row["token"], row["last"], row["pending_rows"], row["files"]) == (0, 0, 0, 0)
    assert (row["oldest_pending_at"], row["committed_at"], row["error"]) == (None, None, None)
    assert not row["committer_alive"]


async def test_lag_rises_while_nobody_commits(lake: Lake, control: asyncpg.Connection) -> None:
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(EVENTS, version=0), append_rows([1, 2, 3], version=1))

    row = await _row(control, lake)

    assert (row["token"], row["last"], row["pending_rows"]) == (0, 4, 3)
    assert timedelta() < row["now"] - row["oldest_pending_at"] < timedelta(minutes=1)


async def test_a_committed_lake_shows_its_committer_snapshot_and_files(
    lake: Lake, control: asyncpg.Connection
) -> None:
    async def beating() -> bool:
        return bool((await _row(control, lake))["committer_alive"])

    async with committer_of(lake, holder="pod-1") as committer, running(committer):
        async with writer_pool(lake) as pool:
            bus = PostgresBus(pool, lake.name)
            await send(bus, append_create(EVENTS, version=0))
            last = await send(bus, append_rows([1, 2, 3], version=1))
        await LakeView(lake).visible(last)
        await eventually(beating)
        row = await _row(control, lake)

    assert (row["token"], row["last"], row["pending_rows"]) == (4, 4, 0)
    assert (row["committer"], row["files"], row["small_files"]) == ("pod-1", 1, 1)
    assert row["bytes"] > 0
    assert row["committed_at"] <= row["now"]
    assert row["snapshot_id"] == await LakeView(lake).fetchval(
        f"SELECT max(snapshot_id) FROM {lake.name}.ducklake_snapshot"
    )
    assert not (await _row(control, lake))["committer_alive"]


@pytest.mark.parametrize(
    "damage", ["DROP SCHEMA {lake} CASCADE", "DROP SCHEMA {lake}_bus CASCADE"], ids=["lake", "bus"]
)
async def test_a_broken_lake_is_its_own_row_s_error(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake, damage: str
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    await LakeView(lake).fetch(damage.format(lake=lake.name))

    broken, sound = await _row(control, lake), await _row(control, other)

    assert broken["error"].startswith("42P01")
    assert sound["error"] is None
    assert sound["files"] == 0


async def test_a_locked_lake_delays_the_sweep_by_a_bounded_time(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    admin = await asyncpg.connect(lake.catalog_dsn)
    try:
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {lake.name}.ducklake_data_file")
            locked, sound = await _row(control, lake), await _row(control, other)
    finally:
        await admin.close()

    assert locked["error"].startswith("55P03")
    assert sound["error"] is None


async def test_control_reads_the_registry_and_no_lake(
    lake: Lake, control: asyncpg.Connection
) -> None:
    found = await control.fetchval("SELECT data_url FROM duckmesh.lake WHERE lake = $1", lake.name)

    assert found == lake.store.url
    for table in (f"{lake.name}.ducklake_snapshot", f"{lake.name}_bus.entry"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await control.fetch(f"SELECT * FROM {table}")
