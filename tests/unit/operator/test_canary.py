"""The canary tells a deaf watch from a quiet one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from duckmesh_operator.canary import DEAF_AFTER_S, Canary
from duckmesh_operator.errors import Unavailable
from duckmesh_operator.manifest import Manifest


class _Api:
    """Hands each written object to the watch, at once or never."""

    def __init__(self) -> None:
        self.watch: Callable[[Manifest], None] = lambda obj: None
        self.down = False
        self._last: Manifest | None = None

    async def apply(self, obj: Manifest) -> Manifest:
        if self.down:
            raise Unavailable("down")
        if obj != self._last:  # the API server tells only changes
            self._last = copy.deepcopy(obj)
            self.watch(obj)
        return obj


class _Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.api = _Api()
        self.canary = Canary(self.api, namespace="system", identity="me", clock=lambda: self.now)  # type: ignore[arg-type]

    async def sing_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            await self.canary.sing()
            self.now += 30


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


async def test_a_watch_faster_than_the_writes_answer_is_heard(bench: _Bench) -> None:
    bench.api.watch = bench.canary.seen

    await bench.sing_for(DEAF_AFTER_S * 4)

    assert not bench.canary.deaf
    assert bench.canary.last_event_age_s <= 30


async def test_a_silent_watch_is_deaf_after_its_time(bench: _Bench) -> None:
    await bench.sing_for(DEAF_AFTER_S)
    assert not bench.canary.deaf

    await bench.sing_for(60)

    assert bench.canary.deaf


async def test_an_api_server_that_is_down_does_not_make_the_watch_deaf(bench: _Bench) -> None:
    bench.api.down = True

    await bench.sing_for(DEAF_AFTER_S * 4)

    assert not bench.canary.deaf


async def test_the_song_of_another_process_does_not_count(bench: _Bench) -> None:
    other = Canary(bench.api, namespace="system", identity="other", clock=lambda: bench.now)  # type: ignore[arg-type]
    bench.api.watch = bench.canary.seen
    await other.sing()
    bench.api.watch = lambda obj: None
    await bench.canary.sing()
    bench.canary.seen(other._build())
    bench.now += DEAF_AFTER_S + 1

    assert bench.canary.deaf
