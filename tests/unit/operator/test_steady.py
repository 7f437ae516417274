"""The reconcile over the cache: nothing asked when nothing changed, nothing doubled when the cache is behind."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator.cache import CachedApi, Place
from duckmesh_operator.errors import OperatorError
from duckmesh_operator.events import Recorder
from duckmesh_operator.lag import LagBoard
from duckmesh_operator.names import CHILDREN, DEPLOYMENT, KINDS, SERVICE, TENANT
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.queue import Key
from duckmesh_operator.reconcile.sparing import SparingCredentials
from duckmesh_operator.reconcile.tenant import TenantReconciler
from duckmesh_operator.settings import Settings
from tests.fakes.kube import FakeApi, Object
from tests.tenants import make_settings, tenant_object
from tests.unit.operator.test_reconcile_tenant import World

_WATCHED = {kind.kind for kind in (TENANT, *CHILDREN)}


class Watched(World):
    """A `World` whose reconciler reads a cache; the watch brings news when a test says so."""

    def restart(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.settings
        self.board = LagBoard()
        self.told: list[Key] = []
        self.cache = CachedApi(
            self.api, namespaces=(), changed=self.told.append, clock=self._seconds
        )
        self.reconciler = TenantReconciler(
            api=self.cache,
            catalogs={"default": self.catalog},  # type: ignore[dict-item]
            settings=self.settings,
            board=self.board,
            prefixes=Prefixes(self.settings.stores),
            recorder=Recorder(self.cache, instance="op", clock=self._seconds, now=lambda: self.now),
            credentials=SparingCredentials(self.cache, clock=self._seconds),
            now=lambda: self.now,
        )

    async def run(self, name: str = "acme") -> float | None:
        self.watch()
        return await super().run(name)

    def change(self, spec: dict[str, Any]) -> None:
        place = ("Tenant", "team", "acme")
        self.api._update(place, copy.deepcopy(self.api.objects[place]) | {"spec": spec})

    def watch(self) -> int:
        """Bring all news; returns how many there were."""
        watched = [item for (kind, _, _), item in self.api.objects.items() if kind in _WATCHED]
        return sum(self.cache.notice(copy.deepcopy(item), gone=False) for item in watched)

    def _seconds(self) -> float:
        return self.now.timestamp()


@pytest.fixture
async def world(secrets_dir: Path) -> Watched:
    made = Watched(settings=make_settings(secrets_dir))
    made.api.add(tenant_object())
    await made.settle()
    return made


async def test_a_reconcile_with_nothing_changed_asks_the_api_server_for_nothing(
    world: Watched,
) -> None:
    await world.run()
    world.api.calls.clear()

    await world.run()

    assert world.api.calls == []


async def test_a_writes_own_echo_is_no_news(world: Watched) -> None:
    world.change({"query": {"replicas": 2}})
    before = len(world.api.writes)

    await world.run()

    assert len(world.api.writes) > before
    assert world.watch() == 0


async def test_a_fresh_process_writes_nothing_and_reads_lists_only(world: Watched) -> None:
    world.restart()
    world.api.calls.clear()
    world.api.writes.clear()

    await world.cache.load()
    await world.run()

    assert {call.split()[0] for call in world.api.calls} == {"list"}
    assert world.api.writes == []


async def test_a_changed_spec_costs_its_writes_and_one_look_at_secrets(world: Watched) -> None:
    await world.run()
    world.api.calls.clear()
    world.change({"query": {"replicas": 2}})

    await world.run()

    reads = [call for call in world.api.calls if call.split()[0] in ("get", "list")]
    assert set(reads) <= {"get Secret", "get PodDisruptionBudget"}  # one that is not there yet
    assert world.status()["observedGeneration"] == 2


async def test_a_child_that_only_the_cache_misses_is_found_before_it_is_made(
    world: Watched,
) -> None:
    uid = world.child(SERVICE, "acme-ingest")["metadata"]["uid"]
    place = Place("Service", "team", "acme-ingest")
    world.cache.store.remove(place, world.cache.store.version(place))
    world.api.writes.clear()

    await world.reconciler.reconcile(Key("Tenant", "team", "acme"))

    assert world.api.writes == []
    assert world.child(SERVICE, "acme-ingest")["metadata"]["uid"] == uid


async def test_observed_generation_never_goes_back_when_the_cache_is_behind(
    world: Watched,
) -> None:
    """A list that replays an old version, after the status of a newer one was written."""
    old = copy.deepcopy(world.api.objects["Tenant", "team", "acme"])
    world.change({"query": {"replicas": 2}})
    await world.run()
    assert world.status()["observedGeneration"] == 2

    world.cache.notice(old, gone=False)
    await world.reconciler.reconcile(Key("Tenant", "team", "acme"))

    assert world.status()["observedGeneration"] == 2


@pytest.mark.parametrize("seed", range(8))
async def test_late_lost_and_repeated_events_lead_to_the_same_end(
    secrets_dir: Path, seed: int
) -> None:
    """People edit and delete children while the watch brings some of it late and some never."""
    rng = random.Random(seed)  # noqa: S311 - a test's order
    world = Watched(settings=make_settings(secrets_dir))
    world.api.add(tenant_object())
    await world.settle()
    undisturbed = _shape(world.api)
    workers = {name: world.child(DEPLOYMENT, name)["metadata"]["uid"] for name in _WORKERS}
    old: list[Object] = []

    for _ in range(10):
        old += [copy.deepcopy(item) for item in world.api.objects.values()]
        _disturb(world, rng)
        for item in rng.sample(old, 5):
            if item["kind"] in _WATCHED:
                world.cache.notice(copy.deepcopy(item), gone=False)
        await _reconcile(world)
    for kind in (TENANT, *CHILDREN):
        await world.cache.refresh(kind)
    for _ in range(3):
        await _reconcile(world)
        world.start_pods()
        await world.cache.refresh(DEPLOYMENT)

    assert _shape(world.api) == undisturbed
    assert {n: world.child(DEPLOYMENT, n)["metadata"]["uid"] for n in _WORKERS} == workers


_WORKERS = ("acme-ingest", "acme-query")
_SOFT = ("Service", "NetworkPolicy", "ConfigMap", "PodDisruptionBudget", "ControllerRevision")


def _disturb(world: Watched, rng: random.Random) -> None:
    """Change or delete any child but a worker, which must never be made a second time."""
    found = [place for place in sorted(world.api.objects) if place[0] in _SOFT]
    if not found:
        return
    kind, namespace, name = place = rng.choice(found)
    if rng.random() < 0.5:
        world.api.remove(KINDS[kind], namespace, name)
        return
    changed = copy.deepcopy(world.api.objects[place])
    changed["metadata"]["annotations"] = {}
    world.api._update(place, changed)


async def _reconcile(world: Watched) -> None:
    try:
        await world.reconciler.reconcile(Key("Tenant", "team", "acme"))
    except OperatorError:
        return  # the queue would come back


def _shape(api: FakeApi) -> dict[Any, Any]:
    """What is there, without marks of how it came to be."""
    return {
        place: {key: value for key, value in item.items() if key not in ("metadata", "status")}
        | {"annotations": item["metadata"].get("annotations")}
        for place, item in api.objects.items()
        if place[0] not in ("Event", "Secret", "Tenant")
    }
