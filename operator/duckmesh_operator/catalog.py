"""The catalog databases: the only module that talks to Postgres. Called by `reconcile` and `sweep`.

Works under the control login (`control-dsn`): it makes and retires the lakes' logins and reads the registry and the
sweep. It never sees the admin credential. A catalog that no migrate Job has touched has no schema `duckmesh`: that
reads as "not installed".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from duckmesh_operator.errors import (
    Conflict,
    Failing,
    Forbidden,
    Invalid,
    OperatorError,
    SecretMissing,
    Unavailable,
)
from duckmesh_operator.lag import LagReport
from duckmesh_operator.names import logins

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
#: Longest wait for one statement's answer; the server is told to give up a little before.
STATEMENT_TIMEOUT_S: Final = 10.0
#: A process opens four connections at most; those of one that died without a word linger until TCP notices.
CONNECTIONS_PER_PROCESS: Final = 8
#: SQLSTATE classes of connections, resources and operator intervention: shutting down, starting, full.
_NOT_NOW: Final = ("08", "53", "57")
_SCRAM_ROUNDS: Final = 4096  # what Postgres itself takes; the passwords are 256 random bits

_LAKES: Final = """
SELECT lake, tenant, tenant_uid, data_url, migration,
       to_jsonb(l) ->> 'purge_started_at' IS NOT NULL AS purging, -- a catalog before migration 7 has no such columns
       to_jsonb(l) ->> 'purged_at' IS NOT NULL AS purged
  FROM duckmesh.lake AS l
