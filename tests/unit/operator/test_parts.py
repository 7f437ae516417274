"""Events, prefixes, sweep, canary, health: the small parts around the reconcile."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from duckmesh_operator import canary as canaries
from duckmesh_operator import events, metrics
from duckmesh_operator.canary import Canary
from duckmesh_operator.catalog import Lake
from duckmesh_operator.errors import Deaf, Forbidden, Unavailable
from duckmesh_operator.events import MEANINGS, QUIET_S, REASONS, Note, Recorder, notes_of
from duckmesh_operator.health import Health, watch_loop
from duckmesh_operator.lag import LagBoard, Objective
from duckmesh_operator.model import Meta, parse_meta
from duckmesh_operator.names import TENANT
from duckmesh_operator.prefixes import Prefixes
from duckmesh_operator.settings import StoreConfig
from duckmesh_operator.sweep import Sweeper
from tests.fakes.catalog import FakeCatalog
from tests.fakes.kube import FakeApi
from tests.tenants import UID, tenant_object
from tests.unit.operator.test_lag import report

NOW = datetime(2026, 1, 1, tzinfo=UTC)
META = parse_meta(tenant_object())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -------------------------------------------------------------------- events


def conditions(**states: str) -> dict[str, Any]:
    return {
        "conditions": [
            {"type": kind, "status": status, "reason": "X", "message": "m"}
            for kind, status in states.items()
        ]
    }


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ({"Ready": "Unknown"}, {"Ready": "True"}, ["Ready"]),
        ({"Ready": "True"}, {"Ready": "True"}, []),
        ({"Ready": "True"}, {"Ready": "False"}, ["NotReady"]),
        ({"Ready": "Unknown"}, {"Ready": "False"}, []),
        ({"Fresh": "True"}, {"Fresh": "False"}, ["LagBreach"]),
        ({"Fresh": "False"}, {"Fresh": "True"}, ["LagRecovered"]),
        ({}, {"Stalled": "True"}, ["Stalled"]),
        ({"SpecValid": "Unknown"}, {"SpecValid": "True"}, []),
        ({"SpecValid": "True"}, {"SpecValid": "False"}, ["SpecInvalid"]),
        ({"SpecValid": "False"}, {"SpecValid": "True"}, ["SpecAccepted"]),
        ({"CatalogReachable": "True"}, {"CatalogReachable": "False"}, ["CatalogUnreachable"]),
        ({"CatalogReachable": "False"}, {"CatalogReachable": "True"}, ["CatalogReachable"]),
        ({"StorageReachable": "True"}, {"StorageReachable": "False"}, ["StorageUnreachable"]),
        ({"StorageReachable": "Unknown"}, {"StorageReachable": "True"}, []),
        ({"StorageReachable": "False"}, {"StorageReachable": "True"}, ["StorageReachable"]),
        ({"Suspended": "False"}, {"Suspended": "True"}, ["Suspended"]),
        ({"Suspended": "True"}, {"Suspended": "False"}, ["Resumed"]),
    ],
)
def test_transitions_are_told(
    before: dict[str, str], after: dict[str, str], reasons: list[str]
) -> None:
    notes = notes_of(conditions(**before), conditions(**after))

    assert [note.reason for note in notes] == reasons
    assert set(reasons) <= set(REASONS)


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ("RollingOut", "Settled", ["RolledOut"]),
        ("RollingOut", "RolloutStuck", []),
        ("Migrating", "Settled", []),
    ],
)
def test_the_end_of_a_rollout_is_told(before: str, after: str, reasons: list[str]) -> None:
    was, now = conditions(Progressing="True"), conditions(Progressing="False")
    was["conditions"][0]["reason"], now["conditions"][0]["reason"] = before, after

    assert [note.reason for note in notes_of(was, now)] == reasons


def test_every_reason_of_an_event_is_described_and_has_its_occasion() -> None:
    package = Path(events.__file__).parent
    made = re.compile(r'Note\(\s*reason="(\w+)"')
    occasions = set(events._TRANSITIONS.values())
    for file in package.rglob("*.py"):
        occasions |= set(made.findall(file.read_text(encoding="utf-8")))

    assert occasions == set(REASONS)
    assert set(MEANINGS) == set(REASONS)


def test_a_suspension_is_told_once() -> None:
    before = conditions(Ready="True", Suspended="False")
    after = conditions(Ready="False", Suspended="True")
    after["conditions"][0]["reason"] = "Suspended"

    assert [note.reason for note in notes_of(before, after)] == ["Suspended"]


async def test_the_same_reason_is_quiet_for_a_while() -> None:
    api, clock = FakeApi(), Clock()
    recorder = Recorder(api, instance="op", clock=clock, now=lambda: NOW)
    note = Note(reason="NotReady", message="m" * 2000)

    assert await recorder.record(TENANT, META, note)
    assert not await recorder.record(TENANT, META, note)
    assert await recorder.record(TENANT, META, Note(reason="Ready", message="m"))
    clock.now = QUIET_S
    assert await recorder.record(TENANT, META, note)

    events = [one for place, one in api.objects.items() if place[0] == "Event"]
    assert len(events) == 3
    assert events[0]["involvedObject"]["uid"] == UID
    assert (events[0]["type"], len(events[0]["message"])) == ("Warning", 1024)


async def test_an_event_that_cannot_be_posted_is_no_failure() -> None:
    api = FakeApi()
    api.failing["create"] = Forbidden("no")
    recorder = Recorder(api, instance="op", clock=Clock(), now=lambda: NOW)

    assert not await recorder.record(TENANT, META, Note(reason="Ready", message="m"))


# -------------------------------------------------------------------- prefixes


def meta(name: str, created: int) -> Meta:
    return Meta(namespace="team", name=name, uid=name, created=f"2026-01-0{created}T00:00:00Z")


@pytest.mark.parametrize(
    ("prefix", "taken"),
    [("a/b", True), ("a", True), ("a/b/c", True), ("a/bc", False), ("x", False)],
)
def test_the_older_tenant_keeps_its_prefix(prefix: str, taken: bool) -> None:
    prefixes = Prefixes({})
    assert prefixes.claim(meta("old", 1), "s", "a/b") is None

    assert prefixes.claim(meta("new", 2), "s", prefix) == ("team/old" if taken else None)
    assert prefixes.claim(meta("old", 1), "s", "a/b") is None
    assert prefixes.claim(meta("new", 2), "other", prefix) is None


def test_two_stores_may_be_one_bucket() -> None:
    places = {
        "one": ("http://s3.example:8333", "lakes"),
        "same": ("http://S3.example:8333/", "lakes"),
        "bucket": ("http://s3.example:8333", "other"),
        "endpoint": ("http://s3.elsewhere:8333", "lakes"),
    }
    prefixes = Prefixes(
        {
            name: StoreConfig(name=name, bucket=bucket, endpoint=endpoint, secret_dir=Path("/none"))
            for name, (endpoint, bucket) in places.items()
        }
    )
    prefixes.claim(meta("old", 1), "one", "a")

    taken = {name for name in places if prefixes.claim(meta("new", 2), name, "a")}

    assert taken == {"one", "same"}


def test_a_prefix_is_free_when_its_tenant_is_gone() -> None:
    prefixes = Prefixes({})
    prefixes.claim(meta("old", 1), "s", "a")
    prefixes.release("team/old")

    assert prefixes.claim(meta("new", 2), "s", "a") is None


# -------------------------------------------------------------------- sweep


class Swept:
    """A sweeper over one catalog, with the names it queued."""

    def __init__(self, *, namespaces: tuple[str, ...] = ()) -> None:
        self.catalog = FakeCatalog()
        self.board = LagBoard()
        self.board.watch(
            "u1", tenant="team/acme", catalog="default", objective=Objective(target_ms=5000)
        )
        self.due: list[str] = []
        self.alive: set[str] = {"u1"}
        self.sweeper = Sweeper(
            catalogs={"default": self.catalog},
            board=self.board,
            due=self.due.append,
            alive=self._alive,
            namespaces=namespaces,
            interval_s=0.01,
            clock=asyncio.get_running_loop().time,
        )

    async def show_lake_1(self) -> None:
        """A lake of `u1` with its logins, as the last sweep found it."""
        self.catalog.registry = [
            Lake(
                lake="lake_1",
                tenant="team/acme",
                tenant_uid="u1",
                data_url="s3://b/a/",
                migration=1,
            )
        ]
        self.catalog.logins = dict.fromkeys(("lake_1_w", "lake_1_m", "lake_1_r"))  # type: ignore[arg-type]
        self.catalog.reports = [report(0, lake="lake_1")]
        await self.sweeper.sweep(self.catalog)

    async def _alive(self) -> set[str]:
        return self.alive


async def test_a_changed_lag_queues_its_tenant() -> None:
    swept = Swept()
    swept.catalog.reports = [report(0)]
    await swept.sweeper.sweep(swept.catalog)
    swept.catalog.reports = [report(5)]
    await swept.sweeper.sweep(swept.catalog)
    swept.catalog.reports = [report(10, 8)]
    await swept.sweeper.sweep(swept.catalog)

    assert swept.due == ["team/acme", "team/acme"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("no answer"), "Unreachable"), (Forbidden("no right"), "AccessDenied")],
)
async def test_a_silent_catalog_queues_its_tenants_once(error: Any, reason: str) -> None:
    swept = Swept()
    swept.catalog.failing = error
    await swept.sweeper.sweep(swept.catalog)
    await swept.sweeper.sweep(swept.catalog)

    assert swept.due == ["team/acme"]
    health = swept.board.health("default", None)  # type: ignore[arg-type]
    assert (health.ok, health.reason) == (False, reason)


async def test_an_unreadable_lake_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    swept = Swept()
    swept.catalog.reports = [report(0, error="55P03: lock")]
    await swept.sweeper.sweep(swept.catalog)
    await swept.sweeper.sweep(swept.catalog)

    assert [one.message for one in caplog.records].count("lake unreadable") == 1


async def test_logins_go_when_their_tenant_was_gone_at_two_looks() -> None:
    swept = Swept()
    await swept.show_lake_1()

    await swept.sweeper.retire(swept.catalog)
    swept.alive = set()
    await swept.sweeper.retire(swept.catalog)
    assert swept.catalog.retired == set()
    await swept.sweeper.retire(swept.catalog)

    assert swept.catalog.retired == {"lake_1_w", "lake_1_m", "lake_1_r"}


async def test_logins_of_a_lake_that_was_just_handed_over_stay() -> None:
    swept = Swept()
    await swept.show_lake_1()
    swept.alive = set()
    await swept.sweeper.retire(swept.catalog)

    await swept.catalog.adopt_lake("lake_1", owner="u1", heir="u2")
    await swept.sweeper.retire(swept.catalog)  # the last sweep still shows the owner before

    assert swept.catalog.retired == set()


async def test_lakes_of_namespaces_that_are_not_ours_are_left_alone() -> None:
    swept = Swept(namespaces=("other",))
    swept.alive = set()
    await swept.show_lake_1()
    for _ in range(3):
        await swept.sweeper.retire(swept.catalog)

    assert swept.catalog.retired == set()


async def test_the_sweep_goes_on_until_it_is_cancelled() -> None:
    swept = Swept()
    seen = asyncio.Event()
    looks = 0

    async def sweep() -> list[Any]:
        nonlocal looks
        looks += 1
        if looks == 3:
            seen.set()
        return []

    swept.catalog.sweep = sweep  # type: ignore[method-assign]
    await swept.sweeper.look()
    task = asyncio.create_task(swept.sweeper.run())
    async with asyncio.timeout(30):
        await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -------------------------------------------------------------------- canary


def make_canary(api: FakeApi, clock: Clock) -> Canary:
    return Canary(api, namespace="system", identity="op1", clock=clock)


async def test_a_song_that_comes_back_keeps_the_operator_alive() -> None:
    api, clock = FakeApi(), Clock()
    canary = make_canary(api, clock)

    await canary.sing()
    clock.now = 80
    canary.seen(api.objects["NetworkPolicy", "system", canaries.NAME])
    clock.now = 200

    assert not canary.deaf
    assert canary.last_event_age_s == 120
    canary.noticed()
    assert canary.last_event_age_s == 0


async def test_silence_after_a_song_is_deafness() -> None:
    api, clock = FakeApi(), Clock()
    canary = make_canary(api, clock)
    await canary.sing()
    old = api.objects["NetworkPolicy", "system", canaries.NAME]
    canary.seen(old)

    await canary.sing()
    canary.seen(old)
    await canary.sing()
    clock.now = canaries.DEAF_AFTER_S + 1

    assert canary.deaf


async def test_a_song_that_could_not_be_written_says_nothing() -> None:
    api, clock = FakeApi(), Clock()
    api.failing["apply"] = Unavailable("no")
    canary = make_canary(api, clock)

    await canary.sing()
    clock.now = 1000

    assert not canary.deaf


async def test_a_deaf_canary_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "EVERY_S", 0.0)
    api, clock = FakeApi(), Clock()
    canary = make_canary(api, clock)
    await canary.sing()
    clock.now = canaries.DEAF_AFTER_S + 1

    with pytest.raises(Deaf):
        await canary.run()


# -------------------------------------------------------------------- health


async def test_probes_and_metrics_answer() -> None:
    alive: list[str] = []
    ready = ["the watch is starting"]
    health = Health(lambda: alive, lambda: ready)

    async with health.serve("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:

        async def ask(path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert await ask("/healthz") == (200, "ok\n")
        assert await ask("/readyz") == (503, "the watch is starting\n")
        ready.clear()
        assert await ask("/readyz") == (200, "ok\n")
        alive.append("deaf")
        assert (await ask("/healthz"))[0] == 503
        status, text = await ask("/metrics")

    assert status == 200
    for name in ("reconcile_total", "lease_held", "loop_lag_seconds", "status_writes_total"):
        assert f"duckmesh_operator_{name}" in text


def test_collectors_show_queue_and_tenants() -> None:
    made = metrics.add(
        metrics.QueueCollector(lambda: 3, lambda: 1.5),
        metrics.TenantCollector(lambda: {"Ready": 2}, lambda: {"team/acme": 0.5}),
    )
    text = metrics.expose().decode()
    metrics.remove(made)

    assert "duckmesh_operator_queue_depth 3.0" in text
    assert 'duckmesh_operator_tenants{phase="Ready"} 2.0' in text
    assert 'duckmesh_operator_tenant_lag_seconds{tenant="team/acme"} 0.5' in text
    assert "duckmesh_operator_queue_depth" not in metrics.expose().decode()


async def test_the_loops_lag_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asyncio.Event()
    monkeypatch.setattr("duckmesh_operator.health._TICK_S", 0.001)
    monkeypatch.setattr(metrics, "loop_lagged", lambda _: seen.set())

    task = asyncio.create_task(watch_loop())
    async with asyncio.timeout(30):
        await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
