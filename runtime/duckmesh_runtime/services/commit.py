"""The committer: takes accepted input in order and writes it to the lake, in the one process that is elected.

    campaign -> read the watermark W -> entries after W -> transactions W..t -> trim -> pause -> ...

The watermark moves inside each lake transaction, so there is nothing to remember: after any failure the committer reads
W again and goes on from there. Records that cannot be written are isolated and set aside, so one of them never stops a
lake; so is one that alone fails again and again without a word of its own (`stuck.py`). Run by the ingest role; `nudge`
tells of new rows, a poll is the net below.
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

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.changes import parse_alter
from duckmesh_runtime.domain.restore import parse_restore
from duckmesh_runtime.domain.rhythm import Rhythm, cut
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.errors import Corrupt, DuckmeshError
from duckmesh_runtime.ports import (
    CommitOutcome,
    CommitResult,
    Election,
    Entry,
    EntryKind,
    IngestBus,
    LakeWriter,
    ProgressReader,
    Term,
)
from duckmesh_runtime.services.pieces import (
    UNREADABLE,
    Piece,
    beyond,
    halve,
    letter_of,
    parts_of,
    pieces_after,
    row_count,
    split,
)
from duckmesh_runtime.services.stuck import Stuck
from duckmesh_runtime.settings import BatchSettings

logger = logging.getLogger(__name__)

OpenWriter = Callable[[int], Awaitable[LakeWriter]]

POLL_S: Final = 0.5
TRIES: Final = 3
"""Refusals of a batch before it is split, and of many rows at once before all of them are set aside."""

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
        on_restored: Called after each restore that landed.

    Attributes:
        turn: Held by each commit of rows: who works on the same files may hold it for a moment.
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
        on_restored: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._election = election
        self._open_writer = open_writer
        self._progress = progress
        self._batch = batch
        self._tries = tries
        self._on_restored = on_restored
        self.turn = asyncio.Lock()
        self._rhythm = Rhythm(
            min_interval_s=batch.min_interval_ms / 1000, max_delay_s=batch.max_delay_ms / 1000
        )
        self._pause_s = 0.0
        self._most = _ALL
        self._stuck = Stuck()
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
                    await self._failed("INTERNAL")
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
        self._stuck.forget()
        try:
            while self._holds(term):
                try:
                    async with self._seat(term) as seat:
                        await self._keep_committing(seat)
                except _Reread:
                    await self._back_off()
                except Corrupt as error:
                    logger.error("lake refused", extra={"problem": error.message})
                    await self._failed(error.code)
                except DuckmeshError as error:
                    await self._failed(error.code)
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
                for stretch in cut(pieces_after(entries, seat.token), _is_change):
                    while stretch:
                        part, stretch = split(stretch, self._most)
                        await self._commit(seat, part)
                await self._bus.trim(seat.token)
                self._pause_s = 0.0
            else:
                await self._wait(self._nudged, POLL_S)
            await self._wait(self._leaving, self._rhythm.pause_s(time.monotonic()))

    async def _commit(self, seat: _Seat, pieces: Sequence[Piece]) -> None:
        """Bring the pieces into the lake, or those records that cannot be to the dead letters."""
        waiting = [pieces]
        while waiting:
            whole_batch = waiting[0] is pieces
            # What was set aside may have reached further than what was tried.
            part = beyond(waiting.pop(), seat.token)
            refusal = await self._try(seat, part, whole_batch=whole_batch) if part else None
            if refusal is None:
                continue
            if (smaller := _smaller(part, refusal)) is not None:
                waiting.extend(reversed(smaller))
            else:
                await self._set_aside(seat, part[0], refusal.error or "refused without a reason")

    async def _try(
        self, seat: _Seat, pieces: Sequence[Piece], *, whole_batch: bool
    ) -> CommitResult | None:
        """None when they are in the lake, else why not, said several times while many rows depend on it."""
        refusal = await self._once(seat, pieces)
        for _ in range(self._tries - 1):
            if refusal is None or not (whole_batch or _is_costly(pieces, refusal)):
                break
            if _is_restore(pieces[0]):  # it may have taken minutes, and a person can repeat it
                break
            await self._back_off()
            refusal = await self._once(seat, pieces)
        return refusal

    async def _once(self, seat: _Seat, pieces: Sequence[Piece]) -> CommitResult | None:
        """None when they are in the lake, else their refusal."""
        started = time.monotonic()
        seat.term.inflight_to = pieces[-1].last
        result = await self._write(seat, pieces)
        seat.term.inflight_to = None
        if result.outcome is CommitOutcome.REREAD:
            # It may have been more than store and catalog take in time: the same again would fail for ever.
            self._most = max(1, row_count(pieces) // 2)
            result = await self._doubted(seat, pieces, result)
        self._check(result)
        if result.outcome is not CommitOutcome.DONE:
            return result
        self._pause_s = 0.0
        self._most = min(_ALL, 2 * self._most)
        self._stuck.landed()
        seat.token = pieces[-1].last
        if _is_restore(pieces[0]):
            logger.info("lake restored", extra={"number": seat.token})
            self._on_restored()
        _report(pieces, result, time.monotonic() - started)
        return None

    async def _doubted(
        self, seat: _Seat, pieces: Sequence[Piece], result: CommitResult
    ) -> CommitResult:
        """The same, or a refusal: of what cannot be cut and failed too often while nothing else is wrong."""
        (piece, *others) = pieces
        if _is_restore(piece):
            # What maintenance undid counts too: others wait. What another trouble undid does not, nor takes a count back.
            if not (result.scarce or await seat.writer.probe()):
                return result
        elif others or piece.can_be_cut or result.scarce or not await seat.writer.probe():
            self._stuck.forget()
            return result
        if (how_often := self._stuck.failed(piece)) is None:
            return result
        error = f"{result.error or 'failed without a reason'}, {how_often}"
        return CommitResult(outcome=CommitOutcome.REJECTED, error=error, whole=True)

    async def _write(self, seat: _Seat, pieces: Sequence[Piece]) -> CommitResult:
        tok = pieces[-1].last
        try:
            if _is_change(pieces[0]):
                return await self._change(seat, tok, pieces[0].entry)
            parts = await asyncio.to_thread(parts_of, pieces)
        except MemoryError:
            # Arrow's is an error of reading too, but fewer rows may fit.
            problem = "not enough memory to read it"
            return CommitResult(outcome=CommitOutcome.REREAD, error=problem, scarce=True)
        except UNREADABLE as error:
            problem = f"unreadable: {error}"
            return CommitResult(outcome=CommitOutcome.REJECTED, error=problem, whole=True)
        async with self.turn:
            return await seat.writer.commit(seat.token, tok, parts)

    async def _change(self, seat: _Seat, tok: int, entry: Entry) -> CommitResult:
        writer = seat.writer
        match entry.kind:
            case EntryKind.CREATE_TABLE:
                table = parse_table(msgspec.json.decode(entry.payload))
                return await writer.create_table(seat.token, tok, table)
            case EntryKind.ALTER_TABLE:
                table, changes = parse_alter(msgspec.json.decode(entry.payload))
                return await writer.alter_table(seat.token, tok, table, changes)
            case EntryKind.RESTORE:
                snapshot_id, tables = parse_restore(msgspec.json.decode(entry.payload))
                return await writer.restore(seat.token, tok, snapshot_id, tables)
            case _:
                return await writer.drop_table(seat.token, tok, entry.table)

    async def _set_aside(self, seat: _Seat, piece: Piece, error: str) -> None:
        if _is_change(piece):
            result = await seat.writer.set_aside_change(seat.token, piece.last, error)
        else:
            piece, payload = await asyncio.to_thread(letter_of, piece)
            result = await seat.writer.set_aside(seat.token, piece.last, payload, error)
        self._check(result)
        self._stuck.forget()
        seat.token = piece.last
        metrics.dead_lettered(piece.rows)
        # Why stays in the letter: the engine's words may hold a value, and logs have other readers.
        logger.error(
            "input set aside as dead letter",
            extra={"table": piece.entry.table, "first": piece.first, "rows": piece.rows},
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

    async def _failed(self, code: str) -> None:
        """Something is wrong that is no piece's fault."""
        metrics.commit_failed(code)
        self._stuck.forget()
        await self._back_off()

    async def _back_off(self) -> None:
        """Wait longer each time until something lands."""
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        await self._wait(self._leaving, self._pause_s)

    async def _wait(self, event: asyncio.Event, timeout_s: float) -> None:
        if timeout_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()


def _is_change(piece: Piece) -> bool:
    return piece.entry.kind.is_change


def _is_restore(piece: Piece) -> bool:
    return piece.entry.kind is EntryKind.RESTORE


def _smaller(
    pieces: Sequence[Piece], refusal: CommitResult
) -> tuple[Sequence[Piece], Sequence[Piece]] | None:
    """The parts to look for the culprit in; None when it is found."""
    if len(pieces) == 1 and refusal.whole:
        return None
    return halve(pieces)


def _is_costly(pieces: Sequence[Piece], refusal: CommitResult) -> bool:
    """Whether the next thing to do is to set more than one record aside."""
    return row_count(pieces) > 1 and _smaller(pieces, refusal) is None


def _report(pieces: Sequence[Piece], result: CommitResult, seconds: float) -> None:
    rows = 0 if _is_change(pieces[0]) else row_count(pieces)
    metrics.committed(token=pieces[-1].last, rows=rows, seconds=seconds)
    if result.committed_at is not None:
        for piece in pieces:
            waited = result.committed_at - piece.entry.accepted_at
            metrics.published(waited.total_seconds() * 1000)
