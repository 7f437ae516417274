"""Remove one lake for good: its files, its schemas, its rows in the catalog. Called by `duckmesh purge`.

The catalog decides whose the lake is and where its files are; nothing is touched before it has said so. Files go first,
since only the catalog tells where they are. A run that was ended at any point is finished by the next.
"""

from __future__ import annotations

import logging
from typing import Final

import asyncpg

from duckmesh_runtime.adapters import postgres
from duckmesh_runtime.adapters.migrate import DATABASE, alone, apply_migrations
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.errors import Unauthorized
from duckmesh_runtime.settings import PurgeSettings

logger = logging.getLogger(__name__)

_STATEMENT_TIMEOUT_MS: Final = 120_000
_LOCK_TIMEOUT_MS: Final = 60_000
_OWNED: Final = "DM005"
_BEGIN: Final = "SELECT duckmesh.begin_purge($1, $2, $3)"
_PURGE: Final = "SELECT duckmesh.purge_lake($1, $2)"


async def purge(settings: PurgeSettings) -> None:
    """Remove the lake; one that is gone already is fine.

    What stays is its record, which the operator takes after the lake's logins.

    Raises:
        Unauthorized: FORBIDDEN, the lake belongs to another uid, has its data elsewhere or not for itself.
        Unavailable: The catalog or the store does not answer; run it again.
    """
    with catalog_errors():
        connection = await postgres.connect(
            settings.admin_dir,
            application_name="duckmesh-purge",
            statement_timeout_ms=_STATEMENT_TIMEOUT_MS,
            lock_timeout_ms=_LOCK_TIMEOUT_MS,
        )
        try:
            await apply_migrations(connection)
            async with alone(connection, f"{DATABASE} {settings.lake}"):
                await _purge(connection, settings)
        finally:
            await connection.close()


async def _purge(connection: asyncpg.Connection, settings: PurgeSettings) -> None:
    if not await _begin(connection, settings):
        logger.info("nothing to purge", extra={"lake": settings.lake})
        return
    files = await StoreObjects(settings.store).remove_all()
    logger.info("files removed", extra={"lake": settings.lake, "files": files})
    # Rights of two lakes meet on rows of the database and shared tables; Postgres refuses the later.
    async with alone(connection, DATABASE):
        await connection.execute(_PURGE, settings.lake, settings.tenant_uid)
    logger.info("lake removed", extra={"lake": settings.lake})


async def _begin(connection: asyncpg.Connection, settings: PurgeSettings) -> bool:
    try:
        place = await connection.fetchval(
            _BEGIN, settings.lake, settings.tenant_uid, settings.store.url
        )
    except asyncpg.PostgresError as error:
        if error.sqlstate != _OWNED:
            raise
        raise Unauthorized(
            "FORBIDDEN",
            f"lake {settings.lake} belongs to another tenant, has its data elsewhere or shares its folder: "
            "nothing is removed",
        ) from error
    return place is not None
