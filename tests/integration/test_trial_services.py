"""The trial services of a cluster: one process that keeps Postgres and S3 up, or says that one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from duckmesh_runtime.dev.processes import free_port, wait_until

Environment = dict[str, str]


@pytest.fixture
def environment(services_dir: Path) -> Environment:
    return {
        "PATH": os.environ["PATH"],
        "DUCKMESH_DEV_DATA_DIR": str(services_dir / f"trial-{free_port()}"),
        "DUCKMESH_DEV_POSTGRES_PASSWORD": "admin's",
        "DUCKMESH_DEV_CONTROL_PASSWORD": "control's",
        "DUCKMESH_DEV_S3_ACCESS_KEY": "key",
        "DUCKMESH_DEV_S3_SECRET_KEY": "secret",
        "DUCKMESH_DEV_POSTGRES_PORT": str(free_port()),
        "DUCKMESH_DEV_S3_PORT": str(free_port()),
        "DUCKMESH_BIND": "127.0.0.1",
    }


@contextmanager
def services(environment: Environment, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "duckmesh_runtime.dev.services"],
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: b"services answer" in log.read_bytes(), process, log, 60)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def ask(environment: Environment, user: str, password: str, sql: str) -> object:
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=int(environment["DUCKMESH_DEV_POSTGRES_PORT"]),
        user=user,
        password=password,
        database="duckmesh",
    )
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_the_operator_login_can_make_logins_and_keeps_its_data_over_a_restart(
    environment: Environment, tmp_path: Path
) -> None:
    with services(environment, tmp_path / "log"):
        await ask(
            environment, "duckmesh_operator", "control's", "CREATE ROLE made_by_operator LOGIN"
        )

    renewed = environment | {"DUCKMESH_DEV_CONTROL_PASSWORD": "renewed"}
    with services(renewed, tmp_path / "log2") as process:
        sql = "SELECT pg_has_role('duckmesh_control', 'member') AND to_regrole('made_by_operator') IS NOT NULL"
        assert await ask(renewed, "duckmesh_operator", "renewed", sql) is True
    assert process.returncode == 0


@pytest.mark.parametrize("victim", ["postgres", "weed"])
def test_the_process_ends_with_an_error_when_a_service_dies(
    environment: Environment, tmp_path: Path, victim: str
) -> None:
    with services(environment, tmp_path / "log") as process:
        child = next(
            child for child in psutil.Process(process.pid).children() if child.name() == victim
        )
        child.send_signal(signal.SIGKILL)

        assert process.wait(30) == 1


def test_missing_settings_are_named_together() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "duckmesh_runtime.dev.services"],
        env={"PATH": os.environ["PATH"], "DUCKMESH_DEV_DATA_DIR": "/nowhere"},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 2
    assert b"DUCKMESH_DEV_POSTGRES_PASSWORD, DUCKMESH_DEV_CONTROL_PASSWORD" in run.stderr
