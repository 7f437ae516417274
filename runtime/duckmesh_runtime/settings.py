"""Settings of a runtime process, read once from the environment in `__main__` and passed down.

The environment names are the contract with the operator: tests/contract feeds what it renders into `from_env`.
Secrets come as mounted folders, one file per value, and are read again when a connection is made, so that a rotated
credential is picked up; they are never part of a repr. All bad values are reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from duckmesh_runtime.errors import SettingsError

T = TypeVar("T")
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**50)]

RUN: Final = "DUCKMESH_RUN"
"""The variable that makes `duckmesh compact` the program of a Compactor's Job."""


_SANDBOX_SOCKET: Final = Path("/run/duckmesh/sandbox/sandbox.sock")
_CATALOG_DIR: Final = Path("/run/duckmesh/catalogs")

QUERY_TIMEOUT_MAX_MS: Final = 3_600_000
"""No statement of any query process runs longer, whatever its own limit."""

FILES_STAY_S: Final = QUERY_TIMEOUT_MAX_MS / 1000 + 600.0
"""How long a file without a snapshot stays in the store: a catalog is frozen, and a list of files handed out, a little before
the statement that reads it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where a lake's Parquet lies.

    Attributes:
        url: `s3://bucket/prefix/` or `file:///folder/`; ends with a slash.
        endpoint: Base URL of the S3 service; empty means AWS's own for the region.
        region: S3 region.
        secret_dir: Folder with `access-key-id` and `secret-access-key`; None for files.
    """

    url: str
    endpoint: str = ""
    region: str = "us-east-1"
    secret_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """The commit rhythm (docs/architecture.md, Commit rhythm).

    Attributes:
        min_interval_ms: Shortest distance of two commits while rows keep coming; after idle a commit starts at once.
        max_delay_ms: Longest time rows wait for company.
        max_rows: Rows of one commit.
        max_bytes: Payload bytes of one commit; bounds the committer's memory.
    """

    min_interval_ms: int = 100
    max_delay_ms: int = 200
    max_rows: int = 500_000
    max_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """What ingest refuses.

    Attributes:
        requests_per_second: Per process; 0 means no limit.
        pending_bytes: Accepted and not yet committed bytes past which writes get OVERLOADED.
        body_bytes: Largest (decompressed) request body.
        idempotency_bytes: What the lake's idempotency keys may take in the catalog; past it the oldest are forgotten.
    """

    requests_per_second: int = 0
    pending_bytes: int = 1 * 2**30
    body_bytes: int = 64 * 2**20
    idempotency_bytes: int = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLimits:
    """What a query may use.

    Attributes:
        concurrency: Statements at a time, one sandbox process each.
        timeout_ms: Longest run; requests may ask for less.
        memory_bytes: Memory of one sandbox process.
        result_bytes: Largest JSON result; streamed formats are not bound by it.
        rows: Most rows of an answer.
    """

    concurrency: int = 4
    timeout_ms: int = 30_000
    memory_bytes: int = 1 * 2**30
    result_bytes: int = 64 * 2**20
    rows: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSettings:
    """Which snapshots stay (domain/thinning.py).

    Attributes:
        keep_for_s: Age in seconds past which a snapshot goes.
        keep_last: The newest that stay whatever their age.
    """

    keep_for_s: int = 7 * 86_400
    keep_last: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionSettings:
    """Merges beside the committer.

    Attributes:
        enabled: Whether there are any; expiry goes on without.
        small_files: From so many small files in a table on they are merged.
    """

    enabled: bool = True
    small_files: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One process's settings.

    Attributes:
        tenant: `namespace/name`, for logs and metrics.
        lake: Catalog schema of the lake.
        store: Where the Parquet lies.
        writer_dir: Folder with `dsn` of the writer login (ingest only).
        maintenance_dir: Folder with `dsn` of the maintenance login (ingest only).
        reader_dir: Folder with `dsn` of the reader login (query only).
        auth_dir: Folder with `pepper` and `keys.json` (web/auth.py).
        bind: Address to listen on.
        api_port: The API; 0 picks a free port.
        metrics_port: Metrics and probes; 0 picks a free port.
        pod_name: Names this process in heartbeats and logs.
        pod_address: Host that other replicas reach this process at.
        query_url: Base URL of the query Service that ingest passes queries on to; empty when this process runs both.
        sandbox_socket: Unix socket of the sandbox.
        catalog_dir: Folder of frozen catalogs, shared with the sandbox.
        snapshots: Which snapshots stay (ingest only).
        compaction: Merges beside the committer (ingest only).
        tables_file: What the Tenant declares as its tables (services/declared.py); None when it cannot.
        freshness_target_ms: The lag objective.
        log_format: `json` or `text`.
        log_level: `debug`, `info`, `warning` or `error`.
        drain_s: Seconds a stopping process may take to answer what it accepted.
    """

    tenant: str
    lake: str
    store: StoreSettings
    writer_dir: Path | None = None
    maintenance_dir: Path | None = None
    reader_dir: Path | None = None
    auth_dir: Path | None = None
    bind: str = "0.0.0.0"  # noqa: S104 - a pod's API is for its Service
    api_port: int = 8080
    metrics_port: int = 9090
    pod_name: str = "local"
    pod_address: str = "127.0.0.1"
    query_url: str = ""
    sandbox_socket: Path = _SANDBOX_SOCKET
    catalog_dir: Path = _CATALOG_DIR
    batch: BatchSettings = BatchSettings()
    ingest: IngestLimits = IngestLimits()
    query: QueryLimits = QueryLimits()
    snapshots: SnapshotSettings = SnapshotSettings()
    compaction: CompactionSettings = CompactionSettings()
    tables_file: Path | None = None
    freshness_target_ms: int = 5_000
    log_format: str = "json"
    log_level: str = "info"
    drain_s: int = 20


def read_secret(folder: Path, name: str) -> str:
    """Read one value of a mounted Secret, without its trailing newline."""
    return (folder / name).read_text(encoding="utf-8").rstrip("\n")


def from_env(env: Mapping[str, str]) -> Settings:
    """Read the settings of `serve`.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    read = _Reader(env)
    settings = Settings(
        tenant=read.text("DUCKMESH_TENANT"),
        lake=read.text("DUCKMESH_LAKE"),
        store=_store(read),
        writer_dir=read.path("DUCKMESH_WRITER_DIR"),
        maintenance_dir=read.path("DUCKMESH_MAINTENANCE_DIR"),
        reader_dir=read.path("DUCKMESH_READER_DIR"),
        auth_dir=read.path("DUCKMESH_AUTH_DIR"),
        bind=read.text("DUCKMESH_BIND", "0.0.0.0"),  # noqa: S104 - as above
        api_port=read.number("DUCKMESH_API_PORT", 8080, 0, 65535),
        metrics_port=read.number("DUCKMESH_METRICS_PORT", 9090, 0, 65535),
        pod_name=read.text("DUCKMESH_POD_NAME", "local"),
        pod_address=read.text("DUCKMESH_POD_ADDRESS", "127.0.0.1"),
        query_url=read.text("DUCKMESH_QUERY_URL", ""),
        sandbox_socket=read.path("DUCKMESH_SANDBOX_SOCKET") or _SANDBOX_SOCKET,
        catalog_dir=read.path("DUCKMESH_CATALOG_DIR") or _CATALOG_DIR,
        batch=BatchSettings(
            min_interval_ms=read.number("DUCKMESH_BATCH_MIN_INTERVAL_MS", 100, 0, 60_000),
            max_delay_ms=read.number("DUCKMESH_BATCH_MAX_DELAY_MS", 200, 0, 60_000),
            max_rows=read.number("DUCKMESH_BATCH_MAX_ROWS", 500_000, 1, 10_000_000),
            max_bytes=read.number("DUCKMESH_BATCH_MAX_BYTES", 64 * 2**20, 2**10, 2**30),
        ),
        ingest=IngestLimits(
            requests_per_second=read.number("DUCKMESH_REQUESTS_PER_SECOND", 0, 0, 1_000_000),
            pending_bytes=read.number("DUCKMESH_PENDING_BYTES", 2**30, 2**20, 2**40),
            body_bytes=read.number("DUCKMESH_BODY_BYTES", 64 * 2**20, 2**10, 2**30),
            idempotency_bytes=read.number("DUCKMESH_IDEMPOTENCY_BYTES", 2 * 2**30, 2**24, 2**44),
        ),
        query=_query_limits(read),
        snapshots=SnapshotSettings(
            keep_for_s=read.number("DUCKMESH_SNAPSHOT_KEEP_FOR_S", 7 * 86_400, 600, 2**34),
            keep_last=read.number("DUCKMESH_SNAPSHOT_KEEP_LAST", 10, 1, 1_000_000),
        ),
        compaction=CompactionSettings(
            enabled=read.choice("DUCKMESH_COMPACTION_ENABLED", "true", ("true", "false")) == "true",
            small_files=read.number("DUCKMESH_COMPACTION_SMALL_FILES", 16, 2, 1_000_000),
        ),
        tables_file=read.path("DUCKMESH_TABLES_FILE"),
        freshness_target_ms=read.number("DUCKMESH_FRESHNESS_TARGET_MS", 5_000, 1, 86_400_000),
        log_format=read.choice("DUCKMESH_LOG_FORMAT", "json", ("json", "text")),
        log_level=read.choice("DUCKMESH_LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
        drain_s=read.number("DUCKMESH_DRAIN_S", 20, 0, 600),
    )
    read.check()
    return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """What the sandbox needs: it knows no tenant, no store and no secret.

    Attributes:
        socket: Unix socket to listen on.
        catalog_dir: Folder of frozen catalogs.
        concurrency: Statements at once; one process each.
        memory_bytes: Memory of one such process.
        timeout_ms: Longest a statement may run.
        log_format: `json` or `text`.
        log_level: `debug`, `info`, `warning` or `error`.
    """

    socket: Path
    catalog_dir: Path
    concurrency: int
    memory_bytes: int
    timeout_ms: int
    log_format: str = "json"
    log_level: str = "info"


def sandbox_from_env(env: Mapping[str, str]) -> SandboxSettings:
    """Read the settings of `sandbox`: the same names and defaults as the query process has.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    read = _Reader(env)
    query = _query_limits(read)
    settings = SandboxSettings(
        socket=read.path("DUCKMESH_SANDBOX_SOCKET") or _SANDBOX_SOCKET,
        catalog_dir=read.path("DUCKMESH_CATALOG_DIR") or _CATALOG_DIR,
        concurrency=query.concurrency,
        memory_bytes=query.memory_bytes,
        timeout_ms=query.timeout_ms,
        log_format=read.choice("DUCKMESH_LOG_FORMAT", "json", ("json", "text")),
        log_level=read.choice("DUCKMESH_LOG_LEVEL", "info", ("debug", "info", "warning", "error")),
    )
    read.check()
    return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateSettings:
    """What the migrate Job needs.

    Attributes:
        tenant: `namespace/name` of the owner.
        tenant_uid: Its uid: the lake belongs to this very object.
        lake: Catalog schema to make.
        store: Where the Parquet will lie; recorded in the catalog.
        admin_dir: Folder with `dsn` of the catalog's admin credential.
        writer: Login of ingest.
        maintenance: Login of maintenance.
        reader: Login of query.
    """

    tenant: str
    tenant_uid: str
    lake: str
    store: StoreSettings
    admin_dir: Path
    writer: str
    maintenance: str
    reader: str


def migrate_from_env(env: Mapping[str, str]) -> MigrateSettings:
    """Read the settings of `migrate`.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    read = _Reader(env)
    settings = MigrateSettings(
        tenant=read.text("DUCKMESH_TENANT"),
        tenant_uid=read.text("DUCKMESH_TENANT_UID"),
        lake=read.text("DUCKMESH_LAKE"),
        store=_store(read),
        admin_dir=Path(read.text("DUCKMESH_ADMIN_DIR")),
        writer=read.text("DUCKMESH_WRITER_LOGIN"),
        maintenance=read.text("DUCKMESH_MAINTENANCE_LOGIN"),
        reader=read.text("DUCKMESH_READER_LOGIN"),
    )
    read.check()
    return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeSettings:
    """What the purge Job needs.

    Attributes:
        tenant: `namespace/name` of the owner.
        tenant_uid: Its uid: nothing is touched unless the lake belongs to this very object.
        lake: Catalog schema to remove.
        store: Where the Parquet lies; must be what the catalog has recorded.
        admin_dir: Folder with `dsn` of the catalog's admin credential.
    """

    tenant: str
    tenant_uid: str
    lake: str
    store: StoreSettings
    admin_dir: Path


def purge_from_env(env: Mapping[str, str]) -> PurgeSettings:
    """Read the settings of `purge`.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    read = _Reader(env)
    settings = PurgeSettings(
        tenant=read.text("DUCKMESH_TENANT"),
        tenant_uid=read.text("DUCKMESH_TENANT_UID"),
        lake=read.text("DUCKMESH_LAKE"),
        store=_store(read),
        admin_dir=Path(read.text("DUCKMESH_ADMIN_DIR")),
    )
    if not urlsplit(settings.store.url).path.strip("/"):
        read.bad.append("DUCKMESH_DATA_URL: want a folder of the store, not all of it")
    read.check()
    return settings


class RunSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """What a Compactor's Job is to do: the JSON of DUCKMESH_RUN.

    Attributes:
        id: Names the run in the report.
        target_file_size: Bytes of a finished file.
        tiers: Sizes at which files move up, ascending and below the target.
        max_bytes_per_run: Most bytes to read; None for all there is.
        keep_for_s: Age in seconds past which a snapshot goes; None leaves expiry to the committer.
        keep_last: The newest snapshots that stay whatever their age.
        orphans: What to do about files that nothing names.
        orphans_older_than_s: How old they must be, in seconds.
        integrity: Which check of the files to make.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    target_file_size: Annotated[int, msgspec.Meta(ge=2**20, le=2**40)]
    tiers: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
    max_bytes_per_run: _Size | None
    keep_for_s: Annotated[int, msgspec.Meta(ge=600, le=2**34)] | None
    keep_last: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None
    orphans: Literal["Report", "Delete", "None"]
    orphans_older_than_s: Annotated[int, msgspec.Meta(ge=0, le=2**34)]
    integrity: Literal["Cheap", "Deep", "None"]

    @property
    def limits(self) -> tuple[int, ...]:
        """The tiers and the target, ascending."""
        return (*self.tiers, self.target_file_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactSettings:
    """What a Compactor's Job needs.

    Attributes:
        tenant: `namespace/name`, for logs.
        lake: Catalog schema of the lake.
        store: Where the Parquet lies.
        maintenance_dir: Folder with `dsn` of the maintenance login.
        pod_name: Names this process in heartbeats and logs.
        run: What to do.
    """

    tenant: str
    lake: str
    store: StoreSettings
    maintenance_dir: Path
    pod_name: str
    run: RunSettings


def compact_from_env(env: Mapping[str, str]) -> CompactSettings:
    """Read the settings of `compact` in a Job.

    Raises:
        SettingsError: Lists every missing or bad value.
    """
    read = _Reader(env)
    settings = CompactSettings(
        tenant=read.text("DUCKMESH_TENANT"),
        lake=read.text("DUCKMESH_LAKE"),
        store=_store(read),
        maintenance_dir=Path(read.text("DUCKMESH_MAINTENANCE_DIR")),
        pod_name=read.text("DUCKMESH_POD_NAME", "compact"),
        run=read.run(RUN),
    )
    read.check()
    return settings


def _query_limits(read: _Reader) -> QueryLimits:
    return QueryLimits(
        concurrency=read.number("DUCKMESH_QUERY_CONCURRENCY", 4, 1, 256),
        timeout_ms=read.number("DUCKMESH_QUERY_TIMEOUT_MS", 30_000, 1, QUERY_TIMEOUT_MAX_MS),
        memory_bytes=read.number("DUCKMESH_QUERY_MEMORY_BYTES", 2**30, 64 * 2**20, 2**40),
        result_bytes=read.number("DUCKMESH_QUERY_RESULT_BYTES", 64 * 2**20, 2**10, 2**34),
        rows=read.number("DUCKMESH_QUERY_ROWS", 1_000_000, 1, 2**40),
    )


def _store(read: _Reader) -> StoreSettings:
    url = read.text("DUCKMESH_DATA_URL")
    if url and (urlsplit(url).scheme not in ("s3", "file") or not url.endswith("/")):
        read.bad.append(
            "DUCKMESH_DATA_URL: want s3://bucket/prefix/ or file:///folder/ with a slash at the end"
        )
    return StoreSettings(
        url=url,
        endpoint=read.text("DUCKMESH_S3_ENDPOINT", ""),
        region=read.text("DUCKMESH_S3_REGION", "us-east-1"),
        secret_dir=read.path("DUCKMESH_STORE_DIR"),
    )


class _Reader:
    """Collects problems instead of stopping at the first."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.bad: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        return self._take(name, default, str)

    def path(self, name: str) -> Path | None:
        value = self._env.get(name, "")
        return Path(value) if value else None

    def number(self, name: str, default: int, low: int, high: int) -> int:
        def parse(value: str) -> int:
            number = int(value)
            if not low <= number <= high:
                raise ValueError
            return number

        return self._take(name, default, parse, f"a whole number from {low} to {high}")

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        def parse(value: str) -> str:
            if value not in allowed:
                raise ValueError
            return value

        return self._take(name, default, parse, "one of " + ", ".join(allowed))

    def run(self, name: str) -> RunSettings:
        """The run of a Job.

        Raises:
            SettingsError: It is no such JSON; lists what is missing or bad beside it too.
        """
        try:
            found = msgspec.json.decode(self.text(name), type=RunSettings)
            if not all(one < next_ for one, next_ in pairwise(found.limits)):
                raise msgspec.ValidationError("`tiers` must ascend and be below `targetFileSize`")
        except msgspec.MsgspecError as error:
            self.bad.append(f"{name}: {error}")
            self.check()
            raise
        return found

    def check(self) -> None:
        """Raise what was collected."""
        if self.bad:
            raise SettingsError("settings are wrong: " + "; ".join(self.bad))

    def _take(
        self, name: str, default: T | None, parse: Callable[[str], T], want: str = "a value"
    ) -> T:
        value = self._env.get(name)
        if value is None or value == "":
            if default is None:
                self.bad.append(f"{name}: missing")
                return parse("") if parse is str else default  # type: ignore[return-value]  # never used: check() raises
            return default
        try:
            return parse(value)
        except ValueError:
            self.bad.append(f"{name}: {value!r} is not {want}")
            return default  # type: ignore[return-value]  # never used: check() raises
