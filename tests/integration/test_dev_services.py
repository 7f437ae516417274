"""The embedded services behave like the real ones they are."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import obstore
import pytest
from obstore.store import S3Store

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.dev.s3 import S3Server


async def test_postgres_keeps_its_data_over_a_restart(services_dir: Path) -> None:
    server = PostgresServer(services_dir / "restart")
    with server:
        first = await asyncpg.connect(server.dsn())
        await first.execute("CREATE TABLE t AS SELECT 42 AS answer")
        await first.close()

    with server:
        second = await asyncpg.connect(server.dsn())
        answer = await second.fetchval("SELECT answer FROM t")
        await second.close()

    assert answer == 42


async def test_postgres_refuses_a_wrong_password(postgres: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn(password="wrong"))


def test_s3_keeps_objects_and_refuses_a_wrong_key(s3: S3Server) -> None:
    def store(secret: str) -> S3Store:
        return S3Store(
            s3.bucket,
            endpoint=s3.endpoint,
            access_key_id=s3.access_key,
            secret_access_key=secret,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    obstore.put(store(s3.secret_key), "dev/hello", b"hello")

    assert bytes(obstore.get(store(s3.secret_key), "dev/hello").bytes()) == b"hello"
    with pytest.raises(obstore.exceptions.BaseError):
        obstore.get(store("wrong"), "dev/hello")
