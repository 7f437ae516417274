"""`duckmesh.sweep()`: what the operator sees of all lakes of a catalog."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.settings import read_secret
from tests.lakes import (
    EVENTS,
    LakeView,
    append_create,
    append_rows,
    committer_of,
    eventually,
    running,
    send,
    writer_pool,
)
from tests.services import Lake

MakeLake = Callable[..., Awaitable[Lake]]


@pytest.fixture
async def control(lake: Lake) -> AsyncIterator[asyncpg.Connection]:
    """The operator's login: a member of duckmesh_control and nothing else."""
    login = f"{lake.name}_operator"
    await LakeView(lake).fetch(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE duckmesh_control")
    where = lake.catalog_dsn.rpartition("@")[2]
    connection = await asyncpg.connect(f"postgresql://{login}:x@{where}")
    try:
        yield connection
    finally:
        await connection.close()


async def _row(control: asyncpg.Connection, lake: Lake) -> asyncpg.Record:
    return await control.fetchrow("SELECT * FROM duckmesh.sweep() WHERE lake = $1", lake.name)


async def test_a_new_lake_is_empty_and_without_a_committer(
    lake: Lake, control: asyncpg.Connection
) -> None:
    row = await _row(control, lake)

    assert (row["tenant"], row["tenant_uid"]) == (lake.tenant, lake.tenant_uid)
    assert (row["token"], row["last"], row["pending_rows"], row["files"]) == (0, 0, 0, 0)
    assert (row["oldest_pending_at"], row["committed_at"], row["error"]) == (None, None, None)
    assert not row["committer_alive"]


async def test_lag_rises_while_nobody_commits(lake: Lake, control: asyncpg.Connection) -> None:
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(EVENTS, version=0), append_rows([1, 2, 3], version=1))

    row = await _row(control, lake)

    assert (row["token"], row["last"], row["pending_rows"]) == (0, 4, 3)
    assert timedelta() < row["now"] - row["oldest_pending_at"] < timedelta(minutes=1)


async def test_what_is_set_aside_is_counted_and_waits_no_more(
    lake: Lake, control: asyncpg.Connection
) -> None:
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        await send(bus, append_create(EVENTS, version=0), append_rows([1, 2, 3], version=1))
        epoch = await pool.fetchval("SELECT duckmesh.take_over($1, 'w')", lake.name)
        await pool.execute("SELECT duckmesh.advance($1, $2, 0, 1)", lake.name, epoch)
        query = "SELECT duckmesh.set_aside($1, $2, $3, $4, $5, 'why')"
        await pool.execute(query, lake.name, epoch, 1, 2, b"one row")

    row = await _row(control, lake)

    assert (row["token"], row["last"], row["pending_rows"], row["dead_letters"]) == (2, 4, 2, 1)


async def test_only_what_is_rows_of_one_entry_is_set_aside_by_the_lease_holder(lake: Lake) -> None:
    async with writer_pool(lake) as pool:
        bus = PostgresBus(pool, lake.name)
        rows = append_rows([1, 2], version=1)
        others = replace(EVENTS, name="others")
        more = append_rows([3], version=1, table=others)
        await send(bus, append_create(EVENTS, version=0), rows, more)
        epoch = await pool.fetchval("SELECT duckmesh.take_over($1, 'w')", lake.name)
        refused = {
            ("set_aside", epoch, 0, 1, b"x"): "DM002",  # a table change
            ("set_aside_change", epoch, 0, 2): "DM002",
            ("set_aside_change", epoch - 1, 0, 1): "DM001",
            ("set_aside", epoch, 1, 2, b"x"): "DM003",  # the watermark is at 0
        }
        for call, state in refused.items():
            assert await _refusal(pool, lake, *call) == state
        await pool.execute("SELECT duckmesh.advance($1, $2, 0, 1)", lake.name, epoch)
        refused = {
            ("set_aside", epoch, 1, 4, b"x"): "DM002",  # two entries
            ("set_aside", epoch, 1, 2, None): "DM002",  # a part without its rows
            ("set_aside", epoch, 1, 1, b"x"): "DM002",  # nothing
            ("set_aside_change", epoch, 1, 2): "DM002",
            ("set_aside", epoch - 1, 1, 2, b"x"): "DM001",
        }
        for call, state in refused.items():
            assert await _refusal(pool, lake, *call) == state
        assert await bus.letters(0, limit=1, max_bytes=10**6) == []
        assert (await bus.backlog()).progress.token == 1


async def _refusal(
    pool: asyncpg.Pool, lake: Lake, function: str, epoch: int, *args: object
) -> str | None:
    marks = ", ".join(f"${i + 3}" for i in range(len(args)))
    query = f"SELECT duckmesh.{function}($1, $2, {marks}, 'why')"
    try:
        await pool.execute(query, lake.name, epoch, *args)
    except asyncpg.PostgresError as error:
        return error.sqlstate
    return None


