"""`duckmesh purge` against real Postgres and S3: a lake goes whole, its neighbours in catalog and bucket stay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import obstore
import pytest
from obstore.store import S3Store

from duckmesh_runtime.adapters import objects
from duckmesh_runtime.adapters import purge as adapter
from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.adapters.purge import purge
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.errors import SettingsError, Unauthorized, Unavailable
from duckmesh_runtime.settings import PurgeSettings, purge_from_env, read_secret
from tests.lakes import rows_of, stage
from tests.services import Lake, bucket_of

_LEFT = """
SELECT jsonb_build_object(
  'schemas', (SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, $1)),
  'status', (SELECT count(*) FROM duckmesh.lake_status WHERE lake = $1),
  'lease', (SELECT count(*) FROM duckmesh.lease WHERE lake = $1),
  'heartbeat', (SELECT count(*) FROM duckmesh.heartbeat WHERE lake = $1),
  'declared', (SELECT count(*) FROM duckmesh.declared_tables WHERE lake = $1),
  'rights', (SELECT count(*) FROM pg_shdepend AS d JOIN pg_roles AS r ON r.oid = d.refobjid
              WHERE d.refclassid = 'pg_authid'::regclass AND starts_with(r.rolname, $1)),
  'purged', (SELECT count(*) FROM duckmesh.lake WHERE lake = $1 AND purged_at IS NOT NULL))::text
"""
GONE = '{"lease": 0, "purged": 1, "rights": 0, "status": 0, "schemas": 0, "declared": 0, "heartbeat": 0}'


def settings_of(lake: Lake) -> PurgeSettings:
    return PurgeSettings(
        tenant=lake.tenant,
        tenant_uid=lake.tenant_uid,
        lake=lake.name,
        store=lake.store,
        admin_dir=lake.admin_dir,
    )


async def left_of(lake: Lake) -> object:
    """What the catalog still has of a lake."""
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        return await connection.fetchval(_LEFT, lake.name)
    finally:
        await connection.close()


@dataclass
class Bucket:
    """The bucket that all lakes of a test share."""

    store: S3Store

    def put(self, *paths: str) -> None:
        for path in paths:
            obstore.put(self.store, path, b"x")

    def below(self, prefix: str) -> set[str]:
        """Every object whose name starts with these characters, folder or not."""
        everything = (each["path"] for batch in obstore.list(self.store) for each in batch)
        return {path for path in everything if path.startswith(prefix)}


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(bucket_of(s3))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_BATCH", 2)


async def fill(lake: Lake, bucket: Bucket) -> None:
    """A Parquet file, and some of what else a lake's folder may hold."""
    await stage(lake, rows_of(range(3)))
    bucket.put(*(f"{lake.name}/main/{n}.parquet" for n in range(4)), f"{lake.name}/loose")


@pytest.mark.usefixtures("small_batches")
async def test_a_lake_goes_whole_and_its_neighbours_stay(
    s3_lake: Lake, make_lake: Callable[..., Awaitable[Lake]], bucket: Bucket
) -> None:
    neighbour = await make_lake(store="s3", dsn=s3_lake.catalog_dsn)
    twins = {f"{s3_lake.name}2/main/x.parquet", f"{s3_lake.name}.parquet", f"{s3_lake.name}-b/x"}
    bucket.put(*twins)
    await fill(s3_lake, bucket)
    await fill(neighbour, bucket)
    before = bucket.below(neighbour.name), await left_of(neighbour)

    await purge(settings_of(s3_lake))

    assert await left_of(s3_lake) == GONE
    assert bucket.below(s3_lake.name) == twins
    assert (bucket.below(neighbour.name), await left_of(neighbour)) == before
    await migrate(neighbour.migrate_settings)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("step", ["begin", "half of the files", "catalog", "answer"])
async def test_a_purge_ended_at_a_step_is_finished_by_the_next(
    s3_lake: Lake, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await fill(s3_lake, bucket)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt, asyncpg.DivisionByZeroError):
        _end_at(step, patch)
        await purge(settings_of(s3_lake))
    left = len(bucket.below(f"{s3_lake.name}/"))
    await purge(settings_of(s3_lake))

    assert left == {"begin": 6, "half of the files": 4, "catalog": 0, "answer": 0}[step]
    assert await left_of(s3_lake) == GONE
    assert not bucket.below(f"{s3_lake.name}/")


