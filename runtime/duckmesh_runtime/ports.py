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

from duckmesh_runtime.domain.changes import Change
from duckmesh_runtime.domain.compaction import Bounds, Debt, LakeFiles, Slice
from duckmesh_runtime.domain.integrity import Difference, Hit, LakeFile
from duckmesh_runtime.domain.moments import Moment
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.snapshots import SnapshotFiles, SnapshotInfo, TableSize
from duckmesh_runtime.domain.thinning import Snapshot


class EntryKind(StrEnum):
    """What a bus entry asks of the committer."""

    ROWS = "rows"
    FILE = "file"  # rows staged as a Parquet file in the table's folder
    CREATE_TABLE = "create_table"
    ALTER_TABLE = "alter_table"
    DROP_TABLE = "drop_table"
    RESTORE = "restore"  # all tables as they were at a snapshot

    @property
    def is_change(self) -> bool:
        """Whether it changes tables rather than rows of one."""
        return self not in (EntryKind.ROWS, EntryKind.FILE)


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
        accepted: Of a request, how many rows it writes: kept with the key, for the answer to a repeat.
        rejected: Of a request, how many of its rows are refused, likewise.
    """

    key: bytes
    content: bytes
    request: bool = False
    accepted: int | None = None
    rejected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """What is kept of an idempotency key.

    Attributes:
        content: Digest of what it was used with.
        number: The number it was accepted with.
        timeline: The lake's timeline, see `domain.tokens`.
        accepted: As of `KeyHash`; None too for a request that an earlier release accepted.
        rejected: Likewise.
    """

    content: bytes
    number: int
    timeline: int
    accepted: int | None = None
    rejected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of an `Append`.

    Attributes:
        rows: Numbers it takes: rows of the payload, or 1 for a table change.
        payload: One encapsulated Arrow record batch message (`RecordBatch.serialize`) of `domain.bus_rows.bus_schema`, the
            JSON of a `StagedFile`, or the JSON of a table change.
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
        header: Encapsulated Arrow schema message (`Schema.serialize`) of `domain.bus_rows.bus_schema`.
        keys: Idempotency keys, one per row in row order, or one for the whole request, or none.
        replays: Number of the dead letter that this is written in place of: taken away in the same transaction.
    """

    kind: EntryKind
    table: str
    parts: Sequence[Part]
    schema_version: int
    header: bytes = b""
    keys: Sequence[KeyHash | None] = field(default=())
    replays: int | None = None

    @property
    def rows(self) -> int:
        """Numbers it takes."""
        return sum(part.rows for part in self.parts)


