"""The committer when something dies: each fault at each step of a commit, and never a row lost, doubled or come back."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain.changes import AddColumn, apply_changes
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from tests.cuts import relayed
from tests.failpoints import Failpoint
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_alter,
    append_create,
    append_file,
    append_rows,
    append_table,
    changes_of,
    committer_of,
    committer_process,
    eventually,
    rows_of,
    running,
    send,
    stage,
    writer_pool,
)
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]
Change = Mapping[str, object] | tuple[object, ...]


@pytest.fixture
async def bus(lake: Lake) -> AsyncIterator[PostgresBus]:
    # A test may hold the bus's lock for as long as it looks at others that wait for it.
    async with writer_pool(lake, lock_timeout_ms=60_000) as pool:
        yield PostgresBus(pool, lake.name)


@dataclass
class Work:
    """Input of every kind in rounds, and what the lake must hold after it."""

    lake: Lake
    bus: PostgresBus
    table: TableDef = EVENTS
    version: int = 2
    ids: list[int] = field(default_factory=list)
    keyed: dict[int, str] = field(default_factory=dict)
    poison: int = 0

    async def start(self) -> None:
        await send(self.bus, append_create(EVENTS, version=0), append_create(KEYED, version=1))

    async def round(self, number: int) -> int:
        """Rows with a poison one, upserts and deletes, a file, a change of the table, rows of the changed table."""
        base = 100 * number
        staged = await stage(
            self.lake, rows_of([base + 50, base + 51], self.table), f"staged-{number}.parquet"
        )
        changes: list[Change] = [
            {"id": 1, "value": f"round {number}"},
            {"id": base, "value": "new"},
            (base - 100,),
        ]
        self.keyed[1] = f"round {number}"
        self.keyed[base] = "new"
        self.keyed.pop(base - 100, None)
        await send(
            self.bus,
            append_rows([base + 1, None, base + 2], version=self.version, table=self.table),
            append_table(changes_of(*changes), version=self.version, table="keyed"),
            append_file(staged, version=self.version),
        )
        added = AddColumn(column=ColumnDef(name=f"c{number}", type="INTEGER", default=number))
        self.table = apply_changes(self.table, [added])
        last = await send(
            self.bus,
            append_alter(self.table, added, version=self.version),
            append_rows([base + 60], version=self.version + 1, table=self.table),
        )
        self.version += 1
        self.ids += [base + 1, base + 2, base + 50, base + 51, base + 60]
        self.poison += 1
        return last

    async def check(self) -> None:
        view = LakeView(self.lake)
        assert view.ids() == sorted(self.ids)
        assert dict(view.query("SELECT id, value FROM keyed")) == self.keyed
        assert view.query("SELECT count(*) FROM keyed") == [(len(self.keyed),)]
        letters = await view.fetch(f"SELECT row_count FROM {self.lake.name}_bus.dead_letter")
        assert [letter["row_count"] for letter in letters] == [1] * self.poison
        names = [column.name for column in self.table.columns]
        assert [row[0] for row in view.query("DESCRIBE events")] == names


FAILPOINTS = [
    ("after", "BEGIN"),
    ("after", "set_commit_message"),
    ("after", 'INSERT INTO lake.main."events"'),
    ("after", "CREATE OR REPLACE TEMP TABLE"),
    ("before", 'DELETE FROM lake.main."keyed"'),
    ("after", 'DELETE FROM lake.main."keyed"'),
    ("after", 'INSERT INTO lake.main."keyed"'),
    ("after", "ducklake_add_data_files"),
    ("after", "ADD COLUMN"),
    ("before", "COMMIT"),
    ("during", "COMMIT"),
    ("during", "COMMIT"),
    ("after", "COMMIT"),
    ("before", "set_aside"),
    ("after", "set_aside"),
    ("before", "trim"),
]


async def test_a_committer_killed_at_any_step_leaves_what_its_heir_makes_whole(
    lake: Lake, bus: PostgresBus
) -> None:
    work = Work(lake=lake, bus=bus)
    await work.start()
    last = 0
    for number, die in enumerate(FAILPOINTS, 1):
        last = await work.round(number)
        with committer_process(lake, str(number), die=die) as process:
            code = await asyncio.wait_for(asyncio.to_thread(process.wait), 60)
        assert code == -signal.SIGKILL, die

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last, 60)

    await work.check()


@pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.long), "s3"])
async def test_a_commit_whose_answer_is_lost_is_not_repeated_and_keeps_its_files(
    make_lake: MakeLake, tmp_path: Path, store: str
) -> None:
    """DuckLake takes a COMMIT without an answer for a failed one, and would remove the files that it published."""
    lake = await make_lake(store=store)
    async with relayed(lake, tmp_path) as (far, relay), writer_pool(lake) as pool:
        work = Work(lake=lake, bus=PostgresBus(pool, lake.name))
        await work.start()
        async with committer_of(far) as committer, running(committer):
            await LakeView(lake).visible(2)
            for number in range(1, 5):
                relay.armed = True
                await LakeView(lake).visible(await work.round(number))
                assert relay.cuts == number

        await work.check()


async def test_postgres_killed_at_commit_loses_no_change_and_repeats_none(
    make_lake: MakeLake, services_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresServer(services_dir / "killed-at-commit") as server:
        lake = await make_lake(server=server)
        async with writer_pool(lake) as pool:
            work = Work(lake=lake, bus=PostgresBus(pool, lake.name))
            await work.start()
            async with committer_of(lake) as committer, running(committer):
                await LakeView(lake).visible(2)
            for number in range(1, 5):
                last = await work.round(number)
                failpoint = Failpoint("COMMIT", "during", lambda: server.stop(signal.SIGQUIT))
                with monkeypatch.context() as patch:
                    failpoint.plant(patch)
                    async with committer_of(lake) as committer, running(committer):
                        await eventually(_stopped(server))
                        server.start()
                        await LakeView(lake).visible(last, 60)

            await work.check()


def _stopped(server: PostgresServer) -> Callable[[], Awaitable[bool]]:
    async def stopped() -> bool:
        return not server.running

    return stopped


class Upserts:
    """Random changes of few keys in small groups, and the dict that they lead to."""

    def __init__(self, bus: PostgresBus) -> None:
        self._bus = bus
        self._chance = random.Random(17)  # noqa: S311 - repeatable, not secret
        self._count = 0
        self.wanted: dict[int, str] = {}

    async def send(self) -> int:
        changes: list[Change] = []
        for _ in range(self._chance.randint(1, 30)):
            self._count += 1
            id_ = self._chance.randrange(40)
            if self._chance.random() < 0.3:
                changes.append((id_,))
                self.wanted.pop(id_, None)
            else:
                self.wanted[id_] = str(self._count)
                changes.append({"id": id_, "value": self.wanted[id_]})
        return await send(self._bus, append_table(changes_of(*changes), version=1, table="keyed"))

    async def until(self, done: asyncio.Event) -> int:
        last = 0
        while not done.is_set():
            last = await self.send()
        return last


async def test_a_stopped_and_revived_committer_changes_nothing_of_what_its_heir_upserts(
    lake: Lake, bus: PostgresBus
) -> None:
    """Stopped between its delete and its COMMIT: what it holds is of rows that others have replaced since."""
    view, upserts = LakeView(lake), Upserts(bus)
    await send(bus, append_create(KEYED, version=0))
    with committer_process(lake, "zombie") as zombie:
        await view.visible(await upserts.send())
        with committer_process(lake, "heir"):
            done = asyncio.Event()
            feeding = asyncio.create_task(upserts.until(done))
            await view.visible(await view.token() + 100)
            epoch = await view.epoch()
            await _commits(view, lake)
            zombie.send_signal(signal.SIGSTOP)
            await eventually(lambda: _followed(view, epoch))
            await view.visible(await view.token() + 100)
            zombie.send_signal(signal.SIGCONT)
            await view.visible(await view.token() + 100)
            done.set()
            await view.visible(await feeding)

    assert dict(view.query("SELECT id, value FROM keyed")) == upserts.wanted
    assert view.query("SELECT count(*) FROM keyed") == [(len(upserts.wanted),)]


async def _commits(view: LakeView, lake: Lake) -> None:
    """Wait until a commit is under way, as far as Postgres can see."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1) "
        "AND state <> 'idle'"
    )

    async def under_way() -> bool:
        return bool(await view.fetchval(query, f"dm:{lake.name}:w:"))

    await eventually(under_way)


