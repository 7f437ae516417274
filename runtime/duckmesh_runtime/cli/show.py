"""What the command line prints: tables, figures, errors; results to standard output, all else to standard error.

On a terminal tables fit its width. Anywhere else nothing is cut, since something else reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from duckmesh_runtime.cli.client import ApiError

_HINTS: Final = {
    "UNAUTHENTICATED": "check DUCKMESH_API_KEY or --api-key",
    "FORBIDDEN": "use a key with the named role",
    "TABLE_NOT_FOUND": "see `duckmesh tables`; `duckmesh ingest --create` makes one from a file",
    "UNREACHABLE": "check the URL, and that the lake runs: `duckmesh status`",
    "CONSISTENCY_TIMEOUT": "look at `duckmesh lag`; the rows are accepted and come later",
    "TOKEN_SCOPE_MISMATCH": "use the token with the lake that gave it",
    "RESULT_TOO_LARGE": "add a LIMIT, or use --output csv, arrow or parquet",
    "SNAPSHOT_EXPIRED": "see `duckmesh snapshots`; `duckmesh snapshots pin` keeps one",
    "SNAPSHOT_NOT_FOUND": "see `duckmesh snapshots`",
    "DEAD_LETTER_NOT_FOUND": "see `duckmesh dead-letters list`; a call that broke off may have done it already",
    "DATA_FILE_MISSING": "see `duckmesh dead-letters show`; the rows must be sent again",
    "IDEMPOTENCY_CONFLICT": "the key was used for something else: use another one",
    "INCOMPLETE": "the statement failed after its first rows, or the connection broke; run it again: --output json sends"
    " nothing before all rows are there, and then the reason instead",
}
_HINTS_OF: Final = {
    (
        "ingest",
        "IDEMPOTENCY_CONFLICT",
    ): "the same file was sent before with another --atomic, or as another format",
    (
        "restore",
        "IDEMPOTENCY_CONFLICT",
    ): "--key was used for another snapshot: without --key this is a restore of its own",
}
_NARROWEST: Final = 10  # characters of a column that can still be read
_RECORDS: Final = (
    20  # rows that are shown one below the other; more of them as lines with columns left out
)
_MOST_ROWS: Final = 1000  # lines of a table for people
_NATURAL: Final = 1_000_000  # a width that cuts nothing
_CUT: Final = "…"
_NUMBER: Final = re.compile(
    r"U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(\d+, ?\d+\)"
)

error_console = Console(stderr=True, highlight=False)
console = Console(highlight=False)


def show_error(error: ApiError, command: str = "", program: str = "duckmesh") -> None:
    """Code, message, what to do, trace id."""
    error_console.print(
        Text(harmless(f"error {error.code}: {error.message}"), style="bold red"), soft_wrap=True
    )
    for item in error.rejected[:5]:
        told = f"record {item.get('index')}: {item.get('message')}"
        if told not in error.message:  # which begins with the first of them
            error_console.print(Text(harmless(f"  {told}")))
    if hint := _HINTS_OF.get((command, error.code), _HINTS.get(error.code)):
        hint = hint.replace("`duckmesh ", f"`{program} ")
        error_console.print(Text(f"  {hint}"), soft_wrap=True)
    if error.trace_id:
        error_console.print(Text(f"  trace_id {error.trace_id}", style="dim"))


def show(what: RenderableType) -> None:
    """Print to standard output, in the terminal's width if it is one."""
    out = console if console.is_terminal else Console(highlight=False, width=_NATURAL)
    out.print(what)


