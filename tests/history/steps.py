"""Random histories: abstract steps, and the script that turns them into requests for the tables as they are by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.history.model import Change, Record, Request

COLUMNS = (("id", "BIGINT", None), ("n", "INTEGER", 7), ("text", "VARCHAR", None))
FRESH = -1


@dataclass(frozen=True, slots=True)
class Draft:
    """A record before it is known what the table looks like.

    Attributes:
        key: Number in the pool of keys; FRESH for one never used; None for no key.
        id: Of the row.
        n: Value of the column `n`; None leaves it out.
        op: `delete`, or None.
        odd: What else: a column that may be there or not, a bad value, a missing id, or nothing.
    """

    key: int | None
    id: int
    n: int | None
    op: str | None = None
    odd: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """A request to the keyed or the plain table; `twice` repeats its first record at its end."""

    keyed: bool
    drafts: tuple[Draft, ...]
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """Requests at the same time, over both replicas, and maybe a table change among them."""

    sends: tuple[Send, ...]
    alter: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """An earlier request once more, word for word."""

    back: int


@dataclass(frozen=True, slots=True)
class Alter:
    """A change of the keyed or the plain table."""

    keyed: bool
    kind: str


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9 of a replica, or an orderly end; another one is started in its place."""

    replica: int
    orderly: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """Wait until all is visible."""


Step = Send | Together | Again | Alter | Kill | Settle

CHANGES = ("add_column", "drop_column", "rename_column", "widen_type", "set_default", "recreate")
ODD = ("", "", "", "", "column", "bad", "wide", "no id", "old name")

_keys = st.one_of(st.just(FRESH), st.integers(0, 12))
_drafts = st.builds(
    Draft,
    _keys,
    st.integers(0, 5),
    st.one_of(st.none(), st.integers(0, 3)),
    st.sampled_from((None, None, "delete")),
    st.sampled_from(ODD),
)
_sends = st.builds(
    Send, st.booleans(), st.lists(_drafts, min_size=1, max_size=6).map(tuple), st.booleans()
)
_fresh_drafts = st.builds(Draft, st.just(FRESH), st.integers(0, 5), st.integers(0, 3))
_fresh_sends = st.builds(
    Send, st.booleans(), st.lists(_fresh_drafts, min_size=1, max_size=4).map(tuple)
)
_together = st.one_of(
    st.builds(Together, st.lists(_sends, min_size=2, max_size=6).map(tuple)),
    st.builds(
        Together,
        st.lists(_fresh_sends, min_size=2, max_size=6).map(tuple),
        st.sampled_from(("add_column", "widen_type")),
    ),
)


def steps(*, longest: int = 25, kills: bool = True) -> st.SearchStrategy[list[Step]]:
    """Histories of at most so many steps."""
    calm = [
        _sends,
        _sends,
        _together,
        st.builds(Again, st.integers(1, 6)),
        st.builds(Alter, st.booleans(), st.sampled_from(CHANGES)),
        st.just(Settle()),
    ]
    kill = [st.builds(Kill, st.integers(0, 1), st.booleans())] if kills else []
    return st.lists(st.one_of(*calm, *kill), min_size=3, max_size=longest)


@dataclass(slots=True)
class Script:
    """Makes requests and changes of steps; knows each table's present columns.

    Args:
        tag: Keeps this history's tables apart from others'.
        changes: Kinds of change that may be used.
    """

    tag: str
    changes: Sequence[str] = CHANGES
    requests: list[Request] = field(default_factory=list)
    _columns: dict[str, dict[str, str]] = field(default_factory=dict)
    _used: int = 0

    def table(self, keyed: bool) -> str:
        return f"{'keyed' if keyed else 'plain'}_{self.tag}"

    def create(self, keyed: bool) -> Change:
        name = self.table(keyed)
        self._columns[name] = {column: kind for column, kind, _ in COLUMNS}
        said = {"columns": COLUMNS, "key": "id" if keyed else None}
        return Change(table=name, kind="create", said=said)

    def send(self, step: Send) -> Request:
        """A request, with columns as they are named now."""
        name = self.table(step.keyed)
        records = [self._record(draft, name, step.keyed) for draft in step.drafts]
        request = Request(
            number=len(self.requests),
            table=name,
            records=records + records[:1] if step.twice else records,
        )
        self.requests.append(request)
        return request

    def again(self, step: Again) -> Request | None:
        """An earlier request, unless it has records without a key or there is none."""
        if len(self.requests) < step.back:
            return None
        return self.requests[-step.back]

    def alter(self, keyed: bool, kind: str) -> Sequence[Change]:
        """The change, if the table can take it now; dropped and made anew for `recreate`."""
        name = self.table(keyed)
        columns = self._columns[name]
        if kind not in self.changes:
            return ()
        if kind == "recreate":
            return (Change(table=name, kind="drop"), self.create(keyed))
        said = self._said(kind, columns)
        return () if said is None else (Change(table=name, kind=kind, said=said),)

    def _said(self, kind: str, columns: dict[str, str]) -> dict[str, Any] | None:
        self._used += 1
        added = [column for column in columns if column.startswith("c")]
        text = next(column for column in columns if column.startswith("text"))
        if kind == "add_column":
            name = f"c{self._used}"
            columns[name] = "VARCHAR"
            default = "old" if self._used % 2 else None
            return {"name": name, "type": "VARCHAR", "default": default}
        if kind == "drop_column" and added:
            del columns[added[0]]
            return {"name": added[0]}
        if kind == "rename_column":
            columns[f"text{self._used}"] = columns.pop(text)
            return {"name": text, "to": f"text{self._used}"}
        if kind == "widen_type" and columns["n"] == "INTEGER":
            columns["n"] = "BIGINT"
            return {"name": "n", "type": "BIGINT"}
        if kind == "set_default":
            # Never the one of the table's making: to change nothing takes no number.
            return {"name": "n", "default": 1_000 + self._used}
        return None

    def _record(self, draft: Draft, table: str, keyed: bool) -> Record:
        self._used += 1
        key = None if draft.key is None else f"fresh-{self._used}"
        if draft.key is not None and draft.key != FRESH:
            key = f"key-{draft.key}"
        if keyed and draft.op == "delete":
            return Record(key=key, op="delete", payload={"id": draft.id})
        columns = self._columns[table]
        text = next(column for column in columns if column.startswith("text"))
        payload: dict[str, Any] = {"id": draft.id, text: f"{self._used}"}
        if draft.n is not None:
            payload["n"] = draft.n
        return Record(key=key, op=None, payload=_odd(draft.odd, payload, columns))


def _odd(odd: str, payload: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    added = [column for column in columns if column.startswith("c")]
    if odd == "column":
        return payload | {added[-1] if added else "c0": "new"}
    if odd == "bad":
        return payload | {"n": "seven"}
    if odd == "wide":
        return payload | {"n": 2**40}
    if odd == "no id":
        return {name: value for name, value in payload.items() if name != "id"}
    if odd == "old name":
        return payload | {"text": "old"}
    return payload
