"""The accept side: check rows against their table, write them to the bus in group commits, say what became of each.

An answer is durable and never waits for the lake. When keys are known the bus writes nothing and names them; the rest
is submitted again, so a request ends with every row accepted once, known, or rejected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import pyarrow as pa

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.arrow_rows import decode_arrow
from duckmesh_runtime.domain.records import (
    Decoded,
    RawRecord,
    Rejected,
    body_digest,
    content_digest,
    decode_records,
    key_digest,
)
from duckmesh_runtime.domain.schema import TableDef, arrow_schema, table_json
from duckmesh_runtime.errors import Conflict, DuckmeshError, Invalid, Limited, Unavailable
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    EntryKind,
    IngestBus,
    KeyHash,
    Part,
    Receipt,
)
from duckmesh_runtime.services.group_commit import GroupCommit
from duckmesh_runtime.services.intake import PendingBytes, RateLimit
from duckmesh_runtime.services.table_cache import TableCache
from duckmesh_runtime.settings import IngestLimits

__all__ = ["IngestAnswer", "IngestService", "RawRecord", "Rejected"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

PART_ROWS: Final = 65_536
PART_BYTES: Final = 4 * 2**20
INLINE_ROWS: Final = 500
"""Up to here a request is decoded on the event loop (about 1 ms); above, in a thread."""

RECORD_KEYS_S: Final = 24 * 3600.0
REQUEST_KEYS_S: Final = 7 * 24 * 3600.0
"""How long idempotency keys are remembered at least."""

_FORGET_EVERY_S: Final = 60.0
_FORGET_AT_ONCE: Final = 5_000
_TRIES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestAnswer:
    """What became of a request.

    Attributes:
        accepted: Rows written by this request.
        duplicates: Rows that an earlier use of their key had written.
        rejected: Records that were refused, by index.
        number: Highest number of the accepted and known rows; 0 when there are none.
        timeline: See `domain.tokens`.
    """

    accepted: int
    duplicates: int
    rejected: Sequence[Rejected]
    number: int
    timeline: int


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """An answer in the making."""

    accepted: int = 0
    duplicates: int = 0
    number: int = 0
    timeline: int
    rejected: list[Rejected] = field(default_factory=list)

    def count(self, receipt: Receipt, rows: int) -> None:
        """Take in an accepted append."""
        self.accepted += rows
        self.number = max(self.number, receipt.last)
        self.timeline = receipt.timeline

    def answer(self) -> IngestAnswer:
        """The finished answer."""
        metrics.records_settled(
            accepted=self.accepted, duplicates=self.duplicates, rejected=len(self.rejected)
        )
        return IngestAnswer(
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected=sorted(self.rejected, key=lambda each: each.index),
            number=self.number,
            timeline=self.timeline,
        )


class IngestService:
    """Accepts rows and table changes of one lake.

    Args:
        bus: The lake's input.
        lake: Name of the lake, for logs.
        limits: What is refused.
        on_accepted: Called with the highest number after each transaction that wrote; wakes the committer.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        bus: IngestBus,
        *,
        lake: str,
        limits: IngestLimits,
        on_accepted: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._lake = lake
        self._limits = limits
        self._tables = TableCache(bus)
        self._group = GroupCommit(bus, on_accepted)
        self._rate = RateLimit(limits.requests_per_second, clock)
        self._pending = PendingBytes(bus, limits.pending_bytes)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._tasks: list[asyncio.Task[None]] = []
        self._timeline = 1
        self._active = 0
        self._stopping = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def start(self) -> None:
        """Read the tables and begin to accept.

        Raises:
            Unavailable: The bus does not answer; call again.
        """
        self._timeline = (await self._bus.head()).timeline
        await self._tables.fresh()
        if not self._tasks:
            runs = (self._group.run(), self._pending.run(), self._forget_keys())
            self._tasks = [asyncio.create_task(run) for run in runs]

    async def drain(self) -> None:
        """Refuse new requests, finish the ones under way, stop. Safe to repeat."""
        self._stopping = True
        await self._quiet.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._executor.shutdown(wait=False)

    async def ingest_records(self, table: str, records: Sequence[RawRecord]) -> IngestAnswer:
        """Accept JSON records, each on its own.

        Raises:
            NotFound: TABLE_NOT_FOUND.
            Invalid: VALIDATION_FAILED when the table takes no such writes.
            Limited: RATE_LIMITED or OVERLOADED.
            Unavailable: The bus does not answer; records without a key may be there or not.
        """
        async with self._request():
            outcome = _Outcome(timeline=self._timeline)
            left = list(range(len(records)))
            for _ in range(_TRIES):
                if not left:
                    return outcome.answer()
                left = await self._try_records(table, records, left, outcome)
            raise _unsettled()

    async def ingest_arrow(
        self, table: str, body: bytes, *, request_key: str | None
    ) -> IngestAnswer:
        """Accept an Arrow IPC stream, whole or not at all.

        Raises:
            NotFound: TABLE_NOT_FOUND.
            Invalid: VALIDATION_FAILED, PAYLOAD_TOO_LARGE.
            Conflict: SCHEMA_INCOMPATIBLE, IDEMPOTENCY_CONFLICT.
            Limited: RATE_LIMITED or OVERLOADED.
            Unavailable: The bus does not answer; without a key the rows may be there or not.
        """
        self._check_size(body)
        async with self._request():
            for _ in range(_TRIES):
                version, found = await self._tables.find(table)
                try:
                    append = await self._threaded(
                        self._arrow_append, found, version, body, request_key
                    )
                except DuckmeshError:
                    if await self._is_current(version):
                        raise
                    continue
                if not append.parts:
                    return _Outcome(timeline=self._timeline).answer()
                receipt = await self._submit(append)
                if receipt.result is not AppendResult.STALE_SCHEMA:
                    return _arrow_answer(append.rows, receipt)
                await self._tables.fresh()
            raise _unsettled()

    async def create_table(self, table: TableDef) -> int:
        """Create a table; returns the number after which it is visible. An equal existing one is a success.

        Raises:
            Conflict: TABLE_EXISTS.
        """
        async with self._request():
            for _ in range(_TRIES):
                tables = await self._tables.fresh()
                existing = tables.by_name.get(table.name)
                if existing is not None:
                    _check_equal(existing, table)
                    return (await self._bus.head()).last
                payload = msgspec.json.encode(table_json(table))
                change = _change(EntryKind.CREATE_TABLE, table.name, payload, tables.version)
                if (number := await self._changed(change)) is not None:
                    return number
            raise _unsettled()

    async def drop_table(self, name: str) -> int:
        """Drop a table; returns the number after which it is gone.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """
        async with self._request():
            for _ in range(_TRIES):
                tables = await self._tables.fresh()
                tables.find(name)
                change = _change(EntryKind.DROP_TABLE, name, b"", tables.version)
                if (number := await self._changed(change)) is not None:
                    return number
            raise _unsettled()

    async def tables(self) -> Sequence[TableDef]:
        """The tables as accepted, by name."""
        return list((await self._tables.fresh()).by_name.values())

    async def table(self, name: str) -> TableDef:
        """One table.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """
        return (await self._tables.fresh()).find(name)

    @asynccontextmanager
    async def _request(self) -> AsyncIterator[None]:
        if self._stopping:
            raise Limited(
                "OVERLOADED", "this process is stopping: repeat the request", retry_after_s=1
            )
        self._rate.take()
        self._pending.check()
        self._active += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._quiet.set()

    async def _try_records(
        self, table: str, records: Sequence[RawRecord], left: list[int], outcome: _Outcome
    ) -> list[int]:
        """Submit these records once; returns the indexes that are not settled yet."""
        version, found = await self._tables.find(table)
        chosen = [records[i] for i in left]
        run = self._threaded if len(chosen) > INLINE_ROWS else _inline
        try:
            decoded, append = await run(_records_append, found, version, chosen)
        except DuckmeshError:
            if await self._is_current(version):
                raise
            return left
        if not append.parts:
            if not await self._is_current(version):
                return left
            outcome.rejected += _rejected(decoded, left)
            return []
        receipt = await self._submit(append)
        if receipt.result is AppendResult.STALE_SCHEMA:
            await self._tables.fresh()
            return left
        outcome.rejected += _rejected(decoded, left)
        kept = [left[i] for i in decoded.kept]
        if receipt.result is AppendResult.ACCEPTED:
            outcome.count(receipt, append.rows)
            return []
        return _settle_known(receipt, kept, outcome)

    async def _is_current(self, version: int) -> bool:
        """Whether a refusal holds: it must not rest on tables that have changed since. Accepted rows the bus checks."""
        return (await self._tables.fresh()).version == version

    async def _submit(self, append: Append) -> Receipt:
        receipt = await self._group.submit(append)
        if receipt.result is AppendResult.ACCEPTED:
            self._timeline = receipt.timeline
            self._pending.add(sum(len(part.payload) for part in append.parts))
        return receipt

    async def _changed(self, change: Append) -> int | None:
        """The number of a table change, or None when other changes came first."""
        receipt = await self._submit(change)
        await self._tables.fresh()
        return receipt.last if receipt.result is AppendResult.ACCEPTED else None

    async def _threaded(self, function: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *args)

    def _check_size(self, body: bytes) -> None:
        limit = self._limits.body_bytes
        if len(body) > limit:
            raise Invalid(
                "PAYLOAD_TOO_LARGE",
                f"body: larger than {limit} bytes: send it in smaller parts",
                context={"limit_bytes": limit},
            )

    def _arrow_append(
        self, table: TableDef, version: int, body: bytes, request_key: str | None
    ) -> Append:
        _check_insertable(table)
        batches = decode_arrow(table, body, max_bytes=2 * self._limits.body_bytes)
        keys: list[KeyHash | None] = []
        if request_key is not None:
            key = key_digest(table, "request", request_key)
            keys = [KeyHash(key=key, content=body_digest(body), request=True)]
        return _append(table, version, batches, keys)

    async def _forget_keys(self) -> None:
        """Remove keys past their horizon, a few at a time, until cancelled."""
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            try:
                while await self._bus.forget_keys(
                    record_age_s=RECORD_KEYS_S,
                    request_age_s=REQUEST_KEYS_S,
                    max_keys=_FORGET_AT_ONCE,
                ):
                    pass
            except Exception as error:
                kept = {"lake": self._lake, "error": repr(error)}
                logger.warning("idempotency keys are kept longer", extra=kept)


