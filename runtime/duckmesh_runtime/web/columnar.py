"""What result columns become in Arrow and Parquet answers, where those cannot say DuckDB's type. Used by `render`; no I/O.

Nothing is rounded, cut or taken for something else: what a format cannot keep is the statement's error, which names the
cast. BIT becomes the text of its digits; INTERVAL, which Parquet's writer does not know, ISO 8601 text there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from duckmesh_runtime.domain.result_types import ResultType, parse_result_type
from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.web.json_values import bits, duration

_LOSING: Final = frozenset({"TIME WITH TIME ZONE", "BIGNUM"})
"""Arrow, which brings all results, has no such type: the offset or the meaning of the bytes is lost."""

_INTEGERS: Final = frozenset({"HUGEINT", "UHUGEINT"})  # they come as DECIMAL(38,0)
_TIMES: Final = frozenset({"TIME", "TIME_NS"})
_LARGEST: Final = 10**38 - 1
_DAY: Final = {"us": 86_400 * 10**6, "ns": 86_400 * 10**9}

_Convert = Callable[[Any], str]


def check_sayable(schema: pa.Schema, type_names: Sequence[str]) -> None:
    """Refuse a result that has a type which no answer format keeps.

    Raises:
        Invalid: SQL_ERROR.
    """
    for column, type_name in zip(schema.names, type_names, strict=True):
        for lost in _LOSING & parse_result_type(type_name).names():
            raise _refused(column, lost, "answers")


class Columnar:
    """The columns of one result as an Arrow or Parquet answer has them.

    Args:
        schema: Of the result.
        type_names: DuckDB's, in order.
        parquet: Whether they are for Parquet.

    Raises:
        Invalid: SQL_ERROR: a column cannot be kept in this format.
    """

    def __init__(
        self, schema: pa.Schema, type_names: Sequence[str], *, parquet: bool = False
    ) -> None:
        self._format = "Parquet" if parquet else "Arrow"
        self._shapes = [parse_result_type(name) for name in type_names]
        converts: dict[str, _Convert] = {"BIT": bits}
        if parquet:
            converts["INTERVAL"] = duration
        self._converts = [converts.get(shape.name) for shape in self._shapes]
        fields = []
        for field, shape, convert in zip(schema, self._shapes, self._converts, strict=True):
            unknown = set(converts) | ({"UNION"} if parquet else set())
            if convert is None and (lost := unknown & shape.names()):
                raise _refused(field.name, min(lost), self._format)
            fields.append(field if convert is None else pa.field(field.name, pa.string()))
        self.schema = pa.schema(fields)

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch in `schema`.

        Raises:
            Invalid: SQL_ERROR: a value does not fit.
        """
        columns = zip(self.schema.names, batch.columns, self._shapes, self._converts, strict=True)
        made = []
        for name, column, shape, convert in columns:
            if shape.names() & (_INTEGERS | _TIMES):
                for leaf, leaf_name in _leaves(column, shape):
                    if not _fits(leaf, leaf_name):
                        raise _refused(name, f"{leaf_name} of this size", self._format)
            made.append(column if convert is None else _text(column, convert))
        return pa.RecordBatch.from_arrays(made, schema=self.schema)


def _text(column: pa.Array, convert: _Convert) -> pa.Array:
    values = column.to_pylist()
    return pa.array([None if v is None else convert(v) for v in values], pa.string())


def _leaves(array: pa.Array, shape: ResultType) -> Iterator[tuple[pa.Array, str]]:
    """The values of all levels with the name of their type."""
    kind = array.type
    if pa.types.is_map(kind):
        array = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        shape = ResultType(name="LIST", inner=(ResultType(name="STRUCT", inner=shape.inner),))
        kind = array.type
    if pa.types.is_struct(kind):
        parts = array.flatten()
    elif pa.types.is_union(kind):
        parts = [array.field(i) for i in range(kind.num_fields)]
    elif pa.types.is_nested(kind):
        parts = [array.flatten()]
    else:
        yield array, shape.name
        return
    for part, inner in zip(parts, shape.parts(len(parts)), strict=True):
        yield from _leaves(part, inner)


def _fits(leaf: pa.Array, name: str) -> bool:
    """Whether Arrow says the same as DuckDB."""
    if name not in _INTEGERS | _TIMES:
        return True
    as_time = name in _TIMES
    ends = pc.min_max(pc.cast(leaf, pa.int64()) if as_time else leaf).as_py()
    if ends["min"] is None:
        return True
    if as_time:
        return bool(ends["max"] < _DAY[leaf.type.unit])  # DuckDB has 24:00:00
    least = 0 if name == "UHUGEINT" else -_LARGEST  # a larger one comes as a negative number
    return bool(least <= ends["min"] and ends["max"] <= _LARGEST)


def _refused(column: str, what: str, where: str) -> Invalid:
    return Invalid(
        "SQL_ERROR",
        f"column {column[:64]!r} of the result holds a {what}, which {where} cannot keep: cast it to VARCHAR",
    )
