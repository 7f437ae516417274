"""Rows of a dead letter against the table as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import stage
from duckmesh_runtime.domain.bus_rows import DELETED, bus_schema
from duckmesh_runtime.domain.decode import decode_records
from duckmesh_runtime.domain.letters import fit_file, fit_rows
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.errors import Conflict
from tests.fakes.letters import make_table, payload_of

ID = {"name": "id", "type": "BIGINT", "nullable": False}
V = {"name": "v", "type": "VARCHAR"}
ROWS = [{"id": 1, "v": "a"}, {"id": 2, "v": None}]


def fitted(now: Any, payload: bytes) -> list[dict[str, Any]]:
    batches = fit_rows(now, payload, max_bytes=10**6)
    assert all(batch.schema.equals(bus_schema(now), check_metadata=True) for batch in batches)
    return pa.Table.from_batches(batches).to_pylist()


def test_rows_of_an_unchanged_table_come_back_as_they_were() -> None:
    assert fitted(make_table(), payload_of(make_table(), ROWS)) == ROWS


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        pytest.param(
            (ID, V, {"name": "n", "type": "INTEGER", "default": 7}),
            [{"id": 1, "v": "a", "n": 7}, {"id": 2, "v": None, "n": 7}],
            id="a column was added",
        ),
        pytest.param((V, ID), [{"v": "a", "id": 1}, {"v": None, "id": 2}], id="another order"),
        pytest.param(
            ({"name": "id", "type": "DECIMAL(38,0)", "nullable": False}, V),
            [{"id": 1, "v": "a"}, {"id": 2, "v": None}],
            id="a type was widened",
        ),
    ],
)
def test_rows_follow_a_compatible_change(columns: Any, expected: list[dict[str, Any]]) -> None:
    now = make_table("events", *columns)

    assert fitted(now, payload_of(make_table(), ROWS)) == expected


@pytest.mark.parametrize(
    ("columns", "key", "says"),
    [
        pytest.param((ID,), (), "v: no such column", id="a column was dropped"),
        pytest.param((ID, {"name": "w", "type": "VARCHAR"}), (), "v: no such", id="renamed"),
        pytest.param(
            (ID, {"name": "v", "type": "BIGINT"}), (), "v: string does not fit", id="another type"
        ),
        pytest.param(
            (ID, V, {"name": "n", "type": "INTEGER", "nullable": False}),
            (),
            "n: is missing",
            id="a column that must be there",
        ),
        pytest.param(
            (ID, {"name": "v", "type": "VARCHAR", "nullable": False}),
            (),
            "row 1: v: is missing or null",
            id="a value that must be there",
        ),
        pytest.param((ID, V), ("id",), "primary_key: is id and was none", id="a key"),
    ],
)
def test_what_does_not_fit_any_more_says_why(columns: Any, key: Any, says: str) -> None:
    now = make_table("events", *columns, key=key)

    with pytest.raises(Conflict) as caught:
        fit_rows(now, payload_of(make_table(), ROWS), max_bytes=10**6)

    assert caught.value.code == "SCHEMA_INCOMPATIBLE"
    assert says in caught.value.message


def test_rows_too_large_for_a_request_are_a_conflict_too() -> None:
    with pytest.raises(Conflict, match="unfolded"):
        fit_rows(make_table(), payload_of(make_table(), ROWS), max_bytes=1)


def test_upserts_and_deletes_keep_their_order_and_a_delete_needs_its_key_only() -> None:
    then = make_table("events", ID, V, {"name": "old", "type": "INTEGER"}, key=["id"])
    now = make_table("events", ID, V, key=["id"])
    upserts = payload_of(
        make_table(key=["id"]),
        [{"id": 1, "v": "a"}, {"id": 1, "deleted": True}, {"id": 1, "v": "b"}],
    )
    deletes = payload_of(then, [{"id": 1, "deleted": True}, {"id": 2, "deleted": True}])

    assert [(r["id"], r["v"], r[DELETED]) for r in fitted(now, upserts)] == [
        (1, "a", False),
        (1, None, True),
        (1, "b", False),
    ]
    assert [(r["id"], r[DELETED]) for r in fitted(now, deletes)] == [(1, True), (2, True)]


STAGED: Final = {
    "BIGINT": -(2**63),
    "UBIGINT": 2**64 - 1,
    "FLOAT": 1.5,
    "BLOB": "AAEC",
    "DATE": "2024-01-31",
    "TIME": "12:00:00.5",
    "TIMESTAMP": "2024-01-31T12:00:00.5Z",
    "TIMESTAMP_S": "2024-01-31T12:00:00Z",
    "TIMESTAMP_NS": "2024-01-31T12:00:00.123456789Z",
    "TIMESTAMP WITH TIME ZONE": "2024-01-31T12:00:00.5Z",
    "UUID": "123e4567-e89b-12d3-a456-426614174000",
    "JSON": {"a": [1, 2]},
    "DECIMAL(38,4)": "123456.7",
    "STRUCT(u UUID, l JSON)[]": [{"u": "123e4567-e89b-12d3-a456-426614174000", "l": [1]}],
    "MAP(VARCHAR, DECIMAL(5,1))": {"a": "1.5"},
}


@pytest.mark.parametrize("type_name", STAGED)
def test_a_staged_file_is_read_as_it_was_written(type_name: str, tmp_path: Path) -> None:
    table = parse_table({"name": "t", "columns": [{"name": "c", "type": type_name}]})
    records = [RawRecord(payload={"c": value}) for value in (STAGED[type_name], None)]
    rows = pa.Table.from_batches(decode_records(table, records).batches)
    target = tmp_path / "staged.parquet"
    with duckdb.connect() as connection:
        connection.register(stage._ROWS, rows)
        connection.execute(stage._copy(table, str(target)))

    found = fit_file(table, target.read_bytes(), max_bytes=2**20)

    assert pa.Table.from_batches(found) == rows
