"""What the builders need to know beside the Tenant: its catalog, store, profile, images; checked against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from duckmesh_operator.errors import Invalid
from duckmesh_operator.manifest import Json, Manifest, digest, object_at, text_at
from duckmesh_operator.model import Meta, Resources, Tenant
from duckmesh_operator.names import ANNOTATION_DIGEST, TENANT, Kind, labels
from duckmesh_operator.quantity import format_bytes, format_cpu, parse_bytes, parse_cpu
from duckmesh_operator.settings import Caps, CatalogConfig, Profile, Settings, StoreConfig

#: Memory of a sandbox container beside its query processes: the supervisor and page cache. A guess, with room.
SANDBOX_OVERHEAD: Final = 256 * 2**20
_INGEST = Resources(cpu_request=100, cpu_limit=2000, memory_request=256 * 2**20, memory_limit=2**30)
#: A Compactor's Job; its figure is the platform's, within the caps of the ingest container: it does the same work.
_COMPACT = Resources(
    cpu_request=100, cpu_limit=2000, memory_request=256 * 2**20, memory_limit=2**30
)
_QUERY_FRONT = Resources(
    cpu_request=50, cpu_limit=1000, memory_request=192 * 2**20, memory_limit=2**30
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Images of one runtime version."""

    version: str
    runtime: str
    sandbox: str
    pull_policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A valid Tenant with what its names stand for.

    Attributes:
        tenant: The Tenant.
        catalog: Its catalog.
        store: Its store.
        profile: Its profile.
        images: Of its version.
        postgres_ports: TCP ports of the catalog.
        operator_namespace: Where migrate and purge Jobs run.
        ingest: Resources of the ingest container, within the caps.
        sandbox: Resources of the sandbox container, within the caps.
    """

    tenant: Tenant
    catalog: CatalogConfig
    store: StoreConfig
    profile: Profile
    images: Images
    postgres_ports: tuple[int, ...]
    operator_namespace: str
    ingest: Resources
    sandbox: Resources

    @property
    def data_url(self) -> str:
        """Where the lake's Parquet lies; ends with a slash."""
        return data_url(self.store, self.tenant)

    @property
    def front(self) -> Resources:
        """Resources of the container in front of the sandbox: it passes bytes on and freezes catalogs."""
        return _QUERY_FRONT

    @property
    def platform_digest(self) -> str:
        """Changes when the platform's part of a worker changes: profile and store, as written."""
        store = self.store
        return digest([self.profile.digest, store.bucket, store.endpoint, store.region])


def data_url(store: StoreConfig, tenant: Tenant) -> str:
    """`s3://bucket/prefix/` of a Tenant."""
    return f"s3://{store.bucket}/{tenant.prefix}/"


def build_context(
    tenant: Tenant, settings: Settings, *, pinned_version: str, postgres_ports: tuple[int, ...]
) -> Context:
    """Resolve a Tenant's names and check its sizes.

    Args:
        tenant: The Tenant.
        settings: The operator's configuration.
        pinned_version: Version that the Tenant got when it was made; empty for a new one.
        postgres_ports: TCP ports of its catalog.

    Raises:
        Invalid: Lists every name that the configuration lacks and every size above its cap.
    """
    bad: list[str] = []
    catalog = settings.catalogs.get(tenant.catalog)
    store = settings.stores.get(tenant.store)
    profile = settings.profiles.get(tenant.profile)
    if catalog is None:
        bad.append(_unknown("spec.catalog.name", tenant.catalog, settings.catalogs))
    if store is None:
        bad.append(_unknown("spec.storage.name", tenant.store, settings.stores))
    if profile is None:
        bad.append(_unknown("spec.profile", tenant.profile, settings.profiles))
    bad += _refuse_keys("spec.labels", tenant.labels, settings.allowed_labels)
    bad += _refuse_keys("spec.annotations", tenant.annotations, settings.allowed_annotations)
    images = build_images(settings, tenant.version or pinned_version, bad)
    caps = profile or Profile(name="")
    ingest = fit("spec.ingest.resources", tenant.ingest.resources, _INGEST, caps.ingest, bad)
    sandbox = _fit_sandbox(tenant, caps.query, bad)
    if bad or catalog is None or store is None or profile is None:
        raise Invalid(bad)
    return Context(
        tenant=tenant,
        catalog=catalog,
        store=store,
        profile=profile,
        images=images,
        postgres_ports=catalog.egress.ports or postgres_ports,
        operator_namespace=settings.namespace,
        ingest=ingest,
        sandbox=sandbox,
    )


def fit_compaction(asked: Resources, profile: Profile) -> Resources:
    """Resources of a Compactor's Job for a Tenant of this profile.

    Raises:
        Invalid: Lists every size above its cap.
    """
    bad: list[str] = []
    found = fit("spec.resources", asked, _COMPACT, profile.ingest, bad)
    if bad:
        raise Invalid(bad)
    return found


def build_bare_context(meta: Meta, obj: Json, settings: Settings) -> Context:
    """What the Job that removes a Tenant's lake must know: where things are, whatever else its spec says.

    Args:
        meta: The Tenant's.
        obj: The Tenant as the API server has it.
        settings: The operator's configuration.

    Raises:
        Invalid: Lists every name that the configuration lacks.
    """
    bad: list[str] = []
    tenant = Tenant(
        meta=meta,
        catalog=text_at(obj, "spec", "catalog", "name") or "default",
        store=text_at(obj, "spec", "storage", "name") or "default",
        prefix=text_at(obj, "spec", "storage", "prefix") or meta.full_name,
    )
    catalog, store = settings.catalogs.get(tenant.catalog), settings.stores.get(tenant.store)
    if catalog is None:
        bad.append(_unknown("spec.catalog.name", tenant.catalog, settings.catalogs))
    if store is None:
        bad.append(_unknown("spec.storage.name", tenant.store, settings.stores))
    images = build_images(settings, "", bad)
    if bad or catalog is None or store is None:
        raise Invalid(bad)
    return Context(
        tenant=tenant,
        catalog=catalog,
        store=store,
        profile=Profile(name=""),
        images=images,
        postgres_ports=catalog.egress.ports,
        operator_namespace=settings.namespace,
        ingest=Resources(),
        sandbox=Resources(),
    )


