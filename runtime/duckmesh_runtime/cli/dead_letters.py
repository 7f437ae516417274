"""`duckmesh dead-letters`: look at what the lake refused, replay it once the cause is gone, or drop it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from duckmesh_runtime.cli.connected import ANSWER, LISTING, Listing, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_PATH: Final = "/v1/dead-letters"
_COLUMNS: Final = ("number", "table", "what", "rows", "set aside", "error")
_TABLE: Final = click.option("--table", help="All letters of this table.")


@click.group(
    "dead-letters",
    cls=Listing,
    epilog=examples(
        "duckmesh dead-letters",
        "duckmesh dead-letters show 41",
        "duckmesh dead-letters replay --table events",
    ),
)
def dead_letters() -> None:
    """See, replay and drop input that the lake refused; alone it lists it."""


@dead_letters.command("list", epilog=examples("duckmesh dead-letters list --table events"))
@click.option("--table", help="Only letters of this table.")
@click.option("--after", default="0", help="Only letters after this number.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, help="Most lines.")
@LISTING
@connected
async def list_letters(
    client: Client, *, table: str | None, after: str, limit: int, output: str
) -> None:
    """List letters: number, table, what, why."""
    from duckmesh_runtime.cli.listing import put_listing
    from duckmesh_runtime.cli.show import say

    params = {"after": after, "limit": str(limit)} | ({"table": table} if table else {})
    found = await client.call("GET", _PATH, params=params)
    if output == "table" and not found["dead_letters"]:
        say("no dead letters: the lake refused nothing that is still kept")
        return
    rows = [
        [o["number"], o["table"], o["op"] or o["kind"], o["rows"], o["set_aside_at"], o["error"]]
        for o in found["dead_letters"]
    ]
    put_listing(output, found, _COLUMNS, rows, right=(0, 3))
    if found["next_after"] is not None and output != "json":
        say(f"there are more: --after {found['next_after']}")


@dead_letters.command("show", epilog=examples("duckmesh dead-letters show 41"))
@click.argument("number")
@ANSWER
@connected
async def show(client: Client, *, number: str, output: str) -> None:
    """Show one letter with its values."""
    found = await client.call("GET", _path(number))
    if output == "json":
        click.echo(json.dumps(found))
        return
    from duckmesh_runtime.cli.show import show_letter

    show_letter(found)


@dead_letters.command("replay", epilog=examples("duckmesh dead-letters replay --table events"))
@click.argument("number", required=False)
@_TABLE
@ANSWER
@connected
async def replay(client: Client, *, number: str | None, table: str | None, output: str) -> None:
    """Send NUMBER, or all letters of a table, into the lake again; what is refused again stays."""
    from duckmesh_runtime.cli.show import waiting

    _one_of(number, table)
    if number is not None:
        with waiting("until the rows are visible"):
            found = await client.call("POST", _path(number) + "/replay")
        _tell(found, f"replayed; {found['status']}", output)
        return
    count = 0
    failed: list[dict[str, Any]] = []
    more = {"table": table or ""}
    with waiting("replaying") as shown:
        while True:
            found = await client.call("POST", f"{_PATH}/replay", params=more)
            count, failed = count + found["replayed_count"], failed + found["failed"]
            if found["next_after"] is None or _stopped(found):
                break
            more |= {"after": str(found["next_after"]), "upto": str(found["upto"])}
            shown.update(f"{count:,} replayed, {len(failed):,} kept so far")
    whole = found | {"replayed_count": count, "failed": failed}
    lines = [f"  {one['number']}: {one['error_code']}: {one['message']}" for one in failed]
    _tell(whole, "\n".join([f"{count} replayed, {len(failed)} kept", *lines]), output)


@dead_letters.command("drop", epilog=examples("duckmesh dead-letters drop 41"))
@click.argument("number", required=False)
@_TABLE
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@ANSWER
@connected
async def drop(
    client: Client, *, number: str | None, table: str | None, yes: bool, output: str
) -> None:
    """Remove NUMBER, or all letters of a table, for good."""
    _one_of(number, table)
    what = f"letter {number}" if number is not None else f"all letters of table {table}"
    if not yes:
        click.confirm(f"Remove {what} for good?", abort=True, err=True)
    if number is not None:
        _tell(await client.call("DELETE", _path(number)), "dropped", output)
        return
    count, params = 0, {"table": table or ""}
    while True:
        found = await client.call("DELETE", _PATH, params=params)
        count += found["dropped_count"]
        if found["next_after"] is None:
            break
        params["after"] = str(found["next_after"])
    _tell({"dropped_count": count}, f"{count} dropped", output)


def _path(number: str) -> str:
    return f"{_PATH}/{quote(number, safe='')}"


def _one_of(number: str | None, table: str | None) -> None:
    if (number is None) == (table is None):
        raise click.UsageError("give the NUMBER of a letter or --table, as `list` shows them")


def _stopped(found: dict[str, Any]) -> bool:
    """Whether a call went no further because of something that concerns every letter."""
    lasting = ("SCHEMA_INCOMPATIBLE", "DATA_FILE_MISSING", "DEAD_LETTER_NOT_FOUND")
    return any(one["error_code"] not in lasting for one in found["failed"])


def _tell(found: dict[str, Any], text: str, output: str) -> None:
    from duckmesh_runtime.cli.show import harmless

    click.echo(json.dumps(found) if output == "json" else harmless(text))
