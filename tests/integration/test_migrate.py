"""`duckmesh migrate` against a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest

from duckmesh_runtime import sql
from duckmesh_runtime.adapters import migrate as adapter
from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.errors import Corrupt, Unauthorized, Unavailable
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]

_STATE = """
SELECT jsonb_build_object(
  'snapshots', (SELECT count(*) FROM {lake}.ducklake_snapshot),
  'options', (SELECT jsonb_agg(m ORDER BY m.key) FROM {lake}.ducklake_metadata AS m),
  'triggers', (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal),
  'registry', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lake AS l),
  'lease', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lease AS l),
  'status', (SELECT jsonb_agg(jsonb_build_object('row', l, 'xmin', l.xmin::text)) FROM duckmesh.lake_status AS l),
  'applied', (SELECT jsonb_agg(s ORDER BY s.number) FROM duckmesh.schema_migration AS s),
  'relations', (SELECT count(*) FROM pg_class))::text
"""


async def _fetchval(dsn: str, query: str, *args: object) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close()


async def _state(lake: Lake) -> object:
    return await _fetchval(lake.catalog_dsn, _STATE.format(lake=lake.name))


async def test_a_second_run_changes_nothing(lake: Lake) -> None:
    before = await _state(lake)

    await migrate(lake.migrate_settings)

    assert await _state(lake) == before


async def test_the_newest_migration_is_recorded_for_the_lake(lake: Lake) -> None:
    query = "SELECT migration FROM duckmesh.lake WHERE lake = $1 AND tenant_uid = $2"

    assert await _fetchval(lake.catalog_dsn, query, lake.name, lake.tenant_uid) == sql.MIGRATION


@pytest.mark.parametrize("step", ["_apply", "_register", "_make_lake", "_install"])
async def test_a_run_ended_before_a_step_is_finished_by_the_next(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    lake = await make_lake(migrated=False)

    async def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapter, step, end)
        with pytest.raises(KeyboardInterrupt):
            await migrate(lake.migrate_settings)
    await migrate(lake.migrate_settings)

    before = await _state(lake)
    await migrate(lake.migrate_settings)
    assert await _state(lake) == before


async def test_a_run_ended_between_schema_and_option_is_finished_by_the_next(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = await make_lake(migrated=False)

    with monkeypatch.context() as patch:
        patch.setattr(adapter.lakesql, "store_inlining_off", lambda: "SELECT error('ended here')")
        with pytest.raises(Unavailable):
            await migrate(lake.migrate_settings)
    await migrate(lake.migrate_settings)

    query = f"SELECT value FROM {lake.name}.ducklake_metadata WHERE key = 'data_inlining_row_limit'"
    assert await _fetchval(lake.catalog_dsn, query) == "0"


async def test_runs_for_two_lakes_of_one_database_may_overlap(make_lake: MakeLake) -> None:
    first = await make_lake(migrated=False)
    second = await make_lake(migrated=False, dsn=first.catalog_dsn)

    runs = (first, second, first, second)
    await asyncio.gather(*(migrate(lake.migrate_settings) for lake in runs))

    query = "SELECT array_agg(lake ORDER BY lake) FROM duckmesh.lake WHERE migration = $1"
    found = await _fetchval(first.catalog_dsn, query, sql.MIGRATION)
    assert found == sorted([first.name, second.name])


@pytest.mark.parametrize("change", ["uid", "url"])
async def test_a_lake_of_another_owner_or_place_is_refused(lake: Lake, change: str) -> None:
    settings = lake.migrate_settings
    other = (
        replace(settings, tenant_uid="another")
        if change == "uid"
        else replace(settings, store=replace(settings.store, url=f"{settings.store.url}x/"))
    )
    before = await _state(lake)

    with pytest.raises(Unauthorized):
        await migrate(other)

    assert await _state(lake) == before


async def test_an_edited_migration_is_refused(lake: Lake) -> None:
    edit = "UPDATE duckmesh.schema_migration SET checksum = 'x' WHERE number = 2"
    await _fetchval(lake.catalog_dsn, edit)

    with pytest.raises(Corrupt, match="0002"):
        await migrate(lake.migrate_settings)


async def test_a_newer_release_s_migration_is_left_alone(lake: Lake) -> None:
    newer = "INSERT INTO duckmesh.schema_migration (number, name, checksum) VALUES (9999, 'x', 'x')"
    await _fetchval(lake.catalog_dsn, newer)

    await migrate(lake.migrate_settings)

    query = "SELECT count(*) FROM duckmesh.schema_migration"
    assert await _fetchval(lake.catalog_dsn, query) == sql.MIGRATION + 1
