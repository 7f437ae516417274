"""The client commands against a server with services in memory."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from duckmesh_runtime.__main__ import main
from duckmesh_runtime.cli import connection
from duckmesh_runtime.cli.client import ApiError, Client, Connection
from duckmesh_runtime.cli.show import spark
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Invalid, Unavailable
from tests.fakes.doors import LAKE, key


class Cli:
    """`duckmesh` with the URL and key of a server."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.file = folder / "connection.json"

    async def __call__(
        self, *args: str, as_key: str | None = "admin", input: str | None = None
    ) -> Result:
        env = {"DUCKMESH_URL": self.url} | ({"DUCKMESH_API_KEY": key(as_key)} if as_key else {})
        return await asyncio.to_thread(self.run, args, env, input)

    def run(self, args: tuple[str, ...], env: dict[str, str], input: str | None = None) -> Result:
        return CliRunner().invoke(
            main, ["--connection", str(self.file), *args], env=env, input=input
        )


@pytest.fixture
def cli(doors: Any, tmp_path: Path) -> Cli:
    return Cli(doors.url, tmp_path)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    file = tmp_path / "events.csv"
    file.write_text("id\n1\n2\n3\n")
    return file


async def test_a_file_goes_in_and_a_second_time_adds_nothing(
    cli: Cli, doors: Any, events: Path
) -> None:
    first = await cli("ingest", str(events), "--output", "json")
    second = await cli("ingest", str(events), "--output", "json")

    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr + second.stderr
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert (one["table"], one["accepted"], one["duplicates"]) == ("events", 3, 0)
    assert (two["accepted"], two["duplicates"], two["token"]) == (0, 3, one["token"])
    assert len(doors.ingest.bodies) == 1


async def test_people_see_rows_what_was_known_and_the_token(cli: Cli, events: Path) -> None:
    await cli("ingest", str(events))
    result = await cli("ingest", str(events), "--wait")

    assert result.stdout.strip() == str(Token(lake=LAKE, timeline=1, number=3))
    assert "3 of them already there" in result.stderr
    assert "visible in snapshot 7" in result.stderr


