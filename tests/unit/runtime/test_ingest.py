"""The accept side over an in-memory bus: every record is accepted once, known, or rejected."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from duckmesh_runtime.domain.bus_rows import DELETED, bus_schema, key_of
from duckmesh_runtime.domain.changes import AddColumn, DropColumn
from duckmesh_runtime.domain.decode import BulkFormat
from duckmesh_runtime.domain.records import RawRecord, content_digest, key_digest
from duckmesh_runtime.domain.schema import ColumnDef, TableDef, parse_table
from duckmesh_runtime.errors import Conflict, DuckmeshError, Limited, NotFound, Unavailable
from duckmesh_runtime.ports import Append, EntryKind, KeyHash, Part, Receipt, StagedFile
from duckmesh_runtime.services import bulk_writer, group_commit, inlet, record_writer
from duckmesh_runtime.services.ingest import IngestAnswer, IngestService
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.lag import lag_report
from duckmesh_runtime.services.packing import parts_of, rows_append
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus
from tests.fakes.stager import FakeStager


def table(name: str = "events", **changes: Any) -> TableDef:
    columns = [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "v", "type": "VARCHAR"},
    ]
    return parse_table({"name": name, "columns": columns, **changes})


def record(number: int, key: str | None = None, v: str = "x") -> RawRecord:
    return RawRecord(payload={"id": number, "v": v}, idempotency_key=key)


def bulk(
    service: IngestService,
    into: str,
    body: bytes,
    *,
    form: BulkFormat = BulkFormat.ARROW,
    op: str | None = None,
    key: str | None = None,
    atomic: bool = False,
) -> Coroutine[Any, Any, IngestAnswer]:
    return service.ingest_bulk(into, form, body, op, request_key=key, atomic=atomic)


def arrow(ids: Sequence[int | None]) -> bytes:
    return stream(pa.table({"id": pa.array(ids, pa.int64())}))


def stream(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    return sink.getvalue()


@dataclass(kw_only=True)
class Lake:
    """A service, the bus behind it, and what the committer was told."""

    bus: FakeBus
    inlet: Inlet
    service: IngestService
    tables: TableService
    stager: FakeStager
    told: list[int] = field(default_factory=list)

    def rows(self, name: str = "events") -> list[int]:
        found: list[int] = []
        for entry in self.bus.entries:
            if entry.kind is EntryKind.ROWS and entry.table == name:
                found += pa.ipc.open_stream(entry.payload).read_all()["id"].to_pylist()
        return found


def make(bus: FakeBus, stager: FakeStager | None = None, **limits: int) -> Lake:
    told: list[int] = []
    inlet = Inlet(bus, lake="lake_test", limits=IngestLimits(**limits), on_accepted=told.append)
    return Lake(
        bus=bus,
        inlet=inlet,
        service=IngestService(inlet, stager),
        tables=TableService(inlet, bus),
        stager=stager or FakeStager(),
        told=told,
    )


@pytest.fixture
async def lake() -> AsyncIterator[Lake]:
    made = make(FakeBus())
    await made.inlet.start()
    await made.tables.create(table())
    yield made
    await made.inlet.drain()


def counts(answer: IngestAnswer) -> tuple[int, int, int]:
    return answer.accepted, answer.duplicates, len(answer.rejected)


async def code_of(call: Any) -> str:
    with pytest.raises(DuckmeshError) as caught:
        await call
    return caught.value.code


async def let_all_run() -> None:
    """Let tasks that were just made run until they wait for something else."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_records_are_accepted_with_the_number_of_the_last(lake: Lake) -> None:
    answer = await lake.service.ingest_records("events", [record(1), record(2)])

    assert counts(answer) == (2, 0, 0)
    assert (answer.number, answer.timeline) == (3, 1)
    assert lake.rows() == [1, 2]
    assert lake.told[-1] == 3


async def test_bad_records_are_rejected_by_index_and_the_others_accepted(lake: Lake) -> None:
    records = [record(1), RawRecord(payload={"id": "x"}), record(2)]

    answer = await lake.service.ingest_records("events", records)

    assert counts(answer) == (2, 0, 1)
    assert (answer.rejected[0].index, answer.rejected[0].code) == (1, "VALIDATION_FAILED")
    assert lake.rows() == [1, 2]


async def test_only_bad_records_write_nothing(lake: Lake) -> None:
    groups = len(lake.bus.groups)

    answer = await lake.service.ingest_records("events", [RawRecord(payload=5)])

    assert counts(answer) == (0, 0, 1)
    assert answer.number == 0
    assert len(lake.bus.groups) == groups


async def test_no_records_are_no_work(lake: Lake) -> None:
    assert counts(await lake.service.ingest_records("events", [])) == (0, 0, 0)


async def test_a_repeated_request_is_all_duplicates_with_the_first_number(lake: Lake) -> None:
    records = [record(1, "a"), record(2, "b")]
    first = await lake.service.ingest_records("events", records)

    again = await lake.service.ingest_records("events", records)

    assert counts(again) == (0, 2, 0)
    assert again.number == first.number
    assert lake.rows() == [1, 2]


