"""Every column type is taken by DuckLake under its canonical name and gives back what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from duckmesh_runtime.domain.columns import SCALARS
from duckmesh_runtime.domain.records import RawRecord, decode_records
from duckmesh_runtime.domain.schema import parse_table

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


@pytest.mark.parametrize("type_name", VALUES)
def test_a_type_survives_the_lake(lake: duckdb.DuckDBPyConnection, type_name: str) -> None:
    table = parse_table({"name": "t", "columns": [{"name": "x", "type": type_name}]})
    records = [RawRecord(payload={"x": value}) for value in (*VALUES[type_name], None)]
    decoded = decode_records(table, records)
    assert not decoded.rejected
    rows = pa.Table.from_batches([decoded.batch])

    lake.register("rows", rows)
    lake.execute(f"CREATE OR REPLACE TABLE lake.t (x {table.columns[0].type})")
    lake.execute("INSERT INTO lake.t SELECT x FROM rows")

    different = lake.execute(
        f"SELECT (SELECT count(*) FROM lake.t), count(*) FROM lake.t AS a JOIN rows AS b "
        f"ON a.x IS NOT DISTINCT FROM b.x::{table.columns[0].type}"
    ).fetchone()
    assert different == (3, 3)
    (found,) = lake.execute("SELECT DISTINCT typeof(x) FROM lake.t").fetchone() or (None,)
    assert found is not None
    if type_name in SCALARS:
        assert found == type_name
