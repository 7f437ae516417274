from __future__ import annotations

import gzip
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.cli import files
from duckmesh_runtime.cli.files import (
    BadFile,
    fit,
    open_file,
    table_definition,
    table_name,
    type_name,
)
from duckmesh_runtime.domain.schema import arrow_schema, parse_table

ROWS = pa.table({"id": [1, 2, 3], "name": ["a", None, "c"]})


def write(folder: Path, kind: str, rows: pa.Table = ROWS) -> Path:
    path = folder / f"data.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, rows.schema) as writer:
            writer.write_table(rows)
    elif kind == "arrows":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
            writer.write_table(rows)
    elif kind == "ndjson":
        path.write_text('{"id":1,"name":"a"}\n{"id":2,"name":null}\n{"id":3,"name":"c"}\n')
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(b"id,name\n1,a\n2,\n3,c\n"))
    else:
        path.write_text("id,name\n1,a\n2,\n3,c\n")
    return path


def pieces(path: Path, schema: pa.Schema | None = None) -> list[pa.Table]:
    file = open_file(path, None, [""])
    return list(file.pieces(schema or file.schema()))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "ndjson", "parquet", "arrow", "arrows"])
def test_every_format_reads_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)

    (found,) = pieces(path)

    assert found.to_pydict() == ROWS.to_pydict()


def test_pieces_are_cut_by_rows_and_bytes_whatever_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_ROWS", 4)
    monkeypatch.setattr(files, "PIECE_BYTES", 2_000)
    wide = pa.table({"id": range(10), "name": ["x" * (1000 if i == 5 else 1) for i in range(10)]})
    one, many = tmp_path / "one.parquet", tmp_path / "many.parquet"
    pq.write_table(wide, one)
    pq.write_table(wide, many, row_group_size=3)

    first, second = pieces(one), pieces(many)

    assert [p.num_rows for p in first] == [4, 4, 2]
    assert [p.to_pydict() for p in first] == [p.to_pydict() for p in second]
    monkeypatch.setattr(files, "PIECE_BYTES", 500)
    assert sum(p.num_rows for p in pieces(one)) == 10
    assert max(p.num_rows for p in pieces(one)) < 4 or len(pieces(one)) > 3


def test_types_of_late_rows_count(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("v\n" + "1\n" * 200_000 + "1.5\n")

    assert open_file(path, None, [""]).schema().field("v").type == pa.float64()


def test_nulls_of_a_csv_are_what_the_caller_says(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text('v,s\nNA,NA\n3,"NA"\n')

    kept = open_file(path, None, [""])
    nulls = open_file(path, None, ["", "NA"])

    assert kept.schema().field("v").type == pa.string()
    assert next(nulls.pieces(nulls.schema())).to_pydict() == {"v": [None, 3], "s": [None, "NA"]}


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, two, other = (tmp_path / n for n in ("a.csv", "b.csv", "c.csv"))
    one.write_text("id\n1\n")
    two.write_text("id\n1\n")
    other.write_text("id\n2\n")

    prints = [open_file(p, None, [""]).fingerprint() for p in (one, two, other)]

    assert prints[0] == prints[1] != prints[2]


def test_a_table_made_of_a_file_takes_its_rows() -> None:
    rows = pa.table(
        {
            "b": pa.array([True]),
            "i": pa.array([1], pa.int8()),
            "u": pa.array([2**63], pa.uint64()),
            "f": pa.array([1.5], pa.float32()),
            "d": pa.array([Decimal("1.50")], pa.decimal128(10, 2)),
            "s": pa.array(["x"], pa.large_string()),
            "c": pa.array(["x"]).dictionary_encode(),
            "raw": pa.array([b"\x00"]),
            "day": pa.array([0], pa.date32()),
            "t": pa.array([0], pa.time32("s")),
            "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC)], pa.timestamp("ms", "UTC")),
            "naive": pa.array([0], pa.timestamp("s")),
            "list": pa.array([[1]]),
            "row": pa.array([{"a": 1, "b": ["x"]}]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(1),
        }
    )

    schema = arrow_schema(parse_table(table_definition("t", rows.schema)))

    assert fit(rows, schema).num_rows == 1


@pytest.mark.parametrize("kind", [pa.duration("us"), pa.month_day_nano_interval()])
def test_types_without_a_column_type_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(BadFile, match="'v'"):
        type_name(kind, "v")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("Flights 2013.csv.gz", "flights_2013"),
        ("2013.parquet", "t_2013"),
        ("a-b.c.csv", "a_b"),
        ("ü.csv", "t_"),
    ],
)
def test_a_file_name_becomes_a_table_name(name: str, table: str) -> None:
    assert table_name(Path(name)) == table


def test_missing_columns_are_null_and_unknown_ones_refused() -> None:
    schema = pa.schema([("id", pa.int64()), ("more", pa.string())])

    assert fit(pa.table({"id": [1]}), schema).to_pydict() == {"id": [1], "more": [None]}
    with pytest.raises(BadFile, match="'other'"):
        fit(pa.table({"other": [1]}), schema)


def test_values_that_do_not_fit_name_their_column() -> None:
    with pytest.raises(BadFile, match="'id'"):
        fit(pa.table({"id": [2**40]}), pa.schema([("id", pa.int32())]))


def test_times_without_offset_are_utc(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("at\n2024-01-01 12:00:00\n")
    schema = pa.schema([("at", pa.timestamp("us", "UTC"))])

    (found,) = pieces(path, schema)

    assert found.column("at").to_pylist() == [datetime(2024, 1, 1, 12, tzinfo=UTC)]