async def test_known_conflicting_new_and_bad_records_each_get_their_answer(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "a"), record(2, "b")])

    answer = await lake.service.ingest_records(
        "events",
        [
            record(1, "a"),
            record(2, "b", "other"),
            record(3, "c"),
            record(4),
            RawRecord(payload={"id": None}, idempotency_key="d"),
        ],
    )

    assert counts(answer) == (2, 1, 2)
    assert [(each.index, each.code) for each in answer.rejected] == [
        (1, "IDEMPOTENCY_CONFLICT"),
        (4, "VALIDATION_FAILED"),
    ]
    assert lake.rows() == [1, 2, 3, 4]


async def test_a_key_repeated_in_one_request_is_written_once(lake: Lake) -> None:
    records = [record(1, "a"), record(1, "a"), record(2, "a"), record(3, "b")]

    answer = await lake.service.ingest_records("events", records)

    assert counts(answer) == (2, 1, 1)
    assert (answer.rejected[0].index, answer.rejected[0].code) == (2, "IDEMPOTENCY_CONFLICT")
    assert lake.rows() == [1, 3]


async def test_fifty_requests_with_one_key_write_one_row(lake: Lake) -> None:
    answers = await asyncio.gather(
        *(lake.service.ingest_records("events", [record(7, "k")]) for _ in range(50))
    )

    assert sum(answer.accepted for answer in answers) == 1
    assert sum(answer.duplicates for answer in answers) == 49
    assert len({answer.number for answer in answers}) == 1
    assert lake.rows() == [7]


async def test_a_key_belongs_to_its_table(lake: Lake) -> None:
    await lake.tables.create(table("other"))
    await lake.service.ingest_records("events", [record(1, "a")])

    answer = await lake.service.ingest_records("other", [record(1, "a")])

    assert counts(answer) == (1, 0, 0)


async def test_a_table_made_anew_knows_no_keys_of_the_old_one(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "a")])
    await lake.tables.drop("events")
    await lake.tables.create(table())

    answer = await lake.service.ingest_records("events", [record(1, "a")])

    assert counts(answer) == (1, 0, 0)


async def test_requests_gather_while_a_transaction_is_under_way(lake: Lake) -> None:
    before = len(lake.bus.groups)

    lake.bus.arrived.clear()
    async with lake.bus.lock:
        first = asyncio.create_task(lake.service.ingest_records("events", [record(0)]))
        await lake.bus.arrived.wait()
        rest = [
            asyncio.create_task(lake.service.ingest_records("events", [record(i)]))
            for i in range(1, 20)
        ]
        await let_all_run()
    await asyncio.gather(first, *rest)

    assert [sum(a.rows for a in group) for group in lake.bus.groups[before:]] == [1, 19]


async def test_a_lost_commit_is_found_again_by_its_keys(lake: Lake) -> None:
    lake.bus.failures = ["after"]
    with pytest.raises(Unavailable):
        await lake.service.ingest_records("events", [record(1, "a")])

    answer = await lake.service.ingest_records("events", [record(1, "a")])

    assert counts(answer) == (0, 1, 0)
    assert lake.rows() == [1]


async def test_a_failed_transaction_hurts_its_own_group_only(lake: Lake) -> None:
    lake.bus.failures = ["before"]
    with pytest.raises(Unavailable):
        await lake.service.ingest_records("events", [record(1, "a")])

    answer = await lake.service.ingest_records("events", [record(1, "a")])

    assert counts(answer) == (1, 0, 0)
    assert lake.rows() == [1]


async def test_a_cancelled_client_leaves_its_row_absent_or_once(lake: Lake) -> None:
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        under_way = asyncio.create_task(lake.service.ingest_records("events", [record(1, "a")]))
        await lake.bus.arrived.wait()
        waiting = asyncio.create_task(lake.service.ingest_records("events", [record(2, "b")]))
        await let_all_run()
        under_way.cancel()
        waiting.cancel()
        await asyncio.gather(under_way, waiting, return_exceptions=True)

    answer = await lake.service.ingest_records("events", [record(1, "a"), record(2, "b")])

    assert counts(answer) == (1, 1, 0)
    assert lake.rows() == [1, 2]


async def test_a_process_learns_of_tables_that_another_made_dropped_or_changed(
    lake: Lake,
) -> None:
    other = make(lake.bus)
    await other.inlet.start()

    await other.tables.create(table("late"))
    assert counts(await lake.service.ingest_records("late", [record(1)])) == (1, 0, 0)

    await other.tables.drop("late")
    narrow = parse_table({"name": "late", "columns": [{"name": "n", "type": "DATE"}]})
    await other.tables.create(narrow)
    answer = await lake.service.ingest_records("late", [record(2), RawRecord(payload={"n": None})])
    assert counts(answer) == (1, 0, 1)
    assert "no such column" in answer.rejected[0].message

    await other.tables.drop("late")
    assert await code_of(lake.service.ingest_records("late", [record(3)])) == "TABLE_NOT_FOUND"
    assert counts(await lake.service.ingest_records("events", [record(4)])) == (1, 0, 0)
    await other.inlet.drain()


