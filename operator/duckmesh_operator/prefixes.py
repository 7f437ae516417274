"""Storage prefixes of all Tenants, so that no two keep their data in one place. Filled at start, kept by `reconcile`.

Overlap counts as well: a folder inside another's would be read, and cleaned up, as part of it. Two stores of the
configuration may be the same bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duckmesh_operator.model import Meta
from duckmesh_operator.settings import StoreConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    bucket: tuple[str, str]
    prefix: str
    created: str
    uid: str


class Prefixes:
    """Who claims which prefix; the older Tenant wins.

    Args:
        stores: By name, as configured.
    """

    def __init__(self, stores: Mapping[str, StoreConfig]) -> None:
        self._buckets = {name: _bucket(store) for name, store in stores.items()}
        self._claims: dict[str, _Claim] = {}

    def claim(self, meta: Meta, store: str, prefix: str) -> str | None:
        """Record a Tenant's prefix; returns the `namespace/name` of an older Tenant whose data lies there."""
        bucket = self._buckets.get(store, ("", store))
        mine = _Claim(bucket=bucket, prefix=prefix, created=meta.created, uid=meta.uid)
        self._claims[meta.full_name] = mine
        for name, other in sorted(self._claims.items()):
            if name != meta.full_name and _overlap(mine, other) and _older(other, mine):
                return name
        return None

    def release(self, full_name: str) -> None:
        """Forget a Tenant that is gone."""
        self._claims.pop(full_name, None)


def _bucket(store: StoreConfig) -> tuple[str, str]:
    """Endpoint and bucket."""
    return store.endpoint.rstrip("/").lower(), store.bucket


def _overlap(one: _Claim, other: _Claim) -> bool:
    a, b = f"{one.prefix}/", f"{other.prefix}/"
    return one.bucket == other.bucket and (a.startswith(b) or b.startswith(a))


def _older(one: _Claim, other: _Claim) -> bool:
    return (one.created, one.uid) < (other.created, other.uid)
