"""The migrate Job: makes or upgrades a Tenant's lake; runs in the operator's own namespace."""

from __future__ import annotations

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.names import (
    JOB,
    LABEL_TENANT_NAMESPACE,
    MIGRATION,
    labels,
    migrate_job,
)
from duckmesh_operator.specs.context import Context
from duckmesh_operator.specs.pod import build_migrate_template


def build_migrate_job(context: Context) -> Manifest:
    """The Job that brings the lake to the current migration.

    It has no owner: owners do not reach over namespaces. It removes itself ten minutes after its end.
    """
    meta = context.tenant.meta
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {
            "name": migrate_job(meta.lake, MIGRATION),
            "namespace": context.operator_namespace,
            "labels": labels(meta.name, meta.uid, "migrate")
            | {LABEL_TENANT_NAMESPACE: meta.namespace},
        },
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 600,
            "ttlSecondsAfterFinished": 600,
            "template": build_migrate_template(context),
        },
    }
