"""Frozen catalogs: which snapshot, who holds its file, when it goes.

One REPEATABLE READ transaction reads the rows, the watermark and the clock, so token and snapshot agree; `catalog_copy`
makes the file. Beside the newest snapshot's a few of past ones are kept. A live-only copy of those gives a wrong count(*)
where files were merged since, unless it is attached with its SNAPSHOT_VERSION: DuckLake then counts rows instead of
asking the catalog (`DuckLakeGetPartitionStats`), which is what `FrozenCatalog.version` is for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg

from duckmesh_runtime.adapters.catalog_copy import CatalogCopier
from duckmesh_runtime.adapters.freeze_ahead import FreezeAhead
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.domain.lakesql import quote_name
from duckmesh_runtime.domain.moments import Moment, no_snapshot
from duckmesh_runtime.errors import Limited, Unavailable
from duckmesh_runtime.ports import FrozenCatalog

_SHARED_S: Final = 0.1  # "the newest" without a token is at most this old
_PAST_SHARED_S: Final = 30.0
"""Maintenance replaces the files of past snapshots; those that it replaced are there for ten minutes more at least."""
_PAST_KEPT: Final = 4
_MOST_PAST: Final = 32
"""Held at once; each takes some megabytes of a small volume."""

_STATE: Final = """
SELECT statement_timestamp() AS now, l.token AS lake_token, n.newest, n.oldest, s.snapshot_id, s.snapshot_time,
       (SELECT e.accepted_at FROM {bus}.entry e WHERE e.last > l.token ORDER BY e.last LIMIT 1) AS pending_at,
       (SELECT (c.commit_extra_info::jsonb->>'tok')::bigint FROM {lake}.ducklake_snapshot_changes c
         WHERE c.snapshot_id <= s.snapshot_id
           AND CASE WHEN c.commit_extra_info IS JSON OBJECT THEN c.commit_extra_info::jsonb->>'tok' END IS NOT NULL
         ORDER BY c.snapshot_id DESC LIMIT 1) AS token
  FROM duckmesh.lake_status l
  JOIN (SELECT max(snapshot_id) AS newest, min(snapshot_id) AS oldest FROM {lake}.ducklake_snapshot) n ON n.newest IS NOT NULL
  LEFT JOIN {lake}.ducklake_snapshot s ON s.snapshot_id = CASE
       WHEN $2::bigint IS NOT NULL THEN $2
       WHEN $3::timestamptz IS NULL THEN n.newest
       WHEN $3 <= statement_timestamp() THEN (SELECT snapshot_id FROM {lake}.ducklake_snapshot
                                           WHERE snapshot_time <= $3 ORDER BY snapshot_id DESC LIMIT 1) END
 WHERE l.lake = $1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """A snapshot as one transaction sees it; `pending_at` is None when it lacks nothing that was accepted."""

    snapshot_id: int
    snapshot_time: datetime
    token: int
    now: datetime
    pending_at: datetime | None


