"""How long a measurement takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """Sizes of one run.

    Attributes:
        short: Small sizes, about half a minute a scenario: shows that the harness works, not what duckmesh can do.
        rounds: Repetitions; figures are medians of them.
        minutes: Of those scenarios that go on for minutes; None for what each takes by itself.
    """

    short: bool
    rounds: int
    minutes: float | None

    def pick(self, full: T, short: T) -> T:
        """The size for this mode."""
        return short if self.short else full
