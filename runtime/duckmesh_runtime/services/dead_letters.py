"""Dead letters: input that was accepted and that the lake refused; looked at, replayed under a new token, or dropped.

A replay takes the letter away in the transaction that accepts its rows again, so it happens once whoever else tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import pyarrow as pa

from duckmesh_runtime import metrics
from duckmesh_runtime.domain.letters import fit_file, fit_rows
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import Conflict, Corrupt, DuckmeshError, NotFound
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    DeadLetter,
    DeadLetters,
    EntryKind,
    Part,
    StagedFile,
    StagedObjects,
)
from duckmesh_runtime.services.inlet import TRIES, Inlet, unsettled
from duckmesh_runtime.services.packing import parts_of, rows_append
from duckmesh_runtime.services.table_cache import Tables

PAGE_BYTES: Final = 8 * 2**20
"""Of payloads read at a time."""

MOST_AT_ONCE: Final = 500
"""Letters replayed or dropped by one call: some seconds."""

_UNFOLDED: Final = 2
"""Rows of a letter may take so many times the largest body when they are checked, as those of a body may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What was accepted again.

    Attributes:
        letters: How many letters.
        first: The lowest number their input got.
        last: The highest: visible, or refused once more, when this is.
        timeline: Of these numbers.
    """

    letters: int
    first: int
    last: int
    timeline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A letter that stays, and why."""

    number: int
    error: DuckmeshError


@dataclass(slots=True, kw_only=True)
class Swept:
    """What became of the letters of a table.

    Attributes:
        replayed: What was accepted again; None when nothing was.
        failures: Letters that stay.
        next_after: Where to go on; None when there are no more.
        upto: To go on with: what is refused again meanwhile gets higher numbers, and is not replayed for ever.
    """

    replayed: Replayed | None
    failures: Sequence[Failure]
    next_after: int | None
    upto: int


