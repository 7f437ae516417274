"""Rows of any kind as bodies: what is said for each value, where bodies end, and that they are the same each time."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from duckmesh import Invalid, bodies
from duckmesh.bodies import Piece, pieces


def table_of(piece: Piece) -> pa.Table:
    with pa.ipc.open_stream(piece.content) as reader:
        return reader.read_all()


def test_values_are_said_as_the_service_wants_them() -> None:
    row = {
        "decimal": Decimal("12345678901234567890.123"),
        "moment": datetime(2024, 1, 31, 12, 0, 0, 5, tzinfo=UTC),
        "nanoseconds": pd.Timestamp("2024-01-31T12:00:00.123456789Z"),
        "numpy time": np.datetime64("2024-01-31T12:00:00.123456789"),
        "day": date(2024, 1, 31),
        "time": time(12, 0, 0, 5),
        "bytes": b"\x00\xff",
        "uuid": UUID(int=5),
        "huge": 2**70,
        "number": np.int64(3),
        "numbers": np.array([1.5, 2.0]),
        "missing": [None, pd.NA, pd.NaT, np.datetime64("NaT")],
        "inner": {"a": [OrderedDict(b=Decimal("1.10"))]},
    }

    (piece,) = pieces([row], whole=False)

    assert piece.content.decode().splitlines() == [
        '{"decimal":12345678901234567890.123,"moment":"2024-01-31T12:00:00.000005Z",'
        '"nanoseconds":"2024-01-31T12:00:00.123456789+00:00",'
        '"numpy time":"2024-01-31T12:00:00.123456789","day":"2024-01-31","time":"12:00:00.000005",'
        '"bytes":"AP8=","uuid":"00000000-0000-0000-0000-000000000005","huge":1180591620717411303424,'
        '"number":3,"numbers":[1.5,2.0],"missing":[null,null,null,null],"inner":{"a":[{"b":1.10}]}}'
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"id": 1}, "want a list of dicts"),
        ("id", "want a list of dicts"),
        (7, "want a list of dicts"),
        ([(1, 2)], r"data\[0\]: want a dict"),
        ([{"id": 1}, {"x": float("nan")}], r"data\[1\]: x is not a finite number"),
        ([{"x": [{"y": float("inf")}]}], r"data\[0\]: x is not a finite number"),
        ([{"x": np.float64("nan")}], "not a finite number"),
        ([{"x": object()}], r"data\[0\]: a object cannot be sent"),
        (pl.LazyFrame({"id": [1]}), r"collect\(\) it first"),
        (pd.Series([1]), r"to_frame\(\) it"),
        (pd.DataFrame({"x": [1, "a"]}), "data: .*"),
    ],
    ids=range(11),
)
def test_what_cannot_be_sent_is_named_with_what_to_do(data: Any, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        list(pieces(data, whole=False))


def test_dicts_are_cut_by_rows_and_by_bytes_and_read_as_they_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "PIECE_ROWS", 3)
    monkeypatch.setattr(bodies, "PIECE_BYTES", 40)
    taken = []

    def rows() -> Any:
        for number in range(7):
            taken.append(number)
            yield {"id": number, "text": "x" * (30 if number == 5 else 0)}

    made = pieces(rows(), whole=False)
    first = next(made)
    read_for_the_first = len(taken)
    rest = list(made)

    assert read_for_the_first < 5
    assert [piece.rows for piece in [first, *rest]] == [2, 2, 1, 1, 1]
    lines = b"".join(piece.content for piece in [first, *rest]).splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(7))


def test_tables_are_cut_by_rows_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(bodies, "PIECE_ROWS", 30)
    monkeypatch.setattr(bodies, "PIECE_BYTES", 500)
    table = pa.table({"id": range(65), "text": ["x" * (600 if i == 33 else 1) for i in range(65)]})

    made = list(pieces(table, whole=False))

    assert pa.concat_tables(map(table_of, made)).equals(table.cast(table_of(made[0]).schema))
    assert all(piece.rows <= 30 for piece in made)
    assert len(made) > 3


def layouts(rows: int) -> list[pa.Table]:
    """The same rows, lying differently in memory: other batches, offsets, garbage below NULLs, dictionaries, views."""
    mask = np.arange(rows) % 3 == 1
    made = []
    for fill, step in ((7, 1000), (9, 37)):
        numbers = np.where(mask, fill, np.arange(rows))
        valid = np.packbits(
            np.concatenate([np.ones(5, bool), ~mask, np.ones(20, bool)]), bitorder="little"
        )
        column = pa.Array.from_buffers(
            pa.int64(),
            rows,
            [
                pa.py_buffer(valid.tobytes()),
                pa.py_buffer(
                    np.concatenate([np.full(5, fill), numbers, np.full(20, fill)]).tobytes()
                ),
            ],
            offset=5,
        )
        text = pa.array([None if m else str(i % 10) for i, m in enumerate(mask)])
        lists = pa.array([None if m else [i, None] for i, m in enumerate(mask)])
        whole = pa.table({"n": column, "t": text, "l": lists})
        parts = [whole.slice(at, step) for at in range(0, rows, step)]
        made.append(pa.concat_tables(parts))
    made.append(made[0].set_column(1, "t", made[0].column("t").dictionary_encode()))
    made.append(made[0].replace_schema_metadata({"pandas": "{}"}))
    return made


def test_the_same_rows_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(bodies, "PIECE_ROWS", 128)

    first, *others = [
        [piece.content for piece in pieces(table, whole=False)] for table in layouts(500)
    ]

    assert len(first) == 4
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    "data", [[], pa.table({"id": pa.array([], pa.int64())})], ids=["dicts", "table"]
)
def test_no_rows_are_one_body(data: Any) -> None:
    assert [piece.rows for piece in pieces(data, whole=False)] == [0]


def test_what_must_not_be_cut_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PIECE_ROWS", 2)
    monkeypatch.setattr(bodies, "WHOLE_BYTES", 100)
    rows = [{"id": i} for i in range(9)]

    assert [piece.rows for piece in pieces(rows, whole=True)] == [9]
    for data in (rows * 2, pa.table({"id": range(50)})):
        with pytest.raises(Invalid, match="atomic=True"):
            list(pieces(data, whole=True))


def test_frames_give_their_columns_named_indexes_and_missing_values() -> None:
    frame = pd.DataFrame({"n": [1.0, np.nan], "k": pd.Categorical(["a", "b"])})

    plain, named = (
        table_of(next(pieces(f, whole=False)))
        for f in (frame, frame.set_index(pd.Index([5, 6], name="id")))
    )

    assert plain.to_pylist() == [{"n": 1.0, "k": "a"}, {"n": None, "k": "b"}]
    assert named.column_names == ["id", "n", "k"]


def test_any_arrow_stream_is_taken() -> None:
    table = pa.table(
        {"u": pa.array([UUID(int=1).bytes], pa.uuid()), "v": pa.array(["x"], pa.string_view())}
    )
    sources = [
        table,
        table.to_reader(),
        table.to_batches()[0],
        pl.DataFrame({"u": [UUID(int=1).bytes], "v": ["x"]}),
    ]

    found = [table_of(next(pieces(source, whole=False))).to_pylist() for source in sources]

    assert found == [[{"u": UUID(int=1).bytes, "v": "x"}]] * 4
