"""What every stager does: the in-memory double and DuckDB over a folder or S3 pass the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.stage import DuckDBStager
from duckmesh_runtime.domain.bus_rows import bus_schema
from duckmesh_runtime.domain.schema import TableDef, parse_table
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import StagedFile, Stager
from tests.direct import lake_writer
from tests.fakes.stager import FakeStager
from tests.lakes import writer_pool
from tests.services import Lake

Read = Callable[[str], list[tuple[object, ...]] | None]


def table(name: str = "events", **more: object) -> TableDef:
    columns = [
        {"name": "id", "type": "BIGINT", "nullable": False},
        {"name": "who", "type": "UUID"},
        {"name": "doc", "type": "JSON"},
    ]
    return parse_table({"name": name, "columns": columns, **more})


def batch(*ids: int, of: TableDef) -> pa.RecordBatch:
    who = "c56a4180-65aa-42ec-a945-5fd21dec0538"
    rows = [{"id": i, "who": who, "doc": '{"a":1}'} for i in ids]
    return pa.RecordBatch.from_pylist(rows, schema=bus_schema(of))


@dataclass(frozen=True, kw_only=True)
class UnderTest:
    """A stager; `ids` reads a file's first column, None when there is no such file; `broken` is one without a store."""

    stager: Stager
    broken: Stager
    ids: Callable[[str], list[int] | None]


def fake() -> UnderTest:
    stager, broken = FakeStager("events", "parts"), FakeStager("events")
    broken.down = True

    def ids(path: str) -> list[int] | None:
        rows = stager.files.get(path)
        return None if rows is None else rows["id"].to_pylist()

    return UnderTest(stager=stager, broken=broken, ids=ids)


async def real(lake: Lake, stack: AsyncExitStack) -> UnderTest:
    writer = await lake_writer(lake)
    writer.commit(
        "CREATE TABLE lake.events (id BIGINT NOT NULL, who UUID, doc JSON)",
        "CREATE TABLE lake.parts (id BIGINT NOT NULL, who UUID, doc JSON)",
        "ALTER TABLE lake.parts SET PARTITIONED BY (id)",
    )
    writer.connection.close()
    pool = await stack.enter_async_context(writer_pool(lake))
    nowhere = replace(lake.store, endpoint="http://127.0.0.1:9")
    if lake.store.secret_dir is None:  # where a file stands there can be no folder
        nowhere = replace(lake.store, url=f"{lake.store.url}broken/")
        folder = Path(duckdb_engine.data_path(nowhere))
        folder.mkdir(parents=True)
        (folder / "main").touch()
    stagers = [DuckDBStager(lake=lake.name, store=s, pool=pool) for s in (lake.store, nowhere)]
    for stager in stagers:
        stack.push_async_callback(stager.close)
    reader = stack.enter_context(duckdb_engine.connect(extensions=("httpfs",)))
    duckdb_engine.use_store(reader, lake.store)

    def ids(path: str) -> list[int] | None:
        url = duckdb_engine.data_path(lake.store) + path
        query = "SELECT id, typeof(who), typeof(doc) FROM read_parquet($1)"
        try:
            found = reader.execute(query, [url]).fetchall()
        except duckdb.IOException:  # also what HTTP says
            return None
        assert {row[1:] for row in found} == {("UUID", "JSON")}
        return [row[0] for row in found]

    return UnderTest(stager=stagers[0], broken=stagers[1], ids=ids)


@pytest.fixture(params=["fake", "file", "s3"])
async def under_test(
    request: pytest.FixtureRequest, make_lake: Callable[..., Awaitable[Lake]]
) -> AsyncIterator[UnderTest]:
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            yield fake()
        else:
            yield await real(await make_lake(store=request.param), stack)


async def stage(stager: Stager, *ids: int, into: TableDef | None = None) -> StagedFile | None:
    into = into or table()
    half = len(ids) // 2
    parts = [batch(*part, of=into) for part in (ids[:half], ids[half:]) if part]
    return await stager.stage(into, parts)


async def test_a_staged_file_holds_the_rows_in_the_tables_folder(under_test: UnderTest) -> None:
    file = await stage(under_test.stager, 1, 2, 3)

    assert file is not None
    assert file.path.startswith("main/events/staged-")
    assert file.rows == 3
    assert file.size > 0
    assert under_test.ids(file.path) == [1, 2, 3]


async def test_each_file_has_a_name_of_its_own(under_test: UnderTest) -> None:
    one, two = [await stage(under_test.stager, n) for n in (1, 2)]

    assert one is not None
    assert two is not None
    assert (under_test.ids(one.path), under_test.ids(two.path)) == ([1], [2])


async def test_a_table_that_is_not_in_the_lake_takes_no_file(under_test: UnderTest) -> None:
    assert await stage(under_test.stager, 1, into=table("young")) is None


async def test_a_partitioned_table_takes_no_file(under_test: UnderTest) -> None:
    assert await stage(under_test.stager, 1, into=table("parts", partition_by=["id"])) is None


async def test_a_discarded_file_is_gone_and_discarding_repeats(under_test: UnderTest) -> None:
    file = await stage(under_test.stager, 1)
    assert file is not None

    for _ in range(2):
        await under_test.stager.discard(file)

    assert under_test.ids(file.path) is None


async def test_without_the_store_nothing_is_staged_and_discarding_is_silent(
    under_test: UnderTest,
) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await stage(under_test.broken, 1)
        assert caught.value.code == "STORAGE_UNAVAILABLE"

    await under_test.broken.discard(StagedFile(path="main/events/x.parquet", rows=1, size=1))


async def test_a_store_that_failed_is_asked_before_a_file_is_tried_again(
    make_lake: Callable[..., Awaitable[Lake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file takes half a minute to fail, and the writers of all that wait would stand still as long."""
    lake, now, tried = await make_lake(store="s3"), 0.0, 0
    write = DuckDBStager._write

    async def counted(*arguments: Any) -> int:
        nonlocal tried
        tried += 1
        return await write(*arguments)

    monkeypatch.setattr(DuckDBStager, "_write", counted)
    secret = lake.store.secret_dir
    assert secret is not None
    key = (secret / "secret-access-key").read_text()
    async with AsyncExitStack() as stack:
        await real(lake, stack)
        pool = await stack.enter_async_context(writer_pool(lake))
        (secret / "secret-access-key").write_text("refused")
        stager = DuckDBStager(lake=lake.name, store=lake.store, pool=pool, clock=lambda: now)
        stack.push_async_callback(stager.close)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await stage(stager, 1)
            now += 60
        failed = tried
        (secret / "secret-access-key").write_text(key)

        file = await stage(stager, 2)

    assert (failed, tried) == (1, 2)
    assert file is not None
    assert file.rows == 1
