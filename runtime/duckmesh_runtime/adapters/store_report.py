"""How the object store is, told to the catalog: one row of `duckmesh.store_report`, which the sweep reads."""

from __future__ import annotations

from typing import Final

import asyncpg

from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.ports import StoreState

_REPORT: Final = "SELECT duckmesh.report_store($1, $2)"


class PostgresStoreReporter:
    """`StoreReporter` of one lake, under its writer login."""

    def __init__(self, pool: asyncpg.Pool, lake: str) -> None:
        self._pool = pool
        self._lake = lake

    async def report(self, state: StoreState) -> None:
        """See `StoreReporter.report`."""
        with catalog_errors():
            await self._pool.execute(_REPORT, self._lake, state.value)
