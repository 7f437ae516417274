"""Arrow streams as they come: bytes of any cut in, record batches out, and no more than one of them in memory.

pyarrow reads a stream by asking for bytes, and would hold up an event loop. So the messages are told apart here, by the
lengths before them (https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format), and pyarrow is
asked for a batch once all of it is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from duckmesh.errors import unreachable
from duckmesh.extras import need_pyarrow

_CONTINUES: Final = b"\xff\xff\xff\xff"
_PREFIX: Final = 8
_RECORD_BATCH: Final = 3  # MessageHeader of Message.fbs
_HEADER_TYPE: Final = 1  # fields of the table Message, by their number
_BODY_LENGTH: Final = 3


class Decoder:
    """Takes the bytes of one stream in order.

    Attributes:
        schema: Of its batches; None until it has come.
    """

    def __init__(self) -> None:
        self._pa = need_pyarrow()
        self._held = bytearray()
        self._messages = _Messages()
        self._reader: Any = None
        self._ended = False
        self.schema: Any = None

    def feed(self, chunk: bytes) -> Iterator[Any]:
        """The batches that are whole with this chunk; take them before the next one."""
        self._held += chunk
        while (found := self._next()) is not None:
            header_type, message = found
            self._messages.add(message)
            if self._reader is None:
                self._reader = self._pa.ipc.open_stream(self._messages)
                self.schema = self._reader.schema
            elif header_type == _RECORD_BATCH:
                yield self._reader.read_next_batch()

    def close(self) -> None:
        """Say that all has come.

        Raises:
            Unreachable: It has not.
        """
        if not self._ended:
            raise unreachable("the answer broke off before its end: run it again")

    def _next(self) -> tuple[int, bytes] | None:
        """The next whole message and its kind; None until it is there, and at the end of the stream."""
        if self._ended or len(self._held) < _PREFIX:
            return None
        if self._held[:4] != _CONTINUES:
            raise unreachable("the answer is no Arrow stream: check the URL", retryable=False)
        (length,) = struct.unpack_from("<i", self._held, 4)
        if length == 0:
            self._ended = True
            return None
        if len(self._held) < _PREFIX + length:
            return None
        metadata = bytes(self._held[_PREFIX : _PREFIX + length])
        size = _PREFIX + length + _field(metadata, _BODY_LENGTH, "<q")
        if len(self._held) < size:
            return None
        message = bytes(self._held[:size])
        del self._held[:size]
        return _field(metadata, _HEADER_TYPE, "<B"), message


class _Messages:
    """What pyarrow reads from: a file of the messages that it has not read yet."""

    closed = False

    def __init__(self) -> None:
        self._left = memoryview(b"")

    def add(self, message: bytes) -> None:
        self._left = memoryview(bytes(self._left) + message if self._left else message)

    def read(self, size: int = -1) -> memoryview | bytes:
        taken = self._left if size < 0 else self._left[:size]
        self._left = self._left[len(taken) :]
        return bytes(taken)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing to close."""


def _field(metadata: bytes, number: int, form: str) -> int:
    """A number out of the root table of a flatbuffer; 0 where it is left out (its default)."""
    (table,) = struct.unpack_from("<I", metadata, 0)
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", metadata, vtable)
    slot = 4 + 2 * number
    if slot >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, vtable + slot)
    return int(struct.unpack_from(form, metadata, table + offset)[0]) if offset else 0
