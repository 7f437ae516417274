"""The synchronous client. What its calls do stands in `api`; here they are run one step after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import httpx

from duckmesh import api
from duckmesh.access import access
from duckmesh.answers import (
    DeadLetter,
    Lag,
    Receipt,
    Replay,
    Restored,
    Snapshot,
    Table,
    TableVersion,
    Visible,
)
from duckmesh.api import AtLeast, Columns
from duckmesh.bodies import Rows
from duckmesh.errors import unreachable
from duckmesh.ipc import Decoder
from duckmesh.result import Result, Seen, seen_by, warn_if_cut
from duckmesh.steps import BrokenOff, Patience, Pause, Send, Step, Steps

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Batches", "Client", "DeadLetters", "Snapshots", "Tables"]

T = TypeVar("T")
Op = Literal["insert", "upsert", "delete"]


class Client:
    """A lake, seen from Python. Threads may share one; close it, or use it as a context manager.

    Args:
        url: Base URL of the lake's API; default: the environment's DUCKMESH_URL.
        api_key: `dmk_...`; default: the environment's DUCKMESH_API_KEY.
        retry_s: Longest time, in seconds, to repeat a call that was refused for now or whose answer was lost. Only calls
            that do no more when they are repeated are; those that add rows carry an idempotency key. 0: never.
        answer_timeout_s: Longest silence of the service before a call counts as lost, in seconds.
        connect_timeout_s: Longest wait for a connection, in seconds.
        transport: Of httpx, for proxies, client certificates or tests.

    Raises:
        Invalid: No URL or key is known.

    Example:
        >>> from duckmesh import Client
        >>> client = Client("http://127.0.0.1:8080", "dmk_...")
        >>> receipt = client.ingest("events", [{"id": 1, "kind": "click"}])
        >>> client.query("SELECT count(*) FROM events", at_least=receipt).scalar()
        1
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry_s: float = 60.0,
        answer_timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience = Patience(
            retry_s=retry_s,
            answer_timeout_s=answer_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._access = access(url, api_key, self._patience)
        self._http = httpx.Client(**self._access.http(), transport=transport)
        self.tables = Tables(self)
        self.snapshots = Snapshots(self)
        self.dead_letters = DeadLetters(self)

    def __repr__(self) -> str:
        return f"<duckmesh.Client of {self._access.url}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def ingest(
        self,
        table: str,
        data: Rows,
        *,
        op: Op | None = None,
        atomic: bool = False,
        wait: bool = False,
        wait_timeout_s: float = 30.0,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Add rows; when this returns they are durable.

        Large data goes in pieces, each with an idempotency key made of the call's. So what is sent again, by this call
        or by one with the same key and rows, is written once.

        Args:
            table: Where to.
            data: Dicts (any iterable of them), a table or record batch reader of pyarrow, a data frame of pandas or
                polars, or anything else that gives an Arrow stream. Columns go by name.
            op: What the rows do; default `upsert` where there is a primary key, else `insert`.
            atomic: One bad row refuses all. The data must fit into one request (48 MiB).
            wait: Return when queries see the rows.
            wait_timeout_s: Longest wait for that, in seconds.
            idempotency_key: Of the call, for a repeat after a crash; remembered for 7 days.

        Returns:
            What became of the rows. Refused ones are named in `rejected`, the others are accepted all the same.

        Raises:
            Invalid: The data, or every row of it; nothing was written unless `error.receipt` tells so.
            Conflict: The table does not fit, or the key was used with other rows.
            NotVisible: `wait_timeout_s` is over. All rows are accepted; `error.receipt` is the receipt.
            DuckmeshError: Any other refusal; with `error.receipt.idempotency_key` the call can go on.
        """
        how = api.Ingest(
            op=op,
            atomic=atomic,
            wait=wait,
            wait_timeout_s=wait_timeout_s,
            idempotency_key=idempotency_key,
        )
        return self._run(api.ingest(table, data, how, self._patience))

    def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        at_least: AtLeast | None = None,
        wait_timeout_s: float = 5.0,
        max_staleness_s: float | None = None,
        snapshot_id: int | None = None,
        snapshot_time: datetime | None = None,
        row_limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Run one SELECT and take its whole answer.

        Args:
            sql: The statement, with `$1`, `$2` for values.
            params: The values.
            at_least: A receipt, result or token: the answer sees all up to it.
            wait_timeout_s: Longest wait for that, in seconds (60 at most).
            max_staleness_s: Refuse to answer from a lake that lags more, in seconds.
            snapshot_id: Read this snapshot.
            snapshot_time: Read the newest snapshot of this time; a time with its zone.
            row_limit: Most rows; it only lowers the tenant's.
            timeout_s: Longest run of the statement, in seconds; it only lowers the tenant's.

        Raises:
            Invalid: The statement; `context` has `line` and `column`.
            NotVisible: `wait_timeout_s` is over, or the lake lags more than `max_staleness_s`.
            NotFound: There is no such snapshot any more.
            Failed: The statement took too much time or memory.
        """
        asked = api.Query(
            sql=sql,
            params=params,
            at_least=at_least,
            wait_timeout_s=wait_timeout_s,
            max_staleness_s=max_staleness_s,
            snapshot_id=snapshot_id,
            snapshot_time=snapshot_time,
            row_limit=row_limit,
            timeout_s=timeout_s,
        )
        result = self._run(api.query(asked, self._patience))
        warn_if_cut(len(result), result.seen, row_limit)
        return result

    def stream(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        at_least: AtLeast | None = None,
        wait_timeout_s: float = 5.0,
        max_staleness_s: float | None = None,
        snapshot_id: int | None = None,
        snapshot_time: datetime | None = None,
        row_limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Batches:
        """Run one SELECT and take its answer batch by batch, in little memory; arguments as of `query`.

        Example:
            >>> with client.stream("SELECT * FROM events") as batches:
            ...     for batch in batches:
            ...         print(batch.num_rows)
        """
        asked = api.Query(
            sql=sql,
            params=params,
            at_least=at_least,
            wait_timeout_s=wait_timeout_s,
            max_staleness_s=max_staleness_s,
            snapshot_id=snapshot_id,
            snapshot_time=snapshot_time,
            row_limit=row_limit,
            timeout_s=timeout_s,
        )
        return Batches(lambda: self._run(api.stream(asked, self._patience)), row_limit)

    def wait_visible(self, at_least: AtLeast, *, timeout_s: float = 30.0) -> Visible:
        """Wait until queries see all up to a receipt or token.

        Raises:
            NotVisible: Not within `timeout_s`; `context` has the watermark and an estimate.
        """
        return self._run(api.visible(at_least, timeout_s, self._patience))

    def lag(self) -> Lag:
        """How far the lake is behind its input; needs the role `ops_admin`."""
        return self._run(api.lag(self._patience))

    def _run(self, steps: Steps[T]) -> T:
        given: Any = None
        failure: Exception | None = None
        while True:
            try:
                step = steps.send(given) if failure is None else steps.throw(failure)
            except StopIteration as done:
                result: T = done.value
                return result
            given = failure = None
            try:
                given = self._do(step)
            except Exception as error:  # the steps decide what it means
                failure = error

    def _do(self, step: Step) -> Any:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return step.run()

    def _send(self, step: Send) -> httpx.Response:
        request = self._http.build_request(**self._access.request(step.request))
        response = self._http.send(request, stream=True)
        if step.request.stream and response.is_success:
            return response
        try:
            response.read()
        except httpx.TransportError as error:
            raise BrokenOff from error
        finally:
            response.close()
        return response


class Batches:
    """The record batches of an answer as they come; a context manager, for the connection is held till its end.

    Attributes:
        schema: Arrow schema of the batches.
        seen: What the answer saw: snapshot, watermark, lag.
        count: Rows taken so far.
    """

    schema: pyarrow.Schema
    seen: Seen

    def __init__(self, open_answer: Callable[[], httpx.Response], row_limit: int | None) -> None:
        self.count = 0
        self._open = open_answer
        self._row_limit = row_limit
        self._response: httpx.Response | None = None
        self._batches: Iterator[pyarrow.RecordBatch] = iter(())

    def __enter__(self) -> Batches:
        self._response = self._open()
        try:
            self.seen = seen_by(self._response)
            decoder = Decoder()
            found = _batches(self._response, decoder)
            first = next(found, None)
            self.schema = decoder.schema
            self._batches = found if first is None else chain([first], found)
        except BaseException:
            self._response.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._response is not None:
            self._response.close()

    def __iter__(self) -> Iterator[pyarrow.RecordBatch]:
        if self._response is None:
            raise RuntimeError("use it as `with client.stream(...) as batches:`")
        for batch in self._batches:
            self.count += batch.num_rows
            yield batch
        warn_if_cut(self.count, self.seen, self._row_limit)


def _batches(response: httpx.Response, decoder: Decoder) -> Iterator[pyarrow.RecordBatch]:
    try:
        for chunk in response.iter_bytes():
            yield from decoder.feed(chunk)
    except httpx.TransportError as error:
        raise broken_off(error) from error
    decoder.close()


def broken_off(error: Exception) -> Exception:
    """What became of a stream that ends before its end."""
    return unreachable(f"the answer broke off ({type(error).__name__}): run it again")


class _Part:
    def __init__(self, client: Client) -> None:
        self._client = client

    def _run(self, make: Callable[[Patience], Steps[T]]) -> T:
        return self._client._run(make(self._client._patience))


class Tables(_Part):
    """The tables of a lake. Changes need the role `table_admin`, and are in effect when the call returns."""

    def list(self) -> Sequence[Table]:
        """All tables."""
        return self._run(api.tables)

    def get(self, name: str) -> Table:
        """One table.

        Raises:
            NotFound: There is none of this name.
        """
        return self._run(lambda patience: api.table(name, patience))

    def versions(self, name: str) -> Sequence[TableVersion]:
        """Every definition that tables of this name had, oldest first."""
        return self._run(lambda patience: api.table_versions(name, patience))

    def create(
        self,
        name: str,
        columns: Columns,
        *,
        primary_key: Sequence[str] = (),
        partition_by: Sequence[str] = (),
        sort_by: Sequence[str] = (),
        timeout_s: float = 10.0,
    ) -> Table:
        """Make a table; when there is an equal one, that is the same success.

        Args:
            name: Its name.
            columns: A dict of names and DuckDB types, or `Column` objects; columns of the primary key are not nullable.
            primary_key: Makes rows upserts and deletes.
            partition_by: What its files are divided by.
            sort_by: How rows lie in files.
            timeout_s: Longest wait for the lake to take it, in seconds (60 at most).

        Raises:
            Conflict: There is another one of this name.
        """
        new = api.NewTable(
            name=name,
            columns=columns,
            primary_key=primary_key,
            partition_by=partition_by,
            sort_by=sort_by,
        )
        return self._run(lambda patience: api.create_table(new, timeout_s, patience))

    def alter(
        self, name: str, changes: Sequence[Mapping[str, object]], *, timeout_s: float = 10.0
    ) -> Table:
        """Change a table: all of these changes, in order, or none.

        Args:
            name: Which.
            changes: As of the HTTP API, such as `{"add_column": {"name": "source", "type": "VARCHAR"}}`.
            timeout_s: Longest wait for the lake to take it, in seconds (60 at most).

        Raises:
            Conflict: They do not fit the table as it is.
        """
        return self._run(lambda patience: api.alter_table(name, changes, timeout_s, patience))

    def drop(self, name: str, *, timeout_s: float = 10.0) -> Table:
        """Drop a table; snapshots from before keep it."""
        return self._run(lambda patience: api.drop_table(name, timeout_s, patience))


class Snapshots(_Part):
    """The snapshots of a lake that are kept. All but reading needs the role `ops_admin`."""

    def list(self, limit: int = 100) -> Sequence[Snapshot]:
        """The newest ones, newest first."""
        return self._run(lambda patience: api.snapshots(limit, patience))

    def get(self, snapshot_id: int) -> Snapshot:
        """One with its tables.

        Raises:
            NotFound: There is none, or no longer.
        """
        return self._run(lambda patience: api.snapshot(snapshot_id, patience))

    def files(self, snapshot_id: int, table: str | None = None) -> dict[str, Any]:
        """Its tables and Parquet files, for engines that read them: all pages of the API's answer as one."""
        return self._run(lambda patience: api.snapshot_files(snapshot_id, table, patience))

    def pin(
        self, snapshot_id: int, name: str | None = None, *, expires_at: datetime | None = None
    ) -> Snapshot:
        """Keep one from expiry, until a time or for good."""
        return self._run(lambda patience: api.pin(snapshot_id, name, expires_at, patience))

    def unpin(self, snapshot_id: int, name: str | None = None) -> Snapshot:
        """Keep it no longer."""
        return self._run(lambda patience: api.unpin(snapshot_id, name, patience))

    def restore(
        self, snapshot_id: int, *, idempotency_key: str | None = None, timeout_s: float = 10.0
    ) -> Restored:
        """Make the whole lake equal to a snapshot: what was written since is undone.

        Args:
            snapshot_id: Which.
            idempotency_key: For a repeat after a crash; a repeat with another key would undo what came after.
            timeout_s: Longest wait for the lake to be so, in seconds (60 at most).

        Raises:
            Conflict: It cannot be restored; the message says which can.
            NotVisible: Accepted, and not done within `timeout_s`.
        """
        return self._run(
            lambda patience: api.restore(snapshot_id, idempotency_key, timeout_s, patience)
        )


class DeadLetters(_Part):
    """What was accepted and then refused by the lake. Needs the role `ops_admin`."""

    def list(self, table: str | None = None, *, limit: int = 100) -> Sequence[DeadLetter]:
        """In the order of their numbers."""
        return self._run(lambda patience: api.dead_letters(table, limit, patience))

    def get(self, number: int) -> DeadLetter:
        """One, with its values."""
        return self._run(lambda patience: api.dead_letter(number, patience))

    def replay(self, number: int, *, timeout_s: float = 10.0) -> Replay:
        """Send one in again, checked against the table as it is.

        Raises:
            Conflict: It still does not fit, and stays.
        """
        return self._run(lambda patience: api.replay_letter(number, timeout_s, patience))

    def replay_all(self, table: str, *, timeout_s: float = 10.0) -> Replay:
        """Send in again all of a table; those that still do not fit stay, and are named in `failed`."""
        return self._run(lambda patience: api.replay_letters(table, timeout_s, patience))

    def drop(self, number: int) -> int:
        """Drop one for good; returns how many were."""
        return self._run(lambda patience: api.drop_letter(number, patience))

    def drop_all(self, table: str) -> int:
        """Drop all of a table for good; returns how many were."""
        return self._run(lambda patience: api.drop_letters(table, patience))
