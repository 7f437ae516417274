"""The migrate Job of a Tenant: started when the catalog says so, watched to its end, started again after a failure."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from duckmesh_operator import metrics
from duckmesh_operator.errors import NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest, list_at, text_at
from duckmesh_operator.names import JOB, LABEL_TENANT_UID
from duckmesh_operator.specs.context import Context
from duckmesh_operator.specs.job import build_migrate_job

logger = logging.getLogger(__name__)

#: Seconds between two looks at a running Job: it lies in the operator's namespace, where no watch brings it.
LOOK_S: Final = 1.0
#: A failed Job, or one that ended and left the lake unmade, is started again after this time.
RETRY_AFTER: Final = timedelta(seconds=60)


async def migrate(api: Api, context: Context, now: datetime) -> str:
    """Start, watch or restart the Job of a lake that is not installed. Returns `running` or `failed`."""
    manifest = build_migrate_job(context)
    name = text_at(manifest, "metadata", "name")
    try:
        live = await api.get(JOB, context.operator_namespace, name)
    except NotFound:
        await api.apply(manifest)
        metrics.child_written(JOB.kind, "apply")
        logger.info("migrate job started", extra={"tenant": context.tenant.meta.full_name})
        return "running"
    failed, ended = _end(live)
    if ended is not None and now - ended > RETRY_AFTER:
        await _remove(api, context, live)
    return "failed" if failed else "running"


async def read_migration(api: Api, context: Context) -> str:
    """The state of the Job without touching it: `absent`, `running` or `failed`."""
    name = text_at(build_migrate_job(context), "metadata", "name")
    try:
        live = await api.get(JOB, context.operator_namespace, name)
    except NotFound:
        return "absent"
    return "failed" if _end(live)[0] else "running"


async def _remove(api: Api, context: Context, live: Manifest) -> None:
    if text_at(live, "metadata", "labels", LABEL_TENANT_UID) != context.tenant.meta.uid:
        return  # someone else's: left to its owner
    uid, name = text_at(live, "metadata", "uid"), text_at(live, "metadata", "name")
    await api.delete(JOB, context.operator_namespace, name, uid)
    metrics.child_written(JOB.kind, "delete")
    logger.warning("migrate job removed", extra={"tenant": context.tenant.meta.full_name})


def _end(live: Manifest) -> tuple[bool, datetime | None]:
    """Whether the Job failed, and when it ended."""
    for condition in list_at(live, "status", "conditions"):
        kind = text_at(condition, "type")
        if kind in ("Complete", "Failed") and text_at(condition, "status") == "True":
            at = text_at(condition, "lastTransitionTime")
            return kind == "Failed", datetime.fromisoformat(at) if at else None
    return False, None
