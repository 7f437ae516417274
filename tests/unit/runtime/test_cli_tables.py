"""`duckmesh tables` against a table service over a bus in memory."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fakes.server import serve
from tests.fakes.tables import TableLake, table_lake
from tests.unit.runtime.test_cli import TERMINAL, Cli


@pytest.fixture
async def lake() -> AsyncIterator[TableLake]:
    async with table_lake() as made:
        yield made


@pytest.fixture
async def cli(parts: Any, lake: TableLake, tmp_path: Path) -> AsyncIterator[Cli]:
    parts.tables, parts.barrier = lake.tables, lake.barrier
    async for doors in serve(parts):
        yield Cli(doors.url, tmp_path)


USERS = ("tables", "create", "users", "--column", "id", "BIGINT", "--column", "mail", "VARCHAR")


async def test_a_table_is_made_described_changed_and_dropped(cli: Cli, lake: TableLake) -> None:
    made = await cli(*USERS, "--key", "id", "--sort-by", "mail")
    described = await cli("tables", "describe", "users", "--output", "csv")
    changes = ("--rename", "mail", "address", "--add", "at", "TIMESTAMP", "--default", "id", "7")
    changed = await cli("tables", "alter", "users", *changes, "--sort-by", "at")
    after = await cli("tables", "list", "--output", "csv")
    dropped = await cli("tables", "drop", "users", "--yes")

    assert (made.exit_code, made.stdout) == (0, "table users is there\n"), made.stderr
    assert described.stdout.splitlines() == [
        "column,type,nullable,default,key,partition,sort",
        "id,BIGINT,no,,1,,",
        "mail,VARCHAR,yes,,,,1",
    ]
    assert (changed.exit_code, changed.stdout) == (0, "table users is changed\n"), changed.stderr
    assert after.stdout.splitlines()[1:] == [
        "users,id,BIGINT,no,7,1,,",
        "users,address,VARCHAR,yes,,,,",
        "users,at,TIMESTAMP,yes,,,,1",
    ]
    assert (dropped.exit_code, dropped.stdout) == (0, "table users is dropped\n"), dropped.stderr
    assert not await lake.tables.all()


async def test_a_table_is_made_like_a_file(cli: Cli, lake: TableLake, tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    pq.write_table(pa.table({"id": pa.array([1], pa.int32()), "day": pa.array(["x"])}), file)

    made = await cli(
        "tables",
        "create",
        "events",
        "--from",
        str(file),
        "--partition-by",
        "day",
        "--output",
        "json",
    )

    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["max_visibility_token"].startswith("v1_")
    (table,) = await lake.tables.all()
    assert [(c.name, c.type) for c in table.columns] == [("id", "INTEGER"), ("day", "VARCHAR")]
    assert list(table.partition_by) == ["day"]


async def test_a_table_is_dropped_only_when_asked_so(cli: Cli, lake: TableLake) -> None:
    await cli(*USERS)

    no = await cli("tables", "drop", "users", input="n\n")
    never = await cli("tables", "drop", "nothing", input="y\n")

    assert no.exit_code == 1
    assert "table users: id BIGINT, mail VARCHAR" in no.stderr
    assert "Drop it" not in never.stderr
    assert "TABLE_NOT_FOUND" in never.stderr
    assert len(await lake.tables.all()) == 1


async def test_a_slow_change_is_sent_once_and_waited_for(cli: Cli, lake: TableLake) -> None:
    lake.barrier.slow = 1

    made = await cli(*USERS)

    assert (made.exit_code, made.stdout) == (0, "table users is there\n"), made.stderr
    assert (await lake.bus.head()).last == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        pytest.param(("create", "t"), "--from FILE", id="no columns"),
        pytest.param(
            ("create", "t", "--from", "x.csv", "--column", "a", "BIGINT"), "--from", id="both"
        ),
        pytest.param(("create", "t", "--from", "missing.csv"), "missing.csv", id="no file"),
        pytest.param(("alter", "t"), "nothing to change", id="no change"),
        pytest.param(("alter", "t", "--default", "a", "web"), '"web" with its', id="no JSON"),
    ],
)
async def test_what_is_missing_is_told_before_anything_is_sent(
    cli: Cli, lake: TableLake, args: tuple[str, ...], told: str
) -> None:
    result = await cli("tables", *args)

    assert result.exit_code in (1, 2)
    assert told in result.stderr
    assert not await lake.tables.all()


async def test_tables_come_as_arrow_and_fit_a_terminal(cli: Cli) -> None:
    columns = [word for i in range(40) for word in ("--column", f"column_{i}", "BIGINT")]
    await cli("tables", "create", "wide", *columns)

    as_arrow = await cli("tables", "--output", "arrow")
    shown = await cli("tables", env=TERMINAL)
    whole = await cli("tables")

    with pa.ipc.open_stream(io.BytesIO(as_arrow.stdout_bytes)) as reader:
        found = reader.read_all()
    assert found.column("column").to_pylist() == [f"column_{i}" for i in range(40)]
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "…" in shown.stdout
    assert "column_39 BIGINT" in whole.stdout
