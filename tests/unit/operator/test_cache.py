"""What the operator knows of the cluster: newer wins, gone stays gone, lists heal, and reads cost nothing."""

from __future__ import annotations

import asyncio
import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from duckmesh_operator import cache as caches
from duckmesh_operator.cache import CachedApi, Place, Store
from duckmesh_operator.errors import Conflict, Forbidden, NotFound
from duckmesh_operator.manifest import Manifest
from duckmesh_operator.names import (
    COMPACTOR,
    CONFIG_MAP,
    LABEL_TENANT_UID,
    REVISION,
    SECRET,
    SERVICE,
    TENANT,
    Kind,
    labels,
)
from duckmesh_operator.plan import has_foreign_fields
from duckmesh_operator.queue import Key
from tests.fakes.kube import FakeApi, Object
from tests.tenants import UID, tenant_object

PLACE = Place("Service", "team", "acme-ingest")
ACME = Key("Tenant", "team", "acme")
MINE = {LABEL_TENANT_UID: UID}


def service(version: int = 0, *, name: str = PLACE.name, uid: str = "u1", **spec: Any) -> Object:
    meta: Object = {"name": name, "namespace": "team", "labels": labels("acme", UID, "ingest")}
    if version:
        meta |= {"resourceVersion": str(version), "uid": uid}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec or {"a": 1}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


class Bench:
    """An API server in memory behind a cache."""

    def __init__(self, *namespaces: str) -> None:
        self.api = FakeApi()
        self.told: list[Key] = []
        self.cache = CachedApi(
            self.api, namespaces=namespaces, changed=self.told.append, clock=Clock()
        )

    def watch(self, kind: str, name: str, *, gone: bool = False) -> bool:
        """Pass on the object as it is now, or as it goes with its deletion's version."""
        obj = copy.deepcopy(self.api.objects[kind, "team", name])
        if gone:
            obj["metadata"]["resourceVersion"] = str(next(self.api._numbers))
        return self.cache.notice(obj, gone=gone)

    async def names(self) -> list[str]:
        found = await self.cache.list(SERVICE, "team", MINE)
        return [str(one["metadata"]["name"]) for one in found]  # type: ignore[index]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -------------------------------------------------------------------- store


def test_an_object_comes_back_as_it_was_with_its_version(store: Store) -> None:
    assert store.put(service(5))

    assert store.get(PLACE) == service(5)
    assert store.version(PLACE) == 5


def test_what_is_read_is_the_readers_own(store: Store) -> None:
    store.put(service(5))

    read = store.get(PLACE)
    assert read is not None
    read["spec"] = {}

    assert store.get(PLACE) == service(5)


def test_an_older_version_never_replaces_a_newer_one(store: Store) -> None:
    store.put(service(5))

    assert not store.put(service(4, a=0))

    assert store.get(PLACE) == service(5)


def test_a_new_version_of_the_same_content_is_no_news_but_is_kept(store: Store) -> None:
    store.put(service(5))

    assert not store.put(service(6))

    assert store.version(PLACE) == 6


@pytest.mark.parametrize("late", [3, 5, 7], ids=["older", "same", "as the deletion"])
def test_a_deleted_object_stays_deleted_for_late_news(store: Store, late: int) -> None:
    store.put(service(5))
    assert store.remove(PLACE, 7)

    assert not store.put(service(late))

    assert store.get(PLACE) is None


def test_an_object_made_again_is_a_new_one(store: Store) -> None:
    store.put(service(5))
    store.remove(PLACE, 7)

    assert store.put(service(8, uid="u2"))

    assert store.get(PLACE) == service(8, uid="u2")


def test_the_late_deletion_of_a_predecessor_is_ignored(store: Store) -> None:
    store.put(service(8, uid="u2"))

    assert not store.remove(PLACE, 7)

    assert store.get(PLACE) is not None


def test_a_deletion_is_news_once(store: Store) -> None:
    store.put(service(5))

    assert store.remove(PLACE, 7)
    assert not store.remove(PLACE, 7)


def test_deletions_are_forgotten_in_time(store: Store, clock: Clock) -> None:
    for number in range(100):
        clock.now += caches.REMEMBERED_S / 10
        store.remove(Place("Service", "team", str(number)), number + 1)

    assert len(store._gone) <= 11


