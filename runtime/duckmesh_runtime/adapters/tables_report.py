"""What became of the declared tables, told to the catalog: one row of `duckmesh.declared_tables`, which the sweep reads."""

from __future__ import annotations

from typing import Final

import asyncpg

from duckmesh_runtime.adapters.postgres import catalog_errors

_REPORT: Final = "SELECT duckmesh.report_tables($1, $2, $3, $4)"


class PostgresTablesReporter:
    """`TablesReporter` of one lake, under its writer login."""

    def __init__(self, pool: asyncpg.Pool, lake: str) -> None:
        self._pool = pool
        self._lake = lake

    async def report(self, digest: str, *, ready: bool, problem: str) -> None:
        """See `TablesReporter.report`."""
        with catalog_errors():
            await self._pool.execute(_REPORT, self._lake, digest, ready, problem)
