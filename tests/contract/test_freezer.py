"""What every freezer does: the double in memory and the one over Postgres pass the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.domain.moments import Moment
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import CatalogFreezer
from tests.direct import attach, lake_writer, take_over
from tests.fakes.freezer import FakeFreezer
from tests.fakes.progress import FakeProgress
from tests.services import Lake


@dataclass(frozen=True, kw_only=True)
class UnderTest:
    """A freezer over a lake with the snapshots 0 to 5, of which `gone` removes those before 2."""

    freezer: CatalogFreezer
    gone: Callable[[], Awaitable[None]]

    async def time_of(self, snapshot_id: int) -> datetime:
        catalog = await self.freezer.freeze(at=snapshot_id)
        self.freezer.release(catalog)
        return catalog.snapshot_time

    async def code(self, at: Moment) -> str:
        with pytest.raises(DuckmeshError) as caught:
            await self.freezer.freeze(at=at)
        return caught.value.code


@pytest.fixture(params=["fake", "postgres"])
async def under_test(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]], tmp_path: Path
) -> AsyncIterator[UnderTest]:
    if request.param == "fake":
        fake = FakeFreezer(FakeProgress(5))

        async def forget() -> None:
            fake.oldest = 2

        yield UnderTest(freezer=fake, gone=forget)
        return
    async with AsyncExitStack() as stack:
        lake = await make_lake()
        yield await _real(lake, tmp_path, stack)


async def _real(lake: Lake, folder: Path, stack: AsyncExitStack) -> UnderTest:
    writer = await lake_writer(lake)
    stack.callback(writer.connection.close)
    for number in range(5):
        writer.commit(f"CREATE TABLE lake.t{number} (id BIGINT)")
    pool = await open_pool(lake.reader_dir, application_name="test")
    stack.push_async_callback(pool.close)

    def nothing(_: object) -> None:
        return None

    freezer = PostgresFreezer(
        pool, lake.name, folder, data_url="http://x/", allow=nothing, forget=nothing
    )
    stack.push_async_callback(freezer.close)

    async def expire() -> None:
        maintenance = attach(lake, "m", await take_over(lake, "m"))
        maintenance.execute("CALL ducklake_expire_snapshots('lake', versions => [0, 1])")
        maintenance.close()

    return UnderTest(freezer=freezer, gone=expire)


async def test_the_newest_is_attached_as_it_is(under_test: UnderTest) -> None:
    catalog = await under_test.freezer.freeze()

    assert (catalog.snapshot_id, catalog.token, catalog.version) == (5, 5, None)
    assert catalog.lag_ms == 0
    under_test.freezer.release(catalog)


async def test_a_past_snapshot_is_attached_at_its_version(under_test: UnderTest) -> None:
    newest, past = await under_test.freezer.freeze(at=5), await under_test.freezer.freeze(at=3)

    assert (past.snapshot_id, past.token, past.version) == (3, 3, 3)
    assert (newest.snapshot_id, newest.token, newest.version) == (5, 5, 5)
    assert newest.lag_ms == 0
    assert timedelta(milliseconds=past.lag_ms) <= past.frozen_at - past.snapshot_time
    for catalog in (newest, past):
        under_test.freezer.release(catalog)


async def test_a_time_means_the_newest_snapshot_at_or_before_it(under_test: UnderTest) -> None:
    of_three = await under_test.time_of(3)

    for time, found in ((of_three, 3), (of_three - timedelta(microseconds=1), 2)):
        catalog = await under_test.freezer.freeze(at=time)
        assert catalog.snapshot_id == found
        under_test.freezer.release(catalog)


async def test_never_gone_and_not_yet_are_told_apart(under_test: UnderTest) -> None:
    birth, newest = await under_test.time_of(0), await under_test.time_of(5)
    before, future = birth - timedelta(seconds=1), newest + timedelta(hours=1)

    assert await under_test.code(6) == "SNAPSHOT_NOT_FOUND"
    assert await under_test.code(before) == "SNAPSHOT_NOT_FOUND"
    assert await under_test.code(future) == "VALIDATION_FAILED"
    await under_test.gone()

    assert await under_test.code(6) == "SNAPSHOT_NOT_FOUND"
    assert await under_test.code(1) == "SNAPSHOT_EXPIRED"
    assert await under_test.code(birth) == "SNAPSHOT_EXPIRED"
    assert await under_test.code(future) == "VALIDATION_FAILED"
    assert await under_test.time_of(2) < newest
