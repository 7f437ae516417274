"""What a Tenant's children should be: the pure builders put together, with pod templates from its revisions.

A new template goes to one worker after the other: query pods wait until no ingest pod of an older template is left, so
that a version that does not come up costs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duckmesh_operator.manifest import Manifest, number_at, text_at
from duckmesh_operator.names import COMPACT, DEPLOYMENT, REVISION, child
from duckmesh_operator.plan import is_ours
from duckmesh_operator.specs.context import Context, seal
from duckmesh_operator.specs.deployment import ANNOTATION_REVISION, build_deployment
from duckmesh_operator.specs.disruption import build_disruption_budget
from duckmesh_operator.specs.networkpolicy import build_network_policy
from duckmesh_operator.specs.pod import build_ingest_template, build_query_template
from duckmesh_operator.specs.revision import (
    Revision,
    build_inputs,
    build_revision,
    is_current,
    is_outdated,
    latest,
    next_revision,
    of_worker,
)
from duckmesh_operator.specs.service import build_service
from duckmesh_operator.specs.tables import build_tables

#: In the order in which a new template reaches them.
COMPONENTS = ("ingest", "query")
#: Revisions kept of each worker: the one that runs and the one before it.
_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be there.

    Attributes:
        manifests: Sealed, in the order to apply them.
        live: What of the live objects the plan may look at: revisions that are only kept are not in it.
    """

    manifests: list[Manifest]
    live: list[Manifest]


def build_desired(context: Context, live: Sequence[Manifest], *, startable: bool | None) -> Desired:
    """Everything in the Tenant's namespace but Secrets.

    Args:
        context: The Tenant and what its names stand for.
        live: Its live children.
        startable: The lake is there, or is being made; None when the catalog does not tell. Workers start when it is, and
            stay when they were there before; they get a new template only when it is.
    """
    tenant = context.tenant
    desired: list[Manifest] = [build_tables(tenant)]
    for component in COMPONENTS:
        desired += [
            build_network_policy(context, component),
            build_service(tenant, component),
        ]
    # There before any Job of a Compactor is.
    desired.append(build_network_policy(context, COMPACT))
    workers, kept = _build_workers(context, live, startable=startable)
    desired += workers
    for component, replicas in (
        ("ingest", tenant.ingest.replicas),
        ("query", tenant.query.replicas),
    ):
        if replicas > 1:
            desired.append(build_disruption_budget(tenant, component))
    others = [item for item in live if item["kind"] != REVISION.kind or _name(item) not in kept]
    return Desired(manifests=[seal(item) for item in desired], live=others)


def pinned_version(live: Sequence[Manifest], uid: str) -> str:
    """The runtime version that the workers were built for; empty when there are none."""
    ours = _revisions(live, uid)
    found = [one for component in COMPONENTS if (one := latest(ours, component)) is not None]
    return next((one.version for one in found), "")


def _build_workers(
    context: Context, live: Sequence[Manifest], *, startable: bool | None
) -> tuple[list[Manifest], set[str]]:
    """Deployments after their revisions, and the names of older revisions to keep."""
    meta = context.tenant.meta
    ours = _revisions(live, meta.uid)
    deployments = {_name(item): item for item in live if item["kind"] == DEPLOYMENT.kind}
    desired: list[Manifest] = []
    kept: set[str] = set()
    free = bool(startable)
    for component in COMPONENTS:
        deployment = deployments.get(child(meta.name, component))
        if not startable and deployment is None:
            continue
        last = latest(ours, component)
        revision = _revise(context, component, last, allowed=free)
        desired.append(build_revision(context.tenant, component, revision))
        desired.append(_deployment(context, component, revision))
        kept |= _kept(ours, component, revision)
        free = free and not _is_rolling(deployment, revision)
    return desired, kept


def _revise(context: Context, component: str, last: Revision | None, *, allowed: bool) -> Revision:
    """The revision to run: the last one where it still holds or must stay, else one after it."""
    inputs = build_inputs(context, component)
    if last is not None and not allowed:
        return last
    if last is not None and is_current(last, inputs):
        if not is_outdated(last, inputs):
            return last
        return next_revision(context, component, last, template=last.template, inputs=inputs)
    build = build_ingest_template if component == "ingest" else build_query_template
    return next_revision(context, component, last, template=build(context), inputs=inputs)


def _is_rolling(live: Manifest | None, revision: Revision) -> bool:
    """Whether pods of an older template run, or will when this revision is applied.

    Pods that are not ready do not count: a worker that fails must not keep the other one from its repair.
    """
    pods = number_at(live, "status", "replicas")
    if not pods:
        return False
    applied = text_at(live, "metadata", "annotations", ANNOTATION_REVISION)
    seen = number_at(live, "status", "observedGeneration")
    unseen = seen < number_at(live, "metadata", "generation")
    return applied != revision.name or unseen or number_at(live, "status", "updatedReplicas") < pods


def _deployment(context: Context, component: str, revision: Revision) -> Manifest:
    tenant = context.tenant
    spec = tenant.ingest.replicas if component == "ingest" else tenant.query.replicas
    replicas = 0 if tenant.suspend else spec
    return build_deployment(tenant, component, replicas=replicas, revision=revision)


def _revisions(live: Sequence[Manifest], uid: str) -> list[Manifest]:
    return [item for item in live if item["kind"] == REVISION.kind and is_ours(item, uid)]


def _kept(ours: Sequence[Manifest], component: str, newest: Revision) -> set[str]:
    return {
        one.name
        for one in of_worker(ours, component)
        if one.name != newest.name and newest.number - one.number < _KEPT
    }


def _name(item: Manifest) -> str:
    return text_at(item, "metadata", "name")
