"""Other engines' way to a snapshot: its rows from `GET /v1/snapshots/{id}/files` and the Parquet alone, by the rules of
docs/http-api.md. Nothing here knows DuckLake or a catalog.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain.lakesql import quote_name, quote_text
from duckmesh_runtime.domain.typenames import parse_type
from duckmesh_runtime.settings import StoreSettings, read_secret

Json = Mapping[str, Any]
SNAPSHOT_OF_ROW: Final = "_ducklake_internal_snapshot_id"


def columns_of(listing: Json, table: str) -> Sequence[Json]:
    """The columns of a table in a listing."""
    (found,) = [each["columns"] for each in listing["tables"] if each["name"] == table]
    return list(found)


def files_of(listing: Json, table: str) -> Sequence[Json]:
    """The files of a table in a listing."""
    return [each for each in listing["files"] if each["table"] == table]


def _none(columns: Sequence[Json]) -> pa.Table:
    return pa.schema(
        [(each["name"], parse_type(each["type"]).arrow) for each in columns]
    ).empty_table()


def _names(file: Json) -> dict[int, str] | None:
    """What a file without field ids calls the fields; None for one with."""
    if file["field_names"] is None:
        return None
    found: dict[int, str] = {}
    level = list(file["field_names"])
    while level:
        found |= {each["field_id"]: each["name"] for each in level}
        level = [inner for each in level for inner in each["fields"]]
    return found


class PlainDuckDB:
    """A DuckDB that has only the extension to read S3."""

    def __init__(self, store: StoreSettings) -> None:
        self._connection = duckdb_engine.connect(extensions=("httpfs",), threads=1)
        duckdb_engine.use_store(self._connection, store)

    def __enter__(self) -> PlainDuckDB:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, listing: Json, table: str) -> pa.Table:
        """The table's rows."""
        columns = columns_of(listing, table)
        parts = [self._select(columns, file) for file in files_of(listing, table)]
        if not parts:
            return _none(columns)
        return self._connection.execute(" UNION ALL ".join(parts)).to_arrow_table()

    def _select(self, columns: Sequence[Json], file: Json) -> str:
        names = _names(file) or self._field_ids(file["url"])
        wanted = ", ".join(f"{_expression(c, names)} AS {quote_name(c['name'])}" for c in columns)
        return f"SELECT {wanted} FROM {self._source(file)}"

    def _source(self, file: Json) -> str:
        """The rows of a file that count."""
        text = f"(SELECT * FROM {_scan(file)}{_upto(file)})"
        for deletes in file["delete_files"]:
            gone = f"(SELECT pos FROM {_scan(deletes)}{_upto(deletes)})"
            text = f"(FROM {text} AS f ANTI JOIN {gone} AS d ON f.file_row_number = d.pos)"
        return text

    def _field_ids(self, url: str) -> dict[int, str]:
        rows = self._connection.execute(
            "SELECT field_id, name FROM parquet_schema($1) WHERE field_id IS NOT NULL", [url]
        )
        return dict(rows.fetchall())


def _expression(column: Json, names: Mapping[int, str]) -> str:
    if column["field_id"] in names:
        source = quote_name(names[column["field_id"]])
    elif column["initial_default"] is not None:
        source = quote_text(column["initial_default"])
    else:
        source = "NULL"
    return f"CAST({source} AS {column['type']})"


def _scan(file: Json) -> str:
    return f"read_parquet({quote_text(file['url'])}, hive_partitioning = false, file_row_number = true)"


def _upto(file: Json) -> str:
    upto = file["upto_snapshot_id"]
    return "" if upto is None else f" WHERE {SNAPSHOT_OF_ROW} <= {upto}"


class PlainArrow:
    """pyarrow alone."""

    def __init__(self, store: StoreSettings) -> None:
        self._scheme = "file://"
        self._files: pa.fs.FileSystem = pa.fs.LocalFileSystem()
        if store.secret_dir is not None:
            scheme, _, endpoint = store.endpoint.partition("://")
            self._scheme = "s3://"
            self._files = pa.fs.S3FileSystem(
                access_key=read_secret(store.secret_dir, "access-key-id"),
                secret_key=read_secret(store.secret_dir, "secret-access-key"),
                endpoint_override=endpoint,
                scheme=scheme,
                region=store.region,
            )

    def rows(self, listing: Json, table: str) -> pa.Table:
        """The table's rows."""
        columns = columns_of(listing, table)
        parts = [self._rows(columns, file) for file in files_of(listing, table)]
        return pa.concat_tables([_none(columns), *parts])

    def _rows(self, columns: Sequence[Json], file: Json) -> pa.Table:
        whole = self._read(file)
        counts = _counting(whole, file)
        for deletes in file["delete_files"]:
            named = self._read(deletes)
            gone = named.filter(_counting(named, deletes))["pos"]
            places = pa.array(range(whole.num_rows), pa.int64())
            counts = pc.and_(counts, pc.invert(pc.is_in(places, value_set=gone.combine_chunks())))
        names = _names(file)
        arrays = [
            _array(column, whole.schema, whole.columns, whole.num_rows, names) for column in columns
        ]
        return pa.table(arrays, names=[column["name"] for column in columns]).filter(counts)

    def _read(self, file: Json) -> pa.Table:
        path = file["url"].removeprefix(self._scheme)
        with self._files.open_input_file(path) as source, pq.ParquetFile(source) as parquet:
            return parquet.read()


def _counting(rows: pa.Table, file: Json) -> pa.Array:
    """Which rows of a file count as far as its own snapshots go."""
    if file["upto_snapshot_id"] is None:
        return pa.array([True] * rows.num_rows, pa.bool_())
    upto: pa.Array = pc.less_equal(rows[SNAPSHOT_OF_ROW], file["upto_snapshot_id"])
    return upto


def _array(
    column: Json,
    fields: Sequence[pa.Field],
    arrays: Sequence[pa.Array],
    length: int,
    names: Mapping[int, str] | None,
) -> pa.Array:
    """One column of the table, out of those of a file (or of a struct in it)."""
    kind = parse_type(column["type"]).arrow
    for field, array in zip(fields, arrays, strict=True):
        if _is_field(field, column["field_id"], names):
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            return _struct(column, array, names) if pa.types.is_struct(kind) else array.cast(kind)
    return pa.repeat(_default(column["initial_default"], kind), length)


def _is_field(field: pa.Field, field_id: int, names: Mapping[int, str] | None) -> bool:
    if names is not None:
        return bool(names.get(field_id) == field.name)
    found = (field.metadata or {}).get(b"PARQUET:field_id")
    return found is not None and int(found) == field_id


def _struct(column: Json, array: pa.StructArray, names: Mapping[int, str] | None) -> pa.Array:
    inner = [
        _array(each, list(array.type), array.flatten(), len(array), names)
        for each in column["fields"]
    ]
    return pa.StructArray.from_arrays(
        inner, [each["name"] for each in column["fields"]], mask=array.is_null()
    )


def _default(text: str | None, kind: pa.DataType) -> pa.Scalar:
    if text is None:
        return pa.scalar(None, kind)
    if pa.types.is_binary(kind):
        return pa.scalar(bytes.fromhex(text.replace("\\x", "")), kind)
    return pa.scalar(text).cast(kind)
