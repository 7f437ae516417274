"""The accept side over a real Postgres that fails: unavailable, then exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pyarrow as pa
import pytest

from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.postgres_bus import PostgresBus
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services.ingest import IngestAnswer, IngestService
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import IngestLimits
from tests.buses import LAKE, eventually, install_bus, write_secret
from tests.services import create_database

TABLE = parse_table({"name": "events", "columns": [{"name": "id", "type": "BIGINT"}]})


def record(number: int) -> RawRecord:
    return RawRecord(payload={"id": number}, idempotency_key=f"key-{number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepting:
    """A service over a bus in Postgres."""

    service: IngestService
    bus: PostgresBus

    async def ingest(self, *numbers: int) -> IngestAnswer:
        return await self.service.ingest_records("events", [record(n) for n in numbers])

    async def ingest_until_answered(self, *numbers: int) -> IngestAnswer:
        found: list[IngestAnswer] = []

        async def answered() -> bool:
            with suppress(Unavailable):
                found.append(await self.ingest(*numbers))
            return bool(found)

        await eventually(answered)
        return found[0]

    async def rows(self) -> list[int]:
        found: list[int] = []
        for entry in await self.bus.read(1, max_rows=10**6, max_bytes=2**30):
            found += pa.ipc.open_stream(entry.payload).read_all()["id"].to_pylist()
        return found


@asynccontextmanager
async def accepting(dsn: str, folder: Path) -> AsyncIterator[Accepting]:
    """A service whose writer connects to this DSN; the bus is already there."""
    pool = await open_pool(write_secret(folder, dsn), application_name="test-ingest")
    bus = PostgresBus(pool, LAKE)
    inlet = Inlet(bus, lake=LAKE, limits=IngestLimits(), on_accepted=lambda number: None)
    await inlet.start()
    await TableService(inlet, bus).create(TABLE)
    try:
        yield Accepting(service=IngestService(inlet), bus=bus)
    finally:
        await inlet.drain()
        pool.terminate()


@pytest.fixture
def own_server(services_dir: Path, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that the test may break."""
    with PostgresServer(services_dir / f"broken-{request.node.name}") as server:
        yield server


@asynccontextmanager
async def head_locked(dsn: str) -> AsyncIterator[Callable[[], object]]:
    """Another writer in its transaction; gives the question for a backend that waits for it."""
    holder = await asyncpg.connect(dsn)
    watcher = await asyncpg.connect(dsn)
    await holder.execute(f"BEGIN; UPDATE {LAKE}_bus.head SET last = last")

    async def waiting() -> int | None:
        found: int | None = await watcher.fetchval("SELECT pid FROM pg_locks WHERE NOT granted")
        return found

    try:
        yield waiting
    finally:
        holder.terminate()
        watcher.terminate()


