"""Every type that a query answers with comes out of every format as in-process DuckDB has it, or names the cast it needs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from duckmesh_runtime.ports import QueryRun
from duckmesh_runtime.services.query import QueryAnswer, QueryRequest
from tests.fakes.doors import NOON, key, write_keys
from tests.fakes.server import KEYS, Doors, make_parts, make_settings, serve
from tests.sandboxes import RunningSandbox, SmallLake, running_sandbox, wait_for

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
NDJSON = "application/x-ndjson"

COLUMNS: dict[str, tuple[str, ...]] = {
    "BOOLEAN": ("true", "false"),
    "TINYINT": ("-128", "127"),
    "UTINYINT": ("0", "255"),
    "SMALLINT": ("-32768", "32767"),
    "USMALLINT": ("0", "65535"),
    "INTEGER": ("-2147483648", "2147483647"),
    "UINTEGER": ("0", "4294967295"),
    "BIGINT": ("-9223372036854775808", "9007199254740992"),
    "UBIGINT": ("18446744073709551615", "9007199254740993"),
    "FLOAT": ("0.1", "-3.4e38", "'NaN'", "'-Infinity'"),
    "DOUBLE": ("0.1", "1.7976931348623157e308", "5e-324", "'NaN'", "'Infinity'", "-0.0"),
    "VARCHAR": ("''", "'naïve 🦆, \"quoted\"'", "'line\nbreak'", "'NULL'"),
    "BLOB": ("''", "'\\x00\\xFF\\x80'"),
    "DATE": ("'0001-01-01'", "'9999-12-31'", "'infinity'"),
    "TIME": ("'00:00:00'", "'23:59:59.999999'", "'12:30:00.5'"),
    "TIMESTAMP": ("'0001-01-01 00:00:00'", "'9999-12-31 23:59:59.999999'", "'-infinity'"),
    "TIMESTAMP_S": ("'1969-12-31 23:59:59'", "'9999-12-31 23:59:59'"),
    "TIMESTAMP_MS": ("'1969-12-31 23:59:59.999'", "'9999-12-31 23:59:59.001'"),
    "TIMESTAMP_NS": ("'1700-01-01 00:00:00'", "'2200-12-31 23:59:59.999999999'"),
    "TIMESTAMP WITH TIME ZONE": ("'2024-03-31 02:30:00+02'", "'1900-01-01 00:00:00-11:30'"),
    "UUID": ("'00000000-0000-0000-0000-000000000000'", "'f0ffffff-ffff-ffff-ffff-ffffffffffff'"),
    "JSON": ("""'{"a": [1, null, "x"], "b": 1.50}'""", "'null'"),
    "DECIMAL(4,2)": ("99.99", "-0.01"),
    "DECIMAL(18,0)": ("999999999999999999", "0"),
    "DECIMAL(38,10)": ("'-1234567890123456789012345678.0123456789'", "0"),
    "BIGINT[]": ("[9007199254740993, NULL]", "[]"),
    "DECIMAL(3,1)[][]": ("[[1.5, NULL], [], NULL]",),
    "STRUCT(a INTEGER, b STRUCT(c UUID, d TIMESTAMP[]))": (
        "{'a': 1, 'b': {'c': 'f0ffffff-ffff-ffff-ffff-ffffffffffff', 'd': ['2024-02-29 12:00:00.25']}}",
        "{'a': NULL, 'b': NULL}",
    ),
    "MAP(VARCHAR, DOUBLE[])": ("MAP {'a, b': [0.5], '': NULL}", "MAP {}"),
    "STRUCT(d DATE, t TIME, z TIMESTAMP WITH TIME ZONE)[]": (
        "[{'d': '2024-02-29', 't': '12:00:00.5', 'z': '2024-01-01 00:00:00+01'}, NULL]",
    ),
}
"""Types of a lake's columns, each with values as DuckDB writes them; NULL is added to all."""

EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "HUGEINT": ("99999999999999999999999999999999999999", "-9007199254740993", "5"),
    "UHUGEINT": ("99999999999999999999999999999999999999", "0"),
    "HUGEINT[]": ("[1, 99999999999999999999999999999999999999]",),
    "TIME_NS": ("'01:02:03.123456789'",),
    "BIT": ("'1'", "'0101010101'", "'00000000'"),
    "INTERVAL": ("'1 year 2 days -3.000001 seconds'", "'0 days'"),
    "ENUM('a', 'b, c')": ("'a'", "'b, c'"),
    "INTEGER[3]": ("[1, NULL, 3]",),
}
"""Types that only expressions have."""

