"""Credentials of a Tenant: logins in the catalog, Secrets in its namespace. Made once; repaired where they are missing.

A Secret follows what the platform rotates: the catalog's address, the store's key. A login's password is the operator's own:
deleting the Secret makes a new one. Workers read their Secrets anew for each connection and lose none by it.

The order makes every interruption harmless: a login gets its new password before the Secret that tells it, so a Secret
that exists is right; the admin key is written before the hash that knows it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from duckmesh_operator.catalog import Catalog, Login, maintenance, reader, writer
from duckmesh_operator.conditions import say
from duckmesh_operator.errors import NotFound
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import SECRET, child
from duckmesh_operator.plan import is_usable
from duckmesh_operator.reconcile.children import Outcome, apply_known
from duckmesh_operator.specs.context import Context, seal
from duckmesh_operator.specs.secret import (
    admin_key,
    build_dsn,
    build_keys,
    build_secret,
    read_password,
    read_secret,
)
from duckmesh_operator.status import Problem

#: Names of the store's values, in the platform's Secret and in the Tenant's.
STORE_KEY = ("access-key-id", "secret-access-key")
#: Secrets in the order to write them: the admin key before the hash that knows it.
PARTS = ("writer", "maintenance", "reader", "store", "admin-key", "auth")


class Credentials:
    """Makes and repairs what workers need to know.

    Args:
        api: The API server.
        token: Returns random hex digits of that many bytes.
    """

    def __init__(self, api: Api, token: Callable[[int], str] = secrets.token_hex) -> None:
        self._api = api
        self._token = token

    async def ensure(self, context: Context, catalog: Catalog) -> Outcome:
        """Bring logins and Secrets to what they should be; writes nothing when they are.

        Raises:
            Unavailable, Forbidden: The catalog or the API server cannot be used.
        """
        tenant = context.tenant
        live = await self._read(tenant)
        taken = [part for part, item in live.items() if not is_usable(item, tenant.meta.uid)]
        if taken:
            # Neither trusted nor touched; the plan says why, and no login gets a password that nobody can store.
            wanted = [seal(build_secret(tenant, part, {})) for part in taken]
            found = [live[part] for part in taken]
            return await apply_known(self._api, tenant.meta, wanted, found)
        values = await self._logins(context, catalog, live)
        values |= self._keys(live)
        problems: list[Problem] = []
        if store := read_store(context.store.secret_dir):
            values["store"] = store
        elif "store" not in live:  # workers that have a key keep it; StorageReachable tells it
            message = say("StorageReachable", "SecretMissing", store=context.store.name).message
            problems.append(Problem(reason="SecretMissing", message=message))
        wanted = [
            seal(build_secret(tenant, part, values[part])) for part in PARTS if part in values
        ]
        # A Secret that is as it should be has no wanted counterpart and must not look superfluous.
        found = [item for part, item in live.items() if part in values]
        outcome = await apply_known(self._api, tenant.meta, wanted, found)
        outcome.problems += problems
        return outcome

    async def _read(self, tenant: Tenant) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for part in PARTS:
            try:
                name = child(tenant.meta.name, part)
                found[part] = await self._api.get(SECRET, tenant.meta.namespace, name)
            except NotFound:
                continue
        return found

    async def _logins(
        self, context: Context, catalog: Catalog, live: Mapping[str, Manifest]
    ) -> dict[str, dict[str, str]]:
        """Ensure the three logins; returns the Secrets that must be written for it."""
        values: dict[str, dict[str, str]] = {}
        logins: list[Login] = []
        for part, login in _logins_of(context.tenant):
            known = read_secret(live.get(part, {}), "dsn")
            password = read_password(known)
            fresh = not password
            password = password or self._token(32)
            logins.append(replace(login, password=password, renew=fresh))
            dsn = build_dsn(catalog.control_dsn, login.name, password)
            if dsn != known:
                values[part] = {"dsn": dsn}
        await catalog.ensure_logins(logins)
        return values

    def _keys(self, live: Mapping[str, Manifest]) -> dict[str, dict[str, str]]:
        values: dict[str, dict[str, str]] = {}
        key = read_secret(live.get("admin-key", {}), "key")
        if not key:
            key = admin_key(self._token(32))
            values["admin-key"] = {"key": key}
        auth = live.get("auth", {})
        pepper, existing = read_secret(auth, "pepper"), read_secret(auth, "keys.json")
        keys = build_keys(existing, pepper=pepper, key=key) if pepper else ""
        if not pepper or keys != existing:
            pepper = pepper or self._token(32)
            keys = build_keys(existing, pepper=pepper, key=key)
            values["auth"] = {"pepper": pepper, "keys.json": keys}
        return values


def read_store(folder: Path) -> dict[str, str]:
    """The store's credential as mounted into the operator; empty when it is not, or lacks a value."""
    try:
        found = {name: (folder / name).read_text(encoding="utf-8").strip() for name in STORE_KEY}
    except OSError:
        return {}
    return found if all(found.values()) else {}


def _logins_of(tenant: Tenant) -> tuple[tuple[str, Login], ...]:
    lake = tenant.meta.lake
    # One more than there should be: rollouts surge by one.
    ingest, query = tenant.ingest.replicas + 1, tenant.query.replicas + 1
    return (
        ("writer", writer(lake, ingest)),
        ("maintenance", maintenance(lake, ingest + 1)),  # and a Compactor's Job
        ("reader", reader(lake, query)),
    )
