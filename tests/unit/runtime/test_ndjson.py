"""NDJSON bodies: a line is a row or is refused alone, whichever of the two ways reads its block."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain import blocks, ndjson
from duckmesh_runtime.domain.decode import BulkFormat, Decoded, decode_bulk, op_for
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import DuckmeshError
from tests.fuzz import examples

LIMIT = 2**26

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "BIGINT", "nullable": False},
    {"name": "small", "type": "UTINYINT", "default": 7},
    {"name": "text", "type": "VARCHAR", "default": "none"},
    {"name": "ok", "type": "BOOLEAN"},
    {"name": "amount", "type": "DECIMAL(10,2)"},
    {"name": "wide", "type": "DECIMAL(38,10)"},
    {"name": "ratio", "type": "DOUBLE"},
    {"name": "single", "type": "FLOAT"},
    {"name": "day", "type": "DATE"},
    {"name": "hour", "type": "TIME"},
    {"name": "at", "type": "TIMESTAMPTZ"},
    {"name": "nano", "type": "TIMESTAMP_NS"},
    {"name": "who", "type": "UUID"},
    {"name": "raw", "type": "BLOB"},
]
OTHER = {"name": "other", "type": "JSON"}
"""A column that makes every block of its table go by records."""


def table(*columns: dict[str, Any], key: tuple[str, ...] = ()) -> TableDef:
    return parse_table({"name": "t", "columns": list(columns), "primary_key": list(key)})


def decode(into: TableDef, body: bytes, op: str | None = None) -> Decoded:
    found = decode_bulk(into, BulkFormat.NDJSON, body, op_for(into, op), max_bytes=LIMIT)
    for batch in found.batches:
        batch.validate(full=True)
    assert found.rows == sum(map(len, found.batches)) == len(found.kept)
    return found


def rows(found: Decoded) -> list[dict[str, Any]]:
    return [row for batch in found.batches for row in batch.to_pylist()]


def refused(found: Decoded) -> list[tuple[int, str]]:
    assert {each.code for each in found.rejected} <= {"VALIDATION_FAILED"}
    return [(each.index, each.message) for each in found.rejected]


def agree(body: bytes, *, key: tuple[str, ...] = (), op: str | None = None) -> None:
    """Both ways give the same rows and refusals."""
    by_columns = decode(table(*COLUMNS, key=key), body, op)
    by_records = decode(table(*COLUMNS, OTHER, key=key), body, op)
    records = [
        {name: value for name, value in row.items() if name != "other"} for row in rows(by_records)
    ]
    assert repr(rows(by_columns)) == repr(records)  # repr tells -0.0 from 0.0
    assert list(by_columns.kept) == list(by_records.kept)
    assert refused(by_columns) == [
        (i, text.replace(", other", "")) for i, text in refused(by_records)
    ]


def test_each_line_is_a_row() -> None:
    into = table({"name": "a", "type": "BIGINT"}, {"name": "b", "type": "VARCHAR", "default": "x"})

    found = decode(into, b'{"a":1}\n{"a":"2","b":null}\r\n\n{"b":"y"}')

    assert rows(found) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": None, "b": "y"}]
    assert list(found.kept) == [0, 1, 2]


@pytest.mark.parametrize("body", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n \n"])
def test_nothing_is_no_row(body: bytes) -> None:
    assert decode(table(*COLUMNS), body).rows == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id":1', "line: want one JSON object in UTF-8"),
        (b'{"id":1}{"id":2}', "line: want one JSON object in UTF-8"),
        (b'{"id":1} x', "line: want one JSON object in UTF-8"),
        (b'{"id":1,"text":"\xff"}', "line: want one JSON object in UTF-8"),
        (b"[1]", "line: want an object with one field per column"),
        (b'{"id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line: is nested too deeply"),
        (b'{"id":1,"z":1}', "'z': no such column; the table has id, small"),
        (b'{"id":null}', "id: is missing or null, want a whole number"),
        (b'{"id":1,"small":256}', "small: want a whole number from 0 to 255, got 256"),
        (
            b'{"id":1,"ratio":1e400}',
            "ratio: want a finite number within the range of DOUBLE, got 1E+400",
        ),
        (b'{"id":1,"ratio":NaN}', "line: want one JSON object in UTF-8"),
        (b'{"id":1,"amount":1E-999999999}', "amount: want a number with at most 8 digits"),
        (b'{"id":1,"amount":"1\\u0045-999999999"}', "amount: want a number with at most 8"),
        (b'{"id":1,"amount":123456789}', "amount: want a number with at most 8 digits"),
        (b'{"id":1,"wide":12345678901234567890123456789}', "wide: want a number"),
        (b'{"id":1,"text":"a\\u0000b"}', "text: want text in UTF-8 without NUL"),
        (b'{"id":1,"text":"\\ud800"}', "line: want one JSON object in UTF-8"),
        (b'{"id":1e30}', "id: want a whole number"),
        (b'{"id":1e999999}', "id: want a whole number"),
    ],
    ids=lambda each: ascii(each)[:40],
)
def test_a_bad_line_is_refused_alone(line: bytes, said: str) -> None:
    found = decode(table(*COLUMNS), b'{"id":1}\n' + line + b'\n{"id":2}\n')

    assert [row["id"] for row in rows(found)] == [1, 2]
    assert list(found.kept) == [0, 2]
    ((index, message),) = refused(found)
    assert index == 1
    assert message.startswith(said)


def test_numbers_keep_all_their_digits() -> None:
    into = table({"name": "x", "type": "DECIMAL(38,20)"}, OTHER)

    found = decode(
        into, b'{"x":123456789012345678.12345678901234567890,"other":1.000000000000000001}'
    )

    assert str(rows(found)[0]["x"]) == "123456789012345678.12345678901234567890"
    assert rows(found)[0]["other"] == "1.000000000000000001"


def test_a_delete_looks_at_its_key_only() -> None:
    into = table(*COLUMNS[:3], key=("id",))

    found = decode(
        into, b'{"id":1,"small":"junk"}\n{"small":1}\n{"id":2,"z":1}\n{"id":3}', "delete"
    )

    assert rows(found) == [
        {"id": id_, "small": None, "text": None, "duckmesh:deleted": True} for id_ in (1, 3)
    ]
    assert [index for index, _ in refused(found)] == [1, 2]


def test_rows_keep_their_index_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    lines = [f'{{"id":{i if i % 7 else chr(34) + "x" + chr(34)}}}' for i in range(100)]

    found = decode(table(*COLUMNS), "\n".join(lines).encode())

    wanted = [i for i in range(100) if i % 7]
    assert [row["id"] for row in rows(found)] == wanted == list(found.kept)
    assert [index for index, _ in refused(found)] == list(range(0, 100, 7))


def test_a_line_longer_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(ndjson, "LONGEST_LINE", 1000)

    found = decode(table(*COLUMNS), b'{"id":1,"text":"' + b"x" * 1000 + b'"}\n{"id":2}\n')

    assert refused(found) == [(0, "line: is longer than 1000 bytes")]
    assert list(found.kept) == [1]


def test_a_body_of_wrong_rows_is_refused_whole() -> None:
    with pytest.raises(DuckmeshError, match="more than 10000 rows are wrong"):
        decode(table(*COLUMNS), b"{}\n" * 10_001)


def test_a_long_default_does_not_unfold_without_bound() -> None:
    into = table(
        {"name": "a", "type": "BIGINT"}, {"name": "b", "type": "VARCHAR", "default": "x" * 4096}
    )

    with pytest.raises(DuckmeshError) as caught:
        decode(into, b"{}\n" * 300_000)

    assert caught.value.code == "PAYLOAD_TOO_LARGE"


TOKENS = [
    "null", " null ", "\t1 ", ' "1E-999999999" ', " 1E-99999 ", "true", "false", "0", "-0", "-0.0", "-0e0", "1", "-1",
    "255", "256", "5.0", "1.25", "1.2500", "1e2", "1E-2",
    "1E-999999999", "1e400", "1e-400", "NaN", "-Infinity", "Infinity", "01", "+1", ".5", "5.", "0.1234567890123456789",
    "12345678901234567890.12345678901234567890", "9223372036854775807", "9223372036854775808", "1" * 40, "3.5e38",
    "1.7976931348623157e308", "1.7976931348623159e308", "4e-324", "2e-400", "16777217", '""', '"x"', '"1"', '"-12"', '"1.5"',
    '"1e2"', '"1E-999999999"', r'"1\u0045-99"', '" 1"', '"+1"', '"a\\u0000b"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\/"',
    '"\t"', '"\x7f"', '"é🦆"', '"2024-02-29"', '"2023-02-29"', '"0000-01-01"', '"9999-12-31"', '"12:00"', '"24:00:00"',
    '"2024-01-01T00:00:00Z"', '"2024-01-01 00:00:00.123456"', '"2024-01-01T00:00:00+99:00"', '"0001-01-01T00:00:00+02:00"',
    '"2024-01-01T00:00:00.123456789-0530"', '"0A1B2C3D-0000-4000-8000-00000000000F"', '"0a1b2c3d00004000800000000000000f"',
    '"AAE="', '"A*=="', "[]", "{}", "[1]", '{"a":1}', '{"id":1}', "[" * 50 + "]" * 50, "nul", "'x'", '"', "//",
]  # fmt: skip
NAMES = [column["name"] for column in COLUMNS]

GOOD = st.fixed_dictionaries(
    {"id": st.integers(-(2**63), 2**63 - 1)},
    optional={
        "small": st.none() | st.integers(0, 255),
        "text": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        "ok": st.none() | st.booleans(),
        "amount": st.decimals(-99_999_999, 99_999_999, places=2).map(float),
        "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "single": st.floats(allow_nan=False, allow_infinity=False),
        "day": st.dates().map(str),
        "hour": st.times().map(str),
        "at": st.datetimes().map(lambda at: f"{at.isoformat()}Z"),
        "who": st.uuids().map(str),
    },
).map(lambda row: json.dumps(row, ensure_ascii=False))
HARD = st.lists(
    st.tuples(st.sampled_from([*NAMES, "z", r"\u0069d"]), st.sampled_from(TOKENS)), max_size=4
).map(lambda fields: "{" + ",".join(f'"{name}": {token}' for name, token in fields) + "}")
SEPARATED = st.sampled_from(
    ["\n", "\n", "\n", "\r\n", "\n\n", "\n \n", "", " ", ",", "\r", "}", "x\n"]
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    hard = draw(st.booleans())
    lines = draw(st.lists(HARD if hard else GOOD, max_size=5))
    body = "".join(line + draw(SEPARATED if hard else st.just("\n")) for line in lines)
    sent = body.encode()
    if draw(st.integers(0, 3)) == 0 and sent:
        at = draw(st.integers(0, len(sent) - 1))
        cut = draw(st.integers(0, 3))
        sent = sent[:at] + draw(st.binary(max_size=3)) + sent[at + cut :]
    return sent


@given(bodies())
@settings(max_examples=examples(200), deadline=None)
def test_both_ways_agree(body: bytes) -> None:
    agree(body)


@given(bodies(), st.sampled_from(["upsert", "delete"]))
@settings(max_examples=examples(100), deadline=None)
def test_both_ways_agree_on_keyed_tables(body: bytes, op: str) -> None:
    agree(body, key=("id",), op=op)


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_agree_on_every_token_in_every_column(name: str) -> None:
    for token in TOKENS:
        agree(f'{{"id":1}}\n{{"id":2,"{name}":{token}}}'.encode())


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":1}{"id":\n2}\n',
        b'{"id":1}{"id":2\n}\n',
        b'{"id":1}\n{"id":2,\n"ok":true}{"id":3}\n{"id":4}',
        b'{"id":1,"text":"}\n{"}\n{"id":2}',
        b'{"id":1}\n{"id":2}\n{"id":3}{"id":4}\n',
        b'{"id":1}}\n{{"id":2}\n',
        b'{"id":1}\n\n{"id":2}\r\n{"id":3}\r{"id":4}',
        b'{"id":1,"id":2}\n',
        b'{"id":1}\n# {}\n',
        b'{"id":1}\n/* {} */{"id":2}',
        b'{"id":1}\x00\n',
        b'{}\n{"id":1}',
    ],
)
def test_objects_and_lines_must_match(body: bytes) -> None:
    agree(body)


@given(st.binary(max_size=200))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_get_an_answer(body: bytes) -> None:
    agree(body)


@given(
    st.lists(
        st.sampled_from(
            [b'{"id":', b"1", b"}", b"{", b"\n", b'"', b":", b",", b"[", b"]", b"null", b'"text"']
        )
    )
)
@settings(max_examples=examples(100), deadline=None)
def test_any_tokens_get_an_answer(parts: list[bytes]) -> None:
    agree(b"".join(parts))


def test_a_block_goes_by_columns_when_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "parse_json", lambda _: pytest.fail("went by records"))
    into = table(*COLUMNS[:5], *COLUMNS[6:])
    line = {
        "id": 1, "small": 2, "text": "é", "ok": True, "amount": 1.25, "ratio": 1e5, "single": 0.5, "day": "2024-01-31",
        "hour": "12:00", "at": "2024-01-31T12:00:00Z", "nano": "2024-01-31T12:00:00.123456789",
        "who": "0a1b2c3d-0000-4000-8000-00000000000f", "raw": "AAE=",
    }  # fmt: skip

    found = decode(into, "\n".join(json.dumps(line, ensure_ascii=False) for _ in range(9)).encode())

    assert found.rows == 9
    assert isinstance(found.batches[0], pa.RecordBatch)
