"""Connections to the catalog database, for every adapter that speaks Postgres with asyncpg.

A connection reads its DSN when it is made, so a rotated credential needs no restart.
It never waits without a bound, and its failures become `errors.Unavailable` by SQLSTATE, never by message text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

import asyncpg

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.settings import read_secret

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 3.0
"""Together with the statement timeout below five seconds: what a client waits at most for its 503."""

STATEMENT_TIMEOUT_MS: Final = 4_000
LOCK_TIMEOUT_MS: Final = 2_000

# https://www.postgresql.org/docs/18/errcodes-appendix.html, first two characters: connection, authorisation (a login
# being rotated), no such database, resources, operator intervention (shutdown, cancel, timeout), system error.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "28", "3D", "53", "57", "58"})
# serialization failure, deadlock, lock not available, read-only transaction (a standby not yet promoted), a database that
# takes no connections now
_UNAVAILABLE_CODES: Final = frozenset({"40001", "40P01", "55P03", "25006", "55000"})


async def open_pool(
    secret_dir: Path,
    *,
    application_name: str,
    size: int = 4,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    settings: Mapping[str, str] | None = None,
    init: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
) -> asyncpg.Pool:
    """Make a pool; connections are opened when first needed, so a database that is down does not stop a start.

    Args:
        secret_dir: Folder with `dsn`, read at every connect.
        application_name: Shown in `pg_stat_activity`; at most 63 characters.
        size: Most connections.
        statement_timeout_ms: A statement that runs longer is cancelled by the server.
        lock_timeout_ms: Longest wait for a lock.
        settings: Further start-up settings.
        init: Called once for each new connection.
    """

    async def make(*_: object, **options: Any) -> asyncpg.Connection:
        return await connect(
            secret_dir,
            application_name=application_name,
            statement_timeout_ms=statement_timeout_ms,
            lock_timeout_ms=lock_timeout_ms,
            settings=settings,
            **options,
        )

    return await asyncpg.create_pool(
        min_size=0, max_size=size, connect=make, init=init, reset=_keep
    )


async def _keep(_: asyncpg.Connection) -> None:
    """Give a connection back as it is: nothing here leaves session state, and a round trip a use is saved.

    asyncpg still rolls back an open transaction. Its own reset, run on a dying connection, would also replace the error
    that the caller was about to see.
    """


async def connect(
    secret_dir: Path,
    *,
    application_name: str,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    settings: Mapping[str, str] | None = None,
    **options: Any,
) -> asyncpg.Connection:
    """Open one connection; arguments as of `open_pool`."""
    return await asyncpg.connect(
        read_secret(secret_dir, "dsn"),
        timeout=CONNECT_TIMEOUT_S,
        # The server's own timeout comes first; this one is for a server that stopped answering.
        command_timeout=statement_timeout_ms / 1000 + 1,
        server_settings={
            "application_name": application_name,
            "statement_timeout": str(statement_timeout_ms),
            "lock_timeout": str(lock_timeout_ms),
            **(settings or {}),
        },
        **options,
    )


class catalog_errors:
    """Turn a database that does not answer into Unavailable CATALOG_UNAVAILABLE; other errors pass unchanged.

    Used like a statement, hence the name: `with catalog_errors():` around awaits, `@catalog_errors()` on functions.
    """

    def __enter__(self) -> catalog_errors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and is_unavailable(error):
            raise Unavailable(
                "CATALOG_UNAVAILABLE",
                "the catalog database does not answer: repeat the request",
                retry_after_s=1,
            ) from error

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Wrap a coroutine function."""

        @wraps(function)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            with catalog_errors():
                return await function(*args, **kwargs)

        return wrapped


def quoted(name: str) -> str:
    """A Postgres identifier: the only way a name gets into a statement."""
    return '"' + name.replace('"', '""') + '"'


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database does not answer now, rather than that the statement is wrong."""
    if isinstance(error, asyncpg.PostgresError):
        code: str = error.sqlstate or ""
        return code[:2] in _UNAVAILABLE_CLASSES or code in _UNAVAILABLE_CODES
    # asyncpg has this very class (not its children) for calls on a connection or pool that was closed meanwhile, and
    # InternalClientError when a connection died in the middle of its protocol.
    lost = isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError)
    return lost or type(error) is asyncpg.InterfaceError
