"""`duckmesh dev`: a lakehouse on this machine. All roles in one process, Postgres and the sandbox as children.

Listens on loopback only. A restart keeps the data; Ctrl-C ends everything in order.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click

from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.cli.connection import save_connection
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.processes import end
from duckmesh_runtime.dev.provision import LocalLake, ensure_logins, open_lake
from duckmesh_runtime.errors import SettingsError
from duckmesh_runtime.settings import Settings
from duckmesh_runtime.wiring import serve_all

logger = logging.getLogger(__name__)

# A laptop sleeps and is closed, so commits are durable; but it has one user and no replica.
_POSTGRES: Final = {"max_connections": "50", "shared_buffers": "64MB"}
_ROOTS_FOLDER: Final = Path("/var/lib/duckmesh")

_WELCOME: Final = """duckmesh runs at {url} (started in {seconds:.1f} s)
  data     {folder}
  API key  {key_file} ({where})

Try, in another terminal:{export}
  printf 'id,name\\n1,one\\n2,two\\n' > numbers.csv
  duckmesh ingest numbers.csv --create --wait
  duckmesh query 'SELECT * FROM numbers'
  duckmesh lag -w

Ctrl-C ends it; the data stays."""


def default_folder() -> Path:
    """Where the data lies; for root outside of its home, since Postgres runs as nobody, who cannot enter it."""
    if os.geteuid() == 0:
        return _ROOTS_FOLDER
    return Path("~/.local/share/duckmesh").expanduser()


def run(folder: Path, *, port: int, connection_file: Path) -> int:
    """Run until SIGINT or SIGTERM; returns the exit code.

    Raises:
        SettingsError: The folder is in use, the port is taken, or a part does not start; says what to do.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_only_one(folder))
        lake = open_lake(folder)
        runtime_dir = stack.enter_context(_runtime_dir())
        settings = lake.settings(port=port, runtime_dir=runtime_dir)
        click.echo("starting; the first time takes a few seconds", err=True)
        sandbox = stack.enter_context(_sandbox(settings))
        postgres = stack.enter_context(_postgres(folder))
        asyncio.run(_prepare(lake, postgres))

        def ready(ports: Sequence[int]) -> None:
            url = f"http://127.0.0.1:{ports[0]}"
            saved = save_connection(connection_file, url, lake.admin_key)
            seconds = time.monotonic() - started
            click.echo(_welcome(lake, url, seconds, connection_file if saved else None))

        def ended() -> str | None:
            if not postgres.running:
                return "postgres"
            return None if sandbox.poll() is None else "sandbox"

        return serve_all(settings, ready, ended)


async def _prepare(lake: LocalLake, postgres: PostgresServer) -> None:
    await ensure_logins(lake, postgres)
    await migrate(lake.migrate_settings())


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"another `duckmesh dev` runs in {folder}: stop it, or choose another --dir"
            ) from None
        yield


@contextmanager
def _runtime_dir() -> Iterator[Path]:
    # A Unix socket's path has at most 107 bytes: a folder of the user's choosing may be too deep.
    folder = Path(tempfile.mkdtemp(prefix="duckmesh-"))
    (folder / "catalogs").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(folder / "postgres", settings=dict(_POSTGRES))
    try:
        server.start()
    except (RuntimeError, OSError) as error:
        server.stop()
        raise SettingsError(
            f"Postgres does not start: {error}; its folder must be one that its user can enter"
        ) from error
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def _sandbox(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    query = settings.query
    environment = {
        "PATH": os.defpath,
        "HOME": str(settings.catalog_dir.parent),
        "DUCKMESH_SANDBOX_SOCKET": str(settings.sandbox_socket),
        "DUCKMESH_CATALOG_DIR": str(settings.catalog_dir),
        "DUCKMESH_QUERY_CONCURRENCY": str(query.concurrency),
        "DUCKMESH_QUERY_MEMORY_BYTES": str(query.memory_bytes),
        "DUCKMESH_QUERY_TIMEOUT_MS": str(query.timeout_ms),
        "DUCKMESH_LOG_FORMAT": settings.log_format,
        "DUCKMESH_LOG_LEVEL": settings.log_level,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "duckmesh_runtime", "sandbox"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C of a terminal goes to this process, which then ends its children in order
    )
    try:
        yield process
    finally:
        end(process, signal.SIGTERM, 10)


def _welcome(lake: LocalLake, url: str, seconds: float, saved: Path | None) -> str:
    where = f"saved for the command line in {saved}" if saved else "not saved: another is in use"
    key_file = lake.admin_key_file
    export = f"\n  export DUCKMESH_URL={url} DUCKMESH_API_KEY=$(cat {key_file})"
    return _WELCOME.format(
        url=url,
        seconds=seconds,
        folder=lake.folder,
        key_file=key_file,
        where=where,
        export="" if saved else export,
    )
