"""Postgres and S3 of a trial cluster in one container: `python -m duckmesh_runtime.dev.services`.

For demos and tests, not for production data. Everything is written below one folder, so the root may be read-only.
The container's user needs a line in /etc/passwd: `initdb` refuses a nameless one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg

from duckmesh_runtime import log
from duckmesh_runtime.dev.postgres import SUPERUSER, PostgresServer
from duckmesh_runtime.dev.s3 import S3Server
from duckmesh_runtime.errors import SettingsError

logger = logging.getLogger(__name__)

DATABASE: Final = "duckmesh"
OPERATOR: Final = "duckmesh_operator"
CONTROL: Final = "duckmesh_control"
# Sixty lakes of a trial, each with some connections, fit easily; the default shared memory of a pod is 64 MB.
_POSTGRES: Final = {"shared_buffers": "128MB", "dynamic_shared_memory_type": "mmap"}
_HBA: Final = "local all all scram-sha-256\nhost all all all scram-sha-256\n"
_CHECK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesSettings:
    """What the trial services need.

    Attributes:
        folder: All data; kept over restarts.
        postgres_password: Of the superuser, the catalog's admin credential.
        control_password: Of the operator's login.
        s3_access_key: Key id of the one S3 identity.
        s3_secret_key: Its secret.
        bind: Address both listen on.
        postgres_port: TCP port of Postgres.
        s3_port: TCP port of S3.
    """

    folder: Path
    postgres_password: str = field(repr=False)
    control_password: str = field(repr=False)
    s3_access_key: str
    s3_secret_key: str = field(repr=False)
    bind: str = "0.0.0.0"  # noqa: S104 - the services of a cluster are for its pods
    postgres_port: int = 5432
    s3_port: int = 8333


def services_from_env(env: Mapping[str, str]) -> ServicesSettings:
    """Read the settings.

    Raises:
        SettingsError: Lists every missing value.
    """
    names = {
        "folder": "DUCKMESH_DEV_DATA_DIR",
        "postgres_password": "DUCKMESH_DEV_POSTGRES_PASSWORD",
        "control_password": "DUCKMESH_DEV_CONTROL_PASSWORD",
        "s3_access_key": "DUCKMESH_DEV_S3_ACCESS_KEY",
        "s3_secret_key": "DUCKMESH_DEV_S3_SECRET_KEY",
    }
    values = {key: env.get(name, "") for key, name in names.items()}
    if missing := [names[key] for key, value in values.items() if not value]:
        raise SettingsError("settings are missing: " + ", ".join(missing))
    return ServicesSettings(
        folder=Path(values["folder"]),
        postgres_password=values["postgres_password"],
        control_password=values["control_password"],
        s3_access_key=values["s3_access_key"],
        s3_secret_key=values["s3_secret_key"],
        bind=env.get("DUCKMESH_BIND", "0.0.0.0"),  # noqa: S104 - as above
        postgres_port=int(env.get("DUCKMESH_DEV_POSTGRES_PORT", "5432")),
        s3_port=int(env.get("DUCKMESH_DEV_S3_PORT", "8333")),
    )


def run_services(settings: ServicesSettings, stop: threading.Event) -> int:
    """Run both until `stop` is set; returns the exit code: 1 when one of them ended by itself."""
    with ExitStack() as stack:
        postgres = stack.enter_context(_postgres(settings))
        asyncio.run(_prepare(postgres, settings))
        s3 = stack.enter_context(_s3(settings))
        logger.info("services answer", extra={"postgres": postgres.port, "s3": s3.port})
        while not stop.wait(_CHECK_S):
            for name, server in (("postgres", postgres), ("s3", s3)):
                if not server.running:
                    logger.error("a service ended", extra={"service_name": name})
                    return 1
        logger.info("services are ending")
    return 0


def _postgres(settings: ServicesSettings) -> PostgresServer:
    folder = settings.folder / "postgres"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "data").exists():
        # A volume's fsGroup opens the folder to the group at each mount, which Postgres refuses.
        (folder / "data").chmod(0o700)
    hba = folder / "pg_hba.conf"
    hba.write_text(_HBA)
    hba.chmod(0o644)
    return PostgresServer(
        folder,
        host=settings.bind,
        port=settings.postgres_port,
        password=settings.postgres_password,
        settings={**_POSTGRES, "hba_file": str(hba)},
    )


def _s3(settings: ServicesSettings) -> S3Server:
    return S3Server(
        settings.folder / "s3",
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        host=settings.bind,
        port=settings.s3_port,
    )


async def _prepare(server: PostgresServer, settings: ServicesSettings) -> None:
    """Make the database and the operator's login; passwords follow the environment. Safe to repeat."""
    admin = await asyncpg.connect(server.dsn(), timeout=30)
    try:
        await _set_password(admin, SUPERUSER, settings.postgres_password)
        (server.folder / "password").write_text(settings.postgres_password + "\n")
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await admin.execute(f"CREATE DATABASE {DATABASE}")
        await _ensure_role(admin, CONTROL, "NOLOGIN")
        await _ensure_role(admin, OPERATOR, "LOGIN CREATEROLE")
        await _set_password(admin, OPERATOR, settings.control_password)
        await admin.execute(f"GRANT {CONTROL} TO {OPERATOR}")
        await admin.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {OPERATOR}")
    finally:
        await admin.close()


async def _ensure_role(admin: asyncpg.Connection, role: str, options: str) -> None:
    if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
        await admin.execute(f"CREATE ROLE {role}")
    await admin.execute(f"ALTER ROLE {role} {options}")


async def _set_password(admin: asyncpg.Connection, role: str, password: str) -> None:
    # A password cannot be a parameter of ALTER ROLE; Postgres quotes it.
    statement = await admin.fetchval(
        "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)", role, password
    )
    await admin.execute(statement)


def main() -> int:
    """Run the services as the main process of a container."""
    log.configure(log_format="json", level="info", service="devservices", tenant="")
    try:
        settings = services_from_env(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return run_services(settings, stop)


if __name__ == "__main__":
    sys.exit(main())
