"""Fields of a FlatBuffers table, of which Arrow's messages are made; pyarrow does not show them.

https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct

Buffer = bytes | memoryview


def root(buffer: Buffer) -> int:
    """Place of the root table.

    Raises:
        struct.error: The buffer is too short, here and below.
    """
    return int(struct.unpack_from("<I", buffer)[0])


def table_in(buffer: Buffer, table: int, number: int) -> int | None:
    """Place of the table in field `number` of a table; None when that is not there."""
    at = _place(buffer, table, number)
    return None if at is None else at + int(struct.unpack_from("<I", buffer, at)[0])


def number_in(buffer: Buffer, table: int, number: int, form: str) -> int:
    """A number in field `number` of a table, in a form of `struct`; 0 when it is not there."""
    at = _place(buffer, table, number)
    return 0 if at is None else int(struct.unpack_from(form, buffer, at)[0])


def _place(buffer: Buffer, table: int, number: int) -> int | None:
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", buffer, fields)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, fields + slot)[0]
    return table + offset if offset else None
