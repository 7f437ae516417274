"""The operator killed at each of its writes: before it, after it, and in between, when nobody is told that it was done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.controlplane.world import until
from tests.faults.ground import SETTLE_S, Ground
from tests.faults.proxy import PASS, Call, Fault, no_faults

PHASES: Final = ("create", "update", "delete")
MODES: Final = ("before", "untold", "after")


@dataclass
class KillAt:
    """A rule: the operator dies at its n-th write.

    Attributes:
        number: Which write, from 1.
        mode: `before` it is carried out, `untold` of its success, or `after` the answer left.
        kill: Ends the operator at once.
        hit: The write it died at.
    """

    number: int
    mode: str
    kill: Callable[[], None]
    hit: Call | None = None

    def __call__(self, call: Call) -> Fault:
        if self.hit is not None:
            return Fault(forward=False, cut=True)  # what a dying process still had in its pipes
        if call.count != self.number:
            return PASS
        self.hit = call
        return Fault(forward=self.mode != "before", cut=self.mode != "after", then=self.kill)


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """One position done.

    Attributes:
        phase: What was under way.
        mode: See `KillAt`.
        number: Which write.
        call: The write.
        problem: What was wrong afterwards; empty when nothing was.
    """

    phase: str
    mode: str
    number: int
    call: str
    problem: str = ""


async def kill_everywhere(
    ground: Ground, phase: str, mode: str, numbers: Sequence[int] = ()
) -> AsyncIterator[Killed]:
    """Kill the operator at its first write of a phase, then the second, and so on, until a phase ends without.

    Args:
        ground: Its operator runs.
        phase: One of `PHASES`.
        mode: One of `MODES`.
        numbers: Only at these writes.
    """
    number = 0
    while True:
        number += 1
        if numbers and number > max(numbers):
            return
        if numbers and number not in numbers:
            continue
        killed = await _kill_at(ground, phase, mode, number)
        if killed is None:
            return
        yield killed


async def _kill_at(ground: Ground, phase: str, mode: str, number: int) -> Killed | None:
    namespace = await (ground.namespace() if phase == "create" else ground.made())
    if phase == "delete":
        await ground.update(namespace)
        await ground.settled(namespace, "update")
    await ground.at_rest(0.5)
    ground.proxy.reset()
    rule = KillAt(number, mode, ground.operator.kill)
    ground.proxy.rule = rule
    act: Callable[[str], Awaitable[None]] = getattr(ground, phase)
    await act(namespace)

    async def over() -> bool:
        return not ground.operator.running or await ground.is_settled(namespace, phase)

    try:
        await until(f"an end of {phase}", over, SETTLE_S, every_s=0.05)
    finally:
        ground.proxy.rule = no_faults
    if rule.hit is None:
        return None
    call = str(rule.hit)
    if ground.operator.running:
        ground.operator.kill()  # it settled with its last write
    await ground.start()
    try:
        await ground.settled(namespace, phase)
    except AssertionError as error:
        return Killed(phase=phase, mode=mode, number=number, call=call, problem=str(error))
    return Killed(phase=phase, mode=mode, number=number, call=call)
