"""Kubernetes Events: a fixed list of reasons, rate limited per object. Called by `reconcile`.

An Event is a note for people about a change; what is so stands in the conditions. A lost Event is no failure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from duckmesh_operator.errors import OperatorError
from duckmesh_operator.manifest import Json, Manifest, list_at, text_at
from duckmesh_operator.model import Meta
from duckmesh_operator.names import EVENT, MANAGED_BY, Kind

logger = logging.getLogger(__name__)

#: Every reason of an Event, and whether it is a warning.
REASONS: Final[Mapping[str, bool]] = {
    "SpecInvalid": True,
    "SpecAccepted": False,
    "Ready": False,
    "NotReady": True,
    "LagBreach": True,
    "LagRecovered": False,
    "CatalogUnreachable": True,
    "CatalogReachable": False,
    "StorageUnreachable": True,
    "StorageReachable": False,
    "Suspended": False,
    "Resumed": False,
    "Stalled": True,
    "RolledOut": False,
    "DriftRepaired": True,
    "DataHandedOver": False,
    "DataKept": True,
    "RunStarted": False,
    "RunSucceeded": False,
    "RunFailed": True,
}
#: What each tells; its message is that of the condition it is about.
MEANINGS: Final[Mapping[str, str]] = {
    "SpecInvalid": "SpecValid turned False: the spec cannot be carried out.",
    "SpecAccepted": "SpecValid turned True again.",
    "Ready": "Ready turned True.",
    "NotReady": "Ready turned False, and nobody asked for that.",
    "LagBreach": "Fresh turned False: lag is above the target for too long.",
    "LagRecovered": "Fresh turned True again.",
    "CatalogUnreachable": "CatalogReachable turned False; the message says why.",
    "CatalogReachable": "CatalogReachable turned True again.",
    "StorageUnreachable": "StorageReachable turned False; the message says why.",
    "StorageReachable": "StorageReachable turned True again.",
    "Suspended": "spec.suspend is carried out: the pods go.",
    "Resumed": "spec.suspend was taken back: pods come.",
    "Stalled": "Nothing goes on before a person acts.",
    "RolledOut": "All workers run the newest template.",
    "DriftRepaired": "Someone changed an object of the Tenant; it is as it should be again. The message names it.",
    "DataHandedOver": "The Tenant took over the data of an earlier one of its name, as the platform team said.",
    "DataKept": "A deletion could not remove the data in time: the Tenant goes, what is left of its data is kept.",
    "RunStarted": "A Compactor started a Job for a Tenant. The message names both.",
    "RunSucceeded": "A Job of a Compactor ended well. The message names the Tenant and says what was done.",
    "RunFailed": "A Job of a Compactor failed; it is tried again. The message names the Tenant and says why.",
}
#: The same reason for the same object, of a run of the same run, at most once in this time.
QUIET_S: Final = 300.0
_TOLD_LIMIT: Final = 10_000

#: Condition, from, to -> reason. A condition that was not known before has nothing to tell but bad news.
_TRANSITIONS: Final = {
    ("SpecValid", "Unknown", "False"): "SpecInvalid",
    ("SpecValid", "True", "False"): "SpecInvalid",
    ("SpecValid", "False", "True"): "SpecAccepted",
    ("Ready", "Unknown", "True"): "Ready",
    ("Ready", "False", "True"): "Ready",
    ("Ready", "True", "False"): "NotReady",
    ("Fresh", "True", "False"): "LagBreach",
    ("Fresh", "Unknown", "False"): "LagBreach",
    ("Fresh", "False", "True"): "LagRecovered",
    ("CatalogReachable", "True", "False"): "CatalogUnreachable",
    ("CatalogReachable", "Unknown", "False"): "CatalogUnreachable",
    ("CatalogReachable", "False", "True"): "CatalogReachable",
    ("StorageReachable", "True", "False"): "StorageUnreachable",
    ("StorageReachable", "Unknown", "False"): "StorageUnreachable",
    ("StorageReachable", "False", "True"): "StorageReachable",
    ("Progressing", "True", "False"): "RolledOut",
    ("Suspended", "False", "True"): "Suspended",
    ("Suspended", "True", "False"): "Resumed",
    ("Stalled", "", "True"): "Stalled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What an Event says.

    Attributes:
        reason: One of `REASONS`.
        message: For people.
        about: What of the object it is about, where there is more than one.
    """

    reason: str
    message: str
    about: str = ""


class Creator(Protocol):
    """The part of the API server that Events need."""

    async def create(self, manifest: Manifest) -> Manifest:
        """See `kube.Api`."""


def notes_of(previous: Json, status: Json) -> list[Note]:
    """What the step from one status to the next is worth telling. Pure."""
    before = {text_at(item, "type"): item for item in list_at(previous, "conditions")}
    notes = []
    for condition in list_at(status, "conditions"):
        kind, state = text_at(condition, "type"), text_at(condition, "status")
        was = before.get(kind, {})
        reason = _TRANSITIONS.get((kind, text_at(was, "status"), state))
        if reason == "NotReady" and text_at(condition, "reason") == "Suspended":
            continue  # asked for, and told as Suspended
        why = text_at(was, "reason"), text_at(condition, "reason")
        if reason == "RolledOut" and why != ("RollingOut", "Settled"):
            continue
        if reason is not None:
            notes.append(Note(reason=reason, message=text_at(condition, "message")))
    return notes


class Recorder:
    """Posts Events, each reason at most once in `QUIET_S` for an object.

    Args:
        api: Makes the Event.
        instance: Name of this process.
        clock: Seconds, for the quiet time.
        now: Time of day, for the Event.
    """

    def __init__(
        self,
        api: Creator,
        *,
        instance: str,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._now = now
        self._told: dict[tuple[str, str, str], float] = {}

    async def record(self, kind: Kind, meta: Meta, note: Note) -> bool:
        """Post one Event; returns whether it was posted.

        Raises:
            KeyError: The reason is not in `REASONS`: our own bug.
        """
        warning = REASONS[note.reason]
        at, moment = self._clock(), (meta.uid, note.reason, note.about)
        if at - self._told.get(moment, -QUIET_S) < QUIET_S:
            return False
        if len(self._told) >= _TOLD_LIMIT:
            self._told.clear()  # forgetting tells twice, which is better than growing
        self._told[moment] = at
        try:
            await self._api.create(self._build(kind, meta, note, warning))
        except OperatorError as error:
            logger.info("event not posted", extra={"reason": note.reason, "error": str(error)})
            return False
        return True

    def _build(self, kind: Kind, meta: Meta, note: Note, warning: bool) -> Manifest:
        stamp = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"generateName": f"{meta.name}.", "namespace": meta.namespace},
            "involvedObject": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
            },
            "type": "Warning" if warning else "Normal",
            "reason": note.reason,
            "message": note.message[:1024],
            "action": "Reconcile",
            "eventTime": stamp,
            "reportingComponent": MANAGED_BY,
            "reportingInstance": self._instance,
        }
