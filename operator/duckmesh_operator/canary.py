"""How the operator learns that it is deaf: a canary for the connection, an audit for each stream.

A watch may be silent because nothing happens or because it is dead; only a change tells. The canary is a change of our
own: a NetworkPolicy that selects no pod, in the operator's namespace, written every half minute, must come back.

Each kind, and each namespace where not all are served, has a stream of its own, and not every kind has an object that
could be written for nothing: a Tenant's would be everyone's to see. So every minute each kind is listed as well. What
the list shows and the watch did not bring is taken from the list at once: within a minute the operator acts on it, deaf
or not. That also finds what no stream tells: objects that went while it was interrupted. An object that lists still
show after two minutes and the watch has not brought means that the stream is dead and will not come back by itself, as
kopf lets one do after 70 s of silence; only then the process ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from duckmesh_operator.cache import CACHED, CachedApi, News, Place, place_of, version_of
from duckmesh_operator.errors import Deaf, Forbidden, OperatorError
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Json, Manifest, text_at
from duckmesh_operator.names import (
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    NETWORK_POLICY,
    Kind,
)
from duckmesh_operator.queue import Key

logger = logging.getLogger(__name__)

NAME: Final = "duckmesh-operator-canary"
COMPONENT: Final = "canary"
EVERY_S: Final = 30.0
#: kopf starts a silent stream again after 70 s; past this time it is not going to come back.
DEAF_AFTER_S: Final = 90.0
#: Every watched kind is listed once in this time.
AUDIT_EVERY_S: Final = 60.0
#: How long the watch may owe what a list showed: longer than kopf takes to start a silent stream again, and than two
#: lists are apart, so that what went meanwhile is not waited for.
AUDIT_GRACE_S: Final = 120.0
#: No debt is counted for as long after the watch began: kopf has to list everything first.
AUDIT_QUIET_S: Final = 120.0
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


class Audit:
    """Compares lists with what the watch brought; see the module.

    Args:
        cache: Where lists and the watch meet.
        found: Told whose object the watch had missed.
        clock: Seconds.
    """

    def __init__(
        self, cache: CachedApi, *, found: Callable[[Key], None], clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._found = found
        self._clock = clock
        self._owed: dict[Place, tuple[int, float]] = {}
        self._heard: dict[Place, int] = {}
        self._listed: dict[str, float] = {}
        self._counts_from = clock()
        self._refused: set[str] = set()

    @property
    def refused(self) -> list[str]:
        """Kinds that the operator may not list: what happens to them may go unseen."""
        return sorted(self._refused)

    def heard(self, obj: Json) -> None:
        """Take in an event of the watch, deletions too; the object says its kind."""
        place, version = place_of(obj), version_of(obj)
        self._heard[place] = version
        if place in self._owed and version >= self._owed[place][0]:
            del self._owed[place]

    @property
    def deaf(self) -> list[str]:
        """Kinds whose watch owes an object for too long, which was still there when the kind was listed last."""
        return sorted(
            {
                place.kind
                for place, (_, since) in self._owed.items()
                if self._listed[place.kind] - since >= AUDIT_GRACE_S
            }
        )

    async def look(self, kind: Kind) -> None:
        """List a kind once; a list that fails says nothing about the watch."""
        self._heard.clear()  # only what the watch brings while the list is read can overtake it
        try:
            news = await self._cache.refresh(kind)
        except Forbidden as error:
            if kind.kind not in self._refused:
                extra = {"verb": "list", "kind": kind.kind, "error": str(error)}
                logger.error("a right of the operator is missing", extra=extra)
            self._refused.add(kind.kind)
            return
        except OperatorError as error:
            logger.warning("kind not listed", extra={"kind": kind.kind, "error": str(error)})
            return
        self._refused.discard(kind.kind)
        self._listed[kind.kind] = self._clock()
        for one in news:
            self._miss(one)
        # Gone meanwhile, which a stream that starts again does not tell; or the cluster was put back.
        for place, (version, _) in list(self._owed.items()):
            if self._cache.store.version(place) < version:
                del self._owed[place]

    async def run(self) -> None:
        """List kinds in turn until a stream is deaf; to be called when the watch has begun.

        Raises:
            Deaf: A stream did not bring in time what a list had shown.
        """
        self._counts_from = self._clock() + AUDIT_QUIET_S
        while True:
            for kind in CACHED:
                await asyncio.sleep(AUDIT_EVERY_S / len(CACHED))
                await self.look(kind)
                if self.deaf:
                    raise Deaf(f"the watch does not bring every {', '.join(self.deaf)}")

    def _miss(self, news: News) -> None:
        place, version = news.place, news.version
        now = self._clock()
        owed = version and self._heard.get(place, 0) < version
        if owed and now >= self._counts_from:
            self._owed.setdefault(place, (version, now))
            extra = {"kind": place.kind, "namespace": place.namespace, "name_": place.name}
            logger.info("missed by the watch", extra=extra)
        if news.owner is not None:
            self._found(news.owner)
