"""The sandbox as a process: what a statement may get, and that nothing a statement does outlives its slot."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from duckmesh_runtime.adapters import sandbox_client
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.errors import Corrupt, DuckmeshError, Failed, Invalid, Limited, Unavailable
from duckmesh_runtime.ports import QueryRun
from tests.mixed import frozen_numbers, run_mixed, unexpected
from tests.sandboxes import (
    ENDLESS,
    ROWS,
    SOON_S,
    RunningSandbox,
    SmallLake,
    ask,
    eventually,
    running_sandbox,
    wait_for,
)

GROUPS = Path("/sys/fs/cgroup/memory")
SLOTS = 2 + 1
"""Two run statements, one stands by."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLake]:
    lake = SmallLake(tmp_path_factory.mktemp("lake"))
    frozen_numbers(lake)
    lake.freeze("second.db", "CREATE TABLE small AS SELECT 2 AS one")
    yield lake
    lake.data.close()


@pytest.fixture(scope="module")
def sandbox(lake: SmallLake) -> Iterator[RunningSandbox]:
    with running_sandbox(lake) as running:
        wait_for(lambda: len(running.slots()) == SLOTS)
        yield running


@pytest.fixture(scope="module")
def lone(lake: SmallLake) -> Iterator[SandboxClient]:
    """One statement at a time: each runs where the one before it did."""
    with running_sandbox(lake, name="lone", concurrency=1) as running:
        yield running.client


@pytest.fixture
def client(sandbox: RunningSandbox, lake: SmallLake) -> Iterator[SandboxClient]:
    yield sandbox.client
    lake.data.fail_with = None


async def test_rows_types_and_figures_come_back(client: SandboxClient, lake: SmallLake) -> None:
    answer = await ask(client, lake.job("SELECT id, name FROM numbers WHERE id < 7 ORDER BY id"))

    assert [row["id"] for row in answer.rows] == [0, 1, 2, 3, 4, 6]
    assert answer.rows[0]["name"] == "n0"
    assert answer.type_names == ["BIGINT", "VARCHAR"]
    assert (answer.stats.rows, answer.stats.truncated) == (6, False)
    assert answer.stats.scanned_files == 1


@pytest.mark.parametrize(
    "table", ["numbers", "main.numbers", "lake.numbers", "lake.main.numbers", '"NUMBERS"']
)
async def test_a_table_is_found_by_each_of_its_names(
    client: SandboxClient, lake: SmallLake, table: str
) -> None:
    assert (await ask(client, lake.job(f"SELECT count(*) FROM {table}"))).value == ROWS - 1


@pytest.mark.parametrize(
    ("sql", "params", "value"),
    [
        ("SELECT ? + ?", (40, 2), 42),
        ("SELECT $2 || $1", ("b", "a"), "ab"),
        ("SELECT $1 IS NULL", (None,), True),
        ("SELECT len($1)", ([1, 2, 3],), 3),
        ("SELECT count(*) FROM numbers WHERE id IN (SELECT unnest($1))", ([1, 2, 5],), 2),
        ("SELECT name FROM numbers WHERE id = $1", (17,), "n17"),
        ("SELECT $1", (2**63 + 1,), 2**63 + 1),
        ("SELECT $1", ("'; DROP TABLE numbers; --",), "'; DROP TABLE numbers; --"),
    ],
)
async def test_parameters_are_values(
    client: SandboxClient, lake: SmallLake, sql: str, params: tuple[object, ...], value: object
) -> None:
    assert (await ask(client, lake.job(sql, *params))).value == value


@pytest.mark.parametrize(
    ("sql", "type_name", "value"),
    [
        ("1.50::DECIMAL(10, 2)", "DECIMAL(10,2)", Decimal("1.50")),
        ("DATE '2024-02-29'", "DATE", dt.date(2024, 2, 29)),
        (
            "TIMESTAMPTZ '2024-02-29 12:00:00+02'",
            "TIMESTAMP WITH TIME ZONE",
            dt.datetime(2024, 2, 29, 10, tzinfo=dt.UTC),
        ),
        ("'b'::ENUM('a', 'b')", "ENUM('a', 'b')", "b"),
        ("['b'::ENUM('a', 'b')]", "ENUM('a', 'b')[]", ["b"]),
        ("{'a': [1, NULL]}", "STRUCT(a INTEGER[])", {"a": [1, None]}),
        ("MAP {1: 'x'}", "MAP(INTEGER, VARCHAR)", [(1, "x")]),
        ("'x'::BLOB", "BLOB", b"x"),
        ("NULL", "INTEGER", None),
    ],
)
async def test_values_keep_their_types(
    client: SandboxClient, lake: SmallLake, sql: str, type_name: str, value: object
) -> None:
    answer = await ask(client, lake.job(f"SELECT {sql}"))

    assert answer.type_names == [type_name]
    assert answer.value == value


