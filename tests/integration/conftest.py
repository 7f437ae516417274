"""Fixtures of integration tests; the services themselves come from tests/services.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from duckmesh_runtime.dev.processes import free_port


@pytest.fixture
def folder(services_dir: Path) -> Path:
    """One that Postgres may enter."""
    return services_dir / f"laptop-{free_port()}"
