"""The client commands of `duckmesh`: `ingest`, `status`, and the list of all.

Bodies import what they need: `--help` must be quick.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.compact import compact
from duckmesh_runtime.cli.completion import completion
from duckmesh_runtime.cli.connected import ANSWER, REFUSED, connected, examples
from duckmesh_runtime.cli.dead_letters import dead_letters
from duckmesh_runtime.cli.integrity import integrity
from duckmesh_runtime.cli.lag import lag
from duckmesh_runtime.cli.query import query
from duckmesh_runtime.cli.snapshots import snapshots
from duckmesh_runtime.cli.tables import tables

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client
    from duckmesh_runtime.cli.ingest import How, Progress
    from duckmesh_runtime.cli.sources import Source

_WAIT_MS: Final = 60_000
Sent = Sequence["tuple[Source, Progress]"]


@click.command(
    epilog=examples(
        "duckmesh ingest flights.parquet --create",
        "duckmesh ingest 'logs/*.ndjson.gz' --table logs --wait",
        "gzip -dc rows.csv.gz | duckmesh ingest - --format csv --table rows",
        'duckmesh query "FROM flights" --token "$(duckmesh ingest flights.parquet)"',
    )
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--table", help="Table to fill; default: the file's name, for a folder the folder's.")
@click.option("--create", is_flag=True, help="Make the table from the file if there is none.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "ndjson", "parquet", "arrow"]),
    help="Default: by the file's name.",
)
@click.option("--null", "nulls", multiple=True, default=[""], help="Text that means NULL in CSV.")
@click.option(
    "--op",
    type=click.Choice(["insert", "upsert", "delete"]),
    help="What the rows do; default: upsert where there is a primary key, else insert.",
)
@click.option("--atomic", is_flag=True, help="Refuse a piece of the file whole if a row is bad.")
@click.option("--wait", is_flag=True, help="Wait until the rows are visible.")
@ANSWER
@connected
async def ingest(
    client: Client,
    *,
    files: tuple[str, ...],
    table: str | None,
    create: bool,
    file_format: str | None,
    nulls: tuple[str, ...],
    op: str | None,
    atomic: bool,
    wait: bool,
    output: str,
) -> None:
    """Send files (CSV, NDJSON, Parquet, Arrow); sending one again adds nothing.

    FILE is a file, a folder with all data files below it, a pattern in quotes, or `-` for standard input. The last
    line on standard output is the visibility token: a query that asks for it has all the rows.
    """
    from duckmesh_runtime.cli.files import BadFile
    from duckmesh_runtime.cli.ingest import How, wait_visible
    from duckmesh_runtime.cli.show import waiting
    from duckmesh_runtime.cli.sources import find_sources

    started = time.monotonic()
    try:
        with find_sources(files, table, file_format, nulls) as sources:
            how = How(create=create, op=op, atomic=atomic)
            sent = await _send_all(client, sources, how)
    except BadFile as error:
        raise click.ClickException(str(error)) from error
    seconds, snapshot = time.monotonic() - started, None
    token = next((p.token for _, p in reversed(sent) if p.token), "")
    if wait and token:
        with waiting("until the rows are visible"):
            snapshot = await wait_visible(client, token, _WAIT_MS)
    for source, progress in sent:
        where = f"{source.file.path.name}: " if len(sent) > 1 else ""
        for refusal in progress.refusals:
            click.echo(where + refusal, err=True)
    if output == "json":
        click.echo(json.dumps(_summary(sent, seconds, token, snapshot)))
    else:
        _show_sent(sent, seconds, token, snapshot)
    if any(progress.rejected for _, progress in sent):
        raise SystemExit(REFUSED)


async def _send_all(
    client: Client, sources: Sequence[Source], how: How
) -> list[tuple[Source, Progress]]:
    """Send one file after the other, with a bar each."""
    from duckmesh_runtime.cli.ingest import send_file
    from duckmesh_runtime.cli.show import ingest_bar

    sent: list[tuple[Source, Progress]] = []
    with ingest_bar() as bar:
        try:
            for source in sources:
                name = source.table if len(sources) == 1 else source.file.path.name
                task = bar.add_task(name, total=source.file.rows(), rate="", lag="")
                begun = time.monotonic()

                def seen(progress: Progress, task: Any = task, begun: float = begun) -> None:
                    rate = f"{progress.sent / (time.monotonic() - begun):,.0f} rows/s"
                    lag = "" if progress.lag_ms is None else f"lag {progress.lag_ms:,} ms"
                    bar.update(task, completed=progress.sent, rate=rate, lag=lag)

                progress = await send_file(client, source.file, source.table, how, seen=seen)
                bar.update(task, total=progress.sent, completed=progress.sent)
                sent.append((source, progress))
        except Exception:
            if len(sources) > 1:
                bar.console.print(
                    f"{len(sent)} of {len(sources)} files are in: run it again, what is in is not doubled"
                )
            raise
    return sent


def _summary(sent: Sent, seconds: float, token: str, snapshot: int | None) -> dict[str, object]:
    """Of all files together, and of each."""
    names = {source.table for source, _ in sent}
    each = [
        {"file": source.file.path.name, "table": source.table, **_counts([progress])}
        for source, progress in sent
    ]
    return {
        "table": names.pop() if len(names) == 1 else None,
        **_counts([progress for _, progress in sent]),
        "seconds": round(seconds, 3),
        "token": token,
        "visible_snapshot_id": snapshot,
        "files": each,
    }


def _counts(sent: Sequence[Progress]) -> dict[str, int]:
    rows, known = sum(p.sent for p in sent), sum(p.duplicates for p in sent)
    rejected = sum(p.rejected for p in sent)
    return {"rows": rows, "accepted": rows - known, "duplicates": known, "rejected": rejected}


def _show_sent(sent: Sent, seconds: float, token: str, snapshot: int | None) -> None:
    from duckmesh_runtime.cli.show import error_console

    counts = _counts([progress for _, progress in sent])
    files = f" of {len(sent)} files" if len(sent) > 1 else ""
    known = f", {counts['duplicates']:,} of them already there" if counts["duplicates"] else ""
    refused = f", {counts['rejected']:,} rejected" if counts["rejected"] else ""
    error_console.print(f"{counts['rows']:,} rows{files} in {seconds:.1f} s{known}{refused}")
    if snapshot is not None:
        error_console.print(f"visible in snapshot {snapshot}")
    click.echo(token)


@click.command(epilog=examples("duckmesh status"))
@ANSWER
@connected
async def status(client: Client, *, output: str) -> None:
    """Show whether the lake is ready, what it depends on, and its lag."""
    from duckmesh_runtime.cli.client import ApiError

    ready = await client.peek("/v1/ready")
    try:
        lag = await client.call("GET", "/v1/lag")
    except ApiError as error:
        if error.code != "FORBIDDEN":
            raise
        lag = None
    if output == "json":
        click.echo(json.dumps({**ready, "lag": lag}))
        return
    from duckmesh_runtime.cli.lag_view import lag_table
    from duckmesh_runtime.cli.show import show

    click.echo(f"status: {ready['status']}")
    for name, state in ready["dependencies"].items():
        click.echo(f"  {name}: {state}")
    if lag is None:
        click.echo("lag: needs a key with ops_admin")
    else:
        show(lag_table(lag))


COMMANDS: Final = (
    ingest,
    query,
    lag,
    tables,
    snapshots,
    dead_letters,
    compact,
    integrity,
    status,
    completion,
)
