"""`duckmesh ingest`: a file into a table, in pieces that can be sent again without doubling a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from duckmesh_runtime.cli.bodies import Body, bodies
from duckmesh_runtime.cli.client import ApiError, Client
from duckmesh_runtime.cli.files import BadFile, DataFile, table_definition
from duckmesh_runtime.domain.schema import arrow_schema, parse_table
from duckmesh_runtime.errors import Invalid

_SHOWN: Final = 5


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far the file is.

    Attributes:
        sent: Rows answered for, known ones included, refused ones not.
        duplicates: Rows of them that were there already.
        rejected: Rows that were refused.
        refusals: What was wrong with the first of them, by their place among the file's rows, from 1.
        token: Of the last answer; empty before the first.
        lag_ms: Lag of the lake as last read; None when the key may not see it.
    """

    sent: int = 0
    duplicates: int = 0
    rejected: int = 0
    refusals: list[str] = field(default_factory=list)
    token: str = ""
    lag_ms: int | None = None

    def add(self, answer: dict[str, Any]) -> None:
        """Take in the answer to one piece."""
        before = self.sent + self.rejected
        for each in answer["rejected"][: _SHOWN - len(self.refusals)]:
            self.refusals.append(f"row {before + each['index'] + 1}: {each['message']}")
        self.sent += int(answer["accepted_count"]) + int(answer["duplicate_count"])
        self.duplicates += int(answer["duplicate_count"])
        self.rejected += int(answer.get("rejected_count", len(answer["rejected"])))
        if self.sent:
            self.token = str(answer["max_visibility_token"])


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a file is sent.

    Attributes:
        create: Make the table from the file if there is none.
        op: What its rows do; None means what the table takes by default.
        atomic: A piece with a bad row is refused whole.
    """

    create: bool = False
    op: str | None = None
    atomic: bool = False

    def parameters(self) -> dict[str, str]:
        """Query parameters of each call."""
        op = {"op": self.op} if self.op else {}
        return op | ({"atomic": "true"} if self.atomic else {})


async def send_file(
    client: Client, file: DataFile, table: str, how: How, *, seen: Callable[[Progress], None]
) -> Progress:
    """Send all rows; `seen` is called after each piece.

    A piece's idempotency key is made of the file's content and its number, so sending the file again adds nothing.

    Raises:
        ApiError: The API refused; nothing of a piece was accepted.
        BadFile: The file does not fit.
    """
    schema = await _table_schema(client, file, table, create=how.create)
    key = f"file-{await asyncio.to_thread(file.fingerprint)}" + (f"-{how.op}" if how.op else "")
    progress = Progress()
    pieces = bodies(file, schema)
    number = 0
    while (body := await asyncio.to_thread(next, pieces, None)) is not None:
        progress.add(await _send(client, table, body, f"{key}-{number}", how))
        number += 1
        progress.lag_ms = await _lag_ms(client, progress.lag_ms, first=number == 1)
        seen(progress)
    return progress


async def _send(client: Client, table: str, body: Body, key: str, how: How) -> dict[str, Any]:
    answer: dict[str, Any] = await client.call(
        "POST",
        f"/v1/ingest/{table}",
        data=body.content,
        params=how.parameters(),
        headers={"Content-Type": body.content_type, "Idempotency-Key": key},
    )
    return answer


async def wait_visible(client: Client, token: str, timeout_ms: int) -> int | None:
    """Wait until the token is visible; returns the snapshot's id, None when no snapshot was needed for it."""
    answer = await client.call(
        "GET", "/v1/visible", params={"token": token, "timeout_ms": str(timeout_ms)}
    )
    snapshot: int | None = answer["visible_snapshot_id"]
    return snapshot


async def _table_schema(
    client: Client, file: DataFile, table: str, *, create: bool
) -> pa.Schema | None:
    """What the file has to become; None when it is sent as it is and the table is there."""
    if file.is_sent_as_it_is and not create:
        return None
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


async def _lag_ms(client: Client, last: int | None, *, first: bool) -> int | None:
    if last is None and not first:
        return None  # the key may not see it
    try:
        return int((await client.call("GET", "/v1/lag"))["lag_ms"])
    except ApiError:
        return None
