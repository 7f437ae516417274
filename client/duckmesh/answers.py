"""What the service answers with, as plain values. Fields that a newer service adds are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = [
    "Column",
    "DeadLetter",
    "Lag",
    "Pin",
    "Receipt",
    "Rejection",
    "Replay",
    "Restored",
    "Snapshot",
    "SnapshotTable",
    "Table",
    "TableLag",
    "TableVersion",
    "Visible",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A row that was refused.

    Attributes:
        index: Its place among the rows of the call, from 0.
        code: Of the error catalogue.
        message: Field, problem, what to do.
    """

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of the rows of one `ingest`; goes straight into `at_least=` of a query.

    Attributes:
        table: Where they went.
        token: Visibility token of the last of them; queries that ask for it see all of them.
        accepted: Rows that were written by this call.
        duplicates: Rows that were there already, by the idempotency key of the call.
        rejected: The first 1,000 refused rows, by their place in the call.
        rejected_count: All refused rows.
        idempotency_key: Of the call; the same call with the same key adds nothing.
        visible_snapshot_id: The snapshot that shows the rows, when the call waited for it.
    """

    table: str
    token: str
    accepted: int
    duplicates: int
    rejected: tuple[Rejection, ...] = ()
    rejected_count: int = 0
    idempotency_key: str = ""
    visible_snapshot_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """A token is visible.

    Attributes:
        token: All up to it is visible.
        snapshot_id: Newest snapshot; None when there was none yet.
    """

    token: str
    snapshot_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLag:
    """One table's part of the backlog; fields as in `Lag`. The table `*` is a restore, of all of them."""

    table: str
    pending_rows: int
    pending_bytes: int
    claimed_rows: int
    claimed_bytes: int
    oldest_pending_age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far the lake is behind its input at one moment.

    Attributes:
        accepted: Numbers given so far.
        claimed: Numbers in the commit under way, a part of what is pending.
        claimed_rows: Its rows.
        claimed_bytes: Its bytes.
        pending_rows: Rows accepted and not yet visible.
        pending_bytes: Their bytes.
        oldest_pending_age_ms: Age of the oldest of them; 0 when nothing is pending.
        lag_ms: The same.
        token_lag: Numbers accepted and not yet visible, changes of tables included.
        latest_token: Number of the last accepted row or change.
        latest_visibility_token: The same as a token, for `at_least=` of a query.
        watermark: Number up to which all is visible.
        watermark_token: The same as a token.
        latest_snapshot_id: Maintenance makes some too; None before the first.
        latest_snapshot_at: When it was made.
        committed_at: When the watermark last moved.
        observed_at: The moment, by the database's clock as all times here.
        tables: Those with something pending.
        dead_letters: What the lake refused and keeps.
    """

    accepted: int
    claimed: int
    claimed_rows: int
    claimed_bytes: int
    pending_rows: int
    pending_bytes: int
    oldest_pending_age_ms: int
    lag_ms: int
    token_lag: int
    latest_token: int
    latest_visibility_token: str
    watermark: int
    watermark_token: str
    latest_snapshot_id: int | None
    latest_snapshot_at: datetime | None
    committed_at: datetime | None
    observed_at: datetime
    tables: tuple[TableLag, ...] = ()
    dead_letters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column; `type` is a DuckDB type name, `default` a plain JSON value."""

    name: str
    type: str
    nullable: bool = True
    default: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is, or as a change made it.

    Attributes:
        name: Its name.
        columns: In their order.
        primary_key: Rows of a table with one are upserts and deletes.
        partition_by: What its files are divided by.
        sort_by: How rows lie in new files.
        token: Visibility token of the change that made it so; None when it was only read.
        schema_version: Since which it is so; None in the answer to a change and in a list.
        changed_at: When that was; None likewise.
    """

    name: str
    columns: tuple[Column, ...] = ()
    primary_key: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    sort_by: tuple[str, ...] = ()
    token: str | None = None
    schema_version: int | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableVersion:
    """A definition that a table of this name had, from `changed_at` on; a drop has no columns."""

    schema_version: int
    changed_at: datetime
    dropped: bool = False
    columns: tuple[Column, ...] = ()
    primary_key: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    sort_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What keeps a snapshot from expiry."""

    name: str | None
    pinned_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTable:
    """A table in a snapshot."""

    name: str
    files: int
    size_bytes: int
    delete_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot that is kept.

    Attributes:
        snapshot_id: Goes into `snapshot_id=` of a query.
        snapshot_time: When it was committed.
        max_visibility_token: It holds every row up to this token; None when no commit that is kept tells.
        schema_version: Snapshots of the same one have the same tables.
        schema_changed: They differ from those of the snapshot kept before.
        pinned: A pin keeps it from expiry.
        pins: Which.
        tables: Its tables; only when it was read alone.
    """

    snapshot_id: int
    snapshot_time: datetime
    max_visibility_token: str | None
    schema_version: int
    schema_changed: bool
    pinned: bool
    pins: tuple[Pin, ...] = ()
    tables: tuple[SnapshotTable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The lake is as it was at a snapshot.

    Attributes:
        restored_snapshot_id: That one.
        token: Of the restore, which has its place among writes.
        visible_snapshot_id: The new snapshot that is equal to it.
        idempotency_key: With it the same call again restores nothing a second time.
    """

    restored_snapshot_id: int
    token: str
    visible_snapshot_id: int | None
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What was accepted and then refused by the lake.

    Attributes:
        number: Names it.
        token: Of its last row.
        kind: `rows`, `file`, or a change of a table.
        op: `insert`, `upsert`, `delete`, `mixed`; None for what is no rows.
        table: Whose it was.
        rows: How many.
        error: Why the lake refused it.
        accepted_at: When it came in.
        set_aside_at: When it was refused for good.
        values: The first rows, or the change.
        values_cut: Something of them is left out.
        file: `path` and `size_bytes` of a staged file.
    """

    number: int
    token: str
    kind: str
    op: str | None
    table: str
    rows: int
    error: str
    accepted_at: datetime
    set_aside_at: datetime
    values: tuple[Mapping[str, Any], ...] = ()
    values_cut: bool = False
    file: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Dead letters that were accepted again.

    Attributes:
        replayed: How many.
        failed: Those that stay, with number, code and message.
        token: Of the last that was accepted again; None without any.
    """

    replayed: int
    token: str | None
    failed: tuple[Mapping[str, Any], ...] = field(default=())