class AppendResult(StrEnum):
    """What became of an `Append`."""

    ACCEPTED = "accepted"
    KNOWN = "known"  # some or all keys are known (`known`, `conflicts`): nothing was written
    STALE_SCHEMA = "stale_schema"  # tables changed since validation: nothing was written
    GONE = "gone"  # the dead letter to replay is not there any more: nothing was written


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
class StagedFile:
    """Rows that lie in the store as Parquet, in their table's own folder, not yet part of the lake.

    Attributes:
        path: Relative to the lake's data path.
        rows: How many.
        size: Bytes of the file.
    """

    path: str
    rows: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Input that was accepted and that the lake refused.

    Attributes:
        first: Its lowest number; also its name.
        last: Its highest number.
        kind: As `Entry.kind`.
        table: Table name.
        payload: As `Entry.payload`, of these rows alone.
        error: Why it was refused; safe to show the lake's owner.
        accepted_at: Database time at which it was accepted.
        set_aside_at: Database time at which it was given up.
    """

    first: int
    last: int
    kind: EntryKind
    table: str
    payload: bytes
    error: str
    accepted_at: datetime
    set_aside_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TableVersion:
    """A table as it was from one schema version on; `table` is None from where it was dropped."""

    schema_version: int
    table: TableDef | None
    changed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHorizon:
    """How far back every idempotency key is known, in seconds: the age asked for, or less where the space is too small."""

    record_s: float
    request_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One durable piece of input: the numbers `first..last` of a table, or one table change or restore (`first == last`).

    Attributes:
        first: Its lowest number.
        last: Its highest number; `last - first + 1` rows.
        kind: What it asks.
        table: Table name; `*` for all of them.
        schema_version: Version of the tables it was validated against.
        payload: Arrow IPC stream of one or more batches of `domain.bus_rows.bus_schema`, the JSON of a `StagedFile`, or the
            JSON of a table change: `schema.table_json` for CREATE_TABLE, `changes.alter_json` for ALTER_TABLE, empty for
            DROP_TABLE, `domain.restore.restore_json` for RESTORE. A table is at an entry's `schema_version` when all entries
            before it are committed.
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
        timeline: The lake's timeline, see `domain.tokens`; within one the watermark never falls.
    """

    token: int
    snapshot_id: int | None
    committed_at: datetime | None
    now: datetime
    timeline: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TableBacklog:
    """One table's part of a `Backlog`; fields as there."""

    table: str
    pending_rows: int
    pending_bytes: int
    oldest_pending_at: datetime
    claimed_rows: int = 0
    claimed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is accepted and not yet visible; see `GET /v1/lag`.

    Attributes:
        head: Where input ends.
        progress: Where the lake ends.
        pending_rows: Rows past the watermark.
        pending_bytes: Bytes of the entries that they are in; of a staged file its size.
        oldest_pending_at: When the oldest of them was accepted (database time); None when nothing is pending.
        claimed: Numbers in the commit under way, as the committer's heartbeat tells it once a second.
        tables: The same per table, those with pending entries only, by name.
        dead_letters: Letters kept (`DeadLetters`), counted up to 100,000.
        claimed_rows: Those of the pending rows that are in the commit under way.
        claimed_bytes: Bytes of the entries that they are in.
        snapshot_id: Newest snapshot of the lake; maintenance makes some without moving the watermark.
        snapshot_at: When it was made.
    """

    head: Head
    progress: Progress
    pending_rows: int
    pending_bytes: int
    oldest_pending_at: datetime | None
    claimed: int
    tables: Sequence[TableBacklog] = ()
    dead_letters: int = 0
    claimed_rows: int = 0
    claimed_bytes: int = 0
    snapshot_id: int | None = None
    snapshot_at: datetime | None = None

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

    async def restore(self, snapshot_id: int, key: KeyHash | None = None) -> Receipt:
        """Accept a restore of all tables to a snapshot; the number of its entry is the receipt's `last`.

        In the same transaction the definitions of the tables become those of that snapshot, the schema version goes up, the
        idempotency keys of what the snapshot does not hold are forgotten, and it is pinned until the entry is trimmed. A
        known `key` writes nothing: the receipt is KNOWN and names the number of the first.

        Raises:
            NotFound: SNAPSHOT_NOT_FOUND, SNAPSHOT_EXPIRED.
            Conflict: SNAPSHOT_NOT_RESTORABLE with the reason; IDEMPOTENCY_CONFLICT, the key asked for another snapshot.
        """
        ...

    async def known(self, keys: Sequence[KeyHash]) -> Sequence[KnownKey | None]:
        """What is kept of each of these keys, whatever its content was; None for one that is new.

        Nothing is locked: an append may find more.
        """
        ...

    async def read(self, after: int, *, max_rows: int, max_bytes: int) -> Sequence[Entry]:
        """The entries with `last > after` in order, at least one if there is any, else as many as fit both bounds.

        The first may begin at or before `after`: its rows up to there are in the lake, or set aside, already, and do not
        count. Bytes are those of payloads; a staged file's own do not count.
        """
        ...

    async def trim(self, upto: int) -> int:
        """Remove entries with `last <= upto`; returns how many. Safe to repeat."""
        ...

    async def expire_keys(
        self, *, record_age_s: float, request_age_s: float, max_bytes: int
    ) -> KeyHorizon:
        """Forget idempotency keys past their age (database clock), and older ones first while all take more than `max_bytes`.

        Keys are forgotten many at once and may live a little longer: up to a sixth of their age.
        """
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

    async def table_versions(self, name: str) -> Sequence[TableVersion]:
        """Every definition that a table of this name was accepted with, oldest first; not those that the lake refused."""
        ...


class DeadLetters(Protocol):
    """What a lake refused, kept until it is replayed (`Append.replays`) or dropped."""

    async def letters(
        self, after: int, *, limit: int, max_bytes: int, table: str | None = None
    ) -> Sequence[DeadLetter]:
        """Those with `first > after` in order, of one table only if asked.

        At least one if there is any, else as many as fit both bounds; `max_bytes` is of their payloads.
        """
        ...

    async def letter(self, first: int) -> DeadLetter | None:
        """One of them; None when it is not there."""
        ...

    async def drop_letter(self, first: int) -> bool:
        """Remove one for good; whether it was there."""
        ...


class TablesReporter(Protocol):
    """Where the committer's process says what became of the tables that the Tenant declares."""

    async def report(self, digest: str, *, ready: bool, problem: str) -> None:
        """Replace the last report; `digest` is of the declaration, `problem` why it is not ready, for the Tenant's owner."""
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
    REREAD = "reread"  # nothing or everything of it landed, or it is too much at once: read progress, decide again
    REJECTED = "rejected"  # the content cannot be written: isolate it


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """Outcome of one lake commit.

    Attributes:
        outcome: What it did.
        error: Set for REJECTED and REREAD; safe to show the lake's owner.
        whole: When REJECTED, no part of the content can be written: the table, the column or the file is not there.
        scarce: When REREAD, for want of memory or time, or because maintenance came first: never the content's fault.
        committed_at: When DONE, database time at which the watermark came to `tok`.
    """

    outcome: CommitOutcome
    error: str | None = None
    whole: bool = False
    scarce: bool = False
    committed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Rows for one table, in token order, of `domain.bus_rows.bus_schema`; its metadata says whether they are upserted."""

    table: str
    rows: pa.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A staged file to be made part of a table without a primary key."""

    table: str
    file: StagedFile


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

    async def commit(
        self, prev: int, tok: int, parts: Sequence[TableRows | TableFile]
    ) -> CommitResult:
        """Write all parts, in order, in ONE lake transaction that moves the watermark from `prev` to `tok`."""
        ...

    async def create_table(self, prev: int, tok: int, table: TableDef) -> CommitResult:
        """Create the table in one lake transaction that moves the watermark; an equal existing table is DONE."""
        ...

    async def alter_table(
        self, prev: int, tok: int, table: TableDef, changes: Sequence[Change]
    ) -> CommitResult:
        """Apply the changes in one lake transaction that moves the watermark; REJECTED unless they lead to `table`."""
        ...

    async def drop_table(self, prev: int, tok: int, name: str) -> CommitResult:
        """Drop the table in one lake transaction that moves the watermark; a missing one is DONE."""
        ...

    async def restore(
        self, prev: int, tok: int, snapshot_id: int, tables: Sequence[TableDef]
    ) -> CommitResult:
        """Make all tables as they were at the snapshot, in one lake transaction that moves the watermark.

        REJECTED unless the snapshot holds just these tables, and when it is more than one transaction can do. A lake that is
        so already is DONE. It is tried once: what may pass is REREAD, `scarce` only when maintenance came first.
        """
        ...

    async def set_aside(
        self, prev: int, tok: int, payload: bytes | None, error: str
    ) -> CommitResult:
        """Keep the numbers after `prev` to `tok` as a dead letter and move the watermark past them, together.

        They are of one entry of rows or of a file. `payload` is of these numbers alone, or all of an entry's that cannot be
        read; None for a whole entry's own.
        """
        ...

    async def set_aside_change(self, prev: int, tok: int, error: str) -> CommitResult:
        """Keep the table change `tok` as a dead letter, take its definition back and move the watermark, together."""
        ...

    async def probe(self) -> bool:
        """Whether something small could be written right now: the catalog takes it, the lease is ours, the store keeps it.

        Changes nothing and raises nothing.
        """
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
        token: The watermark of that snapshot; of one before the newest at least that, as its commits tell it.
        frozen_at: Database time of the freeze: the answer is as fresh as this.
        oldest_pending_at: When the oldest row that the snapshot lacks was accepted (database time); None when it has all.
            What a snapshot before the newest lacks may be forgotten: its own time then.
        files: Its data and delete files, path relative to the lake's data path -> size in bytes: all that the read proxy
            may serve.
        version: Attach the file at this snapshot, which may not be the newest; None for an attach without a version.
    """

    path: str
    snapshot_id: int
    snapshot_time: datetime
    token: int
    frozen_at: datetime
    oldest_pending_at: datetime | None
    files: Mapping[str, int]
    version: int | None = None

    @property
    def lag_ms(self) -> int:
        """Age of the oldest accepted row that the snapshot lacks, in milliseconds at the time of the freeze; 0 when none."""
        if self.oldest_pending_at is None:
            return 0
        return max(0, int((self.frozen_at - self.oldest_pending_at).total_seconds() * 1000))


class Stager(Protocol):
    """Writes rows as Parquet into their table's folder, before the bus names the file."""

    async def stage(self, table: TableDef, batches: Sequence[pa.RecordBatch]) -> StagedFile | None:
        """Write checked rows (`bus_schema`); None when the table cannot take files now (not in the lake yet, partitioned).

        Raises:
            Unavailable: STORAGE_UNAVAILABLE or CATALOG_UNAVAILABLE; nothing is left but an unreferenced file.
        """
        ...

    async def discard(self, file: StagedFile) -> None:
        """Remove a file that no entry of the bus names. Failing to leaves an unreferenced file; it raises nothing."""
        ...


