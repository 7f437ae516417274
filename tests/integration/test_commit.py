"""The committer over a real Postgres and a real DuckLake."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import ducklake, election
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain.changes import AddColumn, apply_changes
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import StagedFile
from duckmesh_runtime.services.commit import Committer
from tests.lakes import (
    EVENTS,
    KEYED,
    LakeView,
    append_alter,
    append_create,
    append_drop,
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


@pytest.fixture
async def bus(lake: Lake) -> AsyncIterator[PostgresBus]:
    async with writer_pool(lake) as pool:
        yield PostgresBus(pool, lake.name)


@pytest.mark.parametrize("store", ["file", "s3"])
async def test_accepted_rows_are_in_the_lake_when_the_watermark_says_so(
    make_lake: MakeLake, store: str
) -> None:
    lake = await make_lake(store=store)
    view = LakeView(lake)
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(EVENTS, version=0), append_rows([1, 2], version=1))
        last = await send(bus, append_rows([3], version=1))
        committer.nudge()
        await view.visible(last)

        assert view.ids() == [1, 2, 3]

        async def trimmed() -> bool:  # a moment after the watermark
            return await bus.read(0, max_rows=10, max_bytes=10**6) == []

        await eventually(trimmed)


async def test_table_changes_and_rows_happen_in_token_order(lake: Lake, bus: PostgresBus) -> None:
    other = TableDef(name="events", columns=(ColumnDef(name="id", type="INTEGER"),))
    await send(
        bus,
        append_create(EVENTS, version=0),
        append_rows([1], version=1),
        append_drop("events", version=1),
        append_create(other, version=2),
        append_rows(
            [2, 3], version=3, table=EVENTS.__class__(name="events", columns=EVENTS.columns[:1])
        ),
    )
    last = await send(bus, append_create(TableDef(name="b", columns=EVENTS.columns), version=3))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last)

    assert LakeView(lake).query("SELECT id FROM events ORDER BY id") == [(2,), (3,)]
    assert LakeView(lake).query("SELECT count(*) FROM b") == [(0,)]


async def test_a_poison_record_is_set_aside_with_its_own_payload_and_the_rest_goes_on(
    lake: Lake, bus: PostgresBus
) -> None:
    groups: list[list[int | None]] = [[1], [2, 3], [None, 4], [5], [6]]
    await send(bus, append_create(EVENTS, version=0))
    last = await send(bus, *(append_rows(group, version=1) for group in groups))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last)

    assert LakeView(lake).ids() == [1, 2, 3, 4, 5, 6]
    (letter,) = await LakeView(lake).fetch(f"SELECT * FROM {lake.name}_bus.dead_letter")
    assert (letter["first"], letter["last"], letter["table_name"]) == (5, 5, "events")
    assert "NOT NULL" in letter["error"]
    with pa.ipc.open_stream(letter["payload"]) as reader:
        assert reader.read_all() == rows_of([None])


async def test_rows_of_a_table_that_is_not_there_are_set_aside(
    lake: Lake, bus: PostgresBus
) -> None:
    last = await send(bus, append_rows([1, 2], version=0), append_create(EVENTS, version=0))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last)

    query = f"SELECT row_count FROM {lake.name}_bus.dead_letter"
    assert await LakeView(lake).fetchval(query) == 2
    assert LakeView(lake).ids() == []


async def test_a_store_that_refuses_delays_rows_and_loses_none(make_lake: MakeLake) -> None:
    lake = await make_lake(store="s3")
    assert lake.store.secret_dir is not None
    secret = lake.store.secret_dir / "secret-access-key"
    right = secret.read_text()
    view = LakeView(lake)
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        bus = PostgresBus(pool, lake.name)
        await view.visible(await send(bus, append_create(EVENTS, version=0)))

    secret.write_text("wrong")
    async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
        last = await send(PostgresBus(pool, lake.name), append_rows([1, 2], version=1))
        await eventually(lambda: _tried(committer))
        assert await view.token() == 1
        secret.write_text(right)
        await view.visible(last)

    assert view.ids() == [1, 2]


async def _tried(committer: Committer) -> bool:
    """Whether a commit has failed and is going to be redone."""
    return committer.active and committer.backing_off


async def test_a_partitioned_table_is_laid_out_by_its_columns(lake: Lake, bus: PostgresBus) -> None:
    table = replace(EVENTS, partition_by=("id",))
    await send(bus, append_create(table, version=0))
    last = await send(bus, append_rows([1, 2, 3], version=1))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last)

    assert LakeView(lake).ids() == [1, 2, 3]
    query = f"SELECT count(*) FROM {lake.name}.ducklake_data_file WHERE partition_id IS NOT NULL"
    assert await LakeView(lake).fetchval(query) == 3


async def test_an_entry_of_thousands_of_partitions_lands_in_pieces(
    lake: Lake, bus: PostgresBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value is a file: one commit would outlast its time, again and again."""
    monkeypatch.setattr(ducklake, "_COMMIT_TIMEOUT_S", 0.5)
    table = replace(EVENTS, partition_by=("id",))
    await send(bus, append_create(table, version=0))
    last = await send(bus, append_rows(range(1000), version=1))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last, 120)

    assert LakeView(lake).query("SELECT count(*), count(DISTINCT id) FROM events") == [(1000, 1000)]
    assert await LakeView(lake).fetchval(f"SELECT count(*) FROM {lake.name}_bus.dead_letter") == 0


