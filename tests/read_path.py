"""The whole way of a query over a real lake: who writes it, who maintains it, and the services that read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from duckmesh_runtime.adapters.freeze import PostgresFreezer
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import open_pool
from duckmesh_runtime.adapters.progress import PostgresProgress
from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.domain.moments import Moment
from duckmesh_runtime.sandbox.supervisor import serve
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.query import QueryAnswer, QueryRequest, QueryService
from duckmesh_runtime.settings import QueryLimits
from duckmesh_runtime.web.proxy import ReadProxy
from tests.direct import Writer, attach, lake_writer, take_over
from tests.lakes import eventually
from tests.services import Lake

Rows = list[tuple[Any, ...]]


@dataclass
class ReadPath:
    """A lake, who writes it, and who reads it.

    Attributes:
        catalogs: Folder of the frozen catalogs.
    """

    lake: Lake
    writer: Writer
    service: QueryService
    freezer: PostgresFreezer
    proxy: ReadProxy
    catalogs: Path
    maintenance: duckdb.DuckDBPyConnection | None = None

    async def start(
        self, sql: str, *params: object, min_number: int | None = None, at: Moment | None = None
    ) -> QueryAnswer:
        return await self.service.run(
            QueryRequest(
                sql=sql,
                params=params,
                min_number=min_number,
                at=at,
                consistency_timeout_ms=30_000,
                row_limit=100_000,
                timeout_ms=30_000,
            )
        )

    async def rows(
        self, sql: str, *params: object, min_number: int | None = None, at: Moment | None = None
    ) -> Rows:
        answer = await self.start(sql, *params, min_number=min_number, at=at)
        return [
            tuple(row.values()) async for batch in answer.run.batches for row in batch.to_pylist()
        ]

    async def commit(self, *statements: str) -> int:
        return await asyncio.to_thread(self.writer.commit, *statements)

    async def snapshot(self, *statements: str) -> int:
        """Commit, and the id of the snapshot that it made."""
        await self.commit(*statements)
        return self.newest()

    def newest(self) -> int:
        ((found,),) = self.writer.rows("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
        return int(str(found))

    async def maintain(self, call: str) -> None:
        """Run a call of DuckLake's upkeep under the maintenance login."""
        if self.maintenance is None:
            epoch = await take_over(self.lake, "m")
            self.maintenance = await asyncio.to_thread(attach, self.lake, "m", epoch)
        await asyncio.to_thread(_maintain, self.maintenance, call)


def _maintain(connection: duckdb.DuckDBPyConnection, call: str) -> None:
    connection.execute("BEGIN")
    connection.execute(
        "CALL lake.set_commit_message('test', 'upkeep', extra_info => '{\"role\":\"m\"}')"
    )
    connection.execute(f"CALL {call}").to_arrow_table()
    connection.execute("COMMIT")


@asynccontextmanager
async def read_path(lake: Lake, folder: Path, *, limits: QueryLimits) -> AsyncIterator[ReadPath]:
    """The services over a lake, with a sandbox of real processes; files go below `folder`."""
    async with AsyncExitStack() as stack:
        writer = await lake_writer(lake)
        stack.callback(writer.connection.close)
        pool = await open_pool(lake.reader_dir, application_name="test-query")
        stack.push_async_callback(pool.close)
        proxy = ReadProxy(StoreObjects(lake.store))
        await proxy.start()
        stack.push_async_callback(proxy.close)
        catalogs = folder / "catalogs"
        catalogs.mkdir()
        freezer = PostgresFreezer(
            pool,
            lake.name,
            catalogs,
            data_url=proxy.data_url,
            allow=proxy.allow,
            forget=proxy.release,
        )
        stack.push_async_callback(freezer.close)
        socket = await _serve(stack, folder / "socket", catalogs, limits)
        barrier = Barrier(PostgresProgress(pool, lake.name))
        stack.push_async_callback(barrier.close)
        service = QueryService(
            freezer, SandboxClient(socket), barrier, limits=limits, data_url=proxy.data_url
        )
        path = ReadPath(lake, writer, service, freezer, proxy, catalogs)
        try:
            yield path
        finally:
            if path.maintenance is not None:
                path.maintenance.close()


async def _serve(stack: AsyncExitStack, socket: Path, catalogs: Path, limits: QueryLimits) -> Path:
    serving = asyncio.create_task(
        serve(
            socket,
            catalogs,
            concurrency=limits.concurrency,
            memory_bytes=limits.memory_bytes,
            timeout_ms=limits.timeout_ms,
        )
    )

    async def stop() -> None:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

    async def listening() -> bool:
        return socket.exists()

    stack.push_async_callback(stop)
    await eventually(listening)
    return socket
