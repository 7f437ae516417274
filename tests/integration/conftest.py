"""Fixtures of integration tests; the services themselves come from tests/services.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from duckmesh_runtime.dev.processes import free_port
from tests.pods import Tenant, tenant_of
from tests.services import Lake


@pytest.fixture
def folder(services_dir: Path) -> Path:
    """One that Postgres may enter."""
    return services_dir / f"laptop-{free_port()}"


@pytest.fixture
def tenant(lake: Lake) -> Iterator[Tenant]:
    with tenant_of(lake) as found:
        yield found


@pytest.fixture
def s3_tenant(s3_lake: Lake) -> Iterator[Tenant]:
    with tenant_of(s3_lake) as found:
        yield found


@pytest.fixture
async def s3_lake(make_lake: Callable[..., Awaitable[Lake]]) -> Lake:
    return await make_lake(store="s3")
