"""What became of an ingest request: gathered by the writers, answered by `web`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from duckmesh_runtime.domain.sift import Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestAnswer:
    """What became of a request.

    Attributes:
        accepted: Rows written by this request.
        duplicates: Rows that an earlier use of their key had written.
        rejected: Records that were refused, by index.
        unnamed: How many more were, when the request was first made: the tables have changed since, and why is not known.
        number: Highest number of the accepted and known rows; 0 when there are none.
        timeline: See `domain.tokens`.
    """

    accepted: int
    duplicates: int
    rejected: Sequence[Rejected]
    number: int
    timeline: int
    unnamed: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """An answer in the making; fields as of `IngestAnswer`."""

    timeline: int
    accepted: int = 0
    duplicates: int = 0
    number: int = 0
    unnamed: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    def accept(self, rows: int, number: int, timeline: int) -> None:
        """Count rows that were written, the last of them with this number."""
        self.accepted += rows
        self.number = max(self.number, number)
        self.timeline = timeline

    def know(self, rows: int, number: int, timeline: int) -> None:
        """Count rows that were there before."""
        self.duplicates += rows
        self.number = max(self.number, number)
        self.timeline = timeline

    def answer(self) -> IngestAnswer:
        """The finished answer."""
        return IngestAnswer(
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected=sorted(self.rejected, key=lambda each: each.index),
            number=self.number,
            timeline=self.timeline,
            unnamed=self.unnamed,
        )
