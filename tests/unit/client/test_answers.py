"""The client's answers have the fields that the API describes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from duckmesh import Column, DeadLetter, Lag, Pin, Snapshot, SnapshotTable, Table, TableLag
from tests.descriptions import document

SCHEMAS = document()["components"]["schemas"]
SAME = [
    (Lag, "Lag"),
    (TableLag, "TableLag"),
    (Column, "Column"),
    (Pin, "Pin"),
    (Snapshot, "SizedSnapshot"),
    (SnapshotTable, "TableSize"),
    (DeadLetter, "Letter"),
]


@pytest.mark.parametrize(("kind", "schema"), SAME)
def test_an_answer_has_every_described_field_and_no_other(kind: type, schema: str) -> None:
    assert {field.name for field in fields(kind)} == set(SCHEMAS[schema]["properties"])


def test_a_table_has_every_described_field_and_the_token_of_its_change() -> None:
    found = {field.name for field in fields(Table)}

    assert found == {*SCHEMAS["CurrentTable"]["properties"], "token"}
