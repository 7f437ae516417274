"""JSON records as sent, and the digests that tell whether one was sent before. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from duckmesh_runtime.domain.columns import json_text
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import Op

LONGEST_KEY: Final = 255

# Checked record by record, not by the decoder: one that is wrong is refused on its own.
_PAYLOAD: Final = Meta(extra_json_schema={"type": "object"})
_KEY: Final = Meta(extra_json_schema={"minLength": 1, "maxLength": LONGEST_KEY})
_OP: Final = Meta(extra_json_schema={"enum": [*Op, None]})


class RawRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One record as sent; decoded as it is, and unseen by the garbage collector: records are many, and hold no cycles.

    Attributes:
        idempotency_key: 1 to 255 characters; None when the writer does not repeat itself.
        op: `insert`, `upsert` or `delete`; None means what the table's kind takes, see `sift.op_for`.
        payload: A JSON object of column values.
        event_time: Value of the column `event_time` if the table has one and the payload does not set it.
    """

    payload: Annotated[object, _PAYLOAD]
    idempotency_key: Annotated[str | None, _KEY] = None
    op: Annotated[str | None, _OP] = None
    event_time: str | None = None


def key_digest(table: TableDef, scope: str, key: str) -> bytes:
    """16 bytes that stand for an idempotency key of this very table; `scope` keeps record and request keys apart."""
    text = "\0".join((table.name, str(table.version), scope, key))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def content_digest(record: RawRecord) -> bytes:
    """16 bytes that stand for what a record says and does, whatever the order of its fields."""
    said = [record.payload, record.event_time]
    # Beside delete a table has one operation, which may be left out.
    text = json_text([*said, record.op] if record.op == "delete" else said)
    return blake2b(text.encode(), digest_size=16).digest()


def body_digest(body: bytes) -> bytes:
    """16 bytes that stand for a whole request body."""
    return blake2b(body, digest_size=16).digest()
