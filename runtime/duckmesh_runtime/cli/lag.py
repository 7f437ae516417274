"""`duckmesh lag`: how far the lake is behind its input, once or watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.connected import LISTING, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import ApiError, Client

_PATH: Final = "/v1/lag"
_EVERY_S: Final = 1.0
_ANSWER_S: Final = 5.0
"""A watched lake that says nothing for so long is away."""

_NAMES: Final = ("table", "pending_rows", "pending_bytes", "oldest_pending_age_ms")
Lag = Mapping[str, Any]


@click.command(
    epilog=examples("duckmesh lag", "duckmesh lag -w", "duckmesh lag -w --output json | jq .lag_ms")
)
@click.option(
    "-w", "--watch", is_flag=True, help="Live, with a picture of the last minutes; Ctrl-C ends it."
)
@LISTING
@connected
async def lag(client: Client, *, watch: bool, output: str) -> None:
    """Show how far the lake is behind its input: rows accepted and not yet visible, and how old they are.

    Watched, it goes on while the lake is away. Where standard output is no terminal it prints a line a second, with
    `--output json` an object a second. As CSV or Arrow it lists the tables that have pending rows.
    """
    if watch:
        await _watch(client, output)
        return
    found = await client.call("GET", _PATH)
    if output == "table":
        from duckmesh_runtime.cli.lag_view import lag_table
        from duckmesh_runtime.cli.show import show

        show(lag_table(found))
    else:
        from duckmesh_runtime.cli.listing import put_listing

        rows = [[table.get(name) for name in _NAMES] for table in found["tables"]]
        put_listing(output, found, _NAMES, rows)


async def _watch(client: Client, output: str) -> None:
    if output not in ("table", "json"):
        raise click.UsageError("--watch prints `table` or `json`")
    from duckmesh_runtime.cli.show import console

    async with aclosing(_seconds(client)) as seconds:
        if output == "json":
            async for found in seconds:
                _put_json(found)
        elif console.is_terminal:
            await _watch_live(seconds)
        else:
            async for found in seconds:
                click.echo(_line(found))


async def _seconds(client: Client) -> AsyncGenerator[Lag | ApiError, None]:
    """The lag each second, or why the lake does not tell it now.

    Raises:
        ApiError: It never will: the key is wrong or may not see it.
    """
    from duckmesh_runtime.cli.client import ApiError

    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _EVERY_S
        try:
            async with asyncio.timeout(_ANSWER_S):
                found = await client.peek(_PATH)
            if "error_code" in found:
                raise ApiError(found)
            yield found
        except TimeoutError:
            away = {"error_code": "UNREACHABLE", "message": "no answer in time", "retryable": True}
            yield ApiError(away)
        except ApiError as error:
            if not error.retryable:
                raise
            yield error
        await asyncio.sleep(max(0.0, due - loop.time()))


async def _watch_live(seconds: AsyncGenerator[Lag | ApiError, None]) -> None:
    from rich.live import Live

    from duckmesh_runtime.cli.client import ApiError
    from duckmesh_runtime.cli.lag_view import Watched
    from duckmesh_runtime.cli.show import console

    watched = Watched()
    with Live(console=console, auto_refresh=False) as live:
        async for found in seconds:
            if isinstance(found, ApiError):
                watched.missed(found, asyncio.get_running_loop().time())
            else:
                watched.saw(found)
            live.update(watched.picture(console.size), refresh=True)


def _put_json(found: Lag | ApiError) -> None:
    if isinstance(found, Mapping):
        click.echo(json.dumps(found))
    else:
        click.echo(f"no answer: {found}", err=True)


def _line(found: Lag | ApiError) -> str:
    from duckmesh_runtime.cli.show import harmless

    if not isinstance(found, Mapping):
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return harmless(f"{now} no answer: {found}")
    tables = "".join(f"; {one['table']} {one['pending_rows']:,}" for one in found["tables"])
    return harmless(
        f"{found['observed_at']} lag {found['lag_ms']:,} ms, {found['pending_rows']:,} rows"
        f" ({found['pending_bytes']:,} B) pending, snapshot {found['latest_snapshot_id']}{tables}"
    )
