"""`duckmesh query`: one statement, its rows to standard output, what they are of to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.connected import connected, examples
from duckmesh_runtime.cli.counting import ArrowBatches, Lines, ParquetFooter, Records, Rows

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_PATH: Final = "/v1/query"
_STREAMED: Final[Mapping[str, tuple[str, Callable[[], Rows]]]] = {
    "csv": ("text/csv", Records),
    "ndjson": ("application/x-ndjson", Lines),
    "arrow": ("application/vnd.apache.arrow.stream", ArrowBatches),
    "parquet": ("application/vnd.apache.parquet", ParquetFooter),
}
_BINARY: Final = ("arrow", "parquet")


class Moment(click.ParamType[datetime]):
    """A time with its zone, as the API reads it."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """The time.

        Raises:
            click.BadParameter: It is none, or of no zone.
        """
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: want one such as 2026-01-31T12:00:00Z", param, ctx)
        if found.tzinfo is None:
            self.fail(f"{value!r} has no zone: write {value}Z when it is in UTC", param, ctx)
        return found


@click.command(
    epilog=examples(
        'duckmesh query "SELECT carrier, count(*) FROM flights GROUP BY 1"',
        "duckmesh query - --output parquet <report.sql >report.parquet",
        'duckmesh query "FROM events" --token v1_... --output csv',
        'duckmesh query "FROM events" --at 2026-01-31T12:00:00Z',
    )
)
@click.argument("sql")
@click.option("--token", help="Ask for at least the rows of this visibility token.")
@click.option("--snapshot", type=click.IntRange(0), help="Read this snapshot, by its id.")
@click.option(
    "--at",
    type=Moment(),
    help="Read the newest snapshot of this time, such as 2026-01-31T12:00:00Z.",
)
@click.option(
    "--output",
    type=click.Choice(["table", "json", *_STREAMED]),
    default="table",
    help="All but `table` and `json` are streamed, of any size.",
)
@click.option("--limit", type=click.IntRange(1), help="Most rows of the answer.")
@click.option("--timeout-ms", type=click.IntRange(1), help="Longest run of the statement.")
@connected
async def query(
    client: Client,
    *,
    sql: str,
    token: str | None,
    snapshot: int | None,
    at: datetime | None,
    output: str,
    limit: int | None,
    timeout_ms: int | None,
) -> None:
    """Run one SELECT; `-` reads it from standard input.

    Rows go to standard output. How many they are, whether they were cut and which snapshot they are of goes to
    standard error.
    """
    if output in _BINARY and sys.stdout.isatty():
        raise click.UsageError(
            f"{output} is nothing for a terminal: redirect it, as in >rows.{output}"
        )
    asked = {
        "sql": sys.stdin.read() if sql == "-" else sql,
        "min_visibility_token": token or None,
        "consistency_timeout_ms": 30_000 if token else None,
        "snapshot_id": snapshot,
        "snapshot_time": at and at.isoformat(),
        "row_limit": limit,
        "timeout_ms": timeout_ms,
    }
    body = {name: value for name, value in asked.items() if value is not None}
    if output in _STREAMED:
        await _stream(client, body, output)
        return
    from duckmesh_runtime.cli.show import show_rows, show_summary, waiting

    with waiting("running"):
        answer = await client.call("POST", _PATH, json=body)
    if output == "json":
        click.echo(json.dumps(answer))
    else:
        show_rows(answer)
    show_summary(
        len(answer["rows"]),
        " (cut at the row limit: ask for fewer, or aggregate)" if answer["truncated"] else "",
        answer,
        answer["stats"]["duration_ms"],
    )


async def _stream(client: Client, body: dict[str, object], output: str) -> None:
    from duckmesh_runtime.cli.client import ApiError
    from duckmesh_runtime.cli.show import show_summary, waiting

    media, make = _STREAMED[output]
    rows, headers = make(), dict[str, str]()
    started = time.monotonic()

    def begun(answer: Mapping[str, str]) -> None:
        headers.update({name.lower(): value for name, value in answer.items()})

    size = 0
    try:
        # Rows on a terminal show by themselves that something happens.
        with nullcontext() if sys.stdout.isatty() else waiting("running") as moving:
            async for chunk in client.stream(_PATH, body, media, begun=begun):
                sys.stdout.buffer.write(chunk)
                rows.feed(chunk)
                size += len(chunk)
                if moving is not None:
                    moving.update(f"{size / 1e6:,.1f} MB")
    except ApiError as error:
        if error.code == "INCOMPLETE":
            click.echo(f"{_counted(rows.count())} came and are not all: do not use them", err=True)
        raise
    finally:
        sys.stdout.buffer.flush()
    duration_ms = round((time.monotonic() - started) * 1000)
    count = rows.count()
    show_summary(count, _cut(count, headers), _seen(headers), duration_ms)


def _cut(count: int | None, headers: Mapping[str, str]) -> str:
    """A streamed answer names the limit before its rows, so as many rows as that may be all there are."""
    limit = headers.get("x-duckmesh-row-limit", "")
    if not limit.isdigit() or (count is not None and count < int(limit)):
        return ""
    return f" (the row limit is {int(limit):,}: there may be more)"


def _seen(headers: Mapping[str, str]) -> dict[str, str]:
    known = {"snapshot_id": "snapshot-id", "snapshot_time": "snapshot-time", "lag_ms": "lag-ms"}
    return {name: headers.get(f"x-duckmesh-{header}", "?") for name, header in known.items()}


def _counted(count: int | None) -> str:
    return "rows" if count is None else f"{count:,} rows"
