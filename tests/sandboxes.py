"""A real sandbox process over a small frozen lake, whose data files a server hands out as the read proxy does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import duckdb
import psutil

from duckmesh_runtime.adapters.duckdb_engine import connect
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.dev.processes import end
from duckmesh_runtime.ports import QueryJob, QueryStats, Sandbox

ROWS: Final = 10_000
ENDLESS: Final = "SELECT sum(hash(a.range + b.range)) FROM range(10000000) a, range(10000000) b"
"""Heeds an interrupt."""

SOON_S: Final = 10.0
"""Past a deadline, on a busy machine; the time limit of a statement that names none is twice as long."""


class DataServer:
    """Data files below `/lake/` on a loopback port.

    Attributes:
        fail_with: Answer every request with this status.
        requests: Paths asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.fail_with: int | None = None
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, folder))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/lake/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: DataServer, folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            file = folder / self.path.removeprefix("/lake/")
            if server.fail_with or not file.exists():
                self.send_error(server.fail_with or 404)
                return
            data = file.read_bytes()
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            first, _, last = asked.partition("-")
            start, stop = int(first or 0), min(int(last or len(data) - 1), len(data) - 1) + 1
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:stop])

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@dataclass
class SmallLake:
    """Frozen catalogs and their data.

    Attributes:
        folder: Of everything; catalogs lie in `catalogs`.
        data: Serves the files.
    """

    folder: Path
    data: DataServer = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "data").mkdir()
        self.catalogs.mkdir()
        self.data = DataServer(self.folder / "data")

    @property
    def catalogs(self) -> Path:
        return self.folder / "catalogs"

    def freeze(self, name: str, *statements: str) -> Path:
        """A catalog with `numbers` (id BIGINT, name VARCHAR) and what the statements add to the lake `lake`."""
        path = self.catalogs / name
        connection = connect(extensions=("ducklake",))
        connection.execute(
            f"ATTACH 'ducklake:{path}' AS lake "
            f"(DATA_PATH '{self.folder / 'data'}/', DATA_INLINING_ROW_LIMIT 0)"
        )
        connection.execute("USE lake")
        for statement in (
            f"CREATE TABLE numbers AS SELECT range AS id, 'n' || range AS name FROM range({ROWS})",
            *statements,
        ):
            connection.execute(statement)
        connection.close()
        with duckdb.connect(str(path)) as catalog:
            change = "UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'"
            catalog.execute(change, [self.data.url])
        return path

    def job(self, sql: str, *params: object, **changes: Any) -> QueryJob:
        values: dict[str, Any] = {
            "catalog_path": str(self.catalogs / "first.db"),
            "data_url": self.data.url,
            "row_limit": 1_000_000,
            "timeout_ms": 20_000,
        }
        return QueryJob(sql=sql, params=params, **(values | changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSandbox:
    """A `duckmesh sandbox` process."""

    process: subprocess.Popen[bytes]
    client: SandboxClient

    def slots(self) -> set[int]:
        """Process ids of its slots now."""
        return {child.pid for child in psutil.Process(self.process.pid).children()}


@contextmanager
def running_sandbox(
    lake: SmallLake, *, name: str = "sandbox", concurrency: int = 2, memory_bytes: int = 512 * 2**20
) -> Iterator[RunningSandbox]:
    socket = lake.folder / f"{name}.sock"
    environment = {
        "PATH": os.defpath,
        "SECRET_OF_THE_SUPERVISOR": "canary",
        "DUCKMESH_SANDBOX_SOCKET": str(socket),
        "DUCKMESH_CATALOG_DIR": str(lake.catalogs),
        "DUCKMESH_QUERY_CONCURRENCY": str(concurrency),
        "DUCKMESH_QUERY_MEMORY_BYTES": str(memory_bytes),
        "DUCKMESH_QUERY_TIMEOUT_MS": "60000",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "duckmesh_runtime", "sandbox"], env=environment
    )
    try:
        wait_for(socket.exists)
        yield RunningSandbox(process=process, client=SandboxClient(socket))
    finally:
        end(process, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A result read to its end."""

    rows: list[dict[str, Any]]
    type_names: list[str]
    stats: QueryStats

    @property
    def value(self) -> Any:
        """Of a result with one row and one column."""
        ((value,),) = [row.values() for row in self.rows]
        return value


async def ask(sandbox: Sandbox, job: QueryJob) -> Answer:
    run = await sandbox.run(job)
    rows = [row async for batch in run.batches for row in batch.to_pylist()]
    return Answer(rows=rows, type_names=list(run.type_names), stats=run.stats)


def wait_for(condition: Callable[[], object], deadline_s: float = 60) -> None:
    """Wait until it holds; AssertionError past the deadline."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.01)


async def eventually(condition: Callable[[], object], deadline_s: float = 60) -> None:
    """The same beside the loop."""
    await asyncio.to_thread(wait_for, condition, deadline_s)
