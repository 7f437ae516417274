"""Data files as Arrow: CSV, NDJSON, Parquet and Arrow, read in pieces of bounded size; used by `duckmesh ingest`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from duckmesh_runtime.domain.columns import SCALARS

_FORMATS: Final = {
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
FORMATS: Final = tuple(dict.fromkeys(_FORMATS.values()))
_COMPRESSED: Final = (".gz", ".zst", ".bz2")
_STEP: Final = 2**20
_BLOCK: Final = (
    8 * 2**20
)  # of a text file; decides where batches end, so a change would change chunks
_INFER_WHOLE: Final = (
    256 * 2**20
)  # text files up to this size are read once to find the types of all rows
PIECE_ROWS: Final = 50_000
PIECE_BYTES: Final = 16 * 2**20


class BadFile(Exception):
    """The file cannot be read, or its columns cannot be a table's; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file to send.

    Attributes:
        path: Where it is.
        format: One of `FORMATS`.
        nulls: Texts that mean NULL in a CSV file.
    """

    path: Path
    format: str
    nulls: Sequence[str] = ("",)

    @property
    def is_sent_as_it_is(self) -> bool:
        """Whether the API reads its text just as it is."""
        return self.format == "ndjson" or (self.format == "csv" and tuple(self.nulls) == ("",))

    def fingerprint(self) -> str:
        """Digest of its content: the same file has the same, wherever it lies."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(_STEP):
                digest.update(block)
        return digest.hexdigest()[:32]

    def schema(self) -> pa.Schema:
        """Columns and types, for a text file as its content suggests them."""
        with readable(self):
            if self.format == "parquet":
                return pq.read_schema(self.path)
            if self.format == "arrow":
                return _open_arrow(self.path).schema
            return self._inferred()

    def rows(self) -> int | None:
        """How many, when the format says so."""
        if self.format != "parquet":
            return None
        with readable(self):
            return int(pq.read_metadata(self.path).num_rows)

    def pieces(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows in the shape of `schema`, in pieces whose cut depends on the content only.

        Columns that the file lacks are NULL; columns that the schema lacks are refused.
        """
        with readable(self):
            for table in _regroup(self._batches(schema)):
                yield from _halved(fit(table, schema))

    def _inferred(self) -> pa.Schema:
        whole = self.path.stat().st_size <= _INFER_WHOLE and not _is_compressed(self.path)
        if self.format == "csv":
            options = self._csv_options(None)
            if whole:
                return pa.csv.read_csv(self.path, convert_options=options).schema
            with pa.csv.open_csv(self.path, convert_options=options) as reader:
                return reader.schema
        read = pa.json.ReadOptions(block_size=_BLOCK)
        if whole:
            return pa.json.read_json(self.path, read_options=read).schema
        with pa.json.open_json(self.path, read_options=read) as reader:
            return reader.schema

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        if self.format == "parquet":
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(PIECE_ROWS)
        elif self.format == "arrow":
            yield from _arrow_batches(self.path)
        elif self.format == "csv":
            read = pa.csv.ReadOptions(block_size=_BLOCK)
            with pa.csv.open_csv(
                self.path, read_options=read, convert_options=self._csv_options(schema)
            ) as reader:
                yield from reader
        else:
            parse = pa.json.ParseOptions(
                explicit_schema=pa.schema([(f.name, _read_as(f.type)) for f in schema])
            )
            with pa.json.open_json(
                self.path, read_options=pa.json.ReadOptions(block_size=_BLOCK), parse_options=parse
            ) as reader:
                yield from reader

    def _csv_options(self, schema: pa.Schema | None) -> pa.csv.ConvertOptions:
        types = None if schema is None else {f.name: _read_as(f.type) for f in schema}
        return pa.csv.ConvertOptions(
            column_types=types,
            null_values=list(self.nulls),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )


def open_file(path: Path, file_format: str | None, nulls: Sequence[str]) -> DataFile:
    """Find out a file's format by its name.

    Raises:
        BadFile: It is not there, or of no known format.
    """
    if not path.is_file():
        raise BadFile(f"{path}: is no file")
    known = file_format or format_of(path)
    if known is None:
        raise BadFile(f"{path.name}: unknown format; pass --format {'|'.join(FORMATS)}")
    return DataFile(path=path, format=known, nulls=tuple(nulls))


def format_of(path: Path) -> str | None:
    """The format that a file's name tells."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _COMPRESSED]
    return _FORMATS.get(suffixes[-1] if suffixes else "")


def table_definition(name: str, schema: pa.Schema) -> dict[str, object]:
    """A table that takes rows of this schema, as `POST /v1/tables` wants it.

    Raises:
        BadFile: A column has a name or type that no table can have.
    """
    columns = [{"name": f.name, "type": type_name(f.type, f.name)} for f in schema]
    return {"name": name, "columns": columns}


def table_name(path: Path) -> str:
    """A table name out of a file name."""
    stem = path.name.split(".")[0].lower()
    name = re.sub(r"[^a-z0-9_]+", "_", stem).strip("_")
    return name[:63] if name[:1].isalpha() else f"t_{name}"[:63]


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the columns, order and types of `schema`.

    Raises:
        BadFile: A column is unknown, or a value does not fit its type.
    """
    if unknown := [name for name in table.column_names if name not in schema.names]:
        raise BadFile(f"column {unknown[0]!r}: the table has no such column")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(_cast(table.column(field.name), field.type))
        except pa.ArrowException as error:
            raise BadFile(
                f"column {field.name!r}: does not fit {field.type}: {str(error)[:200]}"
            ) from error
    return pa.table(columns, schema=pa.schema([f.with_nullable(True) for f in schema]))


def type_name(kind: pa.DataType, column: str) -> str:
    """The DuckDB type that keeps an Arrow type's values.

    Raises:
        BadFile: There is none.
    """
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return type_name(kind.value_type, column)
    if types.is_timestamp(kind):
        if kind.tz is not None:
            return "TIMESTAMP WITH TIME ZONE"
        return "TIMESTAMP_NS" if kind.unit == "ns" else "TIMESTAMP"
    if types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    if types.is_map(kind):
        return f"MAP(VARCHAR, {type_name(kind.item_type, column)})"
    if types.is_struct(kind):
        inside = ", ".join(f'"{f.name}" {type_name(f.type, column)}' for f in kind)
        return f"STRUCT({inside})"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"{type_name(kind.value_type, column)}[]"
    if (found := _PLAIN.get(_canonical(kind))) is not None:
        return found
    raise BadFile(f"column {column!r}: no column type keeps {kind}; convert it first")


_PLAIN: Final = {
    kind.arrow: kind.name
    for kind in SCALARS.values()
    if kind.name not in ("UUID", "JSON") and not kind.name.startswith("TIMESTAMP")
}


def _canonical(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    if (
        types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return pa.binary()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_date(kind):
        return pa.date32()
    return pa.time64("us") if types.is_time(kind) else kind


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_timestamp(kind) and kind.tz and pa.types.is_string(column.type):
        try:
            return pc.cast(column, kind)
        except pa.ArrowInvalid:  # without offsets: taken as UTC
            return pc.cast(pc.cast(column, pa.timestamp(kind.unit)), kind)
    return column.cast(kind)


def _read_as(kind: pa.DataType) -> pa.DataType:
    """The type a text reader can produce on the way to `kind`."""
    return pa.string() if pa.types.is_timestamp(kind) and kind.tz else kind


def _regroup(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of `PIECE_ROWS` rows, the last one smaller."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= PIECE_ROWS:
            table = pa.Table.from_batches(held)
            yield table.slice(0, PIECE_ROWS)
            held = table.slice(PIECE_ROWS).to_batches()
            count -= PIECE_ROWS
    if count:
        yield pa.Table.from_batches(held)


def _halved(table: pa.Table) -> Iterator[pa.Table]:
    if table.nbytes <= PIECE_BYTES or table.num_rows < 2:
        yield table
        return
    middle = table.num_rows // 2
    yield from _halved(table.slice(0, middle))
    yield from _halved(table.slice(middle))


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _COMPRESSED


def _open_arrow(path: Path) -> Any:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with _open_arrow(path) as reader:
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
        else:
            yield from reader


class readable:
    """Reading errors of pyarrow and the system as `BadFile`; used like a statement, hence the name."""

    def __init__(self, file: DataFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise BadFile(
                f"{self._file.path.name}: cannot be read as {self._file.format}: {str(error)[:300]}"
            ) from error
