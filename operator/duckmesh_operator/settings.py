"""The operator's settings: a few values from the environment, the rest from one YAML file. Leaf module.

Read once in `__main__` and passed down. All bad values are reported together. Credentials are not part of it: catalogs
and stores name folders of mounted Secrets, read when a connection is made, so that a rotated credential is picked up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import yaml

from duckmesh_operator.errors import SettingsError
from duckmesh_operator.quantity import parse_bytes, parse_cpu

T = TypeVar("T")
_NAME: Final = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_VERSION: Final = re.compile(r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$")
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Where a NetworkPolicy lets workers go to reach a catalog or a store.

    Attributes:
        cidrs: Networks in CIDR form.
        peers: NetworkPolicy peers (`namespaceSelector`, `podSelector`), passed on as they are.
        ports: TCP ports; empty takes those of the address. Needed where a Service maps to other ports of its pods.
    """

    cidrs: tuple[str, ...] = ()
    peers: tuple[Mapping[str, object], ...] = ()
    ports: tuple[int, ...] = ()

    @property
    def restricted(self) -> bool:
        """Whether it names any place; if not, the ports are open anywhere."""
        return bool(self.cidrs or self.peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogConfig:
    """A catalog database.

    Attributes:
        name: What `spec.catalog.name` says.
        secret_dir: Folder with `control-dsn`, a libpq URI of the operator's own login.
        admin_secret: Secret in the operator's namespace with `admin-dsn`; mounted into migrate and purge Jobs only.
        egress: Where it lies, for NetworkPolicies.
    """

    name: str
    secret_dir: Path
    admin_secret: str
    egress: Egress = Egress()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """An object store.

    Attributes:
        name: What `spec.storage.name` says.
        bucket: Bucket of all its Tenants.
        endpoint: Base URL of the S3 service; empty means AWS's own for the region.
        region: S3 region.
        secret_dir: Folder with `access-key-id` and `secret-access-key`.
        secret: The same as a Secret in the operator's namespace; mounted into purge Jobs only.
        egress: Where it lies, for NetworkPolicies.
    """

    name: str
    bucket: str
    secret_dir: Path
    secret: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    egress: Egress = Egress()

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that workers need to reach."""
        parts = urlsplit(self.endpoint or "https://s3.amazonaws.com")
        return self.egress.ports or (parts.port or (80 if parts.scheme == "http" else 443),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Largest resources of one container; empty text means no cap.

    Attributes:
        cpu: Quantity.
        memory: Quantity.
    """

    cpu: str = ""
    memory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Size caps and placement of worker pods.

    Attributes:
        name: What `spec.profile` says.
        ingest: Caps of the ingest container.
        query: Caps of the sandbox container.
        placement: `nodeSelector`, `tolerations`, `affinity`, `priorityClassName` and `topologySpreadConstraints` of a
            pod, as far as given; constraints get the worker's label selector.
        digest: Changes when the profile as written does; workers are rolled then.
    """

    name: str
    ingest: Caps = Caps()
    query: Caps = Caps()
    placement: Mapping[str, object] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One operator process's settings.

    Attributes:
        namespace: The operator's own namespace: Lease, canary and migrate Jobs.
        pod_name: Names this process in the Lease and in Events.
        kubeconfig: File for running outside of a cluster; None means the pod's service account.
        bind: Address of health and metrics.
        port: Port of health and metrics; 0 picks a free one.
        log_format: `json` or `text`.
        log_level: `debug`, `info`, `warning` or `error`.
        runtime_image: Image of ingest, query and migrate at `runtime_version`.
        sandbox_image: Image of the sandbox container at `runtime_version`.
        runtime_version: Version of new Tenants.
        image_pull_policy: Of all worker containers.
        watch_namespaces: Namespaces to serve; empty means all.
        deletion_protection: The cluster has the admission policy that `spec.deletionProtection` works by.
        sweep_s: Seconds between two looks at the lag of all lakes.
        resync_s: Seconds after which a Tenant is looked at again without an event.
        deletion_timeout_s: Seconds after which a Tenant that is deleted goes whether or not its data could be removed.
        workers: Reconciles at a time.
        allowed_labels: Keys of `spec.labels` that reach pods.
        allowed_annotations: Keys of `spec.annotations` that reach pods.
        catalogs: By name.
        stores: By name.
        profiles: By name.
    """

    namespace: str
    pod_name: str = "duckmesh-operator"
    kubeconfig: Path | None = None
    bind: str = "0.0.0.0"  # noqa: S104 - a pod's probes come from outside of it
    port: int = 9090
    log_format: str = "json"
    log_level: str = "info"
    runtime_image: str = ""
    sandbox_image: str = ""
    runtime_version: str = ""
    image_pull_policy: str = "IfNotPresent"
    watch_namespaces: tuple[str, ...] = ()
    deletion_protection: bool = True
    sweep_s: float = 5.0
    resync_s: float = 300.0
    deletion_timeout_s: float = 600.0
    workers: int = 10
    allowed_labels: tuple[str, ...] = ()
    allowed_annotations: tuple[str, ...] = ()
    catalogs: Mapping[str, CatalogConfig] = field(default_factory=dict)
    stores: Mapping[str, StoreConfig] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)


