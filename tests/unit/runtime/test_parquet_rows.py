"""Parquet bodies: rows like those of Arrow, and no file unfolds to more than it may."""

from __future__ import annotations

import contextlib
import io
import resource
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain.decode import BulkFormat, Decoded, decode_bulk, op_for
from duckmesh_runtime.domain.parquet_pages import BrokenFile, column_chunks, pages
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import DuckmeshError
from tests.fuzz import examples

LIMIT = 2**26


def table(key: tuple[str, ...] = (), **columns: str | dict[str, Any]) -> TableDef:
    made = [
        {"name": name, **({"type": how} if isinstance(how, str) else how)}
        for name, how in columns.items()
    ]
    return parse_table({"name": "t", "columns": made, "primary_key": list(key)})


def file(rows: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, **options)
    return sink.getvalue()


def decode(into: TableDef, body: bytes, op: str | None = None, limit: int = LIMIT) -> Decoded:
    found = decode_bulk(into, BulkFormat.PARQUET, body, op_for(into, op), max_bytes=limit)
    for batch in found.batches:
        batch.validate(full=True)
    return found


def rows(found: Decoded) -> list[dict[str, Any]]:
    return [row for batch in found.batches for row in batch.to_pylist()]


def refusal(into: TableDef, body: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(DuckmeshError) as caught:
        decode(into, body, limit=limit)
    return f"{caught.value.code} {caught.value.message}"


N = 60
WIDE = table(
    a="BIGINT", b="VARCHAR", u="UUID", l="VARCHAR[]", s="STRUCT(q BIGINT)", m="MAP(VARCHAR, VARCHAR)", d="DECIMAL(10,2)",
    t="BOOLEAN", z="TIMESTAMPTZ",
)  # fmt: skip
ROWS = pa.table(
    {
        "a": list(range(N)),
        "b": [f"x{i % 9}" for i in range(N)],
        "u": [str(uuid.UUID(int=i)) for i in range(N)],
        "l": [["a", None], [], None] * (N // 3),
        "s": [{"q": i} for i in range(N)],
        "m": pa.array([[("k", "v")], [], None] * (N // 3), pa.map_(pa.string(), pa.string())),
        "d": [Decimal("1.50")] * N,
        "t": [True, False, None] * (N // 3),
        "z": pa.array([0] * N, pa.timestamp("us", "UTC")),
    }
)
WAYS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd", "row_group_size": 7},
    {"compression": "none", "use_dictionary": False},
    {"compression": "gzip", "data_page_version": "2.0", "store_schema": False},
    {"compression": "brotli", "data_page_size": 20, "write_statistics": False},
    {"compression": "lz4", "dictionary_pagesize_limit": 20, "write_page_index": True},
    {
        "compression": "none",
        "use_dictionary": False,
        "column_encoding": {"a": "DELTA_BINARY_PACKED", "b": "DELTA_LENGTH_BYTE_ARRAY"},
    },
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rows_come_back_however_they_are_written(way: dict[str, Any]) -> None:
    found = decode(WIDE, file(ROWS, **way))

    assert rows(found) == ROWS.to_pylist()
    assert not found.rejected


def test_a_bad_row_is_refused_alone() -> None:
    into = table(a={"type": "UTINYINT", "nullable": False}, b="VARCHAR")
    body = file(pa.table({"a": [1, 300, None, 4], "b": ["x", "y", "z", "\0"]}), row_group_size=2)

    found = decode(into, body)

    assert rows(found) == [{"a": 1, "b": "x"}]
    assert [(each.index, each.message[:8]) for each in found.rejected] == [
        (1, "a: want "),
        (2, "a: is mi"),
        (3, "b: want "),
    ]


def test_uuids_of_sixteen_bytes_are_taken() -> None:
    ids = [uuid.UUID(int=7), None]
    found = decode(
        table(x="UUID"),
        file(pa.table({"x": pa.array([i and i.bytes for i in ids], pa.binary(16))})),
    )

    assert rows(found) == [{"x": str(ids[0])}, {"x": None}]


def test_a_delete_reads_its_key_only() -> None:
    into = table(("a",), a="BIGINT", b="BIGINT")

    found = decode(into, file(pa.table({"b": ["junk"], "a": [1]})), "delete")

    assert rows(found) == [{"a": 1, "b": None, "duckmesh:deleted": True}]


def test_columns_must_be_the_tables() -> None:
    into = table(x={"type": "BIGINT", "nullable": False})

    assert refusal(into, file(pa.table({"x": ["1"]}))).startswith("SCHEMA_INCOMPATIBLE x: string")
    assert refusal(into, file(pa.table({"z": [1], "x": [1]}))).startswith("SCHEMA_INCOMPATIBLE z:")
    assert refusal(into, file(pa.table({"y": [1]}))).startswith("SCHEMA_INCOMPATIBLE y: no such")


FOLDED = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), ["x" * 2**20])


@pytest.mark.parametrize(
    ("type_name", "rows", "options"),
    [
        ("VARCHAR", pa.table({"x": FOLDED}), {}),
        (
            "VARCHAR[]",
            pa.table({"x": pa.ListArray.from_arrays(pa.array([0, 1_000_000], pa.int32()), FOLDED)}),
            {},
        ),
        ("VARCHAR", pa.table({"x": ["x" * 100_000_000]}), {"compression": "zstd"}),
        ("BLOB", pa.table({"x": pa.array([bytes(2**20)] * 100, pa.binary(2**20))}), {}),
        ("BIGINT[]", pa.table({"x": [[None] * 10_000_000]}), {}),
    ],
    ids=["dictionary", "dictionary in a list", "page", "fixed length", "nulls in a list"],
)
def test_a_bomb_is_refused_before_it_unfolds(
    type_name: str, rows: pa.Table, options: dict[str, Any]
) -> None:
    body = file(rows, **{"compression": "zstd", **options})
    assert len(body) < 2_000_000
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert refusal(table(x=type_name), body).startswith("PAYLOAD_TOO_LARGE")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


def test_values_written_as_differences_are_refused() -> None:
    body = file(
        pa.table({"x": ["a"]}), use_dictionary=False, column_encoding={"x": "DELTA_BYTE_ARRAY"}
    )

    assert "write the file with PLAIN or dictionary" in refusal(table(x="VARCHAR"), body)


@pytest.mark.parametrize(
    "body",
    [b"", b"PAR1", b"PAR1" + b"\0" * 8 + b"PAR1", file(ROWS)[:-1], file(ROWS)[:-9], file(ROWS)[9:]],
    ids=["empty", "magic", "no footer", "cut", "cut footer", "cut front"],
)
def test_what_is_no_file_is_refused(body: bytes) -> None:
    assert refusal(WIDE, body).startswith("VALIDATION_FAILED body: is not a complete Parquet file")


def test_a_file_without_rows_is_taken() -> None:
    found = decode(WIDE, file(ROWS.slice(0, 0)))

    assert rows(found) == []


def test_a_column_that_claims_to_end_early_breaks_the_file() -> None:
    body = file(pa.table({"x": range(300)}), write_statistics=False)
    count = b"\xd8\x04"  # 300 as a zigzag number of Thrift
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    # There it stands for the rows of the file, then for the values of the column.
    at = body.index(count, body.index(count, footer) + 1)

    broken = body[:at] + b"\x80\x00" + body[at + 2 :]

    assert "is not a complete Parquet file" in refusal(table(x="BIGINT"), broken)


def test_an_encrypted_file_is_refused_by_name() -> None:
    body = file(ROWS)

    assert refusal(WIDE, b"PARE" + body[4:-4] + b"PARE").startswith(
        "VALIDATION_FAILED body: is an encrypted Parquet file"
    )


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_a_damaged_file_gets_an_answer(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        cut = data.draw(st.integers(0, 4))
        body[at : at + cut] = data.draw(st.binary(max_size=4) | st.just(b"\xff\xff\xff\x7f"))

    with contextlib.suppress(DuckmeshError):
        decode(WIDE, bytes(body))


FILES = [file(ROWS, **way) for way in WAYS]


@given(st.binary(max_size=60))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_are_pages_or_broken(data: bytes) -> None:
    with contextlib.suppress(BrokenFile):
        list(pages(data, 0, len(data)))
    with contextlib.suppress(BrokenFile):
        list(column_chunks(b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1"))