def _end_at(step: str, patch: pytest.MonkeyPatch) -> None:
    found = objects._first_paths
    looks: Iterator[None] = iter([None])

    async def end(*_: object) -> None:
        raise KeyboardInterrupt

    async def second_look(store: Any) -> list[str]:
        if next(looks, "over") == "over":
            raise KeyboardInterrupt
        return await found(store)

    if step == "begin":
        patch.setattr(adapter.StoreObjects, "remove_all", end)
    elif step == "half of the files":
        patch.setattr(objects, "_first_paths", second_look)
    elif step == "catalog":
        patch.setattr(adapter, "_PURGE", "SELECT 1 / 0 WHERE ($1::text, $2::text) IS NOT NULL")
    else:
        patch.setattr(adapter.logger, "info", _end_after("lake removed"))


def _end_after(said: str) -> Callable[..., None]:
    def info(text: str, **_: object) -> None:
        if text == said:
            raise KeyboardInterrupt

    return info


@pytest.mark.parametrize("wrong", ["uid", "place", "shared", "inner"])
async def test_what_is_not_this_tenants_alone_is_refused_and_left(
    s3_lake: Lake, bucket: Bucket, wrong: str
) -> None:
    await fill(s3_lake, bucket)
    settings, url = settings_of(s3_lake), s3_lake.store.url
    others = {"shared": url.rpartition(s3_lake.name)[0], "inner": f"{url}inner/"}
    if wrong == "uid":
        settings = replace(settings, tenant_uid="00000000-0000-4000-8000-000000000000")
    elif wrong == "place":
        settings = replace(settings, store=replace(settings.store, url=f"{url}main/"))
    else:
        admin = await asyncpg.connect(s3_lake.catalog_dsn)
        register = "SELECT duckmesh.register_lake('lake_other', 'a/other', 'u', $1, 0)"
        await admin.execute(register, others[wrong])
        await admin.close()
    before = bucket.below(s3_lake.name), await left_of(s3_lake)

    with pytest.raises(Unauthorized):
        await purge(settings)

    assert (bucket.below(s3_lake.name), await left_of(s3_lake)) == before
    await migrate(s3_lake.migrate_settings)


async def test_a_store_that_does_not_answer_leaves_the_catalog_until_it_does(
    s3_lake: Lake,
) -> None:
    settings, before = settings_of(s3_lake), await left_of(s3_lake)
    down = replace(settings.store, endpoint="http://127.0.0.1:1")

    with pytest.raises(Unavailable):
        await purge(replace(settings, store=down))

    assert await left_of(s3_lake) == before
    await purge(settings)
    assert await left_of(s3_lake) == GONE


async def test_a_lake_whose_purge_was_begun_is_never_made_anew(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def end(_: object) -> int:
        raise Unavailable("STORAGE_UNAVAILABLE", "down")

    monkeypatch.setattr(adapter.StoreObjects, "remove_all", end)
    with pytest.raises(Unavailable):
        await purge(settings_of(lake))

    with pytest.raises(Unauthorized):
        await migrate(lake.migrate_settings)


async def test_sessions_of_the_lake_end_and_others_go_on(lake: Lake) -> None:
    mine = await asyncpg.connect(read_secret(lake.writer_dir, "dsn"))
    other = await asyncpg.connect(lake.catalog_dsn)

    await purge(settings_of(lake))

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await mine.fetchval("SELECT 1")
    assert await other.fetchval("SELECT 1") == 1
    await other.close()
    mine.terminate()


async def test_a_lake_that_never_was_is_nothing_to_purge(lake: Lake) -> None:
    settings = replace(settings_of(lake), lake="lake_nobody")

    await purge(settings)

    await migrate(lake.migrate_settings)


@pytest.mark.parametrize("url", ["s3://bucket/", "s3://bucket//", "file:///"])
def test_a_whole_store_is_never_a_lakes_folder(url: str) -> None:
    env = {
        "DUCKMESH_TENANT": "a/b",
        "DUCKMESH_TENANT_UID": "u",
        "DUCKMESH_LAKE": "lake_1",
        "DUCKMESH_DATA_URL": url,
        "DUCKMESH_ADMIN_DIR": "/admin",
    }

    with pytest.raises(SettingsError, match="DUCKMESH_DATA_URL: want a folder"):
        purge_from_env(env)
