"""The whole way of a query over real Postgres and a real store: barrier, frozen catalog, sandbox, read proxy, objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.errors import Corrupt, DuckmeshError, Unavailable
from duckmesh_runtime.settings import QueryLimits, StoreSettings
from tests.read_path import ReadPath, read_path
from tests.services import Lake

LIMITS = QueryLimits(concurrency=2, timeout_ms=30_000, memory_bytes=512 * 2**20)


@pytest.fixture(params=["file", "s3"])
async def path(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]], tmp_path: Path
) -> AsyncIterator[ReadPath]:
    lake = await make_lake(store=request.param)
    async with read_path(lake, tmp_path, limits=LIMITS) as found:
        yield found


async def test_a_query_with_a_token_has_every_row_up_to_it(path: ReadPath) -> None:
    await path.commit("CREATE TABLE lake.t (id BIGINT, word VARCHAR)")

    for number in range(12):
        change = f"INSERT INTO lake.t VALUES ({number}, 'a'), ({number + 100}, 'b')"
        if number % 4 == 3:
            change = "DELETE FROM lake.t WHERE id = (SELECT min(id) FROM lake.t)"
        token = await path.commit(change)
        count, total = (await path.rows("SELECT count(*), sum(id) FROM t", min_number=token))[0]
        assert [(count, total)] == path.writer.rows("SELECT count(*), sum(id) FROM lake.t")


async def test_a_query_waits_for_a_token_that_is_on_its_way(path: ReadPath) -> None:
    token = await path.commit("CREATE TABLE lake.t AS SELECT 1 AS id")

    waiting = asyncio.create_task(path.rows("SELECT sum(id) FROM t", min_number=token + 1))
    await path.rows("SELECT 1")
    assert not waiting.done()
    await path.commit("INSERT INTO lake.t VALUES (41)")

    assert await waiting == [(42,)]


async def test_a_lake_without_tables_answers(path: ReadPath) -> None:
    answer = await path.start("SELECT 42 AS answer")

    assert [batch.to_pylist() async for batch in answer.run.batches] == [[{"answer": 42}]]
    assert answer.token == 0
    assert await path.rows("SHOW TABLES") == []


async def test_a_running_query_keeps_its_snapshot_while_the_lake_moves_on(path: ReadPath) -> None:
    token = await path.commit("CREATE TABLE lake.t AS SELECT range AS id FROM range(60_000)")

    answer = await path.start("SELECT id FROM t", min_number=token)
    later = await path.commit("DELETE FROM lake.t WHERE id < 59_000")
    assert await path.rows("SELECT count(*) FROM t", min_number=later) == [(1_000,)]
    rows = sum([batch.num_rows async for batch in answer.run.batches])

    assert rows == 60_000
    await path.rows("SELECT 1")
    assert len(list(path.catalogs.iterdir())) == 1


async def test_a_lost_object_is_an_error_and_never_fewer_rows(path: ReadPath) -> None:
    await path.commit("CREATE TABLE lake.t (id BIGINT)", "CREATE TABLE lake.whole (id BIGINT)")
    await path.commit("INSERT INTO lake.t SELECT range FROM range(1000)")
    await path.commit("INSERT INTO lake.whole VALUES (7)")
    token = await path.commit("INSERT INTO lake.t SELECT range FROM range(1000, 2000)")

    lost = path.writer.rows("SELECT max(data_file) FROM ducklake_list_files('lake', 't')")[0][0]
    await _lose(path.lake.store, str(lost))

    with pytest.raises(Corrupt) as caught:
        await path.rows("SELECT sum(id) FROM t", min_number=token)
    assert caught.value.code == "DATA_FILE_MISSING"
    assert path.lake.name not in caught.value.message
    assert await path.rows("SELECT id FROM whole") == [(7,)]


@pytest.mark.parametrize("path", ["file"], indirect=True)
async def test_an_object_of_another_size_is_an_error_and_never_other_rows(path: ReadPath) -> None:
    """A small file, which the proxy reads whole, one with several pages, and one of several of the proxy's chunks, which
    the engine asks for at once. Of a longer one what was recorded is read.
    """
    damage: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda whole: whole[:-1],
        "half": lambda whole: whole[: len(whole) // 2],
        "empty": lambda _: b"",
        "longer": lambda whole: whole + whole,
        "shifted": lambda whole: bytes(100) + whole,
    }
    sizes = {"small": 1_000, "large": 200_000, "huge": 1_500_000}
    tables = {f"{size}_{name}": (sizes[size], name) for size in sizes for name in damage}
    await path.commit(
        *(
            f"CREATE TABLE lake.{table} AS SELECT hash(range) AS id FROM range({rows})"
            for table, (rows, _) in tables.items()
        )
    )
    right = {table: path.writer.rows(_totals(f"lake.{table}")) for table in tables}
    for table, (_, name) in tables.items():
        listed = f"SELECT data_file FROM ducklake_list_files('lake', '{table}')"
        file = Path(str(path.writer.rows(listed)[0][0]))
        file.write_bytes(damage[name](file.read_bytes()))

    found: dict[str, object] = {}
    for table in tables:
        try:
            found[table] = await path.rows(_totals(table))
        except DuckmeshError as error:
            found[table] = error.code

    longer = {table: found.pop(table) for table in list(found) if table.endswith("_longer")}
    assert longer == {table: right[table] for table in longer}
    assert set(found.values()) == {"DATA_FILE_MISSING"}, found


def _totals(table: str) -> str:
    return f"SELECT count(id), sum(id % 1000003) FROM {table}"


@pytest.mark.parametrize("path", ["s3"], indirect=True)
async def test_a_store_that_refuses_is_told_as_such_and_heals(
    path: ReadPath, monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    token = await path.commit("CREATE TABLE lake.t AS SELECT range AS id FROM range(1000)")
    secret = path.lake.store.secret_dir
    assert secret is not None

    (secret / "secret-access-key").write_text("rotated away\n")
    monkeypatch.setattr(StoreObjects, "read", _refusing)
    with pytest.raises(Unavailable) as caught:
        await path.rows("SELECT sum(id) FROM t", min_number=token)
    monkeypatch.undo()
    (secret / "secret-access-key").write_text(s3.secret_key + "\n")

    assert caught.value.code == "STORAGE_UNAVAILABLE"
    assert await path.rows("SELECT sum(id) FROM t") == [(499_500,)]


async def _refusing(self: StoreObjects, path: str, start: int, length: int) -> bytes:
    raise Unavailable("STORAGE_UNAVAILABLE", "the object store does not answer: repeat the request")


async def _lose(store: StoreSettings, file: str) -> None:
    """Remove an object behind the lake's back."""
    base = store.url if store.url.startswith("s3:") else store.url.removeprefix("file://")
    await StoreObjects(store).remove(file.removeprefix(base))
