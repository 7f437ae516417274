"""The committer over an in-memory bus and lake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pyarrow as pa
import pytest

from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import (
    Append,
    CommitOutcome,
    CommitResult,
    EntryKind,
    Part,
    TableRows,
)
from duckmesh_runtime.services.commit import Committer
from duckmesh_runtime.settings import BatchSettings
from tests.fakes.bus import FakeBus
from tests.fakes.lake import FakeElection, FakeLake, FakeWriter

T = TableDef(name="t", columns=(ColumnDef(name="id", type="BIGINT", nullable=False),))
QUICK = BatchSettings(min_interval_ms=0, max_delay_ms=0)
REJECTED = CommitResult(outcome=CommitOutcome.REJECTED, error="planned")
REREAD = CommitResult(outcome=CommitOutcome.REREAD, error="planned")
FENCED = CommitResult(outcome=CommitOutcome.FENCED)


class World:
    """A lake with table t, a bus, and a committer over both."""

    def __init__(self, batch: BatchSettings = QUICK) -> None:
        self.bus = FakeBus()
        self.lake = FakeLake(tables={"t": (T, [])})
        self.election = FakeElection(self.lake)
        self.committer = Committer(self.bus, self.election, self.lake.open_writer, self.lake, batch)

    async def send(self, *ids: int | None, table: str = "t") -> int:
        rows = pa.record_batch({"id": pa.array(ids, pa.int64())})
        return await self.append(
            Append(
                kind=EntryKind.ROWS,
                table=table,
                parts=[Part(rows=len(ids), payload=rows.serialize().to_pybytes())],
                schema_version=(await self.bus.head()).schema_version,
                header=rows.schema.serialize().to_pybytes(),
            )
        )

    async def change(self, kind: EntryKind, table: str, payload: bytes = b"") -> int:
        return await self.append(
            Append(
                kind=kind,
                table=table,
                parts=[Part(rows=1, payload=payload)],
                schema_version=(await self.bus.head()).schema_version,
            )
        )

    async def append(self, append: Append) -> int:
        (receipt,) = await self.bus.append([append])
        self.committer.nudge()
        return receipt.last

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.committer.run())
        try:
            yield
        finally:
            await asyncio.wait_for(self.committer.hand_over(), 5)
            await task

    async def visible(self, number: int) -> None:
        await until(lambda: self.lake.token >= number)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


async def test_input_accepted_before_the_start_is_committed_once(world: World) -> None:
    await world.send(1, 2)
    last = await world.send(3)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1, 2, 3]
    assert world.lake.commits == [(0, 3)]


async def test_committed_entries_leave_the_bus(world: World) -> None:
    async with world.running():
        last = await world.send(1)
        await world.visible(last)
        await until(lambda: not world.bus.entries)


async def test_a_nudge_wakes_the_committer_before_its_poll(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duckmesh_runtime.services.commit.POLL_S", 3600)
    async with world.running():
        await until(lambda: world.committer.active)
        await world.visible(await world.send(1))
        await world.visible(await world.send(2))


async def test_the_poll_finds_input_that_nobody_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duckmesh_runtime.services.commit.POLL_S", 0.001)
    monkeypatch.setattr(world.committer, "nudge", lambda: None)
    async with world.running():
        await until(lambda: world.committer.active)
        await world.visible(await world.send(1))


async def test_entries_wait_for_each_other_within_the_interval() -> None:
    world = World(BatchSettings(min_interval_ms=500, max_delay_ms=1000))
    async with world.running():
        await world.visible(await world.send(1))
        for number in range(2, 12):
            last = await world.send(number)
        await world.visible(last)

    assert world.lake.commits == [(0, 1), (1, 11)]


async def test_changes_of_tables_are_commits_of_their_own_in_order(world: World) -> None:
    await world.send(1)
    payload = b'{"name": "u", "columns": [{"name": "id", "type": "BIGINT"}]}'
    await world.change(EntryKind.CREATE_TABLE, "u", payload)
    await world.send(2, 3, table="u")
    last = await world.change(EntryKind.DROP_TABLE, "t")

    async with world.running():
        await world.visible(last)

    assert world.lake.commits == [(0, 1), (1, 2), (2, 4), (4, 5)]
    assert world.lake.ids("u") == [2, 3]
    assert "t" not in world.lake.tables


async def test_a_rejected_batch_is_tried_three_times_before_it_is_split(world: World) -> None:
    await world.send(1)
    last = await world.send(2)
    world.lake.planned = [REJECTED, REJECTED]

    async with world.running():
        await world.visible(last)

    assert world.lake.commits == [(0, 2)]
    assert not world.lake.letters


@pytest.mark.parametrize("poison", range(5))
async def test_only_the_poison_entry_is_set_aside(world: World, poison: int) -> None:
    for number in range(5):
        last = await world.send(None if number == poison else number)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [number for number in range(5) if number != poison]
    assert [number for number, _ in world.lake.letters] == [poison + 1]
    assert "NOT NULL" in world.lake.letters[0][1]


async def test_a_batch_of_nothing_but_poison_does_not_stop_the_lake(world: World) -> None:
    await world.send(None)
    await world.send(1, table="nowhere")
    await world.change(
        EntryKind.CREATE_TABLE, "u", b'{"name": "u", "columns": [{"name": "id", "type": "DATE"}]}'
    )
    world.bus.entries[-1] = replace(world.bus.entries[-1], payload=b"not json")
    last = await world.send(1)

    async with world.running():
        await world.visible(last)

    assert [number for number, _ in world.lake.letters] == [1, 2, 3]
    assert world.lake.ids("t") == [1]


async def test_after_doubt_the_watermark_is_read_again(world: World) -> None:
    await world.send(1)
    world.lake.planned = [REREAD]

    async with world.running():
        await world.visible(await world.send(2))

    assert world.lake.ids("t") == [1, 2]
    assert world.lake.opened == 2
    assert len(world.election.terms) == 1


async def test_a_backlog_that_is_too_much_for_one_commit_lands_in_smaller_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes longer than a commit may would otherwise be tried for ever, all of it each time."""
    whole = FakeWriter.commit_rows

    async def slow(
        self: FakeWriter, prev: int, tok: int, parts: Sequence[TableRows]
    ) -> CommitResult:
        return await whole(self, prev, tok, parts) if tok - prev <= 2 else REREAD

    monkeypatch.setattr(FakeWriter, "commit_rows", slow)
    for number in range(1, 9):
        last = await world.send(number)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == list(range(1, 9))