async def test_create_makes_the_table_of_the_file(cli: Cli, doors: Any, tmp_path: Path) -> None:
    file = tmp_path / "My Orders.csv"
    file.write_text("id,price,at\n1,1.5,2024-01-01 00:00:00\n")

    result = await cli("ingest", str(file), "--create", "--output", "json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["table"] == "my_orders"
    made = doors.ingest.known["my_orders"]
    assert [c.type for c in made.columns] == ["BIGINT", "DOUBLE", "TIMESTAMP"]


async def test_without_create_a_missing_table_is_named_with_what_to_do(
    cli: Cli, events: Path
) -> None:
    result = await cli("ingest", str(events), "--table", "nowhere")

    assert result.exit_code == 1
    assert "TABLE_NOT_FOUND" in result.stderr
    assert "--create" in result.stderr
    assert "trace_id" in result.stderr


async def test_a_key_that_may_only_write_sends_the_files_own_columns(
    cli: Cli, doors: Any, events: Path
) -> None:
    result = await cli("ingest", str(events), "--output", "json", as_key="ingest-writer")

    assert result.exit_code == 0, result.stderr
    assert len(doors.ingest.bodies) == 1


async def test_a_refused_piece_ends_the_run(cli: Cli, doors: Any, events: Path) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise Invalid("VALIDATION_FAILED", "id: want a whole number")

    doors.ingest.ingest_arrow = refuse

    result = await cli("ingest", str(events))

    assert result.exit_code == 1
    assert "VALIDATION_FAILED: id: want a whole number" in result.stderr


async def test_a_busy_lake_is_asked_again(cli: Cli, doors: Any, events: Path) -> None:
    real, tries = doors.ingest.ingest_arrow, []

    async def busy(*args: Any, **options: Any) -> Any:
        tries.append(1)
        if len(tries) < 2:
            raise Unavailable("CATALOG_UNAVAILABLE", "away", retry_after_s=1)
        return await real(*args, **options)

    doors.ingest.ingest_arrow = busy

    result = await cli("ingest", str(events), "--output", "json")

    assert (result.exit_code, len(tries)) == (0, 2)


async def test_a_query_prints_a_table_and_its_snapshot(cli: Cli) -> None:
    result = await cli("query", "SELECT n FROM t")

    assert result.exit_code == 0
    assert "n" in result.stdout
    assert "2 rows; snapshot 7" in result.stderr


async def test_data_cannot_drive_the_terminal(cli: Cli, doors: Any) -> None:
    doors.query.batches = [pa.RecordBatch.from_pydict({"n": ["\x1b[31mred\x07"]})]
    doors.query.type_names = ["VARCHAR"]

    result = await cli("query", "SELECT n")

    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred\\x07" in result.stdout


async def test_more_columns_than_the_terminal_is_wide_are_shown_down(cli: Cli, doors: Any) -> None:
    names = [f"column_{i}" for i in range(30)]
    doors.query.batches = [pa.RecordBatch.from_pydict({name: [7] for name in names})]
    doors.query.type_names = ["BIGINT"] * 30

    result = await cli("query", "SELECT *")

    assert all(name in result.stdout for name in names)


async def test_a_query_asks_for_a_token_and_limits(cli: Cli, doors: Any) -> None:
    token = str(Token(lake=LAKE, timeline=1, number=9))

    await cli(
        "query", "-", "--token", token, "--limit", "3", "--timeout-ms", "40", input="SELECT 1"
    )

    (asked,) = doors.query.asked
    assert (asked.sql, asked.min_number, asked.row_limit, asked.timeout_ms) == (
        "SELECT 1",
        9,
        3,
        40,
    )


async def test_a_query_prints_the_formats_as_they_come(cli: Cli) -> None:
    as_json = await cli("query", "SELECT n", "--output", "json")
    as_csv = await cli("query", "SELECT n", "--output", "csv")
    as_arrow = await cli("query", "SELECT n", "--output", "arrow")

    assert json.loads(as_json.stdout)["rows"] == [[1], [2]]
    assert as_csv.stdout == '"n"\n1\n2\n'
    with pa.ipc.open_stream(io.BytesIO(as_arrow.stdout_bytes)) as reader:
        assert reader.read_all().to_pydict() == {"n": [1, 2]}


async def test_lag_tables_and_status_are_shown(cli: Cli) -> None:
    lag = await cli("lag", "--output", "json")
    shown = await cli("lag")
    tables = await cli("tables")
    listed = await cli("tables", "--output", "json")
    status = await cli("status")

    assert json.loads(lag.stdout)["lag_ms"] == 0
    assert "lag_ms" in shown.stdout
    assert "id BIGINT" in tables.stdout
    assert json.loads(listed.stdout)[0]["name"] == "events"
    assert status.stdout.startswith("status: ok")


async def test_lag_is_watched_until_it_cannot_be_read(cli: Cli, doors: Any) -> None:
    real, times = doors.parts.bus.backlog, []

    async def backlog() -> Any:
        times.append(1)
        if len(times) > 2:
            raise Invalid("FORBIDDEN", "no longer")
        return await real()

    doors.parts.bus.backlog = backlog

    result = await cli("lag", "-w")

    assert (result.exit_code, len(times)) == (1, 3)
    assert "history" in result.stdout


@pytest.mark.parametrize(
    ("values", "drawn"), [([0, 0], "  "), ([0, 1, 8], " ▁█"), ([5], "█"), ([1, 1000], "▁█")]
)
def test_lag_is_drawn_as_high_as_its_part_of_the_largest(values: list[int], drawn: str) -> None:
    assert spark(values) == drawn


async def test_status_tells_of_a_lake_that_is_not_ready(cli: Cli, doors: Any) -> None:
    doors.parts.health.draining = True

    result = await cli("status", as_key="query-reader")

    assert result.exit_code == 0
    assert "status: draining" in result.stdout
    assert "ops_admin" in result.stdout


async def test_a_wrong_key_is_told_what_to_check(cli: Cli) -> None:
    result = await cli("tables", as_key="stranger")

    assert result.exit_code == 1
    assert "UNAUTHENTICATED" in result.stderr
    assert "DUCKMESH_API_KEY" in result.stderr


async def test_flags_come_before_the_environment(cli: Cli) -> None:
    wrong = await cli("--api-key", key("nobody"), "tables")
    right = await cli("tables", "--api-key", key("admin"), as_key="stranger")

    assert "FORBIDDEN" in wrong.stderr
    assert right.exit_code == 0


def test_without_a_lake_or_a_key_the_usage_is_explained(tmp_path: Path) -> None:
    cli = Cli("", tmp_path)

    no_url = cli.run(("tables",), {})
    no_key = cli.run(("tables",), {"DUCKMESH_URL": "http://127.0.0.1:1"})

    assert (no_url.exit_code, no_key.exit_code) == (2, 2)
    assert "duckmesh dev" in no_url.stderr
    assert "DUCKMESH_API_KEY" in no_key.stderr


async def test_the_saved_connection_is_used_and_its_key_goes_nowhere_else(
    cli: Cli, doors: Any
) -> None:
    assert connection.save_connection(cli.file, doors.url, key("admin"))

    used = await asyncio.to_thread(cli.run, ("tables",), {})
    elsewhere = await asyncio.to_thread(cli.run, ("--url", "http://127.0.0.1:1", "tables"), {})

    assert used.exit_code == 0
    assert elsewhere.exit_code == 2
    assert cli.file.stat().st_mode & 0o777 == 0o600


def test_a_connection_of_other_origin_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "connection.json"
    file.write_text('{"url": "http://production", "api_key": "dmk_x"}')

    assert not connection.save_connection(file, "http://127.0.0.1:1", "dmk_y")
    assert "production" in file.read_text()


async def test_nobody_there_is_unreachable_after_the_retries() -> None:
    nobody = Connection(url="http://127.0.0.1:1", api_key="dmk_x", retry_s=0.3)

    async with Client(nobody) as client:
        with pytest.raises(ApiError) as caught:
            await client.call("GET", "/v1/tables")

    assert (caught.value.code, caught.value.retryable) == ("UNREACHABLE", True)
    assert "dmk_x" not in repr(nobody) + str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "strange.xyz", "broken.parquet", "broken.arrow"])
async def test_a_file_that_cannot_be_read_is_named(cli: Cli, tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("not data")

    result = await cli("ingest", str(tmp_path / name), "--table", "events", "--create")

    assert result.exit_code == 1
    assert name in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("args", [["--help"], ["ingest", "--help"], ["serve", "ingest", "--help"]])
def test_help_loads_no_engine(args: list[str]) -> None:
    code = (
        "import sys\nfrom duckmesh_runtime.__main__ import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit:\n    pass\n"
        "loaded = {'duckdb', 'pyarrow', 'asyncpg', 'aiohttp', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)

    assert run.returncode == 0, run.stderr


async def test_a_query_from_the_command_line_loads_no_engine(cli: Cli, doors: Any) -> None:
    code = (
        "import sys\nfrom duckmesh_runtime.__main__ import main\n"
        "try:\n    main(['query', 'SELECT 1'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "loaded = {'duckdb', 'pyarrow', 'asyncpg'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env={"DUCKMESH_URL": doors.url, "DUCKMESH_API_KEY": key("admin")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )

    _, errors = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, errors
