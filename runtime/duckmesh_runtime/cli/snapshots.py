"""`duckmesh snapshots`: look at the snapshots that a lake keeps and their files, pin, unpin and restore them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.connected import ANSWER, LISTING, Listing, connected, examples
from duckmesh_runtime.cli.restore import restore

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_PATH: Final = "/v1/snapshots"
_ID: Final = click.argument("snapshot_id", metavar="ID", type=click.IntRange(min=0))
_NAME: Final = click.option("--name", help="Name of the pin; a snapshot can have several.")


@click.group(
    "snapshots",
    cls=Listing,
    epilog=examples(
        "duckmesh snapshots",
        "duckmesh snapshots pin 412 --name audit-2026 --until 2027-01-31",
        'duckmesh query "FROM events" --snapshot 412',
    ),
)
def snapshots() -> None:
    """See, pin, unpin and restore snapshots of the lake; alone it lists them."""


snapshots.add_command(restore)


@snapshots.command("list", epilog=examples("duckmesh snapshots list --limit 5"))
@click.option("--before", type=click.IntRange(min=0), help="Only snapshots below this ID.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, help="Most lines.")
@LISTING
@connected
async def list_snapshots(client: Client, *, before: int | None, limit: int, output: str) -> None:
    """List snapshots, newest first: ID, time, what changed, pins."""
    from duckmesh_runtime.cli.listing import put_listing
    from duckmesh_runtime.cli.show import say

    params = {"limit": str(limit)} | ({} if before is None else {"before": str(before)})
    found = await client.call("GET", _PATH, params=params)
    rows = [
        [
            one["snapshot_id"],
            one["snapshot_time"],
            "changed" if one["schema_changed"] else "",
            _pins(one),
        ]
        for one in found["snapshots"]
    ]
    put_listing(output, found, ("id", "time", "tables", "pins"), rows, right=(0,))
    if found["next_before"] is not None and output != "json":
        say(f"there are more: --before {found['next_before']}")


@snapshots.command("show", epilog=examples("duckmesh snapshots show 412"))
@_ID
@LISTING
@connected
async def show(client: Client, *, snapshot_id: int, output: str) -> None:
    """Show one snapshot and its tables."""
    from duckmesh_runtime.cli.listing import put_listing

    found = await client.call("GET", f"{_PATH}/{snapshot_id}")
    if output == "table":
        _tell(found)
    rows = [[t["name"], t["files"], t["size_bytes"], t["delete_files"]] for t in found["tables"]]
    put_listing(output, found, ("table", "files", "bytes", "delete files"), rows, right=(1, 2, 3))


@snapshots.command(
    "files", epilog=examples("duckmesh snapshots files 412 --table events --output json")
)
@_ID
@click.option("--table", help="Only files of this table.")
@ANSWER
@connected
async def files(client: Client, *, snapshot_id: int, table: str | None, output: str) -> None:
    """List the Parquet files of a snapshot, with their delete files; as JSON with all that reading them needs."""
    from duckmesh_runtime.cli.show import harmless, waiting

    with waiting("reading the list of files"):
        found = await _all_files(client, snapshot_id, table)
    if output == "json":
        click.echo(json.dumps(found))
        return
    for file in found["files"]:
        click.echo(harmless(file["url"]))
        for deletes in file["delete_files"]:
            click.echo("  without " + harmless(deletes["url"]))


@snapshots.command(
    "pin", epilog=examples("duckmesh snapshots pin 412 --name audit-2026 --until 2027-01-31")
)
@_ID
@_NAME
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"]),
    metavar="TIME",
    help="When the pin ends by itself, such as 2027-01-31 or 2027-01-31T12:00:00Z; a day is meant in UTC. Default: never.",
)
@ANSWER
@connected
async def pin(
    client: Client, *, snapshot_id: int, name: str | None, until: datetime | None, output: str
) -> None:
    """Keep the snapshot ID from expiry, whatever its age."""
    body = {"snapshot_id": snapshot_id, "name": name, "expires_at": until and _moment(until)}
    found = await client.call("POST", f"{_PATH}/pin", json=body)
    _tell(found, output)


@snapshots.command("unpin", epilog=examples("duckmesh snapshots unpin 412 --name audit-2026"))
@_ID
@_NAME
@ANSWER
@connected
async def unpin(client: Client, *, snapshot_id: int, name: str | None, output: str) -> None:
    """Take a pin off; without another one the snapshot goes when its time has come."""
    body = {"snapshot_id": snapshot_id, "name": name}
    found = await client.call("POST", f"{_PATH}/unpin", json=body)
    _tell(found, output)
    if output == "text" and not found["removed"]:
        click.echo("it had no such pin", err=True)


async def _all_files(client: Client, snapshot_id: int, table: str | None) -> dict[str, Any]:
    """All pages as one."""
    from duckmesh_runtime.cli.client import ApiError

    path, params = f"{_PATH}/{snapshot_id}/files", {} if table is None else {"table": table}
    found: dict[str, Any] = await client.call("GET", path, params=params)
    while found["next_after"] is not None:
        try:
            page = await client.call("GET", path, params=params | {"after": found["next_after"]})
        except ApiError as error:
            if error.code != "VALIDATION_FAILED":
                raise
            page = await client.call("GET", path, params=params)  # files were merged: begin again
            found = page | {"files": []}
        found = page | {"files": found["files"] + page["files"]}
    return found


def _moment(until: datetime) -> str:
    return until.isoformat() if until.tzinfo else until.isoformat() + "Z"


def _pins(snapshot: dict[str, Any]) -> str:
    return ", ".join(pin["name"] or "pinned" for pin in snapshot["pins"])


def _tell(found: dict[str, Any], output: str = "text") -> None:
    from duckmesh_runtime.cli.show import harmless

    if output == "json":
        click.echo(json.dumps(found))
        return
    pins = _pins(found)
    held = f"pinned ({pins})" if pins else "not pinned"
    click.echo(harmless(f"snapshot {found['snapshot_id']} of {found['snapshot_time']}, {held}"))
