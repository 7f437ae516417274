"""A lake that is right by construction, and ways to spoil it: what the checker is checked with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.history.check import Snapshot
from tests.history.model import Answer, Change, Model, Request, Row
from tests.history.steps import Again, Alter, Script, Send, Settle, Step, Together


@dataclass(slots=True)
class History:
    """Answers in the order of their numbers, and the lake after each."""

    answers: list[Answer]
    snapshots: list[Snapshot]


def simulate(steps: Sequence[Step]) -> History:
    """Answer every step as a correct lake would, one after the other; one snapshot a step that waits, and a last one."""
    script, model, history, number = Script("s"), Model(), History([], []), 0

    def look() -> None:
        tables = {name: table.rows() for name, table in model.tables.items()}
        history.snapshots.append(Snapshot(token=number, tables=tables))

    def ask(asked: Request | Change) -> None:
        nonlocal number
        verdict = model.apply(asked)
        number += len(verdict.accepted)
        known = bool(verdict.accepted or verdict.duplicates)
        history.answers.append(
            Answer(
                to=asked,
                number=number if known else None,
                accepted=len(verdict.accepted),
                duplicates=len(verdict.duplicates),
                rejected=verdict.rejected,
            )
        )

    for asked in (script.create(True), script.create(False)):
        ask(asked)
    for step in steps:
        for each in _asked(script, step):
            ask(each)
        if isinstance(step, Settle):
            look()
    look()
    return history


def _asked(script: Script, step: Step) -> Sequence[Request | Change]:
    match step:
        case Send():
            return (script.send(step),)
        case Together():
            changes = script.alter(True, step.alter) if step.alter else ()
            return (*changes, *(script.send(each) for each in step.sends))
        case Again():
            found = script.again(step)
            return () if found is None else (found,)
        case Alter():
            return script.alter(step.keyed, step.kind)
        case _:
            return ()


# -- ways to spoil the last snapshot or an answer; each gives None where it cannot be done

Mutant = Callable[[History], History | None]


def _spoil(
    history: History, change: Callable[[str, Counter[Row]], Counter[Row] | None]
) -> History | None:
    last = history.snapshots[-1]
    for name, rows in last.tables.items():
        spoiled = change(name, Counter(rows))
        if spoiled is not None:
            tables: Mapping[str, Counter[Row]] = {**last.tables, name: spoiled}
            snapshots = [*history.snapshots[:-1], replace(last, tables=tables)]
            return History(history.answers, snapshots)
    return None


def lost_row(history: History) -> History | None:
    def change(_: str, rows: Counter[Row]) -> Counter[Row] | None:
        return rows - Counter([min(rows, key=repr)]) if rows else None

    return _spoil(history, change)


def doubled_row(history: History) -> History | None:
    def change(_: str, rows: Counter[Row]) -> Counter[Row] | None:
        return rows + Counter([min(rows, key=repr)]) if rows else None

    return _spoil(history, change)


def revived_delete(history: History) -> History | None:
    """A row that was deleted, and not written since, is back."""
    earlier = [row for snapshot in history.snapshots for row in snapshot.tables.get("keyed_s", ())]

    def change(name: str, rows: Counter[Row]) -> Counter[Row] | None:
        there = {dict(row)["id"] for row in rows}
        gone = [row for row in earlier if dict(row)["id"] not in there]
        return rows + Counter(gone[:1]) if name == "keyed_s" and gone else None

    return _spoil(history, change)


def wrong_last_write(history: History) -> History | None:
    """An upsert's value is the one of an earlier write to the same key."""
    earlier = [row for snapshot in history.snapshots for row in snapshot.tables.get("keyed_s", ())]

    def change(name: str, rows: Counter[Row]) -> Counter[Row] | None:
        for row in rows if name == "keyed_s" else ():
            old = [o for o in earlier if dict(o)["id"] == dict(row)["id"] and o != row]
            if old:
                return rows - Counter([row]) + Counter(old[:1])
        return None

    return _spoil(history, change)


def early_row(history: History) -> History | None:
    """Rows of the end are visible at a watermark before their numbers."""
    first, last = history.snapshots[0], history.snapshots[-1]
    if first.tables == last.tables:
        return None
    return History(history.answers, [replace(first, tables=last.tables), *history.snapshots[1:]])


def lost_answer(history: History) -> History | None:
    """Rows came in that nobody was told of: a request was written twice under other numbers, say."""
    place = next(
        (i for i, a in enumerate(history.answers) if a.accepted and isinstance(a.to, Request)), None
    )
    if place is None:
        return None
    answers = list(history.answers)
    del answers[place]
    return History(answers, history.snapshots)


def accepted_twice(history: History) -> History | None:
    """A duplicate was answered as newly accepted."""
    for place, answer in enumerate(history.answers):
        if answer.duplicates and answer.accepted:
            told = replace(answer, accepted=answer.accepted + 1, duplicates=answer.duplicates - 1)
            answers = [*history.answers[:place], told, *history.answers[place + 1 :]]
            return History(answers, history.snapshots)
    return None


def conflict_taken(history: History) -> History | None:
    """A key used with other content was answered as a duplicate."""
    for place, answer in enumerate(history.answers):
        conflicts = [i for i, c in answer.rejected.items() if c == "IDEMPOTENCY_CONFLICT"]
        if conflicts and answer.number is not None:
            rejected = {i: c for i, c in answer.rejected.items() if i != conflicts[0]}
            told = replace(answer, duplicates=answer.duplicates + 1, rejected=rejected)
            answers = [*history.answers[:place], told, *history.answers[place + 1 :]]
            return History(answers, history.snapshots)
    return None


MUTANTS: Mapping[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        lost_row,
        doubled_row,
        revived_delete,
        wrong_last_write,
        early_row,
        lost_answer,
        accepted_twice,
        conflict_taken,
    )
}
