"""What every bus does: the in-memory double and the one in Postgres pass the same suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import postgres_bus as postgres_bus_module
from duckmesh_runtime.domain.restore import parse_restore
from duckmesh_runtime.domain.schema import TableDef, arrow_schema, parse_table, table_json
from duckmesh_runtime.errors import Conflict, DuckmeshError, Unavailable
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    Entry,
    EntryKind,
    IngestBus,
    KeyHash,
    KeyHorizon,
    KnownKey,
    Part,
    Receipt,
    StagedFile,
)
from tests.buses import BusUnderTest, StillPinned, eventually, fake_bus, postgres_bus
from tests.services import create_database

ALL = {"max_rows": 1_000_000, "max_bytes": 2**30}


def table(name: str, *more: str) -> TableDef:
    columns = [{"name": column, "type": "BIGINT"} for column in ("id", *more)]
    return parse_table({"name": name, "columns": columns})


def key(name: str, content: str = "same", *, request: bool = False) -> KeyHash:
    return KeyHash(key=name.encode().ljust(16), content=content.encode(), request=request)


def rows(
    *parts: Sequence[int],
    into: str = "t",
    version: int = 0,
    keys: Sequence[KeyHash | None] = (),
    replays: int | None = None,
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
        replays=replays,
    )


def staged(path: str, rows: int, size: int) -> StagedFile:
    return StagedFile(path=path, rows=rows, size=size)


def file(what: StagedFile, keys: Sequence[KeyHash | None] = ()) -> Append:
    return Append(
        kind=EntryKind.FILE,
        table="t",
        parts=[Part(rows=what.rows, payload=msgspec.json.encode(what))],
        schema_version=0,
        keys=keys,
    )


def alter(name: str, version: int, *more: str) -> Append:
    payload = msgspec.json.encode({"table": table_json(table(name, *more)), "changes": more})
    return Append(
        kind=EntryKind.ALTER_TABLE,
        table=name,
        parts=[Part(rows=1, payload=payload)],
        schema_version=version,
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


@pytest.mark.parametrize("how", ["at once", "under the lock"])
async def test_a_request_key_keeps_what_became_of_its_rows(bus: IngestBus, how: str) -> None:
    await one(bus, rows([1], keys=[key("a")]))
    request = replace(key("k", request=True), accepted=2, rejected=1)
    others = [] if how == "at once" else [rows([9], keys=[key("a")])]

    *_, receipt = await bus.append([*others, rows([2, 3], keys=[request])])

    asked = [key("new"), key("k", "other", request=True), key("a"), key("k")]
    new, of_request, of_record, other_kind = await bus.known(asked)
    assert (new, other_kind) == (None, None)
    assert of_request == KnownKey(
        content=b"same", number=receipt.last, timeline=1, accepted=2, rejected=1
    )
    assert of_record == KnownKey(content=b"same", number=1, timeline=1)
    assert await bus.known([]) == []


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
    assert [entry.first for entry in await bus.read(45, **ALL)] == [41, 51]
    assert len(await bus.read(45, max_rows=15, max_bytes=2**30)) == 2
    assert len(await bus.read(45, max_rows=14, max_bytes=2**30)) == 1
    assert [entry.first for entry in await bus.read(50, **ALL)] == [51]
    assert await bus.read(60, **ALL) == []


async def test_trim_removes_what_is_consumed_and_repeats_safely(bus: IngestBus) -> None:
    for i in range(3):
        await one(bus, rows([i] * 10, into="tu"[i % 2]))

    assert await bus.trim(25) == 2
    assert await bus.trim(25) == 0

    assert [entry.first for entry in await bus.read(0, **ALL)] == [21]
    assert (await one(bus, rows([9]))).last == 31


async def test_a_large_backlog_is_read_and_trimmed_in_pieces(
    bus: IngestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(9):
        await one(bus, rows(range(i * 100, (i + 1) * 100), into="tu"[i % 2]))
    size = len((await bus.read(0, max_rows=1, max_bytes=1))[0].payload)
    monkeypatch.setattr(postgres_bus_module, "_BYTES_A_READ", 3 * size)
    monkeypatch.setattr(postgres_bus_module, "_BYTES_A_DELETE", 2 * size)

    assert ids(await bus.read(0, **ALL)) == list(range(900))
    found = await bus.read(99, max_rows=10**6, max_bytes=5 * size)
    assert [entry.last for entry in found] == [100, 200, 300, 400, 500]
    assert len(await bus.read(99, max_rows=501, max_bytes=2**30)) == 6
    assert await bus.trim(799) == 7
    assert [entry.last for entry in await bus.read(0, **ALL)] == [800, 900]


async def test_keys_outlive_trimming_until_their_age(bus: IngestBus) -> None:
    await bus.append(
        [rows([1], keys=[key("record")]), rows([2], keys=[key("request", request=True)])]
    )
    await bus.trim(2)
    week = await bus.expire_keys(record_age_s=7 * 86400, request_age_s=7 * 86400, max_bytes=2**30)
    assert week == KeyHorizon(record_s=7 * 86400, request_s=7 * 86400)
    assert (await one(bus, rows([1], keys=[key("record")]))).result is AppendResult.KNOWN

    await bus.expire_keys(record_age_s=0, request_age_s=86400, max_bytes=2**30)

    assert (await one(bus, rows([1], keys=[key("record")]))).result is AppendResult.ACCEPTED
    again = await one(bus, rows([2], keys=[key("request", request=True)]))
    assert again.result is AppendResult.KNOWN


async def test_expiry_fails_no_write(bus: IngestBus) -> None:
    done = asyncio.Event()

    async def write(writer: int) -> None:
        for i in range(60):
            receipt = await one(bus, rows([i], keys=[key(f"{writer}-{i}")]))
            assert receipt.result is AppendResult.ACCEPTED

    async def expire() -> None:
        while not done.is_set():
            with suppress(Unavailable):  # no lock at once: it is tried again
                await bus.expire_keys(record_age_s=0, request_age_s=0, max_bytes=2**30)
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        expiry = group.create_task(expire())
        writers = [group.create_task(write(writer)) for writer in range(4)]
        await asyncio.wait(writers)
        done.set()
        await expiry


async def test_the_cap_on_keys_shortens_their_horizon_and_says_so(bus: IngestBus) -> None:
    day = {"record_age_s": 86400.0, "request_age_s": 86400.0}
    for i in range(40):
        await one(bus, rows([i] * 100, keys=[key(f"{i}-{n}") for n in range(100)]))
        await bus.expire_keys(**day, max_bytes=200 * 1024)

    horizon = await bus.expire_keys(**day, max_bytes=200 * 1024)

    assert horizon.record_s < 60
    assert horizon.request_s == 86400
    assert (await one(bus, rows([0], keys=[key("0-0")]))).result is AppendResult.ACCEPTED
    assert (await one(bus, rows([39], keys=[key("39-99")]))).result is AppendResult.KNOWN


async def test_keys_of_records_and_of_requests_do_not_meet(bus: IngestBus) -> None:
    await bus.append(
        [rows([1], keys=[key("a")]), rows([2], keys=[key("a", "other", request=True)])]
    )

    known = await bus.append(
        [rows([1], keys=[key("a")]), rows([2], keys=[key("a", "other", request=True)])]
    )

    assert [(list(r.known), list(r.conflicts)) for r in known] == [([1], []), ([2], [])]
    assert ids(await bus.read(0, **ALL)) == [1, 2]


async def test_files_are_entries_of_their_own(bus: IngestBus) -> None:
    files = [staged(f"main/t/staged-{i}.parquet", 50_000, 3 * 2**30) for i in range(2)]

    receipts = await bus.append([rows([1]), *(file(f) for f in files), rows([2]), rows([3])])

    assert [receipt.last for receipt in receipts] == [1, 50_001, 100_001, 100_002, 100_003]
    found = [entry for entry in await bus.read(0, **ALL) if entry.kind is EntryKind.FILE]
    assert [(e.kind, e.table, e.first, e.last) for e in found] == [
        (EntryKind.FILE, "t", 2, 50_001),
        (EntryKind.FILE, "t", 50_002, 100_001),
    ]
    assert [msgspec.json.decode(e.payload, type=StagedFile) for e in found] == files


async def test_files_count_with_their_size_while_they_wait(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([file(staged("f", 1_000, 5_000_000)), rows([1, 2])])
    await under_test.move_watermark(400, 400)

    backlog = await bus.backlog()

    assert (backlog.pending_rows, backlog.claimed_rows) == (602, 0)
    assert 5_000_000 < backlog.pending_bytes < 5_001_000


async def test_a_request_key_covers_a_file(bus: IngestBus) -> None:
    append = file(staged("f", 1_000, 9), keys=[key("r", request=True)])
    await one(bus, append)

    again = await one(bus, append)

    assert (again.result, list(again.known)) == (AppendResult.KNOWN, [1_000])


async def test_an_altered_table_keeps_the_version_that_created_it(bus: IngestBus) -> None:
    await bus.append([create("t"), create("u", 1)])

    receipt = await one(bus, alter("t", 2, "b"))

    assert (receipt.result, receipt.last) == (AppendResult.ACCEPTED, 3)
    version, tables = await bus.tables()
    assert (version, list(tables)) == (3, [table("t", "b"), table("u")])
    assert [found.version for found in tables] == [1, 2]
    (change,) = await bus.read(2, **ALL)
    assert (change.kind, change.table, change.schema_version) == (EntryKind.ALTER_TABLE, "t", 2)
    assert msgspec.json.decode(change.payload)["changes"] == ["b"]
    assert (await one(bus, rows([1], version=2))).result is AppendResult.STALE_SCHEMA


async def test_every_definition_is_kept(bus: IngestBus) -> None:
    await bus.append(
        [create("t"), alter("t", 1, "b"), create("u", 2), drop("t", 3), create("t", 4)]
    )

    found = await bus.table_versions("t")

    assert [(each.schema_version, each.table) for each in found] == [
        (1, table("t")),
        (2, table("t", "b")),
        (4, None),
        (5, table("t")),
    ]
    assert [each.table.version for each in found if each.table] == [1, 1, 5]
    assert await bus.table_versions("nothing") == []


async def test_rows_set_aside_are_letters_and_no_backlog(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([rows([1, 2, 3, 4])])
    await under_test.move_watermark(1, 1)

    await under_test.set_aside(1, 2, b"the second", "not a number")

    backlog = await bus.backlog()
    assert (backlog.progress.token, backlog.pending_rows) == (2, 2)
    (letter,) = await bus.letters(0, limit=10, max_bytes=10**6)
    assert (letter.first, letter.last, letter.kind, letter.table) == (2, 2, EntryKind.ROWS, "t")
    assert (letter.payload, letter.error) == (b"the second", "not a number")
    assert letter.accepted_at <= letter.set_aside_at
    assert await bus.letter(2) == letter
    assert await bus.letter(1) is None


async def test_a_whole_entry_is_set_aside_with_its_payload(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([file(staged("f", 10, 9)), rows([1, 2])])

    await under_test.set_aside(0, 10, None, "the file is gone")
    await under_test.set_aside(10, 12, None, "no such table")

    first, second = await bus.letters(0, limit=10, max_bytes=10**6)
    assert msgspec.json.decode(first.payload, type=StagedFile) == staged("f", 10, 9)
    assert (first.kind, first.first, first.last) == (EntryKind.FILE, 1, 10)
    assert (second.kind, second.first, second.last) == (EntryKind.ROWS, 11, 12)
    assert pa.ipc.open_stream(second.payload).read_all()["id"].to_pylist() == [1, 2]
    assert [letter.first for letter in await bus.letters(1, limit=10, max_bytes=10**6)] == [11]
    assert [letter.first for letter in await bus.letters(0, limit=1, max_bytes=10**6)] == [1]


async def test_a_part_of_a_file_that_is_set_aside_is_rows(under_test: BusUnderTest) -> None:
    await under_test.bus.append([file(staged("f", 10, 9))])
    await under_test.move_watermark(3, 3)

    await under_test.set_aside(3, 4, b"one row", "not a number")

    (letter,) = await under_test.bus.letters(0, limit=10, max_bytes=10**6)
    assert (letter.kind, letter.payload) == (EntryKind.ROWS, b"one row")


async def test_a_page_of_letters_is_bounded_and_can_be_of_one_table(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await bus.append([rows([1, 2, 3])])
    for number in (1, 2, 3):
        await under_test.set_aside(number - 1, number, b"ten bytes.", "why")

    async def page(after: int, **bounds: Any) -> list[int]:
        found = await bus.letters(after, **({"limit": 10, "max_bytes": 100} | bounds))
        return [letter.first for letter in found]

    assert await page(0) == [1, 2, 3]
    assert await page(0, limit=2) == [1, 2]
    assert await page(0, max_bytes=20) == [1, 2]
    assert await page(0, max_bytes=0) == [1]
    assert await page(2) == [3]
    assert await page(3) == []
    assert await page(0, table="t") == [1, 2, 3]
    assert await page(0, table="u") == []
    assert (await bus.backlog()).dead_letters == 3


async def test_a_dropped_letter_is_gone(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([rows([1, 2])])
    await under_test.set_aside(0, 2, None, "why")

    assert await bus.drop_letter(1)

    assert not await bus.drop_letter(1)
    assert await bus.letters(0, limit=10, max_bytes=10**6) == []
    assert (await one(bus, rows([1, 2], replays=1))).result is AppendResult.GONE


async def test_a_replay_takes_the_letter_s_place(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([rows([1, 2])])
    await under_test.set_aside(0, 2, None, "why")

    stale = await one(bus, rows([1, 2], version=7, replays=1))
    receipts = await bus.append([rows([1, 2], replays=1), rows([1, 2], replays=1), rows([3])])

    assert stale.result is AppendResult.STALE_SCHEMA
    assert [(r.result, r.last) for r in receipts] == [
        (AppendResult.ACCEPTED, 4),
        (AppendResult.GONE, 0),
        (AppendResult.ACCEPTED, 5),
    ]
    assert await bus.letter(1) is None
    assert ids(await bus.read(2, **ALL)) == [1, 2, 3]


async def test_of_replays_and_drops_at_once_one_wins(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([rows([i]) for i in range(10)])
    for number in range(10):
        await under_test.set_aside(number, number + 1, b"", "why")

    async def race(number: int) -> None:
        replays = [one(bus, rows([number], replays=number)) for _ in range(4)]
        *receipts, dropped = await asyncio.gather(*replays, bus.drop_letter(number))
        won = [r for r in receipts if r.result is AppendResult.ACCEPTED]  # type: ignore[union-attr]  # receipts
        lost = [r for r in receipts if r.result is AppendResult.GONE]  # type: ignore[union-attr]
        assert (len(won) + dropped, len(won) + len(lost)) == (1, 4)

    await asyncio.gather(*(race(number) for number in range(1, 11)))

    assert await bus.letters(0, limit=10, max_bytes=10**6) == []


async def test_a_refused_change_takes_its_definition_back(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), alter("t", 1, "b"), create("u", 2)])
    await under_test.move_watermark(1, 1)

    await under_test.set_aside_change(2, "cannot add b")

    assert await bus.tables() == (4, [table("t"), table("u")])
    assert [v.schema_version for v in await bus.table_versions("t")] == [1]
    assert (await one(bus, rows([1], version=3))).result is AppendResult.STALE_SCHEMA
    letter = await bus.letter(2)
    assert letter is not None
    assert (letter.kind, letter.error) == (EntryKind.ALTER_TABLE, "cannot add b")
    assert msgspec.json.decode(letter.payload)["changes"] == ["b"]


async def test_a_refused_creation_leaves_no_table(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t")])

    await under_test.set_aside_change(1, "another table has this name")

    assert await bus.tables() == (2, [])
    assert await bus.table_versions("t") == []


async def test_a_refused_drop_leaves_the_table(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), drop("t", 1)])
    await under_test.move_watermark(1, 1)

    await under_test.set_aside_change(2, "in use")

    assert await bus.tables() == (3, [table("t")])
    assert (await bus.tables())[1][0].version == 1


async def test_what_was_built_on_a_refused_change_goes_with_it(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), alter("t", 1, "b"), alter("t", 2, "b", "c")])
    await under_test.move_watermark(1, 1)

    await under_test.set_aside_change(2, "cannot add b")
    await one(bus, alter("t", 4, "d"))
    await under_test.set_aside_change(3, "it does not lead to the table it names")

    assert await bus.tables() == (6, [table("t", "d")])
    assert [v.table for v in await bus.table_versions("t")] == [table("t"), table("t", "d")]


async def test_a_table_made_anew_outlives_a_refused_change(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), alter("t", 1, "b"), drop("t", 2), create("t", 3)])
    await under_test.move_watermark(1, 1)

    await under_test.set_aside_change(2, "cannot add b")

    version, tables = await bus.tables()
    assert (version, [(t, t.version) for t in tables]) == (5, [(table("t"), 4)])
    assert [v.table for v in await bus.table_versions("t")] == [table("t"), None, table("t")]


async def test_backlog_is_what_lies_past_the_watermark(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), rows([1, 2], version=1), rows([3], into="u", version=1)])
    await under_test.move_watermark(1, 3)

    backlog = await bus.backlog()

    assert (backlog.head.last, backlog.head.schema_version) == (4, 1)
    assert backlog.progress.token == 1
    assert (backlog.pending_rows, backlog.claimed, backlog.claimed_rows) == (3, 2, 2)
    assert backlog.oldest_pending_at is not None
    assert backlog.oldest_pending_at <= backlog.progress.now
    found = [(t.table, t.pending_rows, t.claimed_rows) for t in backlog.tables]
    assert found == [("t", 2, 2), ("u", 1, 0)]
    assert [t.claimed_bytes for t in backlog.tables] == [backlog.claimed_bytes, 0]
    assert 0 < backlog.claimed_bytes < backlog.pending_bytes
    assert sum(t.pending_bytes for t in backlog.tables) == backlog.pending_bytes > 0


async def test_backlog_tells_the_newest_snapshot(under_test: BusUnderTest) -> None:
    assert (await under_test.bus.backlog()).snapshot_id is None
    await under_test.snapshot(3, 1)
    await under_test.snapshot(4, None)  # of maintenance

    assert (await under_test.bus.backlog()).snapshot_id == 4


async def test_a_consumed_bus_has_no_backlog(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await one(bus, rows([1, 2]))
    await under_test.move_watermark(2, 2)

    backlog = await bus.backlog()

    assert (backlog.pending_rows, backlog.pending_bytes, backlog.claimed) == (0, 0, 0)
    assert (backlog.lag_ms, backlog.oldest_pending_at, list(backlog.tables)) == (0, None, [])


async def _refusal(bus: IngestBus, snapshot_id: int) -> DuckmeshError:
    before = await bus.head()
    with pytest.raises(DuckmeshError) as caught:
        await bus.restore(snapshot_id)
    assert await bus.head() == before
    return caught.value


async def test_a_restore_is_an_entry_with_the_tables_of_then(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), rows([1], version=1)])
    await under_test.snapshot(7, 2)
    await bus.append([create("u", 1), drop("t", 2), rows([2], into="u", version=3)])

    receipt = await bus.restore(7)

    assert (receipt.result, receipt.last, receipt.timeline) == (AppendResult.ACCEPTED, 6, 1)
    assert receipt.accepted_at is not None
    (entry,) = await bus.read(5, **ALL)
    assert (entry.kind, entry.table, entry.first, entry.last) == (EntryKind.RESTORE, "*", 6, 6)
    assert entry.schema_version == 3
    snapshot_id, restored = parse_restore(msgspec.json.decode(entry.payload))
    assert (snapshot_id, list(restored)) == (7, [table("t")])
    version, tables = await bus.tables()
    assert (version, list(tables), tables[0].version) == (4, [table("t")], 1)
    assert (await one(bus, rows([3], version=3))).result is AppendResult.STALE_SCHEMA
    assert (await one(bus, rows([3], version=4))).last == 7


async def test_every_table_has_a_version_of_each_restore(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await bus.append([create("t"), create("v", 1)])
    await under_test.snapshot(1, 2)
    await bus.append([create("u", 2), drop("t", 3)])

    await bus.restore(1)

    found = {name: (await bus.table_versions(name))[-1] for name in "tuv"}
    assert {name: v.schema_version for name, v in found.items()} == {"t": 5, "u": 5, "v": 5}
    assert {name: v.table for name, v in found.items()} == {
        "t": table("t"),
        "u": None,
        "v": table("v"),
    }


async def test_a_table_made_after_a_restore_is_there_again_after_one_to_after_it(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await one(bus, create("t"))
    await under_test.snapshot(1, 1)
    await one(bus, drop("t", 1))
    await under_test.snapshot(2, 2)
    await bus.restore(1)
    await under_test.snapshot(3, 3)
    await one(bus, create("u", 3))

    await bus.restore(2)
    assert [t.name for t in (await bus.tables())[1]] == []
    await bus.restore(3)
    assert [t.name for t in (await bus.tables())[1]] == ["t"]


async def test_keys_after_the_point_can_be_used_again_and_those_before_it_not(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    before, after = [key("a"), key("r", request=True)], [key("b"), key("s", request=True)]
    for each in before:
        await one(bus, rows([1], keys=[each]))
    await under_test.snapshot(1, 2)
    for each in after:
        await one(bus, rows([1], keys=[each]))

    number = (await bus.restore(1)).last
    assert None not in await bus.known([*before, *after])  # as long as it waits
    await under_test.move_watermark(number, 0)

    assert [k is None for k in await bus.known([*before, *after])] == [False, False, True, True]
    results = [(await one(bus, rows([1], version=1, keys=[k]))) for k in [*before, *after]]
    assert [r.result for r in results] == [AppendResult.KNOWN] * 2 + [AppendResult.ACCEPTED] * 2
    assert [(await one(bus, rows([1], version=1, keys=[k]))).known for k in after] == [[6], [7]]


async def test_keys_come_back_with_a_restore_to_before_the_one_that_forgot_them(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await under_test.snapshot(0, 0)
    await one(bus, rows([1], keys=[key("a")]))
    await under_test.snapshot(1, 1)

    async def restore(snapshot_id: int) -> None:
        receipt = await bus.restore(snapshot_id)
        await under_test.move_watermark(receipt.last, 0)

    await restore(0)
    assert (await one(bus, rows([1], version=1, keys=[key("a")]))).last == 3
    await under_test.snapshot(2, 3)

    await restore(1)
    assert (await one(bus, rows([1], version=2, keys=[key("a")]))).known == [1]
    await restore(2)
    assert (await one(bus, rows([1], version=3, keys=[key("a")]))).known == [3]
    await bus.restore(0)  # waits
    assert (await one(bus, rows([1], version=4, keys=[key("a")]))).known == [3]
    await under_test.move_watermark(6, 0)
    assert (await one(bus, rows([1], version=4, keys=[key("a")]))).last == 7


async def test_a_restore_with_a_known_key_is_done_once(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await under_test.snapshot(1, 0)
    await under_test.snapshot(2, 0)

    first = await bus.restore(1, key("k", request=True))
    await one(bus, rows([1], version=1))
    again = await bus.restore(1, key("k", request=True))

    assert (again.result, list(again.known)) == (AppendResult.KNOWN, [first.last])
    assert (await bus.head()).last == 2
    with pytest.raises(Conflict) as caught:
        await bus.restore(2, key("k", "other", request=True))
    assert caught.value.code == "IDEMPOTENCY_CONFLICT"


async def test_what_cannot_be_restored_says_why_and_changes_nothing(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await under_test.snapshot(0, None)
    await under_test.snapshot(1, 0)
    request = replace(key("k", request=True), accepted=3)
    await one(bus, rows([1, 2], [3], keys=[request]))
    await under_test.snapshot(2, 2)
    await under_test.snapshot(3, 3)
    await under_test.snapshot(4, None)
    await under_test.expire(1)

    codes = [(await _refusal(bus, id_)).code for id_ in (5, -1, 1, 2, 0, 4)]

    assert (
        codes == ["SNAPSHOT_NOT_FOUND"] * 2 + ["SNAPSHOT_EXPIRED"] + ["SNAPSHOT_NOT_RESTORABLE"] * 3
    )
    for id_ in (5, 1):
        kept = {"oldest_snapshot_id": 0, "newest_snapshot_id": 4}
        assert (await _refusal(bus, id_)).context == {"field": "snapshot_id", **kept}
    assert "request" in (await _refusal(bus, 2)).message
    assert "snapshot 3" in (await _refusal(bus, 4)).message
    assert (await bus.restore(3)).result is AppendResult.ACCEPTED


async def test_a_snapshot_stays_until_its_restore_is_done(under_test: BusUnderTest) -> None:
    await under_test.snapshot(1, 0)
    await under_test.snapshot(2, 0)
    number = (await under_test.bus.restore(1)).last

    await under_test.expire(2)
    with pytest.raises(StillPinned):
        await under_test.expire(1)
    await under_test.bus.trim(number)
    await under_test.expire(1)


async def test_a_refused_restore_gives_tables_and_keys_back(under_test: BusUnderTest) -> None:
    bus = under_test.bus
    await under_test.snapshot(1, 0)
    await bus.append([create("t"), rows([1], version=1, keys=[key("a")])])
    number = (await bus.restore(1)).last
    await bus.append([create("u", 2), rows([2], version=3)])
    await under_test.move_watermark(2, 0)

    await under_test.set_aside_change(number, "too much")

    version, tables = await bus.tables()
    assert (version, [t.name for t in tables]) == (4, ["t", "u"])
    assert (await one(bus, rows([1], version=4, keys=[key("a")]))).known == [2]
    letter = await bus.letter(number)
    assert letter is not None
    assert (letter.kind, letter.table, letter.error) == (EntryKind.RESTORE, "*", "too much")


async def test_a_change_refused_before_a_restore_leaves_what_that_restored(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await one(bus, create("t"))
    await under_test.snapshot(1, 1)
    await under_test.move_watermark(1, 0)
    await bus.append([drop("t", 1)])
    await bus.restore(1)

    await under_test.set_aside_change(2, "no")

    assert list((await bus.tables())[1]) == [table("t")]
    assert [v.schema_version for v in await bus.table_versions("t")] == [1, 3]


async def test_restores_appends_and_expiry_of_keys_at_once_stop_nothing(
    under_test: BusUnderTest,
) -> None:
    bus = under_test.bus
    await under_test.snapshot(1, 0)
    done = asyncio.Event()

    async def write(writer: int) -> None:
        for i in range(30):
            receipt = None
            while receipt is None or receipt.result is AppendResult.STALE_SCHEMA:
                version = (await bus.head()).schema_version
                receipt = await one(bus, rows([i], version=version, keys=[key(f"{writer}-{i}")]))
            assert receipt.result is AppendResult.ACCEPTED

    async def restore() -> None:
        for _ in range(8):
            await bus.restore(1)

    async def expire() -> None:
        while not done.is_set():
            with suppress(Unavailable):
                await bus.expire_keys(record_age_s=0, request_age_s=0, max_bytes=2**30)
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        others = [group.create_task(restore()), group.create_task(expire())]
        await asyncio.wait([group.create_task(write(writer)) for writer in range(3)])
        done.set()
        await asyncio.wait(others)