async def test_input_of_every_kind_lands_in_order(lake: Lake, bus: PostgresBus) -> None:
    view = LakeView(lake)
    await send(bus, append_create(EVENTS, version=0), append_create(KEYED, version=1))
    staged = await stage(lake, rows_of([10, 11]))
    await send(
        bus,
        append_rows([1], version=2),
        append_table(changes_of({"id": 1, "value": "a"}, {"id": 2}), version=2, table="keyed"),
        append_file(staged, version=2),
        append_table(changes_of({"id": 1, "value": "b"}, (2,)), version=2, table="keyed"),
    )
    added = AddColumn(column=ColumnDef(name="more", type="INTEGER", default=7))
    changed = apply_changes(EVENTS, [added])
    await send(bus, append_alter(changed, added, version=2))
    last = await send(bus, append_rows([2], version=3, table=changed))

    async with committer_of(lake) as committer, running(committer):
        await view.visible(last)

    found = view.query("SELECT id, more FROM events ORDER BY id")
    assert found == [(1, 7), (2, None), (10, 7), (11, 7)]
    assert view.query("SELECT * FROM keyed") == [(1, "b")]


async def test_a_file_that_is_gone_is_a_dead_letter_and_the_rest_goes_on(
    lake: Lake, bus: PostgresBus
) -> None:
    gone = StagedFile(path="main/events/staged-9.parquet", rows=3, size=1)
    await send(bus, append_create(EVENTS, version=0), append_rows([1], version=1))
    last = await send(bus, append_file(gone, version=1), append_rows([2], version=1))

    async with committer_of(lake) as committer, running(committer):
        await LakeView(lake).visible(last)

    assert LakeView(lake).ids() == [1, 2]
    (letter,) = await LakeView(lake).fetch(f"SELECT * FROM {lake.name}_bus.dead_letter")
    assert (letter["kind"], letter["first"], letter["last"]) == ("file", 3, 5)
    assert letter["error"].startswith("DATA_FILE_MISSING")


async def test_handing_over_lets_a_sibling_commit_before_the_heartbeat_expires(
    lake: Lake, bus: PostgresBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "BEAT_TTL_S", 60.0)
    await send(bus, append_create(EVENTS, version=0))
    async with committer_of(lake) as first, committer_of(lake, holder="two") as second:
        first_run = asyncio.create_task(first.run())
        await LakeView(lake).visible(1)
        async with running(second):
            assert not second.active
            await first.hand_over()
            await first_run
            last = await send(bus, append_rows([1], version=1))
            second.nudge()
            await LakeView(lake).visible(last)

            assert second.active
            assert not first.active


TAKE_OVER_S = 15.0
"""Five on a machine of its own (docs/benchmarks.md)."""


