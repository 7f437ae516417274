"""Rows as they travel from ingest to the committer: Arrow, with what the committer must know in the schema. Pure."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

import pyarrow as pa

from duckmesh_runtime.domain.schema import TableDef, arrow_schema

DELETED: Final = "duckmesh:deleted"
"""Boolean column behind those of a keyed table: true for a delete. No table can have such a column name."""

_KEY: Final = b"duckmesh:key"


@lru_cache(maxsize=1024)
def bus_schema(table: TableDef) -> pa.Schema:
    """Schema of a table's rows on the bus.

    Without a primary key it is the table's own. With one, each row is an upsert or a delete: `DELETED` says which, a delete
    has NULL in all columns but the key's, and the schema's metadata names the key.
    """
    rows = arrow_schema(table)
    if not table.primary_key:
        return rows
    fields = [field.with_nullable(field.name not in table.primary_key) for field in rows]
    key = json.dumps(list(table.primary_key)).encode()
    return pa.schema([*fields, pa.field(DELETED, pa.bool_(), nullable=False)], metadata={_KEY: key})


def key_of(schema: pa.Schema) -> tuple[str, ...]:
    """The primary key that rows of this schema are upserted by; empty for rows that are inserted."""
    return tuple(json.loads((schema.metadata or {}).get(_KEY, b"[]")))
