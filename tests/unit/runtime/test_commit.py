"""The committer over an in-memory bus and lake."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pyarrow as pa
import pytest

from duckmesh_runtime.domain.changes import AddColumn, DropColumn, alter_json, apply_changes
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, table_json
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import (
    Append,
    CommitOutcome,
    CommitResult,
    EntryKind,
    Part,
    StagedFile,
    TableFile,
    TableRows,
)
from duckmesh_runtime.services.commit import Committer
from duckmesh_runtime.services.pieces import Piece, parts_of, row_count
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
        self.restored = 0
        self.committer = Committer(
            self.bus,
            self.election,
            self.lake.open_writer,
            self.lake,
            batch,
            on_restored=self._count_restore,
        )

    def _count_restore(self) -> None:
        self.restored += 1

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

    async def file(self, path: str, *, rows: int) -> int:
        payload = msgspec.json.encode(StagedFile(path=path, rows=rows, size=1))
        return await self.append(
            Append(
                kind=EntryKind.FILE,
                table="t",
                parts=[Part(rows=rows, payload=payload)],
                schema_version=(await self.bus.head()).schema_version,
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
    assert [letter.last for letter in world.lake.letters] == [poison + 1]
    assert "NOT NULL" in world.lake.letters[0].error


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

    assert [letter.last for letter in world.lake.letters] == [1, 2, 3]
    assert world.lake.ids("t") == [1]


@pytest.mark.parametrize("poison", [{0}, {4}, {1, 2}, {0, 6}, set(range(7))], ids=str)
async def test_a_poison_record_inside_an_entry_is_alone_set_aside_with_its_own_payload(
    world: World, poison: set[int]
) -> None:
    last = await world.send(*(None if id_ in poison else id_ for id_ in range(7)))

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [id_ for id_ in range(7) if id_ not in poison]
    assert [(a.first, a.last) for a in world.lake.letters] == [(i + 1, i + 1) for i in poison]
    for letter in world.lake.letters:
        assert letter.payload is not None
        with pa.ipc.open_stream(letter.payload) as reader:
            assert reader.read_all().to_pydict() == {"id": [None]}


async def test_what_the_lake_refuses_as_a_whole_is_one_letter(world: World) -> None:
    """A hundred thousand letters of one row each, one after the other, would stop the lake for hours."""
    await world.send(1)
    await world.send(*range(1000), table="nowhere")
    last = await world.send(2)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1, 2]
    (letter,) = world.lake.letters
    assert (letter.first, letter.last, letter.payload) == (2, 1001, None)


async def test_many_rows_are_refused_several_times_before_all_are_set_aside(world: World) -> None:
    await world.send(1, 2)
    last = await world.send(3)
    whole = replace(REJECTED, whole=True)
    world.lake.planned = [whole] * (3 + 2)  # of the batch, then of the first entry

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1, 2, 3]
    assert not world.lake.letters


async def test_a_watermark_inside_an_entry_is_gone_on_from(world: World) -> None:
    last = await world.send(1, 2, 3)
    world.lake.token = 2

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [3]
    assert world.lake.commits == [(2, 3)]


async def test_an_entry_that_is_too_much_for_one_commit_is_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FakeWriter.commit

    async def slow(
        self: FakeWriter, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        return await whole(self, prev, tok, parts) if tok - prev <= 2 else REREAD

    monkeypatch.setattr(FakeWriter, "commit", slow)
    last = await world.send(*range(9))

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == list(range(9))
    assert not world.lake.letters


async def test_one_record_that_does_not_fit_now_waits_and_is_never_lost(world: World) -> None:
    last = await world.send(1)
    world.lake.planned = [REREAD] * 5

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1]
    assert not world.lake.letters


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and no time that failures must go on for."""
    monkeypatch.setattr("duckmesh_runtime.services.commit._LONGEST_PAUSE_S", 0)
    monkeypatch.setattr("duckmesh_runtime.services.stuck.LEAST_S", 0)


