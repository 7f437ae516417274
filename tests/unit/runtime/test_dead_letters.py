"""Dead letters over a bus in memory: each is replayed or dropped once, or stays with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Conflict, Corrupt, DuckmeshError, Limited, NotFound, Unavailable
from duckmesh_runtime.ports import EntryKind
from duckmesh_runtime.services import dead_letters as module
from duckmesh_runtime.services.lag import lag_report
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.letters import Kept, kept_letters, make_table

ROW = {"id": 1, "v": "a"}
OTHER = {"id": 2, "v": "b"}


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with kept_letters() as found:
        yield found


def settled(action: str) -> float:
    name = "duckmesh_dead_letters_settled_total"
    return metrics.REGISTRY.get_sample_value(name, {"action": action}) or 0.0


async def test_a_replayed_letter_is_accepted_once_under_new_numbers(kept: Kept) -> None:
    number = await kept.letter([ROW, OTHER])
    kept.bus.entries.clear()
    before = settled("replayed")

    replayed = await kept.service.replay(number)

    assert (replayed.letters, replayed.first, replayed.last) == (1, 4, 5)
    assert kept.rows() == [ROW, OTHER]
    assert kept.bus.kept == {}
    assert settled("replayed") == before + 1
    with pytest.raises(NotFound) as caught:
        await kept.service.replay(number)
    assert caught.value.code == "DEAD_LETTER_NOT_FOUND"


async def test_of_many_replays_and_drops_at_once_one_wins(kept: Kept) -> None:
    number = await kept.letter([ROW])
    kept.bus.entries.clear()

    found = await asyncio.gather(
        *(kept.service.replay(number) for _ in range(20)),
        kept.service.drop(number),
        return_exceptions=True,
    )

    lost = [error for error in found if isinstance(error, BaseException)]
    assert len(lost) == 20
    assert {error.code for error in lost if isinstance(error, NotFound)} == {
        "DEAD_LETTER_NOT_FOUND"
    }
    assert len(kept.rows()) <= 1


async def test_a_letter_is_checked_against_the_table_as_it_is(kept: Kept) -> None:
    number = await kept.letter([ROW])
    wider = make_table(
        "events",
        {"name": "id", "type": "BIGINT"},
        {"name": "v", "type": "VARCHAR"},
        {"name": "n", "type": "INTEGER", "default": 7},
    )
    await kept.change(EntryKind.ALTER_TABLE, wider)
    kept.bus.entries.clear()

    await kept.service.replay(number)

    assert kept.rows() == [{**ROW, "n": 7}]


async def test_a_table_that_changes_in_between_is_looked_at_again(kept: Kept) -> None:
    number = await kept.letter([ROW])
    await kept.bus.lock.acquire()
    replay = asyncio.create_task(kept.service.replay(number))
    kept.bus.arrived.clear()
    await kept.bus.arrived.wait()
    kept.bus.lock.release()
    # The change waits for the lock behind the replay's append, which then stands at an older version.
    kept.bus._head = kept.bus._head.__class__(last=2, schema_version=9, timeline=1)
    kept.bus.entries.clear()

    await replay

    assert kept.rows() == [ROW]
    assert kept.bus.entries[-1].schema_version == 9


@pytest.mark.parametrize("change", [EntryKind.DROP_TABLE, EntryKind.ALTER_TABLE])
async def test_what_fits_no_more_stays_with_the_reason(kept: Kept, change: EntryKind) -> None:
    number = await kept.letter([ROW])
    await kept.change(change, make_table("events", {"name": "id", "type": "BIGINT"}))
    kept.bus.entries.clear()

    with pytest.raises(Conflict) as caught:
        await kept.service.replay(number)

    assert caught.value.code == "SCHEMA_INCOMPATIBLE"
    assert kept.rows() == []
    assert (await kept.service.find(number)).first == number


async def test_a_change_of_a_table_is_made_again_rather_than_replayed(kept: Kept) -> None:
    number = await kept.change_letter(make_table("other"))

    with pytest.raises(Conflict, match="make it again"):
        await kept.service.replay(number)

    await kept.service.drop(number)
    assert kept.bus.kept == {}


async def test_a_staged_file_is_replayed_while_it_is_there(kept: Kept) -> None:
    there, gone = (
        await kept.file_letter("t/there.parquet"),
        await kept.file_letter("t/gone.parquet"),
    )
    kept.files.put("t/there.parquet", [ROW, OTHER, ROW])
    kept.bus.entries.clear()

    replayed = await kept.service.replay(there)
    with pytest.raises(Corrupt) as caught:
        await kept.service.replay(gone)

    assert (kept.rows(), replayed.last - replayed.first + 1) == ([ROW, OTHER, ROW], 3)
    assert kept.files.objects == {}
    assert caught.value.code == "DATA_FILE_MISSING"
    assert list(kept.bus.kept) == [gone]


async def test_a_file_that_another_replay_has_taken_is_no_missing_file(kept: Kept) -> None:
    number = await kept.file_letter("t/there.parquet")
    kept.files.put("t/there.parquet", [ROW])
    kept.bus.entries.clear()

    # Both find the letter before either takes it; the slower one finds neither letter nor file any more.
    found = await asyncio.gather(
        *(kept.service.replay(number) for _ in range(2)), return_exceptions=True
    )

    assert [each.code for each in found if isinstance(each, DuckmeshError)] == [
        "DEAD_LETTER_NOT_FOUND"
    ]
    assert kept.rows() == [ROW]


@pytest.mark.parametrize("key", [["id"], []])
async def test_a_staged_file_goes_into_a_table_without_a_key_only(
    kept: Kept, key: list[str]
) -> None:
    number = await kept.file_letter("t/there.parquet")
    kept.files.put("t/there.parquet", [ROW])
    await kept.change(EntryKind.DROP_TABLE, make_table())
    if key:
        await kept.change(EntryKind.CREATE_TABLE, make_table(key=key))

    with pytest.raises(Conflict) as caught:
        await kept.service.replay(number)

    assert ("primary_key: is id" if key else "does not exist") in caught.value.message


async def test_a_staged_file_is_checked_against_the_table_as_it_is(kept: Kept) -> None:
    number = await kept.file_letter("t/a.parquet")
    old = make_table("events", {"name": "id", "type": "BIGINT"}, {"name": "v", "type": "VARCHAR"})
    kept.files.put("t/a.parquet", [ROW, {"id": None, "v": "a"}], old)
    await kept.change(EntryKind.DROP_TABLE, old)
    await kept.change(EntryKind.CREATE_TABLE, make_table())
    kept.bus.entries.clear()

    with pytest.raises(Conflict, match="row 1: id: is missing or null") as caught:
        await kept.service.replay(number)

    assert caught.value.code == "SCHEMA_INCOMPATIBLE"
    assert (list(kept.bus.kept), list(kept.files.objects)) == ([number], ["t/a.parquet"])
    assert kept.bus.entries == []


@pytest.mark.parametrize("content", [b"", b"PAR1 no file PAR1", b"x" * 3_000])
async def test_a_staged_file_that_cannot_be_read_stays_with_the_reason(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    number = await kept.file_letter("t/a.parquet")
    kept.files.objects["t/a.parquet"] = content
    monkeypatch.setattr(kept.inlet, "limits", IngestLimits(body_bytes=1_000))

    assert await code_of(kept.service.replay(number)) == "SCHEMA_INCOMPATIBLE"

    assert list(kept.bus.kept) == [number]


async def test_a_replayed_file_that_cannot_be_removed_is_replayed_all_the_same(kept: Kept) -> None:
    number = await kept.file_letter("t/a.parquet")
    kept.files.put("t/a.parquet", [ROW])
    kept.files.stuck = True
    kept.bus.entries.clear()

    await kept.service.replay(number)

    assert (kept.rows(), kept.bus.kept) == ([ROW], {})


async def test_a_bus_that_does_not_answer_leaves_the_letter(kept: Kept) -> None:
    number = await kept.letter([ROW])
    kept.bus.failures.append("before")

    with pytest.raises(Unavailable):
        await kept.service.replay(number)

    assert number in kept.bus.kept


async def test_a_process_that_ends_takes_no_replay(kept: Kept) -> None:
    number = await kept.letter([ROW])
    await kept.inlet.drain()

    with pytest.raises(Limited):
        await kept.service.replay(number)


async def test_letters_are_paged_in_order(kept: Kept) -> None:
    numbers = [await kept.letter([ROW]) for _ in range(3)]

    first, after = await kept.service.page(0, limit=2, table=None)
    second, end = await kept.service.page(after or 0, limit=2, table=None)
    none, _ = await kept.service.page(0, limit=2, table="other")

    assert [letter.first for letter in [*first, *second]] == numbers
    assert (after, end, none) == (numbers[1], None, [])


async def test_the_letters_of_a_table_are_replayed_and_what_cannot_be_is_named(kept: Kept) -> None:
    good = [await kept.letter([ROW]), await kept.letter([OTHER])]
    old = make_table("events", {"name": "gone", "type": "BIGINT"})
    bad = await kept.letter([{"gone": 1}], old)
    elsewhere = await kept.letter([ROW], make_table("other"))
    more = await kept.letter([ROW])
    kept.bus.entries.clear()

    swept = await kept.service.replay_all("events", after=0, upto=None, limit=3)
    rest = await kept.service.replay_all(
        "events", after=swept.next_after or 0, upto=swept.upto, limit=3
    )

    assert swept.replayed is not None
    assert (swept.replayed.letters, swept.next_after) == (2, bad)
    assert [(f.number, f.error.code) for f in swept.failures] == [(bad, "SCHEMA_INCOMPATIBLE")]
    assert rest.replayed is not None
    assert (rest.replayed.letters, rest.failures, rest.next_after) == (1, [], None)
    assert sorted(kept.bus.kept) == [bad, elsewhere]
    assert good[0] < more
    assert kept.rows() == [ROW, OTHER, ROW]


async def test_what_is_refused_again_meanwhile_is_not_replayed_for_ever(kept: Kept) -> None:
    await kept.letter([ROW])
    first = await kept.service.replay_all("events", after=0, upto=None, limit=10)
    assert first.replayed is not None
    number = first.replayed.first
    kept.bus.set_aside(number - 1, number, None, "still no")

    again = await kept.service.refused_again(first.replayed, limit=10)
    second = await kept.service.replay_all("events", after=0, upto=first.upto, limit=10)

    assert [(letter.first, letter.error) for letter in again] == [(number, "still no")]
    swept, other = replace(first.replayed, last=number + 10), make_table("other")
    elsewhere = await kept.letter([ROW], other)
    assert number < elsewhere < swept.last
    assert await kept.service.refused_again(swept, limit=10, table="events") == again
    assert (second.replayed, second.failures, second.next_after) == (None, [], None)


async def test_a_failure_that_concerns_all_ends_a_sweep(kept: Kept) -> None:
    numbers = [await kept.letter([ROW]) for _ in range(3)]
    kept.bus.failures += ["before"]

    swept = await kept.service.replay_all("events", after=0, upto=None, limit=10)

    assert swept.replayed is None
    assert [(f.number, f.error.code) for f in swept.failures] == [
        (numbers[0], "CATALOG_UNAVAILABLE")
    ]
    assert swept.next_after == 0
    assert len(kept.bus.kept) == 3


async def test_the_letters_of_a_table_are_dropped(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_BYTES", 1)  # a letter a page
    numbers = [await kept.letter([ROW]) for _ in range(3)]
    elsewhere = await kept.letter([ROW], make_table("other"))
    before = settled("dropped")

    first = await kept.service.drop_all("events", after=0, limit=2)
    second = await kept.service.drop_all("events", after=0, limit=2)

    assert (first, second) == ((2, numbers[1]), (1, None))
    assert list(kept.bus.kept) == [elsewhere]
    assert settled("dropped") == before + 3


async def test_a_letter_that_is_not_there_cannot_be_dropped_or_found(kept: Kept) -> None:
    for call in (kept.service.drop(7), kept.service.find(7)):
        assert await code_of(call) == "DEAD_LETTER_NOT_FOUND"


async def test_lag_tells_how_many_are_kept_and_the_gauge_follows(kept: Kept) -> None:
    number = await kept.letter([ROW])
    assert (await lag_report(kept.bus, "lake_test")).dead_letters == 1

    await kept.service.drop(number)

    async with asyncio.timeout(10):
        while metrics.REGISTRY.get_sample_value("duckmesh_dead_letters_kept") != 0:
            await asyncio.sleep(0.01)


async def code_of(call: Any) -> str:
    with pytest.raises(DuckmeshError) as caught:
        await call
    return caught.value.code
