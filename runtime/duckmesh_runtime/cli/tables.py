"""`duckmesh tables`: list, describe, create, alter and drop tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from duckmesh_runtime.cli.connected import ANSWER, LISTING, Listing, connected, examples

if TYPE_CHECKING:
    from duckmesh_runtime.cli.client import ApiError, Client
    from duckmesh_runtime.cli.listing import Value

_PATH: Final = "/v1/tables"
_WAIT_MS: Final = 60_000
_COLUMNS: Final = ("table", "column", "type", "nullable", "default", "key", "partition", "sort")
_NAME: Final = click.argument("name")


def _pairs(flag: str, *names: str, metavar: str, text: str) -> Callable[..., Any]:
    """An option of two words that can be given several times."""
    return click.option(flag, *names, nargs=2, multiple=True, metavar=metavar, help=text)


@click.group(
    "tables",
    cls=Listing,
    epilog=examples(
        "duckmesh tables",
        "duckmesh tables describe events",
        "duckmesh tables create events --from events.parquet",
        "duckmesh tables alter events --add source VARCHAR",
        "duckmesh tables drop events",
    ),
)
def tables() -> None:
    """See, make, change and drop tables; alone it lists them."""


@tables.command("list", epilog=examples("duckmesh tables list --output csv"))
@LISTING
@connected
async def list_tables(client: Client, *, output: str) -> None:
    """List the tables; as CSV or Arrow a line for each column of theirs."""
    from duckmesh_runtime.cli.listing import put_listing

    found = (await client.call("GET", _PATH))["tables"]
    if output == "table":
        rows: list[list[Value]] = [[table["name"], _column_list(table)] for table in found]
        put_listing(output, found, ("table", "columns"), rows)
    else:
        put_listing(output, found, _COLUMNS, [row for table in found for row in _columns(table)])


@tables.command(epilog=examples("duckmesh tables describe events"))
@_NAME
@LISTING
@connected
async def describe(client: Client, *, name: str, output: str) -> None:
    """Show the columns of the table NAME."""
    from duckmesh_runtime.cli.listing import put_listing

    found = await client.call("GET", _path(name))
    put_listing(output, found, _COLUMNS[1:], [row[1:] for row in _columns(found)])


@tables.command(
    epilog=examples(
        "duckmesh tables create flights --from flights.parquet --partition-by carrier",
        "duckmesh tables create users --column id BIGINT --column mail VARCHAR --key id",
    )
)
@_NAME
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    help="Columns and types of this CSV, NDJSON, Parquet or Arrow file; its rows are not sent.",
)
@_pairs("--column", "columns", metavar="NAME TYPE", text="A column, in the table's order.")
@click.option("--key", "keys", multiple=True, metavar="COLUMN", help="Of the primary key.")
@click.option(
    "--partition-by", multiple=True, metavar="COLUMN", help="Rows of one value share files."
)
@click.option("--sort-by", multiple=True, metavar="COLUMN", help="Maintenance sorts by it.")
@ANSWER
@connected
async def create(
    client: Client,
    *,
    name: str,
    file: Path | None,
    columns: tuple[tuple[str, str], ...],
    keys: tuple[str, ...],
    partition_by: tuple[str, ...],
    sort_by: tuple[str, ...],
    output: str,
) -> None:
    """Make the table NAME, like a file or with the columns named; an equal table that is there is as good."""
    if (file is None) == (not columns):
        raise click.UsageError("give --from FILE, or a --column for each column")
    made = _like(name, file) if file is not None else _of(name, columns)
    made |= {
        "primary_key": list(keys),
        "partition_by": list(partition_by),
        "sort_by": list(sort_by),
    }
    found = await _changed(client, "POST", _PATH, made)
    _tell(found, f"table {name} is there", output)


@tables.command(
    epilog=examples("duckmesh tables alter events --rename kind category --add source VARCHAR")
)
@_NAME
@_pairs("--rename", metavar="OLD NEW", text="Call a column otherwise.")
@click.option("--drop", multiple=True, metavar="COLUMN", help="Take a column away.")
@_pairs("--add", metavar="NAME TYPE", text="One column more, NULL in the rows so far.")
@_pairs("--type", "widen", metavar="NAME TYPE", text="Widen a column's type.")
@_pairs("--default", metavar="NAME JSON", text="Of a column, for rows from now on.")
@click.option("--partition-by", multiple=True, metavar="COLUMN", help="For files from now on.")
@click.option("--sort-by", multiple=True, metavar="COLUMN", help="For files from now on.")
@ANSWER
@connected
async def alter(client: Client, *, name: str, output: str, **asked: Any) -> None:
    """Change the table NAME by all of the options or none, in the order in which `--help` lists them."""
    changes = _changes(asked)
    if not changes:
        raise click.UsageError("nothing to change: see `--help`")
    found = await _changed(client, "PATCH", _path(name), {"changes": changes})
    _tell(found, f"table {name} is changed", output)


@tables.command(epilog=examples("duckmesh tables drop events"))
@_NAME
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@ANSWER
@connected
async def drop(client: Client, *, name: str, yes: bool, output: str) -> None:
    """Drop the table NAME; its rows stay in the snapshots before, as long as these are kept."""
    if not yes:
        found = await client.call("GET", _path(name))
        click.echo(f"table {name}: {_column_list(found)}", err=True)
        click.confirm("Drop it, with all its rows?", abort=True, err=True)
    found = await _changed(client, "DELETE", _path(name), None)
    _tell(found, f"table {name} is dropped", output)


async def _changed(client: Client, method: str, path: str, body: object) -> dict[str, Any]:
    """Make a change once, and wait for it as long as it takes."""
    from duckmesh_runtime.cli.client import ApiError
    from duckmesh_runtime.cli.ingest import wait_visible
    from duckmesh_runtime.cli.show import waiting

    options = {} if body is None else {"json": body}
    with waiting("until the lake has taken it"):
        try:
            found: dict[str, Any] = await client.once(
                method, path, params={"visibility_timeout_ms": str(_WAIT_MS)}, **options
            )
        except ApiError as error:
            if (token := _accepted(error)) is None:
                raise
            snapshot = await wait_visible(client, token, _WAIT_MS)
            found = {"max_visibility_token": token, "visible_snapshot_id": snapshot}
    return found


def _accepted(error: ApiError) -> str | None:
    """The token of a change that comes later."""
    token = error.context.get("max_visibility_token")
    return str(token) if error.code == "CONSISTENCY_TIMEOUT" and token else None


def _changes(asked: dict[str, Any]) -> list[dict[str, object]]:
    """What the options ask for, as the API wants it."""
    changes: list[dict[str, object]] = []
    changes += [{"rename_column": {"name": old, "to": new}} for old, new in asked["rename"]]
    changes += [{"drop_column": {"name": column}} for column in asked["drop"]]
    changes += [{"add_column": {"name": column, "type": kind}} for column, kind in asked["add"]]
    changes += [{"widen_type": {"name": column, "type": kind}} for column, kind in asked["widen"]]
    changes += [
        {"set_default": {"name": column, "default": _value(text)}}
        for column, text in asked["default"]
    ]
    changes += [{by: list(asked[by])} for by in ("partition_by", "sort_by") if asked[by]]
    return changes


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise click.UsageError(
            f'--default: {text} is no JSON value: want one such as 7, null or "web" with its quotes'
        ) from None


def _like(name: str, file: Path) -> dict[str, object]:
    from duckmesh_runtime.cli.files import BadFile, open_file, table_definition

    try:
        return table_definition(name, open_file(file, None, ("",)).schema())
    except BadFile as error:
        raise click.ClickException(str(error)) from error


def _of(name: str, columns: tuple[tuple[str, str], ...]) -> dict[str, object]:
    return {"name": name, "columns": [{"name": c, "type": kind} for c, kind in columns]}


def _columns(table: dict[str, Any]) -> list[list[Value]]:
    """A line for each column; a place in key, partitions and sort order counts from 1."""
    lists = [table.get(which) or [] for which in ("primary_key", "partition_by", "sort_by")]
    return [
        [
            table["name"],
            column["name"],
            column["type"],
            "yes" if column.get("nullable", True) else "no",
            None if column.get("default") is None else json.dumps(column["default"]),
            *(_place(column["name"], names) for names in lists),
        ]
        for column in table["columns"]
    ]


def _place(column: str, names: list[str]) -> str:
    return str(names.index(column) + 1) if column in names else ""


def _column_list(table: dict[str, Any]) -> str:
    return ", ".join(f"{column['name']} {column['type']}" for column in table["columns"])


def _path(name: str) -> str:
    return f"{_PATH}/{quote(name, safe='')}"


def _tell(found: dict[str, Any], text: str, output: str) -> None:
    from duckmesh_runtime.cli.show import harmless

    click.echo(json.dumps(found) if output == "json" else harmless(text))
