"""Credentials rotated under load: workers follow without a restart, and every acknowledged row is there once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest

from duckmesh_runtime.dev.s3 import S3Server
from tests.lakes import LakeView, eventually
from tests.pods import Tenant
from tests.services import Lake
from tests.writers import TABLE, Load, acked, check_rows, load_on

_STATE = "SELECT state FROM duckmesh.store_report WHERE lake = $1"
_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"


@pytest.fixture
def changing_s3(s3: S3Server) -> Iterator[S3Server]:
    """The session's, with its own key again for those that come after."""
    key = {"access_key": s3.access_key, "secret_key": s3.secret_key}
    yield s3
    s3.change_key(**key)


@pytest.mark.timeout(300)  # two processes, a store and a database that find each other again
async def test_rotated_credentials_lose_no_acknowledged_row(
    s3_lake: Lake, s3_tenant: Tenant, changing_s3: S3Server
) -> None:
    pod = await asyncio.to_thread(s3_tenant.ingest)
    await asyncio.to_thread(pod.call, "POST", "/v1/tables", TABLE)
    async with load_on([pod, pod], tries=1_000, longest_s=200) as load:
        await acked(load, 50)
        await _rotate_password(s3_lake)
        await acked(load, 50)
        await _rotate_key(s3_lake, changing_s3, load)
        await acked(load, 50)

    await check_rows(s3_lake, load)
    assert pod.running


async def _rotate_password(lake: Lake) -> None:
    """As the operator does it: the role first, its Secret after that; and no session outlives it."""
    login, password = f"{lake.name}_w", "rotated @ / password"
    admin = await asyncpg.connect(lake.catalog_dsn)
    try:
        statement = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
        await admin.execute(await admin.fetchval(statement, login, password))
        await admin.execute(_END_SESSIONS, login)
    finally:
        await admin.close()
    url = urlsplit((lake.writer_dir / "dsn").read_text())
    where = f"{login}:{quote(password, safe='')}@{url.hostname}:{url.port}"
    (lake.writer_dir / "dsn").write_text(urlunsplit(url._replace(netloc=where)))


async def _rotate_key(lake: Lake, server: S3Server, load: Load) -> None:
    """The old key is refused before the new one is there: rows are acknowledged, and wait."""
    server.change_key(access_key="new-key", secret_key="new-secret")
    await acked(load, 50)
    await _reported(lake, "access_denied")
    folder = lake.store.secret_dir
    assert folder is not None
    (folder / "access-key-id").write_text("new-key")
    (folder / "secret-access-key").write_text("new-secret")
    await _reported(lake, "ok")


async def _reported(lake: Lake, state: str) -> None:
    """Wait until the committer says so of the store."""

    async def said() -> bool:
        rows = await LakeView(lake).fetch(_STATE, lake.name)
        return [row["state"] for row in rows] == [state]

    await eventually(said, 60)
