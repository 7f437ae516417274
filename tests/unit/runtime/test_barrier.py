"""Waiting for a token: exact, shared, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from duckmesh_runtime.errors import Invalid, Limited, Unavailable
from duckmesh_runtime.services import barrier as module
from duckmesh_runtime.services.barrier import Barrier
from tests.fakes.progress import FakeProgress


@pytest.fixture
def progress() -> FakeProgress:
    return FakeProgress(token=10)


@pytest.fixture
async def barrier(progress: FakeProgress) -> AsyncIterator[Barrier]:
    made = Barrier(progress)
    yield made
    await made.close()


async def test_a_visible_number_is_answered_at_once(barrier: Barrier) -> None:
    assert (await barrier.wait(10, 1_000)).token == 10


async def test_a_waiter_is_woken_when_its_number_is_visible_and_not_before(
    barrier: Barrier, progress: FakeProgress
) -> None:
    early = asyncio.create_task(barrier.wait(11, 30_000))
    late = asyncio.create_task(barrier.wait(12, 30_000))
    await _polls(progress, 2)

    progress.token = 11

    assert (await early).token == 11
    assert not late.done()
    progress.token = 12
    assert (await late).token == 12


async def test_a_wait_that_runs_out_says_how_far_it_got(progress: FakeProgress) -> None:
    async def lag() -> int:
        return 1234

    barrier = Barrier(progress, lag=lag)

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(15, 50)

    assert caught.value.code == "CONSISTENCY_TIMEOUT"
    assert caught.value.context["watermark"] == 10
    assert caught.value.context["behind"] == 5
    assert caught.value.context["lag_ms"] == 1234
    await barrier.close()


async def test_one_poller_serves_a_thousand_waiters(
    barrier: Barrier, progress: FakeProgress
) -> None:
    waiters = [asyncio.create_task(barrier.wait(11, 30_000)) for _ in range(1_000)]
    await _polls(progress, 3)
    progress.token = 11

    await asyncio.gather(*waiters)

    assert progress.reads < 20


async def test_nobody_waiting_means_nobody_polls(barrier: Barrier, progress: FakeProgress) -> None:
    await barrier.wait(10, 1_000)
    with pytest.raises(Unavailable):
        await barrier.wait(99, 30)
    await asyncio.sleep(0.05)  # the poller's last round
    reads = progress.reads

    await asyncio.sleep(0.1)  # five rounds of a poller that did not stop

    assert progress.reads == reads


async def test_a_silent_catalog_is_told_as_such(barrier: Barrier, progress: FakeProgress) -> None:
    progress.down = True

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(11, 50)

    assert caught.value.code == "CATALOG_UNAVAILABLE"


async def test_a_catalog_that_comes_back_in_time_is_no_failure(
    barrier: Barrier, progress: FakeProgress
) -> None:
    progress.down = True
    waiter = asyncio.create_task(barrier.wait(11, 30_000))
    await _polls(progress, 1)

    progress.down, progress.token = False, 11

    assert (await waiter).token == 11


async def test_those_who_gave_up_are_forgotten(barrier: Barrier) -> None:
    patient = asyncio.create_task(barrier.wait(50, 60_000))
    for _ in range(100):
        with pytest.raises(Unavailable):
            await barrier.wait(60, 0)
    await asyncio.sleep(0.05)  # one round of the poller

    assert len(barrier._waiters) < 5
    patient.cancel()


async def test_thousands_that_go_away_leave_nothing(
    barrier: Barrier, progress: FakeProgress
) -> None:
    patient = asyncio.create_task(barrier.wait(50, 60_000))
    waiters = [asyncio.create_task(barrier.wait(60, 60_000)) for _ in range(3_000)]
    await _polls(progress, 2)
    assert barrier.waiting == 3_001

    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await _polls(progress, 2)

    assert (barrier.waiting, len(barrier._waiters)) == (1, 1)
    patient.cancel()


async def test_thousands_that_run_out_at_once_cost_one_look_at_the_lag(
    progress: FakeProgress,
) -> None:
    looks = 0

    async def lag() -> int:
        nonlocal looks
        looks += 1
        return 7

    barrier = Barrier(progress, lag=lag)

    found = await asyncio.gather(
        *(barrier.wait(60, 100) for _ in range(3_000)), return_exceptions=True
    )

    assert {(e.code, e.context["lag_ms"]) for e in found} == {("CONSISTENCY_TIMEOUT", 7)}
    assert looks == 1
    assert progress.reads < 100
    await barrier.close()


async def test_a_lag_that_cannot_be_read_is_left_out(progress: FakeProgress) -> None:
    async def lag() -> int:
        raise Unavailable("CATALOG_UNAVAILABLE", "down")

    barrier = Barrier(progress, lag=lag)

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(60, 10)

    assert caught.value.code == "CONSISTENCY_TIMEOUT"
    assert caught.value.context["lag_ms"] is None
    await barrier.close()


async def test_the_event_loop_turns_while_thousands_are_answered(
    barrier: Barrier, progress: FakeProgress
) -> None:
    waiters = [asyncio.create_task(barrier.wait(11, 60_000)) for _ in range(10_000)]
    await _polls(progress, 2)
    progress.token = 11
    await waiters[0]
    answered = sum(waiter.done() for waiter in waiters)

    await asyncio.gather(*waiters)

    assert answered < 1_000


async def test_a_timeout_of_nothing_reads_the_watermark_once(
    barrier: Barrier, progress: FakeProgress
) -> None:
    assert (await barrier.wait(10, 0)).token == 10
    progress.token = 11
    assert (await barrier.wait(11, 0)).token == 11
    with pytest.raises(Unavailable) as caught:
        await barrier.wait(12, 0)

    assert caught.value.context["watermark"] == 11
    assert progress.reads == 3


async def test_an_estimate_is_given_when_the_watermark_moves_and_none_when_it_stands(
    barrier: Barrier, progress: FakeProgress
) -> None:
    with pytest.raises(Unavailable) as still:
        await barrier.wait(1_000, 50)
    progress.token = 20
    progress.later(seconds=2)
    with pytest.raises(Unavailable) as moving:
        await barrier.wait(1_020, 50)

    assert still.value.context["estimated_wait_ms"] is None
    assert moving.value.context["estimated_wait_ms"] == 200_000  # 10 in 2 s, 1,000 to go


async def test_more_waiters_than_the_limit_are_told_to_come_later(
    barrier: Barrier, progress: FakeProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITERS", 2)
    waiters = [asyncio.create_task(barrier.wait(11, 60_000)) for _ in range(2)]
    await _polls(progress, 1)

    with pytest.raises(Limited) as caught:
        await barrier.wait(11, 60_000)

    assert caught.value.code == "OVERLOADED"
    progress.token = 11
    await asyncio.gather(*waiters)


async def test_a_fault_of_the_reader_does_not_end_the_polling(
    barrier: Barrier, progress: FakeProgress, caplog: pytest.LogCaptureFixture
) -> None:
    progress.broken = True
    waiter = asyncio.create_task(barrier.wait(11, 30_000))
    await _polls(progress, 1)

    progress.broken, progress.token = False, 11

    assert (await waiter).token == 11
    assert "watermark cannot be read" in caplog.text


# ---------------------------------------------------------------- a restore of the catalog


async def test_after_a_restore_the_watermark_falls_and_new_numbers_wait_for_it(
    barrier: Barrier, progress: FakeProgress
) -> None:
    progress.token = 100
    await barrier.wait(100, 1_000, timeline=1)
    progress.timeline, progress.token = 2, 40

    waiter = asyncio.create_task(barrier.wait(60, 5_000, timeline=2))
    await _polls(progress, 3)
    assert not waiter.done()
    assert barrier.last is not None
    assert barrier.last.token == 40
    progress.token = 60

    assert (await waiter).timeline == 2


async def test_a_token_from_before_a_restore_is_foreign_even_while_it_waits(
    barrier: Barrier, progress: FakeProgress
) -> None:
    waiter = asyncio.create_task(barrier.wait(50, 5_000, timeline=1))
    await _polls(progress, 2)
    progress.timeline, progress.token = 2, 60

    with pytest.raises(Invalid) as waiting:
        await waiter
    with pytest.raises(Invalid) as asking:
        await barrier.wait(20, 5_000, timeline=1)

    assert (waiting.value.code, asking.value.code) == ("TOKEN_SCOPE_MISMATCH",) * 2
    assert barrier.waiting == 0


async def test_a_watermark_that_fell_is_believed_and_told(
    barrier: Barrier, progress: FakeProgress, caplog: pytest.LogCaptureFixture
) -> None:
    await barrier.wait(10, 1_000)
    progress.token = 5

    with pytest.raises(Unavailable) as caught:
        await barrier.wait(8, 0)
    with pytest.raises(Unavailable):
        await barrier.wait(8, 60)

    assert caught.value.context["watermark"] == 5
    assert "watermark fell" in caplog.text


async def test_a_first_look_at_a_restored_catalog_refuses_older_tokens(
    barrier: Barrier, progress: FakeProgress
) -> None:
    progress.timeline = 2

    with pytest.raises(Invalid):
        await barrier.wait(5, 5_000, timeline=1)


async def test_a_remembered_watermark_is_read_again_after_a_while(
    barrier: Barrier, progress: FakeProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    await barrier.wait(10, 1_000)
    reads = progress.reads
    await barrier.wait(10, 1_000)
    assert progress.reads == reads

    monkeypatch.setattr(module, "_TRUST_S", -1.0)
    await barrier.wait(10, 1_000)

    assert progress.reads == reads + 1


# ---------------------------------------------------------------- listening


async def test_a_listener_hears_the_present_state_then_every_move(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async with aclosing(barrier.changes(5)) as changes:
        first = await anext(changes)
        progress.token = 11
        second = await anext(changes)

    assert (first.token, second.token) == (10, 11)
    assert barrier.listening == 0


async def test_a_slow_listener_misses_states_but_never_the_last(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async with aclosing(barrier.changes(0.05)) as changes:
        await anext(changes)
        for token in (11, 12, 13):
            progress.token = token
            await _polls(progress, 2)
        heard = await anext(changes)
        silence = await anext(changes)

    assert heard.token == 13
    assert silence is None


async def test_a_thousand_listeners_cost_one_poller_and_all_hear(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async def listen() -> int:
        async with aclosing(barrier.changes(30)) as changes:
            await anext(changes)
            return (await anext(changes)).token

    listeners = [asyncio.create_task(listen()) for _ in range(1_000)]
    await _polls(progress, 3)
    progress.token = 11

    assert set(await asyncio.gather(*listeners)) == {11}
    assert progress.reads < 30


async def test_polling_ends_with_the_last_listener(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async with aclosing(barrier.changes(5)) as changes:
        await anext(changes)
        await _polls(progress, 2)
    await asyncio.sleep(0.05)  # the poller's last round
    reads = progress.reads

    await asyncio.sleep(0.1)  # five rounds of a poller that did not stop

    assert progress.reads == reads


async def test_one_listener_too_many_is_told_to_come_later(
    barrier: Barrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LISTENERS", 1)
    async with aclosing(barrier.changes(5)) as changes, aclosing(barrier.changes(5)) as more:
        await anext(changes)
        with pytest.raises(Limited) as caught:
            await anext(more)

    assert (caught.value.code, barrier.listening) == ("OVERLOADED", 0)


async def test_a_listener_that_cannot_begin_is_told_why(
    barrier: Barrier, progress: FakeProgress
) -> None:
    progress.down = True

    with pytest.raises(Unavailable) as caught:
        await anext(barrier.changes(5))

    assert (caught.value.code, barrier.listening) == ("CATALOG_UNAVAILABLE", 0)


async def test_listening_goes_on_over_an_outage_and_a_restore(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async with aclosing(barrier.changes(30)) as changes:
        await anext(changes)
        progress.down = True
        await _polls(progress, 1)
        progress.down, progress.timeline, progress.token = False, 2, 5
        heard = await anext(changes)

    assert (heard.timeline, heard.token) == (2, 5)


async def test_listening_ends_when_the_process_drains_and_waiting_does_not(
    barrier: Barrier, progress: FakeProgress
) -> None:
    async def listen() -> list[int]:
        return [state.token async for state in barrier.changes(30) if state]

    listener = asyncio.create_task(listen())
    waiter = asyncio.create_task(barrier.wait(11, 30_000))
    await _polls(progress, 2)

    barrier.hush()
    assert await listener == [10]
    progress.token = 11

    assert (await waiter).token == 11


async def test_closing_answers_who_still_waits(barrier: Barrier, progress: FakeProgress) -> None:
    waiter = asyncio.create_task(barrier.wait(11, 60_000))
    await _polls(progress, 1)

    await barrier.close()

    with pytest.raises(Unavailable, match="ending"):
        await waiter


async def _polls(progress: FakeProgress, more: int) -> None:
    """Wait until the poller has asked some more times."""
    goal = progress.reads + more
    async with asyncio.timeout(30):
        while progress.reads < goal:
            await asyncio.sleep(0.005)