class SnapshotStore(Protocol):
    """The snapshots that a lake keeps, and what keeps them.

    A snapshot that is not there is `errors.NotFound`: SNAPSHOT_EXPIRED when it was removed, SNAPSHOT_NOT_FOUND when it
    never was.
    """

    async def page(self, before: int | None, *, limit: int) -> Sequence[SnapshotInfo]:
        """The newest ones with an id below `before`, newest first."""
        ...

    async def find(self, snapshot_id: int) -> tuple[SnapshotInfo, Sequence[TableSize]]:
        """One of them, and its tables by name."""
        ...

    async def files(
        self, snapshot_id: int, *, table: str | None, after: int, limit: int
    ) -> SnapshotFiles:
        """The first files of a snapshot with `file_id > after`, of one table only if asked; fewer when they are many to tell.

        Raises:
            NotFound: Also TABLE_NOT_FOUND.
        """
        ...

    async def pin(self, snapshot_id: int, name: str, expires_at: datetime | None) -> SnapshotInfo:
        """Keep a snapshot from expiry; a pin of this name gets the new end. Once it returns no expiry takes the snapshot.

        Raises:
            Invalid: VALIDATION_FAILED, `expires_at` is past by the database's clock, or there are too many pins.
        """
        ...

    async def unpin(self, snapshot_id: int, name: str) -> tuple[SnapshotInfo, bool]:
        """Take a pin off; whether it was there."""
        ...


