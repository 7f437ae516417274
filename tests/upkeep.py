"""Rounds of maintenance over a real lake, and time that passes for it: snapshots and files are moved back instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from duckmesh_runtime.adapters.maintenance import DuckLakeMaintenance, open_maintenance
from duckmesh_runtime.services.compaction import Compaction
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.settings import CompactionSettings, SnapshotSettings
from tests.lakes import LakeView
from tests.services import Lake

HOUR_S = 3600.0


def expiry_of(
    lake: Lake,
    *,
    keep: SnapshotSettings | None = None,
    files_stay_s: float = HOUR_S,
    holder: str = "one",
    interval_s: float = 0.01,
    active: Callable[[], bool] = lambda: True,
) -> Expiry:
    return Expiry(
        lambda: maintenance_of(lake, holder),
        active=active,
        keep=keep or SnapshotSettings(keep_last=1),
        files_stay_s=files_stay_s,
        interval_s=interval_s,
    )


def compaction_of(
    lake: Lake,
    *,
    small_files: int = 4,
    enabled: bool = True,
    holder: str = "one",
    interval_s: float = 0.01,
    active: Callable[[], bool] = lambda: True,
    turn: asyncio.Lock | None = None,
) -> Compaction:
    return Compaction(
        lambda: maintenance_of(lake, holder),
        active=active,
        settings=CompactionSettings(enabled=enabled, small_files=small_files),
        turn=turn or asyncio.Lock(),
        busy_s=interval_s,
        idle_s=interval_s,
    )


@asynccontextmanager
async def maintenance_of(lake: Lake, holder: str = "one") -> AsyncIterator[DuckLakeMaintenance]:
    async with open_maintenance(
        lake=lake.name, store=lake.store, secret_dir=lake.maintenance_dir, holder=holder
    ) as found:
        yield found


async def behind_the_fence(lake: Lake, statement: str, *args: object) -> None:
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(statement.format(lake=lake.name), *args)
    finally:
        await connection.close()


async def make_older(lake: Lake, by: timedelta, *ids: int) -> None:
    """Move snapshots back in time; all without ids."""
    await behind_the_fence(
        lake,
        "UPDATE {lake}.ducklake_snapshot SET snapshot_time = snapshot_time - $1::interval "
        "WHERE cardinality($2::bigint[]) = 0 OR snapshot_id = ANY ($2)",
        by,
        list(ids),
    )


async def make_files_older(lake: Lake, by: timedelta) -> None:
    await behind_the_fence(
        lake,
        "UPDATE {lake}.ducklake_files_scheduled_for_deletion SET schedule_start = schedule_start - $1::interval",
        by,
    )


async def snapshot_ids(lake: Lake) -> Sequence[int]:
    rows = await LakeView(lake).fetch(
        f"SELECT snapshot_id FROM {lake.name}.ducklake_snapshot ORDER BY 1"
    )
    return [row[0] for row in rows]