async def test_the_lake_describes_itself(client: SandboxClient, lake: SmallLake) -> None:
    tables = await ask(client, lake.job("SHOW TABLES"))
    columns = await ask(client, lake.job("DESCRIBE numbers"))
    found = await ask(
        client,
        lake.job("SELECT table_catalog, table_name FROM information_schema.tables ORDER BY ALL"),
    )
    plan = await ask(client, lake.job("EXPLAIN ANALYZE SELECT count(*) FROM numbers WHERE id > 1"))

    assert [row["name"] for row in tables.rows] == ["numbers", "small"]
    assert [row["column_name"] for row in columns.rows] == ["id", "name"]
    assert [tuple(row.values()) for row in found.rows] == [("lake", "numbers"), ("lake", "small")]
    assert "numbers" in plan.rows[0]["explain_value"]
    assert re.search(r"│ +1 row +│\n│ +\d+\.\d+s +│", plan.rows[0]["explain_value"])


async def test_a_result_is_cut_at_the_row_limit(client: SandboxClient, lake: SmallLake) -> None:
    cut = await ask(client, lake.job("FROM range(50000)", row_limit=20_000))
    whole = await ask(client, lake.job("FROM range(20000)", row_limit=20_000))

    assert (len(cut.rows), cut.stats.rows, cut.stats.truncated) == (20_000, 20_000, True)
    assert (len(whole.rows), whole.stats.truncated) == (20_000, False)


async def test_an_empty_result_has_its_columns(client: SandboxClient, lake: SmallLake) -> None:
    run = await client.run(lake.job("SELECT id FROM numbers WHERE id < 0"))

    assert run.schema.names == ["id"]
    assert [batch async for batch in run.batches] == []


async def test_each_statement_reads_its_own_catalog(client: SandboxClient, lake: SmallLake) -> None:
    second = str(lake.catalogs / "second.db")

    answers = await asyncio.gather(
        *(ask(client, lake.job("SELECT one FROM small")) for _ in range(4)),
        *(ask(client, lake.job("SELECT one FROM small", catalog_path=second)) for _ in range(4)),
    )

    assert [answer.value for answer in answers] == [1] * 4 + [2] * 4


