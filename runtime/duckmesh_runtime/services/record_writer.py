"""JSON records into the bus. Requests of one table that arrive together are decoded, serialised and appended as one.

Most of what a small request costs is the same for one row and for a hundred, so while a round is under way the next
gathers; when nothing is under way a request starts one at once. Each record still gets its own number and answer.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, TypeVar

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.decode import Decoded, decode_records
from duckmesh_runtime.domain.records import RawRecord, content_digest, key_digest
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import Rejected
from duckmesh_runtime.errors import DuckmeshError, Limited
from duckmesh_runtime.ports import Append, AppendResult, KeyHash, KnownKey, Receipt
from duckmesh_runtime.services.inlet import TRIES, Inlet, unsettled
from duckmesh_runtime.services.outcome import IngestAnswer, Outcome
from duckmesh_runtime.services.packing import parts_of, rows_append

T = TypeVar("T")

WAVE_ROWS: Final = 500
"""Rows of one round; a larger request goes alone."""

INLINE_CELLS: Final = 1_000
"""Up to here rows are decoded on the event loop (below 2 ms); above, in a thread."""

MOST_WAITING: Final = 10_000
"""Requests that may wait for a round before more is OVERLOADED: seconds of work."""


@dataclass(slots=True, kw_only=True)
class _Request:
    """One request on its way: `left` are the indexes of records that are not settled yet, in order.

    `repeats` are those that use the key of one before them with the same content, once that was found out.
    """

    records: Sequence[RawRecord]
    left: Sequence[int]
    outcome: Outcome
    done: asyncio.Future[None]
    atomic: bool = False
    repeats: list[int] = field(default_factory=list)

    def refuse_all(self, rejected: Iterable[Rejected]) -> None:
        """End it with nothing but these refusals."""
        self.outcome = Outcome(timeline=self.outcome.timeline, rejected=list(rejected))
        self.left = ()
        self.repeats = []

    def settle(self, share: _Share) -> None:
        """Take in what is told of a decoded wave whether or not its rows are written."""
        self.outcome.rejected += share.rejected
        for known in share.known:
            self.outcome.know(1, known.number, known.timeline)

    def settle_repeats(self) -> None:
        """A repeat is known when its first use was written, by whomever, and refused for the same reason when not."""
        used = {self.records[index].idempotency_key for index in self.repeats}
        refused: dict[tuple[str | None, bytes | None], Rejected] = {}
        for each in self.outcome.rejected if used else ():
            if self.records[each.index].idempotency_key in used:
                refused.setdefault(_said(self.records[each.index]), each)
        for index in self.repeats:
            first = refused.get(_said(self.records[index])) if refused else None
            if first is None:
                self.outcome.know(1, 0, self.outcome.timeline)
            else:
                self.outcome.rejected.append(replace(first, index=index))

    def unsettled(self) -> Sequence[RawRecord]:
        """The records that are left."""
        if len(self.left) == len(self.records):
            return self.records
        return [self.records[i] for i in self.left]


@dataclass(slots=True)
class _Wave:
    """Requests that become one append; no two of them use the same key."""

    requests: list[_Request] = field(default_factory=list)
    rows: int = 0
    keys: set[str] = field(default_factory=set)

    def takes(self, request: _Request, keys: set[str]) -> bool:
        return self.rows + len(request.left) <= WAVE_ROWS and self.keys.isdisjoint(keys)

    def add(self, request: _Request, keys: set[str]) -> None:
        self.requests.append(request)
        self.rows += len(request.left)
        self.keys |= keys


@dataclass(slots=True)
class _Lane:
    """A table's requests that wait for its next round, and the task that runs its rounds."""

    waiting: list[_Request] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class RecordWriter:
    """Writes JSON records of one lake."""

    def __init__(self, inlet: Inlet) -> None:
        self._inlet = inlet
        self._lanes: dict[str, _Lane] = {}
        self._waiting = 0

    async def write(
        self, table: str, records: Sequence[RawRecord], *, atomic: bool
    ) -> IngestAnswer:
        """Settle every record; raises as `IngestService.ingest_records`."""
        request = _Request(
            records=records,
            left=range(len(records)),
            outcome=Outcome(timeline=self._inlet.timeline),
            done=asyncio.get_running_loop().create_future(),
            atomic=atomic,
        )
        if atomic or len(records) > WAVE_ROWS:
            await self._settle(table, [request])
        else:
            self._gather(table, request)
        await request.done
        return request.outcome.answer()

    def _gather(self, table: str, request: _Request) -> None:
        if self._waiting >= MOST_WAITING:
            raise Limited(
                "OVERLOADED", "too many writes wait for the catalog: repeat later", retry_after_s=1
            )
        lane = self._lanes.setdefault(table, _Lane())
        lane.waiting.append(request)
        self._waiting += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._rounds(table, lane))

    async def _rounds(self, table: str, lane: _Lane) -> None:
        try:
            while lane.waiting:
                taken, lane.waiting = lane.waiting, []
                self._waiting -= len(taken)
                waves = _waves(request for request in taken if not request.done.done())
                first, *more = waves or [_Wave()]
                others = [asyncio.create_task(self._settle(table, w.requests)) for w in more]
                await self._settle(table, first.requests)
                if others:
                    await asyncio.gather(*others)
        finally:
            del self._lanes[table]

    async def _settle(self, table: str, requests: Sequence[_Request]) -> None:
        """Bring requests to their end; what fails fails in `done`."""
        try:
            for _ in range(TRIES):
                unsettled_ones = [request for request in requests if request.left]
                if not unsettled_ones:
                    break
                await self._attempt(table, unsettled_ones)
            else:
                raise unsettled()
        except BaseException as error:
            for request in requests:
                if not request.done.done():
                    request.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for request in requests:
            request.settle_repeats()
        _count(requests)
        for request in requests:
            if not request.done.done():
                request.done.set_result(None)

    async def _attempt(self, name: str, requests: Sequence[_Request]) -> None:
        """Submit what is left once."""
        version, table = await self._inlet.tables.find(name)
        parts = [request.unsettled() for request in requests]
        records = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        cells = len(records) * len(table.columns)
        run = self._inlet.threaded if cells > INLINE_CELLS else _inline
        try:
            work = await run(_work, table, version, records)
        except DuckmeshError:
            if await self._inlet.is_current(version):
                raise
            return
        decoded, append = work.decoded, work.append
        known = await self._known(work)
        decoded = replace(decoded, rejected=[r for r in decoded.rejected if r.index not in known])
        refused = requests[0].atomic and bool(decoded.rejected)
        if refused or not append.parts:
            # A refusal must not rest on a table that has changed since.
            if await self._inlet.is_current(version):
                for request, mine in _shares(requests, decoded, known):
                    if refused:
                        request.refuse_all(mine.rejected)
                    else:
                        request.settle(mine)
                        request.left = ()
            return
        receipt = await self._inlet.submit(append)
        if receipt.result is AppendResult.STALE_SCHEMA:
            await self._inlet.tables.fresh()
            return
        before = receipt.last - append.rows
        place = 0
        for request, mine in _shares(requests, decoded, known):
            request.settle(mine)
            rows = len(mine.kept)
            if receipt.result is AppendResult.ACCEPTED:
                request.left = ()
                if rows:
                    request.outcome.accept(rows, before + place + rows, receipt.timeline)
            else:
                _settle_known(request, receipt, place, mine.kept)
            place += rows

    async def _known(self, work: _Work) -> Mapping[int, KnownKey]:
        """Of the records that do not fit their table (any more), those that were written before, by index."""
        asked = {r.index: key for r in work.decoded.rejected if (key := work.keys.get(r.index))}
        if not asked:
            return {}
        found = await self._inlet.known(list(asked.values()))
        return {
            index: known
            for (index, key), known in zip(asked.items(), found, strict=True)
            if known is not None and known.content == key.content
        }


