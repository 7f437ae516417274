from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.web.columnar import check_sayable
from duckmesh_runtime.web.render import (
    ArrowWriter,
    CsvWriter,
    NdjsonWriter,
    ParquetWriter,
    json_rows,
    unique_names,
)


def batch(array: pa.Array, name: str = "v") -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], names=[name])


def rendered(array: pa.Array, type_name: str = "ANY") -> list[Any]:
    return [row[0] for row in json.loads(b"[" + json_rows(batch(array), [type_name]) + b"]")]


UTC_US = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("array", "type_name", "want"),
    [
        pytest.param(pa.array([True, None]), "BOOLEAN", [True, None], id="boolean"),
        pytest.param(pa.array([1, -2], pa.int32()), "INTEGER", [1, -2], id="integer"),
        pytest.param(
            pa.array([2**53, -(2**53), 7, None]), "BIGINT", [2**53, -(2**53), 7, None], id="safe"
        ),
        pytest.param(
            pa.array([2**53 + 1, 7, None]), "BIGINT", ["9007199254740993", 7, None], id="unsafe"
        ),
        pytest.param(
            pa.array([2**64 - 1], pa.uint64()), "UBIGINT", ["18446744073709551615"], id="unsigned"
        ),
        pytest.param(
            pa.array([Decimal(5), Decimal(10**30)], pa.decimal128(38, 0)),
            "HUGEINT",
            [5, "1" + "0" * 30],
            id="huge integer",
        ),
        pytest.param(
            pa.array([Decimal("1.50"), None], pa.decimal128(18, 2)),
            "DECIMAL(18,2)",
            ["1.50", None],
            id="decimal",
        ),
        pytest.param(
            pa.array([1.5, float("nan"), float("inf"), float("-inf"), None]),
            "DOUBLE",
            [1.5, "NaN", "Infinity", "-Infinity", None],
            id="double",
        ),
        pytest.param(
            pa.array(
                [datetime(2024, 2, 29, 1, 2, 3, 450000, tzinfo=UTC), None], pa.timestamp("us")
            ),
            "TIMESTAMP",
            ["2024-02-29T01:02:03.45Z", None],
            id="timestamp",
        ),
        pytest.param(
            pa.array([datetime(2024, 2, 29, 10, 0, 0, tzinfo=UTC)], UTC_US),
            "TIMESTAMP WITH TIME ZONE",
            ["2024-02-29T10:00:00Z"],
            id="timestamp with zone",
        ),
        pytest.param(
            pa.array([0, 1], pa.timestamp("ns")),
            "TIMESTAMP_NS",
            ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000001Z"],
            id="nanoseconds",
        ),
        pytest.param(
            pa.array([10], pa.timestamp("s")), "TIMESTAMP_S", ["1970-01-01T00:00:10Z"], id="seconds"
        ),
        pytest.param(
            pa.array([0], pa.timestamp("us", "Europe/Berlin")),
            "TIMESTAMP WITH TIME ZONE",
            ["1970-01-01T00:00:00Z"],
            id="another zone is shown in UTC",
        ),
        pytest.param(
            pa.array([2**63 - 1, -(2**63) + 1], pa.int64()).cast(pa.timestamp("us")),
            "TIMESTAMP",
            ["infinity", "-infinity"],
            id="infinite timestamps",
        ),
        pytest.param(
            pa.array([2**63 - 1, -(2**63) + 1, 5 * 10**9], pa.int64()).cast(pa.timestamp("ns")),
            "TIMESTAMP_NS",
            ["infinity", "-infinity", "1970-01-01T00:00:05Z"],
            id="infinite nanoseconds",
        ),
        pytest.param(
            pa.array([1700000000, None, 0], pa.timestamp("s")),
            "TIMESTAMP_S",
            ["2023-11-14T22:13:20Z", None, "1970-01-01T00:00:00Z"],
            id="seconds keep their zeros",
        ),
        pytest.param(pa.array([date(2024, 1, 31)]), "DATE", ["2024-01-31"], id="date"),
        pytest.param(
            pa.array([2**31 - 1, -(2**31) + 1, None], pa.date32()),
            "DATE",
            ["infinity", "-infinity", None],
            id="infinite dates",
        ),
        pytest.param(
            pa.array([time(1, 2, 3, 4)], pa.time64("us")), "TIME", ["01:02:03.000004"], id="time"
        ),
        pytest.param(
            pa.array([86_400_000_000, 500_000], pa.int64()).cast(pa.time64("us")),
            "TIME",
            ["24:00:00", "00:00:00.5"],
            id="end of the day",
        ),
        pytest.param(
            pa.array([3_723_123_456_789], pa.int64()).cast(pa.time64("ns")),
            "TIME_NS",
            ["01:02:03.123456789"],
            id="time in nanoseconds",
        ),
        pytest.param(pa.array([b"\x00\xff"]), "BLOB", ["AP8="], id="blob"),
        pytest.param(
            pa.array([b"\x07\xff\xff", b"\x00\x0a", None]),
            "BIT",
            ["111111111", "00001010", None],
            id="bit",
        ),
        pytest.param(pa.array([0.1, None], pa.float32()), "FLOAT", [0.1, None], id="float"),
        pytest.param(
            pa.array([Decimal(-1), Decimal(5)], pa.decimal128(38, 0)),
            "UHUGEINT",
            [str(2**128 - 1), 5],
            id="unsigned huge integer",
        ),
        pytest.param(
            pa.array([[Decimal(5), None], None], pa.list_(pa.decimal128(38, 0))),
            "HUGEINT[]",
            [[5, None], None],
            id="huge integers in a list",
        ),
        pytest.param(
            pa.array([[b"\x06\xfe"], None], pa.list_(pa.binary(), 1)),
            "BIT[1]",
            [["10"], None],
            id="array",
        ),
        pytest.param(
            pa.StructArray.from_arrays([pa.array([1]), pa.array(["x"])], names=["", ""]),
            "STRUCT(INTEGER, VARCHAR)",
            [[1, "x"]],
            id="struct without names",
        ),
        pytest.param(
            pa.UnionArray.from_sparse(
                pa.array([0, 1, 1], pa.int8()),
                [pa.array([1, 2, None]), pa.array(["a", "b", None])],
                ["n", "word"],
            ).slice(1),
            "UNION(n BIGINT, word VARCHAR)",
            [{"word": "b"}, None],
            id="union",
        ),
        pytest.param(
            pa.array(
                [None, {"m": [("k", [1])]}],
                pa.struct({"m": pa.map_(pa.string(), pa.list_(pa.int64()))}),
            ),
            "STRUCT(m MAP(VARCHAR, BIGINT[]))",
            [None, {"m": {"k": [1]}}],
            id="map in a struct",
        ),
        pytest.param(
            pa.array(["a", "b", "a"]).dictionary_encode(), "ENUM", ["a", "b", "a"], id="enum"
        ),
        pytest.param(
            pa.array([pa.MonthDayNano([14, 3, 4_500_000_000])]),
            "INTERVAL",
            ["P14M3DT4.5S"],
            id="interval",
        ),
        pytest.param(
            pa.array([timedelta(seconds=90)], pa.duration("us")), "ANY", ["PT90S"], id="duration"
        ),
        pytest.param(
            pa.array([[2**60, None], None], pa.list_(pa.int64())),
            "BIGINT[]",
            [["1152921504606846976", None], None],
            id="list",
        ),
        pytest.param(
            pa.array([{"a": 1, "t": datetime(2024, 1, 1, tzinfo=UTC)}, None]),
            "STRUCT(a BIGINT, t TIMESTAMP)",
            [{"a": 1, "t": "2024-01-01T00:00:00Z"}, None],
            id="struct",
        ),
        pytest.param(
            pa.array([[("k", Decimal("1.5"))]], pa.map_(pa.string(), pa.decimal128(4, 1))),
            "MAP(VARCHAR, DECIMAL(4,1))",
            [{"k": "1.5"}],
            id="map with text keys",
        ),
        pytest.param(
            pa.array([[(1, "x")]], pa.map_(pa.int64(), pa.string())),
            "MAP(BIGINT, VARCHAR)",
            [[[1, "x"]]],
            id="map with other keys",
        ),
        pytest.param(pa.nulls(2), '"NULL"', [None, None], id="null"),
    ],
)
def test_values_become_json(array: pa.Array, type_name: str, want: list[Any]) -> None:
    assert rendered(array, type_name) == want