async def test_no_refusal_rests_on_a_table_that_has_changed(lake: Lake) -> None:
    other = make(lake.bus)
    await other.inlet.start()
    text = parse_table({"name": "late", "columns": [{"name": "id", "type": "VARCHAR"}]})
    for first, then in ((text, table("late")), (table("late", primary_key=["id"]), table("late"))):
        for number, write in enumerate((records_of, arrow_of)):
            await lake.tables.create(first)
            await other.tables.drop("late")
            await other.tables.create(then)

            assert counts(await write(lake.service, number)) == (1, 0, 0)

            await lake.tables.drop("late")
    await other.inlet.drain()


async def records_of(service: IngestService, number: int) -> IngestAnswer:
    return await service.ingest_records("late", [RawRecord(payload={"id": number})])


async def arrow_of(service: IngestService, number: int) -> IngestAnswer:
    return await bulk(service, "late", arrow([number]))


async def test_an_unknown_table_is_not_found(lake: Lake) -> None:
    assert await code_of(lake.service.ingest_records("nope", [record(1)])) == "TABLE_NOT_FOUND"
    assert await code_of(lake.tables.find("nope")) == "TABLE_NOT_FOUND"
    with pytest.raises(NotFound):
        await lake.tables.drop("nope")


async def test_a_keyed_table_takes_upserts_and_deletes_in_order(lake: Lake) -> None:
    await lake.tables.create(table("keyed", primary_key=["id"]))

    answer = await lake.service.ingest_records(
        "keyed",
        [
            record(1),
            RawRecord(payload={"id": 2}, op="upsert"),
            RawRecord(payload={"id": 1}, op="delete"),
            RawRecord(payload={"id": 3}, op="insert"),
        ],
    )

    assert counts(answer) == (3, 0, 1)
    assert answer.rejected[0].index == 3
    assert "op: insert" in answer.rejected[0].message
    (entry,) = [e for e in lake.bus.entries if e.kind is EntryKind.ROWS]
    rows = pa.ipc.open_stream(entry.payload).read_all()
    assert key_of(rows.schema) == ("id",)
    assert rows["id"].to_pylist() == [1, 2, 1]
    assert rows[DELETED].to_pylist() == [False, False, True]


async def test_a_bulk_body_deletes_by_key(lake: Lake) -> None:
    await lake.tables.create(table("keyed", primary_key=["id"]))

    answer = await bulk(lake.service, "keyed", arrow([1, 2]), op="delete")

    assert counts(answer) == (2, 0, 0)
    rows = pa.ipc.open_stream(lake.bus.entries[-1].payload).read_all()
    assert rows[DELETED].to_pylist() == [True, True]


async def test_a_table_without_key_takes_no_upserts(lake: Lake) -> None:
    call = bulk(lake.service, "events", arrow([1]), op="upsert")

    assert await code_of(call) == "VALIDATION_FAILED"


async def test_atomic_records_are_all_written_or_none(lake: Lake) -> None:
    bad = [record(1), RawRecord(payload={"id": "x"}), record(2)]

    refused = await lake.service.ingest_records("events", bad, atomic=True)
    taken = await lake.service.ingest_records("events", [record(1), record(2)], atomic=True)

    assert counts(refused) == (0, 0, 1)
    assert (refused.number, refused.rejected[0].index) == (0, 1)
    assert counts(taken) == (2, 0, 0)
    assert lake.rows() == [1, 2]


async def test_a_conflict_refuses_an_atomic_request_whole(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "a"), record(2, "b")])

    answer = await lake.service.ingest_records(
        "events", [record(1, "a"), record(3, "c"), record(2, "b", "other")], atomic=True
    )

    assert counts(answer) == (0, 0, 1)
    assert [(r.index, r.code) for r in answer.rejected] == [(2, "IDEMPOTENCY_CONFLICT")]
    assert answer.number == 0
    assert lake.rows() == [1, 2]


async def test_an_atomic_request_that_was_written_in_part_before_writes_the_rest(
    lake: Lake,
) -> None:
    await lake.service.ingest_records("events", [record(1, "a")])

    answer = await lake.service.ingest_records(
        "events", [record(1, "a"), record(2, "b")], atomic=True
    )

    assert counts(answer) == (1, 1, 0)
    assert lake.rows() == [1, 2]


async def test_a_known_record_stays_known_when_it_fits_no_more(lake: Lake) -> None:
    first = await lake.service.ingest_records("events", [record(1, "a"), record(2, "b")])
    await lake.tables.alter("events", [DropColumn(name="v")])
    fit = RawRecord(payload={"id": 3}, idempotency_key="c")

    again = await lake.service.ingest_records(
        "events", [record(2, "b"), fit, record(1, "a", "other"), record(4, "d"), record(5)]
    )
    alone = await lake.service.ingest_records("events", [record(2, "b")], atomic=True)

    assert counts(again) == (1, 1, 3)
    assert [each.index for each in again.rejected] == [2, 3, 4]
    assert (counts(alone), alone.number) == ((0, 1, 0), first.number)
    assert lake.rows() == [1, 2, 3]


async def test_requests_of_one_round_are_told_what_of_theirs_is_known(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "a"), record(2, "b")])
    await lake.tables.alter("events", [DropColumn(name="v")])
    fit = RawRecord(payload={"id": 3}, idempotency_key="c")

    lake.bus.arrived.clear()
    async with lake.bus.lock:
        sent = [[fit], [record(1, "a"), record(9)], [record(2, "b")], [record(8)]]
        first = asyncio.create_task(
            lake.service.ingest_records("events", [RawRecord(payload={"id": 0})])
        )
        await lake.bus.arrived.wait()
        rest = [asyncio.create_task(lake.service.ingest_records("events", each)) for each in sent]
        await let_all_run()
    answers = await asyncio.gather(first, *rest)

    assert [counts(a) for a in answers] == [(1, 0, 0), (1, 0, 0), (0, 1, 1), (0, 1, 0), (0, 0, 1)]


