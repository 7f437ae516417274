"""ConfigMap of the tables that a Tenant declares, mounted in its ingest pods; the committer brings them about.

Its text is the runtime's form of a table (`docs/http-api.md`). A digest of it comes back with the report, so that the
status tells whether the report is about the present spec. There is one without declared tables too: the name is ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from duckmesh_operator.manifest import Json, Manifest, list_at, text_at
from duckmesh_operator.model import Tenant
from duckmesh_operator.names import CONFIG_MAP, child
from duckmesh_operator.specs.context import build_child

PART: Final = "tables"
FILE: Final = "tables.json"


def build_tables(tenant: Tenant) -> Manifest:
    """`<tenant>-tables`."""
    manifest = build_child(CONFIG_MAP, tenant, child(tenant.meta.name, PART), "ingest")
    manifest["data"] = {FILE: tables_text(tenant)}
    return manifest


def tables_text(tenant: Tenant) -> str:
    """The declaration as the runtime reads it."""
    return json.dumps({"tables": [_table(one) for one in tenant.tables]}, separators=(",", ":"))


def tables_digest(tenant: Tenant) -> str:
    """What the committer's report about this declaration carries."""
    return hashlib.sha256(tables_text(tenant).encode()).hexdigest()


def _table(raw: Json) -> Manifest:
    keys = list_at(raw, "primaryKey")
    return {
        "name": text_at(raw, "name"),
        "columns": [
            _column(one, keys) for one in list_at(raw, "columns") if isinstance(one, Mapping)
        ],
        "primary_key": keys,
        "partition_by": list_at(raw, "partitionBy"),
        "sort_by": list_at(raw, "sortBy"),
    }


def _column(raw: Json, keys: list[object]) -> Manifest:
    # The schema fills in `nullable: true` where a column of the key says nothing; a key is never NULL.
    nullable = raw.get("nullable", True) if raw.get("name") not in keys else False
    found: Manifest = {"name": raw.get("name"), "type": raw.get("type"), "nullable": nullable}
    return found | ({"default": raw["default"]} if "default" in raw else {})
