"""What the command line prints: tables, figures, errors; results to standard output, all else to standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
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
    "RESULT_TOO_LARGE": "add a LIMIT, or use --output csv or arrow",
    "IDEMPOTENCY_CONFLICT": "the same file was sent before with other content or columns",
}
_NARROWEST: Final = 10  # characters of a column that can still be read
_BARS: Final = " ▁▂▃▄▅▆▇█"

error_console = Console(stderr=True, highlight=False)
console = Console(highlight=False)


def show_error(error: ApiError) -> None:
    """Code, message, what to do, trace id."""
    error_console.print(Text(_harmless(f"error {error.code}: {error.message}"), style="bold red"))
    for item in error.rejected[:5]:
        error_console.print(Text(_harmless(f"  record {item.get('index')}: {item.get('message')}")))
    if hint := _HINTS.get(error.code):
        error_console.print(Text(f"  {hint}"))
    if error.trace_id:
        error_console.print(Text(f"  trace_id {error.trace_id}", style="dim"))


def show_rows(answer: dict[str, Any]) -> None:
    """A query's rows as a table that fits the terminal, and a line about the snapshot."""
    fits = len(answer["columns"]) * _NARROWEST <= console.width
    console.print(_across(answer) if fits else _down(answer))
    cut = ", cut at the row limit" if answer["truncated"] else ""
    error_console.print(
        f"{len(answer['rows']):,} rows{cut}; snapshot {answer['snapshot_id']} of {answer['snapshot_time']},"
        f" lag {answer['lag_ms']} ms, {answer['stats']['duration_ms']} ms",
        style="dim",
    )


def _across(answer: dict[str, Any]) -> Table:
    table = Table(header_style="bold")
    for column in answer["columns"]:
        numeric = any(word in column["type"] for word in ("INT", "DECIMAL", "DOUBLE", "FLOAT"))
        table.add_column(Text(column["name"]), justify="right" if numeric else "left")
    for row in answer["rows"]:
        table.add_row(*(_cell(value) for value in row))
    return table


def _down(answer: dict[str, Any]) -> Table:
    """A block of lines per row, for more columns than the terminal is wide."""
    table = Table(show_header=False)
    for number, row in enumerate(answer["rows"], 1):
        table.add_section()
        table.add_row(Text(f"row {number}", style="bold"), "")
        for column, value in zip(answer["columns"], row, strict=True):
            table.add_row(Text(column["name"]), _cell(value))
    return table


def show_tables(tables: Sequence[dict[str, Any]]) -> None:
    """Name and columns of each table."""
    shown = Table("table", "columns", header_style="bold")
    for table in tables:
        columns = ", ".join(f"{c['name']} {c['type']}" for c in table["columns"])
        shown.add_row(Text(table["name"]), Text(columns))
    console.print(shown)


def lag_table(lag: dict[str, Any], history: Sequence[int]) -> Table:
    """The lag report, with a picture of the last minutes when there is a history."""
    shown = Table(show_header=False)
    for name, value in lag.items():
        if not isinstance(value, list | dict):
            shown.add_row(name, _cell(value))
    if history:
        shown.add_row("history", spark(history))
    return shown


def spark(values: Sequence[int]) -> str:
    """One character a value, as high as its part of the largest."""
    top = max(*values, 1)
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // top)] for value in values)


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


def _cell(value: object) -> Text:
    return Text("NULL", style="dim") if value is None else Text(_harmless(str(value)))


def _harmless(text: str) -> str:
    """Data cannot drive the terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