async def test_the_writer_reports_its_declared_tables_and_nobody_else_s(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    report = "SELECT duckmesh.report_tables($1, $2, $3, $4)"

    async with writer_pool(lake) as pool:
        await pool.execute(report, lake.name, "abc", False, "events: no such type")
        first = await _row(control, lake)
        await pool.execute(report, lake.name, "def", True, None)
        for stranger in (other.name, "lake_0000000000000000"):
            with pytest.raises(asyncpg.PostgresError) as caught:
                await pool.execute(report, stranger, "abc", True, "")
            assert caught.value.sqlstate == "DM001"
    second, untold = await _row(control, lake), await _row(control, other)

    told = ("tables_digest", "tables_ready", "tables_problem")
    assert [first[name] for name in told] == ["abc", False, "events: no such type"]
    assert [second[name] for name in told] == ["def", True, ""]
    assert [untold[name] for name in told] == [None, None, None]


async def test_a_committed_lake_shows_its_committer_snapshot_and_files(
    lake: Lake, control: asyncpg.Connection
) -> None:
    async def beating() -> bool:
        return bool((await _row(control, lake))["committer_alive"])

    async with committer_of(lake, holder="pod-1") as committer, running(committer):
        async with writer_pool(lake) as pool:
            bus = PostgresBus(pool, lake.name)
            await send(bus, append_create(EVENTS, version=0))
            last = await send(bus, append_rows([1, 2, 3], version=1))
        await LakeView(lake).visible(last)
        await eventually(beating)
        row = await _row(control, lake)

    assert (row["token"], row["last"], row["pending_rows"]) == (4, 4, 0)
    assert (row["committer"], row["files"], row["small_files"]) == ("pod-1", 1, 1)
    assert row["bytes"] > 0
    assert row["committed_at"] <= row["now"]
    assert row["snapshot_id"] == await LakeView(lake).fetchval(
        f"SELECT max(snapshot_id) FROM {lake.name}.ducklake_snapshot"
    )
    assert not (await _row(control, lake))["committer_alive"]


async def _say(lake: Lake, what: str, report: object) -> None:
    """As the lake's maintenance does it."""
    connection = await asyncpg.connect(read_secret(lake.maintenance_dir, "dsn"))
    try:
        query = f"SELECT duckmesh.report_{what}($1, $2)"
        await connection.execute(query, lake.name, json.dumps(report))
    finally:
        await connection.close()


async def test_what_maintenance_says_shows_in_the_row_of_its_lake(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    said = {"run": {"id": "1"}, "integrity": {"state": "Healthy"}, "orphans": {"files": 2}}
    connection = await asyncpg.connect(read_secret(lake.maintenance_dir, "dsn"))
    try:
        await connection.execute("SELECT duckmesh.report_debt($1, 40, 900, 30, 0.25)", lake.name)
        debt = await _row(control, lake)
        await connection.execute("SELECT duckmesh.report_merged($1)", lake.name)
        for what, value in said.items():
            call = f"SELECT duckmesh.report_{what}($1, $2)"
            await connection.execute(call, lake.name, json.dumps(value))
            with pytest.raises(asyncpg.CheckViolationError):
                await connection.execute(call, lake.name, json.dumps({"error": "x" * 5000}))
    finally:
        await connection.close()
    row, untold = await _row(control, lake), await _row(control, other)

    numbers = ("debt_files", "debt_bytes", "most_files", "deleted_ratio")
    assert [row[name] for name in numbers] == [40, 900, 30, 0.25]
    assert debt["debt_at"] == row["debt_at"] <= row["merged_at"] <= row["now"]
    assert debt["merged_at"] is None
    assert {what: json.loads(row[what]) for what in said} == said
    assert [untold[name] for name in ("debt_at", *numbers, "merged_at", *said, "deep")] == [
        None
    ] * 10
    new = ("debt_at", *numbers, "merged_at", *said, "deep")
    assert list(row.keys())[-10:] == list(new)


MISSHAPEN = [
    {"message": {}},
    {"files": [1]},
    {"error": [["a"]]},
    {"tables": [["a"]]},
    {"tables": [1]},
    {"tables": {"a": "b"}},
    [],
    "text",
    None,
]


async def test_a_report_of_another_shape_is_refused(
    lake: Lake, control: asyncpg.Connection
) -> None:
    for what in ("run", "integrity", "orphans"):
        for report in MISSHAPEN:
            with pytest.raises(asyncpg.CheckViolationError):
                await _say(lake, what, report)
        await _say(lake, what, {"id": "1", "tables": ["a", "b"], "files": 1, "error": None})

        assert json.loads((await _row(control, lake))[what])["tables"] == ["a", "b"]


@pytest.mark.parametrize(
    ("what", "time"),
    [("run", "finishedAt"), ("integrity", "checkedAt"), ("orphans", "checkedAt")],
)
async def test_a_report_that_comes_too_late_changes_nothing(
    lake: Lake, control: asyncpg.Connection, what: str, time: str
) -> None:
    for day in ("2026-01-02", "2026-01-01"):
        await _say(lake, what, {time: f"{day}T00:00:00Z"})
    assert json.loads((await _row(control, lake))[what])[time].startswith("2026-01-02")

    await _say(lake, what, {time: "infinity"})
    await _say(lake, what, {time: "2026-01-03T00:00:00Z"})
    assert json.loads((await _row(control, lake))[what])[time].startswith("2026-01-03")
    with pytest.raises(asyncpg.DataError):
        await _say(lake, what, {time: "soon"})


def _check(day: int, mode: str, message: str = "", **counts: int) -> dict[str, object]:
    return {
        "checkedAt": f"2026-01-{day:02}T00:00:00Z",
        "mode": mode,
        "state": "Damaged" if message else "Healthy",
        "files": 9,
        "missing": 0,
        "damaged": 0,
        "message": message or "9 files are as the catalog says",
        **counts,
    }


async def test_what_a_deep_check_found_stays_until_a_deep_one_finds_nothing(
    lake: Lake, control: asyncpg.Connection
) -> None:
    async def after(report: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        await _say(lake, "integrity", report)
        row = await _row(control, lake)
        return json.loads(row["integrity"]), json.loads(row["deep"])

    found = _check(1, "deep", "table t: 2 damaged", damaged=2)
    assert await after(found) == (found, found)

    kept = {**found, "checkedAt": "2026-01-02T00:00:00Z", "mode": "cheap"}
    assert await after(_check(2, "cheap")) == (kept, found)

    both, deep = await after(_check(3, "cheap", "table u: 1 missing", missing=1))
    assert (both["state"], both["missing"], both["damaged"]) == ("Damaged", 1, 2)
    assert (both["message"], deep) == ("table u: 1 missing; table t: 2 damaged", found)

    healthy = _check(4, "deep")
    assert await after(healthy) == (healthy, healthy)
    cheap = _check(5, "cheap")
    assert await after(cheap) == (cheap, healthy)


@pytest.mark.parametrize("time", ["290000-01-01", "4000-01-01 BC", "infinity", "-infinity"])
async def test_an_impossible_time_in_one_lake_hides_no_other(
    lake: Lake, make_lake: MakeLake, control: asyncpg.Connection, time: str
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    async with writer_pool(lake) as pool:
        await send(PostgresBus(pool, lake.name), append_create(EVENTS, version=0))
    await LakeView(lake).fetch(f"UPDATE {lake.name}_bus.entry SET accepted_at = '{time}'")

    rows = {row["lake"]: row for row in await control.fetch("SELECT * FROM duckmesh.sweep()")}

    assert rows[other.name]["error"] is None
    assert rows[lake.name]["oldest_pending_at"] == rows[lake.name]["now"]


@pytest.mark.parametrize(
    "damage", ["DROP SCHEMA {lake} CASCADE", "DROP SCHEMA {lake}_bus CASCADE"], ids=["lake", "bus"]
)
async def test_a_broken_lake_is_its_own_row_s_error(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake, damage: str
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    await LakeView(lake).fetch(damage.format(lake=lake.name))

    broken, sound = await _row(control, lake), await _row(control, other)

    assert broken["error"].startswith("42P01")
    assert sound["error"] is None
    assert sound["files"] == 0


async def test_a_locked_lake_delays_the_sweep_by_a_bounded_time(
    lake: Lake, control: asyncpg.Connection, make_lake: MakeLake
) -> None:
    other = await make_lake(dsn=lake.catalog_dsn)
    admin = await asyncpg.connect(lake.catalog_dsn)
    try:
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {lake.name}.ducklake_data_file")
            locked, sound = await _row(control, lake), await _row(control, other)
    finally:
        await admin.close()

    assert locked["error"].startswith("55P03")
    assert sound["error"] is None


async def test_control_reads_the_registry_and_no_lake(
    lake: Lake, control: asyncpg.Connection
) -> None:
    found = await control.fetchval("SELECT data_url FROM duckmesh.lake WHERE lake = $1", lake.name)

    assert found == lake.store.url
    for table in (f"{lake.name}.ducklake_snapshot", f"{lake.name}_bus.entry"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await control.fetch(f"SELECT * FROM {table}")
