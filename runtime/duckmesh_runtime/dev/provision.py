"""What the operator does for a Tenant, done for the one lake of a laptop: database, logins, keys, folders.

Everything lies below one folder, private to its user. Passwords of logins are new at each start; the API key stays.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from duckmesh_runtime.dev.postgres import PostgresServer
from duckmesh_runtime.settings import MigrateSettings, QueryLimits, Settings, StoreSettings
from duckmesh_runtime.web.auth import Role, hash_key

DATABASE: Final = "duckmesh"
TENANT: Final = "laptop/local"
_LOGINS: Final = ("writer", "maintenance", "reader")
_ADMIN_KEY: Final = "admin-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLake:
    """The lake of a folder.

    Attributes:
        folder: Holds `postgres`, `data`, `auth`, `logins` and `admin-key`.
        uid: Stands for the Tenant's uid: made at the first start.
    """

    folder: Path
    uid: str

    @property
    def name(self) -> str:
        """Catalog schema, as the operator would name it."""
        return f"lake_{self.uid[:16]}"

    @property
    def store(self) -> StoreSettings:
        """Local files."""
        return StoreSettings(url=f"{(self.folder / 'data').as_uri()}/")

    @property
    def admin_key_file(self) -> Path:
        """The file with the API key of all roles."""
        return self.folder / _ADMIN_KEY

    @property
    def admin_key(self) -> str:
        """The API key of all roles."""
        return self.admin_key_file.read_text().strip()

    def login(self, role: str) -> str:
        """Name of a login: writer, maintenance or reader."""
        return f"{self.name}_{role[0]}"

    def secret_dir(self, role: str) -> Path:
        """Folder with `dsn` of a login, or of the catalog's admin."""
        return self.folder / "logins" / role

    def settings(self, *, port: int, runtime_dir: Path) -> Settings:
        """Settings of the one process; `runtime_dir` is for what does not outlive it."""
        return Settings(
            tenant=TENANT,
            lake=self.name,
            store=self.store,
            writer_dir=self.secret_dir("writer"),
            maintenance_dir=self.secret_dir("maintenance"),
            reader_dir=self.secret_dir("reader"),
            auth_dir=self.folder / "auth",
            bind="127.0.0.1",
            api_port=port,
            metrics_port=0,
            pod_name="laptop",
            sandbox_socket=runtime_dir / "sandbox.sock",
            catalog_dir=runtime_dir / "catalogs",
            query=QueryLimits(concurrency=2),  # each is a process that starts with the lake
            log_format="text",
            log_level="warning",
            drain_s=5,
        )

    def migrate_settings(self) -> MigrateSettings:
        """Settings of the migration."""
        return MigrateSettings(
            tenant=TENANT,
            tenant_uid=self.uid,
            lake=self.name,
            store=self.store,
            admin_dir=self.secret_dir("admin"),
            writer=self.login("writer"),
            maintenance=self.login("maintenance"),
            reader=self.login("reader"),
        )


def open_lake(folder: Path) -> LocalLake:
    """Find a folder's lake, or begin one: its uid and its keys."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    uid_file = folder / "uid"
    if not uid_file.exists():
        uid_file.write_text(secrets.token_hex(16) + "\n")
    lake = LocalLake(folder=folder, uid=uid_file.read_text().strip())
    if not lake.admin_key_file.exists():
        _make_keys(lake)
    return lake


async def ensure_logins(lake: LocalLake, postgres: PostgresServer) -> None:
    """Make the database and the logins, and leave their DSNs. Safe to repeat."""
    _write_secret(lake.secret_dir("admin") / "dsn", postgres.dsn(DATABASE))
    admin = await asyncpg.connect(postgres.dsn(), timeout=30)
    try:
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await admin.execute(f"CREATE DATABASE {DATABASE}")
        for role in _LOGINS:
            name, password = lake.login(role), secrets.token_urlsafe(24)
            known = await admin.fetchval("SELECT to_regrole($1) IS NOT NULL", name)
            # Neither a name nor a password can be a parameter of these; Postgres quotes them.
            statement = await admin.fetchval(
                f"SELECT format('{'ALTER' if known else 'CREATE'} ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)",
                name,
                password,
            )
            await admin.execute(statement)
            dsn = postgres.dsn(DATABASE, user=name, password=password)
            _write_secret(lake.secret_dir(role) / "dsn", dsn)
    finally:
        await admin.close()


def _make_keys(lake: LocalLake) -> None:
    pepper = secrets.token_hex(32)
    key = f"dmk_admin_{secrets.token_hex(32)}"
    line = {"id": "admin", "hash": hash_key(pepper, key), "roles": [role.value for role in Role]}
    _write_secret(lake.folder / "auth" / "pepper", pepper)
    _write_secret(lake.folder / "auth" / "keys.json", json.dumps([line]))
    _write_secret(lake.admin_key_file, key)  # last: its presence says that all is there


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(text + "\n")
