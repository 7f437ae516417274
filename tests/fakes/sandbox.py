"""A sandbox in memory: DuckDB in this process over given tables. Knows no catalogs, kills nothing, bounds no memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from duckmesh_runtime.errors import DuckmeshError, Failed, Invalid
from duckmesh_runtime.ports import QueryJob, QueryRun, QueryStats

BATCH_ROWS = 16_384


@dataclass
class FakeSandbox:
    """Runs what is asked over `tables`.

    Attributes:
        tables: The lake, whatever the job's catalog.
        failure: Raised instead of running anything.
        jobs: What it was asked.
        running: Statements whose batches are neither read to the end nor closed.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    failure: DuckmeshError | None = None
    jobs: list[QueryJob] = field(default_factory=list)
    running: int = 0

    async def run(self, job: QueryJob) -> QueryRun:
        self.jobs.append(job)
        if self.failure is not None:
            raise self.failure
        connection = duckdb.connect(config={"threads": 1})  # of several, DuckDB may lose a failure
        batches = _Batches(self, connection, job)
        try:
            for name, table in self.tables.items():
                connection.register(name, table)
            (statement,) = connection.extract_statements(job.sql) or (None,)
            if statement is None or statement.type != duckdb.StatementType.SELECT:
                raise Invalid("SQL_NOT_ALLOWED", "sql: allowed is one SELECT")
            await batches.start(statement)
        except ValueError:
            await batches.aclose()
            raise Invalid("SQL_NOT_ALLOWED", "sql: allowed is one SELECT") from None
        except duckdb.Error as error:
            await batches.aclose()
            raise _error(error) from None
        except BaseException:
            await batches.aclose()
            raise
        return QueryRun(
            schema=batches.reader.schema,
            type_names=batches.type_names,
            batches=batches,
            stats=batches.stats,
        )


class _Batches(AsyncIterator[pa.RecordBatch]):
    def __init__(
        self, sandbox: FakeSandbox, connection: duckdb.DuckDBPyConnection, job: QueryJob
    ) -> None:
        self._sandbox = sandbox
        self._connection = connection
        self._job = job
        self._started = time.monotonic()
        self._closed = False
        self._alarm = asyncio.get_running_loop().call_later(
            job.timeout_ms / 1000, connection.interrupt
        )
        self.stats = QueryStats()
        self.type_names: list[str] = []
        sandbox.running += 1

    async def start(self, statement: duckdb.Statement) -> None:
        await asyncio.to_thread(self._connection.execute, statement, list(self._job.params))
        self.type_names = [str(column[1]) for column in self._connection.description or ()]
        self.reader: pa.RecordBatchReader = self._connection.to_arrow_reader(BATCH_ROWS)

    async def __anext__(self) -> pa.RecordBatch:
        left = self._job.row_limit - self.stats.rows
        while not self._closed:
            try:
                batch = await asyncio.to_thread(next, self.reader, None)
            except (duckdb.Error, OSError, ValueError) as error:
                await self.aclose()
                raise _error(error) from None
            if batch is None:
                break
            part = batch.slice(0, left)
            self.stats.rows += part.num_rows
            self.stats.truncated = part.num_rows < batch.num_rows
            if self.stats.truncated:
                await self.aclose()
            if part.num_rows:
                return part
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._alarm.cancel()
            self.stats.duration_ms = int((time.monotonic() - self._started) * 1000)
            self._connection.interrupt()
            self._connection.close()
            self._sandbox.running -= 1


def _error(error: Exception) -> DuckmeshError:
    if isinstance(error, duckdb.InterruptException) or str(error).startswith("INTERRUPT"):
        return Failed("QUERY_TIMEOUT", "the query ran longer than its limit")
    return Invalid("SQL_ERROR", str(error))
