"""The checker of histories passes what is right and catches each planted fault."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.fuzz import examples
from tests.history.check import problems
from tests.history.simulate import MUTANTS, simulate
from tests.history.steps import FRESH, Alter, Draft, Send, Settle, Step, steps

STORY: list[Step] = [
    Send(True, (Draft(FRESH, 1, 1), Draft(FRESH, 2, 2), Draft(1, 3, 3))),
    Send(False, (Draft(FRESH, 1, 1), Draft(FRESH, 1, 1))),
    Settle(),
    Send(True, (Draft(FRESH, 1, 0), Draft(FRESH, 2, None, "delete"), Draft(1, 3, 0))),
    Alter(True, "add_column"),
    Send(True, (Draft(FRESH, 4, 1), Draft(2, 5, 1)), twice=True),
]
"""A write, an overwrite, a delete, a conflict, a duplicate, a change."""


@settings(max_examples=examples(100), deadline=None)
@given(steps(kills=False))
def test_a_right_history_has_no_problems(history: list[Step]) -> None:
    told = simulate(history)

    assert problems(told.answers, told.snapshots, start=0) == []


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_fault_is_caught(name: str) -> None:
    spoiled = MUTANTS[name](simulate(STORY))

    assert spoiled is not None
    assert problems(spoiled.answers, spoiled.snapshots, start=0) != []


@settings(max_examples=examples(30), deadline=None)
@given(steps(kills=False))
def test_each_fault_planted_in_any_history_is_caught(history: list[Step]) -> None:
    for name, mutant in MUTANTS.items():
        spoiled = mutant(simulate(history))

        assert spoiled is None or problems(spoiled.answers, spoiled.snapshots, start=0), name