def test_a_changed_label_moves_an_object_to_its_new_tenant(store: Store) -> None:
    store.put(service(5))
    other = service(6)
    other["metadata"]["labels"][LABEL_TENANT_UID] = "other"

    store.put(other)

    assert store.of_tenant("Service", "team", UID) == []
    assert store.of_tenant("Service", "team", "other") == [other]
    assert UID not in store._by_tenant


def fields(manager: str, *names: str) -> Object:
    return {
        "manager": manager,
        "operation": "Apply",
        "fieldsV1": {"f:spec": {f"f:{name}": {} for name in names}},
    }


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([fields("duckmesh", "a")], False),
        ([fields("duckmesh", "a"), fields("kubectl-edit", "b")], True),
    ],
    ids=["ours", "another's"],
)
def test_managed_fields_are_kept_only_where_they_tell_of_others(
    store: Store, entries: list[Object], kept: bool
) -> None:
    live = service(5)
    live["metadata"]["managedFields"] = entries

    store.put(live)

    found = store.get(PLACE)
    assert found is not None
    assert ("managedFields" in found["metadata"]) is kept  # type: ignore[operator]
    assert has_foreign_fields(found) is has_foreign_fields(live)


def test_what_kubectl_keeps_of_an_apply_is_not_kept(store: Store) -> None:
    live = service(5)
    live["metadata"]["annotations"] = {
        "a": "b",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }

    store.put(live)

    found = store.get(PLACE)
    assert found is not None
    assert found["metadata"]["annotations"] == {"a": "b"}  # type: ignore[index]


@pytest.mark.parametrize("seed", range(25))
def test_whatever_order_news_come_in_the_newest_stands(store: Store, seed: int) -> None:
    """Every version of an object, told late, twice, or never, in any order; the newest is told at last."""
    rng = random.Random(seed)  # noqa: S311 - a test's order
    history = [(service(version, a=version), rng.random() < 0.3) for version in range(1, 12)]
    told = rng.choices(history, k=30)
    seen = 0

    for obj, gone in [*told, history[-1]]:
        version = int(obj["metadata"]["resourceVersion"])
        store.remove(PLACE, version) if gone else store.put(obj)
        known = store.version(PLACE)
        assert known == 0 or known >= seen
        seen = max(seen, known)

    last, gone = history[-1]
    assert store.get(PLACE) == (None if gone else last)


def large(change: Callable[[Object], None] = lambda obj: None, *, version: int = 5) -> Object:
    """The tables of a Tenant with 200 kB that hardly can be packed, after a change."""
    text = "".join(random.Random(1).choices("0123456789abcdef", k=200_000))  # noqa: S311 - bulk
    meta: Object = {"name": "acme-tables", "namespace": "team", "resourceVersion": str(version)}
    meta |= {"uid": "u9", "labels": labels("acme", UID, "ingest")}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"tables.json": text}}
    change(obj)
    return obj


def of(obj: Object) -> Place:
    return caches.place_of(obj)


def _named(name: str) -> Callable[[Object], None]:
    return lambda obj: obj["metadata"].update(name=name)


def _labelled(**more: str) -> Callable[[Object], None]:
    return lambda obj: obj["metadata"]["labels"].update(
        {f"duckmesh.io/{key.replace('_', '-')}": value for key, value in more.items()}
    )