def _waves(requests: Iterable[_Request]) -> list[_Wave]:
    """Requests in order, as many to a wave as it takes."""
    waves: list[_Wave] = []
    for request in requests:
        keys = {r.idempotency_key for r in request.records if r.idempotency_key is not None}
        if not waves or not waves[-1].takes(request, keys):
            waves.append(_Wave())
        waves[-1].add(request, keys)
    return waves


async def _inline(function: Callable[..., T], *args: object) -> T:
    return function(*args)


@dataclass(frozen=True, slots=True)
class _Work:
    """A decoded wave: its rows, what to append, and the keys of its records by their index."""

    decoded: Decoded
    append: Append
    keys: Mapping[int, KeyHash]


def _work(table: TableDef, version: int, records: Sequence[RawRecord]) -> _Work:
    keys: dict[int, KeyHash] = {}
    refused: dict[int, str] = {}
    for i, record in enumerate(records):
        if record.idempotency_key is None:
            continue
        key, content = _said(record)
        if key is None or content is None:
            refused[i] = "payload: is nested too deeply"
        else:
            keys[i] = KeyHash(key=key_digest(table, "record", key), content=content)
    decoded = decode_records(table, records, refused)
    mine = [keys.get(i) for i in decoded.kept] if keys else ()
    append = rows_append(table, version, parts_of(decoded.batches), mine if any(mine) else ())
    return _Work(decoded, append, keys)


