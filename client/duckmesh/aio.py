"""The asynchronous client. It is `client` with `await` before each call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
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
from duckmesh.client import Op, broken_off
from duckmesh.ipc import Decoder
from duckmesh.result import Result, Seen, seen_by, warn_if_cut
from duckmesh.steps import BrokenOff, Patience, Pause, Send, Step, Steps

if TYPE_CHECKING:
    import pyarrow

__all__ = ["AsyncBatches", "AsyncClient", "AsyncDeadLetters", "AsyncSnapshots", "AsyncTables"]

T = TypeVar("T")


class AsyncClient:
    """A lake, seen from asynchronous Python; arguments, calls and errors as of `Client`.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8080", "dmk_...") as client:
        ...     receipt = await client.ingest("events", [{"id": 1, "kind": "click"}])
        ...     result = await client.query("SELECT count(*) FROM events", at_least=receipt)
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry_s: float = 60.0,
        answer_timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._patience = Patience(
            retry_s=retry_s,
            answer_timeout_s=answer_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._access = access(url, api_key, self._patience)
        self._http = httpx.AsyncClient(**self._access.http(), transport=transport)
        self.tables = AsyncTables(self)
        self.snapshots = AsyncSnapshots(self)
        self.dead_letters = AsyncDeadLetters(self)

    def __repr__(self) -> str:
        return f"<duckmesh.AsyncClient of {self._access.url}>"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ingest(
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
        """Add rows; when this returns they are durable; as of `Client.ingest`."""
        how = api.Ingest(
            op=op,
            atomic=atomic,
            wait=wait,
            wait_timeout_s=wait_timeout_s,
            idempotency_key=idempotency_key,
        )
        return await self._run(api.ingest(table, data, how, self._patience))

    async def query(
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
        """Run one SELECT and take its whole answer; as of `Client.query`."""
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
        result = await self._run(api.query(asked, self._patience))
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
    ) -> AsyncBatches:
        """As of `Client.stream`."""
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
        return AsyncBatches(lambda: self._run(api.stream(asked, self._patience)), row_limit)

    async def wait_visible(self, at_least: AtLeast, *, timeout_s: float = 30.0) -> Visible:
        """Wait until queries see all up to a receipt or token; as of `Client.wait_visible`."""
        return await self._run(api.visible(at_least, timeout_s, self._patience))

    async def lag(self) -> Lag:
        """How far the lake is behind its input; needs the role `ops_admin`."""
        return await self._run(api.lag(self._patience))

    async def _run(self, steps: Steps[T]) -> T:
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
                given = await self._do(step)
            except Exception as error:  # the steps decide what it means
                failure = error

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Pause):
            return await anyio.sleep(step.seconds)
        return await anyio.to_thread.run_sync(step.run)

    async def _send(self, step: Send) -> httpx.Response:
        request = self._http.build_request(**self._access.request(step.request))
        response = await self._http.send(request, stream=True)
        if step.request.stream and response.is_success:
            return response
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise BrokenOff from error
        finally:
            await response.aclose()
        return response


class AsyncBatches:
    """As `Batches`, with `async with` and `async for`."""

    schema: pyarrow.Schema
    seen: Seen

    def __init__(
        self, open_answer: Callable[[], Awaitable[httpx.Response]], row_limit: int | None
    ) -> None:
        self.count = 0
        self._open = open_answer
        self._row_limit = row_limit
        self._response: httpx.Response | None = None
        self._first: list[pyarrow.RecordBatch] = []
        self._rest: AsyncGenerator[pyarrow.RecordBatch, None] | None = None

    async def __aenter__(self) -> AsyncBatches:
        self._response = await self._open()
        try:
            self.seen = seen_by(self._response)
            decoder = Decoder()
            self._rest = _batches(self._response, decoder)
            if (first := await anext(self._rest, None)) is not None:
                self._first.append(first)
            self.schema = decoder.schema
        except BaseException:
            await self._response.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rest is not None:
            await self._rest.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def __aiter__(self) -> AsyncIterator[pyarrow.RecordBatch]:
        if self._rest is None:
            raise RuntimeError("use it as `async with client.stream(...) as batches:`")
        while self._first:
            batch = self._first.pop()
            self.count += batch.num_rows
            yield batch
        async for batch in self._rest:
            self.count += batch.num_rows
            yield batch
        warn_if_cut(self.count, self.seen, self._row_limit)


async def _batches(
    response: httpx.Response, decoder: Decoder
) -> AsyncGenerator[pyarrow.RecordBatch, None]:
    try:
        async for chunk in response.aiter_bytes():
            for batch in decoder.feed(chunk):
                yield batch
    except httpx.TransportError as error:
        raise broken_off(error) from error
    decoder.close()


class _AsyncPart:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def _run(self, make: Callable[[Patience], Steps[T]]) -> T:
        return await self._client._run(make(self._client._patience))


class AsyncTables(_AsyncPart):
    """The tables of a lake. Changes need the role `table_admin`, and are in effect when the call returns."""

    async def list(self) -> Sequence[Table]:
        """All tables."""
        return await self._run(api.tables)

    async def get(self, name: str) -> Table:
        """One table; as of `Tables.get`."""
        return await self._run(lambda patience: api.table(name, patience))

    async def versions(self, name: str) -> Sequence[TableVersion]:
        """Every definition that tables of this name had, oldest first."""
        return await self._run(lambda patience: api.table_versions(name, patience))

    async def create(
        self,
        name: str,
        columns: Columns,
        *,
        primary_key: Sequence[str] = (),
        partition_by: Sequence[str] = (),
        sort_by: Sequence[str] = (),
        timeout_s: float = 10.0,
    ) -> Table:
        """Make a table; when there is an equal one, that is the same success; as of `Tables.create`."""
        new = api.NewTable(
            name=name,
            columns=columns,
            primary_key=primary_key,
            partition_by=partition_by,
            sort_by=sort_by,
        )
        return await self._run(lambda patience: api.create_table(new, timeout_s, patience))

    async def alter(
        self, name: str, changes: Sequence[Mapping[str, object]], *, timeout_s: float = 10.0
    ) -> Table:
        """Change a table: all of these changes, in order, or none; as of `Tables.alter`."""
        return await self._run(lambda patience: api.alter_table(name, changes, timeout_s, patience))

    async def drop(self, name: str, *, timeout_s: float = 10.0) -> Table:
        """Drop a table; snapshots from before keep it."""
        return await self._run(lambda patience: api.drop_table(name, timeout_s, patience))


class AsyncSnapshots(_AsyncPart):
    """The snapshots of a lake that are kept. All but reading needs the role `ops_admin`."""

    async def list(self, limit: int = 100) -> Sequence[Snapshot]:
        """The newest ones, newest first."""
        return await self._run(lambda patience: api.snapshots(limit, patience))

    async def get(self, snapshot_id: int) -> Snapshot:
        """One with its tables; as of `Snapshots.get`."""
        return await self._run(lambda patience: api.snapshot(snapshot_id, patience))

    async def files(self, snapshot_id: int, table: str | None = None) -> dict[str, Any]:
        """Its tables and Parquet files, for engines that read them: all pages of the API's answer as one."""
        return await self._run(lambda patience: api.snapshot_files(snapshot_id, table, patience))

    async def pin(
        self, snapshot_id: int, name: str | None = None, *, expires_at: datetime | None = None
    ) -> Snapshot:
        """Keep one from expiry, until a time or for good."""
        return await self._run(lambda patience: api.pin(snapshot_id, name, expires_at, patience))

    async def unpin(self, snapshot_id: int, name: str | None = None) -> Snapshot:
        """Keep it no longer."""
        return await self._run(lambda patience: api.unpin(snapshot_id, name, patience))

    async def restore(
        self, snapshot_id: int, *, idempotency_key: str | None = None, timeout_s: float = 10.0
    ) -> Restored:
        """Make the whole lake equal to a snapshot: what was written since is undone; as of `Snapshots.restore`."""
        return await self._run(
            lambda patience: api.restore(snapshot_id, idempotency_key, timeout_s, patience)
        )


class AsyncDeadLetters(_AsyncPart):
    """What was accepted and then refused by the lake. Needs the role `ops_admin`."""

    async def list(self, table: str | None = None, *, limit: int = 100) -> Sequence[DeadLetter]:
        """In the order of their numbers."""
        return await self._run(lambda patience: api.dead_letters(table, limit, patience))

    async def get(self, number: int) -> DeadLetter:
        """One, with its values."""
        return await self._run(lambda patience: api.dead_letter(number, patience))

    async def replay(self, number: int, *, timeout_s: float = 10.0) -> Replay:
        """Send one in again, checked against the table as it is; as of `DeadLetters.replay`."""
        return await self._run(lambda patience: api.replay_letter(number, timeout_s, patience))

    async def replay_all(self, table: str, *, timeout_s: float = 10.0) -> Replay:
        """Send in again all of a table; those that still do not fit stay, and are named in `failed`."""
        return await self._run(lambda patience: api.replay_letters(table, timeout_s, patience))

    async def drop(self, number: int) -> int:
        """Drop one for good; returns how many were."""
        return await self._run(lambda patience: api.drop_letter(number, patience))

    async def drop_all(self, table: str) -> int:
        """Drop all of a table for good; returns how many were."""
        return await self._run(lambda patience: api.drop_letters(table, patience))
