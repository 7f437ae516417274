"""The seams to the outside: what services may ask of Postgres, DuckLake, the object store and the sandbox.

Adapters implement these; tests put doubles of `tests/fakes` behind them, and `tests/contract` runs one suite over both.
All methods raise `errors.Unavailable` when the other side does not answer; further errors are named per method.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import pyarrow as pa

from duckmesh_runtime.domain.schema import TableDef


class EntryKind(StrEnum):
    """What a bus entry asks of the committer."""

    ROWS = "rows"
    CREATE_TABLE = "create_table"
    DROP_TABLE = "drop_table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a lake's input ends.

    Attributes:
        last: Number of the last accepted row or change; 0 for an empty lake.
        schema_version: Counts accepted table changes; part of every entry.
        timeline: See `domain.tokens`.
    """

    last: int
    schema_version: int
    timeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHash:
    """An idempotency key and the content it was used with, both as 16-byte digests.

    Attributes:
        key: Digest of table and key.
        content: Digest of what was sent with it.
        request: The key of a whole request, which is remembered longer than a record's.
    """

    key: bytes
    content: bytes
    request: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of an `Append`.

    Attributes:
        rows: Numbers it takes: rows of the payload, or 1 for a table change.
        payload: One encapsulated Arrow record batch message (`RecordBatch.serialize`), or the JSON of a table change.
    """

    rows: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """One request's contribution to a group commit: written whole or not at all, under contiguous numbers.

    Attributes:
        kind: What it is.
        table: Table name.
        parts: The rows in order, or one part with the table change. The bus packs parts of equal `table` and `header` that
            follow each other into entries of bounded size, so a large request is cut and small ones share an entry.
        schema_version: Version of the tables the parts were validated against.
        header: Encapsulated Arrow schema message (`Schema.serialize`) of the rows, columns in the table's order.
        keys: Idempotency keys, one per row in row order, or one for the whole request, or none.
    """

    kind: EntryKind
    table: str
    parts: Sequence[Part]
    schema_version: int
    header: bytes = b""
    keys: Sequence[KeyHash | None] = field(default=())

    @property
    def rows(self) -> int:
        """Numbers it takes."""
        return sum(part.rows for part in self.parts)


class AppendResult(StrEnum):
    """What became of an `Append`."""

    ACCEPTED = "accepted"
    KNOWN = "known"  # some or all keys are known (`known`, `conflicts`): nothing was written
    STALE_SCHEMA = "stale_schema"  # tables changed since validation: nothing was written


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The durable outcome of an `Append`.

    Attributes:
        result: What happened. Only ACCEPTED wrote anything.
        last: Number of its last row when ACCEPTED, else 0.
        timeline: The lake's timeline, see `domain.tokens`.
        known: When KNOWN, per key of the Append (same order): the number it was first accepted with, or None when new.
            A key that is repeated inside one Append counts as known from its second use on, with the number 0.
        conflicts: When KNOWN, indexes into `keys` that are known with other content.
        accepted_at: Database time of the transaction.
    """

    result: AppendResult
    last: int = 0
    timeline: int = 1
    known: Sequence[int | None] = ()
    conflicts: Sequence[int] = ()
    accepted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One durable piece of input: the numbers `first..last` of a table, or one table change (`first == last`).

    Attributes:
        first: Its lowest number.
        last: Its highest number; `last - first + 1` rows.
        kind: What it asks.
        table: Table name.
        schema_version: Version of the tables it was validated against.
        payload: Arrow IPC stream of one or more batches, columns in the table's order, or the JSON of a table change:
            `schema.table_json` for CREATE_TABLE, empty for DROP_TABLE.
        accepted_at: Database time of the transaction that accepted it.
    """

    first: int
    last: int
    kind: EntryKind
    table: str
    schema_version: int
    payload: bytes
    accepted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the lake holds: the watermark and its commit, read in one statement.

    Attributes:
        token: The watermark W: every number <= W is in the lake.
        snapshot_id: Newest snapshot whose commit moved the watermark; None before the first.
        committed_at: Database time of that commit.
        now: Database time of this read.
    """

    token: int
    snapshot_id: int | None
    committed_at: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TableBacklog:
    """One table's part of a `Backlog`; fields as there."""

    table: str
    pending_rows: int
    pending_bytes: int
    oldest_pending_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is accepted and not yet visible; see `GET /v1/lag`.

    Attributes:
        head: Where input ends.
        progress: Where the lake ends.
        pending_rows: Rows of entries past the watermark.
        pending_bytes: Their payload bytes.
        oldest_pending_at: When the oldest of them was accepted (database time); None when nothing is pending.
        claimed: Numbers in the commit under way.
        tables: The same per table, those with pending entries only, by name.
    """

    head: Head
    progress: Progress
    pending_rows: int
    pending_bytes: int
    oldest_pending_at: datetime | None
    claimed: int
    tables: Sequence[TableBacklog] = ()

    @property
    def lag_ms(self) -> int:
        """Age of the oldest accepted, not yet visible row in milliseconds; 0 when all is visible."""
        if self.oldest_pending_at is None:
            return 0
        return max(0, int((self.progress.now - self.oldest_pending_at).total_seconds() * 1000))


class IngestBus(Protocol):
    """Durable input of one lake, in token order. Nothing outside an adapter may know which system it is."""

    async def append(self, group: Sequence[Append]) -> Sequence[Receipt]:
        """Write a group in one transaction; numbers are given in the group's order and in commit order of transactions.

        One receipt per Append, same order. A known or stale Append writes nothing and does not hurt the others; the keys
        of an accepted one are known to those after it. A table change makes the rest of its group stale. After an error
        nothing of the group is written, or (connection lost at COMMIT) all of it may be: a retry with the same keys
        finds out.
        """
        ...

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        """The entries with `first > after` in order, at least one if there is any, else as many as fit both bounds."""
        ...

    async def trim(self, upto: int) -> int:
        """Remove entries with `last <= upto`; returns how many. Safe to repeat."""
        ...

    async def forget_keys(self, *, record_age_s: float, request_age_s: float, max_keys: int) -> int:
        """Remove at most so many of the oldest idempotency keys past their age (database clock); returns how many."""
        ...

    async def head(self) -> Head:
        """Where input ends now."""
        ...

    async def backlog(self) -> Backlog:
        """Head, progress and what is between them, from one database snapshot."""
        ...

    async def tables(self) -> tuple[int, Sequence[TableDef]]:
        """Schema version and the tables as accepted, by name (created ones that are not yet committed included)."""
        ...


class ProgressReader(Protocol):
    """The cheap question the barrier and the committer ask often."""

    async def progress(self) -> Progress:
        """Read the watermark."""
        ...


class CommitOutcome(StrEnum):
    """What a lake commit did."""

    DONE = "done"  # the watermark is at `tok` now
    FENCED = "fenced"  # another committer holds the lease: give up the role
    REREAD = "reread"  # nothing or everything of it landed: read progress, decide again
    REJECTED = "rejected"  # the content cannot be written: isolate it


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """Outcome of one lake commit.

    Attributes:
        outcome: What it did.
        error: Set for REJECTED and REREAD; safe to show the lake's owner.
        committed_at: When DONE, database time at which the watermark came to `tok`.
    """

    outcome: CommitOutcome
    error: str | None = None
    committed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Rows for one table, in token order, columns as the table's."""

    table: str
    rows: pa.Table


