"""Real Postgres and S3 on loopback, one of each for the session; a fresh database for each test.

Fixtures of contract and integration tests; imported by tests/conftest.py so that both share one server.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.s3 import S3Server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def services_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the unprivileged Postgres user may enter."""
    folder = tmp_path_factory.mktemp("services")
    for part in (folder, *folder.parents[:3]):
        if part.stat().st_uid == folder.stat().st_uid and part != Path("/tmp"):
            part.chmod(part.stat().st_mode | 0o011)
    return folder


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
