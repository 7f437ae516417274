"""`make fleet`: a thousand Tenants on a real API server; prints the operator's figures of docs/benchmarks.md.

`python -m tests.fleet [--tenants N] [--steady S]`. No pod runs: kubelet is played, lakes are what the sweep sees of them.
A timing never fails the run; a write to an unchanged child does, and a Tenant that does not come to rest.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from duckmesh_operator.lag import bucket_of
from duckmesh_operator.names import LEASE, TENANT
from tests.bench.figures import cpu_seconds, machine, memory_of, quantiles, show
from tests.controlplane.lakes import catch_up, let_a_row_wait, move_lakes
from tests.controlplane.operators import OperatorProcess
from tests.controlplane.world import SYSTEM, World, ended, is_current, running_world, until
from tests.e2e.cluster.settings import KUBERNETES_VERSION
from tests.faults.proxy import running_proxy

#: Tenants of one team's namespace.
PER_NAMESPACE = 50
#: One Tenant in so many takes in rows all the time.
MOVING = 10
#: Specs changed one by one, in each of two rates.
CHANGES = 200
#: A row waits so long each time that the LAG column is held to the truth.
WAITS_S = (4, 12, 70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    goal: str
    ours: str


@dataclass
class Fleet:
    """All Tenants as the watch shows them.

    Attributes:
        world: What runs.
        names: `namespace`, `name` of each.
        seen: The newest of each by `namespace/name`.
        figures: Found so far.
        violated: What must never be.
    """

    world: World
    names: list[tuple[str, str]]
    seen: dict[str, dict[str, object]] = field(default_factory=dict)
    seen_at: dict[tuple[str, int], float] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    violated: list[str] = field(default_factory=list)

    def add(self, what: str, goal: str, ours: str) -> None:
        self.figures.append(Figure(what=what, goal=goal, ours=ours))
        print(f"  {what}: {ours} (goal {goal})", flush=True)

    async def watch(self) -> None:
        """Follow all Tenants; notes when each generation was first said to be observed."""
        async for event, item in self.world.client.watch(TENANT):
            meta = item["metadata"]
            key = f"{meta['namespace']}/{meta['name']}"
            if event == "DELETED":
                self.seen.pop(key, None)
                continue
            self.seen[key] = item
            observed = item.get("status", {}).get("observedGeneration", 0)
            self.seen_at.setdefault((key, observed), time.monotonic())

    async def all_ready(self) -> bool:
        return len(self.seen) == len(self.names) and all(
            is_current(item, "Ready") for item in self.seen.values()
        )

    async def until_ready(self, timeout_s: float) -> None:
        def missing() -> int:
            ready = sum(is_current(item, "Ready") for item in self.seen.values())
            return len(self.names) - ready

        told = time.monotonic()
        deadline = told + timeout_s
        while not await self.all_ready():
            await asyncio.sleep(0.2)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"  {missing()} Tenants not Ready yet", flush=True)
            if time.monotonic() > deadline:
                raise AssertionError(f"{missing()} Tenants are not Ready after {timeout_s:.0f} s")

    async def change(self, namespace: str, name: str) -> tuple[str, int, float]:
        """Change a spec in a way that touches no child; returns key, new generation and when it was asked for."""
        started = time.monotonic()
        seconds = random.randint(31, 3000)  # noqa: S311 - hides nothing
        spec = {"freshness": {"sustainedFor": f"{seconds}s"}}
        found = await self.world.client.patch(TENANT, namespace, name, {"spec": spec})
        return f"{namespace}/{name}", found["metadata"]["generation"], started

    async def reaction_s(self, changed: tuple[str, int, float], timeout_s: float = 180) -> float:
        key, generation, started = changed

        async def look() -> bool:
            return (key, generation) in self.seen_at

        await until(f"generation {generation} of {key}", look, timeout_s, every_s=0.02)
        return self.seen_at[key, generation] - started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument(
        "--steady", type=float, default=120, help="seconds of steady state measured"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind then either
    print(machine(), flush=True)
    print(
        f"Kubernetes {KUBERNETES_VERSION}, {args.tenants} Tenants, "
        f"one in {MOVING} takes in rows, sweep every 5 s",
        flush=True,
    )
    violated = asyncio.run(run(args.tenants, args.steady))
    for problem in violated:
        print(f"VIOLATED {problem}", file=sys.stderr)
    return 1 if violated else 0


async def run(tenants: int, steady_s: float) -> Sequence[str]:
    """Start, measure, print; returns what is violated."""
    async with running_world(light=True, sweepSeconds=5) as world:
        names = [(f"team-{i // PER_NAMESPACE}", f"tenant-{i}") for i in range(tenants)]
        fleet = Fleet(world, names)
        operator = world.operator()
        with ended(operator):
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(fleet.watch())
                operator.start()
                await create(fleet)
                async with moving(fleet) as lakes:
                    await steady(fleet, operator, steady_s, lakes)
                    await reactions(fleet)
                    await lag_column(fleet, lakes)
                    await restart(fleet, operator)
                    await take_over(fleet, operator)
                    await deaf(fleet)
                watching.cancel()
    print("\n| figure | goal | here |\n|---|---|---|")
    for one in fleet.figures:
        print(f"| {one.what} | {one.goal} | {one.ours} |")
    return fleet.violated


async def create(fleet: Fleet) -> None:
    """All Tenants at once; until the last is Ready."""
    started = time.monotonic()
    for namespace in sorted({namespace for namespace, _ in fleet.names}):
        await fleet.world.client.make_namespace(namespace)
    at_once = asyncio.Semaphore(8)

    async def make(namespace: str, name: str) -> None:
        async with at_once:
            await fleet.world.make_tenant(namespace, name)

    await asyncio.gather(*(make(*one) for one in fleet.names))
    applied = time.monotonic()
    await fleet.until_ready(60 + 6 * len(fleet.names))
    took = time.monotonic() - started
    fleet.add(
        f"{len(fleet.names)} Tenants made at once, until all are Ready",
        "none",
        f"{took:.0f} s ({applied - started:.0f} s of it to apply them)",
    )


async def light_lakes(connection: asyncpg.Connection) -> dict[str, str]:
    """Lakes and their Tenants, without the first: it is whole, and its fence takes no rows by hand."""
    light = "to_regprocedure(quote_ident(lake || '_bus') || '.known_keys(bytea[],bytea[])') IS NULL"
    rows = await connection.fetch(
        f"SELECT lake, tenant FROM duckmesh.lake WHERE {light} ORDER BY lake"
    )
    return {row["lake"]: row["tenant"] for row in rows}


@asynccontextmanager
async def moving(fleet: Fleet) -> AsyncIterator[list[str]]:
    """Rows come into some lakes every second while the block runs."""
    connection = await asyncpg.connect(fleet.world.dsn)
    lakes = [*await light_lakes(connection)][::MOVING]

    async def move() -> None:
        while True:
            await move_lakes(connection, lakes)
            await asyncio.sleep(1)

    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(move())
            yield lakes
            task.cancel()
    finally:
        connection.terminate()


async def quiet(operator: OperatorProcess) -> None:
    """Until the operator has nothing due."""

    async def look() -> bool:
        depth = await asyncio.to_thread(operator.metric, "duckmesh_operator_queue_depth")
        return depth == 0

    await until("an empty queue", look, 300, every_s=1)


async def steady(
    fleet: Fleet, operator: OperatorProcess, seconds: float, lakes: Sequence[str]
) -> None:
    """What a healthy fleet costs while nobody asks for anything."""
    await quiet(operator)
    await asyncio.sleep(15)  # a lag's bucket goes down only after a while
    names = ("status_writes", "child_writes", "api_requests", "reconcile")

    def counts() -> dict[str, float]:
        return {name: operator.metric(f"duckmesh_operator_{name}_total") for name in names}

    before, cpu, started = (
        await asyncio.to_thread(counts),
        cpu_seconds(operator.pid),
        time.monotonic(),
    )
    memory = []
    while time.monotonic() - started < seconds:
        await asyncio.sleep(2)
        memory.append(memory_of(operator.pid).resident)
    wall, cores = time.monotonic() - started, cpu_seconds(operator.pid) - cpu
    after = await asyncio.to_thread(counts)
    done = {name: after[name] - before[name] for name in names}
    per = done["status_writes"] / len(fleet.names) / wall
    fleet.add("memory, steady", "<= 256 MiB", f"{max(memory):.0f} MiB resident")
    fleet.add("processor, steady", "<= 0.25 core", f"{cores / wall:.2f} core over {wall:.0f} s")
    fleet.add(
        "status writes of a healthy fleet",
        "<= 0.02 per Tenant per second",
        f"{per:.4f} ({done['status_writes']:.0f} in all; {len(lakes)} lakes take in rows)",
    )
    fleet.add(
        "requests to the API server, steady",
        "none",
        f"{done['api_requests'] / wall:.1f}/s for {done['reconcile'] / wall:.1f} reconciles/s",
    )
    sweeps = operator.metric("duckmesh_operator_sweep_seconds_count")
    took = operator.metric("duckmesh_operator_sweep_seconds_sum")
    fleet.add("one sweep of the catalog", "none", f"{took / max(1, sweeps):.2f} s on average")
    if done["child_writes"]:
        fleet.violated.append(
            f"{done['child_writes']:.0f} writes to children while nothing changed"
        )


async def reactions(fleet: Fleet) -> None:
    """Spec changes one after the other, then all of them in one go."""
    chosen = random.sample(fleet.names, min(CHANGES, len(fleet.names)))
    found = [await fleet.reaction_s(await fleet.change(*one)) * 1000 for one in chosen]
    fleet.add(
        f"spec change -> observedGeneration, {len(found)} one after the other",
        "p95 <= 1 s",
        show(quantiles(found)),
    )
    changed = await asyncio.gather(*(fleet.change(*one) for one in chosen))
    burst = [await fleet.reaction_s(one) * 1000 for one in changed]
    fleet.add(
        f"the same, {len(burst)} at once",
        "none",
        show(quantiles(burst)),
    )


async def lag_column(fleet: Fleet, moving: Sequence[str]) -> None:
    """A row waits in one lake, for some seconds and longer: how long the column is more than a bucket from the truth."""
    connection = await asyncpg.connect(fleet.world.dsn)
    try:
        found = await light_lakes(connection)
        lake, tenant = next(item for item in found.items() if item[0] not in moving)
        off = _Off()
        for seconds in WAITS_S:
            await let_a_row_wait(connection, lake)
            came = time.monotonic()
            while (waited := time.monotonic() - came) < seconds:
                off.look(waited, _lag_of(fleet, tenant))
                await asyncio.sleep(0.1)
            await catch_up(connection, lake)
            went = time.monotonic()
            while time.monotonic() - went < 30:
                off.look(0, _lag_of(fleet, tenant))
                await asyncio.sleep(0.1)
    finally:
        await connection.close()
    fleet.add(
        f"LAG column: longest time more than a bucket from the truth, a row waiting {WAITS_S} s",
        "<= 15 s",
        f"{off.longest_s:.1f} s",
    )


@dataclass
class _Off:
    """How long a column was without a break more than a bucket from the truth."""

    longest_s: float = 0
    _since: float | None = None

    def look(self, lag_s: float, shown: str) -> None:
        now = time.monotonic()
        if abs(_BUCKETS.index(bucket_of(lag_s)) - _BUCKETS.index(shown)) <= 1:
            self._since = None
            return
        self._since = self._since if self._since is not None else now
        self.longest_s = max(self.longest_s, now - self._since)


#: Of the LAG column, in order.
_BUCKETS = list(dict.fromkeys(bucket_of(seconds) for seconds in range(7200)))


def _lag_of(fleet: Fleet, tenant: str) -> str:
    status = fleet.seen[tenant].get("status", {})
    assert isinstance(status, dict)
    return str(status.get("ingest", {}).get("lag", "0s"))


async def restart(fleet: Fleet, operator: OperatorProcess) -> None:
    """An orderly end and a new process: until it has looked at every Tenant."""
    await quiet(operator)
    code = await asyncio.to_thread(operator.stop)
    if code != 0:
        fleet.violated.append(f"the operator ended with code {code} on SIGTERM")
    started = time.monotonic()
    operator.start()

    async def resynced() -> bool:
        done = await asyncio.to_thread(
            operator.metric, "duckmesh_operator_reconcile_total", kind="Tenant", result="ok"
        )
        depth = await asyncio.to_thread(operator.metric, "duckmesh_operator_queue_depth")
        return done >= len(fleet.names) and depth == 0

    await until("a look at every Tenant", resynced, 600, every_s=0.5)
    took = time.monotonic() - started
    children = operator.metric("duckmesh_operator_child_writes_total")
    requests = operator.metric("duckmesh_operator_api_requests_total")
    fleet.add(
        "restart: every Tenant looked at again",
        "<= 30 s, 0 child writes",
        f"{took:.1f} s, {children:.0f} child writes, "
        f"{requests / len(fleet.names):.1f} requests per Tenant",
    )
    if children:
        fleet.violated.append(f"{children:.0f} writes to children after a restart")


async def take_over(fleet: Fleet, operator: OperatorProcess) -> None:
    """The leader is killed: until a standby acts on a change made at that moment."""
    standby = fleet.world.operator("operator-1")
    with ended(standby):
        standby.start()

        async def stands_by() -> bool:
            return (await asyncio.to_thread(standby.probe, "/readyz"))[0] == 200

        await until("the standby", stands_by)
        await asyncio.sleep(5)  # it has seen the lease renewed
        await asyncio.to_thread(operator.kill)
        killed = time.monotonic()
        changed = await fleet.change(*fleet.names[0])

        async def leads() -> bool:
            return await asyncio.to_thread(standby.metric, "duckmesh_operator_lease_held") == 1

        await until("the new leader", leads, 120, every_s=0.1)
        leading = time.monotonic() - killed
        acted = await fleet.reaction_s(changed)
        fleet.add(
            "leader killed with -9: a standby has taken over",
            "<= 20 s",
            f"{leading:.1f} s; a change made meanwhile was acted on after {acted:.1f} s",
        )
        await asyncio.to_thread(standby.stop)


async def deaf(fleet: Fleet) -> None:
    """All watches go silent: until the operator has noticed, ended, started again, and acted on a change."""
    world = fleet.world
    await world.client.delete(LEASE, SYSTEM, "duckmesh-operator")
    async with running_proxy(world.plane, world.folder / "proxy.kubeconfig") as proxy:
        operator = world.operator("operator-2", proxy.kubeconfig)
        with ended(operator):
            operator.start()
            await fleet.reaction_s(await fleet.change(*fleet.names[0]))
            await quiet(operator)
            proxy.deaf = True
            changed = await fleet.change(*fleet.names[0])
            restarts = 0

            async def healed() -> bool:
                nonlocal restarts
                if operator.code is not None:  # it gave itself up: kubelet starts it again
                    restarts += 1
                    proxy.deaf = False
                    operator.start()
                return changed[:2] in fleet.seen_at

            await until("a deaf operator to act again", healed, 300)
            took = await fleet.reaction_s(changed)
            fleet.add(
                "watches silent: a change made meanwhile is acted on",
                "<= 120 s",
                f"{took:.0f} s, after {restarts} restarts",
            )
            await asyncio.to_thread(operator.stop)


if __name__ == "__main__":
    sys.exit(main())
