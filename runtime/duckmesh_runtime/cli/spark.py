"""Small pictures of figures over time, a character a moment. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

_BARS: Final = " ▁▂▃▄▅▆▇█"
_NOTHING: Final = "·"  # a moment of which nothing is known
KEPT: Final = 300
"""Moments that a history keeps: five minutes of one a second."""


def spark(values: Sequence[int | None], width: int | None = None) -> str:
    """One character a value, as high as its part of the largest; None is drawn as a dot.

    Args:
        values: Oldest first, none below 0.
        width: Most characters; more values than that are drawn by the largest of each few.
    """
    drawn = values if width is None or len(values) <= width else _fewer(values, max(width, 1))
    top = max((value for value in drawn if value is not None), default=0) or 1
    return "".join(
        _NOTHING if value is None else _BARS[-(-value * (len(_BARS) - 1) // top)] for value in drawn
    )


def _fewer(values: Sequence[int | None], width: int) -> list[int | None]:
    """`width` values that stand for all: the largest of each part that is known."""
    cuts = [len(values) * place // width for place in range(width + 1)]
    parts = [values[begin:end] for begin, end in pairwise(cuts)]
    return [max((v for v in part if v is not None), default=None) for part in parts]


@dataclass(slots=True)
class History:
    """The last minutes of a lake's lag.

    Attributes:
        lag_ms: Of the lake, a value a moment; None while it did not answer.
        pending_rows: The same.
        tables: Pending rows of each table that had some in this time, as long as `lag_ms`.
    """

    lag_ms: deque[int | None] = field(default_factory=lambda: deque(maxlen=KEPT))
    pending_rows: deque[int | None] = field(default_factory=lambda: deque(maxlen=KEPT))
    tables: dict[str, deque[int | None]] = field(default_factory=dict)

    def add(self, lag: Mapping[str, Any] | None) -> None:
        """Take in an answer of `GET /v1/lag`, or that there was none."""
        known = lag or {}
        rows = {part["table"]: int(part["pending_rows"]) for part in known.get("tables", [])}
        for name in rows.keys() - self.tables.keys():
            self.tables[name] = deque([0] * len(self.lag_ms), maxlen=KEPT)
        for name, values in list(self.tables.items()):
            values.append(None if lag is None else rows.get(name, 0))
            if not any(values):
                del self.tables[name]
        self.lag_ms.append(None if lag is None else int(lag["lag_ms"]))
        self.pending_rows.append(None if lag is None else int(lag["pending_rows"]))
