"""A catalog database in memory, for tests of the operator; the real one: tests/integration/test_operator_catalog.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from duckmesh_operator.catalog import Lake, Login
from duckmesh_operator.errors import OperatorError
from duckmesh_operator.lag import LagReport
from duckmesh_operator.names import logins


class FakeCatalog:
    """Registry, logins and sweep of `duckmesh_operator.catalog.Catalog`.

    Attributes:
        registry: Registered lakes.
        logins: What each role was last told; password as given.
        retired: Roles that may not log in.
        reports: What the next sweep returns.
        writes: Roles changed, in order.
        failing: Raised by every call while set.
        empty: The database has no registry.
    """

    def __init__(self, name: str = "default", dsn: str = "") -> None:
        self.name = name
        self.control_dsn = dsn or "postgresql://control:secret@postgres.db:5432/duckmesh"
        self.ports: tuple[int, ...] = (5432,)
        self.registry: list[Lake] = []
        self.logins: dict[str, Login] = {}
        self.retired: set[str] = set()
        self.reports: list[LagReport] = []
        self.writes: list[str] = []
        self.failing: OperatorError | None = None
        self.empty = False

    def install(self, uid: str, tenant: str, data_url: str, migration: int) -> None:
        """Do what the migrate Job does."""
        lake = "lake_" + uid.replace("-", "")[:16]
        self.registry = [one for one in self.registry if one.lake != lake]
        self.registry.append(
            Lake(
                lake=lake,
                tenant=tenant,
                tenant_uid=uid,
                data_url=data_url,
                migration=migration,
            )
        )

    async def lakes(self, *, lake: str, tenant: str, data_url: str) -> list[Lake]:
        self._fail()
        return [
            one
            for one in self.registry
            if one.lake == lake
            or one.tenant == tenant
            or one.data_url.startswith(data_url)
            or data_url.startswith(one.data_url)
        ]

    async def records(self, *, uid: str, lake: str) -> list[Lake] | None:
        self._fail()
        if self.empty:
            return None
        return [one for one in self.registry if one.tenant_uid == uid or one.lake == lake]

    async def adopt_lake(self, lake: str, *, owner: str, heir: str) -> bool:
        self._fail()
        found = [one for one in self.registry if (one.lake, one.tenant_uid) == (lake, owner)]
        if not found or any(one.tenant_uid == heir for one in self.registry):
            return False
        self.registry.remove(found[0])
        self.registry.append(replace(found[0], tenant_uid=heir))
        return True

    async def forget_lake(self, lake: str, uid: str) -> None:
        self._fail()
        self.registry = [
            one
            for one in self.registry
            if not (one.purged and (one.lake, one.tenant_uid) == (lake, uid))
        ]

    async def drop_logins(self, names: Sequence[str]) -> None:
        self._fail()
        for name in names:
            self.logins.pop(name, None)
            self.retired.discard(name)

    def purge(self, uid: str) -> None:
        """Do what the purge Job does."""
        self.registry = [
            replace(one, purging=True, purged=True) if one.tenant_uid == uid else one
            for one in self.registry
        ]

    async def ensure_logins(self, logins: Sequence[Login]) -> None:
        self._fail()
        for login in logins:
            known = self.logins.get(login.name)
            same = known is not None and (known.connections, known.settings) == (
                login.connections,
                login.settings,
            )
            if not same or login.renew or login.name in self.retired:
                self.writes.append(login.name)
            self.logins[login.name] = login
            self.retired.discard(login.name)

    async def retire_logins(self, names: Sequence[str]) -> list[str]:
        self._fail()
        active = [name for name in names if name in self.logins and name not in self.retired]
        self.retired |= set(active)
        return active

    async def retire_lakes(self, owners: Mapping[str, str]) -> list[str]:
        mine = [one.lake for one in self.registry if owners.get(one.lake) == one.tenant_uid]
        return await self.retire_logins([name for lake in mine for name in logins(lake)])

    async def sweep(self) -> list[LagReport]:
        self._fail()
        return list(self.reports)

    async def close(self) -> None:
        return

    def _fail(self) -> None:
        if self.failing is not None:
            raise self.failing
