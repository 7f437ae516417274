"""Input that never comes into the lake while all else works: when it counts as refused.

A store or catalog in trouble and content that they never take look alike. So failures count only as long as each is followed
by proof that nothing else is wrong, and one that is not starts the count anew. Used by `services/commit.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from duckmesh_runtime.ports import EntryKind
from duckmesh_runtime.services.pieces import Piece

LEAST_TRIES: Final = 8
"""Each goes over a connection of its own; a store that fails half of its requests fails all of them once in 256 times."""

LEAST_S: Final = 300.0
"""Throttling, a restart, a change of leader in store or catalog, and a peer that hangs in a transaction (the idle limit of its
login ends it) pass in this time without a record lost. It costs only input that never comes in, which is rare."""

NEXT_TRIES: Final = 2
"""For input of the table whose input before was given up, while nothing came in: what holds for one row may hold for all."""


RESTORE_TRIES: Final = 2
"""Each may take minutes in which nothing else is committed, and a person can repeat it. One lost connection may happen."""


class Stuck:
    """How often the piece that stands first has failed while all else worked.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers: tuple[int, int] | None = None
        self._restoring = False
        self._given_up: str | None = None
        self._since = 0.0
        self._tries = 0

    def forget(self) -> None:
        """Something else is wrong, or another piece stands first. Tries of a restore count all the same."""
        if not self._restoring:
            self._numbers = None

    def landed(self) -> None:
        """Something came into the lake."""
        self._numbers = self._given_up = None

    def failed(self, piece: Piece) -> str | None:
        """Count a failure; how often it was and for how long once that is enough, else None."""
        numbers = (piece.first, piece.last)
        if numbers != self._numbers:
            self._numbers, self._since, self._tries = numbers, self._clock(), 0
        self._restoring = piece.entry.kind is EntryKind.RESTORE
        self._tries += 1
        seconds = self._clock() - self._since
        if self._restoring:
            enough = self._tries >= RESTORE_TRIES
            return self._told(seconds) if enough else None
        if piece.entry.table == self._given_up:
            if self._tries < NEXT_TRIES:
                return None
        elif self._tries < LEAST_TRIES or seconds < LEAST_S:
            return None
        self._given_up = piece.entry.table
        return self._told(seconds)

    def _told(self, seconds: float) -> str:
        return f"{self._tries} times in {seconds:.0f} s, while all else could be written"