def _said(record: RawRecord) -> tuple[str | None, bytes | None]:
    """A record's key, and the digest of its content; None when that is nested too deeply to have one."""
    try:
        return record.idempotency_key, content_digest(record)
    except RecursionError:
        return record.idempotency_key, None


@dataclass(frozen=True, slots=True)
class _Share:
    """What of a decoded wave is one request's, by its own indexes: the rows that were kept, and the refusals.

    `known` are records that were written before and would be refused now.
    """

    kept: Sequence[int]
    rejected: Sequence[Rejected]
    known: Sequence[KnownKey] = ()


def _shares(
    requests: Sequence[_Request], decoded: Decoded, known: Mapping[int, KnownKey]
) -> Iterator[tuple[_Request, _Share]]:
    """Split a wave by its requests, in order; one that went alone may be large and is not looked at row by row."""
    start = 0
    for request in requests:
        stop = start + len(request.left)
        kept: Sequence[int] = range(stop - start)
        rejected: Sequence[Rejected] = ()
        if decoded.rejected or known:
            low, high = (bisect_left(decoded.kept, at) for at in (start, stop))
            kept = [i - start for i in decoded.kept[low:high]]
            rejected = [
                Rejected(index=request.left[r.index - start], code=r.code, message=r.message)
                for r in decoded.rejected
                if start <= r.index < stop
            ]
        if len(request.left) < len(request.records):
            kept = [request.left[i] for i in kept]
        yield request, _Share(kept, rejected, [known[i] for i in known if start <= i < stop])
        start = stop


def _settle_known(request: _Request, receipt: Receipt, place: int, kept: Sequence[int]) -> None:
    """Take in the records whose keys were known, from `place` on in the receipt; the others are left."""
    conflicts = set(receipt.conflicts)
    left: list[int] = []
    refused: list[Rejected] = []
    for at, index in enumerate(kept, place):
        number = receipt.known[at]
        if at in conflicts:
            refused.append(_conflict(index))
        elif number == 0:
            request.repeats.append(index)
        elif number is not None:
            request.outcome.know(1, number, receipt.timeline)
        else:
            left.append(index)
    request.outcome.rejected += refused
    request.left = left
    if request.atomic and refused:
        request.refuse_all(request.outcome.rejected)


def _conflict(index: int) -> Rejected:
    return Rejected(
        index=index,
        code="IDEMPOTENCY_CONFLICT",
        message="idempotency_key: was used with other content: use a new key or the same content",
    )


def _count(requests: Sequence[_Request]) -> None:
    outcomes = [request.outcome for request in requests]
    metrics.records_settled(
        accepted=sum(outcome.accepted for outcome in outcomes),
        duplicates=sum(outcome.duplicates for outcome in outcomes),
        rejected=sum(len(outcome.rejected) for outcome in outcomes),
    )
