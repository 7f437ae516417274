"""What is looked at seldom: Secrets, logins and the registry, when something changed or after a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator.catalog import Catalog, Lake
from duckmesh_operator.errors import Unavailable
from duckmesh_operator.lag import LagReport
from duckmesh_operator.names import MIGRATION, SECRET, labels
from duckmesh_operator.reconcile.sparing import (
    CHECK_S,
    CHECK_UNREADY_S,
    Looks,
    SparingCatalog,
    SparingCredentials,
)
from duckmesh_operator.specs.context import build_context
from duckmesh_operator.specs.secret import read_secret
from tests.fakes.catalog import FakeCatalog
from tests.fakes.kube import FakeApi
from tests.tenants import UID, make_settings, make_tenant, tenant_object
from tests.unit.operator.test_lag import report

LAKE = "lake_0123456789ab4cde"
URL = "s3://lakes/team/acme/"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Credentials of one Tenant in a cluster in memory."""

    def __init__(self, secrets_dir: Path) -> None:
        self.settings = make_settings(secrets_dir)
        self.store = secrets_dir / "store" / "secret-access-key"
        self.api = FakeApi()
        self.api.add(tenant_object())
        self.catalog = FakeCatalog()
        self.clock = Clock()
        self.restart()

    def restart(self, spread: Callable[[], float] = lambda: 0.5) -> None:
        """Another process over the same cluster."""
        self.credentials = SparingCredentials(self.api, clock=self.clock, spread=spread)

    async def looks(self, **meta: Any) -> bool:
        """Whether one reconcile reads the Secrets."""
        self.api.calls.clear()
        context = build_context(
            make_tenant(**meta), self.settings, pinned_version="", postgres_ports=()
        )
        await self.credentials.ensure(context, self.catalog)  # type: ignore[arg-type]
        return "get Secret" in self.api.calls

    def secret(self, part: str) -> Any:
        return self.api.objects["Secret", "team", f"acme-{part}"]

    def set_status(self, generation: int, ready: str) -> None:
        self.api.objects["Tenant", "team", "acme"]["status"] = {
            "observedGeneration": generation,
            "conditions": [{"type": "Ready", "status": ready}],
        }


@pytest.fixture
def bench(secrets_dir: Path) -> Bench:
    return Bench(secrets_dir)


async def test_secrets_that_were_well_are_not_read_again_at_once(bench: Bench) -> None:
    assert await bench.looks()
    assert not await bench.looks()


@pytest.mark.parametrize(("ready", "after_s"), [("True", CHECK_S), ("False", CHECK_UNREADY_S)])
async def test_secrets_are_read_again_after_a_time_and_then_repaired(
    bench: Bench, ready: str, after_s: float
) -> None:
    bench.set_status(1, ready)
    await bench.looks()
    bench.api.remove(SECRET, "team", "acme-writer")
    bench.clock.now = after_s - 1
    assert not await bench.looks()

    bench.clock.now = after_s
    assert await bench.looks()

    assert ("Secret", "team", "acme-writer") in bench.api.objects


async def test_a_changed_spec_is_reason_to_look(bench: Bench) -> None:
    await bench.looks()

    assert await bench.looks(generation=2)


async def test_a_tenant_that_stops_being_ready_is_reason_to_look(bench: Bench) -> None:
    bench.set_status(1, "True")
    await bench.looks()
    bench.set_status(1, "False")

    assert await bench.looks()


async def test_a_rotated_store_key_is_reason_to_look_and_reaches_the_tenant(bench: Bench) -> None:
    await bench.looks()
    before = bench.api.objects["Secret", "team", "acme-store"]["data"]
    bench.store.write_text("rotated")

    assert await bench.looks()

    assert bench.api.objects["Secret", "team", "acme-store"]["data"] != before


async def test_a_rotated_catalog_login_is_reason_to_look(bench: Bench) -> None:
    await bench.looks()
    bench.catalog.control_dsn = "postgresql://control:rotated@postgres.db:5432/duckmesh"

    assert await bench.looks()


async def test_a_failed_look_does_not_count(bench: Bench) -> None:
    bench.catalog.failing = Unavailable("down")
    with pytest.raises(Unavailable):
        await bench.looks()
    bench.catalog.failing = None

    assert await bench.looks()


