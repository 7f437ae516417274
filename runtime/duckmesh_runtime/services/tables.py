"""Tables: every change is an entry of the bus with a number of its own, in order with the rows before and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from duckmesh_runtime.domain.changes import Change, alter_json, apply_changes, diff
from duckmesh_runtime.domain.schema import TableDef, table_json
from duckmesh_runtime.errors import Conflict, NotFound
from duckmesh_runtime.ports import (
    Append,
    AppendResult,
    DeadLetter,
    EntryKind,
    Part,
    TableVersion,
)
from duckmesh_runtime.services.inlet import TRIES, Inlet, unsettled
from duckmesh_runtime.services.table_cache import Tables

Plan = Callable[[Tables], Append | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A change of a table, accepted; what the lake makes of it `TableService.confirm` tells.

    Attributes:
        name: Which table.
        table: As it is afterwards; None when it is dropped.
        number: The change is visible, or refused, when this is.
        new: False when the table was already so, and `number` is the end of input.
    """

    name: str
    table: TableDef | None
    number: int
    new: bool


class Kept(Protocol):
    """What is kept of changes; every bus has it, of `ports.IngestBus` and `ports.DeadLetters`."""

    async def table_versions(self, name: str) -> Sequence[TableVersion]:
        """See `IngestBus.table_versions`."""
        ...

    async def letter(self, first: int) -> DeadLetter | None:
        """See `DeadLetters.letter`."""
        ...


class TableService:
    """Creates, changes, shows and drops the tables of one lake.

    Args:
        inlet: The way into the bus.
        kept: What the bus keeps of changes.
    """

    def __init__(self, inlet: Inlet, kept: Kept) -> None:
        self._inlet = inlet
        self._kept = kept

    async def create(self, table: TableDef) -> Changed:
        """Create a table; an equal existing one is a success.

        Raises:
            Conflict: TABLE_EXISTS.
        """

        def plan(tables: Tables) -> Append | None:
            existing = tables.by_name.get(table.name)
            if existing is not None:
                _check_equal(existing, table)
                return None
            return _append(EntryKind.CREATE_TABLE, table.name, table_json(table), tables.version)

        number, new = await self._submit(plan)
        return Changed(name=table.name, table=table, number=number, new=new)

    async def alter(self, name: str, changes: Sequence[Change]) -> Changed:
        """Apply changes to a table, all of them or none; when they leave it as it is, that is a success.

        Raises:
            NotFound: TABLE_NOT_FOUND.
            Conflict: SCHEMA_INCOMPATIBLE naming the change and the reason.
            Invalid: VALIDATION_FAILED, a value in a change does not fit its column.
        """
        after: TableDef | None = None

        def plan(tables: Tables) -> Append | None:
            nonlocal after
            existing = tables.find(name)
            after = apply_changes(existing, changes)
            return _alter(existing, after, changes, tables.version)

        number, new = await self._submit(plan)
        return Changed(name=name, table=after, number=number, new=new)

    async def declare(self, table: TableDef) -> Changed:
        """Create a table, or change the existing one to be as given but for further columns it has.

        Raises:
            Conflict: SCHEMA_INCOMPATIBLE, no possible change leads there.
            Invalid: VALIDATION_FAILED, as `alter`.
        """
        after = table

        def plan(tables: Tables) -> Append | None:
            nonlocal after
            existing = tables.by_name.get(table.name)
            if existing is None:
                return _append(
                    EntryKind.CREATE_TABLE, table.name, table_json(table), tables.version
                )
            changes = diff(existing, table)
            after = apply_changes(existing, changes)
            return _alter(existing, after, changes, tables.version)

        number, new = await self._submit(plan)
        return Changed(name=table.name, table=after, number=number, new=new)

    async def drop(self, name: str) -> Changed:
        """Drop a table.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """

        def plan(tables: Tables) -> Append | None:
            tables.find(name)
            return _append(EntryKind.DROP_TABLE, name, None, tables.version)

        number, new = await self._submit(plan)
        return Changed(name=name, table=None, number=number, new=new)

    async def confirm(self, changed: Changed) -> None:
        """Tell whether the lake took the change; call when its number is visible.

        Raises:
            Conflict: SCHEMA_INCOMPATIBLE with the lake's reason: the table is as it was before.
        """
        if changed.new:
            letter = await self._kept.letter(changed.number)
            if letter is not None and letter.kind.is_change:
                raise _refused(f"the lake refused the change: {letter.error}")
        elif changed.table != (await self._inlet.tables.fresh()).by_name.get(changed.name):
            # It rested on a change of another request, which the lake refused since, or which was followed by another.
            raise _refused("the table was changed meanwhile: read it and repeat")

    async def all(self) -> Sequence[TableDef]:
        """The tables as accepted, by name."""
        return list((await self._inlet.tables.fresh()).by_name.values())

    async def find(self, name: str) -> TableDef:
        """One table.

        Raises:
            NotFound: TABLE_NOT_FOUND.
        """
        return (await self._inlet.tables.fresh()).find(name)

    async def versions(self, name: str) -> Sequence[TableVersion]:
        """Every definition that tables of this name had, oldest first.

        Raises:
            NotFound: TABLE_NOT_FOUND, there never was one.
        """
        found = await self._kept.table_versions(name)
        if not found:
            raise NotFound("TABLE_NOT_FOUND", f"there never was a table {name[:64]!r}")
        return found

    async def _submit(self, plan: Plan) -> tuple[int, bool]:
        """Append what `plan` makes of the tables as they are, again when they changed under it.

        Returns:
            Its number and True; the end of input and False when there was nothing to append.
        """
        async with self._inlet.request():
            for _ in range(TRIES):
                append = plan(await self._inlet.tables.fresh())
                if append is None:
                    return (await self._inlet.head()).last, False
                receipt = await self._inlet.submit(append)
                await self._inlet.tables.fresh()
                if receipt.result is AppendResult.ACCEPTED:
                    return receipt.last, True
            raise unsettled()


def _append(kind: EntryKind, table: str, said: object, version: int) -> Append:
    payload = b"" if said is None else msgspec.json.encode(said)
    parts = [Part(rows=1, payload=payload)]
    return Append(kind=kind, table=table, parts=parts, schema_version=version)


def _alter(
    existing: TableDef, after: TableDef, changes: Sequence[Change], version: int
) -> Append | None:
    if after == existing:
        return None
    return _append(EntryKind.ALTER_TABLE, after.name, alter_json(after, changes), version)


def _check_equal(existing: TableDef, wanted: TableDef) -> None:
    if existing != wanted:
        raise Conflict(
            "TABLE_EXISTS",
            f"table {wanted.name} exists with another definition: change it with PATCH, drop it first or use another name",
        )


def _refused(reason: str) -> Conflict:
    return Conflict("SCHEMA_INCOMPATIBLE", reason)
