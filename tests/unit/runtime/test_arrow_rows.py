"""Arrow bodies: columns by name, casts that keep values, and nothing hostile gets unfolded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain.decode import BulkFormat, Decoded, decode_bulk, op_for
from duckmesh_runtime.domain.schema import TableDef, arrow_schema, parse_table
from duckmesh_runtime.domain.sift import BLOCK_ROWS
from duckmesh_runtime.errors import DuckmeshError, Invalid
from tests.fuzz import examples

LIMIT = 2**26


def table(**columns: str | dict[str, Any]) -> TableDef:
    made = [
        {"name": name, **({"type": how} if isinstance(how, str) else how)}
        for name, how in columns.items()
    ]
    return parse_table({"name": "t", "columns": made})


def stream(rows: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(rows)
    return sink.getvalue()


def decode_all(into: TableDef, body: bytes, max_bytes: int = LIMIT) -> Decoded:
    return decode_bulk(into, BulkFormat.ARROW, body, op_for(into, None), max_bytes=max_bytes)


def decode(into: TableDef, rows: pa.Table | bytes, max_bytes: int = LIMIT) -> pa.Table:
    """The rows of a body of which each fits."""
    found = decode_all(into, rows if isinstance(rows, bytes) else stream(rows), max_bytes)
    for each in found.rejected:
        raise Invalid(each.code, f"row {each.index}: {each.message}")
    return pa.Table.from_batches(found.batches, schema=arrow_schema(into))


def refusal(into: TableDef, rows: pa.Table | bytes, max_bytes: int = LIMIT) -> str:
    with pytest.raises(DuckmeshError) as caught:
        decode(into, rows, max_bytes)
    return f"{caught.value.code} {caught.value.message}"


def test_columns_go_by_name_and_missing_ones_take_their_default() -> None:
    into = table(a="BIGINT", b={"type": "VARCHAR", "default": "none"}, c="DATE")

    found = decode(into, pa.table({"a": [1, 2]}))

    assert found.schema == arrow_schema(into)
    assert found.to_pydict() == {"a": [1, 2], "b": ["none", "none"], "c": [None, None]}


def test_a_large_body_comes_in_slices_and_keeps_its_order() -> None:
    rows = pa.table({"a": range(3 * BLOCK_ROWS + 1)})

    batches = decode_all(table(a="BIGINT"), stream(rows)).batches

    assert max(batch.num_rows for batch in batches) == BLOCK_ROWS
    assert pa.Table.from_batches(batches)["a"].to_pylist() == list(range(3 * BLOCK_ROWS + 1))


@pytest.mark.parametrize(
    ("type_name", "source", "wanted"),
    [
        pytest.param("BIGINT", pa.array([1], pa.int8()), [1], id="wider integer"),
        pytest.param("TINYINT", pa.array([1, None], pa.int64()), [1, None], id="narrower integer"),
        pytest.param("INTEGER", pa.array([1.0, None]), [1, None], id="integers with gaps"),
        pytest.param("DOUBLE", pa.array([1]), [1.0], id="integer to double"),
        pytest.param("DECIMAL(18,3)", pa.array([10**14]), [Decimal(10**14)], id="to decimal"),
        pytest.param(
            "DECIMAL(18,3)", pa.array([Decimal("1.50")]), [Decimal("1.500")], id="decimal"
        ),
        pytest.param("VARCHAR", pa.array(["a"], pa.large_string()), ["a"], id="large string"),
        pytest.param("VARCHAR", pa.array(["a"], pa.string_view()), ["a"], id="string view"),
        pytest.param("VARCHAR", pa.array(["a", "a"]).dictionary_encode(), ["a", "a"], id="dict"),
        pytest.param("BLOB", pa.array([b"a"], pa.large_binary()), [b"a"], id="large binary"),
        pytest.param("INTEGER", pa.nulls(2), [None, None], id="only nulls"),
        pytest.param("JSON", pa.array(['{"a":1}', None]), ['{"a":1}', None], id="document"),
        pytest.param("INTEGER[]", pa.array([[1], None]), [[1], None], id="list"),
        pytest.param(
            'STRUCT("a" INTEGER, "b" VARCHAR)',
            pa.array([{"b": "x", "a": 1}]),
            [{"a": 1, "b": "x"}],
            id="object in another order",
        ),
        pytest.param(
            "MAP(VARCHAR, INTEGER)",
            pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            [[("k", 1)]],
            id="map",
        ),
    ],
)
def test_a_fitting_column_is_cast(
    type_name: str, source: pa.Array, wanted: Sequence[object]
) -> None:
    assert decode(table(x=type_name), pa.table({"x": source}))["x"].to_pylist() == wanted


@pytest.mark.parametrize(
    ("type_name", "source"),
    [
        pytest.param("BIGINT", pa.array(["1"]), id="text to integer"),
        pytest.param("VARCHAR", pa.array([1]), id="integer to text"),
        pytest.param("BOOLEAN", pa.array([1]), id="integer to boolean"),
        pytest.param("TIMESTAMP", pa.array([1]), id="integer to timestamp"),
        pytest.param("DECIMAL(18,1)", pa.array([1.25]), id="double to decimal"),
        pytest.param("DATE", pa.array([1], pa.timestamp("us")), id="timestamp to date"),
        pytest.param("VARCHAR", pa.array([b"a"]), id="bytes to text"),
        pytest.param('STRUCT("a" INTEGER)', pa.array([{"a": 1, "b": 2}]), id="field too many"),
        pytest.param('STRUCT("a" INTEGER)', pa.array([{"b": 2}]), id="other field"),
        pytest.param("INTEGER[]", pa.array([["a"]]), id="list of text"),
        pytest.param("INTEGER", pa.RunEndEncodedArray.from_arrays([5], [1]), id="run-end encoding"),
    ],
)
def test_a_column_of_another_kind_is_incompatible(type_name: str, source: pa.Array) -> None:
    assert refusal(table(x=type_name), pa.table({"x": source})).startswith(
        "SCHEMA_INCOMPATIBLE x: "
    )


def maps(*values: Sequence[tuple[str, object]] | None) -> pa.Array:
    item = (
        pa.string()
        if any(isinstance(v, str) for each in values for _, v in each or ())
        else pa.int64()
    )
    return pa.array(list(values), pa.map_(pa.string(), item))


LEAST: Final = pa.array([-(2**63)], pa.int64()).view(pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("type_name", "source"),
    [
        pytest.param("TINYINT", pa.array([300]), id="overflow"),
        pytest.param("INTEGER", pa.array([1.5]), id="fraction"),
        pytest.param("INTEGER", pa.array([float("nan")]), id="not a number"),
        pytest.param("FLOAT", pa.array([1e300]), id="beyond float"),
        pytest.param("DECIMAL(18,3)", pa.array([10**16]), id="too many digits"),
        pytest.param("DECIMAL(18,1)", pa.array([Decimal("1.25")]), id="lost digits"),
        pytest.param("VARCHAR", pa.array(["a\0b"]), id="NUL"),
        pytest.param("VARCHAR[]", pa.array([["a\0b"]]), id="NUL in a list"),
        pytest.param("TIMESTAMP", pa.array([2**62], pa.timestamp("us")), id="year 150000"),
        pytest.param("TIMESTAMP", pa.array([1], pa.timestamp("ns")), id="lost nanosecond"),
        pytest.param("DATE", pa.array([10**7], pa.date32()), id="year 29000"),
        *(
            pytest.param("TIMESTAMP_NS", pa.array([edge], pa.timestamp("ns")), id=f"edge {edge}")
            for edge in (2**63 - 1, -(2**63) + 1)
        ),
        pytest.param("TIMESTAMP_NS", LEAST, id="least int64"),
        pytest.param("TIMESTAMP_NS[]", pa.ListArray.from_arrays([0, 1], LEAST), id="in a list"),
        pytest.param("MAP(VARCHAR, BIGINT)", maps([("a", 1), ("a", 2)]), id="key twice"),
        pytest.param(
            "MAP(VARCHAR, BIGINT)[]",
            pa.ListArray.from_arrays([0, 2], maps([("a", 1)], [("a", 1), ("a", 1)])),
            id="key twice in a list",
        ),
        pytest.param("UUID", pa.array(["zz"]), id="no UUID"),
        pytest.param("JSON", pa.array(["{"]), id="no document"),
        pytest.param("JSON", pa.array(["[" * 100_000]), id="deep document"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(type_name: str, source: pa.Array) -> None:
    assert refusal(table(x=type_name), pa.table({"x": source})).startswith(
        "VALIDATION_FAILED row 0: x: want "
    )


def test_a_map_that_does_not_fit_refuses_its_own_row() -> None:
    sent = maps(
        [("a", "1"), ("b", "2")], None, [("b", "x"), ("b", "y")], [("a", "\0")], [("a", "3")]
    )

    found = decode_all(table(x="MAP(VARCHAR, VARCHAR)"), stream(pa.table({"x": sent})))

    assert [each.index for each in found.rejected] == [2, 3]
    assert [batch["x"].to_pylist() for batch in found.batches] == [
        [[("a", "1"), ("b", "2")], None, [("a", "3")]]
    ]


def test_uuids_inside_others_are_text() -> None:
    text = "123e4567-e89b-12d3-a456-426614174000"
    plain = pa.array([UUID(text).bytes, None, UUID(text).bytes], pa.binary(16))
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), plain)
    lists = pa.ListArray.from_arrays([0, 1, 1, 3], uuids, mask=pa.array([False, True, False]))
    rows = pa.table(
        {
            "l": lists,
            "s": pa.StructArray.from_arrays([lists], names=["u"]),
            "m": pa.MapArray.from_arrays([0, 1, 1, 3], ["a", "a", "b"], uuids),
        }
    )
    into = table(l="UUID[]", s="STRUCT(u UUID[])", m="MAP(VARCHAR, UUID)")

    for start in range(3):
        found = decode(into, rows.slice(start))

        assert found["l"].to_pylist() == [[text], None, [None, text]][start:]
        assert (
            found["s"].to_pylist() == [{"u": each} for each in [[text], None, [None, text]]][start:]
        )
        assert found["m"].to_pylist() == [[("a", text)], [], [("a", None), ("b", text)]][start:]


def test_what_hides_behind_a_null_does_not_matter() -> None:
    twice = pa.MapArray.from_arrays([0, 2, 3], ["a", "a", "b"], pa.array([1, 2, 3]))
    hidden = pa.MapArray.from_arrays(
        twice.offsets, twice.keys, twice.items, mask=pa.array([True, False])
    )

    found = decode(table(x="MAP(VARCHAR, BIGINT)"), pa.table({"x": hidden}))

    assert found["x"].to_pylist() == [None, [("b", 3)]]


def test_the_nanoseconds_beside_the_edges_are_kept() -> None:
    edges = pa.array([2**63 - 2, -(2**63) + 2], pa.timestamp("ns"))

    assert decode(table(x="TIMESTAMP_NS"), pa.table({"x": edges}))["x"].combine_chunks() == edges


def test_special_doubles_are_kept() -> None:
    found = decode(table(x="FLOAT"), pa.table({"x": [float("inf"), float("nan"), None]}))

    assert [str(v) for v in found["x"].to_pylist()] == ["inf", "nan", "None"]


NOT_NULL = table(x={"type": "INTEGER", "nullable": False}, y="INTEGER")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pa.table({"x": [1], "z": [1]}), "SCHEMA_INCOMPATIBLE z: no such column; the table has x"),
        (pa.table({"y": [1]}), "SCHEMA_INCOMPATIBLE x: is missing, and the column is NOT NULL"),
        (
            pa.table({"x": [1, None]}),
            "VALIDATION_FAILED row 1: x: is missing or null, want a whole number",
        ),
        (
            pa.Table.from_arrays([pa.array([1]), pa.array([1])], names=["x", "x"]),
            "SCHEMA_INCOMPATIBLE x: is there twice",
        ),
    ],
    ids=["unknown", "missing", "null", "twice"],
)
def test_columns_must_be_the_tables(rows: pa.Table, said: str) -> None:
    assert refusal(NOT_NULL, rows).startswith(said)


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"ARROW1\0\0", stream(pa.table({"x": range(999)}))[:-500], b"\xff" * 64],
    ids=["empty", "text", "file format", "cut", "noise"],
)
def test_a_broken_stream_is_refused(body: bytes) -> None:
    assert refusal(NOT_NULL, body).startswith("VALIDATION_FAILED body: is not a complete Arrow")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
def test_compressed_buffers_are_refused(codec: str, encoded: bool) -> None:
    column = pa.array(["duck"] * 1000)
    rows = pa.table({"x": column.dictionary_encode() if encoded else column})

    said = refusal(table(x="VARCHAR"), stream(rows, compression=codec))

    assert said.startswith("VALIDATION_FAILED body: Arrow buffers are compressed")


@pytest.mark.parametrize(
    "column",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), ["a" * 100_000]),
        pa.nulls(20_000_000),
    ],
    ids=["dictionary", "nulls"],
)
def test_what_unfolds_beyond_the_limit_is_refused_first(column: pa.Array) -> None:
    before = pa.total_allocated_bytes()

    said = refusal(table(x="VARCHAR"), pa.table({"x": column}))

    assert said.startswith("PAYLOAD_TOO_LARGE body: ")
    assert pa.total_allocated_bytes() - before < 2 * LIMIT


def test_defaults_count_against_the_limit() -> None:
    into = table(x="INTEGER", y={"type": "VARCHAR", "default": "d" * 10_000})

    assert refusal(into, pa.table({"x": range(60_000)})).startswith("PAYLOAD_TOO_LARGE")


def test_rows_that_unfold_beyond_the_limit_are_refused() -> None:
    codes = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array([7]))

    assert refusal(table(x="BIGINT"), pa.table({"x": codes}), 100_000).startswith(
        "PAYLOAD_TOO_LARGE"
    )


FUZZED = table(a="BIGINT", b="VARCHAR", c="BIGINT[]", d="VARCHAR")
SOUND = stream(
    pa.table(
        {
            "a": range(50),
            "b": ["duck"] * 50,
            "c": [[1, 2]] * 50,
            "d": pa.array(["q"] * 50).dictionary_encode(),
        }
    )
)


@settings(max_examples=examples(1000), deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=5
    )
)
def test_a_damaged_stream_gives_rows_or_a_clear_refusal(changes: list[tuple[int, int]]) -> None:
    body = bytearray(SOUND)
    for at, byte in changes:
        body[at] = byte

    try:
        found = decode(FUZZED, bytes(body))
    except DuckmeshError:
        return
    found.validate(full=True)
