"""`duckmesh compact`: merge files now. In a Compactor's Job the same command is the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from duckmesh_runtime.cli.connected import ANSWER, REFUSED, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import Client

_LEFT: Final = ("debt_files", "debt_bytes", "snapshots_kept", "files_waiting")
"""What is left, not what was done."""

Summary = dict[str, int]


class JobOrCall(click.Command):
    """A command that is the program of a Job where the operator has said what the Job is to do."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        job = (ctx.obj or {}).get("job")
        return super().invoke(ctx) if job is None else job()


@click.command(cls=JobOrCall, epilog=examples("duckmesh compact", "duckmesh compact --expire"))
@click.option("--expire", is_flag=True, help="Give up old snapshots and remove their files too.")
@ANSWER
@connected
async def compact(client: Client, *, expire: bool, output: str) -> None:
    """Merge small files and rewrite those with many deleted rows, until nothing is left to do.

    The lake does so by itself, bit by bit; this goes all the way. Ends with 1 while another process maintains the lake.
    """
    found = {"compaction": await _run(client, "compaction", _compacted)}
    if expire and found["compaction"]["status"] == "done":
        found["retention"] = await _run(client, "retention", _expired)
    if output == "json":
        click.echo(json.dumps(found))
    if any(part["status"] == "busy" for part in found.values()):
        click.echo("another process maintains the lake: repeat it later", err=True)
        raise SystemExit(REFUSED)


async def _run(client: Client, what: str, say: Callable[[Summary], str]) -> dict[str, Any]:
    """Call it until nothing is left, nothing moves or no less is left, and say after each call what was done in all."""
    from duckmesh_runtime.cli.show import waiting

    totals: Summary = {}
    left: int | None = None
    while True:
        with waiting(f"for {what}"):
            found = await client.call("POST", f"/v1/{what}/run")
        done: Summary = found["summary"]
        totals = {
            name: value if name in _LEFT else totals.get(name, 0) + value
            for name, value in done.items()
        }
        click.echo(say(totals), err=True)
        moved = any(value for name, value in done.items() if name not in (*_LEFT, "conflicts"))
        # Beside a busy writer there is always something left.
        before, left = left, done.get("debt_files")
        stays = before is not None and left is not None and left >= before
        if found["status"] != "partial" or not moved or stays:
            return {"status": found["status"], "summary": totals}


def _compacted(totals: Summary) -> str:
    return (
        f"{totals['files_in']:,} files became {totals['files_out']:,}, {totals['bytes_rewritten']:,} bytes read; "
        f"{totals['debt_files']:,} files more than needed are left"
    )


def _expired(totals: Summary) -> str:
    return (
        f"{totals['snapshots_expired']:,} snapshots given up, {totals['files_removed']:,} files removed; "
        f"{totals['snapshots_kept']:,} snapshots are kept, {totals['files_waiting']:,} files go later"
    )
