"""The client commands against a server with services in memory."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from duckmesh_runtime.__main__ import main
from duckmesh_runtime.cli import bodies, connection
from duckmesh_runtime.cli.client import ApiError, Client, Connection
from duckmesh_runtime.cli.show import show_error
from duckmesh_runtime.domain.sift import Rejected
from duckmesh_runtime.domain.tokens import Token
from duckmesh_runtime.errors import Conflict, Invalid, Unavailable
from tests.fakes.doors import LAKE, key


class Cli:
    """`duckmesh` with the URL and key of a server."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.file = folder / "connection.json"

    async def __call__(
        self,
        *args: str,
        as_key: str | None = "admin",
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        known = {"DUCKMESH_URL": self.url} | ({"DUCKMESH_API_KEY": key(as_key)} if as_key else {})
        return await asyncio.to_thread(self.run, args, {**known, **(env or {})}, input)

    def run(
        self, args: tuple[str, ...], env: dict[str, str], input: str | bytes | None = None
    ) -> Result:
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

    doors.ingest.ingest_bulk = refuse

    result = await cli("ingest", str(events))

    assert result.exit_code == 1
    assert "VALIDATION_FAILED: id: want a whole number" in result.stderr


async def test_a_busy_lake_is_asked_again(cli: Cli, doors: Any, events: Path) -> None:
    real, tries = doors.ingest.ingest_bulk, []

    async def busy(*args: Any, **options: Any) -> Any:
        tries.append(1)
        if len(tries) < 2:
            raise Unavailable("CATALOG_UNAVAILABLE", "away", retry_after_s=1)
        return await real(*args, **options)

    doors.ingest.ingest_bulk = busy

    result = await cli("ingest", str(events), "--output", "json")

    assert (result.exit_code, len(tries)) == (0, 2)


async def test_text_goes_as_it_is_in_pieces_with_a_key_each(
    cli: Cli, doors: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES", 30)
    file = tmp_path / "events.ndjson"
    file.write_text("".join(f'{{"id": {i}}}\n' for i in range(10)))

    result = await cli("ingest", str(file), "--op", "insert", "--atomic", "--output", "json")

    assert result.exit_code == 0, result.stderr
    sent = doors.ingest.bodies
    assert {(b.format, b.op, b.atomic) for b in sent} == {("ndjson", "insert", True)}
    assert b"".join(b.content for b in sent) == file.read_bytes()
    assert len({b.key for b in sent}) == len(sent) > 2


async def test_a_file_sent_for_another_operation_has_other_keys(
    cli: Cli, doors: Any, events: Path
) -> None:
    for op in ("upsert", "delete"):
        await cli("ingest", str(events), "--op", op)

    assert len({body.key for body in doors.ingest.bodies}) == 2


async def test_rejected_rows_are_named_by_their_place_and_fail_the_run(
    cli: Cli, doors: Any, events: Path
) -> None:
    doors.ingest.rejected = [Rejected(index=1, code="VALIDATION_FAILED", message="id: want 1")]

    result = await cli("ingest", str(events), "--output", "json")

    assert result.exit_code == 1
    assert "row 2: id: want 1" in result.stderr
    assert json.loads(result.stdout)["rejected"] == 1


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


TERMINAL = {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0", "COLUMNS": "80", "TERM": "xterm"}


def _answers(doors: Any, columns: dict[str, list[Any]], types: list[str]) -> None:
    doors.query.batches = [pa.RecordBatch.from_pydict(columns)]
    doors.query.type_names = types


async def test_more_columns_than_the_terminal_is_wide_are_shown_down(cli: Cli, doors: Any) -> None:
    names = [f"column_{i}" for i in range(30)]
    _answers(doors, {name: [7] for name in names}, ["BIGINT"] * 30)

    result = await cli("query", "SELECT *", env=TERMINAL)

    assert all(name in result.stdout for name in names)
    assert max(map(len, result.stdout.splitlines())) <= 80


async def test_many_rows_of_many_columns_show_the_first_and_last_columns(
    cli: Cli, doors: Any
) -> None:
    names = [f"c{i}" for i in range(30)]
    _answers(doors, {name: [7] * 50 for name in names}, ["BIGINT"] * 30)

    result = await cli("query", "SELECT *", env=TERMINAL)

    assert "c0 " in result.stdout
    assert "c29 " in result.stdout
    assert "c15 " not in result.stdout
    assert "7 of 30 columns shown" in result.stderr


async def test_long_values_are_cut_on_a_terminal_and_whole_elsewhere(cli: Cli, doors: Any) -> None:
    _answers(doors, {"id": [1], "text": ["long " * 100]}, ["BIGINT", "VARCHAR"])

    terminal = await cli("query", "SELECT *", env=TERMINAL)
    piped = await cli("query", "SELECT *")

    assert "…" in terminal.stdout
    assert max(map(len, terminal.stdout.splitlines())) <= 80
    assert "long " * 100 in piped.stdout


async def test_very_many_rows_show_the_first_and_the_last(cli: Cli, doors: Any) -> None:
    _answers(doors, {"n": list(range(10_000, 13_000))}, ["BIGINT"])

    result = await cli("query", "SELECT *")

    assert "10499" in result.stdout
    assert "12500" in result.stdout
    assert "10500" not in result.stdout
    assert "1,000 of 3,000 rows shown" in result.stderr


async def test_colours_are_for_terminals_that_want_them(cli: Cli) -> None:
    async def printed(**env: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "duckmesh_runtime", "status", "--url", cli.url),
            env={"DUCKMESH_API_KEY": "dmk_x", **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        return errors.decode()

    terminal, without = await printed(**TERMINAL), await printed(**TERMINAL, NO_COLOR="1")
    piped = await printed()

    assert "\x1b[1;31merror UNAUTHENTICATED" in terminal
    assert "\x1b[1merror UNAUTHENTICATED" in without
    assert "\x1b" not in piped


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


@pytest.mark.parametrize(
    ("option", "value", "at"),
    [
        ("--snapshot", "0", 0),
        ("--snapshot", "412", 412),
        ("--at", "2026-01-31T13:00:00+01:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
async def test_a_query_asks_for_the_past(
    cli: Cli, doors: Any, option: str, value: str, at: int | datetime
) -> None:
    await cli("query", "SELECT 1", option, value)

    (asked,) = doors.query.asked
    assert asked.at == at


@pytest.mark.parametrize(
    ("at", "told"),
    [
        pytest.param("yesterday", "is no time", id="no time"),
        pytest.param("2026-01-31T12:00:00", "2026-01-31T12:00:00Z when it is in UTC", id="no zone"),
        pytest.param("2026-02-31T12:00:00Z", "is no time", id="no such day"),
    ],
)
async def test_a_time_that_is_none_is_told_before_anything_is_asked(
    cli: Cli, doors: Any, at: str, told: str
) -> None:
    result = await cli("query", "SELECT 1", "--at", at)

    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not doors.query.asked


async def test_two_ways_to_name_a_snapshot_are_refused_by_name(cli: Cli, doors: Any) -> None:
    result = await cli("query", "SELECT 1", "--snapshot", "3", "--at", "2026-01-31T13:00:00Z")

    assert result.exit_code == 1
    assert "snapshot_id" in result.stderr
    assert "snapshot_time" in result.stderr
    assert not doors.query.asked


async def test_a_query_prints_the_formats_as_they_come(cli: Cli) -> None:
    as_json = await cli("query", "SELECT n", "--output", "json")
    as_csv = await cli("query", "SELECT n", "--output", "csv")
    as_arrow = await cli("query", "SELECT n", "--output", "arrow")
    as_parquet = await cli("query", "SELECT n", "--output", "parquet")

    assert json.loads(as_json.stdout)["rows"] == [[1], [2]]
    assert as_csv.stdout == '"n"\n1\n2\n'
    with pa.ipc.open_stream(io.BytesIO(as_arrow.stdout_bytes)) as reader:
        assert reader.read_all().to_pydict() == {"n": [1, 2]}
    assert pq.read_table(io.BytesIO(as_parquet.stdout_bytes)).to_pydict() == {"n": [1, 2]}


@pytest.mark.parametrize("output", ["csv", "ndjson", "arrow", "parquet"])
async def test_a_streamed_answer_says_what_it_is_of_and_that_it_may_be_cut(
    cli: Cli, output: str
) -> None:
    whole = await cli("query", "SELECT n", "--output", output)
    cut = await cli("query", "SELECT n", "--output", output, "--limit", "2")

    assert (whole.exit_code, cut.exit_code) == (0, 0)
    assert whole.stderr.startswith("2 rows; snapshot 7 of 2026-01-31T12:00:00Z, lag 5 ms")
    assert cut.stderr.startswith("2 rows (the row limit is 2: there may be more); snapshot 7")


async def test_an_answer_that_was_cut_says_so(cli: Cli, doors: Any) -> None:
    doors.query.truncated = True

    table = await cli("query", "SELECT n")
    as_json = await cli("query", "SELECT n", "--output", "json")

    assert "2 rows (cut at the row limit" in table.stderr
    assert "2 rows (cut at the row limit" in as_json.stderr
    assert json.loads(as_json.stdout)["truncated"]


async def test_an_answer_that_breaks_off_is_never_taken_for_the_whole(cli: Cli, doors: Any) -> None:
    doors.query.batches = [pa.RecordBatch.from_pydict({"n": [1, 2]})] * 2
    doors.query.failure, doors.query.failure_after = Invalid("QUERY_MEMORY", "too much"), 1

    result = await cli("query", "SELECT n", "--output", "csv")

    assert result.exit_code == 1
    assert "rows came and are not all" in result.stderr
    assert "INCOMPLETE" in result.stderr
    assert "--output json" in result.stderr
    assert "snapshot 7" not in result.stderr


async def test_bytes_are_not_for_a_terminal(
    cli: Cli, doors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)

    result = await cli("query", "SELECT n", "--output", "parquet")

    assert result.exit_code == 2
    assert "redirect it" in result.stderr
    assert not doors.query.asked


async def test_a_key_used_for_something_else_speaks_of_files_where_one_was_sent(
    cli: Cli, doors: Any, events: Path
) -> None:
    async def conflict(*_: object, **__: object) -> None:
        raise Conflict("IDEMPOTENCY_CONFLICT", "Idempotency-Key: was used with other content")

    doors.ingest.ingest_bulk = conflict
    doors.parts.tables.versions = conflict

    sent = await cli("ingest", str(events))
    asked = await cli("tables", "describe", "events")

    assert "the same file was sent before" in sent.stderr
    assert "the key was used for something else" in asked.stderr
    assert "file" not in asked.stderr


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
    nobody = Connection(url="http://127.0.0.1:1", api_key="dmk_x", retry_s=1)

    told: list[tuple[ApiError, float]] = []
    async with Client(nobody, away=lambda *said: told.append(said)) as client:
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await client.call("GET", "/v1/tables")

    assert (caught.value.code, caught.value.retryable) == ("UNREACHABLE", True)
    assert "dmk_x" not in repr(nobody) + str(caught.value)
    ((first, left_s),) = told  # once, while there is time left
    assert "http://127.0.0.1:1 does not answer" in first.message
    assert 0 < left_s <= 1


def test_each_refused_record_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    rejected = [{"index": i, "message": "id: want a whole number"} for i in (3, 4)]
    message = "record 3: id: want a whole number (and 1 more, see rejected)"

    show_error(
        ApiError({"error_code": "VALIDATION_FAILED", "message": message, "rejected": rejected})
    )

    told = capsys.readouterr().err
    assert [told.count(f"record {i}: id: want a whole number") for i in (3, 4)] == [1, 1]


async def test_what_is_no_url_is_told_at_once(cli: Cli) -> None:
    result = await asyncio.to_thread(cli.run, ("--url", "foo", "--api-key", "x", "tables"), {})

    assert result.exit_code == 1
    assert "foo is no URL: want one like http://127.0.0.1:8080" in result.stderr
    assert "trying again" not in result.stderr


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
