"""Jobs: what makes, upgrades or removes a lake runs in the operator's own namespace, what maintains it beside its Tenant."""

from __future__ import annotations

import json
from typing import Final

from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import Compactor, Resources
from duckmesh_operator.names import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_GENERATION,
    ANNOTATION_INTEGRITY,
    COMPACT,
    COMPACTOR,
    JOB,
    LABEL_COMPACTOR,
    LABEL_TENANT_NAMESPACE,
    MIGRATION,
    labels,
    migrate_job,
    purge_job,
)
from duckmesh_operator.specs.context import Context
from duckmesh_operator.specs.pod import (
    build_compact_template,
    build_migrate_template,
    build_purge_template,
)

#: A run takes minutes; one that is stuck ends after this time and makes room for the next.
RUN_DEADLINE_S: Final = 2 * 3600
#: As much as the runtime takes; no run comes near.
_MOST_BYTES: Final = 2**50


def build_migrate_job(context: Context) -> Manifest:
    """The Job that brings the lake to the current migration."""
    name = migrate_job(context.tenant.meta.lake, MIGRATION)
    return _build_job(context, "migrate", name, build_migrate_template(context))


def build_purge_job(context: Context) -> Manifest:
    """The Job that removes the lake for good."""
    name = purge_job(context.tenant.meta.uid)
    return _build_job(context, "purge", name, build_purge_template(context))


def build_compact_job(
    context: Context,
    compactor: Compactor,
    *,
    name: str,
    resources: Resources,
    attempt: int,
    deep: bool,
) -> Manifest:
    """A run of a Compactor for one Tenant.

    Args:
        context: The Tenant and what its names stand for.
        compactor: Who asks for it, and owns it.
        name: Of the Job; the run's id.
        resources: Of its container, within the caps.
        attempt: Its number in a row of failures.
        deep: Check all files.
    """
    meta, owner = context.tenant.meta, compactor.meta
    return {
        "apiVersion": JOB.api_version,
        "kind": JOB.kind,
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": labels(meta.name, meta.uid, COMPACT) | {LABEL_COMPACTOR: owner.name},
            "annotations": {
                ANNOTATION_ATTEMPT: str(attempt),
                ANNOTATION_GENERATION: str(owner.generation),
                ANNOTATION_INTEGRITY: "Deep" if deep else "None",
            },
            "ownerReferences": [
                {
                    "apiVersion": COMPACTOR.api_version,
                    "kind": COMPACTOR.kind,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                }
            ],
        },
        "spec": {
            "backoffLimit": 0,  # the operator tries again, later each time
            "activeDeadlineSeconds": RUN_DEADLINE_S,
            "template": build_compact_template(
                context, resources, _run(context, compactor, name, deep=deep)
            ),
        },
    }


def _run(context: Context, compactor: Compactor, name: str, *, deep: bool) -> str:
    """What the run is to do (docs/architecture.md, Seam between operator and runtime)."""
    tenant = context.tenant
    # The stricter of the two keeps a snapshot.
    keep_for_ms = max(tenant.snapshots_keep_for_ms, compactor.expire_keep_for_ms or 0)
    keep_last = max(tenant.snapshots_keep_last, compactor.expire_keep_last or 0)
    run: Manifest = {
        "id": name,
        "targetFileSize": compactor.target_file_bytes,
        "tiers": list(compactor.target_tier_bytes),
        "maxBytesPerRun": min(compactor.target_run_bytes, _MOST_BYTES),
        "keepForS": keep_for_ms // 1000,
        "keepLast": keep_last,
        "orphans": compactor.orphan_mode,
        "orphansOlderThanS": compactor.orphan_older_than_ms // 1000,
        "integrity": "Deep" if deep else "None",
    }
    return json.dumps(run)


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
