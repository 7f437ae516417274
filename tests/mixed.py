"""Statements that die among others that must not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from duckmesh_runtime.adapters.sandbox_client import SandboxClient
from duckmesh_runtime.errors import DuckmeshError
from tests.sandboxes import ENDLESS, ROWS, SmallLake, ask

BAD: Final = (
    "SELECT len(range(500000000))",  # wants too much memory
    "SELECT " + "NOT " * 16_000 + "true",  # deep: takes the stack, or long to refuse
    ENDLESS,
)
EVERY: Final = 10
"""So many statements have a bad one among them."""

_TIMEOUT_MS: Final = 1_000
_AT_ONCE: Final = 4


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        wrong: Good statements that failed or answered wrong, each with what came.
        codes: How the bad ones ended.
        late_s: The longest that a bad one took past its deadline, as its caller saw it.
    """

    wrong: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    late_s: float = 0.0


async def run_mixed(client: SandboxClient, lake: SmallLake, count: int) -> Outcome:
    """Ask for so many, four at a time, one in ten of them bad in turn."""
    outcome = Outcome()
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            if number % EVERY == 0:
                await _bad(client, lake, BAD[number // EVERY % len(BAD)], outcome)
            else:
                await _good(client, lake, number, outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(one_after_the_other())
    return outcome


async def _good(client: SandboxClient, lake: SmallLake, number: int, outcome: Outcome) -> None:
    try:
        answer = await ask(client, lake.job("SELECT $1 + count(*) FROM numbers", number))
    except DuckmeshError as error:
        outcome.wrong.append(f"{number}: {error.code} {error.message}")
        return
    if answer.value != number + ROWS - 1:
        outcome.wrong.append(f"{number}: {answer.value}")


async def _bad(client: SandboxClient, lake: SmallLake, sql: str, outcome: Outcome) -> None:
    started = time.monotonic()
    code = "OK"
    try:
        await ask(client, lake.job(sql, timeout_ms=_TIMEOUT_MS))
    except DuckmeshError as error:
        code = error.code
    outcome.codes[code] = outcome.codes.get(code, 0) + 1
    outcome.late_s = max(outcome.late_s, time.monotonic() - started - _TIMEOUT_MS / 1000)


def frozen_numbers(lake: SmallLake) -> None:
    """The catalog that these statements read: `numbers` with a row deleted."""
    lake.freeze(
        "first.db", "CREATE TABLE small AS SELECT 1 AS one", "DELETE FROM numbers WHERE id = 5"
    )


def unexpected(outcome: Outcome) -> Sequence[str]:
    """Codes that a bad statement must not end with."""
    known = {"QUERY_MEMORY", "QUERY_TIMEOUT", "QUERY_CRASHED", "SQL_ERROR", "OVERLOADED"}
    return sorted(set(outcome.codes) - known)
