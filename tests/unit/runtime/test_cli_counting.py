"""Rows of streamed answers, counted from bytes that come in any pieces."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh_runtime.cli.counting import ArrowBatches, Lines, ParquetFooter, Records, Rows
from duckmesh_runtime.web.render import ArrowWriter, CsvWriter, NdjsonWriter, ParquetWriter, Writer

FORMATS: list[tuple[Callable[[pa.Schema, list[str]], Writer], Callable[[], Rows]]] = [
    (NdjsonWriter, Lines),
    (CsvWriter, Records),
    (ArrowWriter, ArrowBatches),
    (ParquetWriter, ParquetFooter),
]
SCHEMA = pa.schema([("n", pa.int64()), ("t", pa.string())])
texts = st.text(alphabet='a"\n\r,é\x00', max_size=5) | st.none()


@pytest.mark.parametrize(("write", "count"), FORMATS, ids=["ndjson", "csv", "arrow", "parquet"])
@given(data=st.data())
def test_rows_are_counted_however_the_bytes_come(
    data: st.DataObject,
    write: Callable[[pa.Schema, list[str]], Writer],
    count: Callable[[], Rows],
) -> None:
    batches = data.draw(st.lists(st.lists(texts, max_size=5), max_size=4))
    writer, rows = write(SCHEMA, ["BIGINT", "VARCHAR"]), count()
    answer = writer.start()
    for values in batches:
        columns = [pa.array(range(len(values)), pa.int64()), pa.array(values, pa.string())]
        answer += writer.batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    answer += writer.end()

    while answer:
        size = data.draw(st.integers(1, 200))
        rows.feed(answer[:size])
        answer = answer[size:]

    assert rows.count() == sum(map(len, batches))


def test_a_footer_that_is_too_large_to_keep_leaves_rows_untold() -> None:
    rows = ParquetFooter()

    rows.feed(b"PAR1 and no footer")

    assert rows.count() is None
