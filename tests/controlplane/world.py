"""Everything an operator needs, without a node: API server, Postgres, CRDs, a player of kubelet. No pod ever runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import asyncpg
import yaml

from duckmesh_operator.names import TENANT
from duckmesh_operator.specs.secret import build_dsn
from duckmesh_runtime.dev.postgres import PostgresServer
from tests.controlplane.client import CRD, Client, Manifest, connect
from tests.controlplane.kubelet import Kubelet
from tests.controlplane.memory import MemoryPlane
from tests.controlplane.operators import OperatorProcess, write_config
from tests.controlplane.plane import ControlPlane

ROOT: Final = Path(__file__).resolve().parents[2]
SYSTEM: Final = "duckmesh-system"
_CONTROL: Final = "control"
Plane = ControlPlane | MemoryPlane
T = TypeVar("T")


@dataclass
class World:
    """What runs; made by `running_world`.

    Attributes:
        folder: Everything lies in it.
        plane: The API server.
        postgres: The catalog's server.
        client: An administrator.
        kubelet: Plays the node.
        config: The operator's YAML file.
        dsn: Superuser DSN of the catalog.
    """

    folder: Path
    plane: Plane
    postgres: PostgresServer
    client: Client
    kubelet: Kubelet
    config: Path
    dsn: str

    def operator(self, name: str = "operator-0", kubeconfig: Path | None = None) -> OperatorProcess:
        """An operator, not started; by default straight to the API server."""
        return OperatorProcess(
            folder=self.folder,
            kubeconfig=kubeconfig or self.plane.kubeconfig,
            config=self.config,
            system=SYSTEM,
            name=name,
        )

    async def make_tenant(self, namespace: str, name: str, **spec: Any) -> Manifest:
        return await self.client.create(
            TENANT, {"metadata": {"namespace": namespace, "name": name}, "spec": spec}
        )

    async def tenant(self, namespace: str, name: str) -> Manifest | None:
        return await self.client.get(TENANT, namespace, name)

    async def until_ready(self, namespace: str, name: str, timeout_s: float = 90) -> Manifest:
        """The Tenant once Ready is true of its newest spec."""

        async def look() -> Manifest | None:
            found = await self.tenant(namespace, name)
            return found if found and is_current(found, "Ready") else None

        return await until(f"Ready of {namespace}/{name}", look, timeout_s)


def condition(tenant: Manifest, kind: str) -> Manifest:
    """One condition of the status; empty when it is not there."""
    found = tenant.get("status", {}).get("conditions", [])
    return next((one for one in found if one["type"] == kind), {})


def is_current(tenant: Manifest, kind: str, status: str = "True") -> bool:
    """Whether a condition holds of the newest spec."""
    found = condition(tenant, kind)
    generation = tenant["metadata"]["generation"]
    return bool(found.get("status") == status and found.get("observedGeneration") == generation)


async def until(
    what: str, look: Callable[[], Awaitable[T | None]], timeout_s: float = 60, every_s: float = 0.1
) -> T:
    """What `look` returns once that is true.

    Raises:
        AssertionError: It did not come true.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        await asyncio.sleep(every_s)


@asynccontextmanager
async def running_world(
    *, light: bool = False, real: bool = True, **config: Any
) -> AsyncIterator[World]:
    """Start everything but operators in a temporary folder; nothing of it is left afterwards.

    Args:
        light: See `Kubelet`.
        real: A real API server; else the fake one behind HTTP.
        config: Further values of the operator's YAML file.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="duckmesh-world-")))
        folder.chmod(0o711)  # Postgres runs as another user
        plane: Plane
        if real:
            plane = stack.enter_context(ControlPlane(folder / "plane"))
        else:
            plane = await stack.enter_async_context(MemoryPlane(folder / "plane"))
        settings = {"fsync": "off", "max_locks_per_transaction": "1024"}
        postgres = stack.enter_context(PostgresServer(folder / "postgres", settings=settings))
        dsn = await _make_catalog(postgres)
        secrets = _write_secrets(folder / "secrets", dsn)
        client = await stack.enter_async_context(connect(plane.url, plane.keys.client_tls()))
        await _prepare(client)
        kubelet = Kubelet(client=client, system=SYSTEM, secrets=secrets, light=light)
        world = World(
            folder=folder,
            plane=plane,
            postgres=postgres,
            client=client,
            kubelet=kubelet,
            config=write_config(folder / "operator.yaml", secrets, **config),
            dsn=dsn,
        )
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(kubelet.run())
            try:
                yield world
            finally:
                playing.cancel()


@contextmanager
def ended(*operators: OperatorProcess) -> Iterator[Sequence[OperatorProcess]]:
    """Kills what still runs of them when the block ends."""
    try:
        yield operators
    finally:
        for operator in operators:
            operator.kill()


async def _make_catalog(server: PostgresServer) -> str:
    """A database for catalogs with the operator's login, as the platform team makes it."""
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute("CREATE ROLE duckmesh_control NOLOGIN")
        await connection.execute(f"CREATE ROLE {_CONTROL} LOGIN CREATEROLE PASSWORD 'control'")
        await connection.execute(f"GRANT duckmesh_control TO {_CONTROL}")
        await connection.execute("CREATE DATABASE catalog")
    finally:
        await connection.close()
    return server.dsn("catalog")


def _write_secrets(folder: Path, dsn: str) -> Path:
    """Secrets as they are mounted into the operator and into migrate Jobs."""
    values = {
        "admin/dsn": dsn,
        "catalog/control-dsn": build_dsn(dsn, _CONTROL, "control"),
        "store/access-key-id": "key",
        "store/secret-access-key": "secret",
    }
    for name, value in values.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return folder


async def _prepare(client: Client) -> None:
    """Apply the CRDs and the operator's namespace."""
    await client.make_namespace(SYSTEM)
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        manifest = yaml.safe_load(path.read_text())
        await client.apply(CRD, manifest)
        name = manifest["metadata"]["name"]

        async def established(name: str = name) -> bool:
            found = await client.get(CRD, None, name)
            conditions = (found or {}).get("status", {}).get("conditions") or []
            return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

        await until(f"CRD {name}", established)
