"""The Deployments of a Tenant, around a pod template that comes from a ControllerRevision."""

from __future__ import annotations

from typing import Final

from duckmesh_operator.manifest import Manifest, object_at
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import DEPLOYMENT, child, pod_selector
from duckmesh_operator.specs.context import build_child
from duckmesh_operator.specs.revision import Revision

#: Runtime version of the pod template; not in the template, since what is there rolls pods.
LABEL_VERSION: Final = "app.kubernetes.io/version"
#: The ControllerRevision of the pod template: it is found by this name when it lost its labels.
ANNOTATION_REVISION: Final = "duckmesh.io/revision"


def build_deployment(
    tenant: Tenant, component: str, *, replicas: int, revision: Revision
) -> Manifest:
    """`<tenant>-<component>`, with the revision's template as it is."""
    meta = tenant.meta
    manifest = build_child(DEPLOYMENT, tenant, child(meta.name, component), component)
    metadata = object_at(manifest, "metadata")
    metadata["labels"] = object_at(metadata, "labels") | {LABEL_VERSION: revision.version}
    metadata["annotations"] = {ANNOTATION_REVISION: revision.name}
    manifest["metadata"] = metadata
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
        "template": revision.template,
    }
    return manifest