def show_rows(answer: Mapping[str, Any]) -> None:
    """A query's rows: as lines where all columns can be read; else a few one below the other, many with columns left out."""
    columns, rows = answer["columns"], answer["rows"]
    room = max(3, _width() // _NARROWEST)
    if len(columns) <= room:
        show(_across(columns, rows))
    elif len(rows) <= _RECORDS:
        show(_down(columns, rows))
    else:
        first, last = (room + 1) // 2, room - (room + 1) // 2 - 1
        at = [*range(first), None, *range(len(columns) - last, len(columns))]
        gap = {"name": _CUT, "type": ""}
        show(
            _across(
                [gap if i is None else columns[i] for i in at],
                [[_CUT if i is None else row[i] for i in at] for row in rows],
            )
        )
        say(f"{first + last} of {len(columns)} columns shown: select fewer, or use --output csv")
    if len(rows) > _MOST_ROWS:
        say(f"{_MOST_ROWS:,} of {len(rows):,} rows shown: use --output csv for all")


def show_summary(rows: int | None, note: str, seen: Mapping[str, Any], duration_ms: int) -> None:
    """A line on standard error: how many rows, of which snapshot."""
    count = "rows not counted" if rows is None else f"{rows:,} row{'' if rows == 1 else 's'}"
    say(
        f"{count}{note}; snapshot {seen['snapshot_id']} of {seen['snapshot_time']},"
        f" lag {seen['lag_ms']} ms, {duration_ms:,} ms"
    )


def say(text: str) -> None:
    """A remark on standard error."""
    error_console.print(Text(harmless(text), style="dim"), soft_wrap=True)


def waiting(what: str) -> Status:
    """Something that moves on standard error while `what` takes its time; nothing where that is no terminal."""
    return error_console.status(Text(what))


def _width() -> int:
    return console.width if console.is_terminal else _NATURAL


def _lines(*names: str, right: Sequence[int] = ()) -> Table:
    """A table with one line a row, whose columns give way with an ellipsis."""
    table = Table(header_style="bold")
    for number, name in enumerate(names):
        table.add_column(
            Text(harmless(name)),
            justify="right" if number in right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _across(columns: Sequence[Mapping[str, str]], rows: Sequence[Sequence[object]]) -> Table:
    right = [at for at, column in enumerate(columns) if _NUMBER.fullmatch(column["type"])]
    table = _lines(*(column["name"] for column in columns), right=right)
    half = _MOST_ROWS // 2
    shown = (
        rows if len(rows) <= _MOST_ROWS else [*rows[:half], [_CUT] * len(columns), *rows[-half:]]
    )
    for row in shown:
        table.add_row(*(_cell(value, one_line=True) for value in row))
    return table


def _down(columns: Sequence[Mapping[str, str]], rows: Sequence[Sequence[object]]) -> Table:
    """A block of lines per row, for more columns than the terminal is wide."""
    table = _fields()
    for number, row in enumerate(rows, 1):
        table.add_section()
        table.add_row(Text(f"row {number}", style="bold"), "")
        for column, value in zip(columns, row, strict=True):
            table.add_row(Text(harmless(column["name"])), _cell(value, one_line=True))
    return table


def _fields() -> Table:
    table = Table(show_header=False)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def show_listing(
    names: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()
) -> None:
    """A line for each row; columns in `right` are figures."""
    shown = _lines(*names, right=right)
    for row in rows:
        shown.add_row(*(_cell(value, one_line=True) for value in row))
    show(shown)


def show_letter(letter: dict[str, Any]) -> None:
    """All of one dead letter, whole."""
    shown = Table(show_header=False)
    for name, value in letter.items():
        if not isinstance(value, list):
            shown.add_row(name, _cell(value))
    for number, values in enumerate(letter["values"], 1):
        shown.add_section()
        shown.add_row(Text(f"row {number}", style="bold"), "")
        for name, value in values.items():
            shown.add_row(Text(harmless(name)), _cell(value))
    show(shown)
    if letter["values_cut"]:
        say("values are cut: they are too large to show whole")


def ingest_bar() -> Progress:
    """The progress bar of `ingest`."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[lag]}"),
        TimeElapsedColumn(),
        console=error_console,
    )


def _cell(value: object, *, one_line: bool = False) -> Text:
    if value is None:
        return Text("NULL", style="dim")
    text = harmless(str(value))
    return Text(text.replace("\n", "\\n") if one_line else text)


def harmless(text: str) -> str:
    """Data cannot drive the terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