def _check_insertable(table: TableDef) -> None:
    if table.primary_key:
        raise Invalid(
            "VALIDATION_FAILED",
            f"table {table.name} has a primary key: writes to it are not supported yet in this version; "
            "use a table without primary_key",
        )


async def _inline(function: Callable[..., T], *args: object) -> T:
    return function(*args)


def _records_append(
    table: TableDef, version: int, records: Sequence[RawRecord]
) -> tuple[Decoded, Append]:
    _check_insertable(table)
    decoded = decode_records(table, records)
    keys = [_record_key(table, records[i]) for i in decoded.kept]
    batches = [decoded.batch] if decoded.kept else []
    return decoded, _append(table, version, batches, keys if any(keys) else ())


def _record_key(table: TableDef, record: RawRecord) -> KeyHash | None:
    if record.idempotency_key is None:
        return None
    key = key_digest(table, "record", record.idempotency_key)
    return KeyHash(key=key, content=content_digest(record))


def _append(
    table: TableDef,
    version: int,
    batches: Sequence[pa.RecordBatch],
    keys: Sequence[KeyHash | None],
) -> Append:
    return Append(
        kind=EntryKind.ROWS,
        table=table.name,
        header=arrow_schema(table).serialize().to_pybytes(),
        parts=[part for batch in batches for part in _parts(batch)],
        schema_version=version,
        keys=keys,
    )