def from_env(env: Mapping[str, str]) -> Settings:
    """Read the settings of the process and of the YAML file it names.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    bad: list[str] = []
    namespace = env.get("DUCKMESH_OPERATOR_NAMESPACE", "") or _own_namespace()
    if not namespace:
        bad.append("DUCKMESH_OPERATOR_NAMESPACE: missing, and there is no service account to tell")
    kubeconfig = env.get("KUBECONFIG", "").split(":")[0]
    values = _Reader(_load(env.get("DUCKMESH_OPERATOR_CONFIG", ""), bad), bad)
    process = _Reader(env, bad)
    settings = Settings(
        namespace=namespace,
        pod_name=env.get("DUCKMESH_POD_NAME", "") or "duckmesh-operator",
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
        bind=env.get("DUCKMESH_BIND", "") or "0.0.0.0",  # noqa: S104 - as above
        port=int(process.number("DUCKMESH_METRICS_PORT", 9090, 0, 65535)),
        log_format=process.choice("DUCKMESH_LOG_FORMAT", "json", ("json", "text")),
        log_level=process.choice(
            "DUCKMESH_LOG_LEVEL", "info", ("debug", "info", "warning", "error")
        ),
        runtime_image=values.text("runtimeImage"),
        sandbox_image=values.text("sandboxImage"),
        runtime_version=values.text("runtimeVersion", matches=_VERSION),
        image_pull_policy=values.choice(
            "imagePullPolicy", "IfNotPresent", ("Always", "IfNotPresent", "Never")
        ),
        watch_namespaces=values.texts("watchNamespaces"),
        deletion_protection=values.flag("deletionProtection", True),
        sweep_s=values.number("sweepSeconds", 5, 0.1, 60),
        resync_s=values.number("resyncSeconds", 300, 5, 3600),
        deletion_timeout_s=values.number("deletionTimeoutSeconds", 600, 1, 600),
        workers=int(values.number("workers", 10, 1, 100)),
        allowed_labels=values.texts("allowedLabels"),
        allowed_annotations=values.texts("allowedAnnotations"),
        catalogs=values.named("catalogs", _catalog),
        stores=values.named("stores", _store),
        profiles=values.named("profiles", _profile),
    )
    values.refuse_rest()
    if bad:
        raise SettingsError("the configuration is wrong: " + "; ".join(bad))
    return settings


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else ""


def _load(file: str, bad: list[str]) -> Mapping[str, object]:
    if not file:
        bad.append("DUCKMESH_OPERATOR_CONFIG: missing; it names the YAML file of the configuration")
        return {}
    try:
        loaded = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        bad.append(f"DUCKMESH_OPERATOR_CONFIG: the file cannot be read ({error.strerror})")
        return {}
    except yaml.YAMLError:
        bad.append("DUCKMESH_OPERATOR_CONFIG: the file is not YAML")
        return {}
    if not isinstance(loaded, Mapping):
        bad.append("DUCKMESH_OPERATOR_CONFIG: want a mapping of names to values")
        return {}
    return loaded


def _catalog(name: str, read: _Reader) -> CatalogConfig:
    return CatalogConfig(
        name=name,
        secret_dir=Path(read.text("secretDir")),
        admin_secret=read.text("adminSecret"),
        egress=_egress(read),
    )


def _store(name: str, read: _Reader) -> StoreConfig:
    endpoint = read.text("endpoint", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        read.refuse("endpoint", "want http://host:port or https://host")
    return StoreConfig(
        name=name,
        bucket=read.text("bucket"),
        endpoint=endpoint,
        region=read.text("region", "us-east-1"),
        secret_dir=Path(read.text("secretDir")),
        secret=read.text("secret", ""),
        egress=_egress(read),
    )


def _egress(read: _Reader) -> Egress:
    inner = read.inner("egress")
    egress = Egress(
        cidrs=inner.texts("cidrs"),
        peers=inner.objects("peers"),
        ports=inner.ports("ports"),
    )
    inner.refuse_rest()
    return egress


def _profile(name: str, read: _Reader) -> Profile:
    packed = json.dumps(read.raw, sort_keys=True, default=str)
    placement = {
        key: value
        for key in (
            *("nodeSelector", "tolerations", "affinity"),
            *("priorityClassName", "topologySpreadConstraints"),
        )
        if (value := read.any(key))
    }
    return Profile(
        name=name,
        ingest=_caps(read.inner("ingest")),
        query=_caps(read.inner("query")),
        placement=placement,
        digest=hashlib.sha256(packed.encode()).hexdigest()[:16],
    )


def _caps(read: _Reader) -> Caps:
    inner = read.inner("max")
    caps = Caps(
        cpu=inner.scalar("cpu", parse_cpu),
        memory=inner.scalar("memory", parse_bytes),
    )
    inner.refuse_rest()
    read.refuse_rest()
    return caps


class _Reader:
    """Takes values out of one mapping and collects problems instead of stopping at the first."""

    def __init__(self, raw: Mapping[str, object], bad: list[str], where: str = "") -> None:
        self.raw = raw
        self._bad = bad
        self._where = where
        self._seen: set[str] = set()

    def refuse(self, name: str, problem: str) -> None:
        self._bad.append(f"{self._where}{name}: {problem}")

    def refuse_rest(self) -> None:
        """Refuse names that nothing asked for: a typing mistake must not pass as a default."""
        for name in sorted(set(self.raw) - self._seen, key=str):
            self.refuse(str(name), "unknown name")

    def any(self, name: str) -> object:
        self._seen.add(name)
        return self.raw.get(name)

    def scalar(self, name: str, check: Callable[[object], int]) -> str:
        value = self.any(name)
        if value is None:
            return ""
        try:
            check(value)
        except ValueError as error:
            self.refuse(name, str(error))
        return str(value)

    def text(
        self, name: str, default: str | None = None, matches: re.Pattern[str] | None = None
    ) -> str:
        value = self.any(name)
        if value is None or value == "":
            if default is None:
                self.refuse(name, "missing")
            return default or ""
        if not isinstance(value, str):
            self.refuse(name, f"{value!r} is not a text; put it in quotes")
            return ""
        if matches and not matches.match(value):
            self.refuse(name, f"{value!r} does not look like one; want {matches.pattern}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.any(name)
        try:
            found = default if value is None or value == "" else float(str(value))
        except ValueError:
            found = low - 1
        if not low <= found <= high:
            self.refuse(name, f"{value!r} is not a number from {low} to {high}")
        return found

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.any(name) or default
        if value not in allowed:
            self.refuse(name, f"{value!r} is not one of " + ", ".join(allowed))
        return str(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.any(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, f"{value!r} is not true or false")
        return value if isinstance(value, bool) else default

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._list(name, str, "texts"))

    def objects(self, name: str) -> tuple[Mapping[str, object], ...]:
        return tuple(self._list(name, dict, "objects"))

    def ports(self, name: str) -> tuple[int, ...]:
        return tuple(self._list(name, int, "numbers"))

    def _list(self, name: str, kind: type[T], words: str) -> list[T]:
        value = self.any(name) or []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            self.refuse(name, f"want a list of {words}")
            return []
        return value

    def inner(self, name: str) -> _Reader:
        value = self.any(name)
        if value is not None and not isinstance(value, Mapping):
            self.refuse(name, "want a mapping")
        inner = value if isinstance(value, Mapping) else {}
        return _Reader(inner, self._bad, f"{self._where}{name}.")

    def named(self, name: str, make: Callable[[str, _Reader], T]) -> dict[str, T]:
        """A list of mappings with a unique `name`; at least one."""
        made: dict[str, T] = {}
        items = self.objects(name)
        if not items:
            self.refuse(name, "want one entry at least")
        for index, item in enumerate(items):
            read = _Reader(item, self._bad, f"{self._where}{name}[{index}].")
            key = read.text("name", matches=_NAME)
            if key in made:
                read.refuse("name", f"{key!r} is there twice")
            made[key] = make(key, read)
            read.refuse_rest()
        return made
