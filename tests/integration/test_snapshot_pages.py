"""Pages of a snapshot's files while the lake lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest

from duckmesh_runtime.adapters import snapshots as adapter
from duckmesh_runtime.adapters.snapshots import PostgresSnapshots
from duckmesh_runtime.services.snapshots import SnapshotService
from tests import direct
from tests.lakes import writer_pool
from tests.services import Lake

ROWS = 3


@pytest.fixture
async def writer(lake: Lake) -> AsyncIterator[direct.Writer]:
    """Tables a and b with three files of a row each, those of a first; the snapshot's number is the watermark."""
    found = await direct.lake_writer(lake)
    with closing(found.connection):
        for table in ("a", "b"):
            found.commit(f"CREATE TABLE lake.{table} (id BIGINT, x INTEGER, y INTEGER)")
        for table in ("a", "b"):
            for number in range(ROWS):
                found.commit(f"INSERT INTO lake.{table} VALUES ({number}, 1, 2)")
        yield found


@pytest.fixture
async def service(lake: Lake, writer: direct.Writer) -> AsyncIterator[SnapshotService]:
    async with writer_pool(lake) as pool:
        yield SnapshotService(PostgresSnapshots(pool, lake.name))


async def merge(lake: Lake, table: str) -> None:
    keeper = direct.attach(lake, "m", await direct.take_over(lake, "m"))
    with closing(keeper):
        keeper.execute("BEGIN")
        keeper.execute("CALL lake.set_commit_message('', '', extra_info => '{\"role\":\"m\"}')")
        keeper.execute(f"CALL ducklake_merge_adjacent_files('lake', '{table}')")
        keeper.execute("COMMIT")


def rows_of(files: list[Any], table: str) -> int:
    return sum(file.row_count for file in files if file.table == table)


async def test_what_is_merged_behind_a_page_is_listed_once(
    lake: Lake, writer: direct.Writer, service: SnapshotService
) -> None:
    first = await service.files(writer.token, table=None, after=None, limit=ROWS)
    assert {file.table for file in first.found.files} == {"a"}

    await merge(lake, "b")
    rest = await service.files(writer.token, table=None, after=first.next_after, limit=10)

    files = [*first.found.files, *rest.found.files]
    assert (rows_of(files, "a"), rows_of(files, "b"), len(files)) == (ROWS, ROWS, ROWS + 1)
    assert rest.next_after is None


async def test_commits_and_deletes_between_two_pages_are_not_of_the_snapshot(
    writer: direct.Writer, service: SnapshotService
) -> None:
    snapshot = writer.token
    first = await service.files(snapshot, table="a", after=None, limit=1)

    writer.commit("INSERT INTO lake.a VALUES (99, 1, 2)")
    writer.commit("DELETE FROM lake.a")
    rest = await service.files(snapshot, table="a", after=first.next_after, limit=10)

    files = [*first.found.files, *rest.found.files]
    assert (rows_of(files, "a"), len(files)) == (ROWS, ROWS)
    assert not any(file.delete_files for file in files)


async def test_a_dropped_table_is_still_listed_where_it_was(
    writer: direct.Writer, service: SnapshotService
) -> None:
    snapshot = writer.token
    writer.commit("DROP TABLE lake.a")

    before = await service.files(snapshot, table=None, after=None, limit=10)
    after = await service.files(writer.token, table=None, after=None, limit=10)

    assert [table.name for table in before.found.tables] == ["a", "b"]
    assert [table.name for table in after.found.tables] == ["b"]
    assert (rows_of(before.found.files, "a"), rows_of(after.found.files, "a")) == (ROWS, 0)


async def test_wide_tables_make_shorter_pages(
    writer: direct.Writer, service: SnapshotService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_MOST_STATISTICS", 7)  # of three columns each

    page = await service.files(writer.token, table=None, after=None, limit=10)

    assert len(page.found.files) == 2
    assert page.next_after is not None