async def test_a_taken_name_is_looked_at_each_time(bench: Bench) -> None:
    bench.api.add(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "acme-writer", "namespace": "team"},
            "data": {},
        }
    )

    assert await bench.looks()
    assert await bench.looks()


# -------------------------------------------------------------------- a fresh process


def add_worker(bench: Bench) -> None:
    meta = {"name": "acme-ingest", "namespace": "team", "labels": labels("acme", UID, "ingest")}
    template = {"spec": {"containers": [{"name": "x"}]}}
    bench.api.add(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {"replicas": 1, "template": template},
        }
    )


@pytest.fixture
async def made(bench: Bench) -> Bench:
    """A Tenant as a predecessor left it, and a process that has not met it yet."""
    add_worker(bench)
    await bench.looks()
    bench.set_status(1, "True")
    bench.restart(spread=lambda: 0.25)
    return bench


async def test_a_fresh_process_trusts_its_predecessor_once(made: Bench) -> None:
    assert not await made.looks()

    assert await made.looks()
    assert made.api.calls.count("get Secret") == 2, "enough to see that the Tenant follows"


async def test_a_fresh_process_spreads_its_first_whole_looks(made: Bench) -> None:
    for _ in range(2):
        await made.looks()

    made.clock.now = CHECK_S * 0.75 - 1
    assert not await made.looks()
    made.clock.now = CHECK_S * 0.75
    assert await made.looks()
    assert made.api.calls.count("get Secret") == 6


async def test_a_store_key_that_was_rotated_while_no_operator_looked_reaches_the_tenant(
    made: Bench,
) -> None:
    made.store.write_text("rotated")

    for _ in range(2):
        await made.looks()

    assert read_secret(made.secret("store"), "secret-access-key") == "rotated"


async def test_a_catalog_that_moved_while_no_operator_looked_reaches_the_tenant(
    made: Bench,
) -> None:
    made.catalog.control_dsn = "postgresql://control:x@elsewhere.db:5432/duckmesh"

    for _ in range(2):
        await made.looks()

    for part in ("writer", "maintenance", "reader"):
        assert "@elsewhere.db:5432/" in read_secret(made.secret(part), "dsn")


async def test_a_rotation_that_a_predecessor_did_not_bring_to_its_end_is_brought_there(
    made: Bench,
) -> None:
    made.catalog.control_dsn = "postgresql://control:x@elsewhere.db:5432/duckmesh"
    await made.looks()
    apply = made.api.apply

    async def half(manifest: Any, *, subresource: str = "") -> Any:
        if manifest["metadata"]["name"] == "acme-maintenance":
            raise Unavailable("the node is gone")
        return await apply(manifest, subresource=subresource)

    made.api.apply = half  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await made.looks()
    made.api.apply = apply  # type: ignore[method-assign]
    made.restart()
    for _ in range(2):
        await made.looks()

    assert "@elsewhere.db:5432/" in read_secret(made.secret("reader"), "dsn")


async def test_a_secret_that_was_deleted_while_no_operator_looked_is_made_again(
    made: Bench,
) -> None:
    made.api.remove(SECRET, "team", "acme-store")

    for _ in range(2):
        await made.looks()

    assert made.secret("store")


async def test_a_store_key_that_is_missing_is_no_reason_to_look_at_all(made: Bench) -> None:
    made.store.unlink()

    for _ in range(2):
        await made.looks()

    assert made.api.calls.count("get Secret") == 2


async def test_a_tenant_that_is_not_ready_is_looked_at_as_a_whole(made: Bench) -> None:
    made.set_status(1, "False")
    made.api.remove(SECRET, "team", "acme-admin-key")

    for _ in range(2):
        await made.looks()

    assert made.secret("admin-key")


async def test_a_spec_that_changes_between_trust_and_check_is_reason_to_look(made: Bench) -> None:
    await made.looks()

    await made.looks(generation=2)

    assert made.api.calls.count("get Secret") == 6


async def test_trust_is_given_once_however_long_ago(made: Bench) -> None:
    """With an hour between two resyncs each look is forgotten before the next."""
    for _ in range(2):
        await made.looks()
    made.api.remove(SECRET, "team", "acme-admin-key")

    for number in range(3):
        made.clock.now += 3600
        made.credentials._looks.keep(f"another {number}", "", True)
        await made.looks()

    assert made.secret("admin-key")