"""
_NEAR: Final = f"{_LAKES} WHERE lake = $1 OR tenant = $2 OR starts_with(data_url, $3) OR starts_with($3, data_url)"
_STILL: Final = """
SELECT lake FROM duckmesh.lake WHERE (lake, tenant_uid) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_RECORDS: Final = f"{_LAKES} WHERE tenant_uid = $1 OR lake = $2"
_ADOPT: Final = "SELECT duckmesh.adopt_lake($1, $2, $3)"
_FORGET: Final = "SELECT duckmesh.forget_lake($1, $2)"
_SWEEP: Final = """
SELECT * FROM duckmesh.sweep() -- a catalog that no migrate Job of this release has touched tells less
"""
_LOGINS: Final = """
SELECT rolname, rolcanlogin, rolconnlimit, coalesce(rolconfig, '{}') AS rolconfig FROM pg_roles WHERE rolname = ANY($1)
"""
# DDL takes no parameters: the server quotes, the next statement runs what it quoted.
_CREATE: Final = """
SELECT format('CREATE ROLE %I LOGIN NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT %s PASSWORD %L',
              $1::text, $2::int, $3::text)
"""
_PASSWORD: Final = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"  # noqa: S105 - a statement
_LIMIT: Final = "SELECT format('ALTER ROLE %I LOGIN CONNECTION LIMIT %s', $1::text, $2::int)"
_SET: Final = "SELECT format('ALTER ROLE %I SET %I = %L', $1::text, $2::text, $3::text)"
_TOO_OLD: Final = (
    "the catalog's database is of a release that could not hand data over; the first lake that is made in it brings it "
    "to this one: make a Tenant with a new name in this catalog, it can be deleted afterwards"
)
_DROP: Final = "SELECT format('DROP ROLE %I', $1::text)"
_RETIRE: Final = "SELECT format('ALTER ROLE %I NOLOGIN', $1::text)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A login of a lake as it should be.

    Attributes:
        name: Role.
        connections: Its connection limit.
        settings: Postgres settings of its sessions.
        password: What its Secret says.
        renew: Give an existing role this password; a new one gets it anyway.
    """

    name: str
    connections: int
    settings: tuple[tuple[str, str], ...]
    password: str = field(default="", repr=False)
    renew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lake:
    """A line of the registry.

    Attributes:
        lake: Catalog schema.
        tenant: `namespace/name` of the owner.
        tenant_uid: Uid of the owner.
        data_url: Where its Parquet lies.
        migration: Newest migration it went through; 0 while it is made.
        purging: Its removal was begun: files may be missing.
        purged: Only this line and the logins are left.
    """

    lake: str
    tenant: str
    tenant_uid: str
    data_url: str
    migration: int
    purging: bool = False
    purged: bool = False


def writer(lake: str, processes: int) -> Login:
    """The login of ingest."""
    return Login(
        name=f"{lake}_w",
        connections=processes * CONNECTIONS_PER_PROCESS,
        settings=(
            ("statement_timeout", "60s"),
            ("lock_timeout", "10s"),
            ("idle_in_transaction_session_timeout", "120s"),
        ),
    )


def maintenance(lake: str, processes: int) -> Login:
    """The login of merges and expiry."""
    return Login(
        name=f"{lake}_m",
        connections=processes * CONNECTIONS_PER_PROCESS,
        settings=(
            ("statement_timeout", "600s"),
            ("lock_timeout", "10s"),
            ("idle_in_transaction_session_timeout", "600s"),
        ),
    )


def reader(lake: str, processes: int) -> Login:
    """The login of query."""
    return Login(
        name=f"{lake}_r",
        connections=processes * CONNECTIONS_PER_PROCESS,
        settings=(
            ("statement_timeout", "60s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "60s"),
            ("default_transaction_read_only", "on"),
        ),
    )


class Catalog:
    """One catalog database.

    Two connections at most: one for control, taken in turns, one for the sweep, so that neither waits for the other.

    Args:
        name: As in the configuration; for logs.
        secret_dir: Folder with `control-dsn`; read at each connection, so that a rotated one is picked up.
    """

    def __init__(self, name: str, secret_dir: Path) -> None:
        self.name = name
        self._secret_dir = secret_dir
        self._control = _Session(self)
        self._sweeper = _Session(self)

    @property
    def control_dsn(self) -> str:
        """The operator's own libpq URI.

        Raises:
            SecretMissing: It is not mounted.
        """
        try:
            return (self._secret_dir / "control-dsn").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SecretMissing(
                "the catalog's Secret has no control-dsn, or it is not mounted"
            ) from error

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports of the database.

        Raises:
            SecretMissing: It is not mounted or not a URI.
        """
        places = urlsplit(self.control_dsn).netloc.rpartition("@")[2].split(",")
        try:
            return tuple(
                sorted(
                    {int(place.rpartition(":")[2]) if ":" in place else 5432 for place in places}
                )
            )
        except ValueError as error:
            raise SecretMissing("the catalog's control-dsn is not a libpq URI") from error

    async def lakes(self, *, lake: str, tenant: str, data_url: str) -> list[Lake]:
        """Registered lakes that matter to one Tenant: its own, those of its name, those whose data overlaps.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            try:
                rows = await connection.fetch(_NEAR, lake, tenant, data_url)
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                return []
        return [Lake(**dict(row)) for row in rows]

    async def records(self, *, uid: str, lake: str) -> list[Lake] | None:
        """The lake of an owner, and the one of this name, whoever has it; None while the database has no registry.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            try:
                rows = await connection.fetch(_RECORDS, uid, lake)
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                return None
        return [Lake(**dict(row)) for row in rows]

    async def adopt_lake(self, lake: str, *, owner: str, heir: str) -> bool:
        """Hand a lake from one uid to another; False when it is not the first one's any more, or the other has one.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us; or it is older than migration 7.
        """
        async with self._control.use() as connection:
            try:
                return bool(await connection.fetchval(_ADOPT, lake, owner, heir))
            except asyncpg.UndefinedFunctionError as error:
                raise Failing(_TOO_OLD) from error

    async def forget_lake(self, lake: str, uid: str) -> None:
        """Take the line of an owner's purged lake out of the registry; any other is left.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            try:
                await connection.execute(_FORGET, lake, uid)
            except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
                return  # no purge was there either

    async def drop_logins(self, names: Sequence[str]) -> None:
        """Drop roles that have no rights any more; those that are not there are fine.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            for row in await connection.fetch(_LOGINS, list(names)):
                await connection.execute(await connection.fetchval(_DROP, row["rolname"]))

    async def ensure_logins(self, logins: Sequence[Login]) -> None:
        """Make logins, or bring them to what they should be; writes nothing when they are.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            found = {
                row["rolname"]: row
                for row in await connection.fetch(_LOGINS, [login.name for login in logins])
            }
            for login in logins:
                for statement in await _statements(connection, login, found.get(login.name)):
                    await connection.execute(statement)

    async def retire_logins(self, names: Sequence[str]) -> list[str]:
        """Let roles log in no more; running sessions stay. Returns those that could until now.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            return await _retire(connection, names)

    async def retire_lakes(self, owners: Mapping[str, str]) -> list[str]:
        """Retire the logins of lakes that are still their owners'; see `retire_logins`.

        Args:
            owners: Uid by lake. A lake that was handed over meanwhile is left, and cannot be until this is done.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._control.use() as connection:
            rows = await connection.fetch(_STILL, list(owners), list(owners.values()))
            return await _retire(connection, [name for row in rows for name in logins(row["lake"])])

    async def sweep(self) -> list[LagReport]:
        """One look at all lakes of the database; none while it has no schema `duckmesh`.

        Raises:
            Unavailable, Forbidden: The database does not answer, or not to us.
        """
        async with self._sweeper.use() as connection:
            try:
                rows = await connection.fetch(_SWEEP)
            except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
                return []
        return [read_row(row) for row in rows]

    async def close(self) -> None:
        """Close the connections."""
        await self._control.close()
        await self._sweeper.close()


def scram_verifier(password: str, salt: bytes) -> str:
    """What Postgres stores of a password (RFC 5803): sent in its place, so that no statement log ever holds it."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ROUNDS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored = base64.b64encode(hashlib.sha256(client_key).digest()).decode()
    server = base64.b64encode(hmac.digest(salted, b"Server Key", "sha256")).decode()
    return f"SCRAM-SHA-256${_SCRAM_ROUNDS}:{base64.b64encode(salt).decode()}${stored}:{server}"