async def _followed(view: LakeView, epoch: int) -> bool:
    return await view.epoch() > epoch


async def test_nothing_past_a_slow_transaction_with_the_lower_number_becomes_visible(
    lake: Lake, bus: PostgresBus
) -> None:
    view = LakeView(lake)
    await send(bus, append_create(EVENTS, version=0))
    async with committer_of(lake) as committer, running(committer):
        await view.visible(1)
        slow = await asyncpg.connect(lake.catalog_dsn)
        try:
            async with slow.transaction():
                await _append_slowly(slow, lake)
                later = asyncio.create_task(send(bus, append_rows([3], version=1)))
                await eventually(lambda: _waits(view))
                committer.nudge()
                assert await view.token() == 1
                assert not later.done()
        finally:
            await slow.close()
        await view.visible(await later)

    assert view.ids() == [1, 2, 3]


async def _append_slowly(connection: asyncpg.Connection, lake: Lake) -> None:
    """Take the numbers 2 and 3 for the rows 1 and 2, as an append does, and do not commit."""
    append = append_rows([1, 2], version=1)
    (part,) = append.parts
    payload = append.header + part.payload + b"\xff\xff\xff\xff\x00\x00\x00\x00"
    await connection.execute(f"UPDATE {lake.name}_bus.head SET last = last + 2")
    await connection.execute(
        f"INSERT INTO {lake.name}_bus.entry (first, last, kind, table_name, schema_version, row_count, "
        "byte_count, payload) VALUES (2, 3, 'rows', 'events', 1, 2, $1, $2)",
        len(payload),
        payload,
    )


async def _waits(view: LakeView) -> bool:
    return bool(await view.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
