"""Judge a history: answers against the order of their tokens, and every snapshot of the lake against the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.history.model import Answer, Change, Model, Request, Row, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The lake at a watermark: each table's rows, counted."""

    token: int
    tables: Mapping[str, Counter[Row]]


def problems(
    answers: Sequence[Answer], snapshots: Sequence[Snapshot], *, start: int
) -> Sequence[str]:
    """All that is wrong; nothing for a correct history.

    Numbers are the order: the model is fed in it and compared with each snapshot at its watermark. Every number from
    `start` on must belong to exactly one accepted row or change, so what was accepted twice, or by nobody's answer, shows
    even when the rows look right.

    Args:
        answers: All of them, in any order.
        snapshots: In order of their tokens.
        start: The watermark before the first request.
    """
    found: list[str] = []
    model, at, written = Model(), start, set[str]()
    waiting = list(snapshots)
    for answer in sorted((a for a in answers if a.number is not None), key=_place):
        assert answer.number is not None
        if answer.accepted or not answer.sure:
            landed = answer.number - _rows_left(model, answer)
            while waiting and waiting[0].token <= landed:
                found += _compare(waiting.pop(0), model)
            at = _step(model, answer, at, written, found)
    found += [problem for snapshot in waiting for problem in _compare(snapshot, model)]
    if waiting and waiting[-1].token != at:
        found.append(f"the last watermark is {waiting[-1].token}, the last number given {at}")
    found += [p for a in answers if not a.accepted and a.sure for p in _unwritten(a, written)]
    return found


def _place(answer: Answer) -> tuple[int, bool]:
    # A retry that found its rows known has the number of those rows, as their real duplicates have: those come after.
    return answer.number or 0, answer.accepted == 0


def _rows_left(model: Model, answer: Answer) -> int:
    """Rows of the answer that the model does not have yet: all accepted ones, or those an unanswered attempt left."""
    if answer.accepted or isinstance(answer.to, Change):
        return answer.accepted
    table = model.tables[answer.to.table]
    new = {r.key for r in answer.to.records if not table.refuses(r) and r.key not in table.known}
    return len(new)


def _step(model: Model, answer: Answer, at: int, written: set[str], found: list[str]) -> int:
    """Feed one answer to the model, note what it wrote; returns the number it ends at."""
    name = _name(answer)
    verdict = model.apply(answer.to)
    rows = len(verdict.accepted)
    if not rows:
        return at  # an unsure answer to what an earlier request had settled
    if answer.number != at + rows:
        found.append(f"{name}: {rows} rows end at number {answer.number}, want {at + rows}")
    if isinstance(answer.to, Request):
        written |= {_content(answer.to, index) for index in verdict.accepted}
    found += _judge(name, answer, verdict)
    return answer.number or at


def _judge(name: str, answer: Answer, verdict: Verdict) -> list[str]:
    said = (answer.accepted, answer.duplicates)
    want = (len(verdict.accepted), len(verdict.duplicates))
    if not answer.accepted:  # an unanswered attempt wrote them; this one found them known
        want = (0, sum(want))
    found = [] if said == want else [f"{name}: answered accepted, known {said}, want {want}"]
    if dict(answer.rejected) != verdict.rejected:
        found.append(f"{name}: answered rejected {dict(answer.rejected)}, want {verdict.rejected}")
    return found


def _unwritten(answer: Answer, written: set[str]) -> list[str]:
    """A request of which nothing was written: its known records were written by others, word for word."""
    if isinstance(answer.to, Change):
        return []
    kept = [i for i in range(len(answer.to.records)) if i not in answer.rejected]
    wrong = [answer.to.records[i].key for i in kept if _content(answer.to, i) not in written]
    return [f"{_name(answer)}: answered known, but nobody wrote {wrong}"] if wrong else []


def _content(request: Request, index: int) -> str:
    record = request.records[index]
    return f"{request.table} {record.key} {record.content}"


def _compare(snapshot: Snapshot, model: Model) -> list[str]:
    where = f"at watermark {snapshot.token}"
    if snapshot.tables.keys() != model.tables.keys():
        return [f"{where}: tables {sorted(snapshot.tables)}, want {sorted(model.tables)}"]
    found = []
    for name, table in model.tables.items():
        want = table.rows()
        if missing := want - snapshot.tables[name]:
            found.append(f"{where}: {name} lacks {dict(missing)}")
        if extra := snapshot.tables[name] - want:
            found.append(f"{where}: {name} has besides {dict(extra)}")
    return found


def _name(answer: Answer) -> str:
    if isinstance(answer.to, Request):
        return f"request {answer.to.number} to {answer.to.table}"
    return f"{answer.to.kind} of {answer.to.table}"
