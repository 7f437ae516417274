"""What every `LakeWriter` does: the fake of the unit tests and DuckLake over Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain.changes import (
    AddColumn,
    Change,
    DropColumn,
    PartitionBy,
    apply_changes,
)
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.ports import CommitOutcome, LakeWriter, StagedFile, TableFile, TableRows
from tests.fakes.lake import FakeLake
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_create,
    append_rows,
    changes_of,
    elected_writer,
    rows_of,
    send,
    stage,
    writer_pool,
)
from tests.services import Lake


@dataclass
class Subject:
    """A writer under its lease, and a look at what it did.

    Attributes:
        rows: All rows of a table, by id.
        follow: Let another committer follow.
        input: Accept so many rows, which nothing commits.
        change: Accept a table change.
        stage: Put rows of events into the store.
        snapshot: The newest snapshot.
    """

    writer: LakeWriter
    token: Callable[[], Awaitable[int]]
    rows: Callable[[str], list[dict[str, object]]]
    follow: Callable[[], Awaitable[None]]
    input: Callable[[int], Awaitable[None]]
    change: Callable[[], Awaitable[None]]
    stage: Callable[[pa.Table], Awaitable[TableFile]]
    snapshot: Callable[[], Awaitable[int]]

    def ids(self, table: str) -> list[object]:
        return [row["id"] for row in self.rows(table)]


@pytest.fixture(params=["fake", "ducklake"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield await (_fake() if request.param == "fake" else _real(stack, request))


async def _fake() -> Subject:
    lake = FakeLake()

    async def token() -> int:
        return lake.token

    async def follow() -> None:
        lake.epoch += 1

    async def ignore(*_: object) -> None:
        return None

    async def put(rows: pa.Table) -> TableFile:
        lake.store["x"] = rows
        return TableFile(table="events", file=StagedFile(path="x", rows=rows.num_rows, size=1))

    def rows(table: str) -> list[dict[str, object]]:
        found = [row for part in lake.tables[table][1] for row in part.to_pylist()]
        return sorted(found, key=lambda row: row["id"])

    async def snapshot() -> int:
        return max(lake.snapshots)

    writer = await lake.open_writer(1)
    return Subject(
        writer=writer,
        token=token,
        rows=rows,
        follow=follow,
        input=ignore,
        change=ignore,
        stage=put,
        snapshot=snapshot,
    )


async def _real(stack: AsyncExitStack, request: pytest.FixtureRequest) -> Subject:
    lake: Lake = await request.getfixturevalue("make_lake")()
    view = LakeView(lake)
    writer = await stack.enter_async_context(elected_writer(lake))
    pool = await stack.enter_async_context(writer_pool(lake))
    bus = PostgresBus(pool, lake.name)

    async def follow() -> None:
        await pool.execute("SELECT duckmesh.take_over($1, 'w')", lake.name)

    async def some_input(rows: int) -> None:
        await send(bus, append_rows(range(rows), version=0))

    async def some_change() -> None:
        await send(bus, append_create(EVENTS, version=0))

    async def put(rows: pa.Table) -> TableFile:
        return TableFile(table="events", file=await stage(lake, rows))

    async def snapshot() -> int:
        query = f"SELECT max(snapshot_id) FROM {lake.name}.ducklake_snapshot"
        return int(await view.fetchval(query))

    def rows(table: str) -> list[dict[str, object]]:
        return view.dicts(f"SELECT * FROM {table} ORDER BY id")

    return Subject(
        writer=writer,
        token=view.token,
        rows=rows,
        follow=follow,
        input=some_input,
        change=some_change,
        stage=put,
        snapshot=snapshot,
    )


def events(*ids: int | None) -> list[TableRows]:
    return [TableRows(table="events", rows=rows_of(ids))]


def upserts(*changes: Mapping[str, object] | tuple[object, ...]) -> TableRows:
    return TableRows(table="keyed", rows=changes_of(*changes))


def row(id_: int, value: str) -> dict[str, object]:
    return {"id": id_, "value": value}


async def _outcomes(*calls: Awaitable[Any]) -> list[CommitOutcome]:
    return [(await call).outcome for call in calls]


DONE, FENCED = CommitOutcome.DONE, CommitOutcome.FENCED
REREAD, REJECTED = CommitOutcome.REREAD, CommitOutcome.REJECTED


async def test_rows_land_with_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.commit(1, 3, events(10, 11))

    assert result.outcome is DONE
    assert result.committed_at is not None
    assert await subject.token() == 3
    assert subject.ids("events") == [10, 11]


async def test_rows_of_several_tables_land_together(subject: Subject) -> None:
    other = TableDef(name="other", columns=EVENTS.columns)
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.create_table(1, 2, other)

    parts = [*events(1), TableRows(table="other", rows=rows_of([2], other))]
    result = await subject.writer.commit(2, 4, parts)

    assert result.outcome is DONE
    assert (subject.ids("events"), subject.ids("other")) == ([1], [2])


async def test_a_commit_that_changes_nothing_moves_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    outcomes = await _outcomes(
        subject.writer.commit(1, 2, events()),
        subject.writer.create_table(2, 3, EVENTS),
        subject.writer.drop_table(3, 4, "never_there"),
    )

    assert outcomes == [DONE, DONE, DONE]
    assert await subject.token() == 4


async def test_another_table_of_the_name_is_rejected(subject: Subject) -> None:
    other = TableDef(name="events", columns=(ColumnDef(name="x", type="DATE"),))
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.create_table(1, 2, other)

    assert result.outcome is REJECTED
    assert await subject.token() == 1


async def test_a_dropped_table_can_be_made_anew(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.commit(1, 2, events(1))

    outcomes = await _outcomes(
        subject.writer.drop_table(2, 3, "events"), subject.writer.create_table(3, 4, EVENTS)
    )

    assert outcomes == [DONE, DONE]
    assert subject.ids("events") == []


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        pytest.param(TableRows(table="nowhere", rows=rows_of([1])), True, id="no such table"),
        pytest.param(
            TableRows(table="events", rows=rows_of([None])), False, id="null in a not null column"
        ),
        pytest.param(
            TableRows(table="events", rows=pa.table({"id": [1], "other": ["x"]})),
            True,
            id="no such column",
        ),
    ],
)
async def test_what_does_not_fit_is_rejected_and_leaves_nothing(
    subject: Subject, part: TableRows, whole: bool
) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.commit(1, 3, [*events(1), part])

    assert result.outcome is REJECTED
    assert result.error
    assert result.whole is whole
    assert await subject.token() == 1
    assert subject.ids("events") == []
    assert (await subject.writer.commit(1, 2, events(5))).outcome is DONE


async def test_a_commit_from_a_watermark_that_moved_is_to_be_reread(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.commit(1, 2, events(1))

    result = await subject.writer.commit(1, 2, events(1))

    assert result.outcome is REREAD
    assert subject.ids("events") == [1]


async def test_a_followed_writer_is_fenced_and_changes_nothing(subject: Subject) -> None:
    before = await subject.snapshot()
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.follow()

    outcomes = await _outcomes(
        subject.writer.commit(1, 2, events(1)),
        subject.writer.create_table(1, 2, TableDef(name="b", columns=EVENTS.columns)),
        subject.writer.drop_table(1, 2, "events"),
        subject.writer.alter_table(1, 2, EVENTS, [DropColumn(name="text")]),
        subject.writer.set_aside(1, 2, None, "x"),
        subject.writer.set_aside_change(1, 2, "x"),
        subject.writer.restore(1, 2, before, []),
    )

    assert outcomes == [FENCED] * 7
    assert await subject.token() == 1
    assert subject.ids("events") == []


async def test_a_probe_changes_nothing(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    assert await subject.writer.probe()
    assert await subject.writer.probe()

    assert await subject.token() == 1
    assert await _outcomes(subject.writer.commit(1, 2, events(1))) == [DONE]


async def test_a_probe_fails_once_another_follows(subject: Subject) -> None:
    await subject.follow()

    assert not await subject.writer.probe()


async def test_setting_aside_moves_the_watermark_past_the_entry(subject: Subject) -> None:
    await subject.input(3)

    outcomes = await _outcomes(
        subject.writer.set_aside(0, 3, None, "why"), subject.writer.create_table(3, 4, EVENTS)
    )

    assert outcomes == [DONE, DONE]
    assert await subject.token() == 4


async def test_the_last_write_of_a_key_wins_within_a_commit_and_over_commits(
    subject: Subject,
) -> None:
    await subject.writer.create_table(0, 1, KEYED)

    outcomes = await _outcomes(
        subject.writer.commit(1, 4, [upserts(row(1, "a"), row(2, "b"), row(1, "c"))]),
        subject.writer.commit(4, 7, [upserts(row(2, "d"), row(3, "e"), (1,))]),
        subject.writer.commit(7, 9, [upserts((3,), row(3, "f"))]),
    )

    assert outcomes == [DONE] * 3
    assert subject.rows("keyed") == [row(2, "d"), row(3, "f")]


async def test_later_parts_of_a_table_win_over_earlier_ones(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, KEYED)

    parts = [upserts(row(1, "a"), row(2, "a")), upserts((2,), row(3, "b")), upserts(row(3, "c"))]
    result = await subject.writer.commit(1, 6, parts)

    assert result.outcome is DONE
    assert subject.rows("keyed") == [row(1, "a"), row(3, "c")]


async def test_deletes_without_effect_move_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, KEYED)
    await subject.writer.commit(1, 2, [upserts(row(1, "a"))])

    outcomes = await _outcomes(
        subject.writer.commit(2, 3, [upserts((9,))]),
        subject.writer.commit(3, 5, [upserts(row(8, "x"), (8,))]),
    )

    assert outcomes == [DONE, DONE]
    assert await subject.token() == 5
    assert subject.rows("keyed") == [row(1, "a")]


async def test_upserts_and_inserts_land_together(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.create_table(1, 2, KEYED)

    result = await subject.writer.commit(2, 4, [*events(7), upserts(row(1, "a"))])

    assert result.outcome is DONE
    assert (subject.ids("events"), subject.rows("keyed")) == ([7], [row(1, "a")])


async def test_a_staged_file_becomes_part_of_its_table_beside_rows(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    file = await subject.stage(rows_of([1, 2]))

    result = await subject.writer.commit(1, 4, [file, *events(3)])

    assert result.outcome is DONE
    assert sorted(subject.ids("events")) == [1, 2, 3]


async def test_a_file_that_is_gone_is_rejected_as_a_whole_and_says_so(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    gone = TableFile(
        table="events", file=StagedFile(path="main/events/staged-9.parquet", rows=2, size=1)
    )

    result = await subject.writer.commit(1, 4, [*events(3), gone])

    assert (result.outcome, result.whole) == (REJECTED, True)
    assert "DATA_FILE_MISSING" in (result.error or "")
    assert subject.ids("events") == []


async def test_a_table_changes_as_told(subject: Subject) -> None:
    changes = [AddColumn(column=ColumnDef(name="more", type="INTEGER")), DropColumn(name="text")]
    await subject.writer.create_table(0, 1, EVENTS)
    changed = apply_changes(EVENTS, changes)

    result = await subject.writer.alter_table(1, 2, changed, changes)
    more = TableRows(table="events", rows=pa.table({"id": [1], "more": pa.array([2], pa.int32())}))

    assert result.outcome is DONE
    assert (await subject.writer.commit(2, 3, [more])).outcome is DONE
    assert subject.rows("events") == [{"id": 1, "more": 2}]


@pytest.mark.parametrize(
    "change",
    [DropColumn(name="nowhere"), AddColumn(column=ColumnDef(name="more", type="INTEGER"))],
    ids=["impossible", "leads elsewhere"],
)
async def test_changes_that_do_not_lead_to_the_table_are_rejected(
    subject: Subject, change: Change
) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.alter_table(1, 2, EVENTS, [change])

    assert (result.outcome, result.whole) == (REJECTED, True)
    assert await subject.token() == 1


async def test_a_change_without_effect_moves_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.alter_table(1, 2, EVENTS, [PartitionBy(columns=())])

    assert result.outcome is DONE
    assert await subject.token() == 2


async def test_a_refused_change_of_a_table_is_set_aside(subject: Subject) -> None:
    await subject.change()

    outcomes = await _outcomes(subject.writer.set_aside_change(0, 1, "why"))

    assert outcomes == [DONE]
    assert await subject.token() == 1


async def test_the_end_of_an_entry_is_set_aside_with_all_that_it_holds(subject: Subject) -> None:
    """As when it cannot be read."""
    await subject.input(3)

    outcomes = await _outcomes(
        subject.writer.create_table(0, 1, EVENTS),
        subject.writer.set_aside(1, 3, b"all of them", "why"),
    )

    assert outcomes == [DONE, DONE]
    assert await subject.token() == 3


async def test_a_part_of_an_entry_is_set_aside_with_its_own_payload(subject: Subject) -> None:
    await subject.input(3)

    outcomes = await _outcomes(
        subject.writer.set_aside(0, 1, b"first", "why"),
        subject.writer.set_aside(1, 3, b"others", "why"),
    )

    assert outcomes == [DONE, DONE]
    assert await subject.token() == 3


async def test_closing_twice_is_safe(subject: Subject) -> None:
    await subject.writer.close()
    await subject.writer.close()


async def test_a_restore_brings_tables_and_rows_of_then(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.create_table(1, 2, KEYED)
    await subject.writer.commit(2, 5, [*events(1, 2), upserts(row(1, "then"))])
    then = await subject.snapshot()
    await subject.writer.commit(5, 8, [*events(3), upserts((1,), row(2, "now"))])
    await subject.writer.drop_table(8, 9, "events")
    await subject.writer.create_table(9, 10, TableDef(name="made", columns=EVENTS.columns))

    result = await subject.writer.restore(10, 11, then, [EVENTS, KEYED])

    assert result.outcome is DONE
    assert result.committed_at is not None
    assert await subject.token() == 11
    assert (subject.ids("events"), subject.rows("keyed")) == ([1, 2], [row(1, "then")])
    made = TableDef(name="made", columns=KEYED.columns)
    more = [
        subject.writer.create_table(11, 12, made),
        subject.writer.commit(12, 13, [*events(9)]),
        subject.writer.restore(13, 14, then, [EVENTS, KEYED]),
    ]
    assert await _outcomes(*more) == [DONE] * 3
    assert subject.ids("events") == [1, 2]


async def test_a_restore_without_effect_moves_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.commit(1, 2, events(1))

    result = await subject.writer.restore(2, 3, await subject.snapshot(), [EVENTS])

    assert result.outcome is DONE
    assert await subject.token() == 3
    assert subject.ids("events") == [1]


async def test_a_restore_that_is_not_to_these_tables_is_rejected(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.commit(1, 2, events(1))
    then = await subject.snapshot()
    await subject.writer.drop_table(2, 3, "events")
    other = TableDef(name="events", columns=KEYED.columns)

    results = [
        await subject.writer.restore(3, 4, then, tables)
        for tables in ([], [EVENTS, KEYED], [other])
    ]
    results.append(await subject.writer.restore(3, 4, 999, [EVENTS]))

    assert [(result.outcome, result.whole) for result in results] == [(REJECTED, True)] * 4
    assert "SNAPSHOT_EXPIRED" in (results[-1].error or "")
    assert await subject.token() == 3
    assert await _outcomes(subject.writer.restore(3, 4, then, [EVENTS])) == [DONE]
    assert subject.ids("events") == [1]


async def test_a_restore_from_a_watermark_that_moved_is_to_be_reread(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    then = await subject.snapshot()
    await subject.writer.commit(1, 2, events(1))

    result = await subject.writer.restore(1, 2, then, [EVENTS])

    assert result.outcome is REREAD
    assert subject.ids("events") == [1]