def error_of(error: BaseException) -> OperatorError:
    """What a failure of the driver means for the caller, by SQLSTATE class."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        said = f"SQLSTATE {state}"
        if state == "42501" or state.startswith("28"):
            return Forbidden(f"the catalog refuses the operator's login ({said})")
        if state == "3D000":
            return Failing(f"the catalog's database does not exist ({said})")
        if state.startswith(("40", "55")):
            return Conflict(f"the catalog is busy with the same thing ({said})")
        if state.startswith(_NOT_NOW):
            return Unavailable(f"the catalog does not take us now ({said})")
        return Failing(f"the catalog answers with an error ({said})")
    if isinstance(error, asyncpg.InterfaceError | ValueError | OverflowError):
        return Unavailable(f"the catalog cannot be asked ({type(error).__name__})")
    return Unavailable(f"the catalog does not answer ({type(error).__name__})")


class _Session:
    """One connection, taken in turns and opened again after a failure."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._dsn = ""

    @asynccontextmanager
    async def use(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection for one piece of work; what goes wrong leaves as one of `errors`."""
        async with self._lock:
            try:
                yield await self._open()
            except Invalid:
                raise
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                OSError,
                TimeoutError,
                ValueError,
                OverflowError,  # a time that a lake's own login wrote and Python has not
            ) as error:
                await self.close()
                raise error_of(error) from error
            except asyncio.CancelledError:
                await self.close()
                raise

    async def _open(self) -> asyncpg.Connection:
        dsn = self._catalog.control_dsn
        if self._connection is not None and not self._connection.is_closed() and dsn == self._dsn:
            return self._connection
        await self.close()
        self._connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={
                "application_name": "duckmesh-operator",
                "statement_timeout": str(int((STATEMENT_TIMEOUT_S - 1) * 1000)),
                "lock_timeout": "3000",
            },
        )
        self._dsn = dsn
        return self._connection

    async def close(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is being thrown away; a broken one closes badly
                connection.terminate()


async def lakes_elsewhere(catalogs: Mapping[str, Catalog], but: str, data_url: str) -> list[Lake]:
    """Lakes of all catalogs but one whose data overlaps with a place: no database knows of another's.

    Args:
        catalogs: By name.
        but: The one not to ask.
        data_url: The place, `s3://bucket/prefix/`.

    Raises:
        Unavailable: One of them does not answer, so what it keeps there is unknown.
    """
    found: list[Lake] = []
    for name, catalog in catalogs.items():
        if name == but:
            continue
        try:
            found += await catalog.lakes(lake="", tenant="", data_url=data_url)
        except OperatorError as error:
            said = f"the catalog {name} cannot be asked whether it keeps data in the same place ({error})"
            raise Unavailable(said) from error
    return found


async def _retire(connection: asyncpg.Connection, names: Sequence[str]) -> list[str]:
    rows = await connection.fetch(_LOGINS, list(names))
    active = [row["rolname"] for row in rows if row["rolcanlogin"]]
    for name in active:
        await connection.execute(await connection.fetchval(_RETIRE, name))
    return active


async def _statements(
    connection: asyncpg.Connection, login: Login, found: asyncpg.Record | None
) -> list[str]:
    statements: list[str] = []
    if found is None:
        verifier = _verifier(login.password)
        statements.append(
            await connection.fetchval(_CREATE, login.name, login.connections, verifier)
        )
    else:
        if login.renew:
            verifier = _verifier(login.password)
            statements.append(await connection.fetchval(_PASSWORD, login.name, verifier))
        if not found["rolcanlogin"] or found["rolconnlimit"] != login.connections:
            statements.append(await connection.fetchval(_LIMIT, login.name, login.connections))
    had = set(found["rolconfig"]) if found is not None else set()
    for name, value in login.settings:
        if f"{name}={value}" not in had:
            statements.append(await connection.fetchval(_SET, login.name, name, value))
    return statements


def _verifier(password: str) -> str:
    return scram_verifier(password, secrets.token_bytes(16))


def read_row(row: asyncpg.Record | Mapping[str, Any]) -> LagReport:
    """One lake of a sweep. A row that cannot be read is an error of its lake, never of the sweep."""
    try:
        return _report(row)
    except Exception as error:  # parts of it are written by the lake's own logins
        return LagReport(
            lake=row["lake"],
            tenant=row["tenant"],
            tenant_uid=row["tenant_uid"],
            now=row["now"],
            error=f"what it says cannot be read ({type(error).__name__})",
        )


def _report(row: asyncpg.Record | Mapping[str, Any]) -> LagReport:
    return LagReport(
        lake=row["lake"],
        tenant=row["tenant"],
        tenant_uid=row["tenant_uid"],
        now=row["now"],
        token=row["token"],
        pending_rows=row["pending_rows"],
        oldest_pending_at=row["oldest_pending_at"],
        committed_at=row["committed_at"],
        snapshot_id=row["snapshot_id"],
        snapshot_at=row["snapshot_at"],
        files=row["files"],
        small_files=row["small_files"],
        size_bytes=row["bytes"],
        committer=row["committer"] or "",
        committer_alive=bool(row["committer_alive"]),
        error=row["error"] or "",
        tables_digest=row.get("tables_digest") or "",
        tables_ready=bool(row.get("tables_ready")),
        tables_problem=row.get("tables_problem") or "",
        dead_letters=row.get("dead_letters"),
        store_state=row.get("store_state") or "",
        store_since=row.get("store_since"),
        store_at=row.get("store_at"),
        debt_at=row.get("debt_at"),
        debt_files=row.get("debt_files"),
        debt_bytes=row.get("debt_bytes"),
        most_files=row.get("most_files"),
        deleted_ratio=row.get("deleted_ratio"),
        merged_at=row.get("merged_at"),
        run=_told(row, "run"),
        integrity=_told(row, "integrity"),
        deep=_told(row, "deep"),
        orphans=_told(row, "orphans"),
    )


def _told(row: asyncpg.Record | Mapping[str, Any], name: str) -> Mapping[str, object] | None:
    """An object that a lake's maintenance wrote, as flat as it is meant to be; what is none counts as not said."""
    text = row.get(name)
    try:
        found = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {key: value for key, value in found.items() if _is_flat(value)}


def _is_flat(value: object) -> bool:
    """Whether it is a plain value or a list of texts: nothing that takes a stack to compare or to show."""
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return not isinstance(value, dict)
