"""Canary and audit tell a deaf watch from a quiet one."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from duckmesh_operator import canary as canaries
from duckmesh_operator.cache import CACHED, CachedApi, Place
from duckmesh_operator.canary import (
    AUDIT_EVERY_S,
    AUDIT_GRACE_S,
    DEAF_AFTER_S,
    Audit,
    Canary,
)
from duckmesh_operator.errors import Deaf, Forbidden, Unavailable
from duckmesh_operator.handlers import build_settings
from duckmesh_operator.manifest import Manifest
from duckmesh_operator.names import CHILDREN, SERVICE, TENANT, Kind, labels
from duckmesh_operator.queue import Key
from tests.fakes.kube import FakeApi
from tests.tenants import UID, tenant_object


class _Api:
    """Hands each written object to the watch, at once or never."""

    def __init__(self) -> None:
        self.watch: Callable[[Manifest], None] = lambda obj: None
        self.down = False
        self._last: Manifest | None = None

    async def apply(self, obj: Manifest) -> Manifest:
        if self.down:
            raise Unavailable("down")
        if obj != self._last:  # the API server tells only changes
            self._last = copy.deepcopy(obj)
            self.watch(obj)
        return obj


class _Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.api = _Api()
        self.canary = Canary(self.api, namespace="system", identity="me", clock=lambda: self.now)  # type: ignore[arg-type]

    async def sing_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            await self.canary.sing()
            self.now += 30


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


async def test_a_watch_faster_than_the_writes_answer_is_heard(bench: _Bench) -> None:
    bench.api.watch = bench.canary.seen

    await bench.sing_for(DEAF_AFTER_S * 4)

    assert not bench.canary.deaf
    assert bench.canary.last_event_age_s <= 30


async def test_a_silent_watch_is_deaf_after_its_time(bench: _Bench) -> None:
    await bench.sing_for(DEAF_AFTER_S)
    assert not bench.canary.deaf

    await bench.sing_for(60)

    assert bench.canary.deaf


async def test_an_api_server_that_is_down_does_not_make_the_watch_deaf(bench: _Bench) -> None:
    bench.api.down = True

    await bench.sing_for(DEAF_AFTER_S * 4)

    assert not bench.canary.deaf


async def test_the_song_of_another_process_does_not_count(bench: _Bench) -> None:
    other = Canary(bench.api, namespace="system", identity="other", clock=lambda: bench.now)  # type: ignore[arg-type]
    bench.api.watch = bench.canary.seen
    await other.sing()
    bench.api.watch = lambda obj: None
    await bench.canary.sing()
    bench.canary.seen(other._build())
    bench.now += DEAF_AFTER_S + 1

    assert bench.canary.deaf


# -------------------------------------------------------------------- audit


class Listening:
    """An audit over an API server in memory, with a watch that brings what a test lets through."""

    def __init__(self) -> None:
        self.now = 0.0
        self.api = FakeApi()
        self.found: list[Key] = []
        self.cache = CachedApi(
            self.api, namespaces=(), changed=self.found.append, clock=lambda: self.now
        )
        self.audit = Audit(self.cache, found=self.found.append, clock=lambda: self.now)

    async def look_until(self, kind: Kind, now: float) -> None:
        """List a kind as often as the audit does until a time, and then."""
        while self.now + AUDIT_EVERY_S < now:
            self.now += AUDIT_EVERY_S
            await self.audit.look(kind)
        self.now = now
        await self.audit.look(kind)

    def watch(self, kind: Kind, name: str) -> None:
        """Let the watch bring the object as it is."""
        obj = copy.deepcopy(self.api.objects[kind.kind, "team", name])
        self.audit.heard(obj)
        self.cache.notice(obj, gone=False)

    def add(self, kind: Kind, name: str) -> None:
        if kind is TENANT:
            self.api.add(tenant_object(name=name))
            return
        meta = {"name": name, "namespace": "team", "labels": labels("acme", UID, "ingest")}
        spec = {"template": {"spec": {"containers": [{"name": "x"}]}}}
        about = {"apiVersion": kind.api_version, "kind": kind.kind}
        self.api.add({**about, "metadata": meta, "spec": spec, "data": {}})


@pytest.fixture
def listening() -> Listening:
    return Listening()


@pytest.mark.parametrize("kind", [TENANT, *CHILDREN], ids=lambda kind: kind.kind)
async def test_every_watched_kind_that_falls_silent_is_healed_at_once_and_found_out_soon(
    listening: Listening, kind: Kind
) -> None:
    listening.add(kind, "acme")

    await listening.audit.look(kind)

    assert listening.found == [Key("Tenant", "team", "acme")]
    assert listening.cache.store.places(kind.kind, "team")
    await listening.look_until(kind, AUDIT_GRACE_S - 1)
    assert listening.audit.deaf == []
    await listening.look_until(kind, AUDIT_GRACE_S)
    assert listening.audit.deaf == [kind.kind]


async def test_a_watch_that_is_only_late_is_not_deaf(listening: Listening) -> None:
    listening.add(SERVICE, "x")
    await listening.audit.look(SERVICE)
    await listening.look_until(SERVICE, AUDIT_GRACE_S - 1)

    listening.watch(SERVICE, "x")
    await listening.look_until(SERVICE, AUDIT_GRACE_S * 2)

    assert listening.audit.deaf == []


async def test_an_older_event_does_not_pay_for_a_newer_object(listening: Listening) -> None:
    listening.add(SERVICE, "x")
    old = copy.deepcopy(listening.api.objects["Service", "team", "x"])
    listening.api.edit(SERVICE, "team", "x", {"spec": {"a": 1}})
    await listening.audit.look(SERVICE)

    listening.audit.heard(old)
    await listening.look_until(SERVICE, AUDIT_GRACE_S)

    assert listening.audit.deaf == ["Service"]


async def test_an_event_that_comes_while_the_list_is_read_counts(listening: Listening) -> None:
    for name in "abc":  # pages of two
        listening.add(SERVICE, name)
    pages = listening.api.pages

    async def slow(*asked: Any) -> Any:
        async for page in pages(*asked):
            yield page
            for name in "abc":
                listening.watch(SERVICE, name)

    listening.api.pages = slow  # type: ignore[method-assign]
    await listening.audit.look(SERVICE)
    listening.api.pages = pages  # type: ignore[method-assign]
    await listening.look_until(SERVICE, AUDIT_GRACE_S)

    assert listening.audit.deaf == []


async def test_a_deletion_that_no_stream_told_is_healed_and_blames_nobody(
    listening: Listening,
) -> None:
    """A stream that starts again after an interruption lists what is there, not what went."""
    listening.add(SERVICE, "x")
    listening.watch(SERVICE, "x")
    listening.api.remove(SERVICE, "team", "x")

    await listening.audit.look(SERVICE)
    await listening.look_until(SERVICE, AUDIT_GRACE_S)

    assert listening.found == [Key("Tenant", "team", "acme")]
    assert listening.cache.store.places("Service", None) == []
    assert listening.audit.deaf == []


async def test_an_object_that_goes_before_the_watch_brought_it_blames_nobody(
    listening: Listening,
) -> None:
    listening.add(SERVICE, "x")
    await listening.audit.look(SERVICE)
    listening.api.remove(SERVICE, "team", "x")

    listening.now = (
        AUDIT_EVERY_S  # the round in which it is found to be gone has not come to it yet
    )
    assert listening.audit.deaf == []
    listening.now = AUDIT_GRACE_S + 1
    listening.api.failing["list"] = Unavailable("down")
    await listening.audit.look(SERVICE)
    assert listening.audit.deaf == [], "a list that failed does not show it to be there"
    await listening.look_until(SERVICE, AUDIT_GRACE_S * 2)

    assert listening.audit.deaf == []


async def test_a_cluster_that_was_put_back_blames_nobody_for_what_is_not_in_it(
    listening: Listening,
) -> None:
    listening.api._numbers = itertools.count(1000)
    listening.add(SERVICE, "x")
    await listening.audit.look(SERVICE)
    listening.api._numbers = itertools.count(7)
    listening.add(SERVICE, "x")
    for _ in range(2):
        await listening.audit.look(SERVICE)
    listening.watch(SERVICE, "x")

    await listening.look_until(SERVICE, AUDIT_GRACE_S)

    assert listening.cache.store.version(Place("Service", "team", "x")) == 7
    assert listening.audit.deaf == []


async def test_a_watch_that_has_just_begun_owes_nothing(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canaries, "AUDIT_EVERY_S", 0.0)
    looks, look = 0, listening.audit.look

    async def counted(kind: Kind) -> None:
        nonlocal looks
        looks += 1
        if looks == 100:  # rounds without end but for this
            raise Deaf("enough")
        if kind is SERVICE:
            listening.now += 30
            listening.api.edit(SERVICE, "team", "x", {"spec": {"at": listening.now}})
        await look(kind)
        if listening.now < canaries.AUDIT_QUIET_S:
            assert listening.audit._owed == {}

    monkeypatch.setattr(listening.audit, "look", counted)
    listening.add(SERVICE, "x")
    async with asyncio.timeout(30):
        with pytest.raises(Deaf, match="every Service"):
            await listening.audit.run()

    assert listening.now >= canaries.AUDIT_QUIET_S + AUDIT_GRACE_S


async def test_a_list_that_fails_says_nothing(listening: Listening) -> None:
    listening.add(SERVICE, "x")
    listening.watch(SERVICE, "x")
    listening.api.failing["list"] = Unavailable("down")

    await listening.audit.look(SERVICE)

    assert listening.cache.store.places("Service", None)
    assert listening.found == []


async def test_a_right_that_is_missing_is_told_once_until_it_is_back(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        listening.api.failing["list"] = Forbidden("list services: 403 Forbidden")
        await listening.audit.look(SERVICE)

    assert listening.audit.refused == ["Service"]
    (told,) = [one for one in caplog.records if "right" in one.message]
    assert (told.__dict__["verb"], told.__dict__["kind"]) == ("list", "Service")
    assert told.levelname == "ERROR"

    listening.api.failing["list"] = Unavailable("down")
    await listening.audit.look(SERVICE)
    assert listening.audit.refused == ["Service"], "no answer gives no right back"

    await listening.audit.look(SERVICE)
    assert listening.audit.refused == []


async def test_a_deaf_stream_ends_the_process(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canaries, "AUDIT_EVERY_S", 0.0)
    monkeypatch.setattr(canaries, "AUDIT_GRACE_S", 0.0)
    monkeypatch.setattr(canaries, "AUDIT_QUIET_S", 0.0)
    listening.add(TENANT, "acme")

    async with asyncio.timeout(30):
        with pytest.raises(Deaf, match="Tenant"):
            await listening.audit.run()


async def test_all_cached_kinds_have_their_turn(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canaries, "AUDIT_EVERY_S", 0.0)
    looked: list[str] = []

    async def look(kind: Kind) -> None:
        looked.append(kind.kind)
        if len(looked) == len(CACHED):
            raise Deaf("enough")

    monkeypatch.setattr(listening.audit, "look", look)
    async with asyncio.timeout(30):
        with pytest.raises(Deaf, match="enough"):
            await listening.audit.run()

    assert sorted(looked) == sorted(kind.kind for kind in CACHED)


def test_what_a_deaf_watch_misses_is_acted_on_within_two_minutes() -> None:
    assert canaries.AUDIT_EVERY_S <= 120  # the list brings it
    assert canaries.EVERY_S + DEAF_AFTER_S <= 120


def test_a_stream_may_start_again_by_itself_before_it_counts_as_dead() -> None:
    silent_s = build_settings().watching.inactivity_timeout

    assert silent_s is not None
    assert silent_s + 30 <= AUDIT_GRACE_S
    assert AUDIT_GRACE_S >= AUDIT_EVERY_S * 2
