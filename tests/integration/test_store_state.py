"""How the object store is, as a process finds out, and as its lake's row tells it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import asyncpg
import obstore
import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.store_report import PostgresStoreReporter
from duckmesh_runtime.dev.processes import free_port
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import StoreState
from duckmesh_runtime.settings import StoreSettings
from tests.lakes import LakeView, writer_pool
from tests.services import Lake, bucket_of, s3_store

_ROW = "SELECT state, since, at FROM duckmesh.store_report WHERE lake = $1"


@pytest.fixture
def store(tmp_path: Path, s3: S3Server) -> StoreSettings:
    return s3_store(tmp_path, "state", s3)


def _write_key(store: StoreSettings, key_id: str, secret: str) -> None:
    assert store.secret_dir is not None
    (store.secret_dir / "access-key-id").write_text(key_id)
    (store.secret_dir / "secret-access-key").write_text(secret)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_each_way_of_failing_is_told_apart(store: StoreSettings, write: bool) -> None:
    missing = replace(store, url="s3://no-such-bucket/state/")
    nowhere = replace(store, endpoint=f"http://127.0.0.1:{free_port()}")

    assert await StoreObjects(store).state(write=write) is StoreState.OK
    assert await StoreObjects(missing).state(write=write) is StoreState.BUCKET_MISSING
    assert await StoreObjects(nowhere).state(write=write) is StoreState.UNREACHABLE
    _write_key(store, "stranger", "key")
    assert await StoreObjects(store).state(write=write) is StoreState.ACCESS_DENIED


async def test_a_probe_leaves_nothing_behind(store: StoreSettings) -> None:
    objects = StoreObjects(store)

    assert await objects.state(write=True) is StoreState.OK

    with pytest.raises(Exception, match="missing"):
        await objects.size("probe-health.parquet")


@pytest.mark.parametrize("kind", ["file", "s3"])
async def test_a_read_ends_where_the_object_does(
    store: StoreSettings, tmp_path: Path, kind: str, s3: S3Server
) -> None:
    if kind == "file":
        store = StoreSettings(url=f"{(tmp_path / 'data').as_uri()}/")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "x").write_bytes(b"12345")
    else:
        obstore.put(bucket_of(s3), "state/x", b"12345")
    objects = StoreObjects(store)

    assert await objects.read("x", 1, 3) == b"234"
    assert await objects.read("x", 3, 10) == b"45"
    assert await objects.read("x", 5, 1) == b""
    assert await objects.read("x", 99, 1) == b""


async def test_files_are_always_there(tmp_path: Path) -> None:
    objects = StoreObjects(StoreSettings(url=f"{tmp_path.as_uri()}/"))

    assert await objects.state(write=True) is StoreState.OK


async def test_requests_that_met_a_rotated_key_are_asked_again_with_the_new_one(
    store: StoreSettings, s3: S3Server
) -> None:
    _write_key(store, "stranger", "key")
    objects = StoreObjects(store)
    with pytest.raises(Unavailable):
        await objects.remove("x")

    _write_key(store, s3.access_key, s3.secret_key)

    await asyncio.gather(*(objects.remove("x") for _ in range(8)))


async def test_since_moves_with_the_state_and_at_with_each_report(lake: Lake) -> None:
    async with writer_pool(lake) as pool:
        reporter = PostgresStoreReporter(pool, lake.name)
        rows = []
        for state in (StoreState.OK, StoreState.OK, StoreState.ACCESS_DENIED):
            await reporter.report(state)
            rows += await LakeView(lake).fetch(_ROW, lake.name)
        for stranger, word, code in (
            ("lake_0000000000000000", "ok", "DM001"),
            (lake.name, "sunny", "23514"),
        ):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await pool.execute("SELECT duckmesh.report_store($1, $2)", stranger, word)
            assert caught.value.sqlstate == code

    first, second, third = rows
    assert [row["state"] for row in rows] == ["ok", "ok", "access_denied"]
    assert first["since"] == second["since"] < third["since"]
    assert first["at"] < second["at"] < third["at"]
    swept = await LakeView(lake).fetch(
        "SELECT store_state, store_since, store_at FROM duckmesh.sweep() WHERE lake = $1", lake.name
    )
    assert [tuple(row) for row in swept] == [tuple(third)]
