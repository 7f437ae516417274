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
from urllib.parse import urlsplit

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

CANARIES = {
    kind: f"canary-of-{kind}-4711" for kind in ("env", "dsn", "row", "file", "token", "settings")
}
"""One secret for each place where a tenant may look for it."""
ROWS = 1_000
MEMORY = 512 * 2**20


@dataclass
class House:
    """A lake in files behind a read proxy, and secrets around it."""

    folder: Path
    proxy: ReadProxy
    neighbour: int
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
            "dsn": self.folder / "reader" / "dsn",
            "token": self.folder / "serviceaccount" / "token",
            "settings": self.folder / "auth" / "keys.json",
            "other": self.folder / "data" / "other.parquet",
            "others": self.folder / "others.db",
            "authority": urlsplit(self.proxy.data_url).netloc,
            "catalogs": self.catalogs,
            "proxy": self.proxy.data_url,
            "port": self.port,
            "parent": self.neighbour,
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
    secrets = {"SECRET": CANARIES["env"], "DUCKMESH_SECRET": CANARIES["settings"]}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for folder in ("catalogs", "catalogs-twin", "data", "reader", "serviceaccount", "auth"):
        (tmp_path / folder).mkdir()
    for place, kind in {
        "secret": "file",
        "data/other": "file",
        "catalogs-twin/secret": "file",
        "reader/dsn": "dsn",
        "serviceaccount/token": "token",
        "auth/keys.json": "settings",
    }.items():
        (tmp_path / place).write_text(CANARIES[kind] + "\n")
    (tmp_path / "catalogs" / "link").symlink_to(tmp_path / "secret")
    proxy = ReadProxy(StoreObjects(StoreSettings(url=f"{(tmp_path / 'data').as_uri()}/")))
    await proxy.start()
    # Variables set here are not in this process's /proc/<pid>/environ.
    neighbour = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE, env=secrets
    )
    made = House(tmp_path, proxy, neighbour.pid)
    async with await asyncio.start_server(made.knock, "127.0.0.1", 0) as forbidden:
        made.port = forbidden.sockets[0].getsockname()[1]
        await asyncio.to_thread(_furnish, made)
        proxy.allow(made.files)
        yield made
    await neighbour.communicate(b"\n")
    await proxy.close()


def _furnish(house: House) -> None:
    connection = connect(extensions=("ducklake",))
    data = house.folder / "data"
    connection.execute(
        f"ATTACH 'ducklake:{house.catalog}' AS lake (DATA_PATH '{data}/', DATA_INLINING_ROW_LIMIT 0)"
    )
    connection.execute(f"CREATE TABLE lake.flights AS SELECT range AS id FROM range({ROWS})")
    row = f"SELECT '{CANARIES['row']}' AS secret"
    connection.execute(f"COPY ({row}) TO '{data}/other.parquet'")
    connection.execute(f"ATTACH '{house.folder / 'others.db'}' AS others")
    connection.execute(f"CREATE TABLE others.ducklake_table AS {row}")
    connection.close()
    with duckdb.connect(str(house.catalog)) as catalog:
        url = house.proxy.data_url
        catalog.execute("UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'", [url])
    house.files = {
        str(path.relative_to(data)): path.stat().st_size
        for path in data.rglob("*.parquet")
        if path.name != "other.parquet"
    }


async def test_the_whole_sandbox_refuses_every_statement_and_serves_on(house: House) -> None:
    before = house.state()
    wrong = []

    async with _sandbox(house) as client:
        for attack in ATTACKS:
            got = await _answer(client, house, house.spell(attack))
            told = got[1].partition("\n\nLINE ")[0]  # then follows what the caller wrote
            if got[0] != attack.code or _leaks(got[1]) or str(house.folder) in told:
                wrong.append((attack.name, *got))
        count = await _answer(client, house, "SELECT count(*) FROM flights")

    assert wrong == []
    assert count == ("OK", f"[{{'count_star()': {ROWS}}}]")
    assert house.knocks == 0
    assert house.state() == before


async def test_without_any_wall_each_secret_is_seen(house: House) -> None:
    """That the tests below would notice. The engine reads no file that says it is empty, as those in /proc do."""
    reading = [attack for attack in ATTACKS if attack.sql.startswith("SELECT * FROM read_")]

    texts = await _bypass(house, ["-m", "tests.bare_slot", "--ungated"], reading)

    assert {kind for text in texts.values() for kind in _leaks(text)} == set(CANARIES) - {"env"}
    assert house.knocks > 0


async def test_without_the_gate_the_engine_lock_keeps_secrets(house: House) -> None:
    before = house.state()

    texts = await _bypass(house, ["-m", "duckmesh_runtime.sandbox.slot", "--ungated"])

    assert [(name, _leaks(text)) for name, text in texts.items() if _leaks(text)] == []
    assert house.knocks == 0
    assert _changed(before, house.state()) == []


async def test_threads_are_as_the_job_says_whatever_a_statement_set(house: House) -> None:
    child = await _slot(house, ["-m", "duckmesh_runtime.sandbox.slot", "--ungated"])
    try:
        await _ask(child, house, "SET threads = 3")
        said = await _ask(
            child, house, "SELECT 'threads ' || current_setting('threads')", threads=1
        )
    finally:
        await _end(child)

    assert "threads 1" in said


@pytest.mark.skipif(landlock.version() < 4, reason="this kernel leaves the box to the container")
async def test_without_gate_and_engine_lock_the_kernel_box_keeps_secrets(house: House) -> None:
    before = house.state()

    texts = await _bypass(house, ["-m", "tests.open_slot", "--ungated"])

    assert [(name, _leaks(text)) for name, text in texts.items() if _leaks(text)] == []
    assert house.knocks == 0
    assert _changed(before, house.state()) == []


def _leaks(text: str) -> list[str]:
    return [kind for kind, canary in CANARIES.items() if canary in text]


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


async def _bypass(
    house: House, arguments: Sequence[str], attacks: Sequence[Attack] = ATTACKS
) -> dict[str, str]:
    """Every statement in a slot that is asked directly: what it says to each, rows and errors."""
    found = {}
    child: Child | None = None
    try:
        for attack in attacks:
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


async def _ask(child: Child, house: House, sql: str, *, threads: int = 0) -> str:
    job = wire.Job(
        sql=sql,
        params=[],
        catalog_path=str(house.catalog),
        data_url=house.proxy.data_url,
        row_limit=100,
        timeout_ms=20_000,
        threads=threads,
    )
    ours, theirs = socket.socketpair()
    with theirs:
        child.begin(wire.encode_message(Kind.JOB, job), theirs)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    said = b""
    try:
        async with asyncio.timeout(30):
            while part := await reader.read(65_536):
                said += part
            _, body = await child.receive()
            said += body
    except OSError:  # it is gone, or silent for too long (TimeoutError is one)
        pass
    finally:
        writer.close()
    return said.decode("latin-1")


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
