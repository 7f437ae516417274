"""Checks of a real lake's files, and damage done to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.integrity import PostgresCheck, open_check
from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.services.integrity import IntegrityService
from tests.direct import attach, take_over
from tests.lakes import LakeView
from tests.services import Lake


def integrity_of(lake: Lake, store: StoreObjects | None = None) -> IntegrityService:
    return IntegrityService(lambda: check_of(lake), store or StoreObjects(lake.store))


@asynccontextmanager
async def check_of(lake: Lake) -> AsyncIterator[PostgresCheck]:
    async with open_check(lake=lake.name, secret_dir=lake.maintenance_dir) as found:
        yield found


async def reported(lake: Lake, what: str) -> str | None:
    """The catalog's report as JSON text; `what` is its column."""
    query = f"SELECT {what}::text FROM duckmesh.maintenance_report WHERE lake = $1"
    rows = await LakeView(lake).fetch(query, lake.name)
    return rows[0][0] if rows else None


def file_of(lake: Lake, path: str) -> Path:
    """A file of a lake over local files."""
    return Path(duckdb_engine.data_path(lake.store)) / path


def make_older(file: Path, by: timedelta) -> None:
    """Move its time of change back."""
    at = file.stat().st_mtime - by.total_seconds()
    os.utime(file, (at, at))


@contextmanager
def lost(file: Path) -> Iterator[None]:
    """The file is away for a while."""
    aside = file.rename(file.with_name(f"{file.name}.aside"))
    try:
        yield
    finally:
        aside.rename(file)


@contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """The file has another content for a while."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


async def maintain(lake: Lake, *calls: str) -> None:
    """Run functions of DuckLake as the holder of the maintenance lease, each in a commit of its own."""
    await asyncio.to_thread(_maintain, lake, await take_over(lake, "m"), calls)


def _maintain(lake: Lake, epoch: int, calls: Sequence[str]) -> None:
    connection = attach(lake, "m", epoch)
    info = """extra_info => '{"role":"m"}'"""
    try:
        for call in calls:
            connection.execute("BEGIN")
            connection.execute(f"CALL lake.set_commit_message('duckmesh', 'merge', {info})")
            connection.execute(f"CALL {call}")
            connection.execute("COMMIT")
    finally:
        connection.close()
