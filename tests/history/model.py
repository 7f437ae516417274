"""What a lake must be after a sequence of requests: tables as dicts, and what each record's answer must say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = tuple[tuple[str, Any], ...]
"""Columns and values, by column name: two rows are equal when these are."""

RANGES = {"INTEGER": 31, "BIGINT": 63}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a request."""

    key: str | None
    op: str | None
    payload: Mapping[str, Any]

    @property
    def content(self) -> str:
        """What its idempotency key stands for."""
        return json.dumps([self.payload, self.op == "delete"], sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Records for one table; `number` names it."""

    number: int
    table: str
    records: Sequence[Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A table change: `create` (with columns and primary key), `drop`, or one of `domain.changes`."""

    table: str
    kind: str
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        to: What was asked.
        number: Of its token; None when nothing was accepted or known.
        accepted: Records accepted by this answer; 1 for a change.
        duplicates: Records that were known.
        rejected: Error code by index.
        sure: False when an earlier attempt got no answer, so that it may have landed.
    """

    to: Request | Change
    number: int | None
    accepted: int
    duplicates: int = 0
    rejected: Mapping[int, str] = field(default_factory=dict)
    sure: bool = True


@dataclass(slots=True)
class Verdict:
    """What the model says of a request at its place: indexes of accepted and known records, codes of refused ones."""

    accepted: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Table:
    """A table: `columns` by name as (type, default); rows by primary key, or counted when there is none."""

    columns: dict[str, tuple[str, Any]]
    key: str | None
    keyed: dict[Any, Row] = field(default_factory=dict)
    plain: Counter[Row] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Counter[Row]:
        """All rows, each as often as it is there."""
        return Counter(self.keyed.values()) if self.key else Counter(self.plain)

    def refuses(self, record: Record) -> bool:
        """Whether the record does not fit the table."""
        if record.op not in ((None, "upsert", "delete") if self.key else (None, "insert")):
            return True
        if not record.payload.keys() <= self.columns.keys() or record.payload.get("id") is None:
            return True
        return any(not _fits(self.columns[name][0], v) for name, v in record.payload.items())

    def judge(self, records: Sequence[Record]) -> Verdict:
        """What becomes of the records, and do it: the keys are known afterwards, the rows are there."""
        verdict = Verdict()
        for index, record in enumerate(records):
            if self.refuses(record):
                verdict.rejected[index] = "VALIDATION_FAILED"
            elif record.key is not None and record.key in self.known:
                if self.known[record.key] == record.content:
                    verdict.duplicates.append(index)
                else:
                    verdict.rejected[index] = "IDEMPOTENCY_CONFLICT"
            else:
                if record.key is not None:
                    self.known[record.key] = record.content
                verdict.accepted.append(index)
                self.write(record)
        return verdict

    def write(self, record: Record) -> None:
        """Do what an accepted record asks."""
        if self.key and record.op == "delete":
            self.keyed.pop(record.payload[self.key], None)
            return
        values = {n: record.payload.get(n, default) for n, (_, default) in self.columns.items()}
        if self.key:
            self.keyed[values[self.key]] = row_of(values)
        else:
            self.plain[row_of(values)] += 1

    def change(self, kind: str, said: Mapping[str, Any]) -> None:
        """Alter the table."""
        if kind == "add_column":
            name, default = said["name"], said.get("default")
            self.columns[name] = (said["type"], default)
            self._rebuild(lambda values: values | {name: default})
        elif kind == "drop_column":
            del self.columns[said["name"]]
            self._rebuild(lambda values: {n: v for n, v in values.items() if n != said["name"]})
        elif kind == "rename_column":
            names = {said["name"]: said["to"]}
            self.columns = {names.get(n, n): c for n, c in self.columns.items()}
            self._rebuild(lambda values: {names.get(n, n): v for n, v in values.items()})
        elif kind == "widen_type":
            self.columns[said["name"]] = (said["type"], self.columns[said["name"]][1])
        elif kind == "set_default":
            self.columns[said["name"]] = (self.columns[said["name"]][0], said["default"])
        else:
            raise ValueError(kind)

    def _rebuild(self, turn: Any) -> None:
        self.keyed = {key: row_of(turn(dict(row))) for key, row in self.keyed.items()}
        plain: Counter[Row] = Counter()
        for row, count in self.plain.items():
            plain[row_of(turn(dict(row)))] += count
        self.plain = plain


def _fits(kind: str, value: object) -> bool:
    if value is None:
        return True
    if kind in RANGES:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and -(2 ** RANGES[kind]) <= value < 2 ** RANGES[kind]
    return isinstance(value, str)


def row_of(values: Mapping[str, Any]) -> Row:
    """A row as one value."""
    return tuple(sorted(values.items()))


@dataclass(slots=True)
class Model:
    """All tables."""

    tables: dict[str, Table] = field(default_factory=dict)

    def apply(self, asked: Request | Change) -> Verdict:
        """Do what was asked, as if it were alone."""
        if isinstance(asked, Request):
            return self.tables[asked.table].judge(asked.records)
        if asked.kind == "create":
            columns = {n: (kind, default) for n, kind, default in asked.said["columns"]}
            self.tables[asked.table] = Table(columns, asked.said["key"])
        elif asked.kind == "drop":
            del self.tables[asked.table]
        else:
            self.tables[asked.table].change(asked.kind, asked.said)
        return Verdict(accepted=[0])
