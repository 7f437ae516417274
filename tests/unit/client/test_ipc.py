"""Arrow streams in any cut: batches come as soon as they are there, and a part is never taken for the whole."""

from __future__ import annotations

import pyarrow as pa
import pytest

from duckmesh import Unreachable
from duckmesh.ipc import Decoder

SCHEMA = pa.schema(
    [("n", pa.int64()), ("d", pa.dictionary(pa.int8(), pa.string())), ("l", pa.list_(pa.string()))]
)


def batches() -> list[pa.RecordBatch]:
    made = []
    for number in range(3):
        words = pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None], pa.int8()), [f"a{number}", "b"]
        )
        made.append(pa.record_batch([[number, None, 3], words, [["x"], None, []]], schema=SCHEMA))
    return made


def stream() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("size", [1, 3, 7, 64, 500, 10**6])
def test_batches_come_out_of_any_cut(size: int) -> None:
    decoder, content, found = Decoder(), stream(), []

    for at in range(0, len(content), size):
        found += decoder.feed(content[at : at + size])
    decoder.close()

    assert decoder.schema == SCHEMA
    assert [batch.to_pylist() for batch in found] == [batch.to_pylist() for batch in batches()]


def test_a_batch_comes_with_its_last_byte() -> None:
    decoder, content, came = Decoder(), stream(), []

    for at in range(len(content)):
        came += [at for _ in decoder.feed(content[at : at + 1])]

    assert len(came) == 3
    assert came[0] < len(content) / 2


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_part_is_not_the_whole(kept: int) -> None:
    decoder = Decoder()

    list(decoder.feed(stream()[:kept] if kept else b""))

    with pytest.raises(Unreachable, match="broke off"):
        decoder.close()


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(Unreachable, match="no Arrow stream"):
        list(Decoder().feed(b"<html><body>"))