def test_no_rows_are_no_bytes() -> None:
    assert json_rows(batch(pa.array([], pa.int64())), ["BIGINT"]) == b""


def test_repeated_names_get_numbers_that_nobody_else_has() -> None:
    assert unique_names(["a", "a", "a_1", "b", "a"]) == ["a", "a_2", "a_1", "b", "a_3"]


def test_ndjson_is_one_object_a_row() -> None:
    two = pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array(["x", None])], names=["n", "n"])
    writer = NdjsonWriter(two.schema, ["BIGINT", "VARCHAR"])

    lines = (writer.start() + writer.batch(two) + writer.end()).decode().splitlines()

    assert [json.loads(line) for line in lines] == [{"n": 1, "n_1": "x"}, {"n": 2, "n_1": None}]


def test_csv_quotes_and_keeps_empty_text_apart_from_null() -> None:
    columns = {
        "id": pa.array([2**60, 2, 3]),
        "say": pa.array(['a "b", c', "", None]),
        "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC), None, None], pa.timestamp("us")),
        "tags": pa.array([["x"], None, []], pa.list_(pa.string())),
        "price": pa.array([Decimal("1.50"), None, None], pa.decimal128(18, 2)),
    }
    rows = pa.RecordBatch.from_pydict(columns)
    writer = CsvWriter(
        rows.schema, ["BIGINT", "VARCHAR", "TIMESTAMP", "VARCHAR[]", "DECIMAL(18,2)"]
    )

    text = (writer.start() + writer.batch(rows) + writer.end()).decode()

    assert text.splitlines() == [
        '"id","say","at","tags","price"',
        f'{2**60},"a ""b"", c","2024-01-01T00:00:00Z","[""x""]","1.50"',
        '2,"",,,',
        '3,,,"[]",',
    ]