class DeadLetterService:
    """The dead letters of one lake.

    Args:
        inlet: Where replays go.
        letters: Where they are kept.
        files: The tenant's objects, to read staged files and take them back.
    """

    def __init__(self, inlet: Inlet, letters: DeadLetters, files: StagedObjects) -> None:
        self._inlet = inlet
        self._letters = letters
        self._files = files
        self._file = asyncio.Semaphore(1)

    async def page(
        self, after: int, *, limit: int, table: str | None
    ) -> tuple[Sequence[DeadLetter], int | None]:
        """Some letters in order, and the number after which there are more; None when there are not."""
        found = await self._letters.letters(after, limit=limit, max_bytes=PAGE_BYTES, table=table)
        if not found:
            return found, None
        last = found[-1].first
        more = await self._letters.letters(last, limit=1, max_bytes=0, table=table)
        return found, last if more else None

    async def find(self, number: int) -> DeadLetter:
        """One letter.

        Raises:
            NotFound: DEAD_LETTER_NOT_FOUND.
        """
        letter = await self._letters.letter(number)
        if letter is None:
            raise _gone(number)
        return letter

    async def replay(self, number: int) -> Replayed:
        """Accept a letter's input again, if it fits the table as it is now.

        Raises:
            NotFound: DEAD_LETTER_NOT_FOUND, also when another replay or drop came first.
            Conflict: SCHEMA_INCOMPATIBLE with the reason; the letter stays.
            Corrupt: DATA_FILE_MISSING, the staged file is not there any more; the letter stays.
            Unavailable: STORAGE_UNAVAILABLE, the staged file cannot be read now; the letter stays.
            Limited: OVERLOADED, RATE_LIMITED.
            Unavailable: The bus does not answer; the letter may be replayed or not.
        """
        async with self._inlet.request():
            return await self._replay(await self.find(number))

    async def replay_all(self, table: str, *, after: int, upto: int | None, limit: int) -> Swept:
        """Replay the letters of a table, in order; those that cannot be stay, and do not stop the others.

        An answer of the catalog or of the limits that concerns all of them ends it, as the last failure.

        Args:
            table: Its name.
            after: Only letters with higher numbers.
            upto: Only letters with numbers up to this; None for those there are now.
            limit: Most letters.
        """
        upto = (await self._inlet.head()).last if upto is None else upto
        done: list[Replayed] = []
        failures: list[Failure] = []
        last = after
        async with self._inlet.request():
            async for letter in self._of(table, after, limit):
                if letter.first > upto:
                    break
                try:
                    done.append(await self._replay(letter))
                except (Conflict, Corrupt, NotFound) as error:
                    failures.append(Failure(number=letter.first, error=error))
                except DuckmeshError as error:
                    failures.append(Failure(number=letter.first, error=error))
                    return _swept(done, failures, last, upto)
                last = letter.first
        rest = await self._letters.letters(last, limit=1, max_bytes=0, table=table)
        return _swept(done, failures, last if rest and rest[0].first <= upto else None, upto)

    async def refused_again(
        self, replayed: Replayed, *, limit: int, table: str | None = None
    ) -> Sequence[DeadLetter]:
        """Letters of what was replayed that the lake refused once more; ask when `replayed.last` is visible.

        The numbers of a sweep have others' between them: `table` is the one that was swept.
        """
        found = await self._letters.letters(
            replayed.first - 1, limit=limit, max_bytes=PAGE_BYTES, table=table
        )
        return [letter for letter in found if letter.first <= replayed.last]

    async def drop(self, number: int) -> None:
        """Remove a letter for good.

        Raises:
            NotFound: DEAD_LETTER_NOT_FOUND.
        """
        if not await self._letters.drop_letter(number):
            raise _gone(number)
        metrics.letters_settled("dropped")
        self._inlet.look()

    async def drop_all(self, table: str, *, after: int, limit: int) -> tuple[int, int | None]:
        """Remove the letters of a table for good; how many, and the number after which there are more."""
        dropped, last = 0, after
        async for letter in self._of(table, after, limit):
            dropped += await self._letters.drop_letter(letter.first)
            last = letter.first
        metrics.letters_settled("dropped", dropped)
        self._inlet.look()
        rest = await self._letters.letters(last, limit=1, max_bytes=0, table=table)
        return dropped, last if rest else None

    async def _of(self, table: str, after: int, limit: int) -> AsyncIterator[DeadLetter]:
        """At most so many letters of a table, read a bounded page at a time."""
        while limit:
            page = await self._letters.letters(
                after, limit=limit, max_bytes=PAGE_BYTES, table=table
            )
            if not page:
                return
            for letter in page:
                yield letter
            limit, after = limit - len(page), page[-1].first

    async def _replay(self, letter: DeadLetter) -> Replayed:
        if letter.kind is not EntryKind.FILE:
            return await self._accept(letter)
        file = msgspec.json.decode(letter.payload, type=StagedFile)
        async with self._file:  # one at a time: its rows are in memory
            try:
                replayed = await self._accept(letter, file)
            except Corrupt:
                if await self._letters.letter(letter.first) is None:
                    raise _gone(
                        letter.first
                    ) from None  # another replay has taken the rows, and then the file
                raise
        with suppress(DuckmeshError):
            await self._files.remove(file.path)
        return replayed

    async def _accept(self, letter: DeadLetter, file: StagedFile | None = None) -> Replayed:
        for _ in range(TRIES):
            tables = await self._inlet.tables.fresh()
            append = await self._append(letter, tables, file)
            receipt = await self._inlet.submit(append)
            if receipt.result is AppendResult.ACCEPTED:
                metrics.letters_settled("replayed")
                return Replayed(
                    letters=1,
                    first=receipt.last - append.rows + 1,
                    last=receipt.last,
                    timeline=receipt.timeline,
                )
            if receipt.result is AppendResult.GONE:
                raise _gone(letter.first)
        raise unsettled()

    async def _append(self, letter: DeadLetter, tables: Tables, file: StagedFile | None) -> Append:
        if letter.kind.is_change:
            raise Conflict(
                "SCHEMA_INCOMPATIBLE",
                "a change of a table is not replayed: make it again with the tables as they are, then drop the letter",
            )
        table = tables.by_name.get(letter.table)
        if table is None:
            raise Conflict(
                "SCHEMA_INCOMPATIBLE",
                f"table {letter.table} does not exist: create it, then replay again",
            )
        # Rows also of a file: as one it would become part of the table unread, whatever the table is by now.
        fit: _Fit = fit_rows
        content = letter.payload
        if file is not None:
            fit, content = fit_file, await self._read(file)
        most = _UNFOLDED * self._inlet.limits.body_bytes
        parts = await self._inlet.threaded(_parts, fit, table, content, most)
        return replace(rows_append(table, tables.version, parts), replays=letter.first)

    async def _read(self, file: StagedFile) -> bytes:
        most = _UNFOLDED * self._inlet.limits.body_bytes
        try:
            size = await self._files.size(file.path)
            if size > most:
                raise Conflict(
                    "SCHEMA_INCOMPATIBLE", f"the staged file takes more than {most} bytes"
                )
            return await self._files.read(file.path, 0, size)
        except Corrupt:
            raise Corrupt(
                "DATA_FILE_MISSING",
                "the staged file of this letter is not in the store any more: drop the letter, and send the rows again",
            ) from None


class _Fit(Protocol):
    def __call__(
        self, table: TableDef, payload: bytes, /, *, max_bytes: int
    ) -> Sequence[pa.RecordBatch]: ...


def _parts(fit: _Fit, table: TableDef, payload: bytes, max_bytes: int) -> Sequence[Part]:
    return parts_of(fit(table, payload, max_bytes=max_bytes))


def _swept(
    done: Sequence[Replayed], failures: Sequence[Failure], next_after: int | None, upto: int
) -> Swept:
    whole = None
    if done:
        first, last = done[0], done[-1]
        whole = Replayed(
            letters=len(done), first=first.first, last=last.last, timeline=last.timeline
        )
    return Swept(replayed=whole, failures=failures, next_after=next_after, upto=upto)


def _gone(number: int) -> NotFound:
    return NotFound(
        "DEAD_LETTER_NOT_FOUND",
        f"number: there is no dead letter {number}; it was replayed or dropped, or never was",
    )