async def test_a_commit_that_landed_unseen_is_not_repeated(world: World) -> None:
    """The answer of the COMMIT is lost, and the rows are there."""
    last = await world.send(1)
    landed = CommitResult(outcome=CommitOutcome.REREAD, error="planned")
    world.lake.planned = [landed]
    async with world.lake.turn:
        running = asyncio.create_task(world.committer.run())
        await until(lambda: bool(world.election.terms))
        world.lake.tables["t"][1].append(pa.table({"id": [1]}))

    await until(lambda: not world.lake.planned)
    world.lake.token = last
    await until(lambda: world.lake.opened == 2)
    await world.committer.hand_over()
    await running

    assert world.lake.ids("t") == [1]


async def test_a_fenced_committer_campaigns_again(world: World) -> None:
    await world.send(1)
    world.lake.planned = [FENCED]

    async with world.running():
        await world.visible(1)

    assert len(world.election.terms) == 2
    assert world.lake.ids("t") == [1]


async def test_a_lost_term_ends_the_commits(world: World) -> None:
    async with world.running():
        await world.visible(await world.send(1))
        world.election.open.clear()
        world.election.terms[0].lost.set()
        world.committer.nudge()
        await until(lambda: not world.committer.active)
        await world.send(2)

        assert world.lake.ids("t") == [1]
        world.election.open.set()
        await world.visible(2)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("CATALOG_UNAVAILABLE", "planned"),
        Corrupt("INTEGRITY_CHECK_FAILED", "planned"),
        RuntimeError("planned"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_loop_survives_any_failure(world: World, error: Exception) -> None:
    await world.send(1)
    world.lake.planned = [error]

    async with world.running():
        await world.visible(1)

    assert world.lake.ids("t") == [1]


async def test_handing_over_finishes_the_running_commit(world: World) -> None:
    await world.send(1)
    await world.lake.turn.acquire()
    running = asyncio.create_task(world.committer.run())
    await until(lambda: bool(world.lake.opened and world.election.terms[0].inflight_to))

    leaving = asyncio.create_task(world.committer.hand_over())
    await asyncio.sleep(0)
    assert world.election.released == 0
    world.lake.turn.release()
    await leaving
    await running

    assert world.lake.ids("t") == [1]
    assert world.election.released
    assert not world.committer.active


async def test_handing_over_while_campaigning_ends_the_run(world: World) -> None:
    world.election.open.clear()
    running = asyncio.create_task(world.committer.run())
    await asyncio.sleep(0)

    await asyncio.wait_for(world.committer.hand_over(), 5)
    await running

    assert not world.election.terms


async def test_handing_over_before_the_run_keeps_it_from_starting(world: World) -> None:
    await world.committer.hand_over()
    await world.committer.run()

    assert not world.election.terms


async def test_a_cancelled_run_releases_the_role(world: World) -> None:
    running = asyncio.create_task(world.committer.run())
    await until(lambda: world.committer.active)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert world.election.released
    assert not world.committer.active


async def test_the_bounds_of_a_batch_are_kept() -> None:
    world = World(BatchSettings(min_interval_ms=0, max_delay_ms=0, max_rows=2))
    for number in range(5):
        last = await world.send(number)

    async with world.running():
        await world.visible(last)

    assert world.lake.commits == [(0, 2), (2, 4), (4, 5)]
