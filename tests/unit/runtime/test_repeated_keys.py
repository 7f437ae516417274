"""A key repeated inside one request: the repeat shares the fate of its first use, also when another writer comes between."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.ports import Append, AppendResult, Receipt
from duckmesh_runtime.services.ingest import IngestAnswer, IngestService
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus

COLUMNS = [{"name": "id", "type": "BIGINT"}]


class InterruptedBus(FakeBus):
    """Lets another writer in right after it named known keys for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.between: list[list[RawRecord]] = []
        self.other: IngestService | None = None

    async def append(self, group: Sequence[Append]) -> Sequence[Receipt]:
        receipts = await super().append(group)
        if any(r.result is AppendResult.KNOWN for r in receipts) and self.between:
            assert self.other is not None
            await self.other.ingest_records("events", self.between.pop())
        return receipts


def record(number: int, key: str) -> RawRecord:
    return RawRecord(payload={"id": number}, idempotency_key=key)


async def ingest(
    records: Sequence[RawRecord], between: Sequence[RawRecord], *, atomic: bool = False
) -> IngestAnswer:
    bus = InterruptedBus()
    inlets = [
        Inlet(bus, lake="lake_test", limits=IngestLimits(), on_accepted=lambda number: None)
        for _ in range(2)
    ]
    for inlet in inlets:
        await inlet.start()
    await TableService(inlets[0], bus).create(parse_table({"name": "events", "columns": COLUMNS}))
    bus.other, bus.between = IngestService(inlets[1]), [list(between)]
    answer = await IngestService(inlets[0]).ingest_records("events", records, atomic=atomic)
    for inlet in inlets:
        await inlet.drain()
    return answer


def said(answer: IngestAnswer) -> tuple[int, int, list[tuple[int, str]]]:
    return answer.accepted, answer.duplicates, [(r.index, r.code) for r in answer.rejected]


REPEATED = [record(1, "a"), record(2, "b"), record(1, "a")]


async def test_a_repeat_of_what_another_wrote_with_other_content_is_a_conflict_too() -> None:
    answer = await ingest(REPEATED, [record(9, "a")])

    conflict = "IDEMPOTENCY_CONFLICT"
    assert said(answer) == (1, 0, [(0, conflict), (2, conflict)])


async def test_a_repeat_of_what_another_wrote_is_known() -> None:
    answer = await ingest(REPEATED, [record(1, "a")])

    assert said(answer) == (1, 2, [])


async def test_a_repeat_of_what_was_written_now_is_known() -> None:
    assert said(await ingest(REPEATED, [record(9, "c")])) == (2, 1, [])


async def test_a_repeat_is_known_though_a_third_use_is_a_conflict() -> None:
    answer = await ingest([*REPEATED, record(3, "a")], [record(9, "c")])

    assert said(answer) == (2, 1, [(3, "IDEMPOTENCY_CONFLICT")])


@pytest.mark.parametrize("between", [record(9, "a"), record(9, "c")])
async def test_an_atomic_request_is_written_whole_or_refused(between: RawRecord) -> None:
    answer = await ingest(REPEATED, [between], atomic=True)

    assert (answer.accepted, answer.duplicates) in {(2, 1), (0, 0)}
    assert bool(answer.rejected) == (answer.accepted == 0)