@dataclass(slots=True, kw_only=True)
class Term:
    """One time of being the committer.

    Attributes:
        epoch: The lease epoch that every commit claims.
        lost: Set when another holder may have followed; the fence refuses this one's commits at the latest from then on.
        inflight_to: The number the running commit aims at, shown by the next heartbeat; None between commits.
    """

    epoch: int
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    inflight_to: int | None = None


class Election(Protocol):
    """This process's campaign to be the lake's one committer."""

    async def campaign(self) -> Term:
        """Wait until elected, also over an outage of the catalog; an earlier term is released first."""
        ...

    async def release(self) -> None:
        """Give the role up at once, so that a sibling follows without waiting for the heartbeat. Safe to repeat."""
        ...

    async def committer_address(self) -> str | None:
        """Where the present committer can be nudged, `host:port`; None when there is none."""
        ...


class LakeWriter(Protocol):
    """The lake as the committer sees it; one instance per lease epoch. Blocking work runs in its own executor."""

    async def commit_rows(self, prev: int, tok: int, parts: Sequence[TableRows]) -> CommitResult:
        """Write all parts in ONE lake transaction that moves the watermark from `prev` to `tok`."""
        ...

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        """Create the table in one lake transaction that moves the watermark; an equal existing table is DONE."""
        ...

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        """Drop the table in one lake transaction that moves the watermark; a missing one is DONE."""
        ...

    async def set_aside(self, prev: int, tok: int, error: str) -> CommitResult:
        """Move the one entry between `prev` and `tok` to the dead letters and the watermark past it, together."""
        ...

    async def close(self) -> None:
        """Detach; safe to repeat."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenCatalog:
    """A snapshot's catalog as a file that the sandbox can attach.

    Attributes:
        path: The file, absolute, in the shared catalog directory.
        snapshot_id: The snapshot.
        snapshot_time: When it was committed (database time).
        token: The watermark of that snapshot.
        frozen_at: Database time of the freeze: the answer is as fresh as this.
        oldest_pending_at: When the oldest row that the snapshot lacks was accepted (database time); None when it has all.
        files: Its data and delete files, path relative to the lake's data path -> size in bytes: all that the read proxy
            may serve.
    """

    path: str
    snapshot_id: int
    snapshot_time: datetime
    token: int
    frozen_at: datetime
    oldest_pending_at: datetime | None
    files: Mapping[str, int]

    @property
    def lag_ms(self) -> int:
        """Age of the oldest accepted row that the snapshot lacks, in milliseconds at the time of the freeze; 0 when none."""
        if self.oldest_pending_at is None:
            return 0
        return max(0, int((self.frozen_at - self.oldest_pending_at).total_seconds() * 1000))


class CatalogFreezer(Protocol):
    """Makes frozen catalogs; keeps a bounded number of files and deletes the ones nobody holds."""

    async def freeze(self, min_token: int = 0) -> FrozenCatalog:
        """Take hold of a catalog of the newest snapshot, or of one at most 100 ms old whose token is not below `min_token`.

        The result's token may still be below `min_token` when the lake is; the caller waits at the barrier first.
        """
        ...

    def release(self, catalog: FrozenCatalog) -> None:
        """Give up the hold; call it once for each `freeze`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryJob:
    """One statement for the sandbox.

    Attributes:
        sql: The user's text, at most 64 KiB.
        params: Values for `$1..$n` / `?` (JSON scalars or lists).
        catalog_path: `FrozenCatalog.path`.
        data_url: Where the read proxy serves that catalog's files.
        row_limit: Rows after which the result is cut and marked truncated.
        timeout_ms: Deadline; the process is killed one second later at the latest.
    """

    sql: str
    params: Sequence[object]
    catalog_path: str
    data_url: str
    row_limit: int
    timeout_ms: int