async def test_a_killed_backend_is_unavailable_and_the_retry_writes_once(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(own_server)
    await install_bus(dsn)
    async with accepting(dsn, tmp_path) as lake:
        async with head_locked(dsn) as waiting:
            call = asyncio.create_task(lake.ingest(1, 2))
            await eventually(lambda: _is_set(waiting))
            os.kill(await waiting(), signal.SIGKILL)  # type: ignore[misc, arg-type]  # a pid
            with pytest.raises(Unavailable) as caught:
                await call
        answer = await lake.ingest_until_answered(1, 2)

        assert caught.value.code == "CATALOG_UNAVAILABLE"
        assert (answer.accepted, answer.duplicates) == (2, 0)
        assert await lake.rows() == [1, 2]


async def _is_set(question: Callable[[], object]) -> bool:
    return await question() is not None  # type: ignore[misc]  # an awaitable


async def test_over_restarts_under_load_every_record_is_there_once(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(own_server)
    await install_bus(dsn)
    async with accepting(dsn, tmp_path) as lake:
        stop = asyncio.Event()
        sent = 0
        settled = 0

        async def client(number: int) -> None:
            nonlocal sent, settled
            while not stop.is_set():
                first, sent = sent, sent + 3
                answer = await lake.ingest_until_answered(first, first + 1, first + 2)
                assert answer.accepted + answer.duplicates == 3
                settled += 3

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(client(number))
            for how in (signal.SIGQUIT, signal.SIGINT):
                before = settled
                await eventually(lambda before=before: _more(settled, before + 50))  # type: ignore[misc]
                await asyncio.to_thread(own_server.stop, how)
                await asyncio.to_thread(own_server.start)
            before = settled
            await eventually(lambda: _more(settled, before + 50))
            stop.set()

        assert sorted(await lake.rows()) == list(range(sent))


async def _more(now: int, than: int) -> bool:
    return now > than


class CommitEater:
    """A TCP proxy that passes an append on and then loses the connection before the answer comes back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.hungry = False
        self.eaten = 0

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", self._port)
        down = asyncio.create_task(self._pass_on(answers, back))
        try:
            while data := await client.read(65536):
                if (
                    self.hungry and data[:1] == b"B" and b"rows" in data
                ):  # Bind with an entry's kind
                    self.hungry = False
                    self.eaten += 1
                    down.cancel()
                    server.write(data)
                    await answers.read(1)  # the answer: it is committed
                    break
                server.write(data)
                await server.drain()
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            for writer in (server, back):
                writer.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
        to.close()


async def test_a_commit_whose_answer_is_lost_is_found_by_its_keys(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(postgres)
    await install_bus(dsn)
    eater = CommitEater(postgres.port)
    async with (
        eater as port,
        accepting(dsn.replace(str(postgres.port), str(port)), tmp_path) as lake,
    ):
        eater.hungry = True
        with pytest.raises(Unavailable):
            await lake.ingest(1, 2)

        answer = await lake.ingest(1, 2, 3)

        assert eater.eaten == 1
        assert (answer.accepted, answer.duplicates) == (1, 2)
        assert await lake.rows() == [1, 2, 3]


async def test_the_writer_has_no_more_rights_than_it_needs(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    dsn = await create_database(postgres)
    await install_bus(dsn)
    refused = {
        "w": ["DELETE FROM {bus}.head", "INSERT INTO {bus}.head (last) VALUES (1)",
              "UPDATE {bus}.entry SET payload = ''", "DROP TABLE {bus}.entry",
              "CREATE TABLE {bus}.x ()", "UPDATE {bus}.idempotency SET number = 1",
              "DELETE FROM {bus}.record_key", "SELECT * FROM {bus}.record_key_0",
              "DROP TABLE {bus}.record_key_0", "DELETE FROM {bus}.table_version",
              "INSERT INTO {bus}.key_generation (request, generation) VALUES (false, 9)",
              "UPDATE {bus}.dead_letter SET error = ''",
              "INSERT INTO {bus}.dead_letter SELECT * FROM {bus}.dead_letter",
              "SELECT duckmesh.open_generation('{bus}', false, 9)",
              "SELECT * FROM duckmesh.declared_tables",
              "SELECT duckmesh.install_bus('lake_x', 'a', 'b', 'c')"],
        "m": ["INSERT INTO {bus}.idempotency (key, content, number) VALUES ('', '', 1)",
              "DELETE FROM {bus}.entry", "UPDATE {bus}.head SET last = 1",
              "SELECT * FROM {bus}.table_def", "SELECT * FROM {bus}.dead_letter",
              "SELECT * FROM {bus}.record_key", "SELECT {bus}.known_keys('{}', '{}')",
              "SELECT duckmesh.expire_keys('lake_test', 0, 0, 0)"],
        "r": ["SELECT * FROM {bus}.entry", "SELECT * FROM {bus}.idempotency",
              "SELECT * FROM {bus}.table_def", "SELECT * FROM {bus}.head FOR UPDATE",
              "SELECT * FROM {bus}.dead_letter", "SELECT * FROM {bus}.table_version",
              "SELECT duckmesh.set_aside_change('lake_test', 1, 0, 1, '')",
              "SELECT duckmesh.report_tables('lake_test', '', true, '')"],
    }  # fmt: skip
    for role, statements in refused.items():
        pool = await open_pool(write_secret(tmp_path, dsn, role), application_name="test-rights")
        await pool.fetch(f"SELECT last, timeline FROM {LAKE}_bus.head")
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(statement.replace("{bus}", f"{LAKE}_bus"))
        await pool.close()


async def test_a_bus_made_anew_over_data_starts_past_it(postgres: PostgresServer) -> None:
    dsn = await create_database(postgres)
    await install_bus(dsn)
    admin = await asyncpg.connect(dsn)
    logins = [f"{LAKE}_{role}" for role in "wmr"]
    await admin.execute("UPDATE duckmesh.lake_status SET token = 41")
    await admin.execute(f"DROP SCHEMA {LAKE}_bus CASCADE")

    for _ in range(2):
        await admin.execute("SELECT duckmesh.install_bus($1, $2, $3, $4)", LAKE, *logins)

    assert await admin.fetchval(f"SELECT last FROM {LAKE}_bus.head") == 41
    await admin.close()
