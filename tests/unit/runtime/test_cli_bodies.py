"""A file's bodies together hold its rows, each body whole rows, and the same file makes the same bodies."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duckmesh_runtime.cli import bodies as cut
from duckmesh_runtime.cli.bodies import ARROW, PARQUET, Body
from duckmesh_runtime.cli.files import BadFile, open_file

CELLS = st.text(st.sampled_from('ab",\n\r é'), max_size=12)


def bodies(
    path: Path, schema: pa.Schema | None = None, nulls: tuple[str, ...] = ("",)
) -> list[Body]:
    return list(cut.bodies(open_file(path, None, nulls), schema))


def read(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode(), newline=""), strict=True))


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=30),
    size=st.integers(1, 60),
    end=st.sampled_from(["\n", "\r\n"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_csv_is_cut_between_records_and_keeps_its_header(
    tmp_path: Path, rows: list[tuple[str, str]], size: int, end: str
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("x", "y\n"), *rows])
    path = tmp_path / "t.csv"
    path.write_bytes(out.getvalue().encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "BODY_BYTES", size)
        found = bodies(path)

    tables = [read(body.content) for body in found]
    assert all(table[0] == ["x", "y\n"] for table in tables)
    assert [tuple(row) for table in tables for row in table[1:]] == rows


@pytest.mark.parametrize("size", [1, 5, 20, 1000])
@pytest.mark.parametrize("last", [b"", b"\n"], ids=["no line end", "line end"])
def test_ndjson_is_cut_between_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, last: bytes
) -> None:
    monkeypatch.setattr(cut, "BODY_BYTES", size)
    text = b"\n".join(b'{"id":%d}' % (10**i) for i in range(9)) + last
    plain, packed = tmp_path / "t.ndjson", tmp_path / "t.ndjson.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))

    for path in (plain, packed):
        found = [body.content for body in bodies(path)]

        assert b"".join(found) == text
        assert all(body.rstrip(b"\n").endswith(b"}") and body.startswith(b"{") for body in found)


@pytest.mark.parametrize("text", [b"", b"id\n", b"id"])
def test_a_csv_file_without_rows_makes_no_body(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text)

    assert bodies(path) == []


def test_a_small_parquet_file_of_the_tables_types_goes_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": pa.array([1, 2])}), path)
    schema = pa.schema([("id", pa.int64()), ("more", pa.string())])

    (body,) = bodies(path, schema)
    (cast,) = bodies(path, pa.schema([("id", pa.int32())]))

    assert (body.content_type, body.content, body.rows) == (PARQUET, path.read_bytes(), 2)
    assert (cast.content_type, cast.rows) == (ARROW, 2)


def test_a_large_parquet_file_goes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "BODY_BYTES", 100)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": range(1000)}), path)

    (body,) = bodies(path, pa.schema([("id", pa.int64())]))

    assert (body.content_type, body.rows) == (ARROW, 1000)


def test_csv_with_other_nulls_is_read_here(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id\nNA\n1\n")

    (body,) = bodies(path, pa.schema([("id", pa.int64())]), nulls=("NA",))

    with pa.ipc.open_stream(body.content) as reader:
        assert reader.read_all().to_pydict() == {"id": [None, 1]}
    with pytest.raises(BadFile, match="definition"):
        bodies(path, None, nulls=("NA",))


def test_a_broken_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson.gz"
    path.write_bytes(gzip.compress(b'{"id":1}\n')[:-6])

    with pytest.raises(BadFile, match=r"t\.ndjson\.gz"):
        bodies(path)
