"""JSON records to Arrow: each record stands or falls alone, and a refusal names field, problem and remedy."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain.bus_rows import DELETED, bus_schema
from duckmesh_runtime.domain.columns import parse_json
from duckmesh_runtime.domain.decode import Decoded, Op, decode_records, op_for
from duckmesh_runtime.domain.records import (
    RawRecord,
    content_digest,
    key_digest,
)
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Invalid
from tests.fuzz import examples


def table(**columns: str | dict[str, Any]) -> TableDef:
    made = [
        {"name": name, **({"type": how} if isinstance(how, str) else how)}
        for name, how in columns.items()
    ]
    return parse_table({"name": "t", "columns": made})


def value(type_name: str, given_value: object) -> object:
    """What one value becomes in a column of this type; a refusal as its text."""
    decoded = decode_records(table(x=type_name), [RawRecord(payload={"x": given_value})])
    if decoded.rejected:
        return decoded.rejected[0].message
    return rows(decoded)[0]["x"]


def rows(decoded: Decoded) -> list[dict[str, Any]]:
    for batch in decoded.batches:
        batch.validate(full=True)
    return [row for batch in decoded.batches for row in batch.to_pylist()]


ID = uuid.UUID("0a1b2c3d-0000-4000-8000-00000000000f")


def shown(given_value: object) -> str:
    """A short test id; Python refuses to print integers of very many digits."""
    huge = isinstance(given_value, int) and given_value > 10**100
    return "huge" if huge else ascii(given_value)[:24]


@pytest.mark.parametrize(
    ("type_name", "given_value", "wanted"),
    [
        ("BOOLEAN", True, True),
        ("TINYINT", -128, -128),
        ("UBIGINT", 2**64 - 1, 2**64 - 1),
        ("BIGINT", "9007199254740993", 9007199254740993),
        ("BIGINT", 5.0, 5),
        ("DOUBLE", 1, 1.0),
        ("DOUBLE", 2**60 + 1, float(2**60)),
        ("FLOAT", 0.5, 0.5),
        ("DECIMAL(10,2)", 1.25, Decimal("1.25")),
        ("DECIMAL(10,2)", "1.2500", Decimal("1.25")),
        ("DECIMAL(38,0)", 10**37, Decimal(10**37)),
        ("VARCHAR", "naïve 🦆", "naïve 🦆"),
        ("BLOB", "AAE=", b"\x00\x01"),
        ("DATE", "2024-02-29", date(2024, 2, 29)),
        ("TIME", "10:11:12.5", time(10, 11, 12, 500_000)),
        ("TIMESTAMP", "2024-01-01", datetime(2024, 1, 1)),  # noqa: DTZ001 - the type has no zone
        ("TIMESTAMP", "2024-01-01 10:00:00.5", datetime(2024, 1, 1, 10, 0, 0, 500_000)),  # noqa: DTZ001
        ("TIMESTAMP", "2024-01-01T10:00:00+02:00", datetime(2024, 1, 1, 8)),  # noqa: DTZ001
        ("TIMESTAMPTZ", "2024-01-01T10:00:00Z", datetime(2024, 1, 1, 10, tzinfo=UTC)),
        ("TIMESTAMPTZ", "2024-01-01T10:00:00", datetime(2024, 1, 1, 10, tzinfo=UTC)),
        ("TIMESTAMPTZ", "2024-01-01", datetime(2024, 1, 1, tzinfo=UTC)),
        ("TIMESTAMPTZ", "2024-01-01T10:00:00-0530", datetime(2024, 1, 1, 15, 30, tzinfo=UTC)),
        ("UUID", str(ID).upper(), str(ID)),
        (
            "JSON",
            {"b": [1, None], "a": 10**30},
            '{"a":1000000000000000000000000000000,"b":[1,null]}',
        ),
        ("JSON", "text", '"text"'),
        ("INTEGER[]", [1, None], [1, None]),
        ('STRUCT("a" INTEGER, "b" VARCHAR)', {"b": "x"}, {"a": None, "b": "x"}),
        ("MAP(VARCHAR, INTEGER)", {"k": 1}, [("k", 1)]),
        ("INTEGER", None, None),
        ("INTEGER[]", None, None),
    ],
    ids=shown,
)
def test_a_fitting_value_is_kept(type_name: str, given_value: object, wanted: object) -> None:
    assert value(type_name, given_value) == wanted


@pytest.mark.parametrize(
    ("type_name", "given_value", "said"),
    [
        ("BOOLEAN", 1, "true or false, got 1"),
        ("TINYINT", 128, "a whole number from -128 to 127, got 128"),
        ("UTINYINT", -1, "a whole number from 0 to 255, got -1"),
        ("BIGINT", 2**63, "a whole number from"),
        ("BIGINT", True, "got true"),
        ("BIGINT", 1.5, "got 1.5"),
        ("BIGINT", "12a", "got '12a'"),
        ("BIGINT", " 12", "got ' 12'"),
        ("BIGINT", "१२", "a whole number from"),
        ("BIGINT", 10**5000, "got a number of very many digits"),
        ("BIGINT", [1], "got a list"),
        ("DOUBLE", float("nan"), "a finite number within the range of DOUBLE, got nan"),
        ("DOUBLE", float("inf"), "got inf"),
        ("DOUBLE", 10**400, "a finite number"),
        ("DOUBLE", "1.5", "got '1.5'"),
        ("DOUBLE", True, "got true"),
        ("FLOAT", 1e300, "a finite number within the range of FLOAT"),
        ("DECIMAL(10,2)", 1.255, "at most 8 digits before and 2 behind the point, got 1.255"),
        ("DECIMAL(10,2)", "123456789", "got '123456789'"),
        ("DECIMAL(10,2)", "1E-999999", "got '1E-999999'"),
        ("DECIMAL(10,2)", "1E999999", "got '1E999999'"),
        ("DECIMAL(10,2)", 1e-300, "got 1e-300"),
        ("DECIMAL(10,2)", "NaN", "got 'NaN'"),
        ("DECIMAL(10,2)", "1_0", "got '1_0'"),
        ("DECIMAL(10,2)", "", "got ''"),
        (
            "VARCHAR",
            "a\0b",
            "text in UTF-8 without NUL characters or lone surrogates, got 'a\\x00b'",
        ),
        ("VARCHAR", "\ud800", "got '\\ud800'"),
        ("VARCHAR", 5, "got 5"),
        ("BLOB", "A*==", "bytes as base64 text"),
        ("DATE", "2024-02-30", "a date like"),
        ("DATE", "0000-01-01", "a date like"),
        ("DATE", "2024-01-01T00:00:00", "a date like"),
        ("TIME", "24:00:00", "a time of day like"),
        ("TIME", "10:00Z", "a time of day like"),
        ("TIMESTAMP", 1704067200, "got 1704067200"),
        ("TIMESTAMP", "yesterday", "a timestamp like"),
        ("TIMESTAMP", "2024-01-01T10:00:00.1234567", "at most 6 digits of a second"),
        ("TIMESTAMP_S", "2024-01-01T10:00:00.5", "in whole seconds"),
        ("TIMESTAMP", "2024-01-01T10:00:60", "a timestamp like"),
        ("TIMESTAMP", "0001-01-01T00:00:00+02:00", "a timestamp like"),
        ("TIMESTAMPTZ", "9999-12-31T23:59:59-02:00", "a timestamp like"),
        ("TIMESTAMPTZ", "2024-01-01T10:00:00+99:00", "a timestamp like"),
        ("TIMESTAMP_NS", "1600-01-01", "a timestamp like"),
        ("UUID", "{" + str(ID) + "}", "a UUID as text"),
        ("JSON", 10**5000, "any JSON value"),
        ("INTEGER[]", [1, "x"], "a list of INTEGER, got a list"),
        ("INTEGER[]", 1, "a list of INTEGER, got 1"),
        ('STRUCT("a" INTEGER)', {"c": 1}, "an object of a INTEGER, got an object"),
        ("MAP(VARCHAR, INTEGER)", {"k": "v"}, "an object with INTEGER values"),
        ("MAP(VARCHAR, INTEGER)", {"\ud800": 1}, "an object with INTEGER values"),
    ],
    ids=shown,
)
def test_an_unfit_value_is_refused_by_name(type_name: str, given_value: object, said: str) -> None:
    message = value(type_name, given_value)

    assert isinstance(message, str)
    assert message.startswith("x: want ")
    assert said in message
    assert message.isascii()


EVENTS = table(
    id={"type": "BIGINT", "nullable": False},
    kind={"type": "VARCHAR", "default": "click"},
    event_time="TIMESTAMP",
)


def test_bad_records_leave_the_good_ones_alone() -> None:
    payloads: list[object] = [{"id": 1}, {"id": "x"}, {}, {"id": 2, "colour": 1}, 5, {"id": 3}]

    decoded = decode_records(EVENTS, [RawRecord(payload=p) for p in payloads])

    assert list(decoded.kept) == [0, 5]
    assert [row["id"] for row in rows(decoded)] == [1, 3]
    assert [(each.index, each.message.split(":")[0]) for each in decoded.rejected] == [
        (1, "id"),
        (2, "id"),
        (3, "'colour'"),
        (4, "payload"),
    ]
    assert {each.code for each in decoded.rejected} == {"VALIDATION_FAILED"}


def test_a_missing_field_takes_the_default_and_null_stays_null() -> None:
    decoded = decode_records(
        EVENTS, [RawRecord(payload={"id": 1}), RawRecord(payload={"id": 2, "kind": None})]
    )

    assert [row["kind"] for row in rows(decoded)] == ["click", None]


def test_the_event_time_goes_to_its_column_unless_the_payload_has_it() -> None:
    at = "2024-01-01T00:00:00Z"
    records = [
        RawRecord(payload={"id": 1}, event_time=at),
        RawRecord(payload={"id": 2, "event_time": "2025-01-01"}, event_time=at),
        RawRecord(payload={"id": 3}, event_time="yesterday"),
    ]

    decoded = decode_records(EVENTS, records)

    assert [str(v)[:4] for v in (row["event_time"] for row in rows(decoded))] == ["2024", "2025"]
    assert decoded.rejected[0].message.startswith("event_time: want a timestamp")


def test_the_event_time_is_left_out_of_a_table_without_such_a_column() -> None:
    decoded = decode_records(table(id="INT"), [RawRecord(payload={"id": 1}, event_time="x")])

    assert rows(decoded) == [{"id": 1}]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (RawRecord(payload={"id": 1}, op="upsert"), "op: upsert needs a table with a primary key"),
        (RawRecord(payload={"id": 1}, op="delete"), "op: delete needs a table with a primary key"),
        (RawRecord(payload={"id": 1}, op="merge"), "op: 'merge' is not known: send insert"),
        (RawRecord(payload={"id": 1}, idempotency_key=""), "idempotency_key: want 1 to 255"),
        (RawRecord(payload={"id": 1}, idempotency_key="k" * 256), "idempotency_key: want 1 to"),
    ],
)
def test_a_bad_envelope_is_refused(record: RawRecord, said: str) -> None:
    (rejected,) = decode_records(EVENTS, [record]).rejected

    assert rejected.message.startswith(said)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.datetimes().map(lambda at: at.isoformat())
    | st.datetimes(timezones=st.just(UTC)).map(lambda at: at.isoformat())
    | st.decimals(allow_nan=False, allow_infinity=False).map(str),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
WIDE = table(
    a="BIGINT",
    b="DOUBLE",
    c={"type": "VARCHAR", "nullable": False, "default": ""},
    d="TIMESTAMP",
    e="TIMESTAMPTZ",
    f="DECIMAL(12,4)",
    g="JSON",
    h="VARCHAR[]",
    i="MAP(VARCHAR, DOUBLE)",
    j="DATE",
    k="BOOLEAN",
)
PAYLOADS = st.dictionaries(st.sampled_from("abcdefghijkx"), ANYTHING, max_size=6) | ANYTHING


@settings(max_examples=examples(300), deadline=None)
@given(payloads=st.lists(PAYLOADS, max_size=8))
def test_many_records_fare_as_each_alone(payloads: list[object]) -> None:
    records = [RawRecord(payload=payload) for payload in payloads]

    together = decode_records(WIDE, records)

    alone = [decode_records(WIDE, [record]) for record in records]
    assert list(together.kept) == [i for i, each in enumerate(alone) if each.kept]
    assert rows(together) == [row for each in alone for row in rows(each)]
    assert [each.message for each in together.rejected] == [
        rejected.message for each in alone for rejected in each.rejected
    ]


KEYED = parse_table(
    {
        "name": "t",
        "columns": [
            {"name": "id", "type": "BIGINT"},
            {"name": "who", "type": "UUID"},
            {"name": "amount", "type": "DECIMAL(10,2)", "nullable": False},
            {"name": "kind", "type": "VARCHAR", "default": "click"},
        ],
        "primary_key": ["id", "who"],
    }
)


def test_upserts_are_full_rows_and_deletes_are_keys() -> None:
    key = {"id": 1, "who": str(ID)}
    records = [
        RawRecord(payload={**key, "amount": 1}),
        RawRecord(payload={**key, "amount": "not looked at"}, op="delete"),
        RawRecord(payload={"who": str(ID)}, op="delete"),
        RawRecord(payload=key, op="upsert"),
        RawRecord(payload={**key, "amount": 1}, op="insert"),
        RawRecord(payload={**key, "id": None, "amount": 1}),
        RawRecord(payload={**key, "colour": 1}, op="delete"),
        RawRecord(
            payload={**key, "who": str(ID).replace("-", "").upper(), "amount": 2, "kind": None}
        ),
    ]

    decoded = decode_records(KEYED, records)

    assert rows(decoded) == [
        {**key, "amount": Decimal(1), "kind": "click", DELETED: False},
        {**key, "amount": None, "kind": None, DELETED: True},
        {**key, "amount": Decimal(2), "kind": None, DELETED: False},
    ]
    assert decoded.batches[0].schema.equals(bus_schema(KEYED), check_metadata=True)
    assert list(decoded.kept) == [0, 1, 7]
    assert [(each.index, each.message.split(" ")[0]) for each in decoded.rejected] == [
        (2, "id:"),
        (3, "amount:"),
        (4, "op:"),
        (5, "id:"),
        (6, "'colour':"),
    ]


def test_a_delete_does_not_take_the_default_of_a_key() -> None:
    made = table(id={"type": "BIGINT", "nullable": False, "default": 0}, x="BIGINT")
    keyed = TableDef(name="t", columns=made.columns, primary_key=("id",))

    decoded = decode_records(keyed, [RawRecord(payload={}), RawRecord(payload={}, op="delete")])

    assert rows(decoded) == [{"id": 0, "x": None, DELETED: False}]
    assert decoded.rejected[0].message.startswith("id: is missing or null")


def test_an_operation_is_what_the_table_takes() -> None:
    assert op_for(EVENTS, None) is Op.INSERT
    assert op_for(KEYED, None) is Op.UPSERT
    assert op_for(KEYED, "delete") is Op.DELETE
    for into, text in ((EVENTS, "upsert"), (KEYED, "insert"), (KEYED, "DELETE"), (EVENTS, "")):
        with pytest.raises(Invalid, match=r"^op: .*: send (insert|upsert or delete)$"):
            op_for(into, text)


def test_rows_of_a_wide_table_stay_bounded() -> None:
    wide = table(**{f"c{i}": "BIGINT" for i in range(1000)})

    with pytest.raises(Invalid, match="when unfolded"):
        decode_records(wide, [RawRecord(payload={})] * 50_000)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.5", 1.5),
        ("0.1234567890123456789", Decimal("0.1234567890123456789")),
        ("1e400", Decimal("1e400")),
        ("1E-5", Decimal("0.00001")),
    ],
)
def test_a_json_number_keeps_its_digits(text: str, wanted: object) -> None:
    found = parse_json(text)

    assert (found, type(found)) == (wanted, type(wanted))


def test_a_delete_is_other_content() -> None:
    def digest(op: str | None) -> bytes:
        return content_digest(RawRecord(payload={"id": 1}, op=op))

    assert digest(None) == digest("upsert") == digest("insert")
    assert digest("delete") != digest(None)


def test_digests_tell_tables_scopes_keys_and_contents_apart() -> None:
    first, second = (
        table(a="INT"),
        parse_table({"name": "u", "columns": [{"name": "a", "type": "INT"}]}),
    )
    remade = TableDef(name="t", columns=first.columns, version=9)
    keys = {
        key_digest(found, scope, key)
        for found in (first, second, remade)
        for scope in ("record", "request")
        for key in ("a", "b", "\ud800")
    }
    contents = [
        RawRecord(payload={"a": 1}),
        RawRecord(payload={"a": "1"}),
        RawRecord(payload={"a": 1}, event_time="2024-01-01"),
        RawRecord(payload={"a": 10**30}),
    ]

    assert {len(key) for key in keys} == {16}
    assert len(keys) == 18
    assert len({content_digest(record) for record in contents}) == 4


def test_the_order_of_fields_is_no_other_content() -> None:
    assert content_digest(
        RawRecord(payload={"a": 1, "b": {"c": 2, "d": 10**30}})
    ) == content_digest(RawRecord(payload={"b": {"d": 10**30, "c": 2}, "a": 1}))
