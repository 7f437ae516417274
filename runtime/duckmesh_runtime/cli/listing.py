"""A list of the API as the user wants it: a table, the answer's JSON, CSV or an Arrow stream."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence

import click

Value = str | int | None


def put_listing(
    output: str,
    answer: object,
    names: Sequence[str],
    rows: Sequence[Sequence[Value]],
    *,
    right: Sequence[int] = (),
) -> None:
    """Print a listing.

    Args:
        output: A choice of `connected.LISTING`.
        answer: What the API said, for JSON.
        names: Of the columns.
        rows: The lines.
        right: Columns of figures, by place.
    """
    if output == "json":
        click.echo(json.dumps(answer))
    elif output == "csv":
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerows([names, *rows])
    elif output == "arrow":
        _put_arrow(names, rows)
    else:
        from duckmesh_runtime.cli.show import show_listing

        show_listing(names, rows, right)


def _put_arrow(names: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
    import pyarrow as pa

    if sys.stdout.isatty():
        raise click.UsageError("arrow is nothing for a terminal: redirect it, as in >rows.arrow")
    columns = [[row[place] for row in rows] for place in range(len(names))]
    table = pa.table(columns, names=list(names))
    with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as writer:
        writer.write_table(table)
    sys.stdout.buffer.flush()
