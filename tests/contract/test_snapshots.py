"""What every store of snapshots does: the in-memory double and DuckLake's catalog in Postgres pass the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

from duckmesh_runtime.adapters.snapshots import PostgresSnapshots
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import SnapshotStore
from duckmesh_runtime.services.snapshots import SnapshotService
from tests import direct
from tests.fakes.snapshots import FakeSnapshots
from tests.lakes import writer_pool
from tests.services import Lake

Expire = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A lake with snapshots 0 (empty), 1 (makes `events`) to 6, a data file each from 2 on.

    Attributes:
        store: Under test.
        expire: Removes snapshots that no pin holds, and tells nothing of others.
        soon: A time that has not come.
        wait: Waits until it has.
        merge: Replaces the files of snapshot 6 by others.
    """

    store: SnapshotStore
    expire: Expire
    soon: Callable[[], datetime]
    wait: Callable[[datetime], Awaitable[None]]
    merge: Callable[[], None]


@pytest.fixture(params=["fake", "postgres"])
async def kept(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]]
) -> AsyncIterator[Kept]:
    if request.param == "fake":
        yield _fake()
        return
    lake = await make_lake()
    async with AsyncExitStack() as stack:
        yield await _real(lake, stack)


def _fake() -> Kept:
    store = FakeSnapshots()
    store.add(7)

    async def wait(moment: datetime) -> None:
        store.now = moment

    def merge() -> None:
        store.replaced |= {1, 2}

    return Kept(
        store=store,
        expire=store.expire,
        soon=lambda: store.now + timedelta(seconds=1),
        wait=wait,
        merge=merge,
    )


async def _real(lake: Lake, stack: AsyncExitStack) -> Kept:
    pool = await stack.enter_async_context(writer_pool(lake))
    writer = await direct.lake_writer(lake)
    stack.callback(writer.connection.close)
    writer.commit("CREATE TABLE lake.events (id BIGINT)")
    for number in range(2, 7):
        writer.commit(f"INSERT INTO lake.events VALUES ({number})")
    keeper = direct.attach(lake, "m", await direct.take_over(lake, "m"))
    stack.callback(keeper.close)

    def expire(*numbers: int) -> None:
        for number in numbers:
            with suppress(duckdb.Error):  # a pin holds it
                keeper.execute(f"CALL ducklake_expire_snapshots('lake', versions => [{number}])")

    async def wait(moment: datetime) -> None:
        await pool.fetchval("SELECT pg_sleep_until($1)", moment)

    def merge() -> None:
        keeper.execute("BEGIN")
        keeper.execute("CALL lake.set_commit_message('', '', extra_info => '{\"role\":\"m\"}')")
        keeper.execute("CALL ducklake_merge_adjacent_files('lake', 'events')")
        keeper.execute("COMMIT")

    return Kept(
        store=PostgresSnapshots(pool, lake.name),
        expire=expire,
        soon=lambda: datetime.now(UTC) + timedelta(seconds=0.3),
        wait=wait,
        merge=merge,
    )


async def code_of(asked: Awaitable[object]) -> tuple[str, str]:
    """The error that a call ends with: its code, and the field that its message names."""
    with pytest.raises(DuckmeshError) as caught:
        await asked
    return caught.value.code, caught.value.message.split(":")[0]


async def test_snapshots_are_listed_from_the_newest_on(kept: Kept) -> None:
    newest = await kept.store.page(None, limit=3)
    rest = await kept.store.page(4, limit=10)

    assert [each.snapshot_id for each in newest] == [6, 5, 4]
    assert [each.snapshot_id for each in rest] == [3, 2, 1, 0]
    assert [each.token for each in rest] == [3, 2, 1, 0]
    assert [each.schema_changed for each in rest] == [False, False, True, False]
    assert newest[0].schema_version == rest[2].schema_version != rest[3].schema_version
    assert newest[0].snapshot_time > rest[-1].snapshot_time


async def test_what_expired_is_told_apart_from_what_never_was(kept: Kept) -> None:
    kept.expire(0, 3)

    for ask in (
        lambda n: kept.store.find(n),
        lambda n: kept.store.files(n, table=None, after=-1, limit=1),
        lambda n: kept.store.pin(n, "", None),
        lambda n: kept.store.unpin(n, ""),
    ):
        assert await code_of(ask(3)) == ("SNAPSHOT_EXPIRED", "snapshot_id")
        assert await code_of(ask(7)) == ("SNAPSHOT_NOT_FOUND", "snapshot_id")
    assert [each.snapshot_id for each in await kept.store.page(None, limit=9)] == [6, 5, 4, 2, 1]


