"""What a process depends on shows as soon as it is known, and asking often costs nothing."""

from __future__ import annotations

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.web.health import Health


async def test_dependencies_show_at_once_after_an_early_probe() -> None:
    health = Health()
    assert await health.dependencies() == {}

    async def answers() -> None:
        return None

    async def silent() -> None:
        raise Unavailable("STORAGE_UNAVAILABLE", "down")

    health.checks = {"catalog": answers, "storage": silent}

    assert await health.dependencies() == {"catalog": "ok", "storage": "unavailable"}


async def test_many_probes_are_one_check() -> None:
    health, asked = Health(), []

    async def answers() -> None:
        asked.append(1)

    health.checks = {"catalog": answers}

    for _ in range(50):
        await health.dependencies()

    assert len(asked) == 1