async def test_repeats_of_an_atomic_request_that_is_refused_are_no_duplicates(lake: Lake) -> None:
    other = make(lake.bus)
    await other.inlet.start()
    append = lake.bus.append

    async def once(group: Sequence[Append]) -> Sequence[Receipt]:
        lake.bus.append = append  # type: ignore[method-assign]
        receipts = await append(group)
        await other.tables.alter("events", [DropColumn(name="v")])
        return receipts

    lake.bus.append = once  # type: ignore[method-assign]
    same = RawRecord(payload={"id": 1}, idempotency_key="k")

    answer = await lake.service.ingest_records("events", [same, same, record(2)], atomic=True)

    assert counts(answer) == (0, 0, 1)
    assert lake.rows() == []
    await other.inlet.drain()


async def test_many_repeats_beside_many_refusals_are_settled_in_one_pass(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = 0

    def counted(record: RawRecord) -> bytes:
        nonlocal digests
        digests += 1
        return content_digest(record)

    monkeypatch.setattr(record_writer, "content_digest", counted)
    bad = [RawRecord(payload={}, idempotency_key=f"b{i}") for i in range(2_000)]
    conflicts = [record(i, "k") for i in range(2, 1_002)]

    answer = await lake.service.ingest_records(
        "events", [*bad, *[record(1, "k")] * 1_000, *conflicts]
    )

    assert counts(answer) == (1, 999, 3_000)
    assert digests < 3 * 4_000  # of all records, of what is left, of those under a key that repeats


async def test_a_record_too_deep_for_a_digest_is_refused_alone(lake: Lake) -> None:
    await lake.tables.create(table("keyed", primary_key=["id"]))
    deep: object = []
    for _ in range(5_000):
        deep = [deep]
    payload = {"id": 1, "v": deep}
    bad = RawRecord(payload=payload, op="delete", idempotency_key="a")
    good = RawRecord(payload={"id": 2, "v": "x"}, idempotency_key="b")

    answer = await lake.service.ingest_records("keyed", [good, bad, bad])
    atomic = await lake.service.ingest_records("keyed", [bad], atomic=True)

    assert (counts(answer), counts(atomic)) == ((1, 0, 2), (0, 0, 1))
    assert answer.rejected[0].message == "payload: is nested too deeply"
    assert lake.rows("keyed") == [2]


async def test_requests_of_one_round_get_their_own_numbers_and_refusals(lake: Lake) -> None:
    async with gathering(lake) as first:
        calls = [
            asyncio.create_task(lake.service.ingest_records("events", records))
            for records in (
                [record(1), record(2)],
                [RawRecord(payload=5), record(3, "k"), RawRecord(payload={"id": None})],
                [record(4)],
            )
        ]
        await let_all_run()
    one, two, three = await asyncio.gather(*calls)

    assert (await first).number == 2
    assert [counts(each) for each in (one, two, three)] == [(2, 0, 0), (1, 0, 2), (1, 0, 0)]
    assert [each.number for each in (one, two, three)] == [4, 5, 6]
    assert [r.index for r in two.rejected] == [0, 2]
    assert len(lake.bus.groups[-1]) == 1
    assert lake.rows() == [0, 1, 2, 3, 4]


async def test_requests_of_one_round_with_one_key_do_not_answer_for_each_other(
    lake: Lake,
) -> None:
    async with gathering(lake):
        calls = [
            asyncio.create_task(lake.service.ingest_records("events", [record(1, "k", v)]))
            for v in ("a", "a", "b", "a")
        ]
        await let_all_run()
    answers = await asyncio.gather(*calls)

    assert [counts(each) for each in answers] == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 0)]
    assert {each.number for each in answers if not each.rejected} == {3}
    assert lake.rows() == [0, 1]


async def test_a_caller_that_left_before_its_round_writes_nothing(lake: Lake) -> None:
    async with gathering(lake):
        gone = asyncio.create_task(lake.service.ingest_records("events", [record(1)]))
        stays = asyncio.create_task(lake.service.ingest_records("events", [record(2)]))
        await let_all_run()
        gone.cancel()
        await let_all_run()

    assert counts(await stays) == (1, 0, 0)
    assert lake.rows() == [0, 2]


@asynccontextmanager
async def gathering(lake: Lake) -> AsyncIterator[asyncio.Task[IngestAnswer]]:
    """While the block runs a round of `events` is under way (one record 0), so that the next gathers."""
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        first = asyncio.create_task(lake.service.ingest_records("events", [record(0)]))
        await lake.bus.arrived.wait()
        yield first


async def test_creating_an_equal_table_again_is_a_success(lake: Lake) -> None:
    changes = len(lake.bus.entries)

    assert (await lake.tables.create(table())).number == 1

    assert len(lake.bus.entries) == changes
    with pytest.raises(Conflict) as caught:
        await lake.tables.create(table(sort_by=["id"]))
    assert caught.value.code == "TABLE_EXISTS"