async def test_a_snapshot_knows_its_watermark_after_those_before_it_expired(kept: Kept) -> None:
    kept.expire(0, 1, 2, 3)

    assert (await kept.store.find(4))[0].token == 4
    assert not (await kept.store.find(4))[0].schema_changed


async def test_a_pin_keeps_a_snapshot_until_it_is_taken_off(kept: Kept) -> None:
    pinned = await kept.store.pin(3, "audit", None)
    kept.expire(2, 3)

    assert [(pin.name, pin.expires_at) for pin in pinned.pins] == [("audit", None)]
    assert [each.snapshot_id for each in await kept.store.page(5, limit=2)] == [4, 3]

    left, removed = await kept.store.unpin(3, "audit")
    kept.expire(3)

    assert (left.pins, removed) == ([], True)
    assert await code_of(kept.store.find(3)) == ("SNAPSHOT_EXPIRED", "snapshot_id")


async def test_each_pin_of_a_snapshot_holds_it(kept: Kept) -> None:
    await kept.store.pin(3, "a", None)
    await kept.store.pin(3, "", None)

    left, _ = await kept.store.unpin(3, "a")
    kept.expire(3)

    assert [pin.name for pin in left.pins] == [""]
    assert (await kept.store.find(3))[0].pins == left.pins
    assert (await kept.store.unpin(3, "a"))[1] is False


async def test_a_pin_ends_by_itself_and_can_be_prolonged(kept: Kept) -> None:
    end = kept.soon()
    await kept.store.pin(2, "short", end)
    await kept.store.pin(3, "short", end)
    longer = await kept.store.pin(3, "short", end + timedelta(days=1))
    await kept.wait(end)

    kept.expire(2, 3)

    assert [pin.expires_at for pin in longer.pins] == [end + timedelta(days=1)]
    assert await code_of(kept.store.find(2)) == ("SNAPSHOT_EXPIRED", "snapshot_id")
    assert (await kept.store.find(3))[0].pins == longer.pins


async def test_a_pin_that_is_past_holds_nothing_and_cannot_be_set(kept: Kept) -> None:
    end = kept.soon()
    await kept.store.pin(2, "short", end)
    await kept.wait(end)

    assert (await kept.store.find(2))[0].pins == []
    assert await code_of(kept.store.pin(2, "", end)) == ("VALIDATION_FAILED", "expires_at")


async def test_a_snapshot_tells_its_tables_and_files(kept: Kept) -> None:
    snapshot, tables = await kept.store.find(4)
    found = await kept.store.files(4, table="events", after=-1, limit=10)

    assert [(table.name, table.delete_files) for table in tables] == [("events", 0)]
    assert tables[0].files == len(found.files)
    assert tables[0].size_bytes == sum(file.size_bytes for file in found.files)
    assert (found.snapshot, found.more, found.before) == (snapshot, False, 0)
    assert [(c.name, c.type) for c in found.tables[0].columns] == [("id", "BIGINT")]
    assert (await kept.store.find(0))[1] == []
    empty = await kept.store.files(0, table=None, after=-1, limit=10)
    assert (empty.tables, empty.files) == ([], [])
    asked = kept.store.files(0, table="events", after=-1, limit=1)
    assert await code_of(asked) == ("TABLE_NOT_FOUND", "table")


async def test_pages_of_files_make_up_the_whole(kept: Kept) -> None:
    service = SnapshotService(kept.store)
    whole = [
        file.path for file in (await kept.store.files(6, table=None, after=-1, limit=99)).files
    ]
    paths, after = [], None

    for _ in range(len(whole)):
        page = await service.files(6, table=None, after=after, limit=1)
        paths += [file.path for file in page.found.files]
        after = page.next_after
        if after is None:
            break

    assert paths == whole


async def test_a_page_is_refused_once_files_before_it_were_replaced(kept: Kept) -> None:
    service = SnapshotService(kept.store)
    first = await service.files(6, table=None, after=None, limit=3)

    kept.merge()

    asked = service.files(6, table=None, after=first.next_after, limit=3)
    assert await code_of(asked) == ("VALIDATION_FAILED", "after")
    assert (await service.files(6, table=None, after=None, limit=9)).found.files