@dataclass(slots=True, kw_only=True)
class QueryStats:
    """Figures of one run, complete when its batches have been read to the end."""

    duration_ms: int = 0
    rows: int = 0
    truncated: bool = False
    scanned_files: int = 0
    scanned_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRun:
    """A running statement: schema known, batches to come.

    Attributes:
        schema: Arrow schema of the result.
        type_names: DuckDB type name of each column, in order.
        batches: The rows; raises the catalogued errors of a failing query. Closing the iterator cancels the query.
        stats: Filled while reading.
    """

    schema: pa.Schema
    type_names: Sequence[str]
    batches: AsyncIterator[pa.RecordBatch]
    stats: QueryStats


class Sandbox(Protocol):
    """The killable processes that run tenant SQL."""

    async def run(self, job: QueryJob) -> QueryRun:
        """Start a statement; raises Invalid, Failed, Limited or Unavailable with the catalogue's codes."""
        ...


class ObjectStore(Protocol):
    """The tenant's part of the object store; paths are relative to the lake's data path, never escape it."""

    async def size(self, path: str) -> int:
        """Size in bytes. Raises: Corrupt DATA_FILE_MISSING when it is not there."""
        ...

    async def read(self, path: str, start: int, length: int) -> bytes:
        """Bytes `start .. start+length` (shorter at the end). Raises: Corrupt DATA_FILE_MISSING."""
        ...
