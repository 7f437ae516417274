"""`duckmesh ingest`: a file into a table, in pieces that can be sent again without doubling a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from duckmesh_runtime.cli.client import ApiError, Client
from duckmesh_runtime.cli.files import BadFile, DataFile, table_definition
from duckmesh_runtime.domain.schema import arrow_schema, parse_table
from duckmesh_runtime.errors import Invalid

ARROW: Final = "application/vnd.apache.arrow.stream"


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far the file is.

    Attributes:
        sent: Rows answered for, known ones included.
        duplicates: Rows of them that were there already.
        token: Of the last answer; empty before the first.
        lag_ms: Lag of the lake as last read; None when the key may not see it.
    """

    sent: int = 0
    duplicates: int = 0
    token: str = ""
    lag_ms: int | None = None


async def send_file(
    client: Client,
    file: DataFile,
    table: str,
    *,
    create: bool,
    seen: Callable[[Progress], None],
) -> Progress:
    """Send all rows; `seen` is called after each piece.

    A piece's idempotency key is made of the file's content and its number, so sending the file again adds nothing.

    Raises:
        ApiError: The API refused.
        BadFile: The file does not fit.
    """
    schema = await _table_schema(client, file, table, create=create)
    fingerprint = await asyncio.to_thread(file.fingerprint)
    progress = Progress()
    pieces = file.pieces(schema)
    number = 0
    while (body := await asyncio.to_thread(_next_body, pieces)) is not None:
        answer = await client.call(
            "POST",
            f"/v1/ingest/{table}",
            data=body,
            headers={
                "Content-Type": ARROW,
                "Idempotency-Key": f"file-{fingerprint}-{number}",
            },
        )
        number += 1
        _add(progress, answer)
        progress.lag_ms = await _lag_ms(client, progress.lag_ms, first=number == 1)
        seen(progress)
    return progress


async def wait_visible(client: Client, token: str, timeout_ms: int) -> int | None:
    """Wait until the token is visible; returns the snapshot's id, None when no snapshot was needed for it."""
    answer = await client.call(
        "GET", "/v1/visible", params={"token": token, "timeout_ms": str(timeout_ms)}
    )
    snapshot: int | None = answer["visible_snapshot_id"]
    return snapshot


async def _table_schema(client: Client, file: DataFile, table: str, *, create: bool) -> pa.Schema:
    try:
        found = await client.call("GET", f"/v1/tables/{table}")
    except ApiError as error:
        if error.code == "FORBIDDEN":  # a key that may only write: the file's own columns must fit
            return await asyncio.to_thread(file.schema)
        if error.code != "TABLE_NOT_FOUND" or not create:
            raise
        schema = await asyncio.to_thread(file.schema)
        found = await client.call("POST", "/v1/tables", json=table_definition(table, schema))
    definition = {
        key: found[key]
        for key in ("name", "columns", "primary_key", "partition_by", "sort_by")
        if key in found
    }
    try:
        return arrow_schema(parse_table(definition))
    except Invalid as error:
        raise BadFile(
            f"table {table}: this version does not know its definition: {error.message}"
        ) from error


def _next_body(pieces: Iterator[pa.Table]) -> bytes | None:
    piece = next(pieces, None)
    if piece is None:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, piece.schema) as writer:
        writer.write_table(piece)
    return bytes(sink.getvalue())


def _add(progress: Progress, answer: dict[str, Any]) -> None:
    progress.sent += int(answer["accepted_count"]) + int(answer["duplicate_count"])
    progress.duplicates += int(answer["duplicate_count"])
    progress.token = str(answer["max_visibility_token"])


async def _lag_ms(client: Client, last: int | None, *, first: bool) -> int | None:
    if last is None and not first:
        return None  # the key may not see it
    try:
        return int((await client.call("GET", "/v1/lag"))["lag_ms"])
    except ApiError:
        return None
