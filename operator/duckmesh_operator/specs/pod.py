"""Pod templates of workers and Jobs: restricted Pod Security, probes, drain, no credentials to spare.

A template is what rolls pods, so it holds nothing that changes by itself: no digests, no times, no replica counts.
"""

from __future__ import annotations

import math
from typing import Final

from duckmesh_operator.manifest import Manifest, object_at
from duckmesh_operator.model import Resources
from duckmesh_operator.names import (
    API_PORT,
    COMPACT,
    METRICS_PORT,
    child,
    labels,
    pod_selector,
)
from duckmesh_operator.specs.context import Context, build_resources
from duckmesh_operator.specs.tables import FILE as TABLES_FILE
from duckmesh_operator.specs.tables import PART as TABLES

UID: Final = 10001  # of the runtime image
SECRETS_DIR: Final = "/etc/duckmesh"
SOCKET_DIR: Final = "/run/duckmesh/sandbox"
CATALOG_DIR: Final = "/run/duckmesh/catalogs"
#: Seconds a stopping worker may take to answer what it accepted.
DRAIN_S: Final = 20
#: Part of it in which the query process answers what runs; tests/contract compares it with the runtime's.
QUERY_ANSWER_PART: Final = 0.9
#: A drained node waits no longer than this for queries.
QUERY_DRAIN_MAX_S: Final = 300
#: kube-proxy drops an ending pod a moment after SIGTERM; until then it still gets connections.
PRE_STOP_S: Final = 2
#: Seconds between the end of the drain and the kill: requests that do not end when told to, closing connections.
MARGIN_S: Final = 12
#: Disk of /tmp; a container past it is evicted instead of filling the node.
TMP_BYTES: Final = "4Gi"


def build_ingest_template(context: Context) -> Manifest:
    """Template of `<tenant>-ingest`."""
    secrets = ("writer", "maintenance", "store", "auth")
    container = _worker(
        context,
        name="ingest",
        env=_ingest_env(context),
        resources=context.ingest,
        mounts=[
            *_secret_mounts((*secrets, TABLES)),
            _mount("run", "/run/duckmesh"),
            _mount("tmp", "/tmp"),  # noqa: S108
        ],
    )
    # Kubernetes replaces the file under running pods; nothing here tells its content, so no change of it rolls them.
    tables: Manifest = {"name": child(context.tenant.meta.name, TABLES), "defaultMode": 0o440}
    volumes: list[Manifest] = [
        *_secret_volumes(context, secrets),
        {"name": TABLES, "configMap": tables},
        *(_scratch("run", "1Gi"), _scratch("tmp")),
    ]
    return _template(context, "ingest", [container], volumes, drain_s=DRAIN_S)


def build_query_template(context: Context) -> Manifest:
    """Template of `<tenant>-query`: the container with the keys, and the one that runs the tenant's SQL without any."""
    secrets = ("reader", "store", "auth")
    front = _worker(
        context,
        name="query",
        env=_query_env(context),
        resources=context.front,
        mounts=[*_secret_mounts(secrets), *_shared_mounts(read_only=False), _mount("tmp", "/tmp")],  # noqa: S108
    )
    sandbox = _container(
        context,
        name="sandbox",
        image=context.images.sandbox,
        args=["sandbox"],
        env=_sandbox_env(context),
        resources=context.sandbox,
        mounts=[*_shared_mounts(read_only=True), _mount("sandbox-tmp", "/tmp")],  # noqa: S108
    )
    volumes = [
        *_secret_volumes(context, secrets),
        _scratch("sandbox", "16Mi"),
        _scratch("catalogs", "1Gi"),
        _scratch("tmp", "1Gi"),
        _scratch("sandbox-tmp"),
    ]
    # A sidecar starts before the front and ends after it: a statement that runs when the pod is told to end is answered.
    sidecars = [sandbox | {"restartPolicy": "Always"}]
    drain_s = query_drain_s(context)
    return _template(context, "query", [front], volumes, drain_s=drain_s, sidecars=sidecars)


