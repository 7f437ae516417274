"""Random histories through the HTTP door of two replicas leave the lake equal to a dict, at every snapshot.

Inserts, upserts, deletes, repeated and conflicting keys, bad records, table changes, kills and restarts; the checker is
itself checked in tests/unit/test_history_checker.py. `make nightly` runs many more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from duckmesh_runtime.dev.postgres import PostgresServer
from tests.fuzz import examples
from tests.history.check import problems
from tests.history.drive import Driver, told
from tests.history.steps import (
    FRESH,
    Again,
    Alter,
    Draft,
    Kill,
    Send,
    Settle,
    Step,
    Together,
    steps,
)
from tests.pods import tenant_of
from tests.services import new_lake

LONGEST_S = 300 * examples(1)
# A failing history is told as it is: making it smaller would take a run of the processes for each try.
RUNS = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def driver(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """Two replicas for all histories: each has tables of its own."""
    folder: Path = tmp_path_factory.mktemp("histories")
    with tenant_of(asyncio.run(new_lake(folder, postgres))) as tenant:
        yield Driver(tenant)


def check(driver: Driver, history: list[Step]) -> None:
    answers, snapshots, start = driver.run(history)
    found = problems(answers, snapshots, start=start)
    assert not found, "\n".join([*found, told(answers)])


def row(id: int, n: int = 1, *, key: int = FRESH, op: str | None = None, odd: str = "") -> Draft:
    return Draft(key, id, n, op, odd)


STORIES: dict[str, list[Step]] = {
    "last write wins": [
        Send(True, (row(1), row(2), row(1, 2))),
        Send(True, (row(2, op="delete"), row(1, 3), row(3), row(3, op="delete"))),
        Send(True, (row(3, 5), row(4, op="delete"))),
    ],
    "keys": [
        Send(False, (row(1, key=1), row(2, key=1), row(3, key=2)), twice=True),
        Again(1),
        Send(False, (row(1, key=2), row(4))),
        Send(True, (row(1, key=1),), twice=True),
        Again(1),
    ],
    "refused records": [
        Send(True, (row(1, odd="bad"), row(2), row(3, odd="no id"), row(4, odd="wide"))),
        Send(False, (row(1, odd="column"),)),
    ],
    "changes": [
        Send(True, (row(1), row(2))),
        Send(False, (row(1), row(1))),
        *(
            step
            for kind in ("add_column", "rename_column", "widen_type", "set_default", "drop_column")
            for keyed in (True, False)
            for step in (Alter(keyed, kind), Send(keyed, (row(2), row(3, odd="wide"))))
        ),
        Alter(True, "recreate"),
        Send(True, (row(1),)),
    ],
    "kill -9 and an orderly end": [
        Together((Send(True, (row(1),)), Send(False, (row(1), row(2))))),
        Kill(0),
        Send(True, (row(1, 2), row(2))),
        Together((Send(True, (row(1, 3),)), Send(False, (row(1, key=1), row(2))))),
        Again(1),
        Kill(0, True),
        Send(False, (row(3),)),
        Settle(),
        Send(True, (row(1, op="delete"),)),
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_a_story_leaves_the_lake_equal_to_a_dict(driver: Driver, name: str) -> None:
    check(driver, STORIES[name])


@pytest.mark.timeout(LONGEST_S)
@settings(RUNS, max_examples=examples(12))
@given(history=steps(longest=20, kills=False))
def test_any_history_leaves_the_lake_equal_to_a_dict(driver: Driver, history: list[Step]) -> None:
    check(driver, history)


@pytest.mark.timeout(LONGEST_S)
@settings(RUNS, max_examples=examples(4))
@given(history=steps(longest=12))
def test_any_history_with_kills_leaves_the_lake_equal_to_a_dict(
    driver: Driver, history: list[Step]
) -> None:
    check(driver, history)
