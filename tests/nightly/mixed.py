"""A thousand statements, one in ten of them out of bounds: none but these may fail, and nothing of them may stay."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.stack import Stack
from tests.mixed import Outcome, frozen_numbers, run_mixed, unexpected
from tests.sandboxes import SmallLake, running_sandbox

STATEMENTS: Final = 1_000


def mixed(stack: Stack, minutes: float) -> Sequence[str]:
    """Run, print the figures; returns what is violated. As many statements whatever the minutes; needs no stack."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lake = SmallLake(Path(folder))
        try:
            frozen_numbers(lake)
            with running_sandbox(lake) as running:
                outcome = asyncio.run(run_mixed(running.client, lake, STATEMENTS))
        finally:
            lake.data.close()
    print(f"mixed: {STATEMENTS} statements in {time.monotonic() - started:.0f} s")
    print(
        f"  bad ones ended as {outcome.codes}, at most {outcome.late_s:.1f} s past their deadline"
    )
    return _violated(outcome)


def _violated(outcome: Outcome) -> Sequence[str]:
    found = [f"a good statement was hit: {each}" for each in outcome.wrong]
    return [*found, *(f"a bad statement ended as {code}" for code in unexpected(outcome))]