def query_drain_s(context: Context) -> int:
    """Seconds that an ending query pod has: enough for the longest statement, within a bound."""
    timeout_s = math.ceil(context.tenant.query.timeout_ms / 1000 / QUERY_ANSWER_PART)
    return min(max(DRAIN_S, timeout_s), QUERY_DRAIN_MAX_S)


def build_migrate_template(context: Context) -> Manifest:
    """Template of the migrate Job; with the purge Job's the only pod that ever sees the catalog's admin credential."""
    return _build_job_template(context, "migrate", _migrate_env(context), [])


def build_purge_template(context: Context) -> Manifest:
    """Template of the purge Job: beside the catalog's admin credential it has the store's key."""
    env = [*_admin_env(context), *_secret_env("STORE")]
    key = {
        "secretName": context.store.secret,
        "defaultMode": 0o440,
        "items": [{"key": key, "path": key} for key in ("access-key-id", "secret-access-key")],
    }
    return _build_job_template(context, "purge", env, [{"name": "store", "secret": key}])


def build_compact_template(context: Context, resources: Resources, run: str) -> Manifest:
    """Template of a Compactor's Job: the Tenant's own maintenance login and store key, no other.

    Args:
        context: The Tenant and what its names stand for.
        resources: Of the container.
        run: What to do, as JSON.
    """
    secrets = ("maintenance", "store")
    container = _container(
        context,
        name=COMPACT,
        image=context.images.runtime,
        args=[COMPACT],
        env=[
            *_lake_env(context),
            *_secret_env("MAINTENANCE", "STORE"),
            _field("DUCKMESH_POD_NAME", "metadata.name"),
            _env("DUCKMESH_RUN", run),
        ],
        resources=resources,
        mounts=[*_secret_mounts(secrets), _mount("tmp", "/tmp")],  # noqa: S108
    )
    volumes = [*_secret_volumes(context, secrets), _scratch("tmp")]
    template = _template(context, COMPACT, [container], volumes, drain_s=DRAIN_S)
    template["spec"] = object_at(template, "spec") | {"restartPolicy": "Never"}
    return template


def _build_job_template(
    context: Context, name: str, env: list[Manifest], secrets: list[Manifest]
) -> Manifest:
    usual = Resources(
        cpu_request=50, cpu_limit=1000, memory_request=128 * 2**20, memory_limit=512 * 2**20
    )
    admin = {
        "secretName": context.catalog.admin_secret,
        "defaultMode": 0o440,
        "items": [{"key": "admin-dsn", "path": "dsn"}],
    }
    volumes: list[Manifest] = [{"name": "admin", "secret": admin}, *secrets]
    container = _container(
        context,
        name=name,
        image=context.images.runtime,
        args=[name],
        env=env,
        resources=usual,
        mounts=[
            *_secret_mounts(tuple(str(volume["name"]) for volume in volumes)),
            _mount("tmp", "/tmp"),  # noqa: S108
        ],
    )
    template = _template(
        context,
        name,
        [container],
        [*volumes, _scratch("tmp", "1Gi")],
        drain_s=DRAIN_S,
        placed=False,
    )
    spec = template["spec"]
    if isinstance(spec, dict):
        spec["restartPolicy"] = "Never"
    return template


