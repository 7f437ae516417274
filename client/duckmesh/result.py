"""The answer to a query, in the shape that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import httpx
import msgspec

from duckmesh.errors import CutWarning
from duckmesh.extras import need_pandas, need_polars, need_pyarrow
from duckmesh.values import python_rows

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

__all__ = ["Result", "Seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an answer saw.

    Attributes:
        snapshot_id: Of the snapshot that was read; with it as `snapshot_id=` the same is read again.
        snapshot_time: When it was committed.
        watermark: Every row up to this visibility token is in it.
        lag_ms: Age of the oldest accepted row that it lacks; 0 when it has all.
        row_limit: Most rows that the answer could have.
    """

    snapshot_id: int
    snapshot_time: datetime
    watermark: str
    lag_ms: int
    row_limit: int

    @property
    def token(self) -> str:
        """The watermark, under the name by which `at_least=` takes it."""
        return self.watermark


class Result:
    """A whole answer.

    Attributes:
        seen: What it saw; `snapshot_id`, `snapshot_time`, `watermark`, `lag_ms` and `token` are there directly too.
        truncated: It has as many rows as the row limit, so there may be more.
    """

    def __init__(
        self,
        seen: Seen,
        *,
        table: pyarrow.Table | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.seen = seen
        self._table = table
        self._rows = rows
        self.truncated = len(self) >= seen.row_limit

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows) if self._table is None else int(self._table.num_rows)

    def __repr__(self) -> str:
        return f"<Result of {len(self)} rows at snapshot {self.snapshot_id}>"

    @property
    def snapshot_id(self) -> int:
        """Of the snapshot that was read."""
        return self.seen.snapshot_id

    @property
    def snapshot_time(self) -> datetime:
        """When it was committed."""
        return self.seen.snapshot_time

    @property
    def watermark(self) -> str:
        """Every row up to this visibility token is in the answer's snapshot."""
        return self.seen.watermark

    @property
    def token(self) -> str:
        """The same; `at_least=result` asks for what this answer saw, or later."""
        return self.seen.watermark

    @property
    def lag_ms(self) -> int:
        """Age of the oldest accepted row that the snapshot lacks."""
        return self.seen.lag_ms

    def rows(self) -> list[dict[str, Any]]:
        """A dict a row: int, float, Decimal, str, bytes, datetime, date, time, list, dict; None for NULL."""
        if self._table is None:
            return [dict(row) for row in self._rows]
        found: list[dict[str, Any]] = self._table.to_pylist(maps_as_pydicts="strict")
        return found

    def scalar(self) -> Any:
        """The one value of an answer of one row and one column.

        Raises:
            ValueError: It has another shape.
        """
        rows = self.rows()
        if len(rows) != 1 or len(rows[0]) != 1:
            raise ValueError("the answer is not one value: use rows()")
        return next(iter(rows[0].values()))

    def arrow(self) -> pyarrow.Table:
        """The answer as it came, without a copy.

        Raises:
            ImportError: pyarrow is not installed.
        """
        if self._table is None:
            need_pyarrow()
            raise RuntimeError("pyarrow was installed after this answer came: run the query again")
        return self._table

    def pandas(self, *, dtype_backend: Literal["pyarrow", "numpy"] = "pyarrow") -> pandas.DataFrame:
        """The answer as a data frame.

        Args:
            dtype_backend: `pyarrow` keeps every type: whole numbers with NULLs, decimals, zones, lists, structs.
                `numpy` is what pandas makes of it by itself: a NULL turns whole numbers into floats.

        Raises:
            ImportError: pandas or pyarrow is not installed.
        """
        mapper = need_pandas().ArrowDtype if dtype_backend == "pyarrow" else None
        return self.arrow().to_pandas(types_mapper=mapper)

    def polars(self) -> polars.DataFrame:
        """The answer as a data frame.

        Raises:
            ImportError: polars or pyarrow is not installed.
        """
        found: polars.DataFrame = need_polars().from_arrow(self.arrow())
        return found


def warn_if_cut(rows: int, seen: Seen, asked: int | None) -> None:
    """Say that an answer may not be the whole one, unless the caller set the limit himself."""
    if asked is None and rows >= seen.row_limit:
        warnings.warn(
            f"the answer has {rows:,} rows, which is the limit: there may be more; page through them, aggregate, or "
            "pass row_limit= to say that this is enough",
            CutWarning,
            stacklevel=3,
        )


def seen_by(response: httpx.Response) -> Seen:
    """What the headers of a streamed answer say."""
    head = response.headers
    return Seen(
        snapshot_id=int(head["X-Duckmesh-Snapshot-Id"]),
        snapshot_time=datetime.fromisoformat(head["X-Duckmesh-Snapshot-Time"]),
        watermark=head["X-Duckmesh-Watermark"],
        lag_ms=int(head["X-Duckmesh-Lag-Ms"]),
        row_limit=int(head["X-Duckmesh-Row-Limit"]),
    )


def of_arrow(response: httpx.Response) -> Result:
    """A result out of a whole Arrow stream."""
    pa = need_pyarrow()
    with pa.ipc.open_stream(pa.py_buffer(response.content)) as reader:
        return Result(seen_by(response), table=reader.read_all())


def of_json(response: httpx.Response) -> Result:
    """A result out of a JSON answer, for those without pyarrow."""
    said = msgspec.json.decode(response.content)
    rows = python_rows(said["columns"], said["rows"])
    limit = len(rows) if said["truncated"] else len(rows) + 1
    return Result(
        Seen(
            snapshot_id=said["snapshot_id"],
            snapshot_time=datetime.fromisoformat(said["snapshot_time"]),
            watermark=said["max_visibility_token"],
            lag_ms=said["lag_ms"],
            row_limit=limit,
        ),
        rows=rows,
    )
