"""The plan of an append transaction agrees with the simple in-memory bus on any sequence of groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.adapters.append_plan import (
    ENTRY_BYTES,
    ENTRY_ROWS,
    Known,
    PlannedEntry,
    moved,
    plan_append,
)
from duckmesh_runtime.ports import Append, DeadLetter, EntryKind, Head, KeyHash, Part
from tests.fakes.bus import FakeBus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LETTERS = (-1, -2)
LETTER = DeadLetter(
    first=1,
    last=1,
    kind=EntryKind.ROWS,
    table="t",
    payload=b"",
    error="",
    accepted_at=NOW,
    set_aside_at=NOW,
)
KEYS = st.none() | st.builds(
    KeyHash,
    key=st.sampled_from([b"a", b"b", b"c"]),
    content=st.sampled_from([b"1", b"2"]),
    request=st.booleans(),
)
ROWS = st.lists(KEYS, min_size=1, max_size=4).flatmap(
    lambda keys: st.builds(
        Append,
        kind=st.just(EntryKind.ROWS),
        table=st.sampled_from("tu"),
        parts=st.just([Part(rows=1, payload=b"p")] * len(keys)),
        header=st.just(b"h"),
        schema_version=st.integers(0, 2),
        keys=st.just(keys),
        replays=st.none() | st.sampled_from(LETTERS),
    )
)
FILES = st.builds(
    Append,
    kind=st.just(EntryKind.FILE),
    table=st.sampled_from("tu"),
    parts=st.just([Part(rows=7, payload=b'{"path":"f","rows":7,"size":100000000}')]),
    schema_version=st.integers(0, 2),
    keys=st.lists(KEYS, max_size=1),
)
TABLE = b'{"name":"t","columns":[{"name":"id","type":"BIGINT"}]}'
PAYLOADS = {
    EntryKind.CREATE_TABLE: TABLE,
    EntryKind.ALTER_TABLE: b'{"table":%b,"changes":[]}' % TABLE,
    EntryKind.DROP_TABLE: b"",
}
CHANGES = st.sampled_from(list(PAYLOADS)).flatmap(
    lambda kind: st.builds(
        Append,
        kind=st.just(kind),
        table=st.just("t"),
        parts=st.just([Part(rows=1, payload=PAYLOADS[kind])]),
        schema_version=st.integers(0, 2),
    )
)


@settings(max_examples=300, deadline=None)
@given(groups=st.lists(st.lists(ROWS | FILES | CHANGES, max_size=4), max_size=5))
def test_receipts_and_numbers_agree(groups: Sequence[Sequence[Append]]) -> None:
    asyncio.run(agree(groups))


async def agree(groups: Sequence[Sequence[Append]]) -> None:
    fake = FakeBus()
    fake.kept = dict.fromkeys(LETTERS, LETTER)
    letters = set(LETTERS)
    head = await fake.head()
    known: Known = {}
    entries: list[PlannedEntry] = []
    for group in groups:
        plan = plan_append(group, head, known, letters)
        letters -= set(plan.replayed)
        entries += plan.entries
        receipts = await fake.append(group)

        assert [(r.result, r.last, list(r.known), list(r.conflicts)) for r in plan.receipts] == [
            (r.result, r.last, list(r.known), list(r.conflicts)) for r in receipts
        ]
        head = await fake.head()
        assert (plan.last, plan.schema_version) == (head.last, head.schema_version)
        assert letters == set(fake.kept)

    covered = [n for entry in entries for n in range(entry.first, entry.last + 1)]
    assert covered == list(range(1, head.last + 1))
    by_number = {n: e for e in fake.entries for n in range(e.first, e.last + 1)}
    for entry in entries:
        singles = [by_number[n] for n in range(entry.first, entry.last + 1)]
        assert {(e.kind, e.table, e.schema_version) for e in singles} == {
            (entry.kind, entry.table, entry.schema_version)
        }


def rows(*sizes: tuple[int, int], table: str = "t") -> Append:
    return Append(
        kind=EntryKind.ROWS,
        table=table,
        parts=[Part(rows=count, payload=bytes(size)) for count, size in sizes],
        header=b"h",
        schema_version=0,
    )


def spans(*group: Append) -> list[tuple[int, int]]:
    plan = plan_append(group, Head(last=0, schema_version=0, timeline=1), {})
    return [(entry.first, entry.last) for entry in plan.entries]


def test_neighbours_of_one_table_share_an_entry() -> None:
    assert spans(rows((1, 9)), rows((2, 9), (3, 9)), rows((1, 9), table="u"), rows((1, 9))) == [
        (1, 6),
        (7, 7),
        (8, 8),
    ]


@given(group=st.lists(ROWS | FILES, min_size=1, max_size=4), last=st.integers(0, 50))
def test_a_plan_made_for_an_empty_bus_moves_to_the_head(group: Sequence[Append], last: int) -> None:
    head = Head(last=last, schema_version=1, timeline=3)
    plan = plan_append(group, head, {}, LETTERS)
    guessed = plan_append(group, Head(last=0, schema_version=1, timeline=1), {}, LETTERS)

    receipts = [moved(r, last, timeline=3, accepted_at=NOW) for r in guessed.receipts]

    assert [replace(r, accepted_at=None) for r in receipts] == plan.receipts
    assert guessed.last + last == plan.last


def test_entries_are_bounded_by_rows_and_bytes_but_a_part_is_never_cut() -> None:
    many, large = (ENTRY_ROWS, 9), (1, ENTRY_BYTES + 1)

    assert spans(rows((1, 9), many, (1, 9))) == [
        (1, 1),
        (2, ENTRY_ROWS + 1),
        (ENTRY_ROWS + 2, ENTRY_ROWS + 2),
    ]
    assert spans(rows((1, 9), large, (1, 9))) == [(1, 1), (2, 2), (3, 3)]
