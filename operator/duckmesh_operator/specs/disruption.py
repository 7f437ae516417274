"""PodDisruptionBudgets: node drains take one pod of a worker at a time."""

from __future__ import annotations

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import DISRUPTION_BUDGET, child, pod_selector
from duckmesh_operator.specs.context import build_child


def build_disruption_budget(tenant: Tenant, component: str) -> Manifest:
    """`<tenant>-<component>`; of use only where there is more than one pod."""
    meta = tenant.meta
    manifest = build_child(DISRUPTION_BUDGET, tenant, child(meta.name, component), component)
    manifest["spec"] = {
        "maxUnavailable": 1,
        # A pod that is not ready serves no one: it may go.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": pod_selector(meta.name, meta.uid, component)},
    }
    return manifest
