"""What goes before an uninstall: the operator stops, then our finalizers come off all Tenants, so that none is stuck.

Run by the chart's pre-delete hook as `duckmesh-operator release`. Tenants, their workers and all data stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from duckmesh_operator.errors import Conflict, NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest, list_at, text_at
from duckmesh_operator.names import DEPLOYMENT, FINALIZER, TENANT

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.5


async def release(
    api: Api, *, namespace: str, deployment: str, served: Sequence[str], look_s: float = LOOK_S
) -> int:
    """Stop the operator and let all Tenants go; safe to repeat.

    Args:
        api: The API server.
        namespace: The operator's.
        deployment: The operator's.
        served: Namespaces of Tenants; empty means all.
        look_s: Seconds between two looks at the Deployment that ends.

    Returns:
        How many Tenants had our finalizer.

    Raises:
        OperatorError: The API server cannot be used.
    """
    await _stop(api, namespace, deployment, look_s)
    released = 0
    for place in tuple(served) or (None,):
        for obj in await _tenants(api, place):
            released += await _release(api, obj)
    logger.info("tenants released", extra={"tenants": released})
    return released


async def _stop(api: Api, namespace: str, deployment: str, look_s: float) -> None:
    """An operator that runs would put the finalizers back."""
    while True:
        try:
            live = await api.get(DEPLOYMENT, namespace, deployment)
        except NotFound:
            return
        uid = text_at(live, "metadata", "uid")
        await api.delete(DEPLOYMENT, namespace, deployment, uid, wait=True)
        await asyncio.sleep(look_s)


async def _tenants(api: Api, namespace: str | None) -> list[Manifest]:
    try:
        return await api.list(TENANT, namespace)
    except NotFound:  # the resource itself is gone
        return []


async def _release(api: Api, obj: Manifest) -> bool:
    """Take our finalizer off; whether it was there."""
    while FINALIZER in (found := list_at(obj, "metadata", "finalizers")):
        try:
            await api.set_finalizers(obj, [str(one) for one in found if one != FINALIZER])
        except NotFound:
            return True
        except Conflict:
            name = text_at(obj, "metadata", "name")
            try:
                obj = await api.get(TENANT, text_at(obj, "metadata", "namespace"), name)
            except NotFound:
                return True
        else:
            return True
    return False
