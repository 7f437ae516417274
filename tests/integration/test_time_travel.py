"""Queries of past snapshots over a real lake: what they show never changes, whatever became of the lake since."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import asyncpg
import pytest

from duckmesh_runtime.adapters import freeze
from duckmesh_runtime.domain.tokens import parse_token
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import FrozenCatalog
from duckmesh_runtime.settings import QueryLimits
from tests.direct import attached_file
from tests.fakes.doors import LAKE, write_keys
from tests.fakes.server import KEYS, make_parts, make_settings
from tests.fakes.server import serve as serve_http
from tests.read_path import ReadPath, Rows, read_path
from tests.services import Lake

ONE_SLOT = QueryLimits(concurrency=1, timeout_ms=30_000, memory_bytes=512 * 2**20)

BEGINNING = [
    "CREATE TABLE lake.t (id BIGINT, v VARCHAR, z INTEGER)",
    "INSERT INTO lake.t SELECT i, 'a' || i, i FROM range(100) r(i)",
    "INSERT INTO lake.t SELECT i, NULL, i FROM range(100, 200) r(i)",
    "CREATE TABLE lake.k (id BIGINT, v VARCHAR)",
    "INSERT INTO lake.k SELECT i, 'first' FROM range(50) r(i)",
    "CREATE TABLE lake.p (k BIGINT, d INTEGER)",
    "ALTER TABLE lake.p SET PARTITIONED BY (d)",
    "INSERT INTO lake.p SELECT i, i % 3 FROM range(30) r(i)",
    "DELETE FROM lake.t WHERE id BETWEEN 20 AND 39",
    "INSERT INTO lake.t SELECT i, 'c', i FROM range(200, 300) r(i)",
    "INSERT INTO lake.p SELECT i, i % 3 FROM range(30, 60) r(i)",
]
"""One snapshot each."""

CHANGES = {
    "merged": [
        "call:ducklake_merge_adjacent_files('lake', 't')",
        "call:ducklake_merge_adjacent_files('lake', 'p')",
    ],
    "deleted and rewritten": [
        "DELETE FROM lake.t WHERE id < 10 OR id BETWEEN 110 AND 180",
        "INSERT INTO lake.t VALUES (9000, 'later', 9000)",
        "call:ducklake_rewrite_data_files('lake', 't', delete_threshold => 0.0)",
    ],
    "upserted": [
        "DELETE FROM lake.k WHERE id < 20; INSERT INTO lake.k SELECT i, 'second' FROM range(20) r(i)"
    ],
    "altered": [
        "ALTER TABLE lake.t ADD COLUMN extra INTEGER DEFAULT 5",
        "ALTER TABLE lake.t RENAME COLUMN v TO w",
        "ALTER TABLE lake.t ALTER COLUMN z SET DATA TYPE BIGINT",
        "INSERT INTO lake.t VALUES (6000, 'big', 5000000000, 8)",
        "INSERT INTO lake.t VALUES (6001, 'big', -5000000000, 8)",
        "call:ducklake_merge_adjacent_files('lake', 't')",
        "ALTER TABLE lake.t DROP COLUMN z",
    ],
    "dropped": [
        "DELETE FROM lake.p WHERE d = 1",
        "DROP TABLE lake.k",
        "DROP TABLE lake.t",
        "CREATE TABLE lake.t (other DATE)",
    ],
    "expired": ["expire"],
}

ROWS = " UNION ALL ".join(f"SELECT '{t}' AS of, {t}::VARCHAR AS row FROM {t}" for t in "tkp")
COUNTS = ", ".join(f"(SELECT count(*) FROM {t}) AS {t}" for t in "tkp")
QUESTIONS = [
    f"FROM ({ROWS}) ORDER BY ALL",
    f"SELECT {COUNTS}",
    "SELECT count(*), min(id), max(id), min(z), max(z), min(v), max(v) FROM t",
    "SELECT id, z FROM t WHERE id < 20 OR z > 290 ORDER BY ALL",
    "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY ALL",
]

TABLES = """
SELECT table_name FROM __ducklake_metadata_lake.{schema}.ducklake_table
 WHERE begin_snapshot <= {at} AND (end_snapshot IS NULL OR end_snapshot > {at}) ORDER BY 1
