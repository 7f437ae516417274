"""Mounted Secrets for the operator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def secrets_dir(tmp_path: Path) -> Path:
    """Mounted Secrets of catalog and store."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "access-key-id").write_text("key-id\n")
    (store / "secret-access-key").write_text("key-secret\n")
    return tmp_path