def build_images(settings: Settings, version: str, bad: list[str]) -> Images:
    """Images of a version: the configured ones, or their repositories at another tag."""
    wanted = version or settings.runtime_version
    pair = [settings.runtime_image, settings.sandbox_image]
    if wanted != settings.runtime_version:
        if any("@" in image for image in pair):
            bad.append(
                f"spec.version: {wanted} is not {settings.runtime_version}, the only version of this installation, "
                "since its images are pinned by digest"
            )
        pair = [f"{_repository(image)}:{wanted}" for image in pair]
    return Images(
        version=wanted,
        runtime=pair[0],
        sandbox=pair[1],
        pull_policy=settings.image_pull_policy,
    )


def fit(field: str, asked: Resources, usual: Resources, caps: Caps, bad: list[str]) -> Resources:
    """Fill what is not asked for with the usual figure, lowered to the caps; refuse what is asked above them."""
    cpu_cap = parse_cpu(caps.cpu) if caps.cpu else None
    memory_cap = parse_bytes(caps.memory) if caps.memory else None
    for part, value, cap, text in (
        ("limits.cpu", asked.cpu_limit, cpu_cap, caps.cpu),
        ("requests.cpu", asked.cpu_request, cpu_cap, caps.cpu),
        ("limits.memory", asked.memory_limit, memory_cap, caps.memory),
        ("requests.memory", asked.memory_request, memory_cap, caps.memory),
    ):
        if value is not None and cap is not None and value > cap:
            bad.append(f"{field}.{part} is above {text}, the cap of the profile; ask for less")
    cpu_limit = _pick(asked.cpu_limit, max(usual.cpu_limit or 0, asked.cpu_request or 0), cpu_cap)
    memory_limit = _pick(
        asked.memory_limit, max(usual.memory_limit or 0, asked.memory_request or 0), memory_cap
    )
    return Resources(
        cpu_limit=cpu_limit,
        memory_limit=memory_limit,
        cpu_request=_pick(asked.cpu_request, usual.cpu_request or 0, cpu_limit),
        memory_request=_pick(asked.memory_request, usual.memory_request or 0, memory_limit),
    )


def build_resources(found: Resources) -> Manifest:
    """`resources` of a container, in the API server's spelling."""
    return {
        "requests": {
            "cpu": format_cpu(found.cpu_request or 0),
            "memory": format_bytes(found.memory_request or 0),
        },
        "limits": {
            "cpu": format_cpu(found.cpu_limit or 0),
            "memory": format_bytes(found.memory_limit or 0),
        },
    }


def build_child(kind: Kind, tenant: Tenant, name: str, component: str) -> Manifest:
    """The head of a child in the Tenant's namespace: identity, labels, owner."""
    meta = tenant.meta
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": labels(meta.name, meta.uid, component),
            # Not blocking: that needs the right to change the Tenant's finalizers on some clusters.
            "ownerReferences": [
                {
                    "apiVersion": TENANT.api_version,
                    "kind": TENANT.kind,
                    "name": meta.name,
                    "uid": meta.uid,
                    "controller": True,
                }
            ],
        },
    }


def seal(manifest: Manifest) -> Manifest:
    """The manifest with the digest of itself, so that a field we no longer set is noticed too."""
    metadata = object_at(manifest, "metadata")
    metadata["annotations"] = object_at(metadata, "annotations") | {
        ANNOTATION_DIGEST: digest(manifest)
    }
    return {**manifest, "metadata": metadata}


def _fit_sandbox(tenant: Tenant, caps: Caps, bad: list[str]) -> Resources:
    need = tenant.query.concurrency * tenant.query.memory_bytes
    usual = Resources(
        cpu_request=100,
        cpu_limit=2000,
        memory_request=256 * 2**20,
        memory_limit=need + SANDBOX_OVERHEAD,
    )
    found = fit("spec.query.resources", tenant.query.resources, usual, caps, bad)
    if not bad and (found.memory_limit or 0) < need:
        bad.append(
            f"spec.query.limits: {tenant.query.concurrency} queries of {format_bytes(tenant.query.memory_bytes)} need "
            f"{format_bytes(need)}, above the sandbox's memory limit of {format_bytes(found.memory_limit or 0)}; lower "
            "concurrency or memory, or raise spec.query.resources.limits.memory within the profile's cap"
        )
    return found


def _pick(asked: int | None, usual: int, cap: int | None) -> int:
    if asked is not None:
        return asked
    return usual if cap is None else min(usual, cap)


def _unknown(field: str, value: str, known: Iterable[str]) -> str:
    return f"{field}: {value} is not configured; choose one of {', '.join(sorted(known))}"


def _refuse_keys(field: str, found: Iterable[str], allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{field}: the key {key} is not on the platform's list of allowed keys; remove it"
        for key in sorted(found)
        if key not in allowed
    ]


def _repository(image: str) -> str:
    head, slash, tail = image.rpartition("/")
    return head + slash + tail.partition(":")[0]
