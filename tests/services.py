"""Real Postgres and S3 on loopback, one of each for the session; a fresh database for each test; migrated lakes.

Fixtures of contract and integration tests; imported by tests/conftest.py so that both share one server.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest
from obstore.store import S3Store

from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.settings import MigrateSettings, StoreSettings

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def services_dir() -> Iterator[Path]:
    """A folder that the unprivileged Postgres user may enter.

    Not below pytest's own: each pytest session closes that one to others, also while another session runs.
    """
    with TemporaryDirectory(prefix="duckmesh-services-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def postgres(services_dir: Path) -> Iterator[PostgresServer]:
    with PostgresServer(services_dir / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def s3(services_dir: Path) -> Iterator[S3Server]:
    with S3Server(services_dir / "s3", access_key="test-key", secret_key="test-secret") as server:
        yield server


@pytest.fixture
def catalog_dsn(postgres: PostgresServer) -> str:
    """Superuser DSN of a fresh, empty database."""
    return asyncio.run(create_database(postgres))


async def create_database(server: PostgresServer) -> str:
    """Make a fresh, empty database; returns its superuser DSN."""
    name = f"catalog_{next(_numbers)}"
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return server.dsn(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lake:
    """A migrated lake with its logins, as the operator leaves it.

    Attributes:
        name: Catalog schema.
        tenant: `namespace/name`.
        tenant_uid: Its uid.
        catalog_dsn: Superuser DSN of the catalog database, for looking behind the scenes.
        admin_dir: Folder with that `dsn`.
        writer_dir: Folder with the writer's `dsn`.
        maintenance_dir: Folder with the maintenance login's `dsn`.
        reader_dir: Folder with the reader's `dsn`.
        store: Where the Parquet lies.
    """

    name: str
    tenant: str
    tenant_uid: str
    catalog_dsn: str
    admin_dir: Path
    writer_dir: Path
    maintenance_dir: Path
    reader_dir: Path
    store: StoreSettings

    @property
    def migrate_settings(self) -> MigrateSettings:
        return MigrateSettings(
            tenant=self.tenant,
            tenant_uid=self.tenant_uid,
            lake=self.name,
            store=self.store,
            admin_dir=self.admin_dir,
            writer=f"{self.name}_w",
            maintenance=f"{self.name}_m",
            reader=f"{self.name}_r",
        )


@pytest.fixture
async def lake(make_lake: Callable[..., Awaitable[Lake]]) -> Lake:
    """A migrated lake over local files in a database of its own."""
    return await make_lake()


@pytest.fixture
def make_lake(
    postgres: PostgresServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Awaitable[Lake]]:
    """`await make_lake(store="file" | "s3", server=..., dsn=..., migrated=True)`; by default in a fresh database."""

    async def make(
        *,
        store: str = "file",
        server: PostgresServer = postgres,
        dsn: str | None = None,
        migrated: bool = True,
    ) -> Lake:
        s3: S3Server | None = None if store == "file" else request.getfixturevalue("s3")
        return await new_lake(tmp_path, server, s3=s3, dsn=dsn, migrated=migrated)

    return make


async def new_lake(
    folder: Path,
    server: PostgresServer,
    *,
    s3: S3Server | None = None,
    dsn: str | None = None,
    migrated: bool = True,
) -> Lake:
    """Make a lake below `folder`, over S3 or local files; by default in a fresh database."""
    uid = str(uuid.uuid4())
    name = "lake_" + uid.replace("-", "")[:16]
    folder = folder / name
    dsn = dsn or await create_database(server)
    found = Lake(
        name=name,
        tenant=f"team/{name}",
        tenant_uid=uid,
        catalog_dsn=dsn,
        admin_dir=_secret(folder / "admin", dsn=dsn),
        writer_dir=_secret(folder / "writer", dsn=_login(dsn, f"{name}_w")),
        maintenance_dir=_secret(folder / "maintenance", dsn=_login(dsn, f"{name}_m")),
        reader_dir=_secret(folder / "reader", dsn=_login(dsn, f"{name}_r")),
        store=_file_store(folder) if s3 is None else s3_store(folder, name, s3),
    )
    await _make_logins(dsn, name)
    if migrated:
        await migrate(found.migrate_settings)
    return found


_LOGIN_PASSWORD = "it's a \\ secret"  # what quoting is easily wrong about


async def _make_logins(dsn: str, lake: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for role in "wmr":
            statement = await connection.fetchval(
                "SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)",
                f"{lake}_{role}",
                _LOGIN_PASSWORD,
            )
            await connection.execute(statement)
    finally:
        await connection.close()


def _login(dsn: str, login: str) -> str:
    url = urlsplit(dsn)
    where = f"{login}:{quote(_LOGIN_PASSWORD, safe='')}@{url.hostname}:{url.port}"
    return urlunsplit(url._replace(netloc=where))


def _file_store(folder: Path) -> StoreSettings:
    return StoreSettings(url=f"{(folder / 'data').as_uri()}/")


def bucket_of(server: S3Server) -> S3Store:
    """The whole bucket, past every lake's door."""
    return S3Store(
        server.bucket,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def s3_store(folder: Path, prefix: str, server: S3Server) -> StoreSettings:
    """A prefix of the server's bucket; the key is left in `folder`."""
    secret = {"access-key-id": server.access_key, "secret-access-key": server.secret_key}
    return StoreSettings(
        url=f"s3://{server.bucket}/{prefix}/",
        endpoint=server.endpoint,
        secret_dir=_secret(folder / "store", **secret),
    )


def _secret(folder: Path, **values: str) -> Path:
    """A mounted Secret: one file per value."""
    folder.mkdir(parents=True)
    for name, value in values.items():
        (folder / name).write_text(value + "\n")
    return folder
