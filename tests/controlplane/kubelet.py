"""Plays the node: Deployments get ready pods in their status, Jobs really migrate and purge, none has a pod."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg

from duckmesh_operator.names import DEPLOYMENT, JOB, LABEL_COMPONENT, MANAGED_BY
from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.adapters.purge import purge
from duckmesh_runtime.settings import MigrateSettings, migrate_from_env, purge_from_env
from tests.controlplane.client import ApiError, Client, Manifest
from tests.controlplane.lakes import make_light_lake, start_committer

_LABELS: Final = f"app.kubernetes.io/managed-by={MANAGED_BY}"


@dataclass
class Kubelet:
    """Runs until cancelled.

    Attributes:
        client: The API server.
        system: Namespace of Jobs.
        secrets: Folder with `admin/dsn` and `store/...`, in place of what the Job mounts.
        ready: Pods of a Deployment that are ready; by default all it asks for.
        light: After the first, only make of a lake what an operator sees of it (`lakes`): many times as fast.
        migrated: Migrate Jobs carried out.
    """

    client: Client
    system: str
    secrets: Path
    ready: Callable[[Manifest], int] = field(default=lambda item: int(item["spec"]["replicas"]))
    light: bool = False
    migrated: int = 0
    _template: MigrateSettings | None = None
    _one: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deployments())
            group.create_task(self._jobs(group))

    async def look_again(self) -> None:
        """Go over all Deployments: `ready` says something else by now."""
        for item in await self.client.list(DEPLOYMENT, None, _LABELS):
            await self._tend(item)

    async def _deployments(self) -> None:
        async for event, item in self.client.watch(DEPLOYMENT, None, _LABELS):
            if event != "DELETED":
                await self._tend(item)

    async def _tend(self, item: Manifest) -> None:
        wanted = deployment_status(item, self.ready(item))
        live = item.get("status", {})
        if any(live.get(name) != value for name, value in wanted.items()):
            await self._write_status(DEPLOYMENT, item, wanted)

    async def _jobs(self, group: asyncio.TaskGroup) -> None:
        taken: set[str] = set()
        async for event, item in self.client.watch(JOB, self.system, _LABELS):
            uid = item["metadata"]["uid"]
            if event != "DELETED" and uid not in taken and not _has_ended(item):
                taken.add(uid)
                group.create_task(self._carry_out(item))

    async def _carry_out(self, item: Manifest) -> None:
        started = _now()
        async with self._one:
            if item["metadata"]["labels"][LABEL_COMPONENT] == "purge":
                await purge(purge_from_env(self._env(item)))
            else:
                await self._make_lake(migrate_from_env(self._env(item)))
                self.migrated += 1
        ended = {"status": "True", "reason": "CompletionsReached", "lastTransitionTime": _now()}
        await self._write_status(
            JOB,
            item,
            {
                "startTime": started,
                "completionTime": _now(),
                "succeeded": 1,
                "conditions": [
                    {"type": "SuccessCriteriaMet", **ended},
                    {"type": "Complete", **ended},
                ],
            },
        )

    def _env(self, item: Manifest) -> dict[str, str]:
        """What the Job's container would read, with folders of this machine."""
        (container,) = item["spec"]["template"]["spec"]["containers"]
        env = {one["name"]: one.get("value", "") for one in container["env"]}
        folders = {
            "DUCKMESH_ADMIN_DIR": str(self.secrets / "admin"),
            "DUCKMESH_STORE_DIR": str(self.secrets / "store"),
        }
        return env | folders

    async def _make_lake(self, settings: MigrateSettings) -> None:
        connection = await asyncpg.connect((self.secrets / "admin" / "dsn").read_text().strip())
        try:
            if self.light and self._template is not None:
                await make_light_lake(connection, self._template, settings)
            else:
                await migrate(settings)
                self._template = self._template or settings
            await start_committer(connection, settings.lake)
        finally:
            await connection.close()

    async def _write_status(self, kind: Any, item: Manifest, status: Manifest) -> None:
        meta = item["metadata"]
        try:
            await self.client.patch(
                kind,
                meta["namespace"],
                meta["name"],
                {"metadata": {"uid": meta["uid"]}, "status": status},
                subresource="status",
                manager="kubelet",
            )
        except ApiError as error:
            if error.status not in (404, 409):  # deleted meanwhile, perhaps made again
                raise


def deployment_status(item: Manifest, ready: int) -> Manifest:
    """What the deployment controller would say with so many ready pods of the newest template."""
    replicas = int(item["spec"]["replicas"])
    return {
        "observedGeneration": item["metadata"]["generation"],
        "replicas": replicas,
        "updatedReplicas": replicas,
        "readyReplicas": min(ready, replicas),
        "availableReplicas": min(ready, replicas),
    }


def _has_ended(job: Manifest) -> bool:
    return any(
        one["type"] in ("Complete", "Failed") for one in job.get("status", {}).get("conditions", [])
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
