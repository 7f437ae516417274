"""Tenant and Compactor as typed values: `parse_*` reads a custom resource, checks its meaning, fills in the defaults.

The CRD (crds/) checks shape at the API server; objects older than a rule of it exist, so what would hurt is checked
again here. Defaults equal the CRD's (tests/contract compares them). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from duckmesh_operator.cron import Schedule, parse
from duckmesh_operator.errors import Invalid
from duckmesh_operator.manifest import Json, Manifest, dig, list_at, number_at, object_at, text_at
from duckmesh_operator.names import lake_name
from duckmesh_operator.quantity import parse_bytes, parse_cpu, parse_duration

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What identifies a custom resource.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        uid: Its uid: names come back, uids do not.
        generation: Counts changes of its spec.
        created: Creation time, RFC 3339.
        deleting: It has a deletion time.
        recorded: Catalog schema of its lake as the catalog says; empty as long as it has not said so.
    """

    namespace: str
    name: str
    uid: str
    generation: int = 1
    created: str = ""
    deleting: bool = False
    recorded: str = ""

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def lake(self) -> str:
        """Catalog schema of a Tenant's lake; one that was handed over keeps its first owner's."""
        return self.recorded or lake_name(self.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """CPU (thousandths of a core) and memory (bytes) of a container; None means the operator's figure."""

    cpu_request: int | None = None
    cpu_limit: int | None = None
    memory_request: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSpec:
    """`spec.ingest`; durations in milliseconds, sizes in bytes."""

    replicas: int = 2
    resources: Resources = Resources()
    min_interval_ms: int = 100
    max_delay_ms: int = 200
    max_rows: int = 500_000
    max_bytes: int = 64 * 2**20
    requests_per_second: int = 0
    pending_bytes: int = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySpec:
    """`spec.query`; durations in milliseconds, sizes in bytes."""

    replicas: int = 1
    resources: Resources = Resources()
    concurrency: int = 4
    timeout_ms: int = 30_000
    memory_bytes: int = 384 * 2**20
    result_bytes: int = 64 * 2**20
    rows: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A Tenant as it should be; see crds/tenant.yaml for each field.

    Attributes:
        meta: What identifies it.
        prefix: Folder of the data in the store's bucket.
        raw_spec: The spec as it came, for telling which part of it changed.
    """

    meta: Meta
    catalog: str = "default"
    store: str = "default"
    prefix: str = ""
    profile: str = "default"
    ingest: IngestSpec = IngestSpec()
    query: QuerySpec = QuerySpec()
    freshness_target_ms: int = 5_000
    freshness_sustained_ms: int = 30_000
    snapshots_keep_for_ms: int = 7 * 86_400_000
    snapshots_keep_last: int = 10
    snapshots_max_age_ms: int = 600_000
    compaction_enabled: bool = True
    compaction_small_files: int = 16
    tables: tuple[Mapping[str, object], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    suspend: bool = False
    paused: bool = False
    deletion_policy: str = "Retain"
    deletion_protection: bool = False
    version: str = ""
    raw_spec: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compactor:
    """A Compactor as it should be; see crds/compactor.yaml. Sizes in bytes, durations in milliseconds.

    Attributes:
        trigger_small_files: None, as the other two, without a trigger.
        schedule: When to run; None means by trigger only.
        integrity: When to check all files; None means never.
    """

    meta: Meta
    tenant: str = ""
    match_labels: Mapping[str, str] | None = None
    match_expressions: tuple[Mapping[str, object], ...] = ()
    trigger_small_files: int | None = None
    trigger_deleted_ratio: float | None = None
    trigger_max_interval_ms: int | None = None
    schedule: Schedule | None = None
    target_file_bytes: int = 128 * 2**20
    target_tier_bytes: tuple[int, ...] = (2**20, 16 * 2**20)
    target_run_bytes: int = 4 * 2**30
    expire_keep_for_ms: int | None = None
    expire_keep_last: int | None = None
    orphan_mode: str = "Report"
    orphan_older_than_ms: int = 72 * 3_600_000
    integrity: Schedule | None = None
    concurrency: int = 1
    resources: Resources = Resources()
    suspend: bool = False
    history_limit: int = 3


def parse_meta(obj: Json) -> Meta:
    """Read `metadata`; the API server guarantees its shape."""
    return Meta(
        namespace=text_at(obj, "metadata", "namespace"),
        name=text_at(obj, "metadata", "name"),
        uid=text_at(obj, "metadata", "uid"),
        generation=number_at(obj, "metadata", "generation") or 1,
        created=text_at(obj, "metadata", "creationTimestamp"),
        deleting=dig(obj, "metadata", "deletionTimestamp") is not None,
    )


def parse_tenant(obj: Json) -> Tenant:
    """Read a Tenant.

    Raises:
        Invalid: Lists every field that cannot be.
    """
    meta, spec = parse_meta(obj), object_at(obj, "spec")
    read = _Reader(spec)
    tenant = Tenant(
        meta=meta,
        catalog=read.text("catalog.name", "default"),
        store=read.text("storage.name", "default"),
        prefix=read.text("storage.prefix", meta.full_name),
        profile=read.text("profile", "default"),
        ingest=_ingest(read),
        query=_query(read),
        freshness_target_ms=read.duration("freshness.target", 5_000, 1),
        freshness_sustained_ms=read.duration("freshness.sustainedFor", 30_000, 0),
        snapshots_keep_for_ms=read.duration("snapshots.keepFor", 7 * 86_400_000, 600_000),
        snapshots_keep_last=read.number("snapshots.keepLast", 10, 1),
        snapshots_max_age_ms=read.duration("snapshots.maxAge", 600_000, 1_000),
        compaction_enabled=read.flag("compaction.enabled", True),
        compaction_small_files=read.number("compaction.smallFiles", 16, 2),
        tables=tuple(item for item in list_at(spec, "tables") if isinstance(item, Mapping)),
        labels=read.texts("labels"),
        annotations=read.texts("annotations"),
        suspend=read.flag("suspend", False),
        paused=read.flag("paused", False),
        deletion_policy=read.choice("deletionPolicy", ("Retain", "Delete")),
        deletion_protection=read.flag("deletionProtection", False),
        version=read.text("version", ""),
        raw_spec=spec,
    )
    if not read.bad and tenant.ingest.max_delay_ms >= tenant.freshness_target_ms:
        read.bad.append("spec.ingest.batch.maxDelay must be below spec.freshness.target")
    if len(meta.name) > 40:
        read.bad.append("metadata.name may have 40 characters at most")
    read.check()
    return tenant


def parse_compactor(obj: Json) -> Compactor:
    """Read a Compactor.

    Raises:
        Invalid: Lists every field that cannot be.
    """
    spec = object_at(obj, "spec")
    read = _Reader(spec)
    trigger = "trigger" in spec
    compactor = Compactor(
        meta=parse_meta(obj),
        tenant=read.text("tenantRef.name", ""),
        match_labels=read.texts("tenantSelector.matchLabels") if "tenantSelector" in spec else None,
        match_expressions=tuple(
            item
            for item in list_at(spec, "tenantSelector", "matchExpressions")
            if isinstance(item, Mapping)
        ),
        trigger_small_files=read.number("trigger.smallFiles", 100, 2) if trigger else None,
        trigger_deleted_ratio=read.ratio("trigger.deletedRatio", 0.2) if trigger else None,
        trigger_max_interval_ms=read.duration("trigger.maxInterval", 86_400_000, 60_000)
        if trigger
        else None,
        schedule=read.schedule("schedule"),
        target_file_bytes=read.size("target.fileSize", 128 * 2**20),
        target_tier_bytes=read.sizes("target.tiers", (2**20, 16 * 2**20)),
        target_run_bytes=read.size("target.maxBytesPerRun", 4 * 2**30),
        expire_keep_for_ms=read.duration("expireSnapshots.keepFor", 0, 600_000) or None,
        expire_keep_last=read.number("expireSnapshots.keepLast", 0, 1) or None,
        orphan_mode=read.choice("orphanFiles.mode", ("Report", "Delete")),
        orphan_older_than_ms=read.duration("orphanFiles.olderThan", 259_200_000, 86_400_000),
        integrity=read.schedule("integrity.schedule"),
        concurrency=read.number("concurrency", 1, 1),
        resources=_resources(read, "resources"),
        suspend=read.flag("suspend", False),
        history_limit=read.number("historyLimit", 3, 0),
    )
    if ("tenantRef" in spec) == ("tenantSelector" in spec):
        read.bad.append("spec needs exactly one of tenantRef and tenantSelector")
    if not trigger and compactor.schedule is None and not read.bad:
        read.bad.append("spec needs trigger, schedule or both")
    read.check()
    return compactor


def _ingest(read: _Reader) -> IngestSpec:
    spec = IngestSpec(
        replicas=read.number("ingest.replicas", 2, 1),
        resources=_resources(read, "ingest.resources"),
        min_interval_ms=read.duration("ingest.batch.minInterval", 100, 0),
        max_delay_ms=read.duration("ingest.batch.maxDelay", 200, 0),
        max_rows=read.number("ingest.batch.maxRows", 500_000, 1),
        max_bytes=read.size("ingest.batch.maxBytes", 64 * 2**20),
        requests_per_second=read.number("ingest.limits.requestsPerSecond", 0, 0),
        pending_bytes=read.size("ingest.limits.pendingBytes", 2**30),
    )
    if not read.bad and spec.min_interval_ms > spec.max_delay_ms:
        read.bad.append("spec.ingest.batch.minInterval must not be above maxDelay")
    return spec


def _query(read: _Reader) -> QuerySpec:
    return QuerySpec(
        replicas=read.number("query.replicas", 1, 0),
        resources=_resources(read, "query.resources"),
        concurrency=read.number("query.limits.concurrency", 4, 1),
        timeout_ms=read.duration("query.limits.timeout", 30_000, 1),
        memory_bytes=read.size("query.limits.memory", 384 * 2**20),
        result_bytes=read.size("query.limits.resultBytes", 64 * 2**20),
        rows=read.number("query.limits.rows", 1_000_000, 1),
    )


def _resources(read: _Reader, path: str) -> Resources:
    found = Resources(
        cpu_request=read.cpu(f"{path}.requests.cpu"),
        cpu_limit=read.cpu(f"{path}.limits.cpu"),
        memory_request=read.size(f"{path}.requests.memory", 0) or None,
        memory_limit=read.size(f"{path}.limits.memory", 0) or None,
    )
    pairs = {"cpu": (found.cpu_request, found.cpu_limit)} | {
        "memory": (found.memory_request, found.memory_limit)
    }
    for name, (request, limit) in pairs.items():
        if request is not None and limit is not None and request > limit:
            read.bad.append(f"spec.{path}.requests.{name} must not be above limits.{name}")
    return found


class _Reader:
    """Takes values by dotted path and collects problems instead of stopping at the first."""

    def __init__(self, spec: Manifest) -> None:
        self._spec = spec
        self.bad: list[str] = []

    def check(self) -> None:
        if self.bad:
            raise Invalid(self.bad)

    def text(self, path: str, default: str) -> str:
        return self._take(path, default, str)

    def flag(self, path: str, default: bool) -> bool:
        return self._take(path, default, _as_flag)

    def choice(self, path: str, allowed: tuple[str, ...]) -> str:
        def parse(value: object) -> str:
            if value not in allowed:
                raise ValueError(f"{value!r} is not one of " + ", ".join(allowed))
            return str(value)

        return self._take(path, allowed[0], parse)

    def number(self, path: str, default: int, low: int) -> int:
        return self._take(path, default, lambda value: _at_least(low, _as_number(value)))

    def ratio(self, path: str, default: float) -> float:
        return self._take(path, default, _as_ratio)

    def duration(self, path: str, default_ms: int, low_ms: int) -> int:
        def parse(value: object) -> int:
            found = parse_duration(value)
            if found < low_ms:
                raise ValueError(f"{value!r} is too short; want {low_ms} ms at least")
            return found

        return self._take(path, default_ms, parse)

    def size(self, path: str, default: int) -> int:
        return self._take(path, default, lambda value: _at_least(1, parse_bytes(value)))

    def sizes(self, path: str, default: tuple[int, ...]) -> tuple[int, ...]:
        if dig(self._spec, *path.split(".")) is None:
            return default
        try:
            return tuple(parse_bytes(item) for item in list_at(self._spec, *path.split(".")))
        except ValueError as error:
            self.bad.append(f"spec.{path}: {error}")
            return default

    def schedule(self, path: str) -> Schedule | None:
        zone = self.text("timeZone", "Etc/UTC")
        return self._take(path, None, lambda value: parse(str(value), zone))

    def cpu(self, path: str) -> int | None:
        return self._take(path, 0, lambda value: _at_least(1, parse_cpu(value))) or None

    def texts(self, path: str) -> dict[str, str]:
        found = object_at(self._spec, *path.split("."))
        return {str(key): str(value) for key, value in found.items()}

    def _take(self, path: str, default: T, parse: Callable[[object], T]) -> T:
        value = dig(self._spec, *path.split("."))
        if value is None:
            return default
        try:
            return parse(value)
        except ValueError as error:
            self.bad.append(f"spec.{path}: {error}")
            return default


def _as_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _as_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _as_ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{value!r} is not above 0 and 1 at most")
    return float(value)


def _at_least(low: int, value: int) -> int:
    if value < low:
        raise ValueError(f"{value} is too small; want {low} at least")
    return value
