"""How a lake is attached in a role of its fence: what DuckDB is told, so that Postgres knows who commits.

Called by what changes a lake: `ducklake.py` as the writer, `maintenance.py` as its maintenance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.settings import StoreSettings, read_secret

Role = Literal["w", "m"]

# A peer that vanished without a word is noticed within these; DuckDB itself knows no timeout. Seconds, but the second.
_NETWORK: Final = {
    "connect_timeout": "3",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


def attach_as(
    role: Role,
    *,
    lake: str,
    epoch: int,
    store: StoreSettings,
    secret_dir: Path,
    version: int | None = None,
) -> str:
    """The ATTACH of a lake for one lease epoch.

    Args:
        role: `w` writes, `m` maintains.
        lake: Catalog schema.
        epoch: The lease epoch of that role.
        store: Where the Parquet lies.
        secret_dir: Folder with `dsn` of the role's login, read now.
        version: A snapshot, to read the lake as it was.
    """
    options = {
        "duckmesh.role": role,
        "duckmesh.epoch": str(epoch),
        "statement_timeout": "30s",
        "lock_timeout": "5s",
    }
    conninfo = lakesql.conninfo(
        read_secret(secret_dir, "dsn"),
        application_name=f"dm:{lake}:{role}:{epoch}",
        options=lakesql.options_text(options),
        **_NETWORK,
    )
    path = duckdb_engine.data_path(store)
    return lakesql.attach_lake(conninfo, schema=lake, data_path=path, version=version)
