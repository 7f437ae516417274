"""Secrets of a Tenant: logins, store credential, API keys. Random values come from the caller.

Formats are the runtime's (`docs/architecture.md`, Seam between operator and runtime).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from duckmesh_operator.manifest import Json, Manifest, dig
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import SECRET, child
from duckmesh_operator.specs.context import build_child

ROLES: Final = ("ingest_writer", "query_reader", "table_admin", "ops_admin")
ADMIN_KEY_ID: Final = "admin"
# libpq takes these from a URI's options too, there even before the login in front of the host.
_OF_ONE_LOGIN: Final = frozenset({"user", "password", "passfile", "sslpassword", "service"})


def build_secret(tenant: Tenant, part: str, values: Mapping[str, str]) -> Manifest:
    """`<tenant>-<part>` with these values."""
    manifest = build_child(SECRET, tenant, child(tenant.meta.name, part), "credentials")
    manifest["type"] = "Opaque"
    manifest["data"] = {
        key: base64.b64encode(value.encode()).decode() for key, value in values.items()
    }
    return manifest


def read_secret(manifest: Json, key: str) -> str:
    """One value of a Secret; empty when it is missing or not text."""
    packed = dig(manifest, "data", key)
    if not isinstance(packed, str):
        return ""
    try:
        return base64.b64decode(packed).decode()
    except ValueError:
        return ""


def build_dsn(control_dsn: str, login: str, password: str) -> str:
    """The catalog's address and options with another login: a libpq URI."""
    parts = urlsplit(control_dsn)
    place = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(login, safe='')}:{quote(password, safe='')}@{place}"
    options = [
        option
        for option in parts.query.split("&")
        if unquote(option.partition("=")[0]) not in _OF_ONE_LOGIN
    ]
    return parts._replace(netloc=netloc, query="&".join(options)).geturl()


def read_password(dsn: str) -> str:
    """The password of a libpq URI; empty when it has none."""
    try:
        return unquote(urlsplit(dsn).password or "")
    except ValueError:
        return ""


def admin_key(token: str) -> str:
    """The admin API key made of 64 random hex digits."""
    return f"dmk_{ADMIN_KEY_ID}_{token}"


def build_keys(existing: str, *, pepper: str, key: str) -> str:
    """`keys.json` with the admin key in it, other keys untouched; the same text when nothing changes."""
    entry: Manifest = {"id": ADMIN_KEY_ID, "hash": hash_key(pepper, key), "roles": list(ROLES)}
    try:
        found = json.loads(existing) if existing else []
    except ValueError:
        found = []
    kept = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if entry in kept:
        return existing
    others = [one for one in kept if one.get("id") != ADMIN_KEY_ID]
    return json.dumps([entry, *others])


def hash_key(pepper: str, key: str) -> str:
    """How a key is stored: hex HMAC-SHA-256 under the pepper."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()
