"""CSV bodies: RFC 4180 and nothing else, each record a row or refused alone."""

from __future__ import annotations

import contextlib
import csv
import io
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain import blocks
from duckmesh_runtime.domain.decode import BulkFormat, Decoded, decode_bulk, op_for
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import DuckmeshError, Invalid
from tests.fuzz import examples

LIMIT = 2**26


def table(key: tuple[str, ...] = (), **columns: str | dict[str, Any]) -> TableDef:
    made = [
        {"name": name, **({"type": how} if isinstance(how, str) else how)}
        for name, how in columns.items()
    ]
    return parse_table({"name": "t", "columns": made, "primary_key": list(key)})


PAIR = table(a={"type": "BIGINT"}, b={"type": "VARCHAR", "default": "none"})
TEXTS = table(a="VARCHAR", b="VARCHAR")


def decode(into: TableDef, body: bytes, op: str | None = None, limit: int = LIMIT) -> Decoded:
    found = decode_bulk(into, BulkFormat.CSV, body, op_for(into, op), max_bytes=limit)
    for batch in found.batches:
        batch.validate(full=True)
    assert found.rows == sum(map(len, found.batches)) == len(found.kept)
    assert sorted([*found.kept, *(each.index for each in found.rejected)]) == list(
        range(found.rows + len(found.rejected))
    )
    return found


def rows(found: Decoded) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for batch in found.batches for row in batch.to_pylist()]


def refused(found: Decoded) -> list[tuple[int, str]]:
    return [(each.index, each.message) for each in found.rejected]


def refusal(into: TableDef, body: bytes, op: str | None = None) -> str:
    with pytest.raises(DuckmeshError) as caught:
        decode(into, body, op)
    return f"{caught.value.code} {caught.value.message}"


def test_a_quoted_empty_field_is_text_and_an_empty_one_is_null() -> None:
    assert rows(decode(PAIR, b'b,a\n"",1\n,2\nx,\n')) == [(1, ""), (2, None), (None, "x")]


def test_a_column_that_is_not_there_takes_its_default() -> None:
    assert rows(decode(PAIR, b"\xef\xbb\xbfa\r\n1\r\n\r\n2")) == [(1, "none"), (2, "none")]


def test_quotes_hold_commas_quotes_and_line_ends() -> None:
    found = decode(TEXTS, b'a,b\n"x, ""y""","1\r\n2\n"\n"\xc3\xa9",z\n')

    assert rows(found) == [('x, "y"', "1\r\n2\n"), ("é", "z")]


@pytest.mark.parametrize(
    ("type_name", "cell", "wanted"),
    [
        ("BOOLEAN", "True", True),
        ("BIGINT", "-9223372036854775808", -(2**63)),
        ("UBIGINT", "18446744073709551615", 2**64 - 1),
        ("DOUBLE", "1e5", 1e5),
        ("DOUBLE", "-.5", -0.5),
        ("FLOAT", "0.1", 0.10000000149011612),
        ("DECIMAL(10,2)", "+1.500", Decimal("1.50")),
        ("DECIMAL(10,2)", "1E-2", Decimal("0.01")),
        ("DECIMAL(38,0)", "9" * 38, Decimal("9" * 38)),
        ("BLOB", "AAE=", b"\0\1"),
        ("INTEGER[]", '"[1,null]"', [1, None]),
        ('STRUCT("a" INTEGER)', '"{""a"":1}"', {"a": 1}),
        ("MAP(VARCHAR, DOUBLE)", '"{""k"":1.5}"', [("k", 1.5)]),
        ("JSON", '"{""b"":1,""a"":[]}"', '{"a":[],"b":1}'),
        ("JSON", "null", "null"),
    ],
)
def test_a_cell_is_read_by_its_type(type_name: str, cell: str, wanted: object) -> None:
    assert rows(decode(table(x=type_name), f"x\n{cell}\n".encode())) == [(wanted,)]