async def test_many_processes_creating_one_table_create_it_once(lake: Lake) -> None:
    others = [make(lake.bus) for _ in range(4)]
    for other in others:
        await other.inlet.start()

    await asyncio.gather(*(other.tables.create(table("late")) for other in others))

    made = [entry for entry in lake.bus.entries if entry.table == "late"]
    assert [entry.kind for entry in made] == [EntryKind.CREATE_TABLE]
    for other in others:
        await other.inlet.drain()


async def test_tables_are_listed_by_name(lake: Lake) -> None:
    await lake.tables.create(table("a"))

    assert [found.name for found in await lake.tables.all()] == ["a", "events"]


async def test_an_arrow_body_is_accepted_in_parts_and_repeats_by_its_key(lake: Lake) -> None:
    body = arrow(range(200_000))

    first = await bulk(lake.service, "events", body, key="r")
    again = await bulk(lake.service, "events", body, key="r")

    assert counts(first) == (200_000, 0, 0)
    assert counts(again) == (0, 200_000, 0)
    assert first.number == again.number == 200_001
    assert lake.rows() == list(range(200_000))
    assert len(lake.bus.groups[-1][0].parts) >= 3


async def test_a_request_key_with_another_body_conflicts(lake: Lake) -> None:
    await bulk(lake.service, "events", arrow([1]), key="r")

    call = bulk(lake.service, "events", arrow([2]), key="r")

    assert await code_of(call) == "IDEMPOTENCY_CONFLICT"
    assert lake.rows() == [1]


async def test_record_keys_and_request_keys_are_apart(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "same")])

    answer = await bulk(lake.service, "events", arrow([2]), key="same")

    assert counts(answer) == (1, 0, 0)


async def test_an_arrow_body_without_a_key_is_accepted_each_time(lake: Lake) -> None:
    for _ in range(2):
        await bulk(lake.service, "events", arrow([1]))

    assert lake.rows() == [1, 1]


async def test_an_empty_arrow_body_is_no_work(lake: Lake) -> None:
    answer = await bulk(lake.service, "events", arrow([]), key="r")

    assert counts(answer) == (0, 0, 0)


async def test_bad_rows_of_a_body_are_rejected_by_place_and_again_on_repeat(lake: Lake) -> None:
    body = arrow([1, None, 3])

    first = await bulk(lake.service, "events", body, key="r")
    again = await bulk(lake.service, "events", body, key="r")

    assert counts(first) == (2, 0, 1)
    assert counts(again) == (0, 2, 1)
    assert first.rejected == again.rejected
    assert first.rejected[0].index == 1
    assert first.number == again.number
    assert lake.rows() == [1, 3]


async def test_an_atomic_body_with_a_bad_row_writes_nothing(lake: Lake) -> None:
    groups = len(lake.bus.groups)

    answer = await bulk(lake.service, "events", arrow([1, None]), key="r", atomic=True)

    assert counts(answer) == (0, 0, 1)
    assert len(lake.bus.groups) == groups
    assert counts(await bulk(lake.service, "events", arrow([1]), key="r")) == (1, 0, 0)


async def test_a_body_under_a_known_key_read_another_way_conflicts(lake: Lake) -> None:
    await lake.tables.create(table("keyed", primary_key=["id"]))
    await bulk(lake.service, "keyed", arrow([1]), key="r")

    assert counts(await bulk(lake.service, "keyed", arrow([1]), op="upsert", key="r")) == (0, 1, 0)
    call = bulk(lake.service, "keyed", arrow([1]), op="delete", key="r")
    assert await code_of(call) == "IDEMPOTENCY_CONFLICT"


NDJSON = b'{"id":1}\n{"id":2,"x":7}\n{"id":3,"v":"a"}\n'


async def test_a_repeated_body_gets_its_first_counts_whatever_the_table_is_by_then(
    lake: Lake,
) -> None:
    def send() -> Coroutine[Any, Any, IngestAnswer]:
        return bulk(lake.service, "events", NDJSON, form=BulkFormat.NDJSON, key="r")

    first = await send()
    await lake.tables.alter("events", [AddColumn(column=ColumnDef(name="x", type="BIGINT"))])
    wider = await send()
    await lake.tables.alter("events", [DropColumn(name="x"), DropColumn(name="v")])
    narrower = await send()

    assert counts(first) == (2, 0, 1)
    for again in (wider, narrower):
        assert (again.accepted, again.duplicates) == (0, 2)
        assert (again.rejected, again.unnamed, again.number) == ([], 1, first.number)
    assert lake.rows() == [1, 3]


async def test_a_repeated_body_that_cannot_be_read_any_more_is_known(lake: Lake) -> None:
    body = stream(pa.table({"id": [1, None], "v": ["a", "b"]}))
    first = await bulk(lake.service, "events", body, key="r")
    await lake.tables.alter("events", [DropColumn(name="v")])

    again = await bulk(lake.service, "events", body, key="r")

    assert (again.duplicates, again.unnamed, again.number) == (1, 1, first.number)


