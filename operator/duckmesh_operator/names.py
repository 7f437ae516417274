"""Names that operator, runtime, chart and people share: kinds, labels, annotations, child names. Pure.

`docs/architecture.md` (Seam between operator and runtime) is the contract; tests/contract holds the runtime to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from duckmesh_operator.manifest import Manifest

GROUP: Final = "duckmesh.io"
VERSION: Final = "v1alpha1"
FIELD_MANAGER: Final = "duckmesh"
MANAGED_BY: Final = "duckmesh-operator"

#: Newest migration in the runtime's sql/catalog; a lake below it gets a migrate Job. tests/contract compares the two.
MIGRATION: Final = 10

#: The component of a Compactor's Jobs.
COMPACT: Final = "compact"

API_PORT: Final = 8080
METRICS_PORT: Final = 9090

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_TENANT: Final = "duckmesh.io/tenant"
LABEL_TENANT_UID: Final = "duckmesh.io/tenant-uid"
LABEL_TENANT_NAMESPACE: Final = (
    "duckmesh.io/tenant-namespace"  # on Jobs: they lie in the operator's namespace
)
LABEL_COMPACTOR: Final = "duckmesh.io/compactor"
ANNOTATION_DIGEST: Final = "duckmesh.io/applied-digest"
#: What a Job of a Compactor has to remember: its number in a row of failures, the spec it was made by, what it checks.
ANNOTATION_ATTEMPT: Final = "duckmesh.io/attempt"
ANNOTATION_GENERATION: Final = "duckmesh.io/compactor-generation"
ANNOTATION_INTEGRITY: Final = "duckmesh.io/integrity"
#: On Tenants with deletionPolicy Delete and on no other object: their data goes before they do.
FINALIZER: Final = "duckmesh.io/data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A resource of the API server.

    Attributes:
        api_version: `v1` or `group/version`.
        kind: Name in manifests.
        plural: Name in URLs.
    """

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """URL path of a collection, an object or a subresource; namespace None means all of the cluster."""
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


TENANT: Final = Kind(api_version=f"{GROUP}/{VERSION}", kind="Tenant", plural="tenants")
COMPACTOR: Final = Kind(api_version=f"{GROUP}/{VERSION}", kind="Compactor", plural="compactors")
DEPLOYMENT: Final = Kind(api_version="apps/v1", kind="Deployment", plural="deployments")
REVISION: Final = Kind(
    api_version="apps/v1", kind="ControllerRevision", plural="controllerrevisions"
)
SERVICE: Final = Kind(api_version="v1", kind="Service", plural="services")
CONFIG_MAP: Final = Kind(api_version="v1", kind="ConfigMap", plural="configmaps")
SECRET: Final = Kind(api_version="v1", kind="Secret", plural="secrets")
EVENT: Final = Kind(api_version="v1", kind="Event", plural="events")
NETWORK_POLICY: Final = Kind(
    api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"
)
DISRUPTION_BUDGET: Final = Kind(
    api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets"
)
JOB: Final = Kind(api_version="batch/v1", kind="Job", plural="jobs")
LEASE: Final = Kind(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")

#: Children in the Tenant's namespace, watched by label; Secrets are read by name: listing them is too much right.
CHILDREN: Final = (NETWORK_POLICY, SERVICE, CONFIG_MAP, REVISION, DEPLOYMENT, DISRUPTION_BUDGET)

KINDS: Final = {
    kind.kind: kind
    for kind in (
        *(TENANT, COMPACTOR, DEPLOYMENT, REVISION, SERVICE, CONFIG_MAP, SECRET, EVENT),
        *(NETWORK_POLICY, DISRUPTION_BUDGET, JOB, LEASE),
    )
}


def kind_of(manifest: Manifest) -> Kind:
    """The kind of a manifest that we made."""
    return KINDS[str(manifest["kind"])]


def child(tenant: str, part: str) -> str:
    """Name of a Tenant's child. Tenants have 40 characters at most, so this stays below 63."""
    return f"{tenant}-{part}"


def lake_name(uid: str) -> str:
    """Catalog schema of a Tenant: from its uid, since names come back and are public in `pg_stat_activity`."""
    return "lake_" + uid.replace("-", "").lower()[:16]


def logins(lake: str) -> tuple[str, str, str]:
    """The lake's writer, maintenance and reader login."""
    return f"{lake}_w", f"{lake}_m", f"{lake}_r"


def migrate_job(lake: str, migration: int = MIGRATION) -> str:
    """Name of the Job that brings a lake to a migration."""
    return f"duckmesh-migrate-{lake.removeprefix('lake_')}-{migration}"


def purge_job(uid: str) -> str:
    """Name of the Job that removes a Tenant's lake."""
    return f"duckmesh-purge-{lake_name(uid).removeprefix('lake_')}"


def compact_job(compactor: str, uid: str, tenant_uid: str, after: str) -> str:
    """Name of a Compactor's Job for a Tenant that follows a run; below 63 characters with a pod's suffix."""
    packed = hashlib.sha256(f"{uid}/{tenant_uid}/{after}".encode()).hexdigest()
    return f"{compactor}-{packed[:12]}"


def adoption(namespace: str, tenant: str) -> str:
    """Name of the ConfigMap in the operator's namespace by which the platform hands retained data to a Tenant.

    Its `uid` is the Tenant's. A namespace has no dot, so no two Tenants share a name.
    """
    return f"duckmesh-adopt.{namespace}.{tenant}"


def labels(tenant: str, uid: str, component: str) -> dict[str, str]:
    """Labels of a Tenant's child; a fresh dict on each call."""
    return {
        LABEL_NAME: "duckmesh",
        LABEL_COMPONENT: component,
        LABEL_INSTANCE: tenant,
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_TENANT: tenant,
        LABEL_TENANT_UID: uid,
    }


def pod_selector(tenant: str, uid: str, component: str) -> dict[str, str]:
    """Labels that name one worker's pods; immutable in a Deployment, so only what never changes."""
    return {LABEL_COMPONENT: component, LABEL_TENANT: tenant, LABEL_TENANT_UID: uid}
