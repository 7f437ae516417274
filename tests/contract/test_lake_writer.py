"""What every `LakeWriter` does: the fake of the unit tests and DuckLake over Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.ports import CommitOutcome, LakeWriter, TableRows
from tests.fakes.lake import FakeLake
from tests.lakes import (
    EVENTS,
    LakeView,
    append_rows,
    elected_writer,
    rows_of,
    send,
    writer_pool,
)
from tests.services import Lake


@dataclass
class Subject:
    """A writer under its lease, and a look at what it did."""

    writer: LakeWriter
    token: Callable[[], Awaitable[int]]
    ids: Callable[[str], Sequence[int]]
    follow: Callable[[], Awaitable[None]]
    input: Callable[[int], Awaitable[None]]


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

    async def ignore(_: int) -> None:
        return None

    writer = await lake.open_writer(1)
    return Subject(writer=writer, token=token, ids=lake.ids, follow=follow, input=ignore)


async def _real(stack: AsyncExitStack, request: pytest.FixtureRequest) -> Subject:
    lake: Lake = await request.getfixturevalue("make_lake")()
    view = LakeView(lake)
    writer = await stack.enter_async_context(elected_writer(lake))
    pool = await stack.enter_async_context(writer_pool(lake))

    async def follow() -> None:
        await pool.execute("SELECT duckmesh.take_over($1, 'w')", lake.name)

    async def some_input(rows: int) -> None:
        await send(PostgresBus(pool, lake.name), append_rows(range(rows), version=0))

    return Subject(writer=writer, token=view.token, ids=view.ids, follow=follow, input=some_input)


def events(*ids: int | None) -> list[TableRows]:
    return [TableRows(table="events", rows=rows_of(ids))]


async def _outcomes(*calls: Awaitable[Any]) -> list[CommitOutcome]:
    return [(await call).outcome for call in calls]


DONE, FENCED = CommitOutcome.DONE, CommitOutcome.FENCED
REREAD, REJECTED = CommitOutcome.REREAD, CommitOutcome.REJECTED


async def test_rows_land_with_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.commit_rows(1, 3, events(10, 11))

    assert result.outcome is DONE
    assert result.committed_at is not None
    assert await subject.token() == 3
    assert subject.ids("events") == [10, 11]


async def test_rows_of_several_tables_land_together(subject: Subject) -> None:
    other = TableDef(name="other", columns=EVENTS.columns)
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.create_table(1, 2, other)

    parts = [*events(1), TableRows(table="other", rows=rows_of([2], other))]
    result = await subject.writer.commit_rows(2, 4, parts)

    assert result.outcome is DONE
    assert (subject.ids("events"), subject.ids("other")) == ([1], [2])


async def test_a_commit_that_changes_nothing_moves_the_watermark(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    outcomes = await _outcomes(
        subject.writer.commit_rows(1, 2, events()),
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
    await subject.writer.commit_rows(1, 2, events(1))

    outcomes = await _outcomes(
        subject.writer.drop_table(2, 3, "events"), subject.writer.create_table(3, 4, EVENTS)
    )

    assert outcomes == [DONE, DONE]
    assert subject.ids("events") == []


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(TableRows(table="nowhere", rows=rows_of([1])), id="no such table"),
        pytest.param(
            TableRows(table="events", rows=rows_of([None])), id="null in a not null column"
        ),
        pytest.param(
            TableRows(table="events", rows=pa.table({"id": [1], "other": ["x"]})),
            id="no such column",
        ),
    ],
)
async def test_what_does_not_fit_is_rejected_and_leaves_nothing(
    subject: Subject, part: TableRows
) -> None:
    await subject.writer.create_table(0, 1, EVENTS)

    result = await subject.writer.commit_rows(1, 3, [*events(1), part])

    assert result.outcome is REJECTED
    assert result.error
    assert await subject.token() == 1
    assert subject.ids("events") == []
    assert (await subject.writer.commit_rows(1, 2, events(5))).outcome is DONE


async def test_a_commit_from_a_watermark_that_moved_is_to_be_reread(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.writer.commit_rows(1, 2, events(1))

    result = await subject.writer.commit_rows(1, 2, events(1))

    assert result.outcome is REREAD
    assert subject.ids("events") == [1]


async def test_a_followed_writer_is_fenced_and_changes_nothing(subject: Subject) -> None:
    await subject.writer.create_table(0, 1, EVENTS)
    await subject.follow()

    outcomes = await _outcomes(
        subject.writer.commit_rows(1, 2, events(1)),
        subject.writer.create_table(1, 2, TableDef(name="b", columns=EVENTS.columns)),
        subject.writer.drop_table(1, 2, "events"),
        subject.writer.set_aside(1, 2, "x"),
    )

    assert outcomes == [FENCED] * 4
    assert await subject.token() == 1
    assert subject.ids("events") == []


async def test_setting_aside_moves_the_watermark_past_the_entry(subject: Subject) -> None:
    await subject.input(3)

    outcomes = await _outcomes(
        subject.writer.set_aside(0, 3, "why"), subject.writer.create_table(3, 4, EVENTS)
    )

    assert outcomes == [DONE, DONE]
    assert await subject.token() == 4


async def test_closing_twice_is_safe(subject: Subject) -> None:
    await subject.writer.close()
    await subject.writer.close()
