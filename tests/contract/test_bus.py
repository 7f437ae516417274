"""What every bus does: the in-memory double and the one in Postgres pass the same suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from duckmesh_runtime.domain.schema import TableDef, arrow_schema, parse_table, table_json
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Entry,
    EntryKind,
    IngestBus,
    KeyHash,
    Part,
    Receipt,
)
from tests.buses import BusUnderTest, eventually, fake_bus, postgres_bus
from tests.services import create_database

ALL = {"max_rows": 1_000_000, "max_bytes": 2**30}


def table(name: str) -> TableDef:
    return parse_table({"name": name, "columns": [{"name": "id", "type": "BIGINT"}]})


def key(name: str, content: str = "same", *, request: bool = False) -> KeyHash:
    return KeyHash(key=name.encode().ljust(16), content=content.encode(), request=request)


def rows(
    *parts: Sequence[int],
    into: str = "t",
    version: int = 0,
    keys: Sequence[KeyHash | None] = (),
) -> Append:
    schema = arrow_schema(table(into))
    batches = [pa.record_batch([pa.array(ids, pa.int64())], schema=schema) for ids in parts]
    return Append(
        kind=EntryKind.ROWS,
        table=into,
        header=schema.serialize().to_pybytes(),
        parts=[Part(rows=len(b), payload=b.serialize().to_pybytes()) for b in batches],
        schema_version=version,
        keys=keys,
    )


def create(name: str, version: int = 0) -> Append:
    payload = msgspec.json.encode(table_json(table(name)))
    return Append(
        kind=EntryKind.CREATE_TABLE,
        table=name,
        parts=[Part(rows=1, payload=payload)],
        schema_version=version,
    )


def drop(name: str, version: int) -> Append:
    return Append(
        kind=EntryKind.DROP_TABLE,
        table=name,
        parts=[Part(rows=1, payload=b"")],
        schema_version=version,
    )


def ids(entries: Sequence[Entry]) -> list[int]:
    found: list[int] = []
    for entry in entries:
        got = pa.ipc.open_stream(entry.payload).read_all()["id"].to_pylist()
        assert len(got) == entry.last - entry.first + 1
        found += got
    return found


async def one(bus: IngestBus, append: Append) -> Receipt:
    (receipt,) = await bus.append([append])
    return receipt


@pytest.fixture(params=["fake", "postgres"])
async def under_test(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BusUnderTest]:
    if request.param == "fake":
        async with fake_bus() as found:
            yield found
    else:
        dsn = await create_database(request.getfixturevalue("postgres"))
        async with postgres_bus(dsn, tmp_path) as found:
            yield found


@pytest.fixture
def bus(under_test: BusUnderTest) -> IngestBus:
    return under_test.bus


async def test_an_empty_bus_has_nothing(bus: IngestBus) -> None:
    assert (await bus.head()).last == 0
    assert await bus.read(0, **ALL) == []
    assert await bus.tables() == (0, [])


async def test_numbers_are_contiguous_in_the_order_of_the_group(bus: IngestBus) -> None:
    receipts = await bus.append([rows([1, 2], [3]), rows([4], into="u"), rows([5])])

    assert [receipt.last for receipt in receipts] == [3, 4, 5]
    assert all(receipt.accepted_at for receipt in receipts)
    entries = await bus.read(0, **ALL)
    assert ids(entries) == [1, 2, 3, 4, 5]
    assert [entry.first for entry in entries][1:] == [entry.last + 1 for entry in entries][:-1]
    assert (await bus.head()).last == 5


async def test_a_reader_sees_no_gap_while_many_write(bus: IngestBus) -> None:
    async def write(writer: int) -> None:
        for i in range(10):
            await one(bus, rows([writer * 100 + i] * (1 + i % 3)))

    async def read(total: int) -> None:
        after = 0
        while after < total:
            for entry in await bus.read(after, **ALL):
                assert entry.first == after + 1
                after = entry.last

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(read(8 * (4 * 1 + 3 * 2 + 3 * 3)))
        for writer in range(8):
            group.create_task(write(writer))


async def test_a_later_append_waits_for_a_slow_transaction(under_test: BusUnderTest) -> None:
    bus = under_test.bus

    async with under_test.slow_transaction():
        append = asyncio.create_task(one(bus, rows([1])))
        await eventually(under_test.waits)
        assert not append.done()
        assert await bus.read(0, **ALL) == []

    assert (await append).result is AppendResult.ACCEPTED


async def test_fifty_at_once_with_one_key_write_one_row(bus: IngestBus) -> None:
    receipts = await asyncio.gather(*(one(bus, rows([7], keys=[key("k")])) for _ in range(50)))

    results = [receipt.result for receipt in receipts]
    assert results.count(AppendResult.ACCEPTED) == 1
    assert results.count(AppendResult.KNOWN) == 49
    assert {tuple(r.known) for r in receipts if r.result is AppendResult.KNOWN} == {(1,)}
    assert ids(await bus.read(0, **ALL)) == [7]


async def test_known_keys_name_their_numbers_and_nothing_is_written(bus: IngestBus) -> None:
    await one(bus, rows([1, 2], keys=[key("a"), key("b")]))

    receipt = await one(bus, rows([3, 2, 4], keys=[key("c"), key("b"), None]))

    assert (receipt.result, list(receipt.known)) == (AppendResult.KNOWN, [None, 2, None])
    assert list(receipt.conflicts) == []
    assert ids(await bus.read(0, **ALL)) == [1, 2]


async def test_a_key_with_other_content_conflicts(bus: IngestBus) -> None:
    await one(bus, rows([1], keys=[key("a")]))

    receipts = await bus.append([rows([2], keys=[key("a", "other")]), rows([3])])

    assert receipts[0].result is AppendResult.KNOWN
    assert (receipts[0].known, receipts[0].conflicts) == ([None], [0])
    assert receipts[1].result is AppendResult.ACCEPTED
    assert ids(await bus.read(0, **ALL)) == [1, 3]


async def test_a_key_used_earlier_in_the_group_is_known(bus: IngestBus) -> None:
    receipts = await bus.append(
        [rows([1], keys=[key("a")]), rows([1], keys=[key("a")]), rows([2], keys=[key("a", "x")])]
    )

    assert [receipt.result for receipt in receipts] == [
        AppendResult.ACCEPTED,
        AppendResult.KNOWN,
        AppendResult.KNOWN,
    ]
    assert (list(receipts[1].known), list(receipts[2].conflicts)) == ([1], [0])
    assert ids(await bus.read(0, **ALL)) == [1]


async def test_a_key_repeated_inside_an_append_is_known_from_its_second_use(
    bus: IngestBus,
) -> None:
    keys = [key("a"), key("a"), key("a", "other")]

    receipt = await one(bus, rows([1, 1, 2], keys=keys))

    assert receipt == Receipt(result=AppendResult.KNOWN, known=[None, 0, None], conflicts=[2])
    assert await bus.read(0, **ALL) == []


async def test_a_request_key_covers_all_parts(bus: IngestBus) -> None:
    append = rows([1, 2], [3], keys=[key("r", request=True)])
    first = await one(bus, append)

    again = await one(bus, append)

    assert first.last == 3
    assert (again.result, list(again.known)) == (AppendResult.KNOWN, [3])
    assert ids(await bus.read(0, **ALL)) == [1, 2, 3]


async def test_a_large_append_is_cut_and_keeps_its_order(bus: IngestBus) -> None:
    parts = [range(i * 60_000, (i + 1) * 60_000) for i in range(12)]

    await one(bus, rows(*parts))

    entries = await bus.read(0, **ALL)
    assert len(entries) > 1
    assert ids(entries) == list(range(720_000))


async def test_a_table_change_moves_the_version_and_makes_the_rest_stale(bus: IngestBus) -> None:
    receipts = await bus.append([rows([1]), create("t"), rows([2]), rows([3], version=1)])

    assert [receipt.result for receipt in receipts] == [
        AppendResult.ACCEPTED,
        AppendResult.ACCEPTED,
        AppendResult.STALE_SCHEMA,
        AppendResult.ACCEPTED,
    ]
    assert [receipt.last for receipt in receipts] == [1, 2, 0, 3]
    version, tables = await bus.tables()
    assert (version, list(tables)) == (1, [table("t")])
    assert tables[0].version == 1
    change = (await bus.read(1, **ALL))[0]
    assert (change.kind, change.table) == (EntryKind.CREATE_TABLE, "t")
    assert parse_table(msgspec.json.decode(change.payload)) == table("t")


async def test_a_dropped_and_remade_table_has_another_version(bus: IngestBus) -> None:
    await bus.append([create("t"), create("u", 1), drop("t", 2)])
    assert await bus.tables() == (3, [table("u")])

    await one(bus, create("t", 3))

    _, tables = await bus.tables()
    assert [(found.name, found.version) for found in tables] == [("t", 4), ("u", 2)]


async def test_a_stale_append_keeps_no_key(bus: IngestBus) -> None:
    await bus.append([create("t"), rows([1], keys=[key("a")])])

    receipt = await one(bus, rows([1], version=1, keys=[key("a")]))

    assert receipt.result is AppendResult.ACCEPTED


async def test_read_keeps_its_bounds_but_gives_at_least_one(bus: IngestBus) -> None:
    # Tables alternate, so that each append is an entry of its own.
    for i in range(6):
        await one(bus, rows([i] * 10, into="tu"[i % 2]))
    size = len((await bus.read(0, **ALL))[0].payload)

    assert len(await bus.read(0, max_rows=30, max_bytes=2**30)) == 3
    assert len(await bus.read(0, max_rows=39, max_bytes=2**30)) == 3
    assert len(await bus.read(0, max_rows=1, max_bytes=2**30)) == 1
    assert len(await bus.read(0, max_rows=1_000, max_bytes=2 * size)) == 2
    assert len(await bus.read(0, max_rows=1_000, max_bytes=1)) == 1
    assert [entry.first for entry in await bus.read(40, **ALL)] == [41, 51]
    assert [entry.first for entry in await bus.read(45, **ALL)] == [51]
    assert await bus.read(60, **ALL) == []


async def test_trim_removes_what_is_consumed_and_repeats_safely(bus: IngestBus) -> None:
    for i in range(3):
        await one(bus, rows([i] * 10, into="tu"[i % 2]))

    assert await bus.trim(25) == 2
    assert await bus.trim(25) == 0

    assert [entry.first for entry in await bus.read(0, **ALL)] == [21]
    assert (await one(bus, rows([9]))).last == 31


async def test_keys_outlive_trimming_until_forgotten(bus: IngestBus) -> None:
    await bus.append(
        [rows([1], keys=[key("record")]), rows([2], keys=[key("request", request=True)])]
    )
    await bus.trim(2)
    week = {"record_age_s": 7 * 86400, "request_age_s": 7 * 86400, "max_keys": 100}
    assert await bus.forget_keys(**week) == 0
    assert (await one(bus, rows([1], keys=[key("record")]))).result is AppendResult.KNOWN

    assert await bus.forget_keys(record_age_s=0, request_age_s=86400, max_keys=100) == 1

    assert (await one(bus, rows([1], keys=[key("record")]))).result is AppendResult.ACCEPTED
    assert (await one(bus, rows([2], keys=[key("request")]))).result is AppendResult.KNOWN


async def test_forgetting_goes_in_small_steps(bus: IngestBus) -> None:
    await one(bus, rows([1, 2, 3], keys=[key("a"), key("b"), key("c")]))
    now = {"record_age_s": 0, "request_age_s": 0, "max_keys": 2}

    assert [await bus.forget_keys(**now) for _ in range(3)] == [2, 1, 0]


async def test_backlog_is_what_lies_past_the_watermark(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), rows([1, 2], version=1), rows([3], into="u", version=1)])
    await under_test.move_watermark(1, 3)

    backlog = await bus.backlog()

    assert (backlog.head.last, backlog.head.schema_version) == (4, 1)
    assert backlog.progress.token == 1
    assert (backlog.pending_rows, backlog.claimed) == (3, 2)
    assert backlog.oldest_pending_at is not None
    assert backlog.oldest_pending_at <= backlog.progress.now
    assert [(t.table, t.pending_rows) for t in backlog.tables] == [("t", 2), ("u", 1)]
    assert sum(t.pending_bytes for t in backlog.tables) == backlog.pending_bytes > 0


async def test_a_consumed_bus_has_no_backlog(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await one(bus, rows([1, 2]))
    await under_test.move_watermark(2, 2)

    backlog = await bus.backlog()

    assert (backlog.pending_rows, backlog.pending_bytes, backlog.claimed) == (0, 0, 0)
    assert (backlog.lag_ms, backlog.oldest_pending_at, list(backlog.tables)) == (0, None, [])