@pytest.mark.parametrize(
    ("worker", "generation"), [(False, 1), (True, 0)], ids=["no worker yet", "an older spec"]
)
async def test_a_fresh_process_looks_at_what_its_predecessor_did_not_finish(
    bench: Bench, worker: bool, generation: int
) -> None:
    if worker:
        add_worker(bench)
    bench.set_status(generation, "True")

    assert await bench.looks()


def test_a_tenant_that_is_not_ready_is_looked_at_with_each_resync(secrets_dir: Path) -> None:
    assert make_settings(secrets_dir).resync_s * 0.9 > CHECK_UNREADY_S


def test_what_nobody_asks_for_is_forgotten() -> None:
    clock = Clock()
    looks: Looks[bool] = Looks(clock)
    for number in range(1000):
        clock.now += CHECK_S
        looks.keep(str(number), None, True)

    assert len(looks._looks) <= 6


# -------------------------------------------------------------------- registry


class Registry:
    """A `SparingCatalog` over a database in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.database = FakeCatalog()
        self.asked = 0
        self.clock = Clock()
        self.catalog = SparingCatalog("default", folder, clock=self.clock)
        monkeypatch.setattr(Catalog, "lakes", self._lakes)
        monkeypatch.setattr(Catalog, "sweep", self._sweep)
        self.database.reports = [report(0, lake=LAKE)]
        self.database.install(UID, "team/acme", URL, MIGRATION)

    async def ask(self) -> list[Lake]:
        return await self.catalog.lakes(lake=LAKE, tenant="team/acme", data_url=URL)

    async def _lakes(self, **asked: Any) -> list[Lake]:
        self.asked += 1
        return await self.database.lakes(**asked)

    async def _sweep(self) -> list[LagReport]:
        return await self.database.sweep()


@pytest.fixture
async def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    made = Registry(monkeypatch, tmp_path)
    await made.catalog.sweep()
    return made


async def test_a_lake_that_each_sweep_shows_is_asked_for_once(registry: Registry) -> None:
    first = await registry.ask()
    await registry.catalog.sweep()

    assert await registry.ask() == first
    assert registry.asked == 1
    assert [one.lake for one in first] == [LAKE]


async def test_a_lake_is_asked_for_again_after_a_time(registry: Registry) -> None:
    await registry.ask()
    registry.clock.now = CHECK_S

    await registry.ask()

    assert registry.asked == 2


async def test_nothing_is_remembered_of_a_catalog_that_does_not_answer(registry: Registry) -> None:
    await registry.ask()
    registry.database.failing = Unavailable("down")
    with pytest.raises(Unavailable):
        await registry.catalog.sweep()

    with pytest.raises(Unavailable):
        await registry.ask()


@pytest.mark.parametrize(
    "reports", [[], [report(0, lake=LAKE, error="42P01")]], ids=["gone", "unreadable"]
)
async def test_a_lake_that_a_sweep_does_not_show_is_asked_for(
    registry: Registry, reports: list[LagReport]
) -> None:
    await registry.ask()
    registry.database.reports = reports
    await registry.catalog.sweep()
    registry.database.registry = []

    assert await registry.ask() == []


@pytest.mark.parametrize(
    ("uid", "tenant", "url", "migration"),
    [
        (UID, "team/acme", URL, MIGRATION - 1),
        ("99999999-0000-4000-8000-000000000000", "team/acme", URL, MIGRATION),
        ("99999999-0000-4000-8000-000000000000", "team/other", URL + "in/", MIGRATION),
    ],
    ids=["not yet migrated", "of another uid", "another lies in it"],
)
async def test_only_a_lake_that_is_well_is_remembered(
    registry: Registry, uid: str, tenant: str, url: str, migration: int
) -> None:
    registry.database.install(uid, tenant, url, migration)

    before = await registry.ask()

    assert await registry.ask() == before
    assert registry.asked == 2


async def test_a_tenant_with_another_place_is_asked_for(registry: Registry) -> None:
    await registry.ask()

    await registry.catalog.lakes(lake=LAKE, tenant="team/acme", data_url="s3://lakes/moved/")

    assert registry.asked == 2