REFUSED: dict[str, tuple[str, ...]] = {
    "'12:00:00+05:30'::TIMETZ": (JSON, NDJSON, "text/csv", ARROW, PARQUET),
    "12345678901234567890::BIGNUM": (JSON, NDJSON, "text/csv", ARROW, PARQUET),
    "170141183460469231731687303715884105727::HUGEINT": (ARROW, PARQUET),
    "340282366920938463463374607431768211455::UHUGEINT": (ARROW, PARQUET),
    "TIME '24:00:00'": (ARROW, PARQUET),
    "['1'::BIT]": (ARROW, PARQUET),
    "[INTERVAL 1 DAY]": (PARQUET,),
    "union_value(a := 1)": (PARQUET,),
    "DATE '0044-03-15 (BC)'": (JSON, NDJSON, "text/csv"),
    "TIMESTAMP '10000-01-01 00:00:00'": (),
}
"""What some formats cannot say, and which."""


@dataclass
class Statements:
    """`QueryService` without catalogs of its own."""

    lake: SmallLake
    sandbox: RunningSandbox

    async def run(self, request: QueryRequest) -> QueryAnswer:
        run: QueryRun = await self.sandbox.client.run(self.lake.job(request.sql, *request.params))
        return QueryAnswer(
            run=run, snapshot_id=1, snapshot_time=NOON, token=1, lag_ms=0, waited_ms=0
        )


def literal(type_name: str, value: str) -> str:
    return f"CAST({value} AS {type_name})"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLake]:
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(COLUMNS))
    most = max(map(len, COLUMNS.values())) + 1
    rows = [
        ", ".join(literal(name, v[row] if row < len(v) else "NULL") for name, v in COLUMNS.items())
        for row in range(most)
    ]
    lake.freeze(
        "first.db",
        f"CREATE TABLE every (row_number INTEGER, {columns})",
        *(f"INSERT INTO every VALUES ({number}, {values})" for number, values in enumerate(rows)),
    )
    yield lake
    lake.data.close()


@pytest.fixture(scope="module")
def sandbox(lake: SmallLake) -> Iterator[RunningSandbox]:
    with running_sandbox(lake, concurrency=1) as running:
        wait_for(lambda: len(running.slots()) >= 1)
        yield running


@pytest.fixture
async def door(sandbox: RunningSandbox, lake: SmallLake, tmp_path: Path) -> AsyncIterator[Doors]:
    write_keys(tmp_path, KEYS)
    parts = make_parts(make_settings(tmp_path))
    parts.query = Statements(lake, sandbox)  # type: ignore[assignment]  # all that the door uses of it
    async for found in serve(parts, role="query"):
        yield found


@pytest.fixture
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


async def ask(door: Doors, sql: str, accept: str) -> tuple[int, bytes, aiohttp.ClientResponse]:
    headers = {"Accept": accept, "Authorization": f"Bearer {key('admin')}"}
    async with door.session.post(
        door.url + "/v1/query", json={"sql": sql}, headers=headers
    ) as answer:
        return answer.status, await answer.read(), answer


