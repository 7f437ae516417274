"""Marks tests by folder; a clean environment for each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import fuzz
from tests.services import catalog_dsn, lake, make_lake, postgres, s3, services_dir

__all__ = ["catalog_dsn", "lake", "make_lake", "postgres", "s3", "services_dir"]  # fixtures

KINDS = ("unit", "contract", "integration", "e2e")


# A busy machine makes an example slow; what hangs is ended by the time limit of the whole test. A usual run tries the same
# examples each time, so that it tells about the change; new ones are for the long runs.
settings.register_profile(
    "duckmesh", settings.default, deadline=None, derandomize=not fuzz.at_length()
)
settings.load_profile("duckmesh")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        kind = item.path.relative_to(root).parts[0]
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DUCKMESH_"):
            monkeypatch.delenv(name)
