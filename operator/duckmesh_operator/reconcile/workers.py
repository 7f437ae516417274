"""What a Tenant's children should be: the pure builders put together, with pod templates from its revisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duckmesh_operator.manifest import Manifest, text_at
from duckmesh_operator.names import DEPLOYMENT, LABEL_COMPONENT, REVISION, child
from duckmesh_operator.plan import is_ours
from duckmesh_operator.specs.context import Context, seal
from duckmesh_operator.specs.deployment import build_deployment
from duckmesh_operator.specs.disruption import build_disruption_budget
from duckmesh_operator.specs.networkpolicy import build_network_policy
from duckmesh_operator.specs.pod import build_ingest_template, build_query_template
from duckmesh_operator.specs.revision import (
    Revision,
    build_inputs,
    build_revision,
    is_current,
    latest,
    parse_revision,
)
from duckmesh_operator.specs.service import build_service
from duckmesh_operator.specs.tables import build_tables

COMPONENTS = ("ingest", "query")
#: Revisions kept of each worker: the one that runs and the one before it.
_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be there.

    Attributes:
        manifests: Sealed, in the order to apply them.
        live: What of the live objects the plan may look at: revisions that stay are not in it.
    """

    manifests: list[Manifest]
    live: list[Manifest]


def build_desired(context: Context, live: Sequence[Manifest], *, installed: bool | None) -> Desired:
    """Everything in the Tenant's namespace but Secrets.

    Args:
        context: The Tenant and what its names stand for.
        live: Its live children.
        installed: The lake is there; None when the catalog does not tell. Workers start when it is, and stay when they
            were there before; they get a new template only when it is.
    """
    tenant = context.tenant
    desired: list[Manifest] = [build_tables(tenant)]
    for component in COMPONENTS:
        desired += [
            build_network_policy(context, component),
            build_service(tenant, component),
        ]
    deployments, stale = _build_workers(context, live, installed=installed)
    desired += deployments
    for component, replicas in (
        ("ingest", tenant.ingest.replicas),
        ("query", tenant.query.replicas),
    ):
        if replicas > 1:
            desired.append(build_disruption_budget(tenant, component))
    others = [item for item in live if item["kind"] != REVISION.kind or item in stale]
    return Desired(manifests=[seal(item) for item in desired], live=others)


def pinned_version(live: Sequence[Manifest], uid: str) -> str:
    """The runtime version that the workers were built for; empty when there are none."""
    ours = _revisions(live, uid)
    found = [one for component in COMPONENTS if (one := latest(ours, component)) is not None]
    return next((str(one.inputs.get("version", "")) for one in found), "")


def _build_workers(
    context: Context, live: Sequence[Manifest], *, installed: bool | None
) -> tuple[list[Manifest], list[Manifest]]:
    """Deployments with their new revisions, and the revisions to remove."""
    meta = context.tenant.meta
    ours = _revisions(live, meta.uid)
    names = {text_at(item, "metadata", "name") for item in live if item["kind"] == DEPLOYMENT.kind}
    desired: list[Manifest] = []
    stale: list[Manifest] = []
    for component in COMPONENTS:
        if not installed and child(meta.name, component) not in names:
            continue
        revision = latest(ours, component)
        manifests, newest = _revise(context, component, revision, allowed=bool(installed))
        desired += manifests
        stale += _stale(ours, component, newest)
    return desired, stale


def _revise(
    context: Context, component: str, found: Revision | None, *, allowed: bool
) -> tuple[list[Manifest], int]:
    """A worker's Deployment, after its new revision where one is needed; and the newest revision's number."""
    inputs = build_inputs(context, component)
    if found is not None and (not allowed or is_current(found, inputs)):
        return [_deployment(context, component, found.template)], found.number
    build = build_ingest_template if component == "ingest" else build_query_template
    template = build(context)
    number = 1 if found is None else found.number + 1
    revision = build_revision(context, component, number, template, inputs)
    return [revision, _deployment(context, component, template)], number


def _deployment(context: Context, component: str, template: Manifest) -> Manifest:
    tenant = context.tenant
    spec = tenant.ingest.replicas if component == "ingest" else tenant.query.replicas
    replicas = 0 if tenant.suspend else spec
    return build_deployment(tenant, component, replicas=replicas, template=template)


def _revisions(live: Sequence[Manifest], uid: str) -> list[Manifest]:
    return [item for item in live if item["kind"] == REVISION.kind and is_ours(item, uid)]


def _stale(ours: Sequence[Manifest], component: str, newest: int) -> list[Manifest]:
    return [
        item
        for item in ours
        if text_at(item, "metadata", "labels", LABEL_COMPONENT) == component
        and parse_revision(item).number <= newest - _KEPT
    ]
