"""The accept side over an in-memory bus: every record is accepted once, known, or rejected."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Conflict, DuckmeshError, Invalid, Limited, NotFound, Unavailable
from duckmesh_runtime.ports import Append, EntryKind, Part
from duckmesh_runtime.services import group_commit, ingest
from duckmesh_runtime.services.ingest import IngestAnswer, IngestService
from duckmesh_runtime.services.lag import lag_report
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus


def table(name: str = "events", **changes: Any) -> TableDef:
    columns = [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "v", "type": "VARCHAR"},
    ]
    return parse_table({"name": name, "columns": columns, **changes})


def record(number: int, key: str | None = None, v: str = "x") -> RawRecord:
    return RawRecord(payload={"id": number, "v": v}, idempotency_key=key)


def arrow(ids: Sequence[int]) -> bytes:
    rows = pa.table({"id": pa.array(ids, pa.int64())})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    return sink.getvalue()


@dataclass(kw_only=True)
class Lake:
    """A service, the bus behind it, and what the committer was told."""

    bus: FakeBus
    service: IngestService
    told: list[int] = field(default_factory=list)

    def rows(self, name: str = "events") -> list[int]:
        found: list[int] = []
        for entry in self.bus.entries:
            if entry.kind is EntryKind.ROWS and entry.table == name:
                found += pa.ipc.open_stream(entry.payload).read_all()["id"].to_pylist()
        return found


def make(bus: FakeBus, **limits: int) -> Lake:
    told: list[int] = []
    service = IngestService(
        bus, lake="lake_test", limits=IngestLimits(**limits), on_accepted=told.append
    )
    return Lake(bus=bus, service=service, told=told)


@pytest.fixture
async def lake() -> AsyncIterator[Lake]:
    made = make(FakeBus())
    await made.service.start()
    await made.service.create_table(table())
    yield made
    await made.service.drain()


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
    await lake.service.create_table(table("other"))
    await lake.service.ingest_records("events", [record(1, "a")])

    answer = await lake.service.ingest_records("other", [record(1, "a")])

    assert counts(answer) == (1, 0, 0)


async def test_a_table_made_anew_knows_no_keys_of_the_old_one(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "a")])
    await lake.service.drop_table("events")
    await lake.service.create_table(table())

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

    assert [len(group) for group in lake.bus.groups[before:]] == [1, 19]


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
    await other.service.start()

    await other.service.create_table(table("late"))
    assert counts(await lake.service.ingest_records("late", [record(1)])) == (1, 0, 0)

    await other.service.drop_table("late")
    narrow = parse_table({"name": "late", "columns": [{"name": "n", "type": "DATE"}]})
    await other.service.create_table(narrow)
    answer = await lake.service.ingest_records("late", [record(2), RawRecord(payload={"n": None})])
    assert counts(answer) == (1, 0, 1)
    assert "no such column" in answer.rejected[0].message

    await other.service.drop_table("late")
    assert await code_of(lake.service.ingest_records("late", [record(3)])) == "TABLE_NOT_FOUND"
    assert counts(await lake.service.ingest_records("events", [record(4)])) == (1, 0, 0)
    await other.service.drain()


async def test_no_refusal_rests_on_a_table_that_has_changed(lake: Lake) -> None:
    other = make(lake.bus)
    await other.service.start()
    text = parse_table({"name": "late", "columns": [{"name": "id", "type": "VARCHAR"}]})
    for first, then in ((text, table("late")), (table("late", primary_key=["id"]), table("late"))):
        for number, write in enumerate((records_of, arrow_of)):
            await lake.service.create_table(first)
            await other.service.drop_table("late")
            await other.service.create_table(then)

            assert counts(await write(lake.service, number)) == (1, 0, 0)

            await lake.service.drop_table("late")
    await other.service.drain()


async def records_of(service: IngestService, number: int) -> IngestAnswer:
    return await service.ingest_records("late", [RawRecord(payload={"id": number})])


async def arrow_of(service: IngestService, number: int) -> IngestAnswer:
    return await service.ingest_arrow("late", arrow([number]), request_key=None)


async def test_an_unknown_table_is_not_found(lake: Lake) -> None:
    assert await code_of(lake.service.ingest_records("nope", [record(1)])) == "TABLE_NOT_FOUND"
    assert await code_of(lake.service.table("nope")) == "TABLE_NOT_FOUND"
    with pytest.raises(NotFound):
        await lake.service.drop_table("nope")


async def test_a_keyed_table_is_stored_and_refuses_writes_for_now(lake: Lake) -> None:
    await lake.service.create_table(table("keyed", primary_key=["id"]))

    with pytest.raises(Invalid, match="not supported yet in this version"):
        await lake.service.ingest_records("keyed", [record(1)])
    with pytest.raises(Invalid, match="not supported yet in this version"):
        await lake.service.ingest_arrow("keyed", arrow([1]), request_key=None)
    assert (await lake.service.table("keyed")).primary_key == ("id",)


async def test_creating_an_equal_table_again_is_a_success(lake: Lake) -> None:
    changes = len(lake.bus.entries)

    assert await lake.service.create_table(table()) == 1

    assert len(lake.bus.entries) == changes
    with pytest.raises(Conflict) as caught:
        await lake.service.create_table(table(sort_by=["id"]))
    assert caught.value.code == "TABLE_EXISTS"


async def test_many_processes_creating_one_table_create_it_once(lake: Lake) -> None:
    others = [make(lake.bus) for _ in range(4)]
    for other in others:
        await other.service.start()

    await asyncio.gather(*(other.service.create_table(table("late")) for other in others))

    made = [entry for entry in lake.bus.entries if entry.table == "late"]
    assert [entry.kind for entry in made] == [EntryKind.CREATE_TABLE]
    for other in others:
        await other.service.drain()


async def test_tables_are_listed_by_name(lake: Lake) -> None:
    await lake.service.create_table(table("a"))

    assert [found.name for found in await lake.service.tables()] == ["a", "events"]


async def test_an_arrow_body_is_accepted_in_parts_and_repeats_by_its_key(lake: Lake) -> None:
    body = arrow(range(200_000))

    first = await lake.service.ingest_arrow("events", body, request_key="r")
    again = await lake.service.ingest_arrow("events", body, request_key="r")

    assert counts(first) == (200_000, 0, 0)
    assert counts(again) == (0, 200_000, 0)
    assert first.number == again.number == 200_001
    assert lake.rows() == list(range(200_000))
    assert len(lake.bus.groups[-2][0].parts) >= 3


async def test_a_request_key_with_another_body_conflicts(lake: Lake) -> None:
    await lake.service.ingest_arrow("events", arrow([1]), request_key="r")

    call = lake.service.ingest_arrow("events", arrow([2]), request_key="r")

    assert await code_of(call) == "IDEMPOTENCY_CONFLICT"
    assert lake.rows() == [1]


async def test_record_keys_and_request_keys_are_apart(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1, "same")])

    answer = await lake.service.ingest_arrow("events", arrow([2]), request_key="same")

    assert counts(answer) == (1, 0, 0)


async def test_an_arrow_body_without_a_key_is_accepted_each_time(lake: Lake) -> None:
    for _ in range(2):
        await lake.service.ingest_arrow("events", arrow([1]), request_key=None)

    assert lake.rows() == [1, 1]


async def test_an_empty_arrow_body_is_no_work(lake: Lake) -> None:
    answer = await lake.service.ingest_arrow("events", arrow([]), request_key="r")

    assert counts(answer) == (0, 0, 0)


async def test_a_body_over_the_limit_is_refused() -> None:
    lake = make(FakeBus(), body_bytes=1000)
    await lake.service.start()

    call = lake.service.ingest_arrow("events", b"x" * 1001, request_key=None)

    assert await code_of(call) == "PAYLOAD_TOO_LARGE"
    await lake.service.drain()


async def test_requests_over_the_rate_are_limited() -> None:
    lake = make(FakeBus(), requests_per_second=2)
    await lake.service.start()
    await lake.service.create_table(table())
    await lake.service.ingest_records("events", [record(1)])

    assert await code_of(lake.service.ingest_records("events", [record(2)])) == "RATE_LIMITED"
    await lake.service.drain()


async def test_a_lake_far_behind_is_overloaded() -> None:
    lake = make(FakeBus(), pending_bytes=100)
    await lake.service.start()
    await lake.service.create_table(table())

    assert await code_of(lake.service.ingest_records("events", [record(1)])) == "OVERLOADED"
    await lake.service.drain()


async def test_a_full_queue_is_overloaded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "QUEUE_APPENDS", 3)
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        calls = [
            asyncio.create_task(lake.service.ingest_records("events", [record(i)]))
            for i in range(10)
        ]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert {type(call.exception()) for call in done} == {Limited}
    results = await asyncio.gather(*calls, return_exceptions=True)

    accepted = [each for each in results if isinstance(each, IngestAnswer)]
    assert len(accepted) == len(lake.rows())
    assert 0 < len(accepted) < 10


async def test_draining_finishes_what_is_under_way_and_refuses_the_rest(lake: Lake) -> None:
    lake.bus.arrived.clear()
    async with lake.bus.lock:
        under_way = asyncio.create_task(lake.service.ingest_records("events", [record(1)]))
        await lake.bus.arrived.wait()
        draining = asyncio.create_task(lake.service.drain())
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

    lake.service._group._on_accepted = fail

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
        await lake.service.start()

    Flaky.silent = False
    await lake.service.start()
    await lake.service.create_table(table())

    assert counts(await lake.service.ingest_records("events", [record(1)])) == (1, 0, 0)
    await lake.service.drain()


async def test_the_lag_report_says_what_is_pending_and_where(lake: Lake) -> None:
    await lake.service.ingest_records("events", [record(1), record(2)])
    lake.bus.token, lake.bus.inflight_to = 1, 2

    report = await lag_report(lake.bus)

    assert (report.accepted, report.watermark, report.token_lag, report.claimed) == (3, 1, 2, 1)
    assert (report.pending_rows, [each.table for each in report.tables]) == (2, ["events"])
    assert report.lag_ms == report.oldest_pending_age_ms >= 0
    lake.bus.token = 3
    assert (await lag_report(lake.bus)).pending_rows == 0


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
    await other.service.start()

    for number, write in enumerate((records_of, arrow_of)):
        await lake.service.create_table(table("late"))
        await other.service.create_table(table(f"another_{number}"))

        assert counts(await write(lake.service, number)) == (1, 0, 0)

        await lake.service.drop_table("late")
    await other.service.drain()


async def test_a_request_that_never_meets_its_version_is_unavailable(lake: Lake) -> None:
    class Moving(FakeBus):
        async def tables(self) -> Any:
            _, found = await lake.bus.tables()
            return 999, found

    moved = make(Moving())
    await moved.service.start()

    assert await code_of(records(moved)) == "CATALOG_UNAVAILABLE"
    assert await code_of(bodies(moved)) == "CATALOG_UNAVAILABLE"
    assert await code_of(moved.service.create_table(table("new"))) == "CATALOG_UNAVAILABLE"
    assert await code_of(moved.service.drop_table("events")) == "CATALOG_UNAVAILABLE"
    await moved.service.drain()


def records(lake: Lake) -> Any:
    return lake.service.ingest_records("events", [record(1)])


def bodies(lake: Lake) -> Any:
    return lake.service.ingest_arrow("events", arrow([1]), request_key=None)


async def test_old_keys_are_forgotten_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_FORGET_EVERY_S", 0)
    lake = make(FakeBus())
    await lake.service.start()
    await lake.service.create_table(table())
    await lake.service.ingest_records("events", [record(1, "a")])
    await lake.service.ingest_arrow("events", arrow([2]), request_key="r")

    lake.bus.aged = timedelta(hours=25)
    async with asyncio.timeout(10):
        while (await lake.service.ingest_records("events", [record(1, "a")])).duplicates:
            await asyncio.sleep(0)

    again = await lake.service.ingest_arrow("events", arrow([2]), request_key="r")
    assert counts(again) == (0, 1, 0)
    await lake.service.drain()


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

    assert {type(result) for result in results} == {Limited}
    await asyncio.gather(run, return_exceptions=True)