@pytest.mark.parametrize(
    ("type_name", "cell"),
    [
        ("BOOLEAN", "1"), ("BOOLEAN", "yes"), ("BIGINT", "+1"), ("BIGINT", "0x1F"), ("BIGINT", " 1"), ("BIGINT", "1.0"),
        ("BIGINT", "1e3"), ("BIGINT", "9223372036854775808"), ("UTINYINT", "-1"), ("DOUBLE", "nan"), ("DOUBLE", "inf"),
        ("DOUBLE", "1e400"), ("DOUBLE", "0x1p3"), ("DOUBLE", ""), ("FLOAT", "1e39"), ("DECIMAL(10,2)", "1.255"),
        ("DECIMAL(10,2)", "1E-999999999"), ("DECIMAL(38,0)", "9" * 39), ("DECIMAL(10,2)", "1_0"), ("DECIMAL(10,2)", "."),
        ("VARCHAR", "a\0b"), ("BLOB", "*"), ("DATE", "2024-02-30"), ("TIME", "25:00"), ("TIMESTAMP", "now"),
        ("UUID", "x"), ("INTEGER[]", "1"), ("INTEGER[]", "[x]"), ("JSON", "{"), ("JSON", "[" * 100_000),
        ('STRUCT("a" INTEGER)', '{"b":1}'),
    ],
)  # fmt: skip
def test_a_cell_that_does_not_fit_refuses_its_record(type_name: str, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'

    found = decode(table(x=type_name), f"x\n{quoted}\n".encode())

    ((index, message),) = refused(found)
    assert index == 0
    assert message.startswith("x: want ")


def test_records_keep_their_index_around_bad_ones() -> None:
    body = b'a,b\n1,x\n2\n\n"y",z\n4,\xff\n5,1,2\n6,"multi\nline"\n7,x'

    found = decode(PAIR, body)

    assert list(found.kept) == [0, 5, 6]
    assert refused(found) == [
        (1, "line: has 1 fields, the header has 2"),
        (
            2,
            "a: want a whole number from -9223372036854775808 to 9223372036854775807, got 'y'",
        ),
        (3, "b: want text in UTF-8 without NUL characters or lone surrogates, got '\\\\xff'"),
        (4, "line: has 3 fields, the header has 2"),
    ]


def test_a_delete_needs_its_key_only() -> None:
    into = table(("a",), a="BIGINT", b={"type": "VARCHAR", "nullable": False})

    found = decode(into, b"b,a\nx,1\n,2\ny,\n", "delete")

    assert rows(found) == [(1, None, True), (2, None, True)]
    assert refused(found)[0][1].startswith("a: is missing or null")
    assert refusal(into, b"b\nx\n", "delete").startswith("SCHEMA_INCOMPATIBLE a: is missing, and a")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "VALIDATION_FAILED body: is not CSV as RFC 4180 has it: the first line must name"),
        (b"\n\n", "VALIDATION_FAILED body: is not CSV as RFC 4180 has it: the first line must name"),
        (b'"a\n1', "VALIDATION_FAILED body: is not CSV"),
        (b"\xff\n1", "VALIDATION_FAILED body: is not CSV"),
        (b"a,z\n1,2", "SCHEMA_INCOMPATIBLE z: no such column; the table has a, b"),
        (b"a,a\n1,2", "SCHEMA_INCOMPATIBLE a: is there twice"),
        (b"a,\n1,2", "SCHEMA_INCOMPATIBLE : no such column"),
        (b'a,b\n1,x\n2,y"z\n', "VALIDATION_FAILED body: is not CSV as RFC 4180 has it: after row 0 a quote"),
        (b'a,b\n1,"x"y\n', "VALIDATION_FAILED body: is not CSV"),
        (b'a,b\n1, "x"\n', "VALIDATION_FAILED body: is not CSV"),
        (b'a,b\n1,"x\n', "VALIDATION_FAILED body: is not CSV"),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_body_that_is_no_csv_of_the_table_is_refused(body: bytes, said: str) -> None:
    assert refusal(PAIR, body).startswith(said)


def test_a_line_without_end_is_refused() -> None:
    assert "is longer than" in refusal(TEXTS, b"a,b\n" + b'x,"' + b"y\n" * 6_000_000)
    assert "is longer than" in refusal(TEXTS, b"a,b\n" + b"x" * 10_000_000)


def test_tiny_lines_of_a_wide_table_stay_bounded() -> None:
    wide = table(**{f"c{i}": "BIGINT" for i in range(1000)})

    assert refusal(wide, b"c0\n" + b"1\n" * 500_000).startswith("PAYLOAD_TOO_LARGE")
    assert "CR LF" in refusal(wide, b"c0\n" + b"1\r" * 500_000)


def test_unfolded_rows_are_counted() -> None:
    with pytest.raises(DuckmeshError, match="more than 1000 bytes when unfolded"):
        decode(PAIR, b"a\n" + b"1\n" * 1000, limit=1000)


FIELD = st.none() | st.text(st.sampled_from('ab ",\n\ré'), max_size=6)


def written(field: str | None) -> str:
    if field is None:
        return ""
    if field == "" or any(each in field for each in '",\r\n'):
        return '"' + field.replace('"', '""') + '"'
    return field


@given(
    st.lists(st.tuples(FIELD, FIELD), max_size=30),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([16, 64, 2**20]),
)
@settings(max_examples=examples(150), deadline=None)
def test_what_is_written_is_read(
    records: list[tuple[str | None, str | None]], line_end: str, block: int
) -> None:
    body = line_end.join(["a,b", *(",".join(map(written, record)) for record in records), ""])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert rows(decode(TEXTS, body.encode())) == records


@given(st.text(st.sampled_from('a1",\n\r é'), max_size=40), st.sampled_from([8, 2**20]))
@settings(max_examples=examples(300), deadline=None)
def test_any_text_is_read_as_the_standard_says_or_refused(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        try:
            found = decode(TEXTS, b"a,b\n" + text.encode())
        except Invalid:
            return
    read = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    wanted = [tuple(row) for row in read if len(row) == 2]
    assert [tuple(each or "" for each in row) for row in rows(found)] == wanted
    assert [i for i, _ in refused(found)] == [i for i, row in enumerate(read) if len(row) != 2]


@given(st.binary(max_size=100))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_get_an_answer(body: bytes) -> None:
    into = table(a="BIGINT", b="JSON", c="DECIMAL(10,2)")
    with contextlib.suppress(Invalid):
        decode(into, b"a,b,c\n" + body)
