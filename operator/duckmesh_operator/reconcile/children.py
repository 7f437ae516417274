"""Children of a Tenant in its namespace: read them, carry out a plan, see how the workers are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from duckmesh_operator import metrics
from duckmesh_operator.errors import Invalid, NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import (
    Manifest,
    list_at,
    number_at,
    object_at,
    text_at,
)
from duckmesh_operator.model import Meta
from duckmesh_operator.names import (
    ANNOTATION_DIGEST,
    CHILDREN,
    DEPLOYMENT,
    LABEL_TENANT_UID,
    REVISION,
    child,
    kind_of,
)
from duckmesh_operator.plan import Action, Verb, plan
from duckmesh_operator.specs.deployment import ANNOTATION_REVISION, LABEL_VERSION
from duckmesh_operator.status import Problem, Worker

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What carrying out a plan led to.

    Attributes:
        live: The objects as they are now.
        problems: Conflicts, waits and refusals.
        repaired: Names of objects that others had changed.
    """

    live: list[Manifest]
    problems: list[Problem] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


async def read_children(api: Api, meta: Meta) -> list[Manifest]:
    """Everything in the Tenant's namespace that carries its uid as a label."""
    found: list[Manifest] = []
    for kind in CHILDREN:
        found += await api.list(kind, meta.namespace, {LABEL_TENANT_UID: meta.uid})
    return found + await read_lost_revisions(api, meta, found)


async def read_lost_revisions(api: Api, meta: Meta, live: Sequence[Manifest]) -> list[Manifest]:
    """Revisions that Deployments name and the label did not find: without them the workers would be rolled."""
    known = {text_at(item, "metadata", "name") for item in live if item["kind"] == REVISION.kind}
    found: list[Manifest] = []
    for item in live:
        name = text_at(item, "metadata", "annotations", ANNOTATION_REVISION)
        if item["kind"] != DEPLOYMENT.kind or not name or name in known:
            continue
        with suppress(NotFound):
            found.append(await api.get(REVISION, meta.namespace, name))
    return found


async def read_missing(
    api: Api, desired: Sequence[Manifest], live: Sequence[Manifest]
) -> list[Manifest]:
    """Live objects with a desired one's name that the label did not find: someone else's, or stripped of it."""
    known = {(item["kind"], text_at(item, "metadata", "name")) for item in live}
    found: list[Manifest] = []
    for item in desired:
        name = text_at(item, "metadata", "name")
        if (item["kind"], name) in known:
            continue
        try:
            namespace = text_at(item, "metadata", "namespace")
            found.append(await api.get(kind_of(item), namespace, name))
        except NotFound:
            continue
    return found


async def apply_children(
    api: Api, meta: Meta, desired: Sequence[Manifest], live: Sequence[Manifest]
) -> Outcome:
    """Bring the children to what they should be.

    Where a name is taken, nothing new is made: pods without their NetworkPolicy or Service would do harm or no good.
    What exists is kept in shape all the same.
    """
    return await apply_known(api, meta, desired, [*live, *await read_missing(api, desired, live)])


async def apply_known(
    api: Api, meta: Meta, desired: Sequence[Manifest], known: Sequence[Manifest]
) -> Outcome:
    """The same for a caller who has read every desired object by its name."""
    actions = plan(desired, known, uid=meta.uid, tenant=meta.name)
    blocked = any(action.verb in (Verb.CONFLICT, Verb.WAIT) for action in actions)
    outcome = Outcome(live=list(known))
    for action in actions:
        if blocked and action.live is None and action.verb is Verb.APPLY:
            continue
        await _carry_out(api, action, outcome)
    return outcome


def read_worker(live: Sequence[Manifest], meta: Meta, component: str, wanted: int | None) -> Worker:
    """One worker's Deployment as it is.

    Args:
        live: The children.
        meta: The Tenant's.
        component: `ingest` or `query`.
        wanted: Pods there should be; None takes what the Deployment asks for.
    """
    name = child(meta.name, component)
    for item in live:
        if item["kind"] == DEPLOYMENT.kind and text_at(item, "metadata", "name") == name:
            asked = number_at(item, "spec", "replicas")
            return _worker(item, component, asked if wanted is None else wanted)
    return Worker(component=component, wanted=wanted or 0)


async def _carry_out(api: Api, action: Action, outcome: Outcome) -> None:
    manifest, name = action.manifest, text_at(action.manifest, "metadata", "name")
    kind = str(manifest["kind"])
    if action.verb is Verb.CONFLICT:
        outcome.problems.append(_conflict(kind, name))
        return
    if action.verb is Verb.WAIT:
        message = f"{kind} {name} of an earlier object is still being deleted; it is made again after that."
        outcome.problems.append(Problem(reason="Waiting", message=message))
        return
    try:
        await _write(api, action, outcome)
    except Invalid as error:
        message = f"The API server refuses {kind} {name}: {error}"
        outcome.problems.append(Problem(reason="Refused", message=message, stalled=True))
        return
    metrics.child_written(kind, action.verb.value)
    logger.info(
        "child written",
        extra={
            "kind": kind,
            "namespace": text_at(manifest, "metadata", "namespace"),
            "name_": name,
            "action": action.verb.value,
        },
    )


async def _write(api: Api, action: Action, outcome: Outcome) -> None:
    manifest, live = action.manifest, action.live
    if action.verb is Verb.DELETE:
        await _delete(api, manifest)
        outcome.live.remove(manifest)
        return
    if live is not None:
        if _is_drift(manifest, live):
            kind, name = manifest["kind"], text_at(manifest, "metadata", "name")
            outcome.repaired.append(f"{kind} {name}")
        if action.verb is Verb.REPLACE:
            live_now = await api.replace_spec(live, object_at(manifest, "spec"))
            outcome.live.remove(live)
            outcome.live.append(live_now)
            live = live_now
    made = await api.apply(manifest)
    if live is not None:
        outcome.live.remove(live)
    outcome.live.append(made)


async def _delete(api: Api, live: Manifest) -> None:
    await api.delete(
        kind_of(live),
        text_at(live, "metadata", "namespace"),
        text_at(live, "metadata", "name"),
        text_at(live, "metadata", "uid"),
    )


def _is_drift(desired: Manifest, live: Manifest) -> bool:
    path = ("metadata", "annotations", ANNOTATION_DIGEST)
    return text_at(live, *path) == text_at(desired, *path)


def _conflict(kind: str, name: str) -> Problem:
    message = (
        f"{kind} {name} exists and belongs to someone else; it is left alone. Delete or rename it, or give the Tenant "
        "another name."
    )
    return Problem(reason="NameConflict", message=message, stalled=True)


def _worker(live: Manifest, component: str, wanted: int) -> Worker:
    seen = number_at(live, "status", "observedGeneration") >= number_at(
        live, "metadata", "generation"
    )
    pods = number_at(live, "status", "replicas")
    ready = number_at(live, "status", "readyReplicas")
    updated = number_at(live, "status", "updatedReplicas")
    return Worker(
        component=component,
        wanted=wanted,
        pods=pods,
        ready=ready,
        settled=seen and pods == updated == ready == wanted,
        # Before the controller has seen the newest template, it speaks of the one that was given up.
        stuck=seen
        and any(
            text_at(condition, "type") == "Progressing"
            and text_at(condition, "reason") == "ProgressDeadlineExceeded"
            for condition in list_at(live, "status", "conditions")
        ),
        exists=True,
        version=text_at(live, "metadata", "labels", LABEL_VERSION),
    )