class Feed:
    """Rows with the ids 0, 1, 2, ... in groups of random size.

    Attributes:
        sent: Every id that was accepted.
    """

    def __init__(self, bus: PostgresBus, seed: int) -> None:
        self._bus = bus
        self._chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.sent: list[int] = []

    async def send(self, groups: int = 1) -> int:
        last = 0
        for _ in range(groups):
            ids = range(len(self.sent), len(self.sent) + self._chance.randint(1, 400))
            last = await send(self._bus, append_rows(ids, version=1))
            self.sent.extend(ids)
        return last

    async def until(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self.send()


async def _standby_waits(view: LakeView, lake: Lake) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%try_advisory%'"
    return bool(await view.fetchval(query, f"duckmesh:{lake.name}:standby"))


async def _followed(view: LakeView, epoch: int) -> float:
    """Seconds until another epoch is there."""
    started = time.monotonic()

    async def moved() -> bool:
        return await view.epoch() > epoch

    await eventually(moved)
    return time.monotonic() - started


async def test_killed_committers_are_followed_and_nothing_is_lost_or_twice(
    lake: Lake, bus: PostgresBus
) -> None:
    view, feed, took = LakeView(lake), Feed(bus, 7), []
    await send(bus, append_create(EVENTS, version=0))
    with ExitStack() as stack:
        holder = stack.enter_context(committer_process(lake, "0"))
        for turn in range(1, 6):
            await view.visible(await feed.send())
            heir = stack.enter_context(committer_process(lake, str(turn)))
            await eventually(lambda: _standby_waits(view, lake))
            done = asyncio.Event()
            feeding = asyncio.create_task(feed.until(done))
            before = await view.token()
            await view.visible(before + 1 + turn * 300)
            epoch = await view.epoch()
            holder.send_signal(signal.SIGKILL)
            took.append(await _followed(view, epoch))
            done.set()
            await feeding
            holder = heir
        await view.visible(await feed.send())

    assert view.ids() == feed.sent
    assert max(took) < TAKE_OVER_S


async def test_a_stopped_and_revived_committer_changes_nothing(
    lake: Lake, bus: PostgresBus
) -> None:
    view, feed = LakeView(lake), Feed(bus, 3)
    await send(bus, append_create(EVENTS, version=0))
    with committer_process(lake, "zombie") as zombie:
        await view.visible(await feed.send())
        with committer_process(lake, "heir"):
            await eventually(lambda: _standby_waits(view, lake))
            done = asyncio.Event()
            feeding = asyncio.create_task(feed.until(done))
            await view.visible(await view.token() + 500)
            epoch = await view.epoch()
            zombie.send_signal(signal.SIGSTOP)
            took = await _followed(view, epoch)
            await view.visible(await view.token() + 500)
            zombie.send_signal(signal.SIGCONT)
            await view.visible(await view.token() + 500)
            done.set()
            await feeding
            await view.visible(await feed.send())

    assert view.ids() == feed.sent
    assert took < TAKE_OVER_S


async def test_postgres_killed_under_load_loses_nothing_and_repeats_nothing(
    make_lake: MakeLake, services_dir: Path
) -> None:
    chance = random.Random(11)  # noqa: S311 - repeatable, not secret
    server = PostgresServer(services_dir / "killed")
    sent: list[int] = []
    maybe: list[range] = []
    with server:
        lake = await make_lake(server=server)
        view = LakeView(lake)
        async with writer_pool(lake) as pool, committer_of(lake) as committer, running(committer):
            bus = PostgresBus(pool, lake.name)
            await send(bus, append_create(EVENTS, version=0))

            async def feed(until: float) -> None:
                while time.monotonic() < until:
                    start = len(sent) + sum(map(len, maybe))
                    ids = range(start, start + 20)
                    try:
                        await send(bus, append_rows(ids, version=1))
                        sent.extend(ids)
                    except Unavailable:
                        maybe.append(ids)  # no answer: all of it or nothing
                        return

            for _ in range(3):
                feeding = asyncio.create_task(feed(time.monotonic() + 10))
                await asyncio.sleep(chance.uniform(0.2, 0.7))
                server.stop(signal.SIGQUIT)
                await feeding
                server.start()
                last = await _send_until_answered(bus, sent, maybe)
                await view.visible(last)

        found = view.ids()

    assert len(found) == len(set(found))
    assert set(sent) <= set(found)
    assert set(found) <= set(sent).union(*maybe)
    assert all(set(ids) <= set(found) or not set(ids) & set(found) for ids in maybe)


async def _send_until_answered(bus: PostgresBus, sent: list[int], maybe: list[range]) -> int:
    while True:
        start = len(sent) + sum(map(len, maybe))
        try:
            last = await send(bus, append_rows([start], version=1))
        except Unavailable:
            maybe.append(range(start, start + 1))
            await asyncio.sleep(0.05)
        else:
            sent.append(start)
            return last
