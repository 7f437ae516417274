"""What fault cases share: one world, an operator behind a proxy, and what a run without faults comes to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from duckmesh_operator.names import LEASE, TENANT
from tests.controlplane.operators import OperatorProcess
from tests.controlplane.world import SYSTEM, World, ended, is_current, running_world, until
from tests.faults.proxy import FaultProxy, no_faults, running_proxy
from tests.faults.states import State, check_credentials, differences, read_state

NAME: Final = "acme"
#: A Tenant with every kind of child, and a change that makes, changes and removes some of them.
FIRST: Final[dict[str, Any]] = {"query": {"replicas": 2}, "labels": {"team": "a"}}
SECOND: Final[dict[str, Any]] = {
    "ingest": {"replicas": 2, "batch": {"maxRows": 1000}},
    "query": {"replicas": 1},
}
#: Of a settled state; generous, for it is only waited for when something is wrong.
SETTLE_S: Final = 120.0


@dataclass
class Ground:
    """Where faults happen; made by `running_ground`.

    Attributes:
        world: API server, catalog, kubelet.
        proxy: Before the API server.
        operator: Behind the proxy.
        baseline: State after `create` and `update` without faults.
        first: Spec of a Tenant as it is made.
    """

    world: World
    proxy: FaultProxy
    operator: OperatorProcess
    baseline: dict[str, State] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=lambda: dict(FIRST))
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def namespace(self) -> str:
        """A new one."""
        name = f"team-{next(self._numbers)}"
        await self.world.client.make_namespace(name)
        return name

    async def start(self) -> None:
        """Start the operator; a lease that a killed one left is taken away, its end is not what is tested."""
        await self.world.client.delete(LEASE, SYSTEM, "duckmesh-operator")
        self.operator.start()

    async def restart(self) -> None:
        """A new process after a clean end or a kill."""
        if self.operator.running:
            await asyncio.to_thread(self.operator.stop)
        await self.start()

    async def reset(self) -> None:
        """No faults and a running operator, after a case that failed half way."""
        self.proxy.rule, self.proxy.deaf, self.proxy.replay = no_faults, False, False
        self.operator.kill()
        await self.start()

    async def create(self, namespace: str, **spec: Any) -> None:
        await self.world.make_tenant(namespace, NAME, **(spec or self.first))

    async def update(self, namespace: str) -> None:
        await self.world.client.patch(TENANT, namespace, NAME, {"spec": SECOND})

    async def delete(self, namespace: str) -> None:
        await self.world.client.delete(TENANT, namespace, NAME)

    async def made(self, **spec: Any) -> str:
        """Namespace of a new Tenant that is Ready and at rest."""
        namespace = await self.namespace()
        await self.create(namespace, **spec)
        await self.settled(namespace, "create")
        return namespace

    async def state(self, namespace: str) -> State:
        return await read_state(self.world.client, namespace, NAME)

    async def is_settled(self, namespace: str, phase: str) -> bool:
        """Whether everything is as a run without faults leaves it."""
        return not differences(self.baseline[phase], await self.state(namespace))

    async def settled(self, namespace: str, phase: str) -> None:
        """Wait for it.

        Raises:
            AssertionError: It did not come to that; says what differs.
        """
        try:
            await until(
                f"the state after {phase}",
                lambda: self.is_settled(namespace, phase),
                SETTLE_S,
                every_s=0.2,
            )
        except AssertionError as error:
            lines = differences(self.baseline[phase], await self.state(namespace))
            raise AssertionError(f"{error}: " + "; ".join(lines[:8])) from None
        if phase != "delete":
            problems = await check_credentials(self.world.client, namespace, NAME)
            assert not problems, "; ".join(problems)

    async def at_rest(self, seconds: float = 3) -> None:
        """Wait until no write came for some seconds, and nothing is due."""

        async def quiet() -> bool:
            before = len(self.proxy.writes)
            await asyncio.sleep(seconds)
            depth = await asyncio.to_thread(self.operator.metric, "duckmesh_operator_queue_depth")
            return len(self.proxy.writes) == before and depth == 0

        await until("an operator at rest", quiet, SETTLE_S)

    async def learn(self) -> None:
        """Run one Tenant through its life without faults, and keep what it comes to."""
        namespace = await self.namespace()
        await self.create(namespace)
        await self.world.until_ready(namespace, NAME, SETTLE_S)
        await self.at_rest()
        self.baseline["create"] = await self.state(namespace)
        await self.update(namespace)
        await self.world.until_ready(namespace, NAME, SETTLE_S)
        await self.at_rest()
        self.baseline["update"] = await self.state(namespace)
        await self.delete(namespace)

        async def gone() -> bool:
            return not await self.state(namespace)

        await until("nothing left of a deleted Tenant", gone, SETTLE_S)
        self.baseline["delete"] = {}

    async def until_current(self, namespace: str, kind: str, status: str = "True") -> None:
        async def look() -> bool:
            found = await self.world.tenant(namespace, NAME)
            return found is not None and is_current(found, kind, status)

        await until(f"{kind}={status} of {namespace}/{NAME}", look, SETTLE_S)


@asynccontextmanager
async def running_ground(
    *,
    light: bool = False,
    real: bool = True,
    first: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Ground]:
    """A ground whose operator runs and whose baseline is known.

    Args:
        light: See `Kubelet`.
        real: See `running_world`.
        first: See `Ground`.
        config: Further values of the operator's YAML file.
    """
    async with (
        running_world(light=light, real=real, **config) as world,
        running_proxy(world.plane, world.folder / "proxy.kubeconfig") as proxy,
    ):
        operator = world.operator("operator-0", proxy.kubeconfig)
        ground = Ground(world, proxy, operator, first=first or dict(FIRST))
        with ended(ground.operator):
            await ground.start()
            await ground.learn()
            yield ground
            proxy.rule = no_faults
