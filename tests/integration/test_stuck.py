"""Input that the store never takes, and a store that takes nothing: the first is set aside, for the second nothing is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.ducklake import DuckLakeWriter
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from tests.lakes import (
    EVENTS,
    LakeView,
    append_create,
    append_rows,
    append_table,
    committer_of,
    elected_writer,
    eventually,
    running,
    send,
    writer_pool,
)
from tests.services import Lake, new_lake

MakeLake = Callable[..., Awaitable[Lake]]

PARTED = TableDef(
    name="parted",
    columns=(ColumnDef(name="id", type="BIGINT"), ColumnDef(name="part", type="VARCHAR")),
    partition_by=("part",),
)


@pytest.fixture
def own_s3(services_dir: Path) -> Iterator[S3Server]:
    with S3Server(services_dir / "own-s3", access_key="own-key", secret_key="own-secret") as server:
        yield server


@pytest.mark.parametrize(("store", "length"), [("file", 300), ("s3", 2000)])
async def test_a_row_whose_object_name_is_too_long_does_not_stop_the_lake(
    make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch, store: str, length: int
) -> None:
    """None such is accepted, but a store may know other limits."""
    monkeypatch.setattr("duckmesh_runtime.services.stuck.LEAST_S", 1)
    lake = await make_lake(store=store)
    view = LakeView(lake)
    rows = pa.table({"id": [1, 2, 3], "part": ["a", "x" * length, "a"]})
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(PARTED, version=0))
        last = await send(bus, append_table(rows, version=1, table="parted"))
        await view.visible(last, 60)

    assert view.ids("parted") == [1, 3]
    (letter,) = await view.fetch(f"SELECT first, last, error FROM {lake.name}_bus.dead_letter")
    assert (letter["first"], letter["last"]) == (3, 3)
    assert "while all else could be written" in letter["error"]
    assert "xxx" not in letter["error"]


async def test_nothing_is_set_aside_while_the_store_is_down(
    own_s3: S3Server, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duckmesh_runtime.services.stuck.LEAST_S", 0)
    monkeypatch.setattr("duckmesh_runtime.services.stuck.LEAST_TRIES", 1)
    lake = await new_lake(tmp_path, postgres, s3=own_s3)
    view = LakeView(lake)
    probes: list[bool] = []
    probe = DuckLakeWriter.probe

    async def counted(self: DuckLakeWriter) -> bool:
        probes.append(await probe(self))
        return probes[-1]

    async def several() -> bool:
        return len(probes) >= 3

    monkeypatch.setattr(DuckLakeWriter, "probe", counted)
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        bus = PostgresBus(pool, lake.name)
        await view.visible(await send(bus, append_create(EVENTS, version=0)))
        own_s3.stop()
        last = await send(bus, append_rows([1], version=1))
        await eventually(several, 60)
        own_s3.start()
        await view.visible(last, 60)

    assert view.ids() == [1]
    assert not any(probes)
    assert not await view.fetch(f"SELECT 1 FROM {lake.name}_bus.dead_letter")


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_a_probe_leaves_nothing_behind(make_lake: MakeLake, store: str) -> None:
    lake = await make_lake(store=store)
    async with elected_writer(lake) as writer:
        assert await writer.probe()

        if store == "file":
            folder = Path(lake.store.url.removeprefix("file://"))
            assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "ROW EXCLUSIVE"])
async def test_a_probe_fails_while_someone_holds_the_tables_of_the_lake(
    lake: Lake, mode: str
) -> None:
    """The weaker one is what a transaction with changes of its own holds."""
    admin = await asyncpg.connect(lake.catalog_dsn)
    try:
        async with elected_writer(lake) as writer:
            async with admin.transaction():
                await admin.execute(f"LOCK TABLE {lake.name}.ducklake_snapshot IN {mode} MODE")
                assert not await writer.probe()
            assert await writer.probe()
    finally:
        await admin.close()


async def test_a_probe_fails_without_the_store(
    own_s3: S3Server, postgres: PostgresServer, tmp_path: Path
) -> None:
    lake = await new_lake(tmp_path, postgres, s3=own_s3)
    async with elected_writer(lake) as writer:
        own_s3.stop()
        assert not await writer.probe()
    own_s3.start()
    async with elected_writer(
        lake
    ) as writer:  # as the committer attaches anew; a statement of the first may still hang
        assert await writer.probe()
