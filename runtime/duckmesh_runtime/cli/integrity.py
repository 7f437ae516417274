"""`duckmesh integrity`: check the lake's files and rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from duckmesh_runtime.cli.connected import ANSWER, REFUSED, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_PATH: Final = "/v1/integrity/run"


@click.command(epilog=examples("duckmesh integrity", "duckmesh integrity --deep"))
@click.option("--deep", is_flag=True, help="Also read the end of each file.")
@ANSWER
@connected
async def integrity(client: Client, *, deep: bool, output: str) -> None:
    """Check that all files are in the store as recorded, and that tables have the rows that were committed.

    Ends with 1 when something is missing or damaged. Queries that need such a file fail, and others do not.
    """
    from duckmesh_runtime.cli.show import harmless, waiting

    with waiting("for the check of all files"):
        found = await client.call("POST", _PATH, json={"mode": "deep" if deep else "cheap"})
    if output == "json":
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['status']}: {harmless(found['summary'])}")
    if found["status"] != "healthy":
        raise SystemExit(REFUSED)