async def test_a_large_result_streams(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    """More bytes than the slot may have; the supervisor holds a few frames at most."""
    sql = "SELECT repeat('x', 300) || range AS t FROM range(1000000)"
    supervisor = psutil.Process(sandbox.process.pid)
    before, most, size = supervisor.memory_info().rss, 0, 0

    run = await client.run(lake.job(sql))
    async for batch in run.batches:
        size += batch.nbytes
        most = max(most, supervisor.memory_info().rss)

    assert size > 300_000_000
    assert most - before < 50 * 2**20


@pytest.mark.parametrize(
    ("sql", "code", "words"),
    [
        ("SELECT * FROM nope", "SQL_ERROR", "nope"),
        ("SELECT nope FROM numbers", "SQL_ERROR", "nope"),
        ("SELEC 1", "SQL_ERROR", "syntax"),
        ("SELECT 'a'::INTEGER", "SQL_ERROR", "Conversion"),
        ("SELECT $1", "SQL_ERROR", "param"),
        ("SELECT error('boom') FROM numbers", "SQL_ERROR", "boom"),
        ("CREATE TABLE t (a INTEGER)", "SQL_NOT_ALLOWED", "CREATE"),
        ("SELECT 1; SELECT 2", "SQL_NOT_ALLOWED", "2 statements"),
        (
            "SELECT a, a, a, a, a FROM (SELECT repeat('x', 15000000) AS a)",
            "RESULT_TOO_LARGE",
            "row",
        ),
    ],
)
async def test_a_bad_statement_says_why(
    client: SandboxClient, lake: SmallLake, sql: str, code: str, words: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(client, lake.job(sql))

    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("sql", "params", "line", "column"),
    [
        ("SELECT nope FROM numbers", (), 1, 8),
        ("SELECT *\n  FROM nope", (), 2, 8),
        ("-- first\nSELECT 'ä€😀',\n\tnope FROM numbers", (), 3, 2),
        ("SELECT\u00a0'ä', nope", (), 1, 13),
        ("SELECT $1,\n $2 + nope", (1, "long"), 2, 7),
        ("SELECT id FROM numbers WHERE\nid = 'x'::BIGINT", (), 2, 9),
        ("SELECT *\nFRM numbers\nWHERE id = 1", (), 2, 5),
        ("; ;SELECT nope", (), 1, 11),
        ("EXPLAIN SELECT\n nope FROM numbers", (), 2, 2),
        ("-- why\nexplain /* ä */ analyze\nSELECT nope FROM numbers", (), 3, 8),
        ("DESCRIBE SELECT\n nope", (), 2, 2),
        ("SUMMARIZE\nnope", (), 2, 1),
        ("WITH a AS (SELECT 1 AS x)\nSELECT b.x FROM a", (), 2, 8),
        ("FROM numbers\nWHERE name = 1 AND nope(id)", (), 2, 20),
        ("SELECT 1,\n '€' || read_text('x')", (), 2, 9),
        ("EXPLAIN SELECT *\nFROM numbers, duckdb_settings()", (), 2, 15),
    ],
)
async def test_an_error_names_the_place_in_the_callers_own_text(
    client: SandboxClient,
    lake: SmallLake,
    sql: str,
    params: tuple[object, ...],
    line: int,
    column: int,
) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(client, lake.job(sql, *params))

    *_, quoted, mark = caught.value.message.split("\n")
    assert caught.value.context == {"line": line, "column": column}
    assert quoted.startswith(f"LINE {line}: ")
    assert mark.strip() == "^"


async def test_a_failure_in_the_middle_of_a_result_has_its_code(
    client: SandboxClient, lake: SmallLake
) -> None:
    """Each time: of two threads, one fails and the other one's interrupt may be seen first."""
    sql = "SELECT CASE WHEN range > 100000 THEN error('boom') ELSE 'fine' END FROM range(400000)"
    for _ in range(40):
        run = await client.run(lake.job(sql))
        assert (await anext(run.batches)).num_rows > 0
        with pytest.raises(Invalid, match="boom") as caught:
            await _read(run)
        assert caught.value.code == "SQL_ERROR"


async def test_a_missing_file_is_told_from_a_store_that_is_down(
    client: SandboxClient, lake: SmallLake
) -> None:
    lake.freeze("third.db", "CREATE TABLE lost AS SELECT 1 AS one")
    third = str(lake.catalogs / "third.db")
    job = lake.job("SELECT one FROM lost", catalog_path=third)

    lake.data.fail_with = 503
    with pytest.raises(Unavailable) as down:
        await ask(client, job)
    lake.data.fail_with = 404
    with pytest.raises(Corrupt) as missing:
        await ask(client, job)
    lake.data.fail_with = None

    assert (down.value.code, missing.value.code) == ("STORAGE_UNAVAILABLE", "DATA_FILE_MISSING")
    for error in (down.value, missing.value):
        assert "http" not in error.message
    assert (await ask(client, job)).value == 1


@pytest.mark.parametrize(
    "path", ["catalogs/absent.db", "outside.db", "catalogs/../outside.db", "data/x"]
)
async def test_a_catalog_that_cannot_be_opened_is_unavailable(
    client: SandboxClient, lake: SmallLake, path: str
) -> None:
    (lake.folder / "outside.db").write_bytes((lake.catalogs / "first.db").read_bytes())

    with pytest.raises(Unavailable) as caught:
        await ask(client, lake.job("SELECT 1", catalog_path=str(lake.folder / path)))

    assert caught.value.code == "QUERY_UNAVAILABLE"
    assert str(lake.folder) not in caught.value.message


async def test_an_interrupt_at_the_deadline_spares_the_slot(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    before = sandbox.slots()

    async with asyncio.timeout(SOON_S):
        with pytest.raises(Failed) as caught:
            await ask(client, lake.job(ENDLESS, timeout_ms=300))

    assert caught.value.code == "QUERY_TIMEOUT"
    assert sandbox.slots() == before


async def test_a_slot_that_heeds_nothing_is_killed(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    await _idle(sandbox)
    before = _processor_s(sandbox)
    asking = asyncio.create_task(ask(client, lake.job(ENDLESS, timeout_ms=3_000)))
    slot = await _busy_slot(sandbox, before)
    os.kill(slot, signal.SIGSTOP)

    async with asyncio.timeout(3 + SOON_S):
        with pytest.raises(Failed) as caught:
            await asking

    assert caught.value.code == "QUERY_TIMEOUT"
    await eventually(lambda: slot not in sandbox.slots() and len(sandbox.slots()) == len(before))


async def test_a_killed_slot_fails_its_statement_only(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    await _idle(sandbox)
    before = _processor_s(sandbox)
    asking = asyncio.create_task(ask(client, lake.job(ENDLESS)))
    slot = await _busy_slot(sandbox, before)
    os.kill(slot, signal.SIGKILL)

    with pytest.raises(Failed) as caught:
        await asking
    async with asyncio.timeout(SOON_S):
        value = (await ask(client, lake.job("SELECT 42"))).value

    assert caught.value.code == "QUERY_CRASHED"
    assert value == 42
    await eventually(lambda: slot not in sandbox.slots() and len(sandbox.slots()) == SLOTS)


async def test_the_next_statement_after_a_kill_waits_for_no_start(tmp_path: Path) -> None:
    """One slot only, killed again and again."""
    lake = SmallLake(tmp_path)
    lake.freeze("first.db")
    worked_s = 0.0
    try:
        with running_sandbox(lake, concurrency=1) as running:
            for _ in range(4):
                await eventually(lambda: len(running.slots()) == 2)
                await _idle(running)
                before = _processor_s(running)
                asking = asyncio.create_task(ask(running.client, lake.job(ENDLESS)))
                slot = await _busy_slot(running, before)
                (standby,) = set(running.slots()) - {slot}
                os.kill(slot, signal.SIGKILL)
                with pytest.raises(Failed, match="process"):
                    await asking
                assert (await ask(running.client, lake.job("SELECT count(*) FROM numbers"))).value
                worked_s += _processor_s(running)[standby] - before[standby]
    finally:
        lake.data.close()

    assert worked_s > 0  # those that stood by answered, not those that started only then


async def test_the_slot_that_stands_by_holds_little(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    """With the supervisor it fits in what a container has beside `concurrency` times the memory of a query."""
    sql = "SELECT count(*) FROM (SELECT DISTINCT hash(range) FROM range(2000000))"
    await asyncio.gather(*(ask(client, lake.job(sql)) for _ in range(4)))
    await _idle(sandbox)

    own = sorted(psutil.Process(pid).memory_full_info().uss for pid in sandbox.slots())
    supervisor = psutil.Process(sandbox.process.pid).memory_full_info().uss

    assert own[0] + supervisor < 128 * 2**20


async def test_statements_that_die_fail_no_other(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    """Some want too much memory, are too deep or never end; `make nightly` asks for a thousand."""
    outcome = await run_mixed(client, lake, 100)

    assert outcome.wrong == []
    assert not unexpected(outcome)


@pytest.mark.skipif(not GROUPS.exists(), reason="needs root and memory groups, version 1")
async def test_a_process_that_the_kernel_kills_for_memory_fails_its_statement_only(
    tmp_path: Path,
) -> None:
    """The container's bound is set below what a slot may have, as when libraries and page cache took the rest."""
    lake = SmallLake(tmp_path)
    lake.freeze("first.db")
    group = GROUPS / f"duckmesh-test-{os.getpid()}"
    try:
        with running_sandbox(lake, memory_bytes=2**31) as running, _bounded(running, group):
            endless = asyncio.create_task(ask(running.client, lake.job(ENDLESS, timeout_ms=6_000)))
            with pytest.raises(Failed) as caught:
                await ask(running.client, lake.job("SELECT length(repeat('x', 1500000000))"))
            value = (await ask(running.client, lake.job("SELECT 42"))).value
            with pytest.raises(Failed) as other:
                await endless
    finally:
        lake.data.close()

    assert caught.value.code == "QUERY_MEMORY"
    assert value == 42
    assert other.value.code == "QUERY_TIMEOUT"  # it was not hit


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 42::VARIANT AS v",
        "SELECT {'a': [1]}::VARIANT AS v",
        "SELECT [1::VARIANT] AS v",
        "SELECT MAP {'k': 1::VARIANT} AS v",
    ],
)
async def test_a_type_that_no_answer_holds_is_named_with_its_cast(
    client: SandboxClient, lake: SmallLake, sql: str
) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(client, lake.job(sql))

    assert caught.value.code == "SQL_ERROR"
    assert all(word in caught.value.message for word in ("VARIANT", "'v'", "JSON"))
    cast = await ask(client, lake.job("SELECT {'a': [1]}::VARIANT::JSON"))
    assert cast.value == '{"a":[1]}'


@pytest.mark.parametrize(
    "sql",
    [
        "EXPLAIN SELECT * FROM numbers",
        "SHOW ALL TABLES",
        "DESCRIBE numbers",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM ducklake_table",
        "SELECT * FROM lake.ducklake_tables",
        "SELECT * FROM duckdb_setings",
        "SELECT * FROM numbers AT (VERSION => 99)",
        "SELECT (SELECT 1 UNION SELECT 2)",
    ],
)
async def test_nothing_shows_where_or_how_the_lake_is_kept(
    client: SandboxClient, lake: SmallLake, sql: str
) -> None:
    try:
        said = str((await ask(client, lake.job(sql))).rows)
    except DuckmeshError as error:
        said = error.message.partition("\n\nLINE ")[0].replace(sql.split()[-1], "")

    assert not [
        w for w in ("127.0.0.1", "/lake/", "__ducklake", "SET ", "/tmp", ".db") if w in said
    ]


async def test_nothing_of_a_statement_is_seen_by_the_next(
    client: SandboxClient, lake: SmallLake
) -> None:
    made = [
        "CREATE TEMP TABLE leftover AS SELECT 1",
        "CREATE TABLE memory.main.leftover AS SELECT 1",
        "CREATE MACRO leftover() AS 1",
        "SET VARIABLE leftover = 1",
        "PREPARE leftover AS SELECT 1",
        "WITH leftover AS (SELECT 1 AS a) SELECT a FROM leftover",
    ]
    seen = [
        "FROM leftover",
        "SELECT leftover()",
        "SELECT getvariable('leftover')",
        "EXECUTE leftover",
    ]
    for sql in made * 2:
        with contextlib.suppress(Invalid):
            await ask(client, lake.job(sql))

    for sql in seen * 2:
        with pytest.raises(Invalid):
            await ask(client, lake.job(sql))


@pytest.mark.parametrize(
    ("sql", "changes"),
    [
        ("SELECT max(id) FROM numbers", {}),
        ("EXPLAIN ANALYZE SELECT max(id) FROM numbers", {}),
        ("FROM numbers", {"row_limit": 1}),
        ("SELECT nothing FROM numbers", {}),
        ("SELECT error('no') FROM numbers WHERE id = 9000", {}),
        (ENDLESS, {"timeout_ms": 300}),
        ("SELECT one FROM small", {"catalog_path": "second.db"}),
    ],
    ids=["ended", "explained", "cut", "unbound", "failed", "stopped", "elsewhere"],
)
async def test_a_statement_answers_as_the_first_did_whatever_came_between(
    lone: SandboxClient, lake: SmallLake, sql: str, changes: dict[str, Any]
) -> None:
    if path := changes.get("catalog_path"):
        changes = {**changes, "catalog_path": str(lake.catalogs / path)}
    counted = lake.job("SELECT count(*) AS n, max(id) AS last, typeof(now()) FROM numbers")
    explained = lake.job("EXPLAIN SELECT count(*) FROM numbers")
    first, plan = [await ask(lone, job) for job in (counted, explained)]

    for _ in range(2):
        with contextlib.suppress(DuckmeshError):
            await ask(lone, lake.job(sql, **changes))
        again = await ask(lone, counted)

        assert (again.rows, again.type_names) == (first.rows, first.type_names)
        assert again.stats.scanned_files == first.stats.scanned_files == 1
    assert (await ask(lone, explained)).rows == plan.rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 1500000000))",
        "SELECT length(string_agg(repeat('x', 1000), '')) FROM range(2000000)",
        "WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT max(s) FROM t",
        "SELECT printf('%1000000000d', 1)",
        "SELECT split(repeat('a,', 200000000), ',')",
        "SELECT len(list(range)) FROM range(200000000)",
        "SELECT len(range(500000000))",
        "SELECT count(*) FROM (SELECT DISTINCT hash(range) FROM range(100000000))",
    ],
    ids=["repeat", "text", "recursion", "format", "split", "list", "range", "distinct"],
)
async def test_memory_is_bounded(client: SandboxClient, lake: SmallLake, sql: str) -> None:
    with pytest.raises(Failed) as caught:
        await ask(client, lake.job(sql, timeout_ms=100_000))

    assert caught.value.code == "QUERY_MEMORY"
    assert (await ask(client, lake.job("SELECT 42"))).value == 42


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 32_000 + "1" + ")" * 32_000,
        "SELECT " + "[" * 30_000 + "]" * 30_000,
        "SELECT 1" + " UNION ALL SELECT 1" * 3_400,
        "SELECT " + "NOT " * 16_000 + "true",
        "SELECT 1 " + "+1" * 32_000,
        "SELECT " + "(SELECT " * 7_000 + "1" + ")" * 7_000,
        "SELECT * FROM " + "(SELECT * FROM " * 4_000 + "numbers" + ")" * 4_000,
        "SELECT CASE WHEN " * 3_500 + "1",
    ],
    ids=["parentheses", "lists", "union", "not", "sum", "subqueries", "from", "case"],
)
async def test_a_bomb_of_text_ends_with_an_answer(
    client: SandboxClient, lake: SmallLake, sql: str
) -> None:
    with contextlib.suppress(DuckmeshError):
        async with asyncio.timeout(
            5 + SOON_S
        ):  # an answer by the deadline, not when the statement is done
            await ask(client, lake.job(sql, timeout_ms=5_000))

    assert (await ask(client, lake.job("SELECT 42"))).value == 42