def _owned(obj: Object) -> None:
    obj["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "x", "uid": "other"}]


@pytest.mark.parametrize(
    "change",
    [_named("mine"), _labelled(tenant="nobody"), _labelled(tenant_uid="other"), _owned],
    ids=["another name", "no such tenant", "another uid", "another owner"],
)
def test_what_is_large_and_not_a_childs_is_kept_as_an_outline(
    store: Store, change: Callable[[Object], None]
) -> None:
    store.put(tenant_object(resourceVersion="1", uid=UID))
    obj = large(change)

    assert store.put(obj)

    found = store.get(of(obj))
    assert found is not None
    assert len(store._entries[of(obj)].packed) < 1000
    for key in ("name", "namespace", "uid", "resourceVersion"):
        assert found["metadata"][key] == obj["metadata"][key]  # type: ignore[index]
    assert caches.owner_of(found) == caches.owner_of(obj)
    assert not store.put(large(change, version=6)), "the same content is no news"
    other = large(change, version=7)
    other["data"]["tables.json"] += "0"
    assert store.put(other)


def test_a_tenants_own_child_is_kept_whole_however_large_it_is(store: Store) -> None:
    store.put(tenant_object(resourceVersion="1", uid=UID))

    store.put(large())

    assert store.get(of(large())) == large()


def test_an_outline_is_filled_in_when_its_tenant_is_known(store: Store) -> None:
    store.put(large())
    store.put(tenant_object(resourceVersion="1", uid=UID))

    assert not store.put(large()), "it did not change"

    assert store.get(of(large())) == large()


async def test_whose_a_child_is_is_known_before_it_is_listed(bench: Bench) -> None:
    bench.api.add(tenant_object())
    made = bench.api.add(large())
    pages = bench.api.pages

    async def slow(kind: Kind, *asked: Any) -> Any:
        for _ in range(50 if kind is TENANT else 0):
            await asyncio.sleep(0)
        async for page in pages(kind, *asked):
            yield page

    bench.api.pages = slow  # type: ignore[method-assign]
    await bench.cache.load()

    found = await bench.cache.list(CONFIG_MAP, "team", MINE)
    assert [one["data"] for one in found] == [made["data"]]


# -------------------------------------------------------------------- reads


async def test_reads_of_children_and_own_kinds_cost_no_call(bench: Bench) -> None:
    bench.api.add(tenant_object())
    bench.api.add(service())
    await bench.cache.load()
    bench.api.calls.clear()

    tenant = await bench.cache.get(TENANT, "team", "acme")
    children = await bench.cache.list(SERVICE, "team", MINE)
    tenants = await bench.cache.list(TENANT, None)

    assert tenant["spec"] == tenant_object()["spec"]
    assert [one["kind"] for one in children] == ["Service"]
    assert tenants == [tenant]
    assert bench.api.calls == []


async def test_a_tenant_that_is_not_known_is_not_there(bench: Bench) -> None:
    await bench.cache.load()

    with pytest.raises(NotFound):
        await bench.cache.get(TENANT, "team", "nobody")


async def test_secrets_and_objects_asked_for_by_name_come_from_the_api_server(
    bench: Bench,
) -> None:
    bench.api.add(service())
    await bench.cache.load()
    bench.api.calls.clear()

    await bench.cache.get(SERVICE, "team", PLACE.name)
    with pytest.raises(NotFound):
        await bench.cache.get(SECRET, "team", "acme-writer")

    assert bench.api.calls == ["get Service", "get Secret"]


async def test_a_list_finds_by_namespace_and_label(bench: Bench) -> None:
    bench.api.add(tenant_object())
    bench.api.add(tenant_object(namespace="other", labels={"tier": "gold"}))
    await bench.cache.load()

    assert len(await bench.cache.list(TENANT, None)) == 2
    assert len(await bench.cache.list(TENANT, "team")) == 1
    assert len(await bench.cache.list(TENANT, None, {"tier": "gold"})) == 1
    assert await bench.cache.list(COMPACTOR, None) == []


# -------------------------------------------------------------------- writes


async def test_a_read_after_a_write_sees_it_before_the_watch_does(bench: Bench) -> None:
    await bench.cache.load()

    await bench.cache.apply(service(a=2))

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert found["spec"] == {"a": 2}
    assert not bench.watch("Service", PLACE.name)  # the echo is no news


async def test_an_old_event_after_a_write_changes_nothing(bench: Bench) -> None:
    old = await bench.cache.apply(service(a=1))
    await bench.cache.apply(service(a=2))

    assert not bench.cache.notice(old, gone=False)

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert found["spec"] == {"a": 2}


async def test_what_others_do_to_a_child_is_news(bench: Bench) -> None:
    await bench.cache.apply(service())
    bench.api.edit(SERVICE, "team", PLACE.name, {"spec": {"b": 1}})

    assert bench.watch("Service", PLACE.name)

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert has_foreign_fields(found)


async def test_the_answer_to_a_status_that_shows_a_new_spec_is_told(bench: Bench) -> None:
    """Its event will have the version that is known already, and be no news."""
    bench.api.add(tenant_object())
    await bench.cache.load()
    bench.api.edit(TENANT, "team", "acme", {"spec": {"paused": True}})

    await bench.cache.apply(status(), subresource="status")

    assert bench.told == [ACME]
    assert not bench.watch("Tenant", "acme")
    found = await bench.cache.get(TENANT, "team", "acme")
    assert found["spec"] == tenant_object()["spec"] | {"paused": True}


async def test_the_answer_to_a_status_alone_is_told_to_nobody(bench: Bench) -> None:
    bench.api.add(tenant_object())
    await bench.cache.load()

    await bench.cache.apply(status(), subresource="status")

    assert bench.told == []
    found = await bench.cache.get(TENANT, "team", "acme")
    assert found["status"] == {"phase": "Ready"}


async def test_a_tenant_that_vanished_under_a_status_is_known_to_be_gone(bench: Bench) -> None:
    bench.api.add(tenant_object())
    await bench.cache.load()
    bench.api.remove(TENANT, "team", "acme")

    with pytest.raises(NotFound):
        await bench.cache.apply(status(), subresource="status")

    assert bench.told == [ACME]
    with pytest.raises(NotFound):
        await bench.cache.get(TENANT, "team", "acme")


async def test_a_conflict_is_followed_by_a_look_at_what_is(bench: Bench) -> None:
    old = await bench.cache.apply(service(a=1))
    bench.api.edit(SERVICE, "team", PLACE.name, {"spec": {"a": 5}})

    with pytest.raises(Conflict):
        await bench.cache.replace_spec(old, {"a": 1})

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert found["spec"] == {"a": 5}
    await bench.cache.replace_spec(found, {"a": 1})


async def test_a_write_that_fails_otherwise_leaves_what_is_known(bench: Bench) -> None:
    await bench.cache.apply(service(a=1))
    bench.api.failing["apply"] = Forbidden("no")

    with pytest.raises(Forbidden):
        await bench.cache.apply(service(a=2))

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert found["spec"] == {"a": 1}


async def test_a_deleted_child_is_known_to_be_gone_before_the_watch_says_so(bench: Bench) -> None:
    made = await bench.cache.apply(service())

    await bench.cache.delete(SERVICE, "team", PLACE.name, str(made["metadata"]["uid"]))  # type: ignore[index]

    assert await bench.names() == []
    assert not bench.cache.notice(made, gone=False)  # an event of before
    assert await bench.names() == []


async def test_the_deletion_of_a_predecessor_leaves_its_successor_known(bench: Bench) -> None:
    await bench.cache.apply(service())

    await bench.cache.delete(SERVICE, "team", PLACE.name, "another uid")

    assert await bench.names() == [PLACE.name]


async def test_an_object_that_is_only_marked_as_deleted_comes_back_with_its_event(
    bench: Bench,
) -> None:
    made = await bench.cache.apply(service())
    uid = str(made["metadata"]["uid"])  # type: ignore[index]
    terminating = copy.deepcopy(bench.api.objects["Service", "team", PLACE.name])
    await bench.cache.delete(SERVICE, "team", PLACE.name, uid)

    terminating["metadata"] |= {
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "resourceVersion": str(next(bench.api._numbers)),
    }
    assert bench.cache.notice(terminating, gone=False)

    assert await bench.names() == [PLACE.name]


async def test_finalizers_are_known_at_once_and_a_conflict_is_looked_into(bench: Bench) -> None:
    bench.api.add(tenant_object())
    await bench.cache.load()
    old = await bench.cache.get(TENANT, "team", "acme")

    await bench.cache.set_finalizers(old, ["duckmesh.io/data"])
    with pytest.raises(Conflict):
        await bench.cache.set_finalizers(old, [])

    found = await bench.cache.get(TENANT, "team", "acme")
    assert found["metadata"]["finalizers"] == ["duckmesh.io/data"]  # type: ignore[index]


def test_what_lies_in_the_operators_namespace_says_whose_it_is() -> None:
    obj = service(1)
    obj["metadata"]["labels"]["duckmesh.io/tenant-namespace"] = "elsewhere"

    assert caches.owner_of(obj) == Key("Tenant", "elsewhere", "acme")


@pytest.mark.parametrize(
    ("theirs", "told"), [({"b": 1}, [ACME]), (None, [])], ids=["an addition", "nothing"]
)
async def test_the_answer_to_an_apply_that_shows_an_addition_is_told_once(
    bench: Bench, theirs: Object | None, told: list[Key]
) -> None:
    """It landed between the read and the apply; its event will be no news."""
    await bench.cache.apply(service(a=1))
    if theirs is not None:
        bench.api.edit(SERVICE, "team", PLACE.name, {"spec": theirs})

    await bench.cache.apply(service(a=2))
    assert bench.told == told
    assert not bench.watch("Service", PLACE.name)

    await bench.cache.apply(service(a=3))
    assert bench.told == told, (
        "what is known needs no telling, or reconciles would chase each other"
    )


# -------------------------------------------------------------------- lists


async def test_a_list_brings_what_the_watch_missed(bench: Bench) -> None:
    await bench.cache.apply(service(name="changed"))
    await bench.cache.apply(service(name="gone"))
    await bench.cache.apply(service(name="same"))
    bench.api.edit(SERVICE, "team", "changed", {"spec": {"b": 1}})
    bench.api.remove(SERVICE, "team", "gone")
    bench.api.add(service(name="new"))

    news = await bench.cache.refresh(SERVICE)

    assert [(one.place.name, one.version > 0, one.owner) for one in news] == [
        ("changed", True, ACME),
        ("new", True, ACME),
        ("gone", False, ACME),
    ]
    assert await bench.names() == ["changed", "new", "same"]
    assert await bench.cache.refresh(SERVICE) == []


async def test_an_object_made_while_a_list_is_read_is_not_taken_for_gone(bench: Bench) -> None:
    for number in range(5):
        await bench.cache.apply(service(name=f"s{number}"))
    pages = bench.api.pages

    async def slow(*asked: Any) -> Any:
        async for page in pages(*asked):
            if bench.api.writes.count("apply Service/late") == 0:
                await bench.cache.apply(service(name="late"))
            yield page

    bench.api.pages = slow  # type: ignore[method-assign]
    await bench.cache.refresh(SERVICE)

    assert "late" in await bench.names()


async def test_a_cluster_that_was_put_back_is_followed(bench: Bench) -> None:
    """A restored etcd counts from an earlier version on: whatever it tells would be older than what is known."""
    bench.api._numbers = itertools.count(1000)
    bench.api.add(service(name="kept", a=2))
    bench.api.add(service(name="later"))
    await bench.cache.apply(service(name="last"))
    await bench.cache.load()
    for name in ("later", "last"):
        bench.api.remove(SERVICE, "team", name)
    bench.api._numbers = itertools.count(7)
    bench.api.add(service(name="kept", a=1))

    await bench.cache.refresh(SERVICE)
    assert await bench.names() == ["kept", "last", "later"], "one old list proves nothing"
    await bench.cache.refresh(SERVICE)

    (found,) = await bench.cache.list(SERVICE, "team", MINE)
    assert (found["metadata"]["name"], found["spec"]) == ("kept", {"a": 1})  # type: ignore[index]
    bench.api.edit(SERVICE, "team", "kept", {"spec": {"a": 3}})
    assert bench.watch("Service", "kept")


async def test_one_old_list_between_others_changes_nothing(bench: Bench) -> None:
    await bench.cache.apply(service())
    for start in (100, 1, 200, 1, 300):
        bench.api._numbers = itertools.count(start)
        await bench.cache.refresh(SERVICE)
        bench.api._numbers = itertools.count(start + 50)
        if start > 1:
            await bench.cache.apply(service(a=start))

    assert await bench.names() == [PLACE.name]


async def test_only_the_served_namespaces_are_listed() -> None:
    bench = Bench("team")
    bench.api.add(tenant_object())
    bench.api.add(tenant_object(namespace="other"))

    await bench.cache.load()

    assert [key.namespace for key in bench.cache.store.places("Tenant", None)] == ["team"]


async def test_foreign_objects_are_not_listed(bench: Bench) -> None:
    foreign: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {"name": "theirs", "namespace": "team"},
        "revision": 1,
    }
    bench.api.add(foreign)

    await bench.cache.load()

    assert bench.cache.store.places(REVISION.kind, None) == []


def status() -> Manifest:
    return {
        "apiVersion": TENANT.api_version,
        "kind": TENANT.kind,
        "metadata": {"name": "acme", "namespace": "team", "uid": UID},
        "status": {"phase": "Ready"},
    }


def test_a_child_leads_to_its_tenant_by_owner_and_by_label() -> None:
    owned = service()
    owned["metadata"]["ownerReferences"] = [{"kind": "Tenant", "name": "acme", "uid": UID}]
    relabelled = copy.deepcopy(owned)
    relabelled["metadata"]["labels"] |= labels("other", UID, "ingest")

    assert caches.owner_of(owned) == ACME
    assert caches.owner_of(relabelled) == ACME
    assert caches.owner_of(service()) == ACME  # stripped of its owner
