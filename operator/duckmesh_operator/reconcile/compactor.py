"""The reconcile of a Compactor: its spec is checked and its status says that nothing acts on it yet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from duckmesh_operator import log, metrics
from duckmesh_operator.errors import Conflict, Invalid, NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest, object_at
from duckmesh_operator.model import Compactor, parse_compactor, parse_meta
from duckmesh_operator.names import COMPACTOR
from duckmesh_operator.queue import Key
from duckmesh_operator.status import Problem, build_compactor_status, same


class CompactorReconciler:
    """Reconciles Compactors; see the module.

    Args:
        api: The API server.
        now: Time of day, in UTC.
    """

    def __init__(self, *, api: Api, now: Callable[[], datetime]) -> None:
        self._api = api
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Write one Compactor's status when it differs. Returns None: only an event changes anything.

        Raises:
            OperatorError: The API server cannot be used.
        """
        try:
            obj = await self._api.get(COMPACTOR, key.namespace, key.name)
        except NotFound:
            return None
        meta, previous = parse_meta(obj), object_at(obj, "status")
        log.note(generation=meta.generation)
        if meta.deleting:
            return None
        compactor, problem = _parse(obj)
        status = build_compactor_status(meta, compactor, problem, previous, self._now())
        if same(status, previous):
            return None
        manifest: Manifest = {
            "apiVersion": COMPACTOR.api_version,
            "kind": COMPACTOR.kind,
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "status": status,
        }
        try:
            await self._api.apply(manifest, subresource="status")
        except (NotFound, Conflict):  # deleted meanwhile; the next event says so
            return None
        metrics.status_written(COMPACTOR.kind)
        return None


def _parse(obj: Manifest) -> tuple[Compactor | None, Problem | None]:
    try:
        return parse_compactor(obj), None
    except Invalid as error:
        return None, Problem(reason=error.reason, message="; ".join(error.problems) + ".")
