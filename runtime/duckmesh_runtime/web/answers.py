"""What the API answers, as JSON: the shapes that handlers make and that the API's description tells. No code.

Moments are RFC 3339 in UTC. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NotRequired, TypedDict

from duckmesh_runtime.domain.snapshots import (
    ColumnStatistics,
    FieldName,
    PartitionValue,
    SnapshotTable,
    TableSize,
)
from duckmesh_runtime.ports import EntryKind

Plain = str | int | float | bool | None
Object = Mapping[str, object]


class Error(TypedDict):
    """Any failure."""

    error_code: str
    message: str
    retryable: bool
    context: Object
    trace_id: str


class Rejection(TypedDict):
    """A record that was not accepted."""

    index: int
    error_code: str
    message: str


class Rejected(Error):
    """A failure of `ingest`; the two fields are there when records were looked at."""

    rejected: NotRequired[Sequence[Rejection]]
    rejected_count: NotRequired[int]


class Accepted(TypedDict):
    """Of `ingest`."""

    accepted_count: int
    duplicate_count: int
    rejected: Sequence[Rejection]
    rejected_count: int
    max_visibility_token: str
    visible_snapshot_id: int | None
    status: Literal["accepted", "visible", "partial_duplicate"]


class ResultColumn(TypedDict):
    """A column of a result."""

    name: str
    type: str


class QueryStats(TypedDict):
    """What a query took."""

    duration_ms: int
    waited_ms: int
    scanned_files: int
    scanned_bytes: int


class Result(TypedDict):
    """Of `query`."""

    columns: Sequence[ResultColumn]
    rows: Sequence[Sequence[object]]
    snapshot_id: int
    snapshot_time: datetime
    max_visibility_token: str
    lag_ms: int
    truncated: bool
    stats: QueryStats


class Column(TypedDict):
    """A column of a table."""

    name: str
    type: str
    nullable: bool
    default: Plain


class Table(TypedDict):
    """A table."""

    name: str
    columns: Sequence[Column]
    primary_key: Sequence[str]
    partition_by: Sequence[str]
    sort_by: Sequence[str]


class Tables(TypedDict):
    """Of `list_tables`."""

    tables: Sequence[Table]


class CurrentTable(Table):
    """Of `read_table`."""

    schema_version: NotRequired[int]
    changed_at: NotRequired[datetime]


class TableVersion(TypedDict):
    """What a table was, or that it was dropped."""

    schema_version: int
    changed_at: datetime
    dropped: NotRequired[bool]
    name: NotRequired[str]
    columns: NotRequired[Sequence[Column]]
    primary_key: NotRequired[Sequence[str]]
    partition_by: NotRequired[Sequence[str]]
    sort_by: NotRequired[Sequence[str]]


class TableVersions(TypedDict):
    """Of `read_versions`."""

    name: str
    versions: Sequence[TableVersion]


class ChangedTable(Table):
    """Of `create_table` and `alter_table`."""

    max_visibility_token: str
    visible_snapshot_id: int | None


class DroppedTable(TypedDict):
    """Of `drop_table`."""

    name: str
    max_visibility_token: str
    visible_snapshot_id: int | None


class Pin(TypedDict):
    """Why a snapshot is kept."""

    name: str | None
    pinned_at: datetime
    expires_at: datetime | None


class Snapshot(TypedDict):
    """A snapshot that is kept."""

    snapshot_id: int
    snapshot_time: datetime
    max_visibility_token: str
    schema_version: int
    schema_changed: bool
    pinned: bool
    pins: Sequence[Pin]


class Snapshots(TypedDict):
    """Of `list_snapshots`."""

    snapshots: Sequence[Snapshot]
    next_before: int | None


class SizedSnapshot(Snapshot):
    """Of `read_snapshot`."""

    tables: Sequence[TableSize]


class UnpinnedSnapshot(Snapshot):
    """Of `unpin_snapshot`."""

    removed: bool


class Place(TypedDict):
    """A file in the store."""

    path: str
    url: str
    size_bytes: int
    row_count: int
    upto_snapshot_id: int | None


class File(Place):
    """A Parquet file with rows of a snapshot."""

    table: str
    delete_files: Sequence[Place]
    partition: Sequence[PartitionValue]
    statistics: Sequence[ColumnStatistics]
    field_names: Sequence[FieldName] | None


class Files(Snapshot):
    """Of `list_files`."""

    data_url: str
    tables: Sequence[SnapshotTable]
    files: Sequence[File]
    next_after: str | None


class Restored(TypedDict):
    """Of `restore`."""

    restored_snapshot_id: int
    max_visibility_token: str
    visible_snapshot_id: int | None


class Visible(TypedDict):
    """Of `visible`."""

    visible: Literal[True]
    visible_snapshot_id: int | None
    max_visibility_token: str


class Event(TypedDict):
    """The data of an event of `events`."""

    max_visibility_token: str
    snapshot_id: int | None
    committed_at: datetime | None


class StagedPlace(TypedDict):
    """The file of a letter."""

    path: str
    size_bytes: int


class Letter(TypedDict):
    """What the lake refused."""

    number: int
    token: str
    kind: EntryKind
    op: Literal["insert", "upsert", "delete", "mixed"] | None
    table: str
    rows: int
    error: str
    accepted_at: datetime
    set_aside_at: datetime
    values: Sequence[Object]
    values_cut: bool
    file: StagedPlace | None


class Letters(TypedDict):
    """Of `list_letters`."""

    dead_letters: Sequence[Letter]
    next_after: int | None


class Replayed(TypedDict):
    """Of `replay_letter`."""

    number: int
    max_visibility_token: str
    visible_snapshot_id: int | None
    status: Literal["accepted", "visible"]


class ReplayFailure(TypedDict):
    """A letter that stays, or came again."""

    number: int
    error_code: str
    message: str


class ReplayedMany(TypedDict):
    """Of `replay_letters`."""

    replayed_count: int
    failed: Sequence[ReplayFailure]
    next_after: int | None
    upto: int
    max_visibility_token: str | None
    visible_snapshot_id: int | None
    status: Literal["accepted", "visible"]


class Dropped(TypedDict):
    """Of `drop_letter`."""

    number: int
    dropped_count: int


class DroppedMany(TypedDict):
    """Of `drop_letters`."""

    dropped_count: int
    next_after: int | None


class CompactionSummary(TypedDict):
    """Of `CompactionRun`."""

    files_in: int
    files_out: int
    bytes_rewritten: int
    slices: int
    conflicts: int
    debt_files: int
    debt_bytes: int


class CompactionRun(TypedDict):
    """Of `run_compaction`."""

    status: Literal["done", "partial", "busy"]
    summary: CompactionSummary


class RetentionSummary(TypedDict):
    """Of `RetentionRun`."""

    snapshots_expired: int
    files_removed: int
    snapshots_kept: int
    files_waiting: int


class RetentionRun(TypedDict):
    """Of `run_retention`."""

    status: Literal["done", "partial", "busy"]
    summary: RetentionSummary


class IntegrityChecked(TypedDict):
    """Of `run_integrity`."""

    status: Literal["healthy", "damaged"]
    summary: str
    mode: Literal["cheap", "deep"]
    checked_at: datetime
    files_checked: int
    missing_files: int
    damaged_files: int


class Live(TypedDict):
    """Of `health`."""

    status: Literal["ok"]


class Ready(TypedDict):
    """Of `ready`."""

    status: Literal["ok", "starting", "draining"]
    dependencies: Mapping[str, Literal["ok", "unavailable"]]