class PostgresFreezer:
    """`ports.CatalogFreezer` over the reader login.

    Args:
        pool: Of the reader login.
        lake: Catalog schema.
        folder: Where the files go; shared read-only with the sandbox.
        data_url: What the files name as data path.
        allow: Called with a catalog's files before the catalog is given out.
        forget: Called with them after it was removed.
        prepare: Has an idle query process attach a catalog before that is given out, and says whether one did; takes
            no longer than a moment and raises nothing. None where there is no such process.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        lake: str,
        folder: Path,
        *,
        data_url: str,
        allow: Callable[[Mapping[str, int]], None],
        forget: Callable[[Mapping[str, int]], None],
        prepare: Callable[[FrozenCatalog], Awaitable[bool]] | None = None,
    ) -> None:
        self._pool = pool
        self._lake = lake
        self._copier = CatalogCopier(lake, folder, data_url=data_url)
        self._allow = allow
        self._forget = forget
        self._prepare = prepare
        self._ahead = FreezeAhead(self._renew, self._prepare_newest)
        # A large past catalog is written beside the newest one, not before it.
        self._turn, self._past_turn = asyncio.Lock(), asyncio.Lock()
        self._holds: dict[str, int] = {}
        self._made: dict[str, FrozenCatalog] = {}
        self._newest: FrozenCatalog | None = None
        self._newest_s = 0.0
        self._past: dict[int, tuple[FrozenCatalog, float]] = {}  # the least recently used first

    async def freeze(self, min_token: int = 0, *, at: Moment | None = None) -> FrozenCatalog:
        """See `ports.CatalogFreezer`."""
        if at is not None:
            return await self._freeze_past(at)
        asked_s = time.monotonic()
        self._ahead.asked()
        # Not behind a freeze that goes on: what is there may be new enough.
        if (catalog := self._shared(asked_s, min_token)) is not None:
            return self._hold(catalog)
        async with self._turn:
            catalog = self._shared(asked_s, min_token) or await self._freeze_newest()
            return self._hold(catalog)

    def ahead(self) -> AbstractAsyncContextManager[None]:
        """Freeze the newest snapshot at once, and each newer one while it is asked for, as long as the block runs."""
        return self._ahead.running()

    def release(self, catalog: FrozenCatalog) -> None:
        """See `ports.CatalogFreezer`."""
        if catalog.path in self._holds:  # not after `close`
            self._holds[catalog.path] -= 1
            self._drop_unheld()

    async def close(self) -> None:
        """Remove all files; safe to repeat."""
        self._newest = None
        self._past.clear()
        self._holds.clear()
        self._drop_unheld()
        await self._copier.close()

    def _shared(self, asked_s: float, min_token: int) -> FrozenCatalog | None:
        """The newest one made, when it was the newest there is 100 ms before the caller asked, or later."""
        catalog = self._newest
        if catalog is None or catalog.token < min_token or asked_s - self._newest_s >= _SHARED_S:
            return None
        return catalog

    async def _freeze_newest(self) -> FrozenCatalog:
        """Freeze it, unless it is frozen; only in turn."""
        started_s = time.monotonic()
        with ExitStack() as held:
            async with self._reading() as connection:
                state = await self._read_state(connection, None)
                if (known := self._confirm(state, started_s)) is not None:
                    return known
                catalog = await self._write(connection, state, held, past=False)
            return self._publish(catalog, started_s)

    def _confirm(self, state: _State, seen_s: float) -> FrozenCatalog | None:
        """What is frozen, with the present lag, if the lake has not moved since."""
        known = self._newest
        if known is None or not _is_of(known, state) or known.token != state.token:
            return None
        if seen_s <= self._newest_s:
            return known
        known = replace(known, frozen_at=state.now, oldest_pending_at=state.pending_at)
        return self._publish(known, seen_s)

    def _publish(self, catalog: FrozenCatalog, seen_s: float) -> FrozenCatalog:
        self._newest, self._newest_s = catalog, seen_s
        self._drop_unheld()
        return catalog

    async def _renew(self) -> bool:
        """Freeze the newest snapshot and have it attached, unless that is done; False when someone else is at it."""
        if self._turn.locked():
            return False
        seen_s = time.monotonic()
        with catalog_errors():
            async with self._pool.acquire() as connection:
                state = await self._read_state(connection, None)
        if self._confirm(state, seen_s) is not None:
            return True
        async with self._turn:
            seen_s = time.monotonic()
            with ExitStack() as held:
                async with self._reading() as connection:
                    state = await self._read_state(connection, None)
                    if self._confirm(state, seen_s) is not None:
                        return True
                    catalog = await self._write(connection, state, held, past=False)
                await self._attach(catalog)
                self._publish(catalog, seen_s)
        return True

    async def _prepare_newest(self) -> bool:
        if (catalog := self._newest) is None:
            return False
        self._hold(catalog)
        try:
            return await self._attach(catalog)
        finally:
            self.release(catalog)

    async def _attach(self, catalog: FrozenCatalog) -> bool:
        return self._prepare is None or await self._prepare(catalog)

    async def _freeze_past(self, at: Moment) -> FrozenCatalog:
        async with self._past_turn:
            started = time.monotonic()
            with ExitStack() as held:
                async with self._reading() as connection:
                    state = await self._read_state(connection, at)
                    known, made_s = self._past.pop(state.snapshot_id, (None, 0.0))
                    if (
                        known is None
                        or not _is_of(known, state)
                        or started - made_s > _PAST_SHARED_S
                    ):
                        self._make_room()
                        made_s = started
                        known = await self._write(connection, state, held, past=True)
                    else:
                        self._hold_until(held, known)
                catalog = replace(
                    known,
                    token=state.token,
                    frozen_at=state.now,
                    oldest_pending_at=state.pending_at,
                )
                self._past[state.snapshot_id] = catalog, made_s
                return self._hold(catalog)

    def _make_room(self) -> None:
        """Forget the past catalogs that were not used for longest, but for those that are held."""
        idle = [key for key, (made, _) in self._past.items() if not self._holds.get(made.path)]
        for key in idle[: max(0, len(self._past) - _PAST_KEPT + 1)]:
            del self._past[key]
        self._drop_unheld()
        held = sum(made.version is not None for made in self._made.values())
        if held >= _MOST_PAST:
            raise Limited(
                "OVERLOADED",
                f"snapshot_id, snapshot_time: queries read {held} past snapshots now: repeat later",
                retry_after_s=1,
            )

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[asyncpg.Connection]:
        with catalog_errors():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                yield connection

    async def _read_state(self, connection: asyncpg.Connection, at: Moment | None) -> _State:
        by_time = isinstance(at, datetime)
        asked = (None, at) if by_time else (at, None)
        row = await connection.fetchrow(self._sql(_STATE), self._lake, *asked)
        if row is None:
            raise Unavailable(
                "CATALOG_UNAVAILABLE",
                "the lake is not made yet: repeat the request",
                retry_after_s=2,
            )
        if at is not None and row["snapshot_id"] is None:
            raise no_snapshot(at, newest=row["newest"], oldest=row["oldest"], now=row["now"])
        newest = row["snapshot_id"] == row["newest"]
        return _State(
            snapshot_id=row["snapshot_id"],
            snapshot_time=row["snapshot_time"],
            token=row["lake_token"] if newest else row["token"] or 0,
            now=row["now"],
            pending_at=row["pending_at"] if newest else row["snapshot_time"],
        )

    async def _write(
        self, connection: asyncpg.Connection, state: _State, held: ExitStack, *, past: bool
    ) -> FrozenCatalog:
        """Copy it, and hold it until that ends: others drop what nobody holds while its transaction ends."""
        made = await self._copier.copy(connection, state.snapshot_id, past=past)
        catalog = FrozenCatalog(
            path=str(made.path),
            snapshot_id=state.snapshot_id,
            snapshot_time=state.snapshot_time,
            token=state.token,
            frozen_at=state.now,
            oldest_pending_at=state.pending_at,
            files=made.files,
            version=state.snapshot_id if past else None,
        )
        self._made[catalog.path] = catalog
        self._hold_until(held, catalog)
        self._allow(catalog.files)
        return catalog

    def _hold_until(self, held: ExitStack, catalog: FrozenCatalog) -> None:
        self._hold(catalog)
        held.callback(self.release, catalog)

    def _hold(self, catalog: FrozenCatalog) -> FrozenCatalog:
        self._holds[catalog.path] = self._holds.get(catalog.path, 0) + 1
        self._drop_unheld()
        return catalog

    def _drop_unheld(self) -> None:
        """Remove files that nobody holds, but for those that are given out again."""
        kept = {catalog.path for catalog, _ in self._past.values()}
        if self._newest is not None:
            kept.add(self._newest.path)
        for path in [p for p in self._made if p not in kept and not self._holds.get(p)]:
            Path(path).unlink(missing_ok=True)
            self._holds.pop(path, None)
            self._forget(self._made.pop(path).files)

    def _sql(self, text: str) -> str:
        return text.format(lake=quote_name(self._lake), bus=quote_name(f"{self._lake}_bus"))


def _is_of(catalog: FrozenCatalog, state: _State) -> bool:
    """Whether it is of this snapshot: when the catalog is restored from a backup, ids come again."""
    return (catalog.snapshot_id, catalog.snapshot_time) == (state.snapshot_id, state.snapshot_time)
