"""Storage prefixes of all Tenants, so that no two keep their data in one place. Filled at start, kept by `reconcile`.

Overlap counts as well: a folder inside another's would be read, and cleaned up, as part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from duckmesh_operator.model import Meta


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    store: str
    prefix: str
    created: str
    uid: str


class Prefixes:
    """Who claims which prefix; the older Tenant wins."""

    def __init__(self) -> None:
        self._claims: dict[str, _Claim] = {}

    def claim(self, meta: Meta, store: str, prefix: str) -> str | None:
        """Record a Tenant's prefix; returns the `namespace/name` of an older Tenant whose data lies there."""
        mine = _Claim(store=store, prefix=prefix, created=meta.created, uid=meta.uid)
        self._claims[meta.full_name] = mine
        for name, other in sorted(self._claims.items()):
            if name != meta.full_name and _overlap(mine, other) and _older(other, mine):
                return name
        return None

    def release(self, full_name: str) -> None:
        """Forget a Tenant that is gone."""
        self._claims.pop(full_name, None)


def _overlap(one: _Claim, other: _Claim) -> bool:
    a, b = f"{one.prefix}/", f"{other.prefix}/"
    return one.store == other.store and (a.startswith(b) or b.startswith(a))


def _older(one: _Claim, other: _Claim) -> bool:
    return (one.created, one.uid) < (other.created, other.uid)
