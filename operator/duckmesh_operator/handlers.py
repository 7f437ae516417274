"""kopf's side of the operator: every watch event is passed on at once, nothing else happens here.

kopf is the watch engine only: no change handlers, no daemons, no timers, so that it writes no annotation, finalizer or
status anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from duckmesh_operator.manifest import Json
from duckmesh_operator.names import CHILDREN, COMPACTOR, LABEL_MANAGED_BY, MANAGED_BY, TENANT, Kind

_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


def build_registry(notice: Callable[[Json, bool], None]) -> kopf.OperatorRegistry:
    """Handlers for all watched kinds.

    Args:
        notice: Takes the object, with its kind, and whether it is gone; must not wait for anything.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(
            settings=settings
        )

    def watch(kind: Kind) -> None:
        @kopf.on.event(*_resource(kind), id=kind.plural, registry=registry)
        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            about = {"apiVersion": kind.api_version, "kind": kind.kind}
            notice({**event["object"], **about}, event["type"] == "DELETED")

    for kind in (TENANT, COMPACTOR, *CHILDREN):
        watch(kind)
    return registry


def build_settings() -> kopf.OperatorSettings:
    """Kopf's settings: streams that end and start again, no retries of minutes, no posts, no scans."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True  # leadership is our Lease's
    settings.posting.enabled = False
    settings.scanning.disabled = True  # needs rights on all namespaces and CRDs
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    # What a list brings waits in memory, as objects of 50 KB, until a worker of kopf's takes it: with pages of 500 and 50
    # workers a start with 1,000 Tenants took 80 MB more, for good. Our handlers only pass on: nothing is to be limited.
    settings.watching.chunk_size = 100
    settings.queueing.worker_limit = None
    # A worker is an object's until it was idle for so long.
    settings.queueing.idle_timeout = 0.1
    settings.queueing.error_delays = (0.5, 1, 2, 5, 10, 30)
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.networking.error_backoffs = (0.5, 1, 2, 5)
    settings.process.ultimate_exiting_timeout = 20
    for kind in CHILDREN:
        settings.watching.label_selectors[_pair(kind)] = _SELECTOR
    return settings


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


def _pair(kind: Kind) -> tuple[str, str]:
    group, _, _ = _resource(kind)
    return group, kind.plural
