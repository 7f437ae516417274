from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from duckmesh_operator import lease as leases
from duckmesh_operator.errors import Conflict, Unavailable
from duckmesh_operator.lease import LEASE_S, RENEW_S, RETRY_S, Lease
from tests.fakes.kube import FakeApi


class Clock:
    """A clock that only a sleep moves; the library's own clock is bound to it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.before_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.before_sleep()
        self.now += seconds
        await _real_sleep(0)


_real_sleep = asyncio.sleep
_real_wait = asyncio.wait


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    library = "kubernetes.aio.leaderelection.leaderelection"
    monkeypatch.setattr(f"{library}.time.time", made)
    monkeypatch.setattr(f"{library}.asyncio.sleep", made.sleep)
    return made


def make(api: FakeApi, identity: str, clock: Clock) -> Lease:
    return Lease(api, namespace="system", identity=identity, clock=clock)


def holder(api: FakeApi) -> str:
    return str(api.objects["Lease", "system", leases.NAME]["spec"]["holderIdentity"])


async def test_the_first_process_takes_the_lease_at_once(clock: Clock) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)

    assert not lease.held
    await lease.acquire()

    assert lease.held
    assert holder(api) == "one"
    assert api.objects["Lease", "system", leases.NAME]["spec"]["leaseDurationSeconds"] == LEASE_S


async def test_a_standby_waits_until_the_holders_time_is_over(clock: Clock) -> None:
    api = FakeApi()
    await make(api, "one", clock).acquire()
    started = clock.now

    await make(api, "two", clock).acquire()

    assert holder(api) == "two"
    assert LEASE_S <= clock.now - started <= LEASE_S + 2 * RETRY_S


async def test_a_released_lease_is_free_at_once(clock: Clock) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)
    await lease.acquire()
    await lease.release()
    started = clock.now

    await make(api, "two", clock).acquire()

    assert holder(api) == "two"
    assert clock.now == started


async def test_only_the_holder_releases(clock: Clock) -> None:
    api = FakeApi()
    await make(api, "one", clock).acquire()

    await make(api, "two", clock).release()
    api.failing["get"] = Unavailable("no")
    await make(api, "two", clock).release()

    assert holder(api) == "one"


@pytest.mark.parametrize("verb", ["get Lease", "replace Lease"])
async def test_a_lease_that_cannot_be_renewed_is_lost_before_others_may_take_it(
    clock: Clock, verb: str
) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)
    await lease.acquire()
    started = clock.now

    def break_down() -> None:
        api.failing[verb] = Unavailable("no answer")

    clock.before_sleep = break_down
    break_down()
    async with asyncio.timeout(30):
        await lease.hold()

    assert not lease.held
    assert RENEW_S <= clock.now - started < LEASE_S


async def test_a_lease_that_another_took_is_lost(clock: Clock) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)
    await lease.acquire()
    api.objects["Lease", "system", leases.NAME]["spec"]["holderIdentity"] = "two"

    async with asyncio.timeout(30):
        await lease.hold()

    assert not lease.held
    assert holder(api) == "two"


async def test_a_request_that_hangs_does_not_keep_the_lease(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)
    await lease.acquire()
    hangs = asyncio.Event()

    async def hang(*_: object) -> None:
        clock.now += RENEW_S  # time goes by while nothing answers
        await hangs.wait()

    monkeypatch.setattr(leases, "_REQUEST_S", 0.01)
    monkeypatch.setattr(api, "get", hang)
    async with asyncio.timeout(30):
        await lease.hold()

    assert not lease.held


async def test_a_held_lease_is_renewed_again_and_again(clock: Clock) -> None:
    api = FakeApi()
    lease = make(api, "one", clock)
    await lease.acquire()
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 20:
            task.cancel()

    clock.before_sleep = count
    task = asyncio.create_task(lease.hold())
    with pytest.raises(asyncio.CancelledError):
        await task

    assert lease.held
    assert api.writes.count(f"replace Lease/{leases.NAME}") >= 19


async def test_two_never_lead_at_the_same_time(clock: Clock) -> None:
    api = FakeApi()
    one, two = make(api, "one", clock), make(api, "two", clock)
    both: list[bool] = []
    clock.before_sleep = lambda: both.append(one.held and two.held)
    api.failing["create Lease"] = Conflict("taken")

    await one.acquire()
    await two.acquire()

    assert len(both) > RENEW_S / RETRY_S
    assert not any(both)
    assert not one.held
    assert holder(api) == "two"
