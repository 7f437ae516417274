"""The watermark of one lake, as the barrier and the committer read it: one row of `duckmesh.lake_status`, and the timeline."""

from __future__ import annotations

from typing import Final

import asyncpg

from duckmesh_runtime.adapters.postgres import catalog_errors, quoted
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Progress

_PROGRESS: Final = """
SELECT s.token, s.token_snapshot_id, s.committed_at, clock_timestamp() AS now, h.timeline
  FROM duckmesh.lake_status AS s CROSS JOIN {bus}.head AS h WHERE s.lake = $1
"""


class PostgresProgress:
    """`ports.ProgressReader` over a pool of any of the lake's logins."""

    def __init__(self, pool: asyncpg.Pool, lake: str) -> None:
        self._pool = pool
        self._lake = lake
        self._sql = _PROGRESS.format(bus=quoted(f"{lake}_bus"))

    async def progress(self) -> Progress:
        """Read the watermark.

        Raises:
            Unavailable: CATALOG_UNAVAILABLE, also for a lake that is not made yet.
        """
        with catalog_errors():
            row = await self._pool.fetchrow(self._sql, self._lake)
        if row is None:
            raise Unavailable(
                "CATALOG_UNAVAILABLE",
                "the lake is not made yet: repeat the request",
                retry_after_s=2,
            )
        return Progress(
            token=row["token"],
            snapshot_id=row["token_snapshot_id"],
            committed_at=row["committed_at"],
            now=row["now"],
            timeline=row["timeline"],
        )