def texts(media: str, body: bytes) -> list[Any]:
    """The values of the column `v` of a text format; of CSV as texts, NULL and "" told apart."""
    if media == JSON:
        return [row[0] for row in json.loads(body)["rows"]]
    if media == NDJSON:
        return [json.loads(line)["v"] for line in body.decode().splitlines()]
    table = pyarrow.csv.read_csv(
        io.BytesIO(body),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={"v": pa.string()},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    found: list[Any] = table.column("v").to_pylist()
    return found


def from_text(duck: duckdb.DuckDBPyConnection, type_name: str, value: Any) -> str | None:
    """DuckDB's own text of a value that was read from a text format."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    source = "$1"
    if type_name == "BLOB":
        source = "from_base64($1)"
    elif "[" in type_name or ("(" in type_name and not type_name.startswith(("DEC", "ENUM"))):
        source = "$1::JSON"
    elif type_name == "INTERVAL":
        text = interval(text)
    return one(duck, f"CAST(CAST({source} AS {type_name}) AS VARCHAR)", text)


def interval(text: str) -> str:
    found = re.fullmatch(r"P(-?\d+)M(-?\d+)DT(-?[\d.]+)S", text)
    assert found, text
    return f"{found[1]} months {found[2]} days {found[3]} seconds"


def one(duck: duckdb.DuckDBPyConnection, expression: str, *params: object) -> str | None:
    row = duck.execute(f"SELECT {expression}", list(params)).fetchone()
    assert row is not None
    value: str | None = row[0]
    return value


def from_columns(
    duck: duckdb.DuckDBPyConnection, type_name: str, media: str, body: bytes, file: Path
) -> list[str | None]:
    """DuckDB's own texts of the values of an Arrow or Parquet answer."""
    source = "answer"
    if media == ARROW:
        with pa.ipc.open_stream(body) as reader:
            duck.register(source, reader.read_all())
    elif type_name == "TIME_NS":  # DuckDB reads no more than microseconds of it
        duck.register(source, pq.read_table(io.BytesIO(body)))
    else:
        file.write_bytes(body)
        source = f"read_parquet('{file}')"
        if type_name == "INTERVAL":
            values = [row[0] for row in duck.execute(f"SELECT v FROM {source}").fetchall()]
            return [from_text(duck, type_name, value) for value in values]
    found = duck.execute(f"SELECT CAST(CAST(v AS {type_name}) AS VARCHAR) FROM {source}").fetchall()
    return [row[0] for row in found]


CASES = [
    *((f"SELECT c{n} AS v FROM every ORDER BY row_number", *case) for n, case in enumerate(COLUMNS.items())),
    *(
        (f"SELECT * FROM (VALUES {', '.join(f'({literal(name, v)})' for v in values)}, (NULL)) t(v)", name, values)
        for name, values in EXPRESSIONS.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize("media", [JSON, NDJSON, "text/csv", ARROW, PARQUET])
async def test_every_type_comes_back_as_in_process_duckdb_has_it(
    door: Doors, duck: duckdb.DuckDBPyConnection, media: str, tmp_path: Path
) -> None:
    for number, (sql, type_name, values) in enumerate(CASES):
        want = [one(duck, f"CAST({literal(type_name, value)} AS VARCHAR)") for value in values]

        status, body, answer = await ask(door, sql, media)
        assert (status, answer.content_type) == (200, media), (type_name, body)
        if media in (ARROW, PARQUET):
            got = from_columns(duck, type_name, media, body, tmp_path / f"{number}.parquet")
        else:
            got = [from_text(duck, type_name, value) for value in texts(media, body)]

        assert got[: len(want)] == want, type_name
        assert len(got) > len(want), type_name
        assert set(got[len(want) :]) == {None}, type_name


@pytest.mark.parametrize("media", [JSON, NDJSON, "text/csv", ARROW, PARQUET])
@pytest.mark.parametrize("expression", REFUSED)
async def test_what_a_format_cannot_say_is_refused_with_the_cast_that_helps(
    door: Doors, expression: str, media: str
) -> None:
    status, body, _ = await ask(door, f"SELECT {expression} AS v", media)
    cast, text, _ = await ask(door, f"SELECT ({expression})::VARCHAR AS v", media)

    assert status == (400 if media in REFUSED[expression] else 200)
    if status == 400:
        problem = json.loads(body)
        assert problem["error_code"] == "SQL_ERROR"
        assert "cast it to VARCHAR" in problem["message"]
    assert cast == 200
    assert text


async def test_all_columns_at_once_are_read_by_others_from_parquet(
    door: Doors, duck: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    _, body, _ = await ask(door, "SELECT * FROM every ORDER BY row_number", PARQUET)
    file = tmp_path / "answer.parquet"
    file.write_bytes(body)

    found = duck.execute("SELECT column_type FROM (DESCRIBE FROM read_parquet($1))", [str(file)])

    kinds = dict(zip(COLUMNS, [kind for (kind,) in found.fetchall()][1:], strict=True))
    as_text = {name for name, kind in kinds.items() if kind == "VARCHAR"}
    assert as_text == {"VARCHAR", "UUID", "JSON"}
    assert kinds["DECIMAL(38,10)"] == "DECIMAL(38,10)"
    assert kinds["TIMESTAMP WITH TIME ZONE"] == "TIMESTAMP WITH TIME ZONE"
    assert kinds["TIMESTAMP_NS"] == "TIMESTAMP_NS"
    assert duck.execute("SELECT count(*) FROM read_parquet($1)", [str(file)]).fetchall() == [(7,)]
