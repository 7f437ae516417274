from __future__ import annotations

import string
import struct
from contextlib import suppress

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.domain import wire
from duckmesh_runtime.domain.wire import Kind, WireError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JOBS = st.builds(
    wire.Job,
    sql=st.text(),
    params=st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    catalog_path=st.text(),
    data_url=st.text(),
    row_limit=st.integers(0, 2**53),
    timeout_ms=st.integers(0, 2**31),
)


def split(frame: bytes) -> tuple[Kind, bytes]:
    kind, size = wire.parse_header(frame[: wire.HEADER_BYTES])
    body = frame[wire.HEADER_BYTES :]
    assert len(body) == size
    return kind, body


@given(st.sampled_from(Kind), st.binary(max_size=200))
def test_a_frame_comes_back(kind: Kind, body: bytes) -> None:
    assert split(wire.encode(kind, body)) == (kind, body)


@given(JOBS)
def test_a_job_comes_back(job: wire.Job) -> None:
    kind, body = split(wire.encode_message(Kind.JOB, job))

    assert kind is Kind.JOB
    assert wire.decode(body, wire.Job) == job


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Kind.HEAD, wire.Head(type_names=["BIGINT", "STRUCT(a INTEGER)"])),
        (Kind.END, wire.End(duration_ms=3, rows=7, truncated=True, scanned_files=2)),
        (Kind.ERROR, wire.Failure(code="SQL_ERROR", message="no\nsuch table", doubtful=True)),
    ],
    ids=["head", "end", "error"],
)
def test_other_messages_come_back(kind: Kind, message: wire.Head | wire.End | wire.Failure) -> None:
    found, body = split(wire.encode_message(kind, message))

    assert found is kind
    assert wire.decode(body, type(message)) == message


@given(st.binary(min_size=wire.HEADER_BYTES, max_size=wire.HEADER_BYTES))
def test_any_header_is_read_or_refused(data: bytes) -> None:
    try:
        kind, size = wire.parse_header(data)
    except WireError:
        return

    assert kind in Kind
    assert 0 <= size <= wire.MAX_BODY_BYTES


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for message in (wire.Job, wire.Head, wire.End, wire.Failure):
        with suppress(WireError):
            assert isinstance(wire.decode(body, message), message)
    with pytest.raises(WireError):
        wire.decode_schema(body)
    with pytest.raises(WireError):
        wire.decode_rows(body)


def test_a_body_nested_past_reason_is_refused() -> None:
    with pytest.raises(WireError):
        wire.decode(b'{"params":' + b"[" * 100_000, wire.Job)


def test_a_body_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(WireError, match="too long"):
        wire.encode(Kind.ROWS, b"x" * (wire.MAX_BODY_BYTES + 1))


@settings(deadline=None)  # Arrow loads parts of itself at their first use
@given(
    st.dictionaries(
        st.text(string.ascii_letters, min_size=1),
        st.lists(st.integers(-(2**62), 2**62) | st.none(), min_size=3, max_size=3),
        max_size=4,
    )
)
def test_rows_come_back(columns: dict[str, list[int | None]]) -> None:
    batch = pa.RecordBatch.from_pydict(columns)

    (frame,) = wire.encode_rows(batch)

    kind, body = split(frame)
    assert kind is Kind.ROWS
    assert wire.decode_rows(body).equals(batch)


def test_a_schema_comes_back() -> None:
    schema = pa.schema([("a", pa.int8()), ("b", pa.list_(pa.dictionary(pa.uint8(), pa.string())))])

    kind, body = split(wire.encode_schema(schema))

    assert kind is Kind.SCHEMA
    assert wire.decode_schema(body) == schema


def test_a_batch_brings_its_own_dictionary() -> None:
    batch = pa.record_batch({"e": pa.array(["x", "y", "x"]).dictionary_encode()})

    (frame,) = wire.encode_rows(batch)

    assert wire.decode_rows(split(frame)[1]).to_pydict() == {"e": ["x", "y", "x"]}


def test_a_large_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 4_000)
    monkeypatch.setattr(wire, "_ARROW_BYTES", 1_000)
    batch = pa.record_batch({"t": [str(n) * 700 for n in range(9)]})

    frames = wire.encode_rows(batch)

    assert len(frames) > 1
    parts = [wire.decode_rows(split(frame)[1]) for frame in frames]
    assert pa.Table.from_batches(parts).to_pydict() == batch.to_pydict()


def test_a_row_that_fits_no_frame_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 4_000)

    with pytest.raises(WireError, match="row"):
        wire.encode_rows(pa.record_batch({"t": ["x", "y" * 5_000]}))


def test_a_batch_that_points_beyond_itself_is_refused() -> None:
    (frame,) = wire.encode_rows(pa.record_batch({"t": ["abcdefgh"]}))
    body = split(frame)[1]
    offsets = body.rindex(struct.pack("<ii", 0, 8))
    forged = body[:offsets] + struct.pack("<ii", 0, 4_000) + body[offsets + 8 :]

    with pytest.raises(WireError):
        wire.decode_rows(forged)


def unpacked(batch: pa.RecordBatch, codec: str | None) -> bytes:
    """A body that is smaller than what is in it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)
    ) as out:
        out.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("column", "codec"),
    [
        (pa.array(["\0" * 2**20]), "zstd"),
        (pa.array(["\0" * 2**20]), "lz4"),
        (pa.array(["\0" * 2**20]).dictionary_encode(), "zstd"),
        (pa.nulls(10**9), None),
    ],
    ids=["zstd", "lz4", "dictionary", "nulls"],
)
def test_a_batch_that_grows_when_it_is_unpacked_is_refused(
    column: pa.Array, codec: str | None
) -> None:
    body = unpacked(pa.record_batch({"t": column}), codec)
    assert len(body) < 20_000

    with pytest.raises(WireError, match="too long" if codec is None else "compressed"):
        wire.decode_rows(body)


@pytest.mark.parametrize(
    "value",
    [f"{2**127 - 1}::HUGEINT", f"{1 - 2**127}::HUGEINT", "'24:00:00'::TIME", "'infinity'::DATE"],
)
def test_every_value_of_duckdb_passes_at_any_depth(value: str) -> None:
    nested = f"[{value}], {{'a': {value}}}, MAP {{1: {value}}}, array_value({value}), union_value(k := {value})"
    with duckdb.connect() as connection:
        batch = connection.execute(f"SELECT {value}, {nested}").to_arrow_reader(1).read_next_batch()

    (frame,) = wire.encode_rows(batch)

    assert wire.decode_rows(split(frame)[1]).equals(batch)