@pytest.fixture
def tries(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lake never takes row 13, which looks as if the store were ill; how many numbers were in each try with it."""
    whole = FakeWriter.commit
    found: list[int] = []

    async def ill(
        self: FakeWriter, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        if any(13 in part.rows["id"].to_pylist() for part in parts if isinstance(part, TableRows)):
            found.append(tok - prev)
            return REREAD
        return await whole(self, prev, tok, parts)

    monkeypatch.setattr(FakeWriter, "commit", ill)
    return found


@pytest.mark.usefixtures("at_once")
async def test_want_of_memory_or_time_is_never_the_record_s_fault(world: World) -> None:
    last = await world.send(1)
    world.lake.planned = [replace(REREAD, scarce=True)] * 20

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1]
    assert not world.lake.letters


@pytest.mark.usefixtures("at_once")
async def test_a_record_that_alone_fails_for_ever_is_set_aside(
    world: World, tries: list[int]
) -> None:
    last = await world.send(*range(20))

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [id_ for id_ in range(20) if id_ != 13]
    (letter,) = world.lake.letters
    assert (letter.first, letter.last) == (14, 14)
    assert re.fullmatch(r"planned, \d+ times in 0 s, while all else .*", letter.error)
    assert tries.count(1) >= 8
    assert world.lake.probes == tries.count(1)


@pytest.mark.usefixtures("at_once")
async def test_a_change_that_fails_for_ever_is_set_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ill(*_: object) -> CommitResult:
        return REREAD

    monkeypatch.setattr(FakeWriter, "drop_table", ill)
    await world.change(EntryKind.DROP_TABLE, "t")
    last = await world.send(1)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [1]
    assert [(a.first, a.last, a.payload) for a in world.lake.letters] == [(1, 1, None)]


@pytest.mark.usefixtures("at_once")
async def test_nothing_is_set_aside_while_something_else_is_wrong(
    world: World, tries: list[int]
) -> None:
    world.lake.healthy = False
    await world.send(13)

    async with world.running():
        await until(lambda: len(tries) > 50)
        assert not world.lake.letters
        # What failed then tells nothing of the row.
        failed, world.lake.healthy = len(tries), True
        await world.visible(1)

    assert len(tries) - failed >= 8
    assert len(world.lake.letters) == 1


@pytest.mark.usefixtures("tries")
async def test_failures_must_go_on_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duckmesh_runtime.services.commit._LONGEST_PAUSE_S", 0)
    await world.send(13)

    async with world.running():
        await until(lambda: world.lake.probes > 50)

    assert not world.lake.letters


async def test_rows_for_which_memory_does_not_suffice_are_cut_not_set_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(pieces: Sequence[Piece]) -> list[TableRows | TableFile]:
        if row_count(pieces) > 2:
            raise pa.ArrowMemoryError("planned")
        return parts_of(pieces)

    monkeypatch.setattr("duckmesh_runtime.services.commit.parts_of", greedy)
    last = await world.send(*range(9))

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == list(range(9))
    assert not world.lake.letters


async def test_an_entry_that_cannot_be_read_is_one_letter_though_it_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("duckmesh_runtime.services.commit._ALL", 2)
    world = World()
    await world.send(1, 2, 3, 4)
    world.bus.entries[-1] = replace(world.bus.entries[-1], payload=b"garbage")
    last = await world.send(5)

    async with world.running():
        await world.visible(last)

    (letter,) = world.lake.letters
    assert (letter.first, letter.last, letter.payload) == (1, 4, None)
    assert world.lake.ids("t") == [5]


async def test_a_staged_file_lands_beside_rows(world: World) -> None:
    world.lake.store["staged"] = pa.table({"id": [1, 2]})
    await world.send(0)
    await world.file("staged", rows=2)
    last = await world.send(3)

    async with world.running():
        await world.visible(last)

    assert sorted(world.lake.ids("t")) == [0, 1, 2, 3]
    assert world.lake.commits == [(0, 4)]


async def test_a_file_that_is_gone_is_a_letter_and_the_rest_goes_on(world: World) -> None:
    await world.send(0)
    await world.file("gone", rows=2)
    last = await world.send(3)

    async with world.running():
        await world.visible(last)

    assert world.lake.ids("t") == [0, 3]
    (letter,) = world.lake.letters
    assert (letter.first, letter.last, letter.payload) == (2, 3, None)
    assert "DATA_FILE_MISSING" in letter.error


async def test_a_changed_table_takes_what_was_accepted_after(world: World) -> None:
    changes = [AddColumn(column=ColumnDef(name="more", type="BIGINT"))]
    payload = json.dumps(alter_json(apply_changes(T, changes), changes)).encode()
    await world.send(1)
    await world.change(EntryKind.CREATE_TABLE, "t", json.dumps(table_json(T)).encode())
    last = await world.change(EntryKind.ALTER_TABLE, "t", payload)

    async with world.running():
        await world.visible(last)

    assert [column.name for column in world.lake.tables["t"][0].columns] == ["id", "more"]


async def test_a_refused_change_is_set_aside(world: World) -> None:
    changes = [DropColumn(name="id")]
    payload = json.dumps(alter_json(T, changes)).encode()
    await world.change(EntryKind.CREATE_TABLE, "t", json.dumps(table_json(T)).encode())
    await world.change(EntryKind.ALTER_TABLE, "t", payload)
    last = await world.send(1)

    async with world.running():
        await world.visible(last)

    assert [(a.first, a.last) for a in world.lake.letters] == [(2, 2)]
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
    whole = FakeWriter.commit

    async def slow(
        self: FakeWriter, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        return await whole(self, prev, tok, parts) if tok - prev <= 2 else REREAD

    monkeypatch.setattr(FakeWriter, "commit", slow)
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


async def test_a_restore_takes_back_what_came_before_it_and_not_what_comes_after(
    world: World,
) -> None:
    payload = json.dumps(table_json(replace(T, name="u"))).encode()
    await world.change(EntryKind.CREATE_TABLE, "t", json.dumps(table_json(T)).encode())
    async with world.running():
        await world.visible(await world.send(1, 2))
        then = max(world.lake.snapshots)
        world.bus.snapshots[then] = world.lake.token

        await world.send(3)
        await world.change(EntryKind.CREATE_TABLE, "u", payload)
        await world.bus.restore(then)
        await world.visible(await world.send(4))

    assert world.lake.ids("t") == [1, 2, 4]
    assert "u" not in world.lake.tables
    assert world.restored == 1
    assert world.bus.pinned == {}


async def test_a_refused_restore_is_set_aside_after_one_try(world: World) -> None:
    world.bus.snapshots[1] = 0
    number = (await world.bus.restore(1)).last
    world.lake.planned = [REJECTED]
    last = await world.send(1)

    async with world.running():
        await world.visible(last)

    assert [(letter.first, letter.error) for letter in world.lake.letters] == [(number, "planned")]
    assert world.lake.ids("t") == [1]
    assert world.restored == 0


@pytest.mark.parametrize(("scarce", "well"), [(False, True), (True, False)])
async def test_a_restore_that_is_ended_twice_is_set_aside(
    world: World, scarce: bool, well: bool
) -> None:
    world.bus.snapshots[1] = 0
    number = (await world.bus.restore(1)).last
    world.lake.healthy = well
    world.lake.planned = [replace(REREAD, scarce=scarce)] * 2
    last = await world.send(1)

    async with world.running():
        await world.visible(last)

    (letter,) = world.lake.letters
    assert letter.first == number
    assert letter.error.startswith("planned, 2 times in")
    assert world.lake.ids("t") == [1]


async def test_a_restore_that_is_ended_once_is_done_at_the_next_try(world: World) -> None:
    world.bus.snapshots[0] = 0
    last = (await world.bus.restore(0)).last
    world.lake.planned = [REREAD]

    async with world.running():
        await world.visible(last)

    assert world.lake.letters == []
    assert world.restored == 1
