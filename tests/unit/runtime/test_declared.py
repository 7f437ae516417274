"""Declared tables: read from a file that is replaced, brought about by the committer's process, reported once."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.domain.declared import parse_declaration
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.services.declared import DeclaredTables
from tests.buses import eventually
from tests.fakes.tables import TableLake, table_lake

ID = {"name": "id", "type": "BIGINT", "nullable": True}


def declared(*columns: dict[str, Any], name: str = "t", **more: Any) -> dict[str, Any]:
    return {"name": name, "columns": list(columns), **more}


@dataclass
class Reporter:
    """Keeps what it is told; raises `failure` once."""

    said: list[tuple[str, bool, str]] = field(default_factory=list)
    failure: Exception | None = None

    async def report(self, digest: str, *, ready: bool, problem: str) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.said.append((digest, ready, problem))


@dataclass
class World:
    """One process that follows a file as Kubernetes mounts it: a link to a folder that is swapped."""

    folder: Path
    lake: TableLake
    reporter: Reporter = field(default_factory=Reporter)
    active: bool = True
    swaps: int = 0

    def __post_init__(self) -> None:
        self.follower = DeclaredTables(
            self.folder / "tables.json",
            self.lake.tables,
            self.lake.barrier,  # type: ignore[arg-type]
            self.reporter,
            active=lambda: self.active,
            poll_s=0.01,
        )

    def declare(self, *tables: dict[str, Any]) -> str:
        """Swap the folder; returns the digest."""
        return self.write(json.dumps({"tables": list(tables)}))

    def write(self, text: str) -> str:
        self.swaps += 1
        target = self.folder / f"..{self.swaps}"
        target.mkdir()
        (target / "tables.json").write_text(text)
        link = self.folder / "..new"
        link.symlink_to(target.name)
        os.replace(link, self.folder / "..data")
        if not (self.folder / "tables.json").is_symlink():
            (self.folder / "tables.json").symlink_to("..data/tables.json")
        return parse_declaration(text.encode()).digest

    async def columns(self, name: str = "t") -> list[tuple[str, str]]:
        return [(c.name, c.type) for c in (await self.lake.tables.find(name)).columns]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with table_lake() as lake:
        yield World(folder=tmp_path, lake=lake)


async def test_a_declared_table_is_created_and_reported_once(world: World) -> None:
    digest = world.declare(declared(ID), declared(ID, name="u"))

    for _ in range(3):
        await world.follower.look()

    assert [table.name for table in await world.lake.tables.all()] == ["t", "u"]
    assert world.reporter.said == [(digest, True, "")]
    assert len(world.lake.bus.entries) == 2
    assert world.follower.names == {"t", "u"}


async def test_a_changed_declaration_changes_the_table_and_drops_nothing(world: World) -> None:
    world.declare(declared({**ID, "type": "INTEGER"}, {"name": "v", "type": "VARCHAR"}))
    await world.follower.look()

    digest = world.declare(declared(ID, {"name": "n", "type": "UUID"}, sort_by=["id"]))
    await world.follower.look()

    assert await world.columns() == [("id", "BIGINT"), ("v", "VARCHAR"), ("n", "UUID")]
    assert (await world.lake.tables.find("t")).sort_by == ("id",)
    assert world.reporter.said[-1] == (digest, True, "")

    world.declare()
    await world.follower.look()
    assert await world.columns() == [("id", "BIGINT"), ("v", "VARCHAR"), ("n", "UUID")]
    assert world.follower.names == frozenset()


async def test_what_cannot_be_is_reported_and_hurts_no_other_table(world: World) -> None:
    world.declare(declared(ID), declared(ID, name="u"))
    await world.follower.look()

    digest = world.declare(
        declared({**ID, "type": "VARCHAR"}),
        declared({"name": "x", "type": "NOPE"}, name="b"),
        declared(ID, {"name": "v", "type": "DATE"}, name="u"),
    )
    await world.follower.look()

    assert await world.columns("u") == [("id", "BIGINT"), ("v", "DATE")]
    assert await world.columns("t") == [("id", "BIGINT")]
    said, ready, problem = world.reporter.said[-1]
    assert (said, ready) == (digest, False)
    assert problem.startswith("table b: columns[0].type: 'NOPE' is no type")
    assert "; table t: changes[0].widen_type: id is BIGINT, not to be VARCHAR" in problem
    assert world.follower.names == {"t", "u", "b"}


async def test_only_the_committers_process_acts_and_tells(world: World) -> None:
    world.active = False
    digest = world.declare(declared(ID))
    await world.follower.look()
    assert (world.lake.bus.entries, world.reporter.said) == ([], [])
    assert world.follower.names == {"t"}

    world.active = True
    await world.follower.look()
    world.active = False
    await world.follower.look()
    world.active = True
    await world.follower.look()

    assert len(world.lake.bus.entries) == 1
    assert world.reporter.said == [(digest, True, "")] * 2


async def test_a_table_is_ready_only_when_it_is_in_the_lake(world: World) -> None:
    world.lake.barrier.slow = 2
    digest = world.declare(declared(ID))

    for _ in range(2):
        with pytest.raises(Unavailable):
            await world.follower.look()
    assert world.reporter.said == []

    await world.follower.look()
    assert world.reporter.said == [(digest, True, "")]
    assert world.lake.barrier.waits == [1, 1, 1]


async def test_what_the_lake_refuses_is_tried_once_for_each_declaration(world: World) -> None:
    world.lake.barrier.refusals = ["the lake says no"]
    digest = world.declare(declared(ID))
    for _ in range(70):
        await world.follower.look()

    assert world.reporter.said == [
        (digest, False, "table t: the lake refused the change: the lake says no")
    ]
    assert len(world.lake.bus.kept) == 1

    digest = world.declare(declared(ID, {"name": "v", "type": "DATE"}))
    await world.follower.look()
    assert world.reporter.said[-1] == (digest, True, "")


async def test_a_table_dropped_behind_its_back_comes_back(world: World) -> None:
    world.declare(declared(ID))
    await world.follower.look()
    await world.lake.tables.drop("t")

    for _ in range(40):
        await world.follower.look()

    assert await world.columns() == [("id", "BIGINT")]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tables": 1}', '{"other": []}', "\xff", "[" * 100_000]
)
async def test_a_file_that_cannot_be_read_is_told(world: World, text: str) -> None:
    digest = world.write(text)

    await world.follower.look()

    assert world.reporter.said == [(digest, False, "the declared tables cannot be read")]


async def test_without_a_file_nothing_is_declared(world: World) -> None:
    await world.follower.look()

    assert world.follower.names == frozenset()
    assert world.reporter.said == []


async def test_a_report_that_fails_is_made_again(world: World) -> None:
    world.reporter.failure = Unavailable("CATALOG_UNAVAILABLE", "down")
    digest = world.declare(declared(ID))
    with pytest.raises(Unavailable):
        await world.follower.look()

    await world.follower.look()

    assert world.reporter.said == [(digest, True, "")]


async def test_the_file_is_followed_over_failures_until_told_to_stop(world: World) -> None:
    world.declare(declared(ID))
    world.reporter.failure = LookupError("a fault of the reporter")

    async with world.follower.following():
        assert world.follower.names == {"t"}
        await eventually(_said(world, 1))
        world.declare(declared(ID, {"name": "v", "type": "DATE"}))
        await eventually(_said(world, 2))

    assert await world.columns() == [("id", "BIGINT"), ("v", "DATE")]


def _said(world: World, times: int) -> Any:
    async def told() -> bool:
        return len(world.reporter.said) >= times

    return told


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("BOOLEAN", "true", True),
        ("BOOLEAN", "FALSE", False),
        ("DOUBLE", "1e3", 1000.0),
        ("FLOAT", "-0.5", -0.5),
        ("BIGINT", "7", "7"),
        ("VARCHAR", "7", "7"),
    ],
)
def test_a_default_in_text_becomes_one_of_its_type(
    type_name: str, text: str, value: object
) -> None:
    column = {"name": "c", "type": type_name, "default": text}
    found = parse_declaration(json.dumps({"tables": [declared(column)]}).encode())

    assert not found.problems
    assert found.tables[0].columns[0].default == value


@pytest.mark.parametrize(
    ("type_name", "text"), [("BOOLEAN", "yes"), ("DOUBLE", "x"), ("DOUBLE", "nan"), ("INT", "1.5")]
)
def test_a_default_that_the_type_does_not_take_is_told(type_name: str, text: str) -> None:
    column = {"name": "c", "type": type_name, "default": text}
    found = parse_declaration(json.dumps({"tables": [declared(column)]}).encode())

    assert found.tables == []
    assert found.problems[0].startswith("table t: columns[0].default: want")


async def test_after_a_restore_the_tables_are_compared_at_the_next_look(world: World) -> None:
    digest = world.declare(declared(ID, {"name": "v", "type": "VARCHAR"}), declared(ID, name="u"))
    world.lake.bus.snapshots[1] = 0
    await world.follower.look()
    await world.lake.bus.restore(1)
    assert await world.lake.tables.all() == []
    await world.follower.look()
    assert await world.lake.tables.all() == []

    world.follower.recheck()
    await world.follower.look()

    assert [table.name for table in await world.lake.tables.all()] == ["t", "u"]
    assert await world.columns() == [("id", "BIGINT"), ("v", "VARCHAR")]
    assert world.reporter.said == [(digest, True, "")]
