"""Secrets of a Tenant follow what the platform rotates, and a missing one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from duckmesh_operator.errors import SecretMissing, Unavailable
from duckmesh_operator.names import DEPLOYMENT, MIGRATION, SECRET
from tests.fakes.catalog import FakeCatalog
from tests.tenants import UID, make_settings, tenant_object
from tests.unit.operator.test_reconcile_tenant import LAKE, URL, World


@pytest.fixture
def world(secrets_dir: Path) -> World:
    made = World(settings=make_settings(secrets_dir))
    made.api.add(tenant_object())
    return made


async def test_a_catalog_that_moved_is_told_to_the_workers_under_the_same_passwords(
    world: World,
) -> None:
    await world.settle()
    parts = ("writer", "maintenance", "reader")
    before = {part: world.secret(part, "dsn") for part in parts}
    template, logins = world.template("ingest"), list(world.catalog.writes)

    world.catalog.control_dsn = "postgresql://control:new@other.db:5433/duckmesh?sslmode=require"
    await world.run()

    for part in parts:
        head = before[part].rpartition("@")[0]
        assert world.secret(part, "dsn") == f"{head}@other.db:5433/duckmesh?sslmode=require"
    assert world.catalog.writes == logins
    assert world.template("ingest") == template


async def test_another_login_of_the_operator_s_own_changes_no_secret_of_a_tenant(
    world: World,
) -> None:
    await world.settle()
    before = list(world.api.writes)

    world.catalog.control_dsn = "postgresql://operator2:rotated@postgres.db:5432/duckmesh"
    await world.run()

    assert world.api.writes == before


async def test_a_new_password_costs_no_other_login_its_own(world: World) -> None:
    await world.settle()
    others = {part: world.secret(part, "dsn") for part in ("maintenance", "reader")}
    before = world.secret("writer", "dsn")
    world.api.remove(SECRET, "team", "acme-writer")

    await world.run()

    assert world.secret("writer", "dsn") != before
    assert world.catalog.logins[f"{LAKE}_w"].password in world.secret("writer", "dsn")
    assert {part: world.secret(part, "dsn") for part in others} == others


async def test_a_lost_key_of_the_store_is_named_and_stops_no_worker(
    world: World, secrets_dir: Path
) -> None:
    await world.settle()
    (secrets_dir / "store" / "access-key-id").unlink()

    await world.run()

    condition = world.condition("StorageReachable")
    assert (condition["status"], condition["reason"]) == ("False", "SecretMissing")
    assert "store default lacks access-key-id" in condition["message"]
    assert world.condition("Ready")["status"] == "True"
    assert world.has(SECRET, "acme-store")

    (secrets_dir / "store" / "access-key-id").write_text("back")
    await world.run()
    assert world.secret("store", "access-key-id") == "back"
    assert world.condition("StorageReachable")["reason"] == "NotReported"


async def test_a_new_tenant_waits_for_the_key_of_its_store(world: World, secrets_dir: Path) -> None:
    key = (secrets_dir / "store" / "access-key-id").read_text()
    (secrets_dir / "store" / "access-key-id").write_text("")
    world.catalog.install(UID, "team/acme", URL, MIGRATION)

    await world.run()

    assert world.condition("Ready")["reason"] == "SecretMissing"
    assert world.condition("Reconciling")["reason"] == "SecretMissing"
    assert world.has(SECRET, "acme-writer")
    assert not world.has(DEPLOYMENT, "acme-ingest")

    (secrets_dir / "store" / "access-key-id").write_text(key)
    await world.run()
    assert world.has(DEPLOYMENT, "acme-ingest")


class Unmounted(FakeCatalog):
    """A catalog whose Secret is not there."""

    @property
    def ports(self) -> tuple[int, ...]:
        raise SecretMissing("the catalog's Secret has no control-dsn, or it is not mounted")

    @ports.setter
    def ports(self, _: tuple[int, ...]) -> None:
        return


async def test_a_lost_secret_of_the_catalog_is_named_and_leaves_the_workers_alone(
    world: World,
) -> None:
    await world.settle()
    before = world.template("ingest")
    world.catalog = Unmounted()
    world.restart()

    with pytest.raises(SecretMissing):
        await world.run()

    condition = world.condition("CatalogReachable")
    assert (condition["status"], condition["reason"]) == ("False", "SecretMissing")
    assert "catalog default has no control-dsn" in condition["message"]
    assert world.condition("Ready")["reason"] == "SecretMissing"
    assert world.template("ingest") == before
    assert world.status()["workers"] == "3/3"


async def test_a_run_that_the_api_server_ends_is_not_settled(world: World) -> None:
    await world.settle()
    world.change({"ingest": {"batch": {"maxRows": 10}}})
    world.api.failing["apply ControllerRevision"] = Unavailable("PATCH: 503")

    with pytest.raises(Unavailable):
        await world.run()

    assert world.status()["observedGeneration"] == 2
    assert world.condition("Progressing")["reason"] == "Retrying"
    assert world.condition("Reconciling")["status"] == "True"

    await world.run()
    assert world.condition("Progressing")["reason"] == "RollingOut"
