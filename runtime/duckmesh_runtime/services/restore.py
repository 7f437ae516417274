"""Restore of a lake to a snapshot: an entry of the bus with a number of its own, in order with all that is written.

What was accepted before it and is not in the snapshot is taken back; what is accepted after it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from duckmesh_runtime.domain.restore import ALL_TABLES
from duckmesh_runtime.errors import Conflict
from duckmesh_runtime.ports import AppendResult, DeadLetter, EntryKind, KeyHash
from duckmesh_runtime.services.inlet import Inlet


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A restore, accepted; what the lake makes of it `RestoreService.confirm` tells.

    Attributes:
        number: The restore is visible, or refused, when this is.
        timeline: See `domain.tokens`.
        new: False when an earlier request with the same key had asked for it.
    """

    number: int
    timeline: int
    new: bool


class Kept(Protocol):
    """What is kept of a refused restore; every bus has it, of `ports.DeadLetters`."""

    async def letter(self, first: int) -> DeadLetter | None:
        """See `DeadLetters.letter`."""
        ...


class RestoreService:
    """Takes one lake back.

    Args:
        inlet: The way into the bus.
        kept: What the bus keeps of refusals.
    """

    def __init__(self, inlet: Inlet, kept: Kept) -> None:
        self._inlet = inlet
        self._kept = kept

    async def restore(self, snapshot_id: int, key: str | None = None) -> Restored:
        """Accept a restore to a snapshot; a `key` that was used before gives what came of its first use.

        Raises:
            NotFound: SNAPSHOT_NOT_FOUND, SNAPSHOT_EXPIRED.
            Conflict: SNAPSHOT_NOT_RESTORABLE with the reason; IDEMPOTENCY_CONFLICT.
            Limited: RATE_LIMITED, OVERLOADED.
            Unavailable: The bus does not answer; the restore may be accepted or not.
        """
        async with self._inlet.request():
            receipt = await self._inlet.restore(snapshot_id, _hashed(snapshot_id, key))
        new = receipt.result is AppendResult.ACCEPTED
        (number,) = [receipt.last] if new else [n for n in receipt.known if n is not None]
        return Restored(number=number, timeline=receipt.timeline, new=new)

    async def confirm(self, restored: Restored) -> None:
        """Tell whether the lake took the restore; call when its number is visible.

        Raises:
            Conflict: SNAPSHOT_NOT_RESTORABLE with the lake's reason: all is as if it had not been asked for.
        """
        letter = await self._kept.letter(restored.number)
        if letter is not None and letter.kind is EntryKind.RESTORE:
            raise Conflict(
                "SNAPSHOT_NOT_RESTORABLE", f"the lake refused the restore: {letter.error}"
            )


def _hashed(snapshot_id: int, key: str | None) -> KeyHash | None:
    if key is None:
        return None
    text = "\0".join((ALL_TABLES, "restore", key))
    return KeyHash(
        key=blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(),
        content=blake2b(str(snapshot_id).encode(), digest_size=16).digest(),
        request=True,
        accepted=0,
        rejected=0,
    )
