"""Deletion and hand-over with a real API server, Postgres and S3: what goes, what stays, and how long it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import asyncpg
import obstore
from obstore.store import S3Store

from duckmesh_operator.names import CONFIG_MAP, FINALIZER, TENANT
from duckmesh_runtime.cli.adopt import build_word
from duckmesh_runtime.dev.s3 import S3Server
from tests.controlplane.client import Manifest
from tests.controlplane.world import SYSTEM, World, condition, ended, running_world, until
from tests.services import bucket_of

NAMESPACE: Final = "team"
NAME: Final = "shop"
#: What the operator may take while the catalog is down; ten minutes in life.
TIMEOUT_S: Final = 90
#: Beside the Tenant's folder, none of it in it.
TWINS: Final = {"team/shop.parquet", "team/shop2/main/x.parquet"}


def deletion(_: object, __: float) -> list[str]:
    """One Tenant of each kind; returns what must not be."""
    with bucket() as (server, store):
        return asyncio.run(_run(server, store))


async def _run(server: S3Server, store: S3Store) -> list[str]:
    place = {"bucket": server.bucket, "endpoint": server.endpoint}
    problems: list[str] = []
    async with running_world(store=place, deletionTimeoutSeconds=TIMEOUT_S) as world:
        await world.client.make_namespace(NAMESPACE)
        operator = world.operator()
        operator.start()
        with ended(operator):
            problems += await _data_goes(world, store)
            problems += await _data_is_handed_over(world, store)
            problems += await _an_outage_is_outlived(world)
    return problems


async def _data_goes(world: World, store: S3Store) -> list[str]:
    await _serve(world, deletionPolicy="Delete")
    for path in ("team/shop/main/x.parquet", *TWINS):
        obstore.put(store, path, b"x")

    _print("delete a Tenant and its data", await _delete(world))

    return [
        *_differs("files after Delete", _paths(store), TWINS),
        *_differs("lakes after Delete", await _lakes(world), {}),
        *_differs("logins after Delete", await _logins(world), 0),
    ]


async def _data_is_handed_over(world: World, store: S3Store) -> list[str]:
    first = await _serve(world)
    obstore.put(store, "team/shop/main/kept.parquet", b"x")
    problems = _differs("finalizers under Retain", first["metadata"].get("finalizers"), None)
    _print("delete a Tenant whose data stays", await _delete(world))
    kept = await _lakes(world)

    await world.make_tenant(NAMESPACE, NAME, deletionPolicy="Delete")
    second = await until("DataOwned", lambda: _says(world, "SpecValid", "DataOwned"), 90)
    started = time.monotonic()
    await world.client.create(CONFIG_MAP, build_word(second, SYSTEM))
    await world.until_ready(NAMESPACE, NAME, 180)
    _print("hand data over", time.monotonic() - started)

    uid = second["metadata"]["uid"]
    problems += _differs("lakes after adopt", await _lakes(world), dict.fromkeys(kept, uid))
    problems += _differs("files", _paths(store), {*TWINS, "team/shop/main/kept.parquet"})
    await _delete(world)
    problems += _differs("files after the heir", _paths(store), TWINS)
    problems += _differs("lakes after the heir", await _lakes(world), {})
    return problems + _differs("logins after the heir", await _logins(world), 0)


async def _an_outage_is_outlived(world: World) -> list[str]:
    await _serve(world, deletionPolicy="Delete")
    before = await _lakes(world)
    secret = world.folder / "secrets" / "catalog" / "control-dsn"
    secret.write_text("postgresql://control:x@127.0.0.1:1/catalog\n")

    _print(f"delete with the catalog down ({TIMEOUT_S} s allowed)", await _delete(world))

    return _differs("lakes after an outage", await _lakes(world), before)


async def _serve(world: World, **spec: str) -> Manifest:
    await world.make_tenant(NAMESPACE, NAME, **spec)
    found = await world.until_ready(NAMESPACE, NAME, 180)
    assert (FINALIZER in found["metadata"].get("finalizers", [])) == bool(spec)
    return found


async def _delete(world: World) -> float:
    """Seconds until the Tenant is gone."""
    started = time.monotonic()
    await world.client.delete(TENANT, NAMESPACE, NAME)

    async def gone() -> bool:
        return await world.tenant(NAMESPACE, NAME) is None

    await until("the Tenant to go", gone, 4 * TIMEOUT_S)
    return time.monotonic() - started


async def _says(world: World, kind: str, reason: str) -> Manifest | None:
    found = await world.tenant(NAMESPACE, NAME)
    return found if found and condition(found, kind).get("reason") == reason else None


async def left_of_lakes(world: World) -> list[str]:
    """Lakes in the catalog, and logins of lakes."""
    logins = await _logins(world)
    return [*await _lakes(world), *([f"{logins} logins"] if logins else [])]


async def _lakes(world: World) -> dict[str, str]:
    """Lakes with their owners."""
    connection = await asyncpg.connect(world.dsn)
    try:
        rows = await connection.fetch("SELECT lake, tenant_uid FROM duckmesh.lake")
    finally:
        await connection.close()
    return {row["lake"]: row["tenant_uid"] for row in rows}


async def _logins(world: World) -> int:
    connection = await asyncpg.connect(world.dsn)
    try:
        query = r"SELECT count(*) FROM pg_roles WHERE rolname LIKE 'lake\_%'"
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


@contextmanager
def bucket() -> Iterator[tuple[S3Server, S3Store]]:
    with (
        TemporaryDirectory(prefix="duckmesh-deletion-") as folder,
        S3Server(Path(folder) / "s3", access_key="key", secret_key="secret") as server,
    ):
        yield server, bucket_of(server)


def _paths(store: S3Store) -> set[str]:
    return {each["path"] for batch in obstore.list(store) for each in batch}


def _differs(what: str, found: object, wanted: object) -> list[str]:
    return [] if found == wanted else [f"{what}: {found}, not {wanted}"]


def _print(what: str, seconds: float) -> None:
    print(f"  {what}: {seconds:.1f} s", flush=True)
