"""The committer: takes accepted input in order and writes it to the lake, in the one process that is elected.

    campaign -> read the watermark W -> entries after W -> transactions W..t -> trim -> pause -> ...

The watermark moves inside each lake transaction, so there is nothing to remember: after any failure the committer reads
W again and goes on from there. Entries that cannot be written are isolated and set aside, so one of them never stops a
lake. Run by the ingest role; `nudge` tells of new rows, a poll is the net below.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.rhythm import Rhythm, cut, halves
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.errors import Corrupt, DuckmeshError, Invalid
from duckmesh_runtime.ports import (
    CommitOutcome,
    CommitResult,
    Election,
    Entry,
    EntryKind,
    IngestBus,
    LakeWriter,
    ProgressReader,
    TableRows,
    Term,
)
from duckmesh_runtime.settings import BatchSettings

logger = logging.getLogger(__name__)

OpenWriter = Callable[[int], Awaitable[LakeWriter]]

POLL_S: Final = 0.5
TRIES: Final = 3
"""Refusals of a batch before it is split."""

_ALL: Final = 2**31
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 2.0


class _Lost(Exception):
    """The role is gone: campaign again."""


class _Reread(Exception):
    """It is unknown what the lake holds: attach and read again."""


@dataclass(slots=True, kw_only=True)
class _Seat:
    """What a holder of the role works with; `token` is the watermark as far as it knows."""

    term: Term
    writer: LakeWriter
    token: int


class Committer:
    """The commit loop of one process.

    Args:
        bus: Accepted input.
        election: Decides which process commits.
        open_writer: Attaches the lake for a lease epoch.
        progress: Reads the watermark.
        batch: Rhythm and bounds.
        tries: See `TRIES`.
    """

    def __init__(
        self,
        bus: IngestBus,
        election: Election,
        open_writer: OpenWriter,
        progress: ProgressReader,
        batch: BatchSettings,
        *,
        tries: int = TRIES,
    ) -> None:
        self._bus = bus
        self._election = election
        self._open_writer = open_writer
        self._progress = progress
        self._batch = batch
        self._tries = tries
        self._rhythm = Rhythm(
            min_interval_s=batch.min_interval_ms / 1000, max_delay_s=batch.max_delay_ms / 1000
        )
        self._pause_s = 0.0
        self._most = _ALL
        self._active = False
        self._nudged = asyncio.Event()
        self._leaving = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def active(self) -> bool:
        """Whether this process is the committer now."""
        return self._active

    @property
    def backing_off(self) -> bool:
        """Whether the last thing tried failed, so that the next try waits."""
        return self._pause_s > 0

    def nudge(self) -> None:
        """Say that input was accepted. Cheap; safe from any task of the loop."""
        self._rhythm.arrived(time.monotonic())
        self._nudged.set()

    async def run(self) -> None:
        """Campaign and commit until cancelled or handed over."""
        self._ended.clear()
        try:
            while not self._leaving.is_set():
                try:
                    await self._serve()
                except Exception:  # the loop's edge: a lake must go on
                    logger.exception("committer failed")
                    metrics.commit_failed("INTERNAL")
                    await self._back_off()
        finally:
            try:
                await self._election.release()
            finally:
                self._ended.set()

    async def hand_over(self) -> None:
        """Finish the running commit and release the role, so that a sibling goes on at once; `run` returns."""
        self._leaving.set()
        self._nudged.set()
        await self._ended.wait()

    async def _serve(self) -> None:
        """One term, from campaign to its end."""
        term = await self._campaign()
        if term is None:
            return
        self._show(True)
        try:
            while self._holds(term):
                try:
                    async with self._seat(term) as seat:
                        await self._keep_committing(seat)
                except _Reread:
                    await self._back_off()
                except Corrupt as error:
                    logger.error("lake refused", extra={"problem": error.message})
                    metrics.commit_failed(error.code)
                    await self._back_off()
                except DuckmeshError as error:
                    metrics.commit_failed(error.code)
                    await self._back_off()
        except _Lost:
            logger.warning("another committer follows", extra={"epoch": term.epoch})
        finally:
            self._show(False)
            await self._election.release()

    async def _campaign(self) -> Term | None:
        """The term, or None when told to leave first."""
        campaign = asyncio.ensure_future(self._election.campaign())
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({campaign, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return await campaign if campaign.done() else None
        finally:
            for waiting in (campaign, leaving):
                waiting.cancel()
            await asyncio.wait({campaign, leaving})

    @asynccontextmanager
    async def _seat(self, term: Term) -> AsyncIterator[_Seat]:
        writer = await self._open_writer(term.epoch)
        try:
            # After the take-over: the old holder's last commit has landed or never will.
            token = (await self._progress.progress()).token
            yield _Seat(term=term, writer=writer, token=token)
        finally:
            term.inflight_to = None
            await writer.close()

    async def _keep_committing(self, seat: _Seat) -> None:
        while self._holds(seat.term):
            self._nudged.clear()
            entries = await self._bus.read(
                seat.token, max_rows=self._batch.max_rows, max_bytes=self._batch.max_bytes
            )
            if entries:
                self._rhythm.started(time.monotonic())
                for stretch in cut(entries, _is_change):
                    while stretch:
                        part, stretch = stretch[: self._most], stretch[self._most :]
                        await self._commit(seat, part)
                await self._bus.trim(seat.token)
                self._pause_s = 0.0
            else:
                await self._wait(self._nudged, POLL_S)
            await self._wait(self._leaving, self._rhythm.pause_s(time.monotonic()))

    async def _commit(self, seat: _Seat, entries: Sequence[Entry]) -> None:
        """Bring the entries into the lake, or those that cannot be to the dead letters."""
        error = await self._try(seat, entries, self._tries)
        if error is None:
            return
        if len(entries) == 1:
            await self._set_aside(seat, entries[0], error)
            return
        waiting = list(reversed(halves(entries)))
        while waiting:
            part = waiting.pop()
            error = await self._try(seat, part, 1)
            if error is not None and len(part) > 1:
                waiting.extend(reversed(halves(part)))
            elif error is not None:
                await self._set_aside(seat, part[0], error)

    async def _try(self, seat: _Seat, entries: Sequence[Entry], tries: int) -> str | None:
        """None when they are in the lake, else why they are refused."""
        error = None
        for attempt in range(tries):
            if attempt:
                await self._back_off()
            started = time.monotonic()
            seat.term.inflight_to = entries[-1].last
            result = await self._write(seat, entries)
            seat.term.inflight_to = None
            if result.outcome is CommitOutcome.REREAD:
                # It may have been more than store and catalog take in time: the same again would fail for ever.
                self._most = max(1, len(entries) // 2)
            self._check(result)
            if result.outcome is CommitOutcome.DONE:
                self._pause_s = 0.0
                self._most = min(_ALL, 2 * self._most)
                seat.token = entries[-1].last
                _report(entries, result, time.monotonic() - started)
                return None
            error = result.error or "refused without a reason"
        return error

    async def _write(self, seat: _Seat, entries: Sequence[Entry]) -> CommitResult:
        first, tok = entries[0], entries[-1].last
        try:
            if first.kind is EntryKind.CREATE_TABLE:
                table = parse_table(msgspec.json.decode(first.payload))
                return await seat.writer.create_table(seat.token, tok, table)
            if first.kind is EntryKind.DROP_TABLE:
                return await seat.writer.drop_table(seat.token, tok, first.table)
            parts = await asyncio.to_thread(_decode, entries)
        except (Invalid, msgspec.DecodeError, pa.ArrowException, OSError) as error:
            return CommitResult(outcome=CommitOutcome.REJECTED, error=f"unreadable: {error}")
        return await seat.writer.commit_rows(seat.token, tok, parts)

    async def _set_aside(self, seat: _Seat, entry: Entry, error: str) -> None:
        self._check(await seat.writer.set_aside(seat.token, entry.last, error))
        seat.token = entry.last
        rows = entry.last - entry.first + 1
        metrics.dead_lettered(rows)
        logger.error(
            "input set aside as dead letter",
            extra={"table": entry.table, "first": entry.first, "rows": rows, "problem": error},
        )

    def _check(self, result: CommitResult) -> None:
        """Raise what ends the seat or the term."""
        if result.outcome is CommitOutcome.DONE:
            return
        metrics.commit_failed(result.outcome.value)
        if result.outcome is CommitOutcome.FENCED:
            raise _Lost
        if result.outcome is CommitOutcome.REREAD:
            logger.warning("commit to be redone", extra={"problem": result.error})
            raise _Reread

    def _holds(self, term: Term) -> bool:
        return not (term.lost.is_set() or self._leaving.is_set())

    def _show(self, active: bool) -> None:
        self._active = active
        metrics.committing(active)

    async def _back_off(self) -> None:
        """Wait longer each time until something lands."""
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        await self._wait(self._leaving, self._pause_s)

    async def _wait(self, event: asyncio.Event, timeout_s: float) -> None:
        if timeout_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)


def _is_change(entry: Entry) -> bool:
    return entry.kind is not EntryKind.ROWS


def _decode(entries: Sequence[Entry]) -> list[TableRows]:
    """The rows of each table in token order; tables by their first entry."""
    streams: dict[str, list[pa.Table]] = {}
    for entry in entries:
        with pa.ipc.open_stream(entry.payload) as reader:
            streams.setdefault(entry.table, []).append(reader.read_all())
    return [
        TableRows(table=table, rows=pa.concat_tables(tables)) for table, tables in streams.items()
    ]


def _report(entries: Sequence[Entry], result: CommitResult, seconds: float) -> None:
    rows = sum(entry.last - entry.first + 1 for entry in entries if not _is_change(entry))
    metrics.committed(token=entries[-1].last, rows=rows, seconds=seconds)
    if result.committed_at is not None:
        for entry in entries:
            metrics.published((result.committed_at - entry.accepted_at).total_seconds() * 1000)
