"""Bodies of lines, cut into blocks of whole lines that are decoded at a time. Used for NDJSON and CSV. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import MOST_CELLS

BLOCK_BYTES: Final = 2**20
LONGEST_LINE: Final = 8 * 2**20
"""A line of JSON becomes objects of up to 24 times its size."""

_BOM: Final = b"\xef\xbb\xbf"


def start_of(body: bytes) -> int:
    """Where the text begins: behind the mark that some programs put before UTF-8."""
    return len(_BOM) if body.startswith(_BOM) else 0


def blocks(body: bytes, start: int, table: TableDef, *, quoted: bool = False) -> Iterator[bytes]:
    """Whole lines, about `BLOCK_BYTES` of them, less where they are very many rows of the table.

    Args:
        body: All lines.
        start: Where they begin.
        table: Whose rows they are.
        quoted: Whether line ends inside quotes are text.
    """
    while start < len(body):
        end = _block_end(body, start, len(table.columns))
        if quoted:
            end = _outside_quotes(body, start, end)
        yield body[start:end]
        start = end


def _block_end(body: bytes, start: int, columns: int) -> int:
    size = BLOCK_BYTES
    while True:
        end = body.rfind(b"\n", start, start + size) + 1
        if not end:
            return body.find(b"\n", start + size) + 1 or len(body)
        if body.count(b"\n", start, end) * columns <= MOST_CELLS:
            return end
        size = (end - start) // 2


def _outside_quotes(body: bytes, start: int, end: int) -> int:
    odd = body.count(b'"', start, end) % 2
    while odd and end < len(body) and end - start <= LONGEST_LINE:
        following = body.find(b"\n", end) + 1 or len(body)
        odd ^= body.count(b'"', end, following) % 2
        end = following
    return end
