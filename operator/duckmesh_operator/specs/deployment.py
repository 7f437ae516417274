"""The Deployments of a Tenant, around a pod template that comes from a ControllerRevision."""

from __future__ import annotations

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import DEPLOYMENT, child, pod_selector
from duckmesh_operator.specs.context import build_child


def build_deployment(
    tenant: Tenant, component: str, *, replicas: int, template: Manifest
) -> Manifest:
    """`<tenant>-<component>`; `template` is passed on as it is."""
    meta = tenant.meta
    manifest = build_child(DEPLOYMENT, tenant, child(meta.name, component), component)
    manifest["spec"] = {
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 300,
        "selector": {"matchLabels": pod_selector(meta.name, meta.uid, component)},
        # Surge: the new pod answers before an old one goes, also where there is only one.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": template,
    }
    return manifest
