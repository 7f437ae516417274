from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.domain.bus_rows import bus_schema
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.ports import Entry, EntryKind, StagedFile, TableFile, TableRows
from duckmesh_runtime.services.pieces import (
    Piece,
    beyond,
    halve,
    letter_of,
    parts_of,
    pieces_after,
    row_count,
    split,
)

COLUMNS = (ColumnDef(name="id", type="BIGINT", nullable=False),)
PLAIN = bus_schema(TableDef(name="t", columns=COLUMNS))
KEYED = bus_schema(TableDef(name="t", columns=COLUMNS, primary_key=("id",)))


def rows_of(first: int, last: int, *, schema: pa.Schema = PLAIN, table: str = "t") -> Entry:
    """An entry whose ids are its numbers."""
    numbers = list(range(first, last + 1))
    columns = [pa.array(numbers), pa.array([False] * len(numbers))]
    batch = pa.RecordBatch.from_arrays(columns[: len(schema)], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return entry(EntryKind.ROWS, first, last, bytes(sink.getvalue()), table)


def file_of(first: int, last: int) -> Entry:
    file = StagedFile(path="main/t/staged-1.parquet", rows=last - first + 1, size=9)
    return entry(EntryKind.FILE, first, last, msgspec.json.encode(file))


def entry(kind: EntryKind, first: int, last: int, payload: bytes, table: str = "t") -> Entry:
    return Entry(
        first=first,
        last=last,
        kind=kind,
        table=table,
        schema_version=1,
        payload=payload,
        accepted_at=datetime.now(UTC),
    )


def spans(pieces: object) -> list[tuple[int, int]]:
    return [(piece.first, piece.last) for piece in pieces]  # type: ignore[attr-defined]


def test_what_is_at_or_below_the_watermark_is_left_out() -> None:
    entries = [rows_of(1, 3), rows_of(4, 8), rows_of(9, 9)]

    assert spans(pieces_after(entries, 0)) == [(1, 3), (4, 8), (9, 9)]
    assert spans(pieces_after(entries, 5)) == [(6, 8), (9, 9)]
    assert spans(pieces_after(entries, 9)) == []


@pytest.mark.parametrize(
    ("most", "head", "tail"),
    [
        (100, [(1, 3), (4, 8)], []),
        (8, [(1, 3), (4, 8)], []),
        (5, [(1, 3), (4, 5)], [(6, 8)]),
        (3, [(1, 3)], [(4, 8)]),
        (1, [(1, 1)], [(2, 3), (4, 8)]),
    ],
)
def test_as_many_rows_as_fit_are_taken(
    most: int, head: list[tuple[int, int]], tail: list[tuple[int, int]]
) -> None:
    found = split(pieces_after([rows_of(1, 3), rows_of(4, 8)], 0), most)

    assert (spans(found[0]), spans(found[1])) == (head, tail)


def test_a_file_is_never_cut() -> None:
    pieces = pieces_after([rows_of(1, 1), file_of(2, 9), rows_of(10, 10)], 0)

    assert spans(split(pieces, 4)[0]) == [(1, 1)]
    assert spans(split(pieces[1:], 4)[0]) == [(2, 9)]
    assert halve(pieces[1:2]) is None


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 20))
def test_splitting_keeps_all_in_order_and_gets_on(sizes: list[int], most: int) -> None:
    entries, first = [], 1
    for size in sizes:
        entries.append(rows_of(first, first + size - 1))
        first += size
    rest = pieces_after(entries, 0)
    numbers: list[int] = []
    while rest:
        head, rest = split(rest, most)
        assert 1 <= row_count(head) <= most
        for piece in head:
            numbers.extend(range(piece.first, piece.last + 1))

    assert numbers == list(range(1, first))


def test_halves_of_a_lone_piece_are_of_its_rows() -> None:
    (piece,) = pieces_after([rows_of(1, 5)], 0)

    found = halve([piece])

    assert found is not None
    assert (spans(found[0]), spans(found[1])) == ([(1, 2)], [(3, 5)])
    assert halve([Piece(entry=piece.entry, first=4, last=4)]) is None


def test_parts_hold_exactly_the_rows_of_their_pieces() -> None:
    pieces = pieces_after([rows_of(1, 3), rows_of(4, 4, table="u"), rows_of(5, 7)], 2)

    parts = parts_of(pieces)

    found = [(part.table, part.rows.column("id").to_pylist()) for part in parts]  # type: ignore[union-attr]
    assert found == [("t", [3, 5, 6, 7]), ("u", [4])]


def test_rows_under_another_schema_are_a_part_of_their_own_in_order() -> None:
    """Equal columns are not enough: the metadata says by which key rows are upserted."""
    renamed = KEYED.with_metadata({b"duckmesh:key": b'["other"]'})
    entries = [
        rows_of(first, first, schema=schema)
        for first, schema in enumerate([KEYED, renamed, KEYED, KEYED], 1)
    ]

    parts = [part for part in parts_of(pieces_after(entries, 0)) if isinstance(part, TableRows)]

    assert [part.rows.column("id").to_pylist() for part in parts] == [[1], [2], [3, 4]]
    assert parts[1].rows.schema.metadata == renamed.metadata


def test_a_file_is_a_part_between_rows() -> None:
    parts = parts_of(pieces_after([rows_of(1, 1), file_of(2, 3), rows_of(4, 4)], 0))

    assert [type(part) for part in parts] == [TableRows, TableFile]
    assert parts[1].file.rows == 2  # type: ignore[union-attr]


def test_the_payload_of_a_piece_is_a_stream_of_its_rows_alone() -> None:
    (piece,) = pieces_after([rows_of(1, 100_000, schema=KEYED)], 99_999)

    found, payload = letter_of(piece)

    assert found is piece
    assert payload is not None
    assert len(payload) < 2000
    with pa.ipc.open_stream(payload) as reader:
        rows = reader.read_all()
    assert rows.column("id").to_pylist() == [100_000]
    assert rows.schema.equals(KEYED, check_metadata=True)


def test_a_whole_entry_keeps_its_own_payload() -> None:
    (piece,) = pieces_after([rows_of(1, 2)], 0)

    assert letter_of(piece) == (piece, None)


def test_of_an_entry_that_cannot_be_read_all_that_is_left_goes_with_all_it_holds() -> None:
    (whole,) = pieces_after([entry(EntryKind.ROWS, 1, 4, b"garbage")], 0)
    (start,), (middle,) = split([whole], 2)
    (middle,), _ = split([middle], 1)

    assert letter_of(start) == (whole, None)
    rest, payload = letter_of(middle)
    assert (rest.first, rest.last, payload) == (3, 4, b"garbage")


def test_beyond_the_watermark_lies_what_it_has_not_passed() -> None:
    pieces = pieces_after([rows_of(1, 2), rows_of(3, 4)], 0)

    assert [spans(beyond(pieces, token)) for token in (0, 2, 4)] == [
        [(1, 2), (3, 4)],
        [(3, 4)],
        [],
    ]