"""


@pytest.fixture(params=["file"])
async def path(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]], tmp_path: Path
) -> AsyncIterator[ReadPath]:
    lake = await make_lake(store=request.param)
    async with read_path(lake, tmp_path, limits=ONE_SLOT) as found:
        yield found


async def apply(path: ReadPath, change: str, *, keep: list[int]) -> None:
    """Change the lake by statements of one commit, an upkeep call, or the expiry of all snapshots but some."""
    if change == "expire":
        await expire(path, set(range(path.newest())) - set(keep))
    elif change.startswith("call:"):
        await path.maintain(change.removeprefix("call:"))
    else:
        await path.commit(change)


async def expire(path: ReadPath, ids: set[int]) -> None:
    """Remove snapshots, and at once the files that only they had."""
    found = ", ".join(map(str, sorted(ids)))
    await path.maintain(f"ducklake_expire_snapshots('lake', versions => [{found}])")
    await path.maintain("ducklake_cleanup_old_files('lake', cleanup_all => true)")


async def all_of(path: ReadPath, at: int) -> list[Rows]:
    """Everything that a snapshot shows."""
    return [await path.rows(question, at=at) for question in QUESTIONS]


async def frozen(catalog: FrozenCatalog, version: int | None, *sql: str) -> list[Rows]:
    """What its file shows, attached at a version or not; the read proxy goes on in this thread."""

    def read() -> list[Rows]:
        with attached_file(catalog.path, version) as connection:
            return [connection.execute(each).fetchall() for each in sql]

    return await asyncio.to_thread(read)


@pytest.mark.parametrize(
    "path", [pytest.param("file", marks=pytest.mark.long), "s3"], indirect=True
)
async def test_a_snapshot_read_again_is_the_same_whatever_changed_since(
    path: ReadPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "_PAST_SHARED_S", 0)  # each read freezes it anew
    for statement in BEGINNING:
        await path.commit(statement)
    newest = path.newest()
    before = {at: await all_of(path, at) for at in (newest - 3, newest - 1, newest)}

    for name, changes in CHANGES.items():
        for change in changes:
            await apply(path, change, keep=list(before))
        for at, shown in before.items():
            assert await all_of(path, at) == shown, f"snapshot {at} after {name}"

    assert [len(shown[0]) for shown in before.values()] == [280, 360, 390]


async def test_a_past_snapshot_is_what_ducklake_itself_shows_of_it(path: ReadPath) -> None:
    for statement in BEGINNING:
        await path.commit(statement)
    for changes in list(CHANGES.values())[:4]:
        for change in changes:
            await apply(path, change, keep=[])

    for at in range(1, path.newest() + 1):
        tables = path.writer.rows(TABLES.format(schema=path.lake.name, at=at))
        asked = [
            f"{what} FROM lake.{name}"
            for (name,) in tables
            for what in ("SELECT *", "SELECT count(*)")
        ]
        catalog = await path.freezer.freeze(at=at)
        shown = await frozen(catalog, catalog.version, *asked)
        path.freezer.release(catalog)
        for sql, rows in zip(asked, shown, strict=True):
            # Without an order: DuckLake sorts the past by bounds of today, wrongly.
            then = path.writer.rows(f"{sql} AT (VERSION => {at})")
            assert sorted(rows, key=str) == sorted(then, key=str), f"{sql} in {at}"


async def test_bounds_of_today_say_nothing_of_the_past(path: ReadPath) -> None:
    """DuckLake keeps one line of bounds a column: narrower than the past after a rewrite, of a later type after a change."""
    at = await path.snapshot("CREATE TABLE lake.t AS SELECT i::INTEGER AS id FROM range(300) r(i)")
    await path.commit("DELETE FROM lake.t WHERE id < 200")
    await path.maintain("ducklake_rewrite_data_files('lake', 't', delete_threshold => 0.0)")
    low = "SELECT id FROM t WHERE id < 3 ORDER BY id"

    assert await path.rows(low, at=at) == [(0,), (1,), (2,)]
    assert await path.rows("SELECT id FROM t ORDER BY id LIMIT 1", at=at) == [(0,)]
    await path.commit("ALTER TABLE lake.t ALTER COLUMN id SET DATA TYPE BIGINT")
    await path.commit("INSERT INTO lake.t VALUES (5000000000)")
    assert await path.rows(low, at=at) == [(0,), (1,), (2,)]
    assert await path.rows("SELECT max(id), count(*) FROM t") == [(5_000_000_000, 101)]


async def test_without_its_version_a_merged_past_counts_rows_of_later_snapshots(
    path: ReadPath,
) -> None:
    """Why the file is attached at its version: the catalog counts rows by files, and a merged one holds later rows too."""
    await path.commit("CREATE TABLE lake.t (id BIGINT)")
    await path.commit("INSERT INTO lake.t SELECT range FROM range(10)")
    at = await path.snapshot("INSERT INTO lake.t SELECT range FROM range(10, 20)")
    await path.commit("INSERT INTO lake.t SELECT range FROM range(20, 30)")
    await path.maintain("ducklake_merge_adjacent_files('lake', 't')")

    catalog = await path.freezer.freeze(at=at)
    sql = ["SELECT count(*) FROM lake.t", "SELECT count(id) FROM lake.t WHERE id >= 0"]
    assert await frozen(catalog, at, *sql) == [[(20,)], [(20,)]]
    assert await frozen(catalog, None, *sql) == [[(30,)], [(20,)]]
    path.freezer.release(catalog)
    assert await path.rows("SELECT count(*) FROM t", at=at) == [(20,)]


async def test_past_catalogs_and_the_newest_take_turns_in_one_slot(path: ReadPath) -> None:
    await path.commit("CREATE TABLE lake.t (id BIGINT)")
    one = await path.snapshot("INSERT INTO lake.t VALUES (1)")
    two = await path.snapshot("INSERT INTO lake.t VALUES (2)")
    await path.commit("INSERT INTO lake.t VALUES (3)")
    sql = "SELECT count(*), sum(id) FROM t"

    for _ in range(3):
        assert await path.rows(sql) == [(3, 6)]
        assert await path.rows(sql, at=one) == [(1, 1)]
        assert await path.rows(sql, at=two) == [(2, 3)]

    assert len(list(path.catalogs.iterdir())) == 3


async def test_the_answer_names_the_past_snapshot_its_watermark_and_its_age(
    path: ReadPath,
) -> None:
    await path.commit("CREATE TABLE lake.t (id BIGINT)")
    await path.commit("INSERT INTO lake.t VALUES (1)")
    one, token = path.newest(), path.writer.token
    await path.commit("INSERT INTO lake.t VALUES (2)")
    await path.maintain("ducklake_merge_adjacent_files('lake', 't')")
    merged = path.newest()
    await path.commit("INSERT INTO lake.t VALUES (3)")

    answers = []
    for at in (one, merged, path.newest()):
        answers.append(answer := await path.start("SELECT 1", at=at))
        assert [batch.num_rows async for batch in answer.run.batches] == [1]
    past, upkept, newest = answers

    assert (past.snapshot_id, past.token) == (one, token)
    assert (upkept.snapshot_id, upkept.token) == (merged, token + 1)
    assert (newest.token, newest.lag_ms) == (token + 2, 0)
    assert past.snapshot_time < upkept.snapshot_time < newest.snapshot_time
    for answer in (past, upkept):  # each counted when it was answered
        age = timedelta(milliseconds=answer.lag_ms)
        assert timedelta() < age <= datetime.now(UTC) - answer.snapshot_time


@pytest.mark.parametrize(
    "media",
    [
        "application/x-ndjson",
        "text/csv",
        "application/vnd.apache.arrow.stream",
        "application/vnd.apache.parquet",
    ],
)
async def test_every_format_names_the_past_snapshot(path: ReadPath, media: str) -> None:
    token = await path.commit("CREATE TABLE lake.t AS SELECT 1 AS id")
    at = path.newest()
    await path.commit("INSERT INTO lake.t VALUES (2)")
    auth = path.catalogs.parent / "auth"
    auth.mkdir()
    write_keys(auth, KEYS)
    parts = make_parts(make_settings(auth))
    parts.query = path.service
    ask = {"sql": "SELECT count(*) AS n FROM t", "snapshot_id": at}

    async for doors in serve_http(parts, role="query"):
        _, body, _ = await doors.call("POST", "/v1/query", json=ask)
        by_time = {"sql": ask["sql"], "snapshot_time": body["snapshot_time"]}
        _, again, _ = await doors.call("POST", "/v1/query", json=by_time)
        _, _, answer = await doors.call("POST", "/v1/query", json=ask, headers={"Accept": media})
        status, gone, _ = await doors.call("POST", "/v1/query", json=ask | {"snapshot_id": 99})

    named = "rows", "snapshot_id", "snapshot_time", "max_visibility_token"
    assert [body[name] for name in named] == [again[name] for name in named]
    assert (body["rows"], body["snapshot_id"]) == ([[1]], at)
    assert parse_token(body["max_visibility_token"], lake=LAKE).number == token
    assert answer.headers["X-Duckmesh-Snapshot-Id"] == str(at)
    assert answer.headers["X-Duckmesh-Snapshot-Time"] == body["snapshot_time"]
    assert answer.headers["X-Duckmesh-Watermark"] == body["max_visibility_token"]
    assert int(answer.headers["X-Duckmesh-Lag-Ms"]) >= body["lag_ms"] > 0
    assert (status, gone["error_code"]) == (404, "SNAPSHOT_NOT_FOUND")
    kept = {"newest_snapshot_id": at + 1, "oldest_snapshot_id": 0}
    assert gone["context"] == {"field": "snapshot_id", **kept}


async def test_what_moved_the_watermark_without_a_snapshot_is_in_the_newest(
    path: ReadPath,
) -> None:
    newest = await path.snapshot("CREATE TABLE lake.t (id BIGINT)")
    await sql_as_owner(
        path.lake, f"UPDATE duckmesh.lake_status SET token = 9 WHERE lake = '{path.lake.name}'"
    )

    assert (await path.freezer.freeze(at=newest)).token == 9


async def test_a_time_means_the_newest_snapshot_at_or_before_it(path: ReadPath) -> None:
    ids = [await path.snapshot("CREATE TABLE lake.t (id BIGINT)")]
    ids += [await path.snapshot(f"INSERT INTO lake.t VALUES ({i})") for i in range(3)]
    times = {at: (await path.freezer.freeze(at=at)).snapshot_time for at in ids}

    for at, time in times.items():
        assert (await path.freezer.freeze(at=time)).snapshot_id == at
        assert (
            await path.freezer.freeze(at=time - timedelta(microseconds=1))
        ).snapshot_id == at - 1
    elsewhere = times[ids[-1]].astimezone(timezone(timedelta(hours=-7)))
    assert await path.rows("SELECT count(*) FROM t", at=elsewhere) == [(3,)]


async def test_what_never_was_is_told_from_what_is_gone(path: ReadPath) -> None:
    first = await path.snapshot("CREATE TABLE lake.t (id BIGINT)")
    for number in range(4):
        await path.commit(f"INSERT INTO lake.t VALUES ({number})")
    newest = path.newest()
    birth = (await path.freezer.freeze(at=0)).snapshot_time
    moments: list[int | datetime] = [
        newest + 1,
        2**62,
        birth - timedelta(seconds=1),
        datetime.now(UTC) + timedelta(hours=1),
    ]
    never = ["SNAPSHOT_NOT_FOUND"] * 3 + ["VALIDATION_FAILED"]

    assert [await code(path, at) for at in moments] == never
    assert await path.rows("SELECT count(*) FROM t", at=first) == [(0,)]
    await expire(path, {0, first, first + 2})

    assert [await code(path, at) for at in moments] == [*never[:2], "SNAPSHOT_EXPIRED", never[3]]
    assert [await code(path, at) for at in (0, first, first + 2)] == ["SNAPSHOT_EXPIRED"] * 3
    assert await code(path, birth) == "SNAPSHOT_EXPIRED"
    assert await path.rows("SELECT count(*) FROM t", at=first + 1) == [(1,)]


async def test_past_catalogs_are_kept_few_and_held_ones_stay(
    path: ReadPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    await path.commit("CREATE TABLE lake.t (id BIGINT)")
    ids = [await path.snapshot(f"INSERT INTO lake.t VALUES ({i})") for i in range(9)]
    freezer = path.freezer

    held = await freezer.freeze(at=ids[0])
    for at in ids[1:]:
        freezer.release(await freezer.freeze(at=at))
        freezer.release(await freezer.freeze(at=ids[1]))
    left = {file.name.split("-")[1] for file in path.catalogs.iterdir()}
    assert left == {str(at) for at in (ids[0], ids[1], *ids[-2:])}
    again = await freezer.freeze(at=ids[0])
    assert again.path == held.path

    monkeypatch.setattr(freeze, "_MOST_PAST", 6)
    more = [await freezer.freeze(at=at) for at in ids[1:6]]
    assert await code(path, ids[6]) == "OVERLOADED"
    assert await path.rows("SELECT count(*) FROM t") == [(9,)]
    for catalog in (held, again, *more):
        freezer.release(catalog)
    assert await path.rows("SELECT count(*) FROM t", at=ids[6]) == [(7,)]
    assert len(list(path.catalogs.iterdir())) <= 5


async def test_a_past_catalog_is_made_anew_after_its_time_and_the_old_one_goes(
    path: ReadPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await path.snapshot("CREATE TABLE lake.t AS SELECT 1 AS id")
    first, second = await path.freezer.freeze(at=at), await path.freezer.freeze(at=at)
    monkeypatch.setattr(freeze, "_PAST_SHARED_S", 0)

    third = await path.freezer.freeze(at=at)

    assert first.path == second.path != third.path
    assert second.frozen_at > first.frozen_at
    for catalog in (first, second):
        assert Path(first.path).exists()
        path.freezer.release(catalog)
    assert [str(file) for file in path.catalogs.iterdir()] == [third.path]


async def code(path: ReadPath, at: int | datetime) -> str:
    """Why there is no such snapshot."""
    with pytest.raises(DuckmeshError) as caught:
        await path.start("SELECT 1", at=at)
    return caught.value.code


async def sql_as_owner(lake: Lake, statement: str) -> None:
    connection = await asyncpg.connect(lake.catalog_dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
