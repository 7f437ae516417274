"""Who commits: one process per lake, elected in Postgres (docs/architecture.md, Commit rhythm).

The lease row's epoch is the truth, and the fence holds every commit to it; this only decides who takes the next epoch.
The holder of epoch e keeps the session lock `(hash(lake), e)` on its control connection, so a holder that died is followed
at once; one that hangs stops beating, and is followed when its heartbeat expires on the database's clock.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

import asyncpg

from duckmesh_runtime.adapters import postgres
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import Term

logger = logging.getLogger(__name__)

STANDBY_INTERVAL_S: Final = 0.3
BEAT_INTERVAL_S: Final = 1.0
BEAT_TTL_S: Final = 3.0
TAKE_OVER_WAIT_MS: Final = 1_000
"""How long a take-over waits for a running commit before it ends the old holder's connections."""

# take_over waits, ends connections one by one, and waits again.
_STATEMENT_TIMEOUT_MS: Final = 15_000

_STATE: Final = """
SELECT l.epoch, coalesce(h.epoch = l.epoch AND h.expires_at > clock_timestamp(), false) AS beating,
       pg_try_advisory_lock(hashtext(l.lake), l.epoch::int) AS free
  FROM duckmesh.lease AS l LEFT JOIN duckmesh.heartbeat AS h ON h.lake = l.lake AND h.role = l.role
 WHERE l.lake = $1 AND l.role = 'w'
"""
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(hashtext($1), $2::int)"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext($1), $2::int)"
PROTOCOL: Final = 3
"""What entries of the bus may hold and where the watermark may stand; see migrations 0004 and 0006."""

_PROTOCOL: Final = "SELECT protocol FROM duckmesh.lease WHERE lake = $1 AND role = 'w'"
_REQUIRE: Final = "SELECT duckmesh.require_protocol($1, $2)"
_TAKE_OVER: Final = "SELECT duckmesh.take_over($1, 'w', $2, $3)"
_NAME: Final = "SELECT set_config('application_name', $1, false)"
_BEAT: Final = "SELECT duckmesh.beat($1, 'w', $2, $3, $4, make_interval(secs => $5), $6)"
_ADDRESS: Final = """
SELECT address FROM duckmesh.heartbeat WHERE lake = $1 AND role = 'w' AND expires_at > clock_timestamp()
"""


class PostgresElection:
    """The campaign of one process for one lake.

    Args:
        lake: Catalog schema.
        secret_dir: Folder with `dsn` of the writer login.
        holder: Name of this process in the heartbeat.
        address: Where siblings reach it, `host:port`.
        pool: For questions beside the control connection; the caller closes it.
    """

    def __init__(
        self, *, lake: str, secret_dir: Path, holder: str, address: str, pool: asyncpg.Pool
    ) -> None:
        self._pool = pool
        self._lake = lake
        self._secret_dir = secret_dir
        self._holder = holder
        self._address = address
        self._connection: asyncpg.Connection | None = None
        self._term: Term | None = None
        self._beating: asyncio.Task[None] | None = None

    async def speaks_more(self) -> bool:
        """Whether the lake's protocol is an earlier release's.

        Raises:
            Unavailable: The catalog does not answer.
        """
        with catalog_errors():
            known = await self._pool.fetchval(_PROTOCOL, self._lake)
        return known is not None and known < PROTOCOL

    async def require_protocol(self) -> None:
        """Keep processes of an earlier release from committing; call it before any input is accepted.

        Raises:
            Unavailable: The catalog does not answer, or the holder's commit does not end: call again.
        """
        with catalog_errors():
            await self._pool.execute(_REQUIRE, self._lake, PROTOCOL)

    async def campaign(self) -> Term:
        """See `Election.campaign`."""
        await self.release()
        while True:
            try:
                with catalog_errors():
                    epoch = await self._try()
            except Unavailable:
                await self._disconnect()
                epoch = None
            if epoch is not None:
                return self._begin(epoch)
            await asyncio.sleep(STANDBY_INTERVAL_S)

    async def release(self) -> None:
        """See `Election.release`."""
        term, self._term = self._term, None
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait({self._beating})
            self._beating = None
        if term is None:
            return
        term.lost.set()
        connection = self._connection
        if connection is None:
            return
        # The session lock goes with the connection; the heartbeat would only delay those who cannot see that.
        try:
            with catalog_errors():
                await self._beat(connection, term, ttl_s=0)
        except Unavailable:
            logger.info("heartbeat not withdrawn: it will expire", extra={"epoch": term.epoch})
        await self._disconnect()

    async def close(self) -> None:
        """Give the role up and close the connection."""
        await self.release()
        await self._disconnect()

    async def committer_address(self) -> str | None:
        """See `Election.committer_address`."""
        with catalog_errors():
            address: str | None = await self._pool.fetchval(_ADDRESS, self._lake)
        return address

    async def _try(self) -> int | None:
        connection = await self._connected()
        row = await connection.fetchrow(_STATE, self._lake)
        if row is None:
            return None  # the lake is not made yet
        epoch, beating, free = row
        try:
            return await self._take_over(connection, epoch) if free or not beating else None
        finally:
            if free and not connection.is_closed():
                await connection.fetchval(_UNLOCK, self._lake, epoch)

    async def _take_over(self, connection: asyncpg.Connection, epoch: int) -> int | None:
        async with connection.transaction():
            mine: int | None = await connection.fetchval(
                _TAKE_OVER, self._lake, TAKE_OVER_WAIT_MS, epoch
            )
            if mine is not None:
                # Before the epoch can be seen by others. Should it fail, others follow at once, as after a death.
                await connection.fetchval(_TRY_LOCK, self._lake, mine)
                # An epoch seen without a heartbeat would be followed as one whose holder hangs.
                await self._beat(connection, Term(epoch=mine), ttl_s=BEAT_TTL_S)
                await connection.fetchval(_NAME, f"dm:{self._lake}:w:{mine}")
        return mine

    def _begin(self, epoch: int) -> Term:
        term = Term(epoch=epoch)
        self._term = term
        self._beating = asyncio.create_task(self._keep_beating(term), name=f"heartbeat-{epoch}")
        logger.info("elected committer", extra={"lake": self._lake, "epoch": epoch})
        return term

    async def _keep_beating(self, term: Term) -> None:
        try:
            with catalog_errors():
                beating = True  # by the take-over
                while beating and (connection := self._connection) is not None:
                    await asyncio.sleep(BEAT_INTERVAL_S)
                    beating = await self._beat(connection, term, ttl_s=BEAT_TTL_S)
        except Unavailable:
            logger.warning("control connection lost", extra={"epoch": term.epoch})
        except Exception:
            logger.exception("heartbeat failed", extra={"epoch": term.epoch})
        finally:
            term.lost.set()

    async def _beat(self, connection: asyncpg.Connection, term: Term, *, ttl_s: float) -> bool:
        alive: bool = await connection.fetchval(
            _BEAT,
            self._lake,
            term.epoch,
            self._holder,
            self._address,
            ttl_s,
            term.inflight_to,
            timeout=BEAT_TTL_S,  # past it the lease may be another's: as good as lost
        )
        return alive

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await postgres.connect(
                self._secret_dir,
                application_name=f"duckmesh:{self._lake}:standby",
                statement_timeout_ms=_STATEMENT_TIMEOUT_MS,
                settings={"duckmesh.protocol": str(PROTOCOL)},
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=1)
            except (OSError, TimeoutError, asyncpg.PostgresError):
                connection.terminate()
