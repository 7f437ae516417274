"""Parquet bodies: a whole file to batches of the table's rows. Pure.

The file comes from outside. Before it is read its page headers tell what it would unfold to; texts that are written as a
dictionary stay one until their unfolded size is counted; rows are read a block at a time and checked before they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from duckmesh_runtime.domain.casts import add_rows, check_columns
from duckmesh_runtime.domain.parquet_pages import (
    DELTA_BYTE_ARRAY,
    BrokenFile,
    Page,
    column_chunks,
    pages,
)
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.domain.sift import Harvest, Op, is_read, rows_at_once, too_large
from duckmesh_runtime.errors import Invalid

_MOST_PAGES: Final = 100_000  # a header takes about 10 us; pages are usually of some 100 kB


def read_parquet(table: TableDef, body: bytes, op: Op, harvest: Harvest) -> None:
    """Decode a file into `harvest`.

    Raises:
        Invalid: VALIDATION_FAILED for a file that cannot be read, PAYLOAD_TOO_LARGE.
        Conflict: SCHEMA_INCOMPATIBLE naming the column that does not fit.
    """
    with _readable(body):
        file = pq.ParquetFile(pa.BufferReader(body))
        check_columns(table, file.schema_arrow, op)
        harvest.expect(file.metadata.num_rows)
        wanted = {column.name for column in table.columns if is_read(table, column, op)}
        leaves = [
            leaf
            for leaf in range(file.metadata.num_columns)
            if file.schema.column(leaf).path.split(".")[0] in wanted
        ]
        folded = _check_pages(body, file, leaves, harvest.room_bytes)
        file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=folded)
        names = [name for name in file.schema_arrow.names if name in wanted]
        came = 0
        for group in range(file.num_row_groups):
            rows = file.iter_batches(rows_at_once(table), [group], names, use_threads=False)
            for batch in rows:
                batch.validate(full=True)
                add_rows(table, batch, op, harvest)
                came += len(batch)
        if came != file.metadata.num_rows:
            raise BrokenFile  # a column that ends early ends the reading without an error


@contextmanager
def _readable(body: bytes) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, BrokenFile, UnicodeDecodeError, OverflowError) as error:
        encrypted = b"PARE" in (body[:4], body[-4:]) or "ncrypt" in str(error)
        raise Invalid(
            "VALIDATION_FAILED",
            "body: is an encrypted Parquet file: send it plain"
            if encrypted
            else "body: is not a complete Parquet file that can be read",
        ) from error


def _check_pages(
    body: bytes, file: pq.ParquetFile, leaves: Sequence[int], room_bytes: int
) -> Sequence[str]:
    """Bound what the columns unfold to; returns the paths of those with dictionaries of texts.

    Raises:
        Invalid: PAYLOAD_TOO_LARGE, or VALIDATION_FAILED for an encoding that cannot be bounded.
        BrokenFile: The file is broken.
    """
    folded: set[str] = set()
    seen = 0
    for chunks in column_chunks(body):
        if len(chunks) != file.metadata.num_columns:
            raise BrokenFile
        for leaf in leaves:
            schema = file.schema.column(leaf)
            for page in pages(body, *chunks[leaf]):
                seen += 1
                room_bytes -= max(page.size_bytes, 0 if page.dictionary else _least(page, schema))
                if seen > _MOST_PAGES or room_bytes < 0:
                    raise too_large("more pages or bytes than the limit when unfolded")
                _check_encoding(page, schema.path)
                if page.dictionary and schema.physical_type == "BYTE_ARRAY":
                    folded.add(schema.path)
    return sorted(folded)


def _least(page: Page, schema: pq.ColumnSchema) -> int:
    """Bytes that the values of a data page take at least, however short they are written."""
    if schema.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return page.values * int(schema.length)
    # Within lists any number of NULLs is one row: with their levels they take this.
    return page.values * 8 if schema.max_repetition_level else 0


def _check_encoding(page: Page, path: str) -> None:
    if page.encoding == DELTA_BYTE_ARRAY:
        raise Invalid(
            "VALIDATION_FAILED",
            f"{path[:64]}: the encoding DELTA_BYTE_ARRAY is not taken: write the file with PLAIN or dictionary encoding",
        )