def _ingest_env(context: Context) -> list[Manifest]:
    tenant, spec = context.tenant, context.tenant.ingest
    return [
        *_lake_env(context),
        *_secret_env("WRITER", "MAINTENANCE", "STORE", "AUTH"),
        _field("DUCKMESH_POD_NAME", "metadata.name"),
        _field("DUCKMESH_POD_ADDRESS", "status.podIP"),
        _env("DUCKMESH_QUERY_URL", f"http://{child(tenant.meta.name, 'query')}:{API_PORT}"),
        _env("DUCKMESH_BATCH_MIN_INTERVAL_MS", spec.min_interval_ms),
        _env("DUCKMESH_BATCH_MAX_DELAY_MS", spec.max_delay_ms),
        _env("DUCKMESH_BATCH_MAX_ROWS", spec.max_rows),
        _env("DUCKMESH_BATCH_MAX_BYTES", spec.max_bytes),
        _env("DUCKMESH_PENDING_BYTES", spec.pending_bytes),
        _env("DUCKMESH_REQUESTS_PER_SECOND", spec.requests_per_second),
        _env("DUCKMESH_FRESHNESS_TARGET_MS", tenant.freshness_target_ms),
        _env("DUCKMESH_SNAPSHOT_KEEP_FOR_S", tenant.snapshots_keep_for_ms // 1000),
        _env("DUCKMESH_SNAPSHOT_KEEP_LAST", tenant.snapshots_keep_last),
        _env("DUCKMESH_COMPACTION_ENABLED", str(tenant.compaction_enabled).lower()),
        _env("DUCKMESH_COMPACTION_SMALL_FILES", tenant.compaction_small_files),
        _env("DUCKMESH_TABLES_FILE", f"{SECRETS_DIR}/{TABLES}/{TABLES_FILE}"),
        _env("DUCKMESH_DRAIN_S", DRAIN_S),
    ]


def _query_env(context: Context) -> list[Manifest]:
    spec = context.tenant.query
    return [
        *_lake_env(context),
        *_secret_env("READER", "STORE", "AUTH"),
        _field("DUCKMESH_POD_NAME", "metadata.name"),
        _env("DUCKMESH_SANDBOX_SOCKET", f"{SOCKET_DIR}/sandbox.sock"),
        _env("DUCKMESH_CATALOG_DIR", CATALOG_DIR),
        _env("DUCKMESH_QUERY_CONCURRENCY", spec.concurrency),
        _env("DUCKMESH_QUERY_TIMEOUT_MS", spec.timeout_ms),
        _env("DUCKMESH_QUERY_MEMORY_BYTES", spec.memory_bytes),
        _env("DUCKMESH_QUERY_RESULT_BYTES", spec.result_bytes),
        _env("DUCKMESH_QUERY_ROWS", spec.rows),
        _env("DUCKMESH_DRAIN_S", query_drain_s(context)),
    ]


def _sandbox_env(context: Context) -> list[Manifest]:
    spec = context.tenant.query
    return [
        _env("DUCKMESH_SANDBOX_SOCKET", f"{SOCKET_DIR}/sandbox.sock"),
        _env("DUCKMESH_CATALOG_DIR", CATALOG_DIR),
        _env("DUCKMESH_QUERY_CONCURRENCY", spec.concurrency),
        _env("DUCKMESH_QUERY_MEMORY_BYTES", spec.memory_bytes),
        _env("DUCKMESH_QUERY_TIMEOUT_MS", spec.timeout_ms),
    ]


def _admin_env(context: Context) -> list[Manifest]:
    return [
        *_lake_env(context),
        _env("DUCKMESH_TENANT_UID", context.tenant.meta.uid),
        _env("DUCKMESH_ADMIN_DIR", f"{SECRETS_DIR}/admin"),
    ]


def _migrate_env(context: Context) -> list[Manifest]:
    lake = context.tenant.meta.lake
    return [
        *_admin_env(context),
        _env("DUCKMESH_WRITER_LOGIN", f"{lake}_w"),
        _env("DUCKMESH_MAINTENANCE_LOGIN", f"{lake}_m"),
        _env("DUCKMESH_READER_LOGIN", f"{lake}_r"),
    ]


def _lake_env(context: Context) -> list[Manifest]:
    meta = context.tenant.meta
    env = [
        _env("DUCKMESH_TENANT", meta.full_name),
        _env("DUCKMESH_LAKE", meta.lake),
        _env("DUCKMESH_DATA_URL", context.data_url),
    ]
    # An empty value is dropped by the API server; leaving it out keeps both sides equal.
    if context.store.endpoint:
        env.append(_env("DUCKMESH_S3_ENDPOINT", context.store.endpoint))
    env.append(_env("DUCKMESH_S3_REGION", context.store.region))
    return env


def _secret_env(*parts: str) -> list[Manifest]:
    return [_env(f"DUCKMESH_{part}_DIR", f"{SECRETS_DIR}/{part.lower()}") for part in parts]


def _env(name: str, value: str | int) -> Manifest:
    return {"name": name, "value": str(value)}


def _field(name: str, path: str) -> Manifest:
    source: Manifest = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
    return {"name": name, "valueFrom": source}


def _mount(name: str, path: str, *, read_only: bool = False) -> Manifest:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _secret_mounts(parts: tuple[str, ...]) -> list[Manifest]:
    return [_mount(part, f"{SECRETS_DIR}/{part}", read_only=True) for part in parts]


def _shared_mounts(*, read_only: bool) -> list[Manifest]:
    return [_mount("sandbox", SOCKET_DIR), _mount("catalogs", CATALOG_DIR, read_only=read_only)]


def _secret_volumes(context: Context, parts: tuple[str, ...]) -> list[Manifest]:
    name = context.tenant.meta.name
    return [
        {"name": part, "secret": {"secretName": child(name, part), "defaultMode": 0o440}}
        for part in parts
    ]


def _scratch(name: str, size: str = TMP_BYTES) -> Manifest:
    return {"name": name, "emptyDir": {"sizeLimit": size}}


def _worker(
    context: Context,
    *,
    name: str,
    env: list[Manifest],
    resources: Resources,
    mounts: list[Manifest],
) -> Manifest:
    """A container that serves the API: ports, probes and a pause before it is stopped."""
    container = _container(
        context,
        name=name,
        image=context.images.runtime,
        args=["serve", name],
        env=env,
        resources=resources,
        mounts=mounts,
    )
    return container | {
        "ports": [
            {"name": "api", "containerPort": API_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _probe("/v1/ready", period_s=1, failures=180),
        "readinessProbe": _probe("/v1/ready", period_s=2, failures=2),
        "livenessProbe": _probe("/v1/health", period_s=10, failures=3),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
    }


def _probe(path: str, *, period_s: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "metrics", "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _container(
    context: Context,
    *,
    name: str,
    image: str,
    args: list[str],
    env: list[Manifest],
    resources: Resources,
    mounts: list[Manifest],
) -> Manifest:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": context.images.pull_policy,
        "args": args,
        "env": env,
        "resources": build_resources(resources),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _template(
    context: Context,
    component: str,
    containers: list[Manifest],
    volumes: list[Manifest],
    *,
    drain_s: int,
    sidecars: list[Manifest] | None = None,
    placed: bool = True,
) -> Manifest:
    meta = context.tenant.meta
    metadata: Manifest = {
        "labels": dict(context.tenant.labels) | labels(meta.name, meta.uid, component)
    }
    if context.tenant.annotations:
        metadata["annotations"] = dict(context.tenant.annotations)
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PRE_STOP_S + drain_s + MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
    }
    if sidecars:
        spec["initContainers"] = sidecars
    return {"metadata": metadata, "spec": spec | (_placement(context, component) if placed else {})}


def _placement(context: Context, component: str) -> Manifest:
    meta = context.tenant.meta
    selector: Manifest = {"matchLabels": pod_selector(meta.name, meta.uid, component)}
    placement = dict(context.profile.placement)
    given = placement.pop("topologySpreadConstraints", None)
    usual = [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway"}
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    placement["topologySpreadConstraints"] = [
        {**one, "labelSelector": selector}
        for one in (given if isinstance(given, list) and given else usual)
    ]
    return placement
