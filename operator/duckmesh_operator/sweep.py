"""The lag sweep: one query per catalog database every few seconds; Tenants whose status is due are queued.

Also retires the logins of Tenants that are gone. It writes no status: only the reconcile does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

from duckmesh_operator import metrics
from duckmesh_operator.errors import OperatorError
from duckmesh_operator.lag import CatalogHealth, LagBoard, LagReport, catalog_health

logger = logging.getLogger(__name__)

#: Seconds between two looks for lakes without a Tenant; a lake must be without one twice. A deleted Tenant's pods have
#: drained long before.
RETIRE_EVERY_S: Final = 300.0

#: SQLSTATEs of a missing table and a missing schema.
_NOT_THERE: Final = ("42P01", "3F000")


class SweptCatalog(Protocol):
    """The part of a catalog that the sweep needs; `catalog.Catalog` is one."""

    name: str

    async def sweep(self) -> list[LagReport]:
        """See `catalog.Catalog`."""

    async def retire_lakes(self, owners: Mapping[str, str]) -> list[str]:
        """See `catalog.Catalog`."""


class Sweeper:
    """Sweeps all catalogs.

    Args:
        catalogs: By name.
        board: Where reports go.
        due: Called with the `namespace/name` of each Tenant whose status is due.
        swept: Called after each look at a catalog.
        alive: Uids of all Tenants the operator serves.
        namespaces: Namespaces it serves; empty means all. Lakes of others are left alone.
        interval_s: Seconds between two looks.
        clock: Seconds.
    """

    def __init__(
        self,
        *,
        catalogs: Mapping[str, SweptCatalog],
        board: LagBoard,
        due: Callable[[str], None],
        alive: Callable[[], Awaitable[Collection[str]]],
        namespaces: Collection[str],
        interval_s: float,
        clock: Callable[[], float],
        swept: Callable[[], None] = lambda: None,
    ) -> None:
        self._catalogs = catalogs
        self._board = board
        self._due = due
        self._swept = swept
        self._alive = alive
        self._namespaces = namespaces
        self._interval_s = interval_s
        self._clock = clock
        self._reports: dict[str, list[LagReport]] = {}
        self._suspects: dict[str, dict[str, str]] = {}
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Sweep until cancelled; a slow catalog delays only itself."""
        async with asyncio.TaskGroup() as group:
            for catalog in self._catalogs.values():
                group.create_task(self._run(catalog))

    async def look(self) -> None:
        """Look at all catalogs once, so that the first reconcile knows the lag as its predecessor did."""
        async with asyncio.TaskGroup() as group:
            for catalog in self._catalogs.values():
                group.create_task(self.sweep(catalog))

    async def sweep(self, catalog: SweptCatalog) -> None:
        """Look at one catalog once."""
        started = self._clock()
        try:
            reports = await catalog.sweep()
        except OperatorError as error:
            metrics.swept(catalog.name, self._clock() - started, ok=False)
            self._fail(catalog.name, error)
            return
        metrics.swept(catalog.name, self._clock() - started, ok=True)
        self._reports[catalog.name] = reports
        self._tell_unreadable(reports)
        for tenant in self._board.update(catalog.name, reports):
            self._due(tenant)
        self._swept()

    def _tell_unreadable(self, reports: Collection[LagReport]) -> None:
        """Log each lake once when it turns unreadable, not at every look."""
        for report in reports:
            if report.error and report.lake not in self._unreadable:
                extra = {"lake": report.lake, "tenant": report.tenant, "error": report.error}
                # A lake that is being made has no tables yet.
                level = logging.INFO if report.error.startswith(_NOT_THERE) else logging.WARNING
                logger.log(level, "lake unreadable", extra=extra)
        self._unreadable = {report.lake for report in reports if report.error} | {
            lake for lake in self._unreadable if lake not in {report.lake for report in reports}
        }

    async def retire(self, catalog: SweptCatalog) -> None:
        """Take the logins of lakes that were without a Tenant at two looks in a row."""
        alive = await self._alive()
        gone = {
            report.lake: report.tenant_uid
            for report in self._reports.get(catalog.name, [])
            if report.tenant_uid not in alive and self._serves(report.tenant)
        }
        before = self._suspects.get(catalog.name, {})
        self._suspects[catalog.name] = gone
        twice = dict(sorted(gone.items() & before.items()))
        # What was read above may be outdated: whose a lake is, is asked again.
        if twice and (retired := await catalog.retire_lakes(twice)):
            logger.info("logins retired", extra={"catalog": catalog.name, "logins": retired})

    async def _run(self, catalog: SweptCatalog) -> None:
        retire_at = self._clock() + RETIRE_EVERY_S / 10
        while True:
            started = self._clock()
            await self.sweep(catalog)
            if self._clock() >= retire_at:
                retire_at = self._clock() + RETIRE_EVERY_S
                await self._retire_quietly(catalog)
            await asyncio.sleep(max(0.0, started + self._interval_s - self._clock()))

    async def _retire_quietly(self, catalog: SweptCatalog) -> None:
        try:
            await self.retire(catalog)
        except OperatorError as error:
            logger.warning(
                "logins not retired", extra={"catalog": catalog.name, "error": str(error)}
            )

    def _serves(self, tenant: str) -> bool:
        return not self._namespaces or tenant.partition("/")[0] in self._namespaces

    def _fail(self, name: str, error: OperatorError) -> None:
        health = catalog_health(error)
        if health != self._board.health(name, CatalogHealth(ok=True)):
            logger.warning("sweep failed", extra={"catalog": name, "error": str(error)})
        for tenant in self._board.fail(name, health):
            self._due(tenant)
        self._swept()
