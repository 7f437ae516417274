"""Jobs of a Tenant in the operator's namespace: started, watched to their end, started again after a failure, stopped."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from duckmesh_operator import metrics
from duckmesh_operator.errors import NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest, dig, list_at, text_at
from duckmesh_operator.names import JOB, LABEL_TENANT_UID

logger = logging.getLogger(__name__)

#: Seconds between two looks at a running Job: it lies in the operator's namespace, where no watch brings it.
LOOK_S: Final = 1.0
#: A failed Job, or one that ended and left its work undone, is started again after this time.
RETRY_AFTER: Final = timedelta(seconds=60)


async def run_job(api: Api, manifest: Manifest, now: datetime) -> str:
    """Start, watch or restart a Job whose work is not done. Returns `running` or `failed`."""
    namespace, name = (
        text_at(manifest, "metadata", "namespace"),
        text_at(manifest, "metadata", "name"),
    )
    uid = text_at(manifest, "metadata", "labels", LABEL_TENANT_UID)
    try:
        live = await api.get(JOB, namespace, name)
    except NotFound:
        await api.apply(manifest)
        metrics.child_written(JOB.kind, "apply")
        logger.info("job started", extra={"job": name, "tenant_uid": uid})
        return "running"
    failed, ended = _end(live)
    if ended is not None and now - ended > RETRY_AFTER and is_of(live, uid):
        await _remove(api, live, wait=False)
    return "failed" if failed else "running"


async def read_job(api: Api, manifest: Manifest) -> str:
    """The state of a Job without touching it: `absent`, `running` or `failed`."""
    namespace, name = (
        text_at(manifest, "metadata", "namespace"),
        text_at(manifest, "metadata", "name"),
    )
    try:
        live = await api.get(JOB, namespace, name)
    except NotFound:
        return "absent"
    return "failed" if _end(live)[0] else "running"


async def stop_job(api: Api, namespace: str, name: str, uid: str) -> bool:
    """Delete a Tenant's Job; whether it, or a pod of it, is still there."""
    try:
        live = await api.get(JOB, namespace, name)
    except NotFound:
        return False
    if not is_of(live, uid):
        return False  # someone else's: left to its owner
    if dig(live, "metadata", "deletionTimestamp") is None:
        await _remove(api, live, wait=True)
    return True


def is_of(live: Manifest, uid: str) -> bool:
    """Whether an object says that it is of the Tenant with this uid."""
    return text_at(live, "metadata", "labels", LABEL_TENANT_UID) == uid


async def _remove(api: Api, live: Manifest, *, wait: bool) -> None:
    namespace, name, uid = (text_at(live, "metadata", key) for key in ("namespace", "name", "uid"))
    await api.delete(JOB, namespace, name, uid, wait=wait)
    metrics.child_written(JOB.kind, "delete")
    logger.warning("job removed", extra={"job": name})


def _end(live: Manifest) -> tuple[bool, datetime | None]:
    """Whether the Job failed, and when it ended."""
    for condition in list_at(live, "status", "conditions"):
        kind = text_at(condition, "type")
        if kind in ("Complete", "Failed") and text_at(condition, "status") == "True":
            at = text_at(condition, "lastTransitionTime")
            return kind == "Failed", datetime.fromisoformat(at) if at else None
    return False, None
