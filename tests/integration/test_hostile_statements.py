"""Each wall of the sandbox against the same hostile statements: all of them, then one after the other taken away."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from duckmesh_runtime.adapters.duckdb_engine import connect
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind
from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.ports import QueryJob
from duckmesh_runtime.sandbox import landlock
from duckmesh_runtime.sandbox.child import Child
from duckmesh_runtime.sandbox.supervisor import serve
from duckmesh_runtime.settings import StoreSettings
from duckmesh_runtime.web.proxy import ReadProxy
from tests.hostile import ATTACKS, Attack

SECRET = "canary-of-the-test"
ROWS = 1_000
MEMORY = 512 * 2**20


@dataclass
class House:
    """A lake in files behind a read proxy, and secrets around it."""

    folder: Path
    proxy: ReadProxy
    port: int = 0
    knocks: int = 0
    files: dict[str, int] = field(default_factory=dict)

    @property
    def catalogs(self) -> Path:
        return self.folder / "catalogs"

    @property
    def catalog(self) -> Path:
        return self.catalogs / "s.db"

    def spell(self, attack: Attack) -> str:
        sql = attack.sql
        for name, value in {
            "file": self.folder / "secret",
            "folder": self.folder,
            "link": self.catalogs / "link",
            "catalogs": self.catalogs,
            "proxy": self.proxy.data_url,
            "port": self.port,
            "parent": os.getpid(),
        }.items():
            sql = sql.replace("{" + name + "}", str(value))
        return sql

    def knock(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Someone is at the forbidden port."""
        self.knocks += 1
        writer.close()

    def state(self) -> dict[str, bytes]:
        """Every file of the house, but sockets."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "catalogs").mkdir()
    (tmp_path / "catalogs-twin").mkdir()
    (tmp_path / "data").mkdir()
    for place in ("secret", "data/other", "catalogs-twin/secret"):
        (tmp_path / place).write_text(SECRET + "\n")
    (tmp_path / "catalogs" / "link").symlink_to(tmp_path / "secret")
    proxy = ReadProxy(StoreObjects(StoreSettings(url=f"{(tmp_path / 'data').as_uri()}/")))
    await proxy.start()
    made = House(tmp_path, proxy)
    async with await asyncio.start_server(made.knock, "127.0.0.1", 0) as forbidden:
        made.port = forbidden.sockets[0].getsockname()[1]
        await asyncio.to_thread(_furnish, made)
        proxy.allow(made.files)
        yield made
    await proxy.close()


def _furnish(house: House) -> None:
    connection = connect(extensions=("ducklake",))
    data = house.folder / "data"
    connection.execute(
        f"ATTACH 'ducklake:{house.catalog}' AS lake (DATA_PATH '{data}/', DATA_INLINING_ROW_LIMIT 0)"
    )
    connection.execute(f"CREATE TABLE lake.flights AS SELECT range AS id FROM range({ROWS})")
    connection.close()
    with duckdb.connect(str(house.catalog)) as catalog:
        url = house.proxy.data_url
        catalog.execute("UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", [url])
    house.files = {
        str(path.relative_to(data)): path.stat().st_size for path in data.rglob("*.parquet")
    }


async def test_the_whole_sandbox_refuses_every_statement_and_serves_on(house: House) -> None:
    before = house.state()
    wrong = []

    async with _sandbox(house) as client:
        for attack in ATTACKS:
            got = await _answer(client, house, house.spell(attack))
            if got[0] != attack.code or SECRET in got[1] or str(house.folder) in got[1]:
                wrong.append((attack.name, *got))
        count = await _answer(client, house, "SELECT count(*) FROM flights")

    assert wrong == []
    assert count == ("OK", f"[{{'count_star()': {ROWS}}}]")
    assert house.knocks == 0
    assert house.state() == before


async def test_without_the_gate_the_engine_lock_keeps_secrets(house: House) -> None:
    before = house.state()

    texts = await _bypass(house, ["-m", "duckmesh_runtime.sandbox.slot", "--ungated"])

    assert [name for name, text in texts.items() if SECRET in text] == []
    assert house.knocks == 0
    assert _changed(before, house.state()) == []


@pytest.mark.skipif(landlock.version() < 4, reason="this kernel leaves the box to the container")
async def test_without_gate_and_engine_lock_the_kernel_box_keeps_secrets(house: House) -> None:
    before = house.state()

    texts = await _bypass(house, ["-m", "tests.open_slot", "--ungated"])

    assert [name for name, text in texts.items() if SECRET in text] == []
    assert house.knocks == 0
    assert _changed(before, house.state()) == []


def _changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


@asynccontextmanager
async def _sandbox(house: House) -> AsyncIterator[SandboxClient]:
    path = house.folder / "socket"
    serving = asyncio.create_task(
        serve(path, house.catalogs, concurrency=1, memory_bytes=MEMORY, timeout_ms=20_000)
    )
    try:
        async with asyncio.timeout(20):
            while not path.exists():
                await asyncio.sleep(0.01)
        yield SandboxClient(path)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def _answer(client: SandboxClient, house: House, sql: str) -> tuple[str, str]:
    job = QueryJob(
        sql=sql,
        params=[],
        catalog_path=str(house.catalog),
        data_url=house.proxy.data_url,
        row_limit=100,
        timeout_ms=20_000,
    )
    try:
        run = await client.run(job)
        rows = [row async for batch in run.batches for row in batch.to_pylist()]
    except DuckmeshError as error:
        return error.code, error.message
    return "OK", str(rows)


async def _bypass(house: House, arguments: Sequence[str]) -> dict[str, str]:
    """Every statement in a slot that is asked directly: what it says to each, rows and errors."""
    found = {}
    child: Child | None = None
    try:
        for attack in ATTACKS:
            if child is None:
                child = await _slot(house, arguments)
            found[attack.name] = await _ask(child, house, house.spell(attack))
            # What a statement spoilt (DETACH, USE, a crash) must not save the ones after it.
            if "alive 999" not in await _ask(
                child, house, "SELECT 'alive ' || max(id) FROM flights"
            ):
                await _end(child)
                child = None
    finally:
        if child is not None:
            await _end(child)
    return found


async def _ask(child: Child, house: House, sql: str) -> str:
    job = wire.Job(
        sql=sql,
        params=[],
        catalog_path=str(house.catalog),
        data_url=house.proxy.data_url,
        row_limit=100,
        timeout_ms=20_000,
    )
    child.send(wire.encode_message(Kind.JOB, job))
    said = ""
    try:
        async with asyncio.timeout(30):
            while True:
                kind, body = await child.receive()
                said += body.decode("latin-1")
                if kind in (Kind.END, Kind.ERROR):
                    return said
    except OSError:  # it is gone, or silent for too long (TimeoutError is one)
        return said


async def _slot(house: House, arguments: Sequence[str]) -> Child:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            f"--socket={theirs.fileno()}",
            f"--parent={os.getpid()}",
            f"--catalog-dir={house.catalogs}",
            f"--memory-bytes={MEMORY}",
            env={"PATH": os.defpath, "HOME": str(house.folder)},
            cwd=Path(__file__).parents[2],
            pass_fds=(theirs.fileno(),),
        )
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    child = Child(process, reader, writer)
    assert (await child.receive())[0] is Kind.READY
    return child


async def _end(child: Child) -> None:
    child.kill()
    await child.ended()