async def test_whether_it_is_atomic_belongs_to_what_a_request_key_covers(lake: Lake) -> None:
    body = arrow([1, None])
    await bulk(lake.service, "events", body, key="r")

    call = bulk(lake.service, "events", body, key="r", atomic=True)

    assert await code_of(call) == "IDEMPOTENCY_CONFLICT"
    assert lake.rows() == [1]


async def test_one_body_sent_at_once_is_written_once_with_the_same_counts(lake: Lake) -> None:
    sent = [bulk(lake.service, "events", arrow([1, None, 3]), key="r") for _ in range(10)]

    answers = await asyncio.gather(*sent)

    assert sorted(counts(answer) for answer in answers) == [(0, 2, 1)] * 9 + [(2, 0, 1)]
    assert lake.rows() == [1, 3]


async def test_a_body_that_the_earlier_release_accepted_is_known(lake: Lake) -> None:
    _, found = await lake.inlet.tables.find("events")
    content = blake2b(arrow([1, None]), digest_size=16).digest()
    earlier = KeyHash(key=key_digest(found, "request", "r"), content=content, request=True)
    batch = pa.record_batch([pa.array([1]), pa.nulls(1, pa.string())], bus_schema(found))
    receipt = await lake.inlet.submit(rows_append(found, 1, parts_of([batch]), [earlier]))

    again = await bulk(lake.service, "events", arrow([1, None]), key="r")

    assert (counts(again), again.number) == ((0, 1, 1), receipt.last)
    assert lake.rows() == [1]