def test_arrow_bytes_are_a_stream_as_soon_as_they_come() -> None:
    first, second = batch(pa.array([1])), batch(pa.array([2, 3]))
    writer = ArrowWriter(first.schema, ["BIGINT"])
    parts = [writer.start(), writer.batch(first), writer.batch(second), writer.end()]

    assert all(parts[1:])
    with pa.ipc.open_stream(io.BytesIO(b"".join(parts))) as reader:
        assert reader.read_all().column(0).to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "type_name"),
    [
        pytest.param(pa.array([105_200_797], pa.date32()), "DATE", id="date past 9999"),
        pytest.param(
            pa.array([9_089_344_512_000_000_000], pa.timestamp("us")), "TIMESTAMP", id="year 290000"
        ),
        pytest.param(
            pa.array([[9_089_344_512_000_000_000]], pa.list_(pa.timestamp("us"))),
            "TIMESTAMP[]",
            id="nested",
        ),
    ],
)
def test_what_a_format_cannot_say_is_the_statements_error(values: pa.Array, type_name: str) -> None:
    batch = pa.record_batch([values], names=["a"])

    for write in (
        lambda: json_rows(batch, [type_name]),
        lambda: NdjsonWriter(batch.schema, [type_name]).batch(batch),
        lambda: CsvWriter(batch.schema, [type_name]).batch(batch),
    ):
        with pytest.raises(Invalid, match="VARCHAR") as caught:
            write()
        assert caught.value.code == "SQL_ERROR"


def test_not_finite_numbers_are_words_in_csv() -> None:
    rows = batch(pa.array([float("nan"), float("-inf"), 1.5, None]))

    assert CsvWriter(rows.schema, ["DOUBLE"]).batch(rows) == b'"NaN"\n"-Infinity"\n"1.5"\n\n'


def parquet(*batches: pa.RecordBatch, type_names: list[str]) -> pq.ParquetFile:
    writer = ParquetWriter(batches[0].schema, type_names)
    parts = [writer.start(), *(writer.batch(each) for each in batches), writer.end()]
    return pq.ParquetFile(io.BytesIO(b"".join(parts)))