def _parts(batch: pa.RecordBatch) -> Sequence[Part]:
    """Pieces of bounded size; a single row is one however large it is."""
    if batch.num_rows <= PART_ROWS:
        part = Part(rows=batch.num_rows, payload=batch.serialize().to_pybytes())
        if len(part.payload) <= PART_BYTES or part.rows == 1:
            return [part]
    middle = batch.num_rows // 2
    return [*_parts(batch.slice(0, middle)), *_parts(batch.slice(middle))]


def _change(kind: EntryKind, table: str, payload: bytes, version: int) -> Append:
    parts = [Part(rows=1, payload=payload)]
    return Append(kind=kind, table=table, parts=parts, schema_version=version)


def _rejected(decoded: Decoded, indexes: Sequence[int]) -> Sequence[Rejected]:
    return [
        Rejected(index=indexes[each.index], code=each.code, message=each.message)
        for each in decoded.rejected
    ]


def _settle_known(receipt: Receipt, indexes: Sequence[int], outcome: _Outcome) -> list[int]:
    """Take in the rows whose keys were known; returns the others."""
    conflicts = {indexes[i] for i in receipt.conflicts}
    outcome.rejected += [
        Rejected(
            index=i,
            code="IDEMPOTENCY_CONFLICT",
            message="idempotency_key: was used with other content: use a new key or the same content",
        )
        for i in conflicts
    ]
    numbers = dict(zip(indexes, receipt.known, strict=True))
    known = [number for number in numbers.values() if number is not None]
    outcome.duplicates += len(known)
    outcome.number = max(outcome.number, *known, 0)
    outcome.timeline = receipt.timeline
    return [i for i in indexes if numbers[i] is None and i not in conflicts]


def _arrow_answer(rows: int, receipt: Receipt) -> IngestAnswer:
    outcome = _Outcome(timeline=receipt.timeline)
    if receipt.conflicts:
        raise Conflict(
            "IDEMPOTENCY_CONFLICT",
            "Idempotency-Key: was used with another body: use a new key or send the same body",
        )
    if receipt.result is AppendResult.ACCEPTED:
        outcome.count(receipt, rows)
    else:
        outcome.duplicates = rows
        outcome.number = receipt.known[0] or 0
    return outcome.answer()


def _check_equal(existing: TableDef, wanted: TableDef) -> None:
    if existing != wanted:
        raise Conflict(
            "TABLE_EXISTS",
            f"table {wanted.name} exists with another definition: drop it first or use another name",
        )


def _unsettled() -> Unavailable:
    return Unavailable(
        "CATALOG_UNAVAILABLE",
        "the lake's tables change faster than this request can be written: repeat it",
        retry_after_s=1,
    )
