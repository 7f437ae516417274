"""The Jobs that make or upgrade a Tenant's lake, or remove it; they run in the operator's own namespace."""

from __future__ import annotations

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.names import (
    JOB,
    LABEL_TENANT_NAMESPACE,
    MIGRATION,
    labels,
    migrate_job,
    purge_job,
)
from duckmesh_operator.specs.context import Context
from duckmesh_operator.specs.pod import build_migrate_template, build_purge_template


def build_migrate_job(context: Context) -> Manifest:
    """The Job that brings the lake to the current migration."""
    name = migrate_job(context.tenant.meta.lake, MIGRATION)
    return _build_job(context, "migrate", name, build_migrate_template(context))


def build_purge_job(context: Context) -> Manifest:
    """The Job that removes the lake for good."""
    name = purge_job(context.tenant.meta.uid)
    return _build_job(context, "purge", name, build_purge_template(context))


def _build_job(context: Context, component: str, name: str, template: Manifest) -> Manifest:
    """It has no owner: owners do not reach over namespaces. It removes itself ten minutes after its end."""
    meta = context.tenant.meta
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {
            "name": name,
            "namespace": context.operator_namespace,
            "labels": labels(meta.name, meta.uid, component)
            | {LABEL_TENANT_NAMESPACE: meta.namespace},
        },
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": 600,
            "ttlSecondsAfterFinished": 600,
            "template": template,
        },
    }