async def test_a_request_key_of_a_table_made_anew_elsewhere_is_new(lake: Lake) -> None:
    await bulk(lake.service, "events", arrow([1]), key="r")
    other = make(lake.bus)
    await other.inlet.start()
    await other.tables.drop("events")
    await other.tables.create(table())

    assert counts(await bulk(lake.service, "events", arrow([1]), key="r")) == (1, 0, 0)
    await other.inlet.drain()


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows are a large body."""
    monkeypatch.setattr(bulk_writer, "STAGE_ROWS", 10)


TEN = arrow(range(10))


async def staging() -> Lake:
    stager = FakeStager("events", "keyed")
    made = make(FakeBus(), stager)
    await made.inlet.start()
    await made.tables.create(table())
    return made


@pytest.mark.usefixtures("small_files")
async def test_a_large_body_is_staged_and_the_bus_names_the_file() -> None:
    lake = await staging()

    small = await bulk(lake.service, "events", arrow(range(9)))
    large = await bulk(lake.service, "events", TEN)

    assert (counts(small), counts(large)) == ((9, 0, 0), (10, 0, 0))
    assert large.number == 20
    entry = lake.bus.entries[-1]
    assert (entry.kind, entry.first, entry.last) == (EntryKind.FILE, 11, 20)
    (path,) = lake.stager.files
    file = msgspec.json.decode(entry.payload, type=StagedFile)
    assert (file.path, file.rows) == (path, 10)
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_staged_body_that_is_known_leaves_one_file() -> None:
    lake = await staging()

    first = await bulk(lake.service, "events", TEN, key="r")
    again = await bulk(lake.service, "events", TEN, key="r")
    other = bulk(lake.service, "events", arrow(range(11)), key="r")

    assert (counts(first), counts(again)) == ((10, 0, 0), (0, 10, 0))
    assert first.number == again.number
    assert await code_of(other) == "IDEMPOTENCY_CONFLICT"
    assert len(lake.stager.files) == 1
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_file_stays_valid_while_other_tables_change() -> None:
    lake = await staging()
    await lake.tables.find("events")
    other = make(lake.bus)
    await other.inlet.start()
    await other.tables.create(table("another"))

    assert counts(await bulk(lake.service, "events", TEN)) == (10, 0, 0)

    assert (lake.stager.staged, len(lake.stager.files)) == (1, 1)
    await lake.inlet.drain()
    await other.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_file_for_a_table_that_was_made_anew_is_staged_anew() -> None:
    lake = await staging()
    other = make(lake.bus)
    await other.inlet.start()
    await other.tables.drop("events")
    await other.tables.create(table())

    assert counts(await bulk(lake.service, "events", TEN)) == (10, 0, 0)

    assert (lake.stager.staged, len(lake.stager.files)) == (2, 1)
    await lake.inlet.drain()
    await other.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_file_for_a_table_that_is_dropped_is_discarded() -> None:
    lake = await staging()
    other = make(lake.bus)
    await other.inlet.start()
    await other.tables.drop("events")

    assert await code_of(bulk(lake.service, "events", TEN)) == "TABLE_NOT_FOUND"

    assert (lake.stager.staged, lake.stager.files) == (1, {})
    await lake.inlet.drain()
    await other.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_discarded_file_is_not_appended_when_its_table_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lake = await staging()
    version, before = await lake.inlet.tables.find("events")
    between = parse_table({"name": "events", "columns": [{"name": "other", "type": "BIGINT"}]})
    # As tables go while the body is on its way: another definition for a moment, which does not take it, and back.
    seen = iter([(version - 1, before), (version - 1, between), (version, before)])

    async def find(_: str) -> tuple[int, TableDef]:
        return next(seen)

    monkeypatch.setattr(lake.inlet.tables, "find", find)

    assert counts(await bulk(lake.service, "events", TEN)) == (10, 0, 0)

    entry = lake.bus.entries[-1]
    assert lake.stager.staged == 2
    assert [msgspec.json.decode(entry.payload, type=StagedFile).path] == list(lake.stager.files)
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_after_an_uncertain_append_the_file_stays() -> None:
    lake = await staging()
    lake.bus.failures = ["after"]

    assert await code_of(bulk(lake.service, "events", TEN, key="r")) == "CATALOG_UNAVAILABLE"
    assert len(lake.stager.files) == 1

    assert counts(await bulk(lake.service, "events", TEN, key="r")) == (0, 10, 0)
    assert len(lake.stager.files) == 1
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_a_file_of_a_body_that_found_no_place_in_the_queue_is_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lake = await staging()
    monkeypatch.setattr(group_commit, "QUEUE_APPENDS", 0)

    assert await code_of(bulk(lake.service, "events", TEN, key="r")) == "OVERLOADED"

    assert (lake.stager.staged, lake.stager.files) == (1, {})
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
async def test_without_the_store_large_bodies_go_through_the_bus() -> None:
    lake = await staging()
    lake.stager.down = True

    assert counts(await bulk(lake.service, "events", TEN)) == (10, 0, 0)

    assert lake.rows() == list(range(10))
    await lake.inlet.drain()


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"primary_key": ["id"]}, id="keyed"),
        pytest.param({"partition_by": ["id"]}, id="partitioned"),
        pytest.param({"name": "young"}, id="not in the lake yet"),
    ],
)
async def test_tables_that_take_no_files_get_large_bodies_as_rows(changes: Any) -> None:
    lake = await staging()
    name = changes.pop("name", "keyed")
    await lake.tables.create(table(name, **changes))

    assert counts(await bulk(lake.service, name, TEN)) == (10, 0, 0)

    assert lake.rows(name) == list(range(10))
    assert lake.stager.files == {}
    await lake.inlet.drain()


async def test_a_body_over_the_limit_is_refused() -> None:
    lake = make(FakeBus(), body_bytes=1000)
    await lake.inlet.start()

    call = bulk(lake.service, "events", b"x" * 1001)

    assert await code_of(call) == "PAYLOAD_TOO_LARGE"
    await lake.inlet.drain()


async def test_requests_over_the_rate_are_limited() -> None:
    lake = make(FakeBus(), requests_per_second=2)
    await lake.inlet.start()
    await lake.tables.create(table())
    await lake.service.ingest_records("events", [record(1)])

    assert await code_of(lake.service.ingest_records("events", [record(2)])) == "RATE_LIMITED"
    await lake.inlet.drain()


async def test_a_lake_far_behind_is_overloaded() -> None:
    lake = make(FakeBus(), pending_bytes=100)
    await lake.inlet.start()
    await lake.tables.create(table())

    assert await code_of(lake.service.ingest_records("events", [record(1)])) == "OVERLOADED"
    await lake.inlet.drain()


async def test_a_full_queue_is_overloaded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_APPENDS", 3)
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        calls = [asyncio.create_task(bulk(lake.service, "events", arrow([i]))) for i in range(10)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert {type(call.exception()) for call in done} == {Limited}
    results = await asyncio.gather(*calls, return_exceptions=True)

    accepted = [each for each in results if isinstance(each, IngestAnswer)]
    assert len(accepted) == len(lake.rows())
    assert 0 < len(accepted) < 10


async def test_too_many_waiting_requests_are_overload(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_writer, "MOST_WAITING", 3)
    async with gathering(lake):
        calls = [
            asyncio.create_task(lake.service.ingest_records("events", [record(i)]))
            for i in range(1, 6)
        ]
        await let_all_run()
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(each) for each in results] == [IngestAnswer] * 3 + [Limited] * 2
    assert lake.rows() == [0, 1, 2, 3]


async def test_draining_finishes_what_is_under_way_and_refuses_the_rest(lake: Lake) -> None:
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        under_way = asyncio.create_task(lake.service.ingest_records("events", [record(1)]))
        await lake.bus.arrived.wait()
        draining = asyncio.create_task(lake.inlet.drain())
        await asyncio.sleep(0)
        with pytest.raises(Limited) as caught:
            await lake.service.ingest_records("events", [record(2)])
        assert not draining.done()
    await draining

    assert counts(await under_way) == (1, 0, 0)
    assert (caught.value.code, caught.value.retry_after_s) == ("OVERLOADED", 1)
    assert lake.rows() == [1]


async def test_a_failing_listener_does_not_stop_the_writing(lake: Lake) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("planted")

    lake.inlet._group._on_accepted = fail

    for i in range(2):
        assert counts(await lake.service.ingest_records("events", [record(i)])) == (1, 0, 0)


async def test_start_fails_while_the_bus_is_silent_and_works_later() -> None:
    class Flaky(FakeBus):
        silent = True

        async def head(self) -> Any:
            if self.silent:
                raise Unavailable("CATALOG_UNAVAILABLE", "planted")
            return await super().head()

    lake = make(Flaky())
    with pytest.raises(Unavailable):
        await lake.inlet.start()

    Flaky.silent = False
    await lake.inlet.start()
    await lake.tables.create(table())

    assert counts(await lake.service.ingest_records("events", [record(1)])) == (1, 0, 0)
    await lake.inlet.drain()


async def test_the_lag_report_says_what_is_pending_and_where(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1), record(2)])
    lake.bus.token, lake.bus.inflight_to = 1, 2

    report = await lag_report(lake.bus, "lake_test")

    assert (report.accepted, report.watermark, report.token_lag, report.claimed) == (3, 1, 2, 1)
    assert (report.pending_rows, [each.table for each in report.tables]) == (2, ["events"])
    assert report.lag_ms == report.oldest_pending_age_ms >= 0
    lake.bus.token = 3
    assert (await lag_report(lake.bus, "lake_test")).pending_rows == 0


async def test_wide_rows_are_cut_into_parts_of_bounded_size(lake: Lake) -> None:
    records = [record(i, v="v" * 2**20) for i in range(12)]

    assert counts(await lake.service.ingest_records("events", records)) == (12, 0, 0)

    sizes = [len(part.payload) for part in lake.bus.groups[-1][0].parts]
    assert len(sizes) > 1
    assert max(sizes) <= 4 * 2**20
    assert lake.rows() == list(range(12))


async def test_many_records_are_decoded_beside_the_loop_and_all_written(lake: Lake) -> None:
    answer = await lake.service.ingest_records("events", [record(i) for i in range(2_000)])

    assert counts(answer) == (2_000, 0, 0)
    assert lake.rows() == list(range(2_000))


async def test_a_table_changed_between_check_and_write_is_checked_again(lake: Lake) -> None:
    other = make(lake.bus)
    await other.inlet.start()

    for number, write in enumerate((records_of, arrow_of)):
        await lake.tables.create(table("late"))
        await other.tables.create(table(f"another_{number}"))

        assert counts(await write(lake.service, number)) == (1, 0, 0)

        await lake.tables.drop("late")
    await other.inlet.drain()


async def test_a_request_that_never_meets_its_version_is_unavailable(lake: Lake) -> None:
    class Moving(FakeBus):
        async def tables(self) -> Any:
            _, found = await lake.bus.tables()
            return 999, found

    moved = make(Moving())
    await moved.inlet.start()

    assert await code_of(records(moved)) == "CATALOG_UNAVAILABLE"
    assert await code_of(bodies(moved)) == "CATALOG_UNAVAILABLE"
    assert await code_of(moved.tables.create(table("new"))) == "CATALOG_UNAVAILABLE"
    assert await code_of(moved.tables.drop("events")) == "CATALOG_UNAVAILABLE"
    await moved.inlet.drain()


def records(lake: Lake) -> Any:
    return lake.service.ingest_records("events", [record(1)])


def bodies(lake: Lake) -> Any:
    return bulk(lake.service, "events", arrow([1]))


async def test_old_keys_are_forgotten_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlet, "_EXPIRE_EVERY_S", 0)
    lake = make(FakeBus())
    await lake.inlet.start()
    await lake.tables.create(table())
    await lake.service.ingest_records("events", [record(1, "a")])
    await bulk(lake.service, "events", arrow([2]), key="r")

    lake.bus.aged = timedelta(hours=25)
    async with asyncio.timeout(10):
        while (await lake.service.ingest_records("events", [record(1, "a")])).duplicates:
            await asyncio.sleep(0)

    again = await bulk(lake.service, "events", arrow([2]), key="r")
    assert counts(again) == (0, 1, 0)
    await lake.inlet.drain()


async def test_a_writer_that_is_ended_tells_its_callers() -> None:
    bus = FakeBus()
    group = group_commit.GroupCommit(bus, lambda number: None)
    change = Append(
        kind=EntryKind.DROP_TABLE,
        table="t",
        parts=[Part(rows=1, payload=b"")],
        schema_version=0,
    )
    async with bus.lock:
        run = asyncio.create_task(group.run())
        calls = [asyncio.create_task(group.submit(change))]
        await bus.arrived.wait()
        calls.append(asyncio.create_task(group.submit(change)))
        await let_all_run()
        run.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)

    # What was under way may be there; what waited is not.
    assert [type(result) for result in results] == [Unavailable, Limited]
    assert "the write may be there" in str(results[0])
    await asyncio.gather(run, return_exceptions=True)


async def test_a_write_that_landed_while_its_writer_was_ended_is_known_by_its_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lake = make(FakeBus())
    await lake.inlet.start()
    await lake.tables.create(table())
    write, landed = lake.bus.append, asyncio.Event()

    async def slow(group: Sequence[Append]) -> Sequence[Receipt]:
        receipts = await write(group)
        landed.set()
        await asyncio.Event().wait()  # the answer is on its way when the process ends
        return receipts

    monkeypatch.setattr(lake.bus, "append", slow)
    call = asyncio.create_task(lake.service.ingest_records("events", [record(1, "a")]))
    await landed.wait()
    for task in lake.inlet._tasks:
        task.cancel()
    assert await code_of(call) == "CATALOG_UNAVAILABLE"
    await lake.inlet.drain()

    monkeypatch.setattr(lake.bus, "append", write)
    other = make(lake.bus)
    await other.inlet.start()
    assert counts(await other.service.ingest_records("events", [record(1, "a")])) == (0, 1, 0)
    assert lake.rows() == [1]
    await other.inlet.drain()
