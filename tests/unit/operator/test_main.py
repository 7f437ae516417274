"""The process: refuses bad settings, stands by, leads, ends. The API server is in memory, kopf is stood in for."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator import __main__ as process
from duckmesh_operator import kube, log
from duckmesh_operator.errors import Forbidden, Unavailable
from duckmesh_operator.lease import NAME
from duckmesh_operator.names import TENANT
from duckmesh_operator.settings import Settings
from tests.fakes.kube import FakeApi
from tests.tenants import make_settings, tenant_object


class Cluster:
    """An API server in memory and a kopf that starts, tells of nothing and waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = FakeApi()
        self.started = asyncio.Event()
        self.end = asyncio.Event()
        self.asked: dict[str, Any] = {}
        monkeypatch.setattr(kube, "connect", self._connect)
        monkeypatch.setattr(process.kopf, "operator", self._kopf)

    @asynccontextmanager
    async def _connect(self, _: Path | None) -> AsyncIterator[FakeApi]:
        yield self.api

    async def _kopf(self, *, ready_flag: asyncio.Event, **asked: Any) -> None:
        self.asked = asked
        ready_flag.set()
        self.started.set()
        await self.end.wait()


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def settings(secrets_dir: Path, **more: Any) -> Settings:
    (secrets_dir / "catalog").mkdir(exist_ok=True)
    (secrets_dir / "catalog" / "control-dsn").write_text("postgresql://u:p@127.0.0.1:1/d")
    return make_settings(secrets_dir, bind="127.0.0.1", port=0, **more)


async def test_a_signal_ends_a_leader_in_order(cluster: Cluster, secrets_dir: Path) -> None:
    cluster.api.add(tenant_object())
    running = asyncio.create_task(process.run(settings(secrets_dir)))
    async with asyncio.timeout(60):
        await cluster.started.wait()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        code = await running

    assert code == 0
    lease = cluster.api.objects["Lease", "duckmesh-system", NAME]
    assert not lease["spec"].get("holderIdentity")
    assert cluster.asked["clusterwide"] is True
    assert cluster.asked["standalone"] is True


async def test_a_watch_that_ends_ends_the_process(cluster: Cluster, secrets_dir: Path) -> None:
    cluster.end.set()

    async with asyncio.timeout(60):
        assert await process.run(settings(secrets_dir)) == 1


async def test_a_namespaced_operator_hears_its_canary(cluster: Cluster, secrets_dir: Path) -> None:
    cluster.end.set()

    async with asyncio.timeout(60):
        await process.run(settings(secrets_dir, watch_namespaces=("team",)))

    assert cluster.asked["clusterwide"] is False
    assert cluster.asked["namespaces"] == ["duckmesh-system", "team"]


def make_operator(cluster: Cluster, secrets_dir: Path) -> process.Operator:
    return process.Operator(cluster.api, settings(secrets_dir), on_lost=lambda: None)


async def test_an_event_is_news_once(cluster: Cluster, secrets_dir: Path) -> None:
    operator = make_operator(cluster, secrets_dir)
    obj = cluster.api.add(tenant_object())

    operator._notice(obj, False)
    assert operator._queue.depth == 1
    taken = operator._queue._schedule.take(asyncio.get_running_loop().time())
    assert taken == process.Key(TENANT.kind, "team", "acme")
    operator._queue._schedule.done(taken, 0)

    operator._notice(obj, False)
    assert operator._queue.depth == 0


async def test_at_start_what_changed_meanwhile_is_due_at_once_and_the_rest_soon(
    cluster: Cluster, secrets_dir: Path
) -> None:
    cluster.api.add(tenant_object(name="new"))
    cluster.api.add(tenant_object(name="known") | {"status": {"observedGeneration": 1}})
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    cluster.api.add(tenant_object(name="going", **going) | {"status": {"observedGeneration": 1}})
    operator = make_operator(cluster, secrets_dir)
    started = asyncio.get_running_loop().time()

    await operator._cache.load()
    spread_s = await operator._add_all()

    assert spread_s == 3 / process.START_LOOKS_A_SECOND
    due = {key.name: at - started for key, at in operator._queue._schedule._due.items()}
    assert set(due) == {"new", "known", "going"}
    assert sorted(due, key=due.__getitem__)[-1] == "known"
    took = asyncio.get_running_loop().time() - started
    assert due["known"] <= spread_s + took


