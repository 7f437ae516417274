"""What a process of ingest does to a lake of an earlier release before it takes input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime import roles
from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.settings import Settings, StoreSettings
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.health import Health
from duckmesh_runtime.web.parts import Parts
from tests.fakes.bus import FakeBus


class ReachedError(Exception):
    """As far as these tests go."""


class Upgrade:
    """A catalog whose lake says an earlier protocol, or ours.

    Attributes:
        seen: What was done to it, in order.
        attach: Raised by the trial attach.
        earlier: Whether the lake's protocol is an earlier release's.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.attach: Exception | None = None
        self.earlier = True

    async def speaks_more(self) -> bool:
        return self.earlier

    async def require_protocol(self) -> None:
        self.seen.append("raised")
        raise ReachedError

    async def close(self) -> None:
        self.seen.append("closed")

    async def open_writer(self, *, epoch: int, **_: object) -> Upgrade:
        self.seen.append(f"attached at {epoch}")
        if self.attach is not None:
            raise self.attach
        return self


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Upgrade:
    made = Upgrade()

    async def pool(*_: object) -> None:
        return None

    def committer(*_: object, **__: object) -> Any:
        made.seen.append("goes on")
        raise ReachedError

    monkeypatch.setattr(roles, "_pool", pool)
    monkeypatch.setattr(roles, "PostgresBus", lambda *_: FakeBus())
    monkeypatch.setattr(roles, "_election", lambda *_: made)
    monkeypatch.setattr(roles, "open_writer", made.open_writer)
    monkeypatch.setattr(roles, "Committer", committer)
    return made


def parts(folder: Path) -> Parts:
    (folder / "pepper").write_text("p" * 32)
    (folder / "keys.json").write_text("[]")
    store = StoreSettings(url="s3://bucket/prefix/")
    settings = Settings(tenant="ns/t", lake="lake_1", store=store, writer_dir=folder)
    return Parts(settings=settings, keys=KeyRing(folder), health=Health())


async def enter(folder: Path, upgrade: Upgrade, raises: type[Exception]) -> list[str]:
    with pytest.raises(raises):
        async with roles.ingest_role(parts(folder)):
            pass
    assert upgrade.seen.pop() == "closed"  # the election, at the end of the role
    return upgrade.seen


async def test_the_protocol_is_raised_after_a_trial_that_leaves_nothing_open(
    upgrade: Upgrade, tmp_path: Path
) -> None:
    seen = await enter(tmp_path, upgrade, ReachedError)
    assert seen == ["attached at 0", "closed", "raised"]


async def test_a_release_that_cannot_attach_the_lake_leaves_the_one_before_committing(
    upgrade: Upgrade, tmp_path: Path
) -> None:
    upgrade.attach = Unavailable("CATALOG_UNAVAILABLE", "planted")
    assert await enter(tmp_path, upgrade, Unavailable) == ["attached at 0"]


async def test_a_lake_without_its_fence_is_nobodys_to_commit_to(
    upgrade: Upgrade, tmp_path: Path
) -> None:
    upgrade.attach = Corrupt("INTEGRITY_CHECK_FAILED", "planted")
    assert await enter(tmp_path, upgrade, ReachedError) == ["attached at 0", "raised"]


async def test_a_lake_of_this_release_is_not_attached_on_trial(
    upgrade: Upgrade, tmp_path: Path
) -> None:
    upgrade.earlier = False
    assert await enter(tmp_path, upgrade, ReachedError) == ["goes on"]
