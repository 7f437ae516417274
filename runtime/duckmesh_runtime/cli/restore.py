"""`duckmesh snapshots restore`: take the whole lake back to a snapshot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click

from duckmesh_runtime.cli.connected import ANSWER, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_PATH: Final = "/v1/snapshots"
_WAIT_MS: Final = 60_000
_PAGE: Final = "1000"


@click.command("restore", epilog=examples("duckmesh snapshots restore 412"))
@click.argument("snapshot_id", metavar="ID", type=click.IntRange(0))
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--key", help="Idempotency key, to repeat a restore whose answer was lost.")
@ANSWER
@connected
async def restore(
    client: Client, *, snapshot_id: int, yes: bool, key: str | None, output: str
) -> None:
    """Take all tables back to the snapshot ID: what was written since is undone, and may be sent again.

    It first says what that is, and asks. The snapshots in between stay, so a restore can be undone by another.
    """
    from duckmesh_runtime.cli.show import harmless, waiting

    if not yes:
        click.echo(harmless(await _undone(client, snapshot_id)), err=True)
        click.confirm(f"Take all tables back to snapshot {snapshot_id}?", abort=True, err=True)
    with waiting("until the lake is as it was"):
        found = await client.call(
            "POST",
            f"{_PATH}/restore",
            params={"visibility_timeout_ms": str(_WAIT_MS)},
            headers={"Idempotency-Key": key or uuid4().hex},
            json={"snapshot_id": snapshot_id},
        )
    text = f"restored to snapshot {snapshot_id}, as snapshot {found['visible_snapshot_id']}"
    click.echo(json.dumps(found) if output == "json" else text)


async def _undone(client: Client, snapshot_id: int) -> str:
    """What a restore would undo.

    Raises:
        ApiError: There is no such snapshot.
    """
    then = await client.call("GET", f"{_PATH}/{snapshot_id}")
    count, newest = await _newer(client, snapshot_id)
    lines = [f"snapshot {snapshot_id} is of {then['snapshot_time']}"]
    if newest is None:
        lines.append("it is the newest: only what is accepted and not yet visible is undone")
        return "\n".join(lines)
    lines.append(
        f"what was written since is undone: {count:,} newer snapshot{'' if count == 1 else 's'},"
        f" up to {newest['snapshot_id']} of {newest['snapshot_time']}"
    )
    now = await client.call("GET", f"{_PATH}/{newest['snapshot_id']}")
    names = {table["name"] for table in then["tables"]}
    names_now = {table["name"] for table in now["tables"]}
    lines += _named("tables that go", names_now - names)
    lines += _named("tables that come back", names - names_now)
    return "\n".join(lines)


async def _newer(client: Client, snapshot_id: int) -> tuple[int, dict[str, Any] | None]:
    """How many snapshots are kept that are newer, and the newest of them."""
    count, newest, params = 0, None, {"limit": _PAGE}
    while True:
        page = await client.call("GET", _PATH, params=params)
        newer = [one for one in page["snapshots"] if one["snapshot_id"] > snapshot_id]
        newest = newest or (newer[0] if newer else None)
        count += len(newer)
        if len(newer) < len(page["snapshots"]) or page["next_before"] is None:
            return count, newest
        params = params | {"before": str(page["next_before"])}


def _named(what: str, names: set[str]) -> list[str]:
    return [f"{what}: {', '.join(sorted(names))}"] if names else []
