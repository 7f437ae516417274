"""How lag looks on a terminal: its figures, and a picture of the last minutes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from duckmesh_runtime.cli.client import ApiError
from duckmesh_runtime.cli.show import harmless
from duckmesh_runtime.cli.spark import History, spark

_FIGURES: Final = 46  # characters of the columns beside a picture
_NARROWEST: Final = 8  # characters of a picture
_AROUND: Final = 12  # lines of a watched screen that are no table's
_UNITS: Final = ((3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def lag_table(lag: Mapping[str, Any]) -> Group:
    """The report of one moment: all figures, then the tables with pending rows."""
    shown = Table(show_header=False)
    for name, value in lag.items():
        if not isinstance(value, list | dict):
            text = (
                f"{value:,}" if isinstance(value, int) else "NULL" if value is None else str(value)
            )
            shown.add_row(Text(harmless(name)), Text(harmless(text)))
    if not lag.get("tables"):
        return Group(shown)
    return Group(shown, _tables(lag["tables"]))


class Watched:
    """What is known of a watched lake."""

    def __init__(self) -> None:
        self._last: Mapping[str, Any] | None = None
        self._history = History()
        self._away: ApiError | None = None
        self._away_since = self._now_s = 0.0

    def saw(self, lag: Mapping[str, Any]) -> None:
        """It answered."""
        self._last, self._away = lag, None
        self._history.add(lag)

    def missed(self, error: ApiError, now_s: float) -> None:
        """It did not; `now_s` is of any clock that only rises."""
        if self._away is None:
            self._away_since = now_s
        self._away, self._now_s = error, now_s
        self._history.add(None)

    def picture(self, size: ConsoleDimensions) -> RenderableType:
        """The screen, no larger than the terminal."""
        width = max(_NARROWEST, size.width - _FIGURES)
        parts: list[RenderableType] = []
        if self._last is not None:
            parts += [
                self._whole(self._last, width),
                self._of_tables(self._last, width, size.height),
            ]
            parts.append(
                Text(_footnote(self._last), style="dim", no_wrap=True, overflow="ellipsis")
            )
        if self._away is not None:
            since_s = round(self._now_s - self._away_since)
            text = f"no answer for {since_s} s ({self._away.code}): going on; Ctrl-C ends it"
            parts.append(Text(harmless(text), style="yellow", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _whole(self, lag: Mapping[str, Any], width: int) -> Table:
        shown = _grid(width)
        past = f"the last {duration(len(self._history.lag_ms) * 1000)}"
        shown.add_row("", "", Text(past, style="dim"), Text("highest", style="dim"))
        lag_ms, rows = self._history.lag_ms, self._history.pending_rows
        shown.add_row(
            "lag",
            Text(duration(lag["lag_ms"]), style="bold"),
            Text(spark(list(lag_ms), width), style="cyan"),
            duration(max(value or 0 for value in lag_ms)),
        )
        shown.add_row(
            "pending rows",
            Text(f"{lag['pending_rows']:,}", style="bold"),
            Text(spark(list(rows), width), style="cyan"),
            f"{max(value or 0 for value in rows):,}",
        )
        return shown

    def _of_tables(self, lag: Mapping[str, Any], width: int, height: int) -> RenderableType:
        """The tables that had pending rows, the most behind first, as many as there is room for."""
        now = {one["table"]: one for one in lag.get("tables", [])}
        names = sorted(
            self._history.tables,
            key=lambda name: (-now.get(name, _CAUGHT_UP)["pending_rows"], name),
        )
        room = max(1, height - _AROUND)
        shown = _grid(width)
        if names:
            dim = (Text(word, style="dim") for word in ("table", "pending rows", "", "oldest"))
            shown.add_row(*dim)
        for name in names[:room]:
            one, values = now.get(name, _CAUGHT_UP), self._history.tables[name]
            shown.add_row(
                Text(harmless(name), overflow="ellipsis", no_wrap=True),
                f"{one['pending_rows']:,}",
                Text(spark(list(values), width), style="cyan"),
                duration(one["oldest_pending_age_ms"]),
            )
        more = len(names) - room
        return Group(shown, Text(f"{more} tables more", style="dim")) if more > 0 else shown


_CAUGHT_UP: Final[Mapping[str, Any]] = {"pending_rows": 0, "oldest_pending_age_ms": 0}


def duration(ms: int) -> str:
    """Milliseconds in the unit that people would use."""
    for size, unit in _UNITS:
        if ms >= size:
            return f"{ms / size:,.1f} {unit}"
    return f"{ms} ms"


def _footnote(lag: Mapping[str, Any]) -> str:
    letters = lag.get("dead_letters")
    kept = f", {letters:,} dead letters" if letters else ""
    return harmless(
        f"snapshot {lag.get('latest_snapshot_id')} of {lag.get('committed_at')}{kept};"
        f" seen {lag.get('observed_at')}"
    )


def _tables(tables: list[dict[str, Any]]) -> Table:
    shown = Table("table", header_style="bold")
    for name in ("pending rows", "bytes", "oldest"):
        shown.add_column(name, justify="right")
    for one in tables:
        figures = (f"{one['pending_rows']:,}", f"{one['pending_bytes']:,}")
        shown.add_row(
            Text(harmless(one["table"])), *figures, duration(one["oldest_pending_age_ms"])
        )
    return shown


def _grid(width: int) -> Table:
    """Name, figure, picture, figure: columns as wide in every part of the screen."""
    shown = Table.grid(padding=(0, 1))
    shown.add_column(width=16, no_wrap=True, overflow="ellipsis")
    shown.add_column(width=12, justify="right", no_wrap=True)
    shown.add_column(width=width, no_wrap=True)
    shown.add_column(width=12, justify="right", no_wrap=True)
    return shown
