"""ControllerRevisions: the pod template each worker was given, so that an operator upgrade does not roll it.

A new one is made only when what the worker is built from changes: its part of the spec, the platform's, the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duckmesh_operator.manifest import Json, Manifest, dig, digest, number_at, object_at, text_at
from duckmesh_operator.names import LABEL_COMPONENT, REVISION, child
from duckmesh_operator.specs.context import Context, build_child

#: Parts of the spec that no pod is built from: changing them never rolls a worker.
_NOT_IN_PODS = (
    *("suspend", "paused", "deletionPolicy", "deletionProtection", "tables"),
    *("snapshots", "compaction", "version"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A worker's template with what it was built from.

    Attributes:
        name: Of the ControllerRevision.
        number: Counts up from 1.
        inputs: What it was built from.
        template: The pod template.
    """

    name: str
    number: int
    inputs: Manifest
    template: Manifest


def build_inputs(context: Context, component: str) -> Manifest:
    """What a worker's template is built from."""
    return {
        "version": context.images.version,
        "spec": digest(_worker_spec(context, component)),
        "platform": context.platform_digest,
        "generation": context.tenant.meta.generation,
    }


def parse_revision(manifest: Json) -> Revision:
    """Read a ControllerRevision of ours."""
    return Revision(
        name=text_at(manifest, "metadata", "name"),
        number=number_at(manifest, "revision"),
        inputs=object_at(manifest, "data", "inputs"),
        template=object_at(manifest, "data", "template"),
    )


def latest(manifests: Sequence[Json], component: str) -> Revision | None:
    """The newest revision of a worker among a Tenant's."""
    found = [
        parse_revision(item)
        for item in manifests
        if text_at(item, "metadata", "labels", LABEL_COMPONENT) == component
    ]
    return max(found, key=lambda one: one.number, default=None)


def is_current(revision: Revision, inputs: Manifest) -> bool:
    """Whether a revision is still what the worker should be.

    The same generation is the same spec, whatever a newer CRD filled in; a newer generation may have changed only what
    is not in pods.
    """
    same_spec = revision.inputs.get("generation") == inputs["generation"] or (
        revision.inputs.get("spec") == inputs["spec"]
    )
    return same_spec and all(
        revision.inputs.get(key) == inputs[key] for key in ("version", "platform")
    )


def build_revision(
    context: Context, component: str, number: int, template: Manifest, inputs: Manifest
) -> Manifest:
    """The ControllerRevision of a template; its data is immutable, so each has a name of its own."""
    tenant = context.tenant
    name = child(tenant.meta.name, f"{component}-{number}")
    manifest = build_child(REVISION, tenant, name, component)
    manifest["revision"] = number
    manifest["data"] = {"inputs": inputs, "template": template}
    return manifest


def _worker_spec(context: Context, component: str) -> Manifest:
    """The part of the spec, as it came, that a worker's pods are built from."""
    raw = context.tenant.raw_spec
    others = ("query",) if component == "ingest" else ("ingest",)
    kept = {
        key: value for key, value in raw.items() if key not in (*_NOT_IN_PODS, *others, "freshness")
    }
    kept[component] = {
        key: value for key, value in object_at(raw, component).items() if key != "replicas"
    }
    if component == "ingest":
        kept["target"] = dig(raw, "freshness", "target")
        kept["snapshots"] = [dig(raw, "snapshots", name) for name in ("keepFor", "keepLast")]
    return kept
