"""Files that nothing names are told, and removed only when that is asked for, when they are old, and under the lease."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain.integrity import Mode
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import CommitOutcome, StoredObject, TableRows
from duckmesh_runtime.services import orphans
from duckmesh_runtime.services.orphans import OrphanReport, Removal
from tests.inspecting import check_of, file_of, integrity_of, make_older, reported
from tests.lakes import (
    EVENTS,
    LakeView,
    append_create,
    append_file,
    committer_of,
    elected_writer,
    rows_of,
    running,
    send,
    stage,
    writer_pool,
)
from tests.services import Lake
from tests.upkeep import maintenance_of

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
Claim = Callable[[], Awaitable[bool]]


async def granted() -> bool:
    return True


def lease_by(claim: Claim) -> orphans.Lease:
    @asynccontextmanager
    async def lease() -> AsyncIterator[bool]:
        yield await claim()

    return lease


async def look(
    lake: Lake,
    removal: Removal = Removal.REPORT,
    *,
    claim: Claim = granted,
    older_than_s: float = orphans.LEAST_AGE_S,
) -> OrphanReport:
    async with check_of(lake) as check:
        return await orphans.run(
            check,
            StoreObjects(lake.store),
            lease=lease_by(claim),
            removal=removal,
            older_than_s=older_than_s,
        )


def left(lake: Lake, name: str, age: timedelta, size: int = 10) -> Path:
    """A file that nothing names, in the folder of a table."""
    file = file_of(lake, f"main/events/{name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    make_older(file, age)
    return file


async def fill(lake: Lake) -> list[Path]:
    """A lake whose files are all old: one it reads, one only snapshots read, one that waits for its removal."""
    async with elected_writer(lake) as writer:
        results = [
            await writer.create_table(0, 1, EVENTS),
            await writer.commit(1, 6, [TableRows(table="events", rows=rows_of(range(5)))]),
            await writer.drop_table(6, 7, "events"),
            await writer.create_table(7, 8, EVENTS),
            await writer.commit(8, 9, [TableRows(table="events", rows=rows_of([1]))]),
        ]
    assert [each.outcome for each in results] == [CommitOutcome.DONE] * len(results)
    files = list(file_of(lake, "main").rglob("*.parquet"))
    for file in files:
        make_older(file, 2 * DAY)
    return files


async def test_old_files_without_a_name_are_told_and_removed_when_asked_for(lake: Lake) -> None:
    named = await fill(lake)
    old = [left(lake, "old-1.parquet", DAY + MINUTE, 10), left(lake, "old-2", 9 * DAY, 5)]
    young = left(lake, "young.parquet", DAY - HOUR)

    told = await look(lake)

    assert (told.files, told.size, told.deleted) == (2, 15, 0)
    assert json.loads(await reported(lake, "orphans") or "null") == told.to_json()
    assert all(file.exists() for file in [*named, *old, young])

    done = await look(lake, Removal.DELETE)

    assert (done.files, done.size, done.deleted) == (2, 15, 2)
    assert [file.exists() for file in old] == [False, False]
    assert all(file.exists() for file in [*named, young])
    assert (await look(lake)).files == 0


async def test_no_younger_file_goes_whatever_is_asked_for(lake: Lake) -> None:
    young = left(lake, "young.parquet", DAY - HOUR)

    assert (await look(lake, Removal.DELETE, older_than_s=0)).files == 0

    assert young.exists()


async def test_files_that_wait_on_the_bus_or_as_a_dead_letter_have_a_name(lake: Lake) -> None:
    waits = await stage(lake, rows_of(range(3)), "staged-waits.parquet")
    refused = await stage(lake, rows_of(range(3)), "staged-refused.parquet", folder="main/gone/")
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        async with committer_of(lake) as committer, running(committer):
            last = await send(
                bus,
                append_create(EVENTS, version=0),
                append_file(refused, version=1, table="gone"),
            )
            await LakeView(lake).visible(last)
        await send(bus, append_file(waits, version=1))
    for file in (waits, refused):
        make_older(file_of(lake, file.path), 2 * DAY)
    assert await LakeView(lake).fetchval(f"SELECT count(*) FROM {lake.name}_bus.dead_letter") == 1

    assert (await look(lake, Removal.DELETE)).files == 0

    assert all(file_of(lake, file.path).exists() for file in (waits, refused))


async def test_nothing_is_removed_without_the_lease(lake: Lake) -> None:
    old = left(lake, "old.parquet", 2 * DAY)
    async with maintenance_of(lake, "another") as another, maintenance_of(lake, "this") as this:
        assert await another.claim()
        with pytest.raises(Unavailable, match="another process"):
            await look(lake, Removal.DELETE, claim=this.claim)
    assert old.exists()
    assert await reported(lake, "orphans") is None

    async with maintenance_of(lake) as this:
        assert (await look(lake, Removal.DELETE, claim=this.claim)).deleted == 1


async def test_the_lease_is_held_for_removals_alone(lake: Lake) -> None:
    """A listing may take longer than a lease is kept, and others maintain the lake meanwhile."""
    old = left(lake, "old.parquet", 2 * DAY)
    held: list[bool] = []

    @asynccontextmanager
    async def lease() -> AsyncIterator[bool]:
        held.append(True)
        yield True
        held.pop()

    class Watched(StoreObjects):
        async def objects(self) -> AsyncIterator[Sequence[StoredObject]]:
            async for page in super().objects():
                assert not held
                yield page
                assert not held

        async def remove(self, path: str) -> None:
            assert held
            await super().remove(path)

    async with check_of(lake) as check:
        store = Watched(lake.store)
        report = await orphans.run(check, store, lease=lease, removal=Removal.DELETE)

    assert (report.deleted, old.exists(), held) == (1, False, [])


async def test_a_file_that_gets_its_name_meanwhile_stays(lake: Lake) -> None:
    """However old: it was staged for long, and is committed between the look and the removal."""
    async with elected_writer(lake) as writer:
        assert (await writer.create_table(0, 1, EVENTS)).outcome is CommitOutcome.DONE
        staged = await stage(lake, rows_of(range(3)))
        make_older(file_of(lake, staged.path), 2 * DAY)

        async def claim() -> bool:
            async with writer_pool(lake) as pool:
                await send(PostgresBus(pool, lake.name), append_file(staged, version=0))
            return True

        report = await look(lake, Removal.DELETE, claim=claim)

    assert (report.files, report.deleted) == (1, 0)
    assert file_of(lake, staged.path).exists()


async def test_on_s3_too_by_the_stores_own_clock(s3_lake: Lake) -> None:
    await stage(s3_lake, rows_of(range(3)), "left.parquet")
    async with check_of(s3_lake) as check:
        store = StoreObjects(s3_lake.store)

        class Later(StoreObjects):
            async def now(self):  # type: ignore[no-untyped-def] # as the original
                return await super().now() + DAY + MINUTE

        assert (await orphans.run(check, store, lease=lease_by(granted))).files == 0
        found = await orphans.run(
            check, Later(s3_lake.store), lease=lease_by(granted), removal=Removal.DELETE
        )

    assert (found.files, found.deleted) == (1, 1)
    assert (await integrity_of(s3_lake).check(Mode.CHEAP)).is_healthy
    assert [page async for page in store.objects()] == []
