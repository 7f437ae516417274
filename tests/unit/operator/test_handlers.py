from __future__ import annotations

from typing import Any

import pytest

from duckmesh_operator import handlers
from duckmesh_operator.names import CHILDREN, COMPACTOR, TENANT, Kind


class Taken:
    """What the handlers passed on."""

    def __init__(self) -> None:
        self.noticed: list[tuple[Any, bool]] = []
        self.registry = handlers.build_registry(lambda obj, gone: self.noticed.append((obj, gone)))

    async def send(self, kind: Kind, event: str | None, obj: dict[str, Any]) -> object:
        (handler,) = [one for one in self.registry._watching._handlers if one.id == kind.plural]
        return await handler.fn(event={"type": event, "object": obj}, retry=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [TENANT, COMPACTOR, *CHILDREN], ids=lambda kind: kind.plural)
@pytest.mark.parametrize(
    ("event", "gone"), [(None, False), ("ADDED", False), ("MODIFIED", False), ("DELETED", True)]
)
async def test_an_event_is_passed_on_with_its_kind_and_whether_the_object_is_gone(
    kind: Kind, event: str | None, gone: bool
) -> None:
    taken = Taken()
    obj = {"metadata": {"namespace": "team", "name": "x"}}

    assert await taken.send(kind, event, obj) is None

    about = {"apiVersion": kind.api_version, "kind": kind.kind}
    assert taken.noticed == [(obj | about, gone)]


def test_nothing_makes_kopf_write_to_objects() -> None:
    registry = Taken().registry

    for part in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(part.get_all_handlers()) == []
    settings = handlers.build_settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_no_object_of_a_list_waits_in_memory_for_a_worker() -> None:
    settings = handlers.build_settings()

    assert settings.queueing.worker_limit is None
    assert settings.queueing.idle_timeout <= 1
    assert settings.watching.chunk_size is not None
    assert settings.watching.chunk_size <= 100


def test_only_our_children_are_watched() -> None:
    selectors = handlers.build_settings().watching.label_selectors

    assert len(selectors) == len(CHILDREN)
    assert set(selectors.values()) == {"app.kubernetes.io/managed-by=duckmesh-operator"}
