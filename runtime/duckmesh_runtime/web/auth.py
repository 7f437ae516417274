"""API keys: who calls, and whether the call is theirs to make. Used by `app` for every route that is not open.

A key is `dmk_<id>_<64 hex digits>`. The folder holds `pepper` and `keys.json`; neither lets anyone make a key, since
`keys.json` has only HMAC-SHA-256(pepper, key). Both are read again when they change, so that a rotation needs no
restart.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from multidict import CIMultiDictProxy

from duckmesh_runtime.errors import SettingsError, Unauthorized
from duckmesh_runtime.settings import read_secret

logger = logging.getLogger(__name__)

_KEY = re.compile(r"dmk_([A-Za-z0-9_-]{1,63})_[0-9a-f]{64}")
_CHECK_S: Final = 1.0  # a rotated key works, and a removed one stops working, this much later
_INTERNAL: Final = "duckmesh internal v1:"
_UNAUTHENTICATED: Final = (
    "Authorization: no valid API key; send the header `Authorization: Bearer dmk_...` once"
)


class Role(StrEnum):
    """What a key may be allowed to do."""

    INGEST_WRITER = "ingest_writer"
    QUERY_READER = "query_reader"
    TABLE_ADMIN = "table_admin"
    OPS_ADMIN = "ops_admin"


class _StoredKey(msgspec.Struct, frozen=True):
    """One line of `keys.json`; further fields (a note, a date) are for people."""

    id: str
    hash: str
    roles: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who calls.

    Attributes:
        id: The key's id; safe to log.
        roles: What it may do.
    """

    id: str
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The keys as they were read; `known` are headers that were found good with these, never others."""

    stamp: tuple[object, ...]
    pepper: bytes
    keys: Sequence[_StoredKey]
    known: dict[str, Identity] = field(default_factory=dict, repr=False)

    def remember(self, header: str, identity: Identity) -> None:
        """Spare the next call with this header the HMAC; one key has few spellings, but not one only."""
        if len(self.known) >= 2 * len(self.keys):
            self.known.clear()
        self.known[header] = identity


def hash_key(pepper: str, key: str) -> str:
    """The hash of a key as `keys.json` holds it."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


class KeyRing:
    """The keys of one lake.

    Raises:
        SettingsError: At construction, when the folder is missing or unreadable: there is no way in without keys.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            raise SettingsError("DUCKMESH_AUTH_DIR: missing; without keys nothing is served")
        self._folder = folder
        try:
            self._loaded = self._load()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise SettingsError(
                "DUCKMESH_AUTH_DIR: want a folder with `pepper` and `keys.json`"
            ) from error
        self._checked = time.monotonic()

    def identify(self, headers: CIMultiDictProxy[str]) -> Identity:
        """The caller.

        Raises:
            Unauthorized: UNAUTHENTICATED, the same for a missing, malformed, doubled or unknown key.
        """
        sent = headers.getall("Authorization", [])
        loaded = self._fresh()
        if len(sent) == 1 and (known := loaded.known.get(sent[0])) is not None:
            return known
        scheme, _, key = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
        match = _KEY.fullmatch(key.strip())
        if scheme.lower() != "bearer" or match is None:
            raise Unauthorized("UNAUTHENTICATED", _UNAUTHENTICATED)
        digest = hmac.new(loaded.pepper, key.strip().encode(), hashlib.sha256).hexdigest()
        # All are compared, whatever the id: the time taken says nothing about which ids exist.
        found = [k for k in loaded.keys if hmac.compare_digest(k.hash.encode(), digest.encode())]
        for stored in found:
            if stored.id == match[1]:
                identity = Identity(id=stored.id, roles=frozenset(stored.roles))
                loaded.remember(sent[0], identity)
                return identity
        raise Unauthorized("UNAUTHENTICATED", _UNAUTHENTICATED)

    def internal_key(self, lake: str) -> str:
        """The secret that processes of one lake know each other by; it opens internal calls only."""
        purpose = (_INTERNAL + lake).encode()
        return hmac.new(self._fresh().pepper, purpose, hashlib.sha256).hexdigest()

    def check_internal(self, headers: CIMultiDictProxy[str], header: str, lake: str) -> None:
        """Refuse a caller that is not a process of this lake."""
        sent = headers.getall(header, [])
        given = sent[0] if len(sent) == 1 else ""
        # Bytes that are no UTF-8 come as surrogates.
        sent_bytes = given.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent_bytes, self.internal_key(lake).encode()):
            raise Unauthorized("UNAUTHENTICATED", "this call is for processes of the lake")

    def _fresh(self) -> _Loaded:
        now = time.monotonic()
        if now - self._checked >= _CHECK_S:
            self._checked = now
            try:
                if self._stamp() != self._loaded.stamp:
                    self._loaded = self._load()
                    logger.info("keys read again", extra={"keys": len(self._loaded.keys)})
            except (OSError, ValueError, msgspec.MsgspecError):
                # In the middle of a swap, or damaged: the last good keys stay in force.
                logger.warning("keys cannot be read", exc_info=True)
        return self._loaded

    def _load(self) -> _Loaded:
        stamp = self._stamp()
        pepper = read_secret(self._folder, "pepper")
        keys = msgspec.json.decode((self._folder / "keys.json").read_bytes(), type=list[_StoredKey])
        if not pepper:
            raise ValueError("the pepper is empty")
        return _Loaded(stamp, pepper.encode(), keys)

    def _stamp(self) -> tuple[object, ...]:
        # A mounted Secret changes by a swapped symbolic link: another inode, maybe the same size and second.
        parts = [(self._folder / name).stat() for name in ("pepper", "keys.json")]
        return tuple((p.st_mtime_ns, p.st_ino, p.st_size) for p in parts)


def check_role(identity: Identity, allowed: frozenset[str]) -> None:
    """Refuse a caller whose key has none of the allowed roles."""
    if not identity.roles & allowed:
        wanted = " or ".join(sorted(allowed))
        raise Unauthorized(
            "FORBIDDEN",
            f"the API key lacks the role for this call: use a key with {wanted}",
            context={"roles": sorted(allowed)},
        )
