"""Faults between an operator and its API server, one function each: returns a line that tells what was seen.

Each fails with an AssertionError when what must hold does not; none fails on a timing within generous limits.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from duckmesh_operator.names import (
    CHILDREN,
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    NETWORK_POLICY,
    REVISION,
    SECRET,
    SERVICE,
    TENANT,
    Kind,
)
from tests.controlplane.client import Manifest
from tests.controlplane.world import condition, ended, is_current, until
from tests.faults.ground import NAME, SETTLE_S, Ground
from tests.faults.proxy import PASS, Call, FailSome, Fault, no_faults, running_proxy

Case = Callable[[Ground], Awaitable[str]]
_MANAGED: Final = "app.kubernetes.io/managed-by=duckmesh-operator"


async def watch_ends(ground: Ground) -> str:
    """O09: watches end, with 410 Gone and without; no change is missed."""
    told = []
    for gone in (True, False):
        namespace = await ground.made()
        count = ground.proxy.end_watches(gone=gone)
        assert count, "no watch was open"
        started = time.monotonic()
        await ground.update(namespace)
        await ground.settled(namespace, "update")
        told.append(f"{time.monotonic() - started:.1f} s after {'410' if gone else 'an end'}")
    return "a change right after all watches ended was acted on: " + ", ".join(told)


async def watch_silent(ground: Ground) -> str:
    """O09: watches stay open and bring nothing; a change made meanwhile is acted on, by a restart if need be."""
    namespace = await ground.made()
    ground.proxy.deaf = True
    started, restarts = time.monotonic(), 0
    await ground.update(namespace)

    async def healed() -> bool:
        nonlocal restarts
        if not ground.operator.running:
            restarts += 1
            ground.proxy.deaf = False
            await ground.start()
        return await ground.is_settled(namespace, "update")

    try:
        await until("a deaf operator to act again", healed, 300, every_s=0.5)
    finally:
        ground.proxy.deaf = False
    took = time.monotonic() - started
    await ground.restart()
    return f"a change under silent watches was acted on after {took:.0f} s and {restarts} restarts"


async def stale_lists(ground: Ground) -> str:
    """O10: a fresh operator is shown lists from before a Tenant was made, and from before one was made anew."""
    old = await ground.made()
    await ground.restart()  # its lists hold the first Tenant and its children, and not the second
    await ground.at_rest()
    new = await ground.made()
    before = await _uids(ground, new)
    await ground.delete(old)
    await ground.settled(old, "delete")
    ground.proxy.replay = True
    try:
        await ground.restart()
        await ground.world.client.patch(
            TENANT, new, NAME, {"spec": {"freshness": {"sustainedFor": "31s"}}}
        )

        async def acted() -> bool:
            if (
                not ground.operator.running
            ):  # it may end on what it cannot follow: kubelet starts it again
                ground.proxy.replay = False
                await ground.start()
            found = await ground.world.tenant(new, NAME)
            return found is not None and is_current(found, "Ready")

        await until("an act on a change under stale lists", acted, SETTLE_S)
        await ground.at_rest()
    finally:
        ground.proxy.replay = False
    after = await _uids(ground, new)
    assert after == before, f"children were made again: {before} became {after}"
    left = await ground.state(old)
    assert not left, f"a deleted Tenant has children again: {[*left]}"
    return f"{len(after)} children untouched under stale lists, nothing made for a deleted Tenant"


async def api_errors(ground: Ground) -> str:
    """O11: one request in five fails, in six ways, through the life of five Tenants."""
    rule = FailSome(0.2, random.Random(7))  # noqa: S311 - a plan of faults
    ground.proxy.rule = rule
    ground.proxy.reset()
    started = time.monotonic()
    try:
        namespaces = [await ground.namespace() for _ in range(5)]
        for phase in ("create", "update", "delete"):
            act = getattr(ground, phase)
            for namespace in namespaces:
                await act(namespace)
            await asyncio.gather(*(ground.settled(one, phase) for one in namespaces))
    finally:
        ground.proxy.rule = no_faults
    assert ground.operator.running, f"the operator ended: {ground.operator.tail()}"
    failed = sum(rule.done.values())
    return (
        f"five Tenants made, changed and deleted in {time.monotonic() - started:.0f} s while {failed} of "
        f"{len(ground.proxy.calls)} requests failed: {dict(sorted(rule.done.items()))}"
    )


async def made_anew(ground: Ground) -> str:
    """O12: a Tenant is deleted while it starts, and one of the same name is made at once."""
    ends: Counter[str] = Counter()
    for delay_s in (0, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.4):
        namespace = await ground.namespace()
        ground.world.kubelet.ready = lambda item, held=namespace: (
            0 if item["metadata"]["namespace"] == held else int(item["spec"]["replicas"])
        )
        await ground.create(namespace)
        old = await ground.world.tenant(namespace, NAME)
        assert old is not None
        await asyncio.sleep(delay_s)  # where it stands then is luck, and every place must do
        await ground.delete(namespace)

        async def gone(namespace: str = namespace, uid: str = old["metadata"]["uid"]) -> bool:
            found = await ground.world.tenant(namespace, NAME)
            return found is None or found["metadata"]["uid"] != uid

        await until("the end of the first Tenant", gone, SETTLE_S)
        await ground.create(namespace)
        ground.world.kubelet.ready = lambda item: int(item["spec"]["replicas"])
        await ground.world.kubelet.look_again()
        ends[await _end_of_new(ground, namespace, old["metadata"]["uid"])] += 1
    return f"deleted while starting and made anew, {sum(ends.values())} timings: {dict(ends)}"


async def _end_of_new(ground: Ground, namespace: str, old_uid: str) -> str:
    """`Ready`, or `DataOwned` where the first had a lake already; nothing of the first is left in either case."""

    async def look() -> str:
        found = await ground.world.tenant(namespace, NAME)
        assert found is not None
        ready = condition(found, "Ready")
        owned = [c["reason"] for c in found.get("status", {}).get("conditions", [])]
        if ready.get("status") == "True":
            return "Ready"
        return "DataOwned" if "DataOwned" in owned else ""

    end = await until("an end for the new Tenant", look, SETTLE_S)

    async def only_new() -> bool:
        return old_uid not in str(await _owners(ground, namespace))

    await until("an end of the first Tenant's children", only_new, SETTLE_S)
    return end


async def drift(ground: Ground) -> str:
    """O13: each kind of child is deleted, edited and stripped of its owner by hand; each comes back."""
    namespace = await ground.made()
    slowest: dict[str, float] = {}
    for kind, name, edit in _CHILDREN:
        for how, spoil in (
            ("deleted", _delete_child),
            ("edited", _edit_child(edit)),
            ("stripped", _strip_child),
        ):
            await ground.at_rest(1)
            started = time.monotonic()
            await spoil(ground, kind, namespace, name)
            try:
                await ground.settled(namespace, "create")
            except AssertionError as error:
                raise AssertionError(f"{kind.kind} {name} {how} by hand: {error}") from error
            slowest[how] = max(slowest.get(how, 0), time.monotonic() - started)
    events = await ground.world.client.list(EVENT, namespace)
    repaired = [e for e in events if e.get("reason") == "DriftRepaired"]
    assert repaired, "no Event tells of a repair"
    told = ", ".join(f"{how} {took:.1f} s" for how, took in slowest.items())
    return f"{len(_CHILDREN)} kinds restored, slowest: {told}; {len(repaired)} Events"


_CHILDREN: Final[Sequence[tuple[Kind, str, Manifest]]] = (
    (DEPLOYMENT, f"{NAME}-ingest", {"spec": {"replicas": 5}}),
    (SERVICE, f"{NAME}-ingest", {"spec": {"selector": {"app": "other"}}}),
    (NETWORK_POLICY, f"{NAME}-ingest", {"spec": {"policyTypes": ["Egress"]}}),
    (DISRUPTION_BUDGET, f"{NAME}-query", {"metadata": {"labels": {"duckmesh.io/tenant": "x"}}}),
    (CONFIG_MAP, f"{NAME}-tables", {"data": {"tables.json": "[]  "}}),
    (REVISION, f"{NAME}-ingest-1", {"revision": 7}),
)


async def _delete_child(ground: Ground, kind: Kind, namespace: str, name: str) -> None:
    live = await ground.world.client.get(kind, namespace, name)
    assert live is not None, f"there is no {kind.kind} {name}"
    await ground.world.client.delete(kind, namespace, name)

    async def anew() -> bool:
        found = await ground.world.client.get(kind, namespace, name)
        return found is not None and found["metadata"]["uid"] != live["metadata"]["uid"]

    await until(f"a new {kind.kind} {name}", anew, SETTLE_S)


def _edit_child(edit: Manifest) -> Callable[[Ground, Kind, str, str], Awaitable[None]]:
    async def spoil(ground: Ground, kind: Kind, namespace: str, name: str) -> None:
        before = await ground.world.client.get(kind, namespace, name)
        after = await ground.world.client.patch(kind, namespace, name, edit)
        assert before is not None
        assert before["metadata"]["resourceVersion"] != after["metadata"]["resourceVersion"]

    return spoil


async def _strip_child(ground: Ground, kind: Kind, namespace: str, name: str) -> None:
    await ground.world.client.patch(kind, namespace, name, {"metadata": {"ownerReferences": None}})


async def two_operators(ground: Ground) -> str:
    """O14: two run at once: one acts. The leader is stopped, replaced, and wakes: it ends without one more write."""
    async with running_proxy(
        ground.world.plane, ground.world.folder / "second.kubeconfig"
    ) as proxy:
        second = ground.world.operator("operator-1", proxy.kubeconfig)
        with ended(second):
            second.start()

            async def stands_by() -> bool:
                return (await asyncio.to_thread(second.probe, "/readyz"))[0] == 200

            await until("the standby", stands_by)
            namespace = await ground.made()
            assert not proxy.writes, f"the standby wrote: {[str(c) for c in proxy.writes]}"
            await ground.at_rest()
            ground.proxy.reset()
            first = ground.operator
            os.kill(first.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            await ground.update(namespace)
            await ground.settled(namespace, "update")
            took = time.monotonic() - stopped
            os.kill(first.pid, signal.SIGCONT)

            async def gone() -> bool:
                return not first.running

            await until("an end of the leader that woke", gone, SETTLE_S)
            late = [str(call) for call in ground.proxy.writes]
            assert not late, f"a leader that had lost the lease wrote: {late}"
            assert first.code == 1, f"it ended with code {first.code}"
            await asyncio.to_thread(second.stop)
    await ground.start()
    return f"a stopped leader was replaced after {took:.0f} s; it woke, ended, and wrote nothing"


_REVOKED: Final[Sequence[tuple[str, str, str]]] = (
    ("patch", "deployments", "apps"),
    ("patch", "services", ""),
    ("patch", "networkpolicies", "networking.k8s.io"),
    ("get", "secrets", ""),
    ("patch", "secrets", ""),
)


async def verb_revoked(ground: Ground) -> str:
    """O15: the operator may no longer do one thing: a condition names it, the process stays, and it recovers."""
    for verb, plural, group in _REVOKED:
        said = f'cannot {verb} resource "{plural}"'
        message = (
            f'{plural}.{group} is forbidden: User "duckmesh-operator" {said} in API group "{group}"'
        )
        namespace = await ground.made()
        await ground.at_rest(0.5)
        pid = ground.operator.pid

        def deny(
            call: Call, verb: str = verb, plural: str = plural, message: str = message
        ) -> Fault:
            if (call.verb, call.plural) == (verb, plural):
                return Fault(forward=False, answer=403, message=message)
            return PASS

        ground.proxy.rule = deny
        try:
            await _break(ground, namespace, plural)

            async def named(namespace: str = namespace, said: str = said) -> bool:
                found = await ground.world.tenant(namespace, NAME)
                conditions = (found or {}).get("status", {}).get("conditions", [])
                return any(said in one.get("message", "") for one in conditions)

            try:
                await until(f"a condition that says: {said}", named, SETTLE_S)
            except AssertionError as error:
                found = await ground.world.tenant(namespace, NAME)
                raise AssertionError(f"{error}; conditions: {_conditions(found)}") from None
            assert ground.operator.running, ground.operator.tail()
            assert ground.operator.pid == pid
        finally:
            ground.proxy.rule = no_faults
        await ground.world.client.patch(TENANT, namespace, NAME, {"spec": {"suspend": False}})
        await _recovered(ground, namespace)
    return (
        f"{len(_REVOKED)} verbs revoked and given back: named in a condition, no restart, recovered"
    )


async def _break(ground: Ground, namespace: str, plural: str) -> None:
    """Give the operator something to do with that kind."""
    client = ground.world.client
    if plural == "deployments":
        await client.patch(DEPLOYMENT, namespace, f"{NAME}-query", {"spec": {"replicas": 7}})
    elif plural == "services":
        await client.delete(SERVICE, namespace, f"{NAME}-query")
    elif plural == "networkpolicies":
        await client.delete(NETWORK_POLICY, namespace, f"{NAME}-query")
    else:
        if plural == "secrets":
            await client.delete(SECRET, namespace, f"{NAME}-reader")
        await client.patch(
            TENANT, namespace, NAME, {"spec": {"freshness": {"sustainedFor": "31s"}}}
        )


async def _recovered(ground: Ground, namespace: str) -> None:
    await ground.until_current(namespace, "Ready")


async def one_fails(ground: Ground) -> str:
    """O16: one Tenant fails for ever; others do not notice, and it is tried less and less often."""
    bad = await ground.namespace()
    ground.proxy.rule = lambda call: (
        Fault(forward=False, answer=500)
        if call.namespace == bad and call.is_write and call.plural != "tenants"
        else PASS
    )
    ground.proxy.reset()
    started = time.monotonic()
    try:
        await ground.create(bad)
        others = [await ground.namespace() for _ in range(5)]
        for namespace in others:
            await ground.create(namespace)
        await asyncio.gather(*(ground.settled(one, "create") for one in others))
        took = time.monotonic() - started
        await asyncio.sleep(max(0.0, 40 - took))
        tries = [call for call in ground.proxy.calls if call.namespace == bad and call.is_write]
        found = await ground.world.tenant(bad, NAME)
        assert condition(found or {}, "Ready").get("status") != "True", "it is said to be Ready"
        assert found is not None
        assert found.get("status", {}).get("observedGeneration"), "it has no status"
        # 0.5 s doubled each time: about eight tries in this time, each of one write and a status now and then.
        assert len(tries) < 60, f"{len(tries)} writes tried in {time.monotonic() - started:.0f} s"
    finally:
        ground.proxy.rule = no_faults
    await ground.settled(bad, "create")
    return (
        f"five others Ready in {took:.1f} s beside one that failed {len(tries)} times; it recovered"
    )


async def operator_down(ground: Ground) -> str:
    """O18: resources are made, changed and deleted while no operator runs; time is compressed, nothing in it depends on it."""
    changed, deleted = await ground.made(), await ground.made()
    made = await ground.namespace()
    await ground.at_rest(0.5)
    await asyncio.to_thread(ground.operator.stop)
    await ground.update(changed)
    await ground.delete(deleted)
    await ground.create(made)
    await asyncio.sleep(20)
    pending = await ground.world.tenant(deleted, NAME)
    await ground.start()
    await ground.settled(changed, "update")
    await ground.settled(deleted, "delete")
    await ground.settled(made, "create")
    return "made, changed and deleted without an operator: all caught up; the deleted one " + (
        "waited for it" if pending else "was gone at once"
    )


CASES: Final[Sequence[Case]] = (
    watch_ends,
    stale_lists,
    api_errors,
    made_anew,
    drift,
    verb_revoked,
    one_fails,
    operator_down,
    two_operators,
    watch_silent,
)


async def _uids(ground: Ground, namespace: str) -> dict[str, str]:
    found = {}
    for kind in CHILDREN:
        for item in await ground.world.client.list(kind, namespace, _MANAGED):
            found[f"{kind.kind}/{item['metadata']['name']}"] = item["metadata"]["uid"]
    return found


async def _owners(ground: Ground, namespace: str) -> list[Any]:
    return [
        item["metadata"].get("ownerReferences")
        for kind in CHILDREN
        for item in await ground.world.client.list(kind, namespace, _MANAGED)
    ]


def _conditions(tenant: Manifest | None) -> list[str]:
    found = (tenant or {}).get("status", {}).get("conditions", [])
    return [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in found]