class CatalogFreezer(Protocol):
    """Makes frozen catalogs; keeps a bounded number of files and deletes the ones nobody holds."""

    async def freeze(self, min_token: int = 0, *, at: Moment | None = None) -> FrozenCatalog:
        """Take hold of a catalog of the newest snapshot, or of one at most 100 ms old whose token is not below `min_token`.

        The result's token may still be below `min_token` when the lake is; the caller waits at the barrier first.

        Args:
            min_token: For the newest snapshot only.
            at: The snapshot to freeze instead.

        Raises:
            NotFound: SNAPSHOT_NOT_FOUND when there never was one at that moment, SNAPSHOT_EXPIRED when it is gone.
            Invalid: VALIDATION_FAILED when the moment has not come.
            Limited: OVERLOADED while too many different past snapshots are held.
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
        snapshot_version: `FrozenCatalog.version`.
    """

    sql: str
    params: Sequence[object]
    catalog_path: str
    data_url: str
    row_limit: int
    timeout_ms: int
    snapshot_version: int | None = None


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
        """Bytes `start .. start+length` (shorter at the end, none behind it). Raises: Corrupt DATA_FILE_MISSING."""
        ...


class StoreState(StrEnum):
    """How the object store takes what is asked of it; the words of `duckmesh.report_store`."""

    OK = "ok"
    UNREACHABLE = "unreachable"  # no answer in time, or one that says nothing
    ACCESS_DENIED = "access_denied"  # it refuses the key
    BUCKET_MISSING = "bucket_missing"


class StoreProbe(Protocol):
    """Whether the object store takes requests now; raises nothing."""

    async def state(self, *, write: bool) -> StoreState:
        """Read something and, if asked, write a small object and remove it."""
        ...


class StoreReporter(Protocol):
    """Where the committer's process says how the object store is."""

    async def report(self, state: StoreState) -> None:
        """Replace the last report."""
        ...


