"""What to do to get from the observed children to the desired ones. Pure: called by `reconcile`, which carries it out.

Nothing to do means an empty plan: a second run over unchanged objects writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from duckmesh_operator.manifest import Json, Manifest, covers, dig, list_at, object_at, text_at
from duckmesh_operator.names import (
    ANNOTATION_DIGEST,
    FIELD_MANAGER,
    LABEL_TENANT,
    LABEL_TENANT_UID,
    TENANT,
)

#: What people may add to a pod template: `kubectl rollout restart` works by it.
_ALLOWED_IN_TEMPLATE: Final = "f:kubectl.kubernetes.io/restartedAt"


class Verb(StrEnum):
    """What to do with one object."""

    APPLY = "apply"  # make it, or repair the fields we own
    REPLACE = "replace"  # take away what others put into its spec
    DELETE = "delete"  # ours and no longer wanted
    WAIT = "wait"  # it is being deleted: look again soon
    CONFLICT = "conflict"  # the name is someone else's: never touched


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One step.

    Attributes:
        verb: What to do.
        manifest: The desired object (apply, replace), else the live one.
        live: The live object where there is one.
    """

    verb: Verb
    manifest: Manifest
    live: Manifest | None = None


def plan(
    desired: Sequence[Manifest], live: Sequence[Manifest], *, uid: str, tenant: str
) -> list[Action]:
    """Compare.

    Args:
        desired: Sealed manifests (`specs.context.seal`), in the order to apply them.
        live: Every live object that has a desired one's kind and name, or carries our labels.
        uid: The Tenant's uid: only objects of this very Tenant are ours.
        tenant: The Tenant's name.

    Returns:
        Actions in the order to carry them out; objects that are as they should be have none.
    """
    by_name = {_identity(item): item for item in live}
    wanted = {_identity(item) for item in desired}
    actions = [
        action
        for item in desired
        if (action := _decide(item, by_name.get(_identity(item)), uid, tenant)) is not None
    ]
    actions += [
        Action(verb=Verb.DELETE, manifest=item)
        for item in live
        if _identity(item) not in wanted and is_ours(item, uid) and not _is_going(item)
    ]
    return actions


def is_ours(live: Json, uid: str) -> bool:
    """Whether the Tenant with this uid made the object: by owner, or by label where the owner was stripped."""
    owners = [text_at(owner, "uid") for owner in list_at(live, "metadata", "ownerReferences")]
    labelled = text_at(live, "metadata", "labels", LABEL_TENANT_UID) == uid
    return uid in owners or (labelled and not owners)


def is_usable(live: Json, uid: str) -> bool:
    """Whether it is the Tenant's and here to stay."""
    return is_ours(live, uid) and not _is_going(live)


def _decide(desired: Manifest, live: Manifest | None, uid: str, tenant: str) -> Action | None:
    if live is None:
        return Action(verb=Verb.APPLY, manifest=desired)
    if _is_going(live) or _is_predecessors(live, uid, tenant):
        return Action(verb=Verb.WAIT, manifest=live, live=live)
    if not is_ours(live, uid):
        return Action(verb=Verb.CONFLICT, manifest=live, live=live)
    if has_foreign_fields(live):
        return Action(verb=Verb.REPLACE, manifest=desired, live=live)
    if _differs(desired, live):
        return Action(verb=Verb.APPLY, manifest=desired, live=live)
    return None


def _differs(desired: Manifest, live: Manifest) -> bool:
    # The digest finds fields that we set once and no longer do; `covers` finds what others changed.
    path = ("metadata", "annotations", ANNOTATION_DIGEST)
    return text_at(live, *path) != text_at(desired, *path) or not covers(live, desired)


def _is_going(live: Json) -> bool:
    return dig(live, "metadata", "deletionTimestamp") is not None


def _is_predecessors(live: Json, uid: str, tenant: str) -> bool:
    """Whether it belongs to a deleted Tenant of the same name: the garbage collector is on its way."""
    owners = list_at(live, "metadata", "ownerReferences")
    return text_at(live, "metadata", "labels", LABEL_TENANT) == tenant and any(
        text_at(owner, "kind") == TENANT.kind and text_at(owner, "uid") not in ("", uid)
        for owner in owners
    )


def has_foreign_fields(live: Json) -> bool:
    """Whether another field manager put something into the spec, as `managedFields` tells.

    Server-side apply repairs the fields we own and leaves additions alone: a container or a volume that someone put
    into a pod template would stay for ever.
    """
    ours: Manifest = {}
    others: list[Manifest] = []
    for entry in list_at(live, "metadata", "managedFields"):
        fields = object_at(entry, "fieldsV1", "f:spec")
        if text_at(entry, "manager") == FIELD_MANAGER:
            ours = _merge(ours, fields)
        elif text_at(entry, "subresource") != "status":
            others.append(fields)
    return any(_reaches_beyond(fields, ours) for fields in others)


def _merge(one: Mapping[str, object], other: Mapping[str, object]) -> Manifest:
    merged = dict(one)
    for key, value in other.items():
        merged[key] = _merge(object_at(one, key), value) if isinstance(value, Mapping) else value
    return merged


def _reaches_beyond(theirs: Mapping[str, object], ours: Mapping[str, object]) -> bool:
    """Whether a leaf of theirs is not ours too; sharing a field with the same value does no harm."""
    for key, value in theirs.items():
        if key in (".", _ALLOWED_IN_TEMPLATE):
            continue
        if isinstance(value, Mapping) and set(value) - {"."}:
            if _reaches_beyond(value, object_at(ours, key)):
                return True
        elif key not in ours:
            return True
    return False


def _identity(manifest: Json) -> tuple[str, str]:
    return text_at(manifest, "kind"), text_at(manifest, "metadata", "name")
