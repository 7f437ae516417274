"""NetworkPolicies of a Tenant: nothing but name resolution, the catalog, the store, and the ports it serves.

NetworkPolicy knows no host names: places are given as CIDRs or selectors in the configuration. Without them the ports
are open anywhere, and a condition says so. Each policy selects one worker's pods, never the whole namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.names import (
    API_PORT,
    COMPACT,
    METRICS_PORT,
    NETWORK_POLICY,
    child,
    pod_selector,
)
from duckmesh_operator.settings import Egress
from duckmesh_operator.specs.context import Context, build_child

#: DNS as Services have it, and as the pods of OpenShift's DNS do: some networks judge after the Service's address.
_NAMES: Final = (53, 5353)


def build_network_policy(context: Context, component: str) -> Manifest:
    """`<tenant>-<component>`; for the pods of `ingest`, `query` or a Compactor's Jobs, which serve nothing."""
    tenant = context.tenant
    name = child(tenant.meta.name, component)
    manifest = build_child(NETWORK_POLICY, tenant, name, component)
    manifest["spec"] = {
        "podSelector": {"matchLabels": _pods(context, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [] if component == COMPACT else [{"ports": _ports((API_PORT, METRICS_PORT))}],
        "egress": [
            {"ports": [*_ports(_NAMES, "UDP"), *_ports(_NAMES)]},
            _place(context.catalog.egress, context.postgres_ports),
            _place(context.store.egress, context.store.ports),
            *([_siblings(context)] if component == "ingest" else []),
        ],
    }
    return manifest


def is_restricted(context: Context) -> bool:
    """Whether both the catalog's and the store's place are known."""
    return context.catalog.egress.restricted and context.store.egress.restricted


def _siblings(context: Context) -> Manifest:
    """Ingest passes queries on and nudges the committer."""
    peers = [{"podSelector": {"matchLabels": _pods(context, part)}} for part in ("ingest", "query")]
    return {"to": peers, "ports": _ports((API_PORT,))}


def _pods(context: Context, component: str) -> dict[str, str]:
    meta = context.tenant.meta
    return pod_selector(meta.name, meta.uid, component)


def _place(egress: Egress, ports: Sequence[int]) -> Manifest:
    peers: list[Mapping[str, object]] = [{"ipBlock": {"cidr": cidr}} for cidr in egress.cidrs]
    peers += [dict(peer) for peer in egress.peers]
    rule: Manifest = {"ports": _ports(ports)}
    return {"to": peers} | rule if peers else rule


def _ports(ports: Sequence[int], protocol: str = "TCP") -> list[Manifest]:
    return [{"port": port, "protocol": protocol} for port in ports]
