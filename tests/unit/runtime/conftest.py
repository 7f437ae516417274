"""A running server with services in memory. What it needs is imported when it is asked for, not by every test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from duckmesh_runtime.web.parts import Parts
    from tests.fakes.server import Doors


@pytest.fixture
def auth_dir(tmp_path: Path) -> Path:
    from tests.fakes.doors import write_keys
    from tests.fakes.server import KEYS

    folder = tmp_path / "auth"
    folder.mkdir()
    write_keys(folder, KEYS)
    return folder


@pytest.fixture
def parts(auth_dir: Path) -> Parts:
    from tests.fakes.server import make_parts, make_settings

    return make_parts(make_settings(auth_dir))


@pytest.fixture
async def doors(parts: Parts) -> AsyncIterator[Doors]:
    from tests.fakes.server import serve

    async for found in serve(parts):
        yield found
