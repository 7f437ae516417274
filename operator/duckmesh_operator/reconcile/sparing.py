"""Looks that cost a request and rarely find anything, taken when something about their subject changed, else seldom.

Secrets and the catalog's registry are on no watch. They are looked at when a Tenant is new, when its spec, its
readiness or the operator's own credentials change, and otherwise at the first reconcile after `CHECK_S`: with the usual
resync at least every 15 minutes. Of a Tenant that is not ready, at each resync: its Secrets may be why. A fresh process
trusts what its predecessor made at its first reconcile of a Tenant, and no longer than until the second: then it reads
the two Secrets that tell whether the Tenant has the platform's credentials as they are now.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Generic, TypeVar

from duckmesh_operator.catalog import Catalog, Lake
from duckmesh_operator.errors import NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.lag import LagReport
from duckmesh_operator.manifest import Manifest, list_at, number_at, text_at
from duckmesh_operator.model import Meta
from duckmesh_operator.names import (
    DEPLOYMENT,
    LABEL_TENANT_UID,
    MIGRATION,
    SECRET,
    TENANT,
    child,
    logins,
)
from duckmesh_operator.reconcile.children import Outcome
from duckmesh_operator.reconcile.credentials import Credentials, read_store
from duckmesh_operator.specs.context import Context
from duckmesh_operator.specs.secret import build_dsn, read_password, read_secret

#: Seconds for which a look that found all well counts.
CHECK_S: Final = 600.0
#: The same while the Tenant is not ready: less than a resync.
CHECK_UNREADY_S: Final = 240.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look(Generic[T]):
    at: float
    mark: object
    found: T


class Looks(Generic[T]):
    """What was found where, and when; what nobody asked for in a long time is forgotten.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looks: dict[str, _Look[T]] = {}

    def recall(self, subject: str, mark: object, *, within_s: float = CHECK_S) -> T | None:
        """What was found while the mark was the same; None when it is time to look again."""
        look = self._looks.get(subject)
        if look is None or look.mark != mark or self._clock() - look.at >= within_s:
            return None
        return look.found

    def keep(self, subject: str, mark: object, found: T, *, ago_s: float = 0) -> None:
        """Remember what was found now, or some seconds ago."""
        now = self._clock()
        self._looks.pop(subject, None)
        self._looks[subject] = _Look(at=now - ago_s, mark=mark, found=found)
        while (oldest := next(iter(self._looks))) and now - self._looks[oldest].at > 4 * CHECK_S:
            del self._looks[oldest]

    def forget(self, subject: str) -> None:
        """Look again next time."""
        self._looks.pop(subject, None)


class SparingCredentials(Credentials):
    """`Credentials` that remembers when all was well.

    Args:
        api: The API server, with Tenants and Deployments at no cost.
        clock: Seconds.
        spread: Returns how long ago a predecessor's look is taken to be, as a part of the time it counts.
    """

    def __init__(
        self,
        api: Api,
        *,
        clock: Callable[[], float],
        spread: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(api)
        self._spread = spread
        self._looks: Looks[bool] = Looks(clock)
        #: All that this process ever saw: trust is given once, not each time that a look is forgotten.
        self._met: set[str] = set()
        self._trusted: dict[str, str] = {}

    async def ensure(self, context: Context, catalog: Catalog) -> Outcome:
        """See `Credentials`; an outcome without objects when all was well lately."""
        meta = context.tenant.meta
        tenant = await self._tenant(meta)
        ready = _is_ready(tenant)
        mark = _mark(context, catalog, ready=ready)
        within_s = CHECK_S if ready else CHECK_UNREADY_S
        if meta.uid not in self._met:
            self._met.add(meta.uid)
            if await self._was_made(tenant, meta):
                self._trusted[meta.uid] = mark
                return Outcome(live=[])
        trusted = self._trusted.pop(meta.uid, "") == mark and ready
        if trusted and await self._is_current(context, catalog):
            self._looks.keep(meta.uid, mark, True, ago_s=self._spread() * within_s)
        if self._looks.recall(meta.uid, mark, within_s=within_s):
            return Outcome(live=[])
        self._looks.forget(meta.uid)
        outcome = await super().ensure(context, catalog)
        if not outcome.problems:
            self._looks.keep(meta.uid, mark, True)
        return outcome

    async def _tenant(self, meta: Meta) -> Manifest:
        try:
            return await self._api.get(TENANT, meta.namespace, meta.name)
        except NotFound:
            return {}

    async def _is_current(self, context: Context, catalog: Catalog) -> bool:
        """Whether the Secrets follow the platform's: of each rotation the one that is written last tells."""
        meta = context.tenant.meta
        try:
            key = await self._api.get(SECRET, meta.namespace, child(meta.name, "store"))
            login = await self._api.get(SECRET, meta.namespace, child(meta.name, "reader"))
        except NotFound:
            return False
        dsn = read_secret(login, "dsn")
        if dsn != build_dsn(catalog.control_dsn, logins(meta.lake)[2], read_password(dsn)):
            return False
        wanted = read_store(context.store.secret_dir)
        return all(read_secret(key, name) == value for name, value in wanted.items())

    async def _was_made(self, tenant: Manifest, meta: Meta) -> bool:
        """Whether a predecessor came so far with this very spec: it starts no worker before its Secrets."""
        if number_at(tenant, "status", "observedGeneration") != meta.generation:
            return False
        labels = {LABEL_TENANT_UID: meta.uid}
        return bool(await self._api.list(DEPLOYMENT, meta.namespace, labels))


class SparingCatalog(Catalog):
    """A `Catalog` that remembers a Tenant's healthy lake for as long as each sweep shows it.

    Args:
        name: See `Catalog`.
        secret_dir: See `Catalog`.
        clock: Seconds.
    """

    def __init__(self, name: str, secret_dir: Path, *, clock: Callable[[], float]) -> None:
        super().__init__(name, secret_dir)
        self._looks: Looks[list[Lake]] = Looks(clock)
        self._swept: frozenset[str] = frozenset()

    async def sweep(self) -> list[LagReport]:
        """See `Catalog`; a database that does not answer has nothing to remember."""
        swept, self._swept = self._swept, frozenset()
        reports = await super().sweep()
        found = frozenset(report.lake for report in reports if not report.error)
        for lake in swept - found:
            self._looks.forget(lake)
        self._swept = found
        return reports

    async def lakes(self, *, lake: str, tenant: str, data_url: str) -> list[Lake]:
        """See `Catalog`."""
        mark = (tenant, data_url)
        known = self._looks.recall(lake, mark) if lake in self._swept else None
        if known is not None:
            return known
        found = await super().lakes(lake=lake, tenant=tenant, data_url=data_url)
        if _is_settled(found, lake, tenant):
            self._looks.keep(lake, mark, found)
        else:
            self._looks.forget(lake)
        return found


def _mark(context: Context, catalog: Catalog, *, ready: bool) -> str:
    """Changes with whatever Secrets and logins are made of, and tells none of it."""
    parts = (context, ready, catalog.control_dsn, read_store(context.store.secret_dir))
    return sha256(repr(parts).encode()).hexdigest()


def _is_ready(tenant: Manifest) -> bool:
    return any(
        text_at(one, "type") == "Ready" and text_at(one, "status") == "True"
        for one in list_at(tenant, "status", "conditions")
    )


def _is_settled(found: Sequence[Lake], lake: str, tenant: str) -> bool:
    """Whether it is the Tenant's own lake, all made, and no other is in its way."""
    return [(one.lake, one.tenant, one.migration >= MIGRATION) for one in found] == [
        (lake, tenant, True)
    ]
