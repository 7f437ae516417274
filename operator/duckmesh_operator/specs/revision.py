"""ControllerRevisions: the pod template each worker was given, so that an operator upgrade does not roll it.

A new one is made only when what the worker is built from changes: its part of the spec, the platform's, the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duckmesh_operator.manifest import Json, Manifest, dig, digest, object_at, text_at
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import REVISION, child
from duckmesh_operator.specs.context import Context, build_child

#: Parts of the spec that no pod is built from: changing them never rolls a worker.
_NOT_IN_PODS = (
    *("suspend", "paused", "deletionPolicy", "deletionProtection", "tables"),
    *("snapshots", "compaction", "version"),
)

#: Parts of `spec.snapshots` and of `spec.compaction` that the ingest pods get.
_SNAPSHOTS = ("keepFor", "keepLast")
_COMPACTION = ("enabled", "smallFiles")


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

    @property
    def version(self) -> str:
        """Runtime version of the template."""
        return text_at(self.inputs, "version")


def build_inputs(context: Context, component: str) -> Manifest:
    """What a worker's template is built from.

    What a later release builds from gets a key of its own: the operator of the release before, back after a rollback, does
    not look at it, and finds the rest as it left it.
    """
    inputs: Manifest = {
        "version": context.images.version,
        "spec": digest(_worker_spec(context, component)),
        "platform": context.platform_digest,
        "generation": context.tenant.meta.generation,
    }
    if component == "ingest":
        raw = context.tenant.raw_spec
        inputs["snapshots"] = digest([dig(raw, "snapshots", name) for name in _SNAPSHOTS])
        inputs["compaction"] = digest([dig(raw, "compaction", name) for name in _COMPACTION])
    return inputs


def parse_revision(manifest: Json) -> Revision:
    """Read a ControllerRevision of ours; the number comes from the name, which nobody can change."""
    name = text_at(manifest, "metadata", "name")
    tail = name.rpartition("-")[2]
    return Revision(
        name=name,
        number=int(tail) if tail.isdecimal() else 0,
        inputs=object_at(manifest, "data", "inputs"),
        template=object_at(manifest, "data", "template"),
    )


def of_worker(manifests: Sequence[Json], component: str) -> list[Revision]:
    """The revisions of a worker among a Tenant's: by name, which stays when labels go."""
    found = [parse_revision(item) for item in manifests]
    return [one for one in found if one.name.rpartition("-")[0].endswith(f"-{component}")]


def latest(manifests: Sequence[Json], component: str) -> Revision | None:
    """The newest revision of a worker among a Tenant's."""
    return max(of_worker(manifests, component), key=lambda one: one.number, default=None)


def is_current(revision: Revision, inputs: Manifest) -> bool:
    """Whether a revision is still what the worker should be.

    The same generation is the same spec, whatever a newer CRD filled in; a newer generation may have changed only what
    is not in pods.
    """
    if not all(_same(revision, inputs, key) for key in ("version", "platform")):
        return False
    later = (_same(revision, inputs, key) for key in _later(inputs) if key in revision.inputs)
    return _same(revision, inputs, "generation") or (_same(revision, inputs, "spec") and all(later))


def is_outdated(revision: Revision, inputs: Manifest) -> bool:
    """Whether a current revision says less than one of today, or its spec reads otherwise today.

    A newer CRD fills in defaults. At the next generation nobody could tell that from a change of the spec, and the
    worker would be rolled.
    """
    return any(key not in revision.inputs for key in _later(inputs)) or (
        _same(revision, inputs, "generation")
        and not all(_same(revision, inputs, key) for key in ("spec", *_later(inputs)))
    )


def next_revision(
    context: Context, component: str, last: Revision | None, *, template: Manifest, inputs: Manifest
) -> Revision:
    """The revision after `last`; the data of one is immutable, so each has a name of its own."""
    number = 1 if last is None else last.number + 1
    name = child(context.tenant.meta.name, f"{component}-{number}")
    return Revision(name=name, number=number, inputs=inputs, template=template)


def build_revision(tenant: Tenant, component: str, revision: Revision) -> Manifest:
    """The ControllerRevision that keeps a template."""
    manifest = build_child(REVISION, tenant, revision.name, component)
    manifest["revision"] = revision.number
    manifest["data"] = {"inputs": revision.inputs, "template": revision.template}
    return manifest


def _later(inputs: Manifest) -> list[str]:
    """Keys that the first release did not have."""
    return [key for key in inputs if key not in ("version", "spec", "platform", "generation")]


def _same(revision: Revision, inputs: Manifest, key: str) -> bool:
    return revision.inputs.get(key) == inputs[key]


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
    return kept
