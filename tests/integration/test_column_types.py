"""Every column type is taken by DuckLake under its canonical name and gives back what was sent, in every body format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.decode import BulkFormat, Op, decode_bulk, decode_records
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import TableDef, parse_table

VALUES: dict[str, list[Any]] = {
    "BOOLEAN": [True, False],
    "TINYINT": [-128, 127],
    "UTINYINT": [0, 255],
    "SMALLINT": [-(2**15), 2**15 - 1],
    "USMALLINT": [0, 2**16 - 1],
    "INTEGER": [-(2**31), 2**31 - 1],
    "UINTEGER": [0, 2**32 - 1],
    "BIGINT": [-(2**63), 2**63 - 1],
    "UBIGINT": [0, 2**64 - 1],
    "FLOAT": [0.5, -1.5],
    "DOUBLE": [0.1, 1e300],
    "VARCHAR": ["", "naïve 🦆"],
    "BLOB": ["", "AAECAw=="],
    "DATE": ["0001-01-01", "9999-12-31"],
    "TIME": ["00:00:00", "23:59:59.999999"],
    "TIMESTAMP": ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"],
    "TIMESTAMP_S": ["0001-01-01T00:00:00", "9999-12-31T23:59:59"],
    "TIMESTAMP_MS": ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999"],
    "TIMESTAMP_NS": ["1700-01-01T00:00:00", "2200-12-31T23:59:59.999999999"],
    "TIMESTAMP WITH TIME ZONE": ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"],
    "UUID": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "JSON": [{"b": [1, None], "a": "x"}, 1.5],
    "DECIMAL(38,10)": ["-1234567890123456789012345678.0123456789", 0],
    "DECIMAL(4,2)": ["99.99", "-99.99"],
    "INTEGER[][]": [[[1, None], []], []],
    'STRUCT("end" INTEGER, "b" STRUCT("c" UUID))': [
        {"end": 1, "b": {"c": "00000000-0000-0000-0000-000000000001"}},
        {"b": None},
    ],
    "MAP(VARCHAR, JSON[])": [{"k": [{"x": 1}]}, {}],
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    folder = tmp_path_factory.mktemp("types")
    connection = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    connection.load_extension(str(_extension("ducklake")))
    connection.execute(
        f"ATTACH 'ducklake:{folder}/meta.db' AS lake (DATA_PATH '{folder}/data/', DATA_INLINING_ROW_LIMIT 0)"
    )
    connection.execute("SET TimeZone = 'UTC'")
    yield connection
    connection.close()


def _extension(name: str) -> Path:
    spec = find_spec(f"duckdb_extension_{name}")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).rglob("*.duckdb_extension"))


def test_the_list_is_complete() -> None:
    assert set(SCALARS) <= set(VALUES)


def table_of(type_name: str) -> TableDef:
    columns = [{"name": "n", "type": "BIGINT"}, {"name": "x", "type": type_name}]
    return parse_table({"name": "t", "columns": columns})


@pytest.mark.parametrize("type_name", VALUES)
def test_a_type_survives_the_lake(lake: duckdb.DuckDBPyConnection, type_name: str) -> None:
    table = table_of(type_name)
    rows = decoded(table, [*VALUES[type_name], None], "records")

    lake.register("rows", rows)
    lake.execute(f"CREATE OR REPLACE TABLE lake.t (x {table.columns[1].type})")
    lake.execute("INSERT INTO lake.t SELECT x FROM rows")

    different = lake.execute(
        f"SELECT (SELECT count(*) FROM lake.t), count(*) FROM lake.t AS a JOIN rows AS b "
        f"ON a.x IS NOT DISTINCT FROM b.x::{table.columns[1].type}"
    ).fetchone()
    assert different == (3, 3)
    (found,) = lake.execute("SELECT DISTINCT typeof(x) FROM lake.t").fetchone() or (None,)
    assert found is not None
    if type_name in SCALARS:
        assert found == type_name


@pytest.mark.parametrize("body_format", BulkFormat)
@pytest.mark.parametrize("type_name", VALUES)
def test_every_format_says_the_same(type_name: str, body_format: BulkFormat) -> None:
    table = table_of(type_name)
    values = [*VALUES[type_name], None]

    rows = decoded(table, values, body_format)

    assert rows.column("x") == decoded(table, values, "records").column("x")


def decoded(table: TableDef, values: list[Any], body_format: str) -> pa.Table:
    """The values as rows, by way of a body."""
    if body_format == "records":
        found = decode_records(table, [RawRecord(payload={"x": value}) for value in values])
    else:
        body = BODIES[BulkFormat(body_format)](table, values)
        found = decode_bulk(table, BulkFormat(body_format), body, Op.INSERT, max_bytes=10**6)
    assert not found.rejected
    return pa.Table.from_batches(found.batches)


def _ndjson(table: TableDef, values: list[Any]) -> bytes:
    return b"".join(json.dumps({"x": value}).encode() + b"\n" for value in values)


def _csv(table: TableDef, values: list[Any]) -> bytes:
    as_text = table.columns[1].kind.scalar
    cells = [v if as_text and isinstance(v, str) else json.dumps(v) for v in values]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    lines = [f",{'' if v is None else q}" for v, q in zip(values, quoted, strict=True)]
    return "\n".join(["n,x", *lines]).encode()


def _arrow(table: TableDef, values: list[Any]) -> bytes:
    rows = decoded(table, values, "records")
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    return sink.getvalue()


def _parquet(table: TableDef, values: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(decoded(table, values, "records"), sink)
    return sink.getvalue()


BODIES: dict[BulkFormat, Callable[[TableDef, list[Any]], bytes]] = {
    BulkFormat.NDJSON: _ndjson,
    BulkFormat.CSV: _csv,
    BulkFormat.ARROW: _arrow,
    BulkFormat.PARQUET: _parquet,
}


@pytest.mark.parametrize("type_name", sorted(set(SCALARS) - {"JSON"}))
def test_parquet_of_duckdb_itself_is_taken(
    lake: duckdb.DuckDBPyConnection, type_name: str, tmp_path: Path
) -> None:
    table = table_of(type_name)
    lake.register("sent", decoded(table, VALUES[type_name], "records"))
    file = tmp_path / "x.parquet"
    lake.execute(f"COPY (SELECT n, x::{type_name} AS x FROM sent) TO '{file}'")

    found = decode_bulk(table, BulkFormat.PARQUET, file.read_bytes(), Op.INSERT, max_bytes=10**6)

    assert not found.rejected
    assert pa.Table.from_batches(found.batches) == decoded(table, VALUES[type_name], "records")
