"""The client commands of `duckmesh`. Bodies import what they need: `--help` must be quick."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client, Connection
    from duckmesh_runtime.cli.ingest import Progress as IngestProgress

REFUSED: Final = 1
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
_HISTORY: Final = 120  # seconds of `lag -w`

Command = Callable[..., Any]


def connected(command: Callable[..., Coroutine[Any, Any, None]]) -> Command:
    """Give a command its client, the connection options, and one way to end on errors."""

    @click.option("--url", help="Base URL of the lake's API (DUCKMESH_URL).")
    @click.option("--api-key", help="API key, dmk_... (DUCKMESH_API_KEY).")
    @wraps(command)
    def run(url: str | None, api_key: str | None, **options: Any) -> None:
        from duckmesh_runtime.cli.connection import find_connection

        above = click.get_current_context().obj
        connection = find_connection(
            url or above.get("url"),
            api_key or above.get("api_key"),
            above["connection_file"],
        )
        sys.exit(_exit_code(connection, command, options))

    return run


def _exit_code(
    connection: Connection,
    command: Callable[..., Coroutine[Any, Any, None]],
    options: dict[str, Any],
) -> int:
    from duckmesh_runtime.cli.client import ApiError, Client
    from duckmesh_runtime.cli.show import show_error

    async def with_client() -> None:
        async with Client(connection) as client:
            await command(client, **options)

    try:
        asyncio.run(with_client())
    except ApiError as error:
        show_error(error)
        return UNAVAILABLE if error.retryable else REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nothing more to say, also not at exit.
        sys.stdout = None
        return 0
    return 0


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--table", help="Table to fill; default: the file's name.")
@click.option("--create", is_flag=True, help="Make the table from the file if there is none.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "ndjson", "parquet", "arrow"]),
    help="Default: by the file's name.",
)
@click.option("--null", "nulls", multiple=True, default=[""], help="Text that means NULL in CSV.")
@click.option("--wait", is_flag=True, help="Wait until the rows are visible.")
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
@connected
async def ingest(
    client: Client,
    *,
    file: Path,
    table: str | None,
    create: bool,
    file_format: str | None,
    nulls: tuple[str, ...],
    wait: bool,
    output: str,
) -> None:
    """Send FILE (CSV, NDJSON, Parquet, Arrow); sending it again adds nothing."""
    from duckmesh_runtime.cli.files import BadFile, open_file, table_name
    from duckmesh_runtime.cli.ingest import send_file, wait_visible
    from duckmesh_runtime.cli.show import error_console, ingest_bar

    started = time.monotonic()
    try:
        source = open_file(file, file_format, nulls)
        name = table or table_name(file)
        with ingest_bar() as bar:
            task = bar.add_task(name, total=source.rows(), rate="", lag="")

            def seen(progress: IngestProgress) -> None:
                rate = f"{progress.sent / (time.monotonic() - started):,.0f} rows/s"
                lag = "" if progress.lag_ms is None else f"lag {progress.lag_ms:,} ms"
                bar.update(task, completed=progress.sent, rate=rate, lag=lag)

            progress = await send_file(client, source, name, create=create, seen=seen)
            bar.update(task, total=progress.sent, completed=progress.sent)
    except BadFile as error:
        raise click.ClickException(str(error)) from error
    seconds = time.monotonic() - started
    snapshot = (
        await wait_visible(client, progress.token, 60_000) if wait and progress.token else None
    )
    summary = {
        "table": name,
        "rows": progress.sent,
        "accepted": progress.sent - progress.duplicates,
        "duplicates": progress.duplicates,
        "seconds": round(seconds, 3),
        "token": progress.token,
        "visible_snapshot_id": snapshot,
    }
    if output == "json":
        click.echo(json.dumps(summary))
        return
    known = f", {progress.duplicates:,} of them already there" if progress.duplicates else ""
    error_console.print(f"{progress.sent:,} rows in {seconds:.1f} s{known}")
    if snapshot is not None:
        error_console.print(f"visible in snapshot {snapshot}")
    click.echo(progress.token)


@click.command()
@click.argument("sql")
@click.option("--token", help="Ask for at least the rows of this visibility token.")
@click.option(
    "--output", type=click.Choice(["table", "csv", "json", "ndjson", "arrow"]), default="table"
)
@click.option("--limit", type=click.IntRange(1), help="Most rows of the answer.")
@click.option("--timeout-ms", type=click.IntRange(1), help="Longest run of the statement.")
@connected
async def query(
    client: Client,
    *,
    sql: str,
    token: str | None,
    output: str,
    limit: int | None,
    timeout_ms: int | None,
) -> None:
    """Run one SELECT; `-` reads it from standard input."""
    body: dict[str, object] = {"sql": sys.stdin.read() if sql == "-" else sql}
    if token:
        body |= {"min_visibility_token": token, "consistency_timeout_ms": 30_000}
    if limit:
        body["row_limit"] = limit
    if timeout_ms:
        body["timeout_ms"] = timeout_ms
    streamed = {
        "csv": "text/csv",
        "ndjson": "application/x-ndjson",
        "arrow": "application/vnd.apache.arrow.stream",
    }
    if output in streamed:
        async for chunk in client.stream("/v1/query", body, streamed[output]):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    answer = await client.call("POST", "/v1/query", json=body)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    from duckmesh_runtime.cli.show import show_rows

    show_rows(answer)


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Live, with a picture of the last two minutes.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@connected
async def lag(client: Client, *, watch: bool, output: str) -> None:
    """Show how far the lake is behind its input."""
    from duckmesh_runtime.cli.show import console, lag_table

    found = await client.call("GET", "/v1/lag")
    if output == "json":
        click.echo(json.dumps(found))
    elif not watch:
        console.print(lag_table(found, []))
    else:
        await _watch(client, found)


async def _watch(client: Client, found: dict[str, Any]) -> None:
    from rich.live import Live

    from duckmesh_runtime.cli.show import console, lag_table

    history: list[int] = []
    with Live(console=console, auto_refresh=False) as live:
        while True:
            history = [*history, int(found["lag_ms"])][-_HISTORY:]
            live.update(lag_table(found, history), refresh=True)
            await asyncio.sleep(1)
            found = await client.call("GET", "/v1/lag")


@click.command()
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@connected
async def tables(client: Client, *, output: str) -> None:
    """List the tables and their columns."""
    from duckmesh_runtime.cli.show import show_tables

    found = (await client.call("GET", "/v1/tables"))["tables"]
    if output == "json":
        click.echo(json.dumps(found))
    else:
        show_tables(found)


@click.command()
@connected
async def status(client: Client) -> None:
    """Show whether the lake is ready, what it depends on, and its lag."""
    from duckmesh_runtime.cli.client import ApiError
    from duckmesh_runtime.cli.show import console, lag_table

    ready = await client.peek("/v1/ready")
    click.echo(f"status: {ready['status']}")
    for name, state in ready["dependencies"].items():
        click.echo(f"  {name}: {state}")
    try:
        console.print(lag_table(await client.call("GET", "/v1/lag"), []))
    except ApiError as error:
        if error.code != "FORBIDDEN":
            raise
        click.echo("lag: needs a key with ops_admin")


COMMANDS: Final = (ingest, query, lag, tables, status)
