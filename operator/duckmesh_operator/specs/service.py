"""The Services of a Tenant."""

from __future__ import annotations

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import API_PORT, METRICS_PORT, SERVICE, child, pod_selector
from duckmesh_operator.specs.context import build_child


def build_service(tenant: Tenant, component: str) -> Manifest:
    """`<tenant>-<component>`: the API, and metrics for scrapers that go by Service."""
    meta = tenant.meta
    manifest = build_child(SERVICE, tenant, child(meta.name, component), component)
    manifest["spec"] = {
        "type": "ClusterIP",
        "selector": pod_selector(meta.name, meta.uid, component),
        "ports": [
            {"name": "api", "port": API_PORT, "targetPort": "api", "protocol": "TCP"},
            {"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics", "protocol": "TCP"},
        ],
    }
    return manifest


def endpoint(tenant: Tenant, component: str) -> str:
    """Base URL inside the cluster."""
    return f"http://{child(tenant.meta.name, component)}.{tenant.meta.namespace}.svc:{API_PORT}"