async def test_closing_a_result_frees_its_slot(client: SandboxClient, lake: SmallLake) -> None:
    """Both slots are busy with endless results; when these are closed, at once there is room."""
    sql = "FROM range(1000000000000)"
    for _ in range(2):
        run = await client.run(lake.job(sql, row_limit=10**15))
        other = await client.run(lake.job(sql, row_limit=10**15))
        async with aclosing(run.batches), aclosing(other.batches):  # type: ignore[type-var]  # has aclose
            await anext(run.batches)

    async with asyncio.timeout(SOON_S):
        assert (await ask(client, lake.job("SELECT 42"))).value == 42


async def test_a_caller_who_leaves_before_the_first_row_stops_the_statement(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    for _ in range(2):
        await _idle(sandbox)
        before = _processor_s(sandbox)
        asking = asyncio.create_task(ask(client, lake.job(ENDLESS)))
        await _busy_slot(sandbox, before)
        asking.cancel()
        await asyncio.wait({asking})

    await _idle(sandbox)


async def test_too_many_at_once_are_told_to_come_back(
    client: SandboxClient, lake: SmallLake
) -> None:
    """Two run, 32 wait, the others are refused at once; who waits past its deadline is told too."""
    asking = [
        asyncio.create_task(ask(client, lake.job(ENDLESS, timeout_ms=1_000))) for _ in range(40)
    ]
    answers = await asyncio.gather(*asking, return_exceptions=True)

    codes = [error.code for error in answers if isinstance(error, DuckmeshError)]
    assert len(codes) == 40
    assert set(codes) == {"QUERY_TIMEOUT", "OVERLOADED"}
    assert all(isinstance(error, Limited | Failed) for error in answers)
    assert codes.count("QUERY_TIMEOUT") >= 2
    assert (await ask(client, lake.job("SELECT 42"))).value == 42


async def test_a_slot_knows_nothing_of_its_surroundings(
    client: SandboxClient, lake: SmallLake, sandbox: RunningSandbox
) -> None:
    await ask(client, lake.job("SELECT 42"))
    await _idle(sandbox)

    for pid in sandbox.slots():
        environment = psutil.Process(pid).environ()
        assert "canary" not in str(environment)
        assert "--ungated" not in psutil.Process(pid).cmdline()
        assert not [name for name in environment if name.startswith("DUCKMESH")]
        assert not [file.path for file in psutil.Process(pid).open_files() if "w" in file.mode]
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0" in limits


async def test_slots_end_with_their_supervisor_however_it_ends(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    try:
        with running_sandbox(lake, concurrency=1) as running:
            await eventually(lambda: running.slots())
            slots = [psutil.Process(pid) for pid in running.slots()]
            running.process.kill()

            gone, _ = await asyncio.to_thread(psutil.wait_procs, slots, 10)

        assert len(gone) == len(slots) > 0
    finally:
        lake.data.close()


async def test_a_told_supervisor_ends_in_order(tmp_path: Path) -> None:
    lake = SmallLake(tmp_path)
    lake.freeze("first.db")
    try:
        with running_sandbox(lake, concurrency=1) as running:
            await eventually(running.slots)
            await _idle(running)
            before = _processor_s(running)
            asking = asyncio.create_task(ask(running.client, lake.job(ENDLESS)))
            slot = psutil.Process(await _busy_slot(running, before))
            running.process.terminate()
            status = await asyncio.to_thread(running.process.wait, 10)

        with pytest.raises(DuckmeshError) as caught:
            await asking
        assert status == 0
        assert caught.value.code in ("QUERY_CRASHED", "QUERY_UNAVAILABLE")
        assert not slot.is_running()
        with pytest.raises(Unavailable) as later:
            await ask(running.client, lake.job("SELECT 42"))
        assert later.value.code == "QUERY_UNAVAILABLE"
    finally:
        lake.data.close()


async def test_a_slot_serves_one_read_proxy(client: SandboxClient, lake: SmallLake) -> None:
    """A slot is locked to the address of its first statement; another address gets another slot."""
    other = "http://127.0.0.1:9/lake/"
    with pytest.raises(DuckmeshError):
        await ask(client, lake.job("SELECT count(*) FROM numbers WHERE id > 3", data_url=other))

    assert (await ask(client, lake.job("SELECT count(*) FROM numbers WHERE id > 9"))).value > 0


@contextlib.contextmanager
def _bounded(sandbox: RunningSandbox, group: Path) -> Iterator[None]:
    """A container's bound on memory: 400 MiB for all processes of the sandbox."""
    wait_for(lambda: len(sandbox.slots()) == SLOTS)
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(400 * 2**20))
        for pid in (sandbox.process.pid, *sandbox.slots()):
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        sandbox.process.terminate()
        sandbox.process.wait()
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


async def _read(run: QueryRun) -> None:
    async for _ in run.batches:
        pass


def _processor_s(sandbox: RunningSandbox) -> dict[int, float]:
    """Seconds of processor that each slot has used."""
    found = {}
    for pid in sandbox.slots():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[pid] = sum(psutil.Process(pid).cpu_times()[:2])
    return found


async def _idle(sandbox: RunningSandbox) -> None:
    """Wait until no slot computes or starts."""

    def unchanged() -> bool:
        before = _processor_s(sandbox)
        time.sleep(0.3)
        return _processor_s(sandbox) == before

    await eventually(unchanged)


async def _busy_slot(sandbox: RunningSandbox, before: dict[int, float]) -> int:
    """Wait until a slot computes, compared with a moment when none did."""

    def busy() -> list[int]:
        now = _processor_s(sandbox)
        return [pid for pid, used in now.items() if used > before.get(pid, used) + 0.1]

    await eventually(busy)
    (slot,) = await asyncio.to_thread(busy)
    return slot


async def test_a_catalog_attached_ahead_is_there_for_the_next_statement(
    lake: SmallLake, client: SandboxClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_client, "_PREPARE_S", 20.0)
    path = lake.freeze("ahead.db", "CREATE TABLE small AS SELECT 3 AS one")
    old = lake.job("SELECT one FROM small")

    assert (await ask(client, old)).value == 1
    async with asyncio.timeout(20):  # a killed process may not be replaced yet
        while not await client.prepare(str(path), lake.data.url):
            await asyncio.sleep(0.01)
    path.unlink()  # no other process can open it any more

    new = await ask(client, lake.job("SELECT one FROM small", catalog_path=str(path)))
    assert new.value == 3
    assert (await ask(client, old)).value == 1


async def test_a_catalog_that_is_gone_is_not_attached_and_costs_no_process(
    lake: SmallLake,
    client: SandboxClient,
    sandbox: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox_client, "_PREPARE_S", 20.0)
    await ask(client, lake.job("SELECT 1"))
    await eventually(lambda: len(sandbox.slots()) == SLOTS)
    before = sandbox.slots()

    for name in ("gone.db", "../first.db", "/etc/passwd"):
        assert not await client.prepare(str(lake.catalogs / name), lake.data.url)

    assert (await ask(client, lake.job("SELECT one FROM small"))).value == 1
    assert sandbox.slots() == before
