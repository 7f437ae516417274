"""Values that a table is partitioned by: a row whose file could not be named is refused, in every format and on replay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain.casts import add_rows
from duckmesh_runtime.domain.decode import decode_records
from duckmesh_runtime.domain.letters import fit_rows
from duckmesh_runtime.domain.partitions import MOST_BYTES, long_partitions
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.domain.sift import Harvest, Op
from duckmesh_runtime.errors import Conflict
from tests.fakes.letters import payload_of

TOO_LONG = (
    "c: the table is partitioned by it, and the value takes more than 200 bytes percent-encoded"
)


def table(*names: str, kind: str = "VARCHAR", key: Sequence[str] = ()) -> TableDef:
    kinds = {"id": "BIGINT", **dict.fromkeys(names, kind)}
    columns = [{"name": n, "type": kinds[n], "nullable": n not in key} for n in kinds]
    return parse_table(
        {"name": "t", "columns": columns, "partition_by": list(names), "primary_key": list(key)}
    )


def problems(of: TableDef, *rows: dict[str, Any]) -> dict[int, str]:
    decoded = decode_records(of, [RawRecord(payload=row) for row in rows])
    assert {each.code for each in decoded.rejected} <= {"VALIDATION_FAILED"}
    return {each.index: each.message for each in decoded.rejected}


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("x" * 200, True),
        ("x" * 201, False),
        ("-_.~" * 50, True),
        ("/" * 66, True),
        ("/" * 67, False),
        ("\u00e9" * 33, True),
        ("\u00e9" * 34, False),
        ("x" * 10**6, False),
        ("", True),
        (None, True),
    ],
    ids=lambda value: ascii(value)[:12],
)
def test_a_value_counts_as_it_stands_in_a_path(value: str | None, fits: bool) -> None:
    found = problems(table("c"), {"id": 1, "c": value}, {"id": 2, "c": "ok"})

    assert list(found) == ([] if fits else [0])
    assert all(problem.startswith(TOO_LONG) for problem in found.values())


def test_only_partitions_are_bounded() -> None:
    free = parse_table({"name": "t", "columns": [{"name": "c", "type": "VARCHAR"}]})

    assert not problems(free, {"c": "x" * 10**6})


def test_a_long_name_of_a_column_leaves_less_for_its_value() -> None:
    name = "n" * 63
    found = problems(table(name), {name: "x" * 191}, {name: "x" * 192})

    assert list(found) == [1]
    assert "more than 191 bytes" in found[1]


def test_values_together_are_bounded_too() -> None:
    names = ["a", "b", "c", "d"]
    found = problems(
        table(*names),
        dict.fromkeys(names, "x" * 172),
        {**dict.fromkeys(names, "x" * 172), "a": "/" * 58},
    )

    assert list(found) == [1]
    assert found[1].startswith("a, b, c, d: the table is partitioned by these")


def test_a_delete_makes_no_file() -> None:
    keyed = table("c", key=("id", "c"))
    batch = pa.record_batch({"id": [1, 2], "c": ["x" * 300, "ok"]})
    rejected = {}
    for op in (Op.UPSERT, Op.DELETE):
        harvest = Harvest(10**6)
        add_rows(keyed, batch, op, harvest)
        rejected[op] = [each.index for each in harvest.decoded().rejected]

    assert rejected == {Op.UPSERT: [0], Op.DELETE: []}


def test_a_letter_of_such_a_row_cannot_be_replayed() -> None:
    with pytest.raises(Conflict) as caught:
        fit_rows(table("c"), payload_of(table("c"), [{"id": 1, "c": "x" * 300}]), max_bytes=10**6)

    assert f"row 0: {TOO_LONG}" in caught.value.message


def _spelt(value: bytes) -> str:
    """The text of bytes in DuckDB, percent-encoded."""
    text = re.sub(
        r"[^ !#-&(-\[\]-~]", lambda found: f"\\x{ord(found[0]):02X}", value.decode("latin1")
    )
    return quote(text, safe="~")


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=210), max_size=5))
def test_texts_are_counted_as_they_are_encoded(values: list[str]) -> None:
    arrays = [pa.nulls(len(values), pa.int64()), pa.array(values, pa.string())]
    found = [i for i, _ in long_partitions(table("c"), arrays, None)]

    assert found == [
        i for i, value in enumerate(values) if len(quote(value, safe="~")) > MOST_BYTES
    ]


@given(st.lists(st.binary(max_size=210), max_size=5))
def test_bytes_are_counted_as_they_are_spelt(values: list[bytes]) -> None:
    arrays = [pa.nulls(len(values), pa.int64()), pa.array(values, pa.binary())]
    found = [i for i, _ in long_partitions(table("c", kind="BLOB"), arrays, None)]

    assert found == [i for i, value in enumerate(values) if len(_spelt(value)) > MOST_BYTES]


TEXTS = ["a b/\u00e9:=%~-_.+'\"\\&,x|", "~!@#$^*()[]{}<>?;`"]
BLOBS = [bytes(range(start, start + 32)) for start in range(0, 128, 32)]


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("VARCHAR", TEXTS, [quote(text, safe="~") for text in TEXTS]),
        ("BLOB", BLOBS, [_spelt(blob) for blob in BLOBS]),
    ],
    ids=["texts", "bytes"],
)
def test_the_engine_names_folders_as_it_is_counted(
    tmp_path: Path, kind: str, values: list[object], named: list[str]
) -> None:
    connection = duckdb_engine.connect(extensions=("ducklake",), threads=1)
    try:
        connection.execute(
            f"ATTACH 'ducklake:{tmp_path}/catalog' AS lake "
            f"(DATA_PATH '{tmp_path}/data/', DATA_INLINING_ROW_LIMIT 0)"
        )
        connection.execute(f"CREATE TABLE lake.t (c {kind})")
        connection.execute("ALTER TABLE lake.t SET PARTITIONED BY (c)")
        for value in values:
            connection.execute("INSERT INTO lake.t VALUES (?)", [value])
    finally:
        connection.close()

    folders = {path.parent.name for path in tmp_path.rglob("*.parquet")}
    assert folders == {f"c={name}" for name in named}
