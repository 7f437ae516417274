"""How many rows a streamed answer has, told from its bytes as they pass; `query` says it beside the answer.

Nothing here holds the answer, or loads an engine for it.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from duckmesh_runtime.domain.flatbuffers import number_in, root, table_in

_CONTINUES: Final = b"\xff\xff\xff\xff"
_RECORD_BATCH: Final = 3  # MessageHeader of Arrow's Message.fbs
_FOOTER_BYTES: Final = 16 * 2**20  # kept of a Parquet answer; a longer footer is not read


class Rows(Protocol):
    """Takes the bytes of one answer in order."""

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        ...

    def count(self) -> int | None:
        """Rows so far, whole ones only; None when they cannot be told."""
        ...


class Lines:
    """NDJSON: a row a line."""

    def __init__(self) -> None:
        self._rows = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        self._rows += chunk.count(b"\n")

    def count(self) -> int | None:
        """Rows so far."""
        return self._rows


class Records:
    """CSV with a header: a row a line end that is not inside quotes."""

    def __init__(self) -> None:
        self._ends = 0
        self._quoted = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        for number, part in enumerate(chunk.split(b'"')):
            if number:
                self._quoted = not self._quoted
            if not self._quoted:
                self._ends += part.count(b"\n")

    def count(self) -> int | None:
        """Rows so far."""
        return max(0, self._ends - 1)


class ArrowBatches:
    """An Arrow stream: the lengths that its record batches name.

    pyarrow reads only from a source that blocks, so the few fields are picked here:
    https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """

    def __init__(self) -> None:
        self._rows = 0
        self._held = b""
        self._skip = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        skipped = min(self._skip, len(chunk))
        self._skip -= skipped
        if self._skip:
            return
        self._held += chunk[skipped:]
        while len(self._held) >= 8 and self._held.startswith(_CONTINUES):
            (size,) = struct.unpack_from("<i", self._held, 4)
            if size == 0 or len(self._held) < 8 + size:
                return
            kind, rows, body = _message(self._held[8 : 8 + size])
            self._rows += rows if kind == _RECORD_BATCH else 0
            end = 8 + size + body
            self._skip = max(0, end - len(self._held))
            self._held = self._held[end:]

    def count(self) -> int | None:
        """Rows so far."""
        return self._rows


class ParquetFooter:
    """A Parquet file: what its footer says, once it is there."""

    def __init__(self) -> None:
        self._tail = bytearray()

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        self._tail += chunk
        if len(self._tail) > 2 * _FOOTER_BYTES:
            del self._tail[:-_FOOTER_BYTES]

    def count(self) -> int | None:
        """Rows of a whole file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(pa.BufferReader(bytes(self._tail))).num_rows)
        except pa.ArrowException:
            return None


def _message(metadata: bytes) -> tuple[int, int, int]:
    """What an Arrow message is, the first field of its header (a batch's rows), and the length of its body."""
    message = root(metadata)
    kind = number_in(metadata, message, 1, "<B")
    header = table_in(metadata, message, 2) if kind == _RECORD_BATCH else None
    rows = 0 if header is None else number_in(metadata, header, 0, "<q")
    return kind, rows, number_in(metadata, message, 3, "<q")