@pytest.mark.parametrize("stuck", [False, True])
async def test_the_watch_begins_after_a_look_at_every_tenant_or_some_time(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    # With a catalog that hangs no look ends.
    monkeypatch.setattr(process, "START_LOOKS_A_SECOND", 100 if stuck else 0.01)
    monkeypatch.setattr(process, "START_SPREAD_S", 60.0)
    names = {"a", "b", "c"}
    for name in names:
        cluster.api.add(tenant_object(name=name))
    operator = make_operator(cluster, secrets_dir)
    looked: set[str] = set()

    async def look(key: process.Key) -> None:
        if stuck:
            await asyncio.Event().wait()
        assert not cluster.started.is_set()
        looked.add(key.name)

    operator._work[TENANT.kind] = look
    leading = asyncio.create_task(operator.run(lambda: None))
    async with asyncio.timeout(60):
        await cluster.started.wait()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading

    assert looked == (set() if stuck else names)


async def test_a_leader_that_is_told_to_end_with_its_last_first_look_ends(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that comes together with what was waited for must not get lost."""
    monkeypatch.setattr(process, "START_LOOKS_A_SECOND", 0.01)
    monkeypatch.setattr(process, "START_SPREAD_S", 60.0)
    cluster.api.add(tenant_object())
    operator = make_operator(cluster, secrets_dir)

    async def look(_: process.Key) -> None:
        leading.cancel()

    operator._work[TENANT.kind] = look
    leading = asyncio.create_task(operator.run(lambda: None))
    done, _ = await asyncio.wait({leading}, timeout=30)

    cluster.end.set()
    assert done
    assert leading.cancelled()


async def test_a_leader_whose_queue_does_not_move_is_not_ready(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make_operator(cluster, secrets_dir)
    operator._leading = True
    assert operator.ready() == ["the watch is starting"]
    operator._watching.set()
    assert operator.ready() == []

    operator._queue.add_after(process.Key(TENANT.kind, "team", "acme"), -process.LATE_S - 10)

    assert "reconciles wait for" in operator.ready()[0]
    assert operator.alive() == []


async def test_a_leader_that_may_not_list_a_kind_is_not_ready_and_says_which(
    cluster: Cluster, secrets_dir: Path
) -> None:
    operator = make_operator(cluster, secrets_dir)
    operator._leading = True
    operator._watching.set()
    cluster.api.failing["list"] = Forbidden("no")

    await operator._audit.look(TENANT)

    assert operator.ready() == ["the API server refuses to list Tenant"]
    assert operator.alive() == []  # a restart gives no right back


async def test_a_standby_has_read_the_cluster_before_it_leads(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RETRY_S", 0)
    cluster.api.add(tenant_object())
    operator = make_operator(cluster, secrets_dir)
    loaded, load = asyncio.Event(), operator._cache.load
    cluster.api.failing["list Service"] = Unavailable("the first reading fails")
    monkeypatch.setattr(process, "WARM_EVERY_S", 0)

    async def tell() -> None:
        await load()
        loaded.set()

    monkeypatch.setattr(operator._cache, "load", tell)
    monkeypatch.setattr(operator.lease, "acquire", asyncio.Event().wait)
    waiting = asyncio.create_task(operator.run(lambda: None))
    async with asyncio.timeout(30):
        await loaded.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert operator._cache.store.places("Tenant", None)
    assert operator._queue.depth == 0


async def test_a_leader_that_cannot_read_the_cluster_yet_asks_again(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "LOAD_AGAIN_S", 0)
    cluster.api.add(tenant_object())
    cluster.api.failing["list Tenant"] = Unavailable("a page took too long")
    operator = make_operator(cluster, secrets_dir)

    leading = asyncio.create_task(operator.run(lambda: None))
    async with asyncio.timeout(60):
        await cluster.started.wait()
    assert operator._cache.store.places("Tenant", None)
    assert not leading.done()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading


async def test_the_audit_begins_when_the_watch_has(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = make_operator(cluster, secrets_dir)
    begun, audited = asyncio.Event(), asyncio.Event()
    watching_when_audited: list[bool] = []

    async def slow(*, ready_flag: asyncio.Event, **_: Any) -> None:
        begun.set()
        for _turn in range(100):  # whatever else was started has had its turn
            await asyncio.sleep(0)
        ready_flag.set()
        await cluster.end.wait()

    async def audit() -> None:
        watching_when_audited.append(operator._watching.is_set())
        audited.set()

    monkeypatch.setattr(process.kopf, "operator", slow)
    monkeypatch.setattr(operator._audit, "run", audit)
    leading = asyncio.create_task(operator.run(lambda: None))
    async with asyncio.timeout(60):
        await begun.wait()
        await audited.wait()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading

    assert watching_when_audited == [True]


async def test_each_tenant_is_come_back_to_soon_after_the_start(
    cluster: Cluster, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_SPREAD_S", 0)
    for name in "abc":
        cluster.api.add(tenant_object(name=name))
    operator = make_operator(cluster, secrets_dir)
    await operator._cache.load()
    started = asyncio.get_running_loop().time()

    await operator._look_at_secrets()

    due = {key.name: at - started for key, at in operator._queue._schedule._due.items()}
    assert set(due) == set("abc")
    took = asyncio.get_running_loop().time() - started
    assert max(due.values()) <= process.SECRETS_SPREAD_S + took
    # All that a reconcile reads then: what the API server bears is spread.
    assert 1000 * 2 / process.SECRETS_SPREAD_S < kube.REQUESTS_PER_SECOND


@pytest.mark.parametrize(("namespace", "queued"), [("team", 1), ("duckmesh-system", 0)])
async def test_a_namespaced_operator_leaves_other_namespaces_alone(
    cluster: Cluster, secrets_dir: Path, namespace: str, queued: int
) -> None:
    told = settings(secrets_dir, watch_namespaces=("team",))
    operator = process.Operator(cluster.api, told, on_lost=lambda: None)

    operator._add(process.Key(TENANT.kind, namespace, "acme"))

    assert operator._queue.depth == queued


async def test_a_standby_is_ready_and_ends_on_a_signal(cluster: Cluster, secrets_dir: Path) -> None:
    cluster.api.failing["get Lease"] = Unavailable("no")
    operator = process.Operator(cluster.api, settings(secrets_dir), on_lost=lambda: None)
    waiting = asyncio.create_task(operator.run(lambda: None))
    await asyncio.sleep(0)

    assert operator.ready() == []
    assert operator.alive() == []
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_older_tenants_hold_their_prefixes_from_the_start(
    cluster: Cluster, secrets_dir: Path
) -> None:
    cluster.api.add(tenant_object())
    operator = process.Operator(cluster.api, settings(secrets_dir), on_lost=lambda: None)
    await operator._cache.load()
    await operator._load_prefixes()
    late = tenant_object(
        {"storage": {"prefix": "team"}},
        name="late",
        uid="11111111-0000-4000-8000-000000000000",
        creationTimestamp="2026-02-01T00:00:00Z",
    )
    operator._notice(cluster.api.add(late), False)

    # Its catalog does not answer, but the prefix is refused before it is asked.
    with pytest.raises(Unavailable):
        await operator._tenants.reconcile(process.Key(TENANT.kind, "team", "late"))

    status = cluster.api.objects["Tenant", "team", "late"]["status"]
    conditions = {one["type"]: one["reason"] for one in status["conditions"]}
    assert conditions["SpecValid"] == "PrefixInUse"


def test_bad_settings_are_told_and_end_the_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUCKMESH_LOG_LEVEL", "loud")

    assert process.main([]) == 2
    assert "DUCKMESH_OPERATOR_CONFIG: missing" in capsys.readouterr().err


def test_a_cluster_that_cannot_be_reached_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, secrets_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    monkeypatch.setattr(process, "from_env", lambda _: settings(secrets_dir))
    try:
        assert process.main([]) == 1
    finally:
        logging.getLogger().handlers[:] = before
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["event"] == "cannot start"


def test_a_log_line_is_one_json_object_with_the_records_keys() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "reconcile failed", (), None)
    record.tenant = "team/acme"

    line = json.loads(log.JsonFormatter().format(record))

    assert (line["event"], line["level"], line["tenant"]) == (
        "reconcile failed",
        "warning",
        "team/acme",
    )
    assert "tenant='team/acme'" in log.TextFormatter().format(record)
