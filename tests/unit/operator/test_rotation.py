from __future__ import annotations

from pathlib import Path

import pytest

from duckmesh_operator.errors import Unavailable
from duckmesh_operator.rotation import SecretWatch


class Told:
    """Who was told of what; the first calls may fail."""

    def __init__(self, failing: int = 0) -> None:
        self.calls: list[tuple[str, str]] = []
        self._failing = failing

    async def __call__(self, part: str, name: str) -> None:
        if self._failing:
            self._failing -= 1
            raise Unavailable("the API server does not answer")
        self.calls.append((part, name))


@pytest.fixture
def folders(tmp_path: Path) -> dict[tuple[str, str], tuple[Path, tuple[str, ...]]]:
    for name in ("catalog", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "catalog" / "control-dsn").write_text("postgresql://a")
    (tmp_path / "store" / "access-key-id").write_text("k")
    return {
        ("catalog", "main"): (tmp_path / "catalog", ("control-dsn",)),
        ("store", "eu"): (tmp_path / "store", ("access-key-id", "secret-access-key")),
    }


async def test_a_replaced_secret_is_told_once(folders: dict, tmp_path: Path) -> None:
    told = Told()
    watch = SecretWatch(folders, told)

    await watch.look()
    assert told.calls == []
    (tmp_path / "catalog" / "control-dsn").write_text("postgresql://b")
    await watch.look()
    await watch.look()

    assert told.calls == [("catalog", "main")]


async def test_a_value_that_comes_or_goes_is_a_change(folders: dict, tmp_path: Path) -> None:
    told = Told()
    watch = SecretWatch(folders, told)

    (tmp_path / "store" / "secret-access-key").write_text("s")
    await watch.look()
    (tmp_path / "store" / "access-key-id").unlink()
    await watch.look()

    assert told.calls == [("store", "eu"), ("store", "eu")]


async def test_what_could_not_be_told_is_told_at_the_next_look(
    folders: dict, tmp_path: Path
) -> None:
    told = Told(failing=1)
    watch = SecretWatch(folders, told)
    (tmp_path / "catalog" / "control-dsn").write_text("postgresql://b")

    await watch.look()
    assert told.calls == []
    await watch.look()

    assert told.calls == [("catalog", "main")]
