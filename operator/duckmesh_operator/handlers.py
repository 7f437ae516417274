"""kopf's side of the operator: every watch event becomes a key in the queue, nothing else happens here.

kopf is the watch engine only: no change handlers, no daemons, no timers, so that it writes no annotation, finalizer or
status anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from duckmesh_operator.canary import COMPONENT
from duckmesh_operator.manifest import Json
from duckmesh_operator.names import (
    COMPACTOR,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_TENANT,
    LABEL_TENANT_NAMESPACE,
    MANAGED_BY,
    NETWORK_POLICY,
    TENANT,
    WATCHED,
    Kind,
)
from duckmesh_operator.queue import Key

_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGED_BY}"


def build_registry(
    *,
    add: Callable[[Key], None],
    noticed: Callable[[], None],
    canary: Callable[[Json], None],
) -> kopf.OperatorRegistry:
    """Handlers for all watched kinds.

    Args:
        add: Takes the key of a Tenant or Compactor to look at.
        noticed: Told of every event.
        canary: Takes the canary's object.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(
            settings=settings
        )

    def watch_own(kind: Kind) -> None:
        @kopf.on.event(*_resource(kind), id=kind.plural, registry=registry)
        async def changed(namespace: str | None, name: str | None, **_: Any) -> None:
            noticed()
            add(Key(kind.kind, namespace or "", name or ""))

    def watch_children(kind: Kind) -> None:
        @kopf.on.event(*_resource(kind), id=kind.plural, registry=registry)
        async def changed(
            namespace: str | None, labels: Mapping[str, str], body: kopf.Body, **_: Any
        ) -> None:
            noticed()
            if kind is NETWORK_POLICY and labels.get(LABEL_COMPONENT) == COMPONENT:
                canary(body)
            elif tenant := labels.get(LABEL_TENANT):
                # What is about a Tenant in the operator's own namespace says where that is.
                where = labels.get(LABEL_TENANT_NAMESPACE) or namespace or ""
                add(Key(TENANT.kind, where, tenant))

    for kind in (TENANT, COMPACTOR):
        watch_own(kind)
    for kind in WATCHED:
        watch_children(kind)
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
    settings.watching.chunk_size = 500
    settings.queueing.worker_limit = 50
    settings.queueing.error_delays = (0.5, 1, 2, 5, 10, 30)
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.networking.error_backoffs = (0.5, 1, 2, 5)
    settings.process.ultimate_exiting_timeout = 20
    for kind in WATCHED:
        settings.watching.label_selectors[_pair(kind)] = _SELECTOR
    return settings


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


def _pair(kind: Kind) -> tuple[str, str]:
    group, _, _ = _resource(kind)
    return group, kind.plural
