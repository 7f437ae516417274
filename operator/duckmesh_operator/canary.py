"""The canary: a small object written every half minute must come back through the watch, or the operator is deaf.

A watch may be silent because nothing happens or because it is dead; only a change of our own tells. The object is a
NetworkPolicy that selects no pod, in the operator's namespace: a kind that is watched anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from duckmesh_operator.errors import Deaf, OperatorError
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Json, Manifest, text_at
from duckmesh_operator.names import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY, NETWORK_POLICY

logger = logging.getLogger(__name__)

NAME: Final = "duckmesh-operator-canary"
COMPONENT: Final = "canary"
EVERY_S: Final = 30.0
#: kopf starts a silent stream again after 70 s; past this time it is not going to come back.
DEAF_AFTER_S: Final = 90.0
_ANNOTATION: Final = "duckmesh.io/canary"


class Canary:
    """Writes and expects the object.

    Args:
        api: The API server.
        namespace: The operator's own.
        identity: Name of this process: another's song does not count.
        clock: Seconds.
    """

    def __init__(
        self, api: Api, *, namespace: str, identity: str, clock: Callable[[], float]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._number = 0
        self._waiting_since: float | None = None
        self._last_event = clock()

    def seen(self, obj: Json) -> None:
        """Take in the object from the watch."""
        self._last_event = self._clock()
        if text_at(obj, "metadata", "annotations", _ANNOTATION) == self._song():
            self._waiting_since = None

    def noticed(self) -> None:
        """Take in that the watch brought anything at all."""
        self._last_event = self._clock()

    @property
    def last_event_age_s(self) -> float:
        """Time since the watch brought anything."""
        return self._clock() - self._last_event

    @property
    def deaf(self) -> bool:
        """Whether the watch owes us the object for too long."""
        since = self._waiting_since
        return since is not None and self._clock() - since > DEAF_AFTER_S

    async def sing(self) -> None:
        """Write the object once; a failure to write says nothing about the watch."""
        new = self._waiting_since is None
        if new:
            self._number += 1
            self._waiting_since = (
                self._clock()
            )  # before the write: the watch may be faster than its answer
        try:
            await self._api.apply(self._build())
        except OperatorError as error:
            logger.warning("canary not written", extra={"error": str(error)})
            if new:
                self._waiting_since = None

    async def run(self) -> None:
        """Sing and listen until the watch is deaf.

        Raises:
            Deaf: The object did not come back in time.
        """
        while True:
            await self.sing()
            await asyncio.sleep(EVERY_S)
            if self.deaf:
                raise Deaf("the watch does not bring what was written")

    def _song(self) -> str:
        return f"{self._identity}-{self._number}"

    def _build(self) -> Manifest:
        nobody = {LABEL_COMPONENT: COMPONENT, LABEL_MANAGED_BY: MANAGED_BY}
        return {
            "apiVersion": NETWORK_POLICY.api_version,
            "kind": NETWORK_POLICY.kind,
            "metadata": {
                "name": NAME,
                "namespace": self._namespace,
                "labels": dict(nobody),
                "annotations": {_ANNOTATION: self._song()},
            },
            "spec": {"podSelector": {"matchLabels": nobody}, "policyTypes": ["Ingress"]},
        }