def test_parquet_comes_in_row_groups_of_bounded_size() -> None:
    rows = batch(pa.array(range(16_384)))
    writer = ParquetWriter(rows.schema, ["BIGINT"])

    assert writer.start() == b"PAR1"
    sizes = [len(writer.batch(rows)) for _ in range(10)]
    file = parquet(*[rows] * 10, type_names=["BIGINT"])

    assert [size > 0 for size in sizes] == [False] * 7 + [True] + [False] * 2
    assert writer.end()
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [131_072, 32_768]
    assert file.read().num_rows == 163_840


def test_wide_rows_fill_a_row_group_by_their_size() -> None:
    rows = batch(pa.array(["x" * 1000] * 9_000))
    writer = ParquetWriter(rows.schema, ["VARCHAR"])

    assert [len(writer.batch(rows)) > 0 for _ in range(4)] == [False, True, False, True]


def test_no_rows_are_a_parquet_file_all_the_same() -> None:
    nothing = batch(pa.array([], pa.int64()))
    writer = ParquetWriter(nothing.schema, ["BIGINT"])

    file = pq.ParquetFile(io.BytesIO(writer.start() + writer.end()))

    assert (file.schema_arrow.names, file.metadata.num_rows) == (["v"], 0)


def test_columnar_answers_have_bits_as_digits_and_parquet_intervals_as_text() -> None:
    columns = [pa.array([b"\x07\x81", None]), pa.array([pa.MonthDayNano([1, 2, 3 * 10**9]), None])]
    rows = pa.RecordBatch.from_arrays(columns, names=["v", "v"])
    types = ["BIT", "INTERVAL"]
    writer = ArrowWriter(rows.schema, types)

    with pa.ipc.open_stream(writer.start() + writer.batch(rows) + writer.end()) as reader:
        arrow = reader.read_all()
    file = parquet(rows, type_names=types).read()

    assert [column.to_pylist() for column in arrow.columns] == [["1", None], columns[1].to_pylist()]
    assert file.to_pydict() == {"v": ["1", None], "v_1": ["P1M2DT3S", None]}


@pytest.mark.parametrize(
    ("values", "type_name"),
    [
        pytest.param(
            pa.array([Decimal(2**127 - 1)], pa.decimal256(76, 0)), "HUGEINT", id="39 digits"
        ),
        pytest.param(
            pa.array([Decimal(-1)], pa.decimal128(38, 0)), "UHUGEINT", id="more than 127 bits"
        ),
        pytest.param(
            pa.array(
                [[("k", {"a": Decimal(-1)})]],
                pa.map_(pa.string(), pa.struct({"a": pa.decimal128(38, 0)})),
            ),
            "MAP(VARCHAR, STRUCT(a UHUGEINT))",
            id="nested",
        ),
        pytest.param(
            pa.array([[86_400_000_000]], pa.list_(pa.int64())).cast(pa.list_(pa.time64("us"))),
            "TIME[]",
            id="24:00:00",
        ),
    ],
)
@pytest.mark.parametrize("make", [ArrowWriter, ParquetWriter])
def test_a_value_that_arrow_cannot_say_is_the_statements_error(
    values: pa.Array, type_name: str, make: Any
) -> None:
    rows = batch(values)

    with pytest.raises(Invalid, match="cast it to VARCHAR") as caught:
        make(rows.schema, [type_name]).batch(rows)

    assert caught.value.code == "SQL_ERROR"


@pytest.mark.parametrize(
    ("make", "type_name"),
    [
        (ArrowWriter, "BIT[]"),
        (ParquetWriter, "STRUCT(a BIT)"),
        (ParquetWriter, "INTERVAL[]"),
        (ParquetWriter, "UNION(a INTEGER, b VARCHAR)"),
    ],
)
def test_a_type_that_a_format_lacks_is_refused_before_any_byte(make: Any, type_name: str) -> None:
    schema = batch(pa.array([1])).schema

    with pytest.raises(Invalid, match=r"column 'v'.*cast it to VARCHAR"):
        make(schema, [type_name])


@pytest.mark.parametrize("type_name", ["TIME WITH TIME ZONE", "STRUCT(a BIGNUM[])"])
def test_a_type_that_no_format_keeps_is_refused(type_name: str) -> None:
    with pytest.raises(Invalid, match="cast it to VARCHAR") as caught:
        check_sayable(batch(pa.array([1])).schema, [type_name])

    assert caught.value.code == "SQL_ERROR"