class StagedObjects(ObjectStore, Protocol):
    """The same where staged files are taken back."""

    async def remove(self, path: str) -> None:
        """Remove a file that nothing names; one that is not there is fine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What there is to look after in a lake.

    Attributes:
        now: The database's time.
        settled: When the oldest transaction began that is at work in the lake now; the same as `now` when none is.
        snapshots: How many there are.
        newest_from: From this id on snapshots are among the newest, which stay.
        pinned: Ids of pinned snapshots.
        files: Files that no snapshot has any more and that are still in the store.
        old_files: Those of them that have been so for long enough.
    """

    now: datetime
    settled: datetime
    snapshots: int
    newest_from: int
    pinned: frozenset[int]
    files: int
    old_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What one slice of compaction did.

    Attributes:
        files_in: Files that were read; 0 when there was nothing to do, or it has to be done again later.
        files_out: Files that took their place.
        hopeless: Whether the same slice would come to nothing again: a file is damaged, or it takes too much memory or time.
    """

    files_in: int = 0
    files_out: int = 0
    hopeless: bool = False


class LakeMaintenance(Protocol):
    """Upkeep of one lake. What changes it is for the holder of the maintenance lease, and refused to all others."""

    async def look(self, *, keep_last: int, files_stay_s: float) -> Upkeep:
        """What there is to do.

        Args:
            keep_last: How many snapshots count as the newest.
            files_stay_s: From how many seconds on a file has been without a snapshot for long enough.
        """
        ...

    async def snapshots(self, *, since: int, until: datetime, limit: int) -> Sequence[Snapshot]:
        """Snapshots from id `since` on that were committed at or before `until`, ascending, at most `limit`."""
        ...

    async def claim(self) -> bool:
        """Take the lease, or keep it: before each change. False when another process has it and works."""
        ...

    async def expire(self, ids: Sequence[int]) -> int:
        """Give up snapshots and what only they need; all or none. Their files stay in the store.

        Returns:
            How many there were.
        """
        ...

    async def live_files(self, bounds: Bounds) -> LakeFiles:
        """The live files, as far as compaction within these bounds needs to know."""
        ...

    async def prepare(self) -> None:
        """Do ahead what the first `compact` would else begin with; the lease is ours.

        Raises:
            Unavailable: The catalog does not answer.
        """
        ...

    async def compact(self, piece: Slice) -> Compacted:
        """Do one slice of compaction, all of it or nothing; the lease is kept meanwhile. No query and no commit waits.

        Rows that are deleted in its files meanwhile win: the slice comes to nothing and may be tried again.

        Raises:
            Unavailable: It was not done, or it is not known whether it was: a later look tells.
        """
        ...

    async def report_debt(self, debt: Debt) -> None:
        """Say in the catalog what there is to compact."""
        ...

    async def report_merged(self) -> None:
        """Say in the catalog that compaction came forward."""
        ...

    async def report_run(self, run: Mapping[str, object]) -> None:
        """Say in the catalog how a run ended: `sql/catalog/0009_maintenance.sql` gives the fields."""
        ...

    async def remove_files(self, *, stay_s: float, limit: int) -> int:
        """Remove from the store files that no snapshot has had for more than `stay_s` seconds by the database's clock.

        Repeating it after it failed half-way is fine. One that cannot be removed holds up no other: it is left for the
        next holder.

        Returns:
            How many were removed; 0 when none is left.

        Raises:
            Unavailable: STORAGE_UNAVAILABLE, the store takes none, or only such are left that it did not take before.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object of the store.

    Attributes:
        path: Relative to the lake's data path.
        size: Bytes.
        changed_at: When it was written, by the store's clock.
    """

    path: str
    size: int
    changed_at: datetime


class StoreInventory(ObjectStore, Protocol):
    """All that lies below the lake's data path."""

    def objects(self) -> AsyncIterator[Sequence[StoredObject]]:
        """Page by page, in no order; what comes and goes meanwhile may be told or not."""
        ...

    async def now(self) -> datetime:
        """The store's own time: it is asked by writing a small object, which goes again."""
        ...

    async def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        ...


class LakeCheck(Protocol):
    """What a lake's catalog says that its store must hold, and where is told what came of it."""

    def files(self) -> AsyncIterator[Sequence[LakeFile]]:
        """The data and delete files that kept snapshots name, page by page, each as it is when it is asked for."""
        ...

    async def hits(self, paths: Sequence[str]) -> Sequence[Hit]:
        """Of these files those that are named now, with what they take with them; by path."""
        ...

    async def differences(self) -> Sequence[Difference]:
        """Tables of which the catalog counts other rows than were committed, of one database snapshot; by name."""
        ...

    async def unnamed(self, paths: Sequence[str]) -> Sequence[str]:
        """Of these paths those that nothing names now.

        Neither a snapshot, nor the list of files to remove, nor an entry or a dead letter of the bus.
        """
        ...

    async def now(self) -> datetime:
        """The database's time."""
        ...

    async def report_integrity(self, report: Mapping[str, object]) -> None:
        """Replace the last report of a check."""
        ...

    async def report_orphans(self, report: Mapping[str, object]) -> None:
        """Replace the last report of files that nothing names."""
        ...
