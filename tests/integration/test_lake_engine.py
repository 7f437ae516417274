"""A writer that goes on for long: its DuckDB is replaced in time, and nobody notices."""

from __future__ import annotations

import asyncio

import duckdb
import pytest

from duckmesh_runtime.adapters import duckdb_engine, lake_engine
from duckmesh_runtime.adapters.duckdb_engine import Engine
from duckmesh_runtime.adapters.ducklake import DuckLakeWriter
from duckmesh_runtime.adapters.lake_engine import LakeEngine
from duckmesh_runtime.domain.schema import ColumnDef, TableDef
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import CommitOutcome, TableRows
from tests.lakes import LakeView, elected_writer, eventually, rows_of
from tests.services import Lake

WIDE = TableDef(
    name="events",
    columns=(
        ColumnDef(name="id", type="BIGINT", nullable=False),
        *(ColumnDef(name=f"c{number}", type="VARCHAR") for number in range(40)),
    ),
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_engine, "LOOK_EVERY", 4)
    monkeypatch.setattr(lake_engine, "MOST_REMEMBERED_BYTES", 2**16)


@pytest.mark.usefixtures("impatient")
async def test_what_an_engine_remembers_of_old_snapshots_stays_bounded_over_many_commits(
    lake: Lake,
) -> None:
    opened = []

    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, WIDE)
        for token in range(1, 60):
            rows = TableRows(table="events", rows=rows_of([token], WIDE))
            result = await writer.commit(token, token + 1, [rows])
            assert result.outcome is CommitOutcome.DONE
            if (engine := await instance(writer)) not in opened:
                opened.append(engine)
            assert await remembered(writer) < 2**18

    assert len(opened) > 2
    assert LakeView(lake).ids() == list(range(1, 60))


async def test_an_engine_that_is_not_replaced_remembers_every_commit(lake: Lake) -> None:
    """Why there is a successor at all: once this fails, DuckLake forgets by itself."""
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, WIDE)
        sizes = []
        for token in range(1, 31):
            await writer.commit(
                token, token + 1, [TableRows(table="events", rows=rows_of([token], WIDE))]
            )
            sizes.append(await remembered(writer))

    assert sizes[-1] > 2 * sizes[9]


class Opener:
    """Opens engines of plain DuckDB, or fails."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.down: Exception | None = None
        self.asked = 0

    async def __call__(self) -> Engine:
        self.asked += 1
        if self.down is not None:
            raise self.down
        connection = duckdb_engine.connect(extensions=(), threads=1)
        connection.execute(f"SET VARIABLE number = {len(self.engines)}")
        self.engines.append(Engine(connection, name="test"))
        return self.engines[-1]


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Opener:
    monkeypatch.setattr(lake_engine, "LOOK_EVERY", 1)
    monkeypatch.setattr(lake_engine, "MOST_REMEMBERED_BYTES", -1)
    return Opener()


async def number(engine: LakeEngine) -> int:
    def read(connection: duckdb.DuckDBPyConnection) -> int:
        ((found,),) = connection.execute("SELECT getvariable('number')").fetchall()
        return int(found)

    return await engine.run(read, timeout_s=10)


async def test_the_old_engine_goes_on_until_the_new_one_is_open_and_ends_then(
    opener: Opener,
) -> None:
    engine = await LakeEngine.open(opener)
    await engine.freshen()
    assert await number(engine) == 0

    async def changed() -> bool:
        await engine.freshen()
        return await number(engine) > 0

    await eventually(changed)
    assert opener.engines[0].given_up
    await engine.close()
    assert all(each.given_up for each in opener.engines)


@pytest.mark.parametrize(
    "problem",
    [
        Unavailable("CATALOG_UNAVAILABLE", "not now"),
        MemoryError(),
        duckdb.IOException("no files left"),
    ],
)
async def test_an_engine_that_cannot_be_replaced_goes_on_and_tries_again(
    opener: Opener, problem: Exception
) -> None:
    engine = await LakeEngine.open(opener)
    opener.down = problem

    async def tried_twice() -> bool:
        await engine.freshen()
        return opener.asked > 2

    await eventually(tried_twice)
    assert await number(engine) == 0
    opener.down = None

    async def changed() -> bool:
        await engine.freshen()
        return await number(engine) > 0

    await eventually(changed)
    await engine.close()


async def test_a_close_ends_a_successor_on_its_way(opener: Opener) -> None:
    engine = await LakeEngine.open(opener)
    await engine.freshen()
    await asyncio.sleep(0)

    await engine.close()
    await engine.close()

    assert all(each.given_up for each in opener.engines)


async def test_a_close_after_a_failed_successor_ends_the_engine(opener: Opener) -> None:
    engine = await LakeEngine.open(opener)
    opener.down = MemoryError()
    await engine.freshen()
    await eventually(lambda: _asked(opener, 2))

    await engine.close()

    assert opener.engines[0].given_up


async def _asked(opener: Opener, times: int) -> bool:
    return opener.asked >= times


async def instance(writer: DuckLakeWriter) -> int:
    return id(writer._engine._engine)


async def remembered(writer: DuckLakeWriter) -> int:
    return await writer._engine._remembers()
