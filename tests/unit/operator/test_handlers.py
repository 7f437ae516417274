from __future__ import annotations

from typing import Any

import kopf
import pytest

from duckmesh_operator import handlers
from duckmesh_operator.canary import COMPONENT
from duckmesh_operator.names import WATCHED, labels
from duckmesh_operator.queue import Key
from tests.tenants import UID


class Taken:
    """What the handlers passed on."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.songs: list[Any] = []
        self.events = 0
        self.registry = handlers.build_registry(
            add=self.keys.append, noticed=self._noticed, canary=self.songs.append
        )

    def _noticed(self) -> None:
        self.events += 1

    async def send(self, plural: str, obj: dict[str, Any]) -> object:
        (handler,) = [one for one in self._watching() if one.id == plural]
        meta = obj["metadata"]
        return await handler.fn(
            namespace=meta["namespace"],
            name=meta["name"],
            labels=meta.get("labels", {}),
            body=kopf.Body(obj),
            retry=0,
        )

    def _watching(self) -> list[Any]:
        return list(self.registry._watching._handlers)


def child(**found: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": "x", "labels": found}}


@pytest.mark.parametrize(
    ("plural", "obj", "key"),
    [
        ("tenants", child(), Key("Tenant", "team", "x")),
        ("compactors", child(), Key("Compactor", "team", "x")),
        ("services", child(**labels("acme", UID, "ingest")), Key("Tenant", "team", "acme")),
        ("deployments", child(**labels("acme", UID, "query")), Key("Tenant", "team", "acme")),
    ],
)
async def test_an_event_becomes_the_key_of_its_owner(
    plural: str, obj: dict[str, Any], key: Key
) -> None:
    taken = Taken()

    assert await taken.send(plural, obj) is None
    assert taken.keys == [key]
    assert taken.events == 1


async def test_the_canarys_object_goes_to_the_canary() -> None:
    taken = Taken()

    await taken.send("networkpolicies", child(**{"app.kubernetes.io/component": COMPONENT}))
    await taken.send("networkpolicies", child(**labels("acme", UID, "ingest")))

    assert len(taken.songs) == 1
    assert taken.keys == [Key("Tenant", "team", "acme")]


async def test_an_object_without_a_tenant_is_nobodys() -> None:
    taken = Taken()

    await taken.send("services", child())

    assert taken.keys == []


def test_nothing_makes_kopf_write_to_objects() -> None:
    registry = Taken().registry

    for part in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(part.get_all_handlers()) == []
    settings = handlers.build_settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_only_our_children_are_watched() -> None:
    selectors = handlers.build_settings().watching.label_selectors

    assert len(selectors) == len(WATCHED)
    assert set(selectors.values()) == {"app.kubernetes.io/managed-by=duckmesh-operator"}
