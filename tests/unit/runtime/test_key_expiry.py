"""The ingest process forgets idempotency keys in time, and says when it must forget them early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from duckmesh_runtime import metrics
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import KeyHorizon
from duckmesh_runtime.services import inlet as module
from duckmesh_runtime.services.inlet import RECORD_KEYS_S, REQUEST_KEYS_S, Inlet
from duckmesh_runtime.settings import IngestLimits
from tests.fakes.bus import FakeBus


class ExpiringBus(FakeBus):
    """Answers with these horizons, one after the other, then with the promised one; an error is raised.

    Attributes:
        asked: The bounds of each call.
    """

    def __init__(self, *answers: KeyHorizon | Exception) -> None:
        super().__init__()
        self._answers = list(answers)
        self.asked: list[tuple[float, float, int]] = []

    async def expire_keys(
        self, *, record_age_s: float, request_age_s: float, max_bytes: int
    ) -> KeyHorizon:
        self.asked.append((record_age_s, request_age_s, max_bytes))
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer or KeyHorizon(record_s=record_age_s, request_s=request_age_s)


async def run(bus: ExpiringBus, until: Callable[[], bool]) -> None:
    limits = IngestLimits(idempotency_bytes=12_345)
    inlet = Inlet(bus, lake="lake_test", limits=limits, on_accepted=lambda _: None)
    await inlet.start()
    async with asyncio.timeout(30):
        while not until():
            await asyncio.sleep(0)
    await inlet.drain()


def horizon(of: str) -> float | None:
    name = "duckmesh_idempotency_horizon_seconds"
    return metrics.REGISTRY.get_sample_value(name, {"of": of})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXPIRE_EVERY_S", 0)


async def test_keys_expire_by_the_promised_ages_and_the_cap() -> None:
    bus = ExpiringBus()

    await run(bus, lambda: bool(bus.asked))

    assert bus.asked[0] == (24 * 3600, 7 * 24 * 3600, 12_345)
    assert (horizon("record"), horizon("request")) == (RECORD_KEYS_S, REQUEST_KEYS_S)


async def test_a_shorter_horizon_is_told_once_until_it_is_whole_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    short = KeyHorizon(record_s=60, request_s=REQUEST_KEYS_S)
    whole = KeyHorizon(record_s=RECORD_KEYS_S, request_s=REQUEST_KEYS_S)
    seen: list[float | None] = []
    bus = ExpiringBus(short, short, whole, short)

    with caplog.at_level(logging.WARNING):
        await run(bus, lambda: bool(seen.append(horizon("record"))) or len(bus.asked) > 4)

    told = [each for each in caplog.messages if "DUCKMESH_IDEMPOTENCY_BYTES" in each]
    assert len(told) == 2
    assert 60 in seen


async def test_a_failure_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    bus = ExpiringBus(Unavailable("CATALOG_UNAVAILABLE", "no lock"))

    with caplog.at_level(logging.WARNING):
        await run(bus, lambda: len(bus.asked) > 1)

    assert "idempotency keys are kept longer" in caplog.messages
