"""Which conditions of a resource ask for a person, so that alerts can follow them. Pure; `reconcile` keeps the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from duckmesh_operator.manifest import Json, list_at, text_at

#: The status of each condition that is a trouble; of other conditions none is.
_WRONG: Final[Mapping[str, str]] = {
    "Ready": "False",
    "SpecValid": "False",
    "CatalogReachable": "False",
    "StorageReachable": "False",
    "Fresh": "False",
    "SnapshotHealthy": "False",
    "CompactionCurrent": "False",
    "LastRunSucceeded": "False",
    "Conflict": "True",
    "TablesReady": "False",
    "DeadLetters": "True",
    "Stalled": "True",
}
#: Reasons that are a trouble whatever the condition's status says.
_ALWAYS: Final = ("LakeUnreadable", "RemovalFailed", "DataKept")


def troubles_of(status: Json) -> frozenset[tuple[str, str]]:
    """Condition and reason of each trouble in a status."""
    found = [
        (text_at(item, "type"), text_at(item, "status"), text_at(item, "reason"))
        for item in list_at(status, "conditions")
    ]
    return frozenset(
        (kind, reason)
        for kind, state, reason in found
        if state == _WRONG.get(kind) or reason in _ALWAYS
    )
