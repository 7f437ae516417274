"""The calls of the API, each as steps; what `client` and `aio` offer is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
import msgspec

from duckmesh import result
from duckmesh.answers import (
    Column,
    DeadLetter,
    Lag,
    Receipt,
    Rejection,
    Replay,
    Restored,
    Snapshot,
    Table,
    TableVersion,
    Visible,
)
from duckmesh.bodies import ARROW, Piece, Rows, pieces
from duckmesh.errors import DuckmeshError, Invalid, NotVisible
from duckmesh.extras import has_pyarrow
from duckmesh.result import Result
from duckmesh.steps import (
    Patience,
    Request,
    Steps,
    Work,
    answered,
    json_object,
    monotonic,
    shaped,
    told,
)

T = TypeVar("T")

LONGEST_WAIT_S: Final = 60.0
"""That the service waits for visibility in one call."""

_MOST_REJECTED: Final = 1_000  # that a receipt names, as an answer does
_MOST_BAD_ROWS: Final = 10_000  # of a call, as of one body: more of them are no accident
_LONGEST_KEY: Final = 240  # the service takes 255; a piece adds its number
_QUERY_BREAKS: Final = 1  # a statement that fails half way breaks its answer off, each time
_LONGEST_PAGE: Final = 1_000


class HasToken(Protocol):
    """A receipt, a result, a changed table: what has a visibility token."""

    @property
    def token(self) -> str | None:
        """Of the last write that it stands for."""


AtLeast = HasToken | str


def token_of(at_least: AtLeast) -> str:
    """The visibility token of what a caller has.

    Raises:
        Invalid: It has none.
    """
    token = at_least if isinstance(at_least, str) else getattr(at_least, "token", None)
    if not isinstance(token, str) or not token:
        kind = type(at_least).__name__
        raise _invalid("at_least", f"want a receipt, a result or a visibility token, not a {kind}")
    return token


# ---------------------------------------------------------------- ingest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """How rows go in; as of `Client.ingest`."""

    op: str | None = None
    atomic: bool = False
    wait: bool = False
    wait_timeout_s: float = 30.0
    idempotency_key: str | None = None

    def params(self) -> dict[str, str]:
        """Query parameters of each request."""
        op = {} if self.op is None else {"op": self.op}
        return op | ({"atomic": "true"} if self.atomic else {})


def ingest(table: str, data: Rows, how: Ingest, patience: Patience) -> Steps[Receipt]:
    """Send rows in pieces, each with a key of its own made of the call's."""
    key = _ingest_key(how.idempotency_key)
    sent = _Sent(Receipt(table=table, token="", accepted=0, duplicates=0, idempotency_key=key))
    try:
        yield from _send_all(sent, pieces(data, whole=how.atomic), how, patience)
        if how.wait:
            seen = yield from visible(sent.receipt, how.wait_timeout_s, patience)
            return replace(sent.receipt, visible_snapshot_id=seen.snapshot_id)
    except DuckmeshError as error:
        error.receipt = sent.receipt
        raise
    except Exception as error:  # of the source that the rows come from
        error.add_note(f"{sent.rows:,} rows are in: call again with idempotency_key={key!r}")
        raise
    return sent.receipt


@dataclass(slots=True)
class _Sent:
    """How far a call is: pieces and rows that are answered for, and the error of the first piece without a good row."""

    receipt: Receipt
    pieces: int = 0
    rows: int = 0
    refused: DuckmeshError | None = None

    def add(self, piece: Piece, said: Mapping[str, Any]) -> None:
        self.receipt = _added(self.receipt, said, self.rows)
        self.pieces += 1
        self.rows += piece.rows

    @property
    def too_bad(self) -> bool:
        return self.refused is not None and self.receipt.rejected_count > _MOST_BAD_ROWS

    def check(self) -> None:
        """A call of which nothing at all was accepted fails, as one request does."""
        if self.refused is not None and (self.too_bad or not self.receipt.token):
            self.refused.rejected = self.receipt.rejected
            self.refused.rejected_count = self.receipt.rejected_count
            raise self.refused


def _send_all(sent: _Sent, bodies: Iterator[Piece], how: Ingest, patience: Patience) -> Steps[None]:
    table, key = sent.receipt.table, sent.receipt.idempotency_key
    while (piece := (yield Work(partial(next, bodies, None)))) is not None and not sent.too_bad:
        request = _piece_request(table, piece, f"{key}-{sent.pieces}", how)
        try:
            said = yield from told(request, patience)
        except DuckmeshError as error:
            if not error.rejected or how.atomic:
                raise
            sent.refused, said = sent.refused or error, _nothing(error)
        sent.add(piece, said)
    sent.check()


def _ingest_key(key: str | None) -> str:
    if key is None:
        return f"py-{uuid4().hex}"
    if not 0 < len(key) <= _LONGEST_KEY or not key.isprintable() or not key.isascii():
        problem = f"want 1 to {_LONGEST_KEY} printable ASCII characters"
        raise _invalid("idempotency_key", problem)
    return key


def _piece_request(table: str, piece: Piece, key: str, how: Ingest) -> Request:
    return Request(
        method="POST",
        path=f"/v1/ingest/{_segment(table)}",
        params=how.params(),
        headers={"Content-Type": piece.content_type, "Idempotency-Key": key},
        content=piece.content,
    )


def _nothing(error: DuckmeshError) -> dict[str, Any]:
    """The answer to a piece of which each row was refused, which is an error."""
    return {
        "accepted_count": 0,
        "duplicate_count": 0,
        "rejected": [
            {"index": r.index, "error_code": r.code, "message": r.message} for r in error.rejected
        ],
        "rejected_count": error.rejected_count,
        "max_visibility_token": "",
    }


def _added(receipt: Receipt, said: Mapping[str, Any], before: int) -> Receipt:
    """The receipt with the answer to one more piece, which `before` rows came before."""
    room = _MOST_REJECTED - len(receipt.rejected)
    more = tuple(
        Rejection(index=before + r["index"], code=r["error_code"], message=r["message"])
        for r in said["rejected"][:room]
    )
    return replace(
        receipt,
        token=said["max_visibility_token"] or receipt.token,
        accepted=receipt.accepted + said["accepted_count"],
        duplicates=receipt.duplicates + said["duplicate_count"],
        rejected=receipt.rejected + more,
        rejected_count=receipt.rejected_count + said["rejected_count"],
    )


# ---------------------------------------------------------------- visibility


def visible(at_least: AtLeast, timeout_s: float, patience: Patience) -> Steps[Visible]:
    """Wait until a token is visible, in as many calls as that takes."""
    token = token_of(at_least)
    deadline = monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - monotonic())
        part_s = min(left_s, LONGEST_WAIT_S)
        request = Request(
            method="GET",
            path="/v1/visible",
            params={"token": token, "timeout_ms": _ms(part_s)},
            answer_timeout_s=part_s,
        )
        try:
            said = yield from told(
                request, replace(patience, retry_s=min(patience.retry_s, left_s))
            )
        except NotVisible:
            if deadline - monotonic() <= 0.001:
                raise
            continue
        return Visible(token=token, snapshot_id=said["visible_snapshot_id"])


# ---------------------------------------------------------------- queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked; as of `Client.query`."""

    sql: str
    params: Sequence[object] = ()
    at_least: AtLeast | None = None
    wait_timeout_s: float = 5.0
    max_staleness_s: float | None = None
    snapshot_id: int | None = None
    snapshot_time: datetime | None = None
    row_limit: int | None = None
    timeout_s: float | None = None

    def request(self, accept: str, *, stream: bool) -> Request:
        """The call that asks it."""
        return Request(
            method="POST",
            path="/v1/query",
            headers={"Content-Type": "application/json", "Accept": accept},
            content=_json(self._body()),
            answer_timeout_s=(self.timeout_s or 0) + self.wait_timeout_s,
            stream=stream,
            breaks=_QUERY_BREAKS,
        )

    def _body(self) -> dict[str, object]:
        body: dict[str, object] = {"sql": self.sql}
        if isinstance(self.params, str | bytes | Mapping):
            raise _invalid("params", "want a list, in the order of $1, $2 and so on")
        if self.params:
            body["params"] = list(self.params)
        if self.at_least is not None:
            body["min_visibility_token"] = token_of(self.at_least)
            body["consistency_timeout_ms"] = int(_ms(self.wait_timeout_s))
        if self.snapshot_time is not None and self.snapshot_time.tzinfo is None:
            raise _invalid("snapshot_time", "want a time with its zone")
        rest = {
            "max_staleness_ms": self.max_staleness_s and self.max_staleness_s * 1000,
            "snapshot_id": self.snapshot_id,
            "snapshot_time": self.snapshot_time,
            "row_limit": self.row_limit,
            "timeout_ms": self.timeout_s and self.timeout_s * 1000,
        }
        whole = {k: round(v) if isinstance(v, float) else v for k, v in rest.items()}
        return body | {k: v for k, v in whole.items() if v is not None}


def query(asked: Query, patience: Patience) -> Steps[Result]:
    """Run a statement and read its whole answer: as Arrow, or as JSON where there is no pyarrow."""
    arrow = has_pyarrow()
    accept = ARROW if arrow else "application/json"
    response = yield from answered(asked.request(accept, stream=False), patience)
    read = result.of_arrow if arrow else result.of_json
    found: Result = yield Work(partial(_read, read, response))
    return found


def stream(asked: Query, patience: Patience) -> Steps[httpx.Response]:
    """Run a statement; its answer is still to be read, as an Arrow stream."""
    return answered(asked.request(ARROW, stream=True), patience)


def _read(read: Any, response: httpx.Response) -> Result:
    try:
        found: Result = read(response)
    except (
        KeyError,
        ValueError,
    ) as error:  # no header, no number, no Arrow: something else answered
        json_object(response)  # says so
        raise DuckmeshError("INTERNAL", f"the answer cannot be read: {error}") from error
    return found


# ---------------------------------------------------------------- lag


def lag(patience: Patience) -> Steps[Lag]:
    """How far the lake is behind."""
    said = yield from told(_get("/v1/lag"), patience)
    return shaped(Lag, said)


# ---------------------------------------------------------------- tables


def tables(patience: Patience) -> Steps[list[Table]]:
    """All tables."""
    said = yield from told(_get("/v1/tables"), patience)
    return shaped(list[Table], said["tables"])


def table(name: str, patience: Patience) -> Steps[Table]:
    """One table."""
    said = yield from told(_get(f"/v1/tables/{_segment(name)}"), patience)
    return shaped(Table, said)


def table_versions(name: str, patience: Patience) -> Steps[list[TableVersion]]:
    """Every definition that tables of a name had."""
    said = yield from told(_get(f"/v1/tables/{_segment(name)}/versions"), patience)
    return shaped(list[TableVersion], said["versions"])


Columns = Mapping[str, str] | Iterable[Column]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTable:
    """A table to make; as of `Tables.create`."""

    name: str
    columns: Columns
    primary_key: Sequence[str] = ()
    partition_by: Sequence[str] = ()
    sort_by: Sequence[str] = ()

    def body(self) -> dict[str, object]:
        """As the API takes it."""
        return {
            "name": self.name,
            "columns": [msgspec.to_builtins(column) for column in self._columns()],
            "primary_key": list(self.primary_key),
            "partition_by": list(self.partition_by),
            "sort_by": list(self.sort_by),
        }

    def _columns(self) -> list[Column]:
        if isinstance(self.columns, Mapping):
            keys = set(self.primary_key)
            return [
                Column(name=name, type=kind, nullable=name not in keys)
                for name, kind in self.columns.items()
            ]
        return list(self.columns)


def create_table(new: NewTable, timeout_s: float, patience: Patience) -> Steps[Table]:
    """Make a table; when there is an equal one, that is the same success."""
    return _changed("POST", "/v1/tables", new.body(), timeout_s, patience, repeatable=True)


def alter_table(
    name: str, changes: Sequence[Mapping[str, object]], timeout_s: float, patience: Patience
) -> Steps[Table]:
    """Change a table, in all of these or not at all."""
    body = {"changes": list(changes)}
    return _changed("PATCH", f"/v1/tables/{_segment(name)}", body, timeout_s, patience)


def drop_table(name: str, timeout_s: float, patience: Patience) -> Steps[Table]:
    """Drop a table."""
    return _changed("DELETE", f"/v1/tables/{_segment(name)}", None, timeout_s, patience)


def _changed(
    method: str,
    path: str,
    body: object,
    timeout_s: float,
    patience: Patience,
    *,
    repeatable: bool = False,
) -> Steps[Table]:
    request = _send(method, path, body, repeatable=repeatable, wait_s=timeout_s)
    said = yield from told(request, patience)
    return replace(shaped(Table, said), token=said["max_visibility_token"])


# ---------------------------------------------------------------- snapshots


def snapshots(limit: int, patience: Patience) -> Steps[list[Snapshot]]:
    """The newest snapshots, newest first."""
    found: list[Snapshot] = []
    before: dict[str, str] = {}
    while len(found) < limit:
        page = str(min(limit - len(found), _LONGEST_PAGE))
        said = yield from told(_get("/v1/snapshots", limit=page, **before), patience)
        found += shaped(list[Snapshot], said["snapshots"])
        if said["next_before"] is None:
            break
        before = {"before": str(said["next_before"])}
    return found


def snapshot(snapshot_id: int, patience: Patience) -> Steps[Snapshot]:
    """One snapshot with its tables."""
    said = yield from told(_get(f"/v1/snapshots/{snapshot_id:d}"), patience)
    return shaped(Snapshot, said)


def snapshot_files(
    snapshot_id: int, table: str | None, patience: Patience
) -> Steps[dict[str, Any]]:
    """The tables of a snapshot and all its files, as the API describes them."""
    params = {} if table is None else {"table": table}
    path = f"/v1/snapshots/{snapshot_id:d}/files"
    said = yield from told(_get(path, **params), patience)
    files = list(said["files"])
    while said["next_after"] is not None:
        said = yield from told(_get(path, **params, after=str(said["next_after"])), patience)
        files += said["files"]
    return said | {"files": files}


def pin(
    snapshot_id: int, name: str | None, expires_at: datetime | None, patience: Patience
) -> Steps[Snapshot]:
    """Keep a snapshot."""
    body = {"snapshot_id": snapshot_id, "name": name, "expires_at": expires_at}
    said = yield from told(_send("POST", "/v1/snapshots/pin", body, repeatable=True), patience)
    return shaped(Snapshot, said)


def unpin(snapshot_id: int, name: str | None, patience: Patience) -> Steps[Snapshot]:
    """Keep it no longer."""
    body = {"snapshot_id": snapshot_id, "name": name}
    said = yield from told(_send("POST", "/v1/snapshots/unpin", body, repeatable=True), patience)
    return shaped(Snapshot, said)


def restore(
    snapshot_id: int, key: str | None, timeout_s: float, patience: Patience
) -> Steps[Restored]:
    """The whole lake as it was at a snapshot."""
    key = _ingest_key(key)
    body = {"snapshot_id": snapshot_id}
    request = _send("POST", "/v1/snapshots/restore", body, repeatable=True, wait_s=timeout_s)
    request = replace(request, headers={**request.headers, "Idempotency-Key": key})
    said = yield from told(request, patience)
    return Restored(
        restored_snapshot_id=said["restored_snapshot_id"],
        token=said["max_visibility_token"],
        visible_snapshot_id=said["visible_snapshot_id"],
        idempotency_key=key,
    )


# ---------------------------------------------------------------- dead letters


def dead_letters(table: str | None, limit: int, patience: Patience) -> Steps[list[DeadLetter]]:
    """Some letters in the order of their numbers."""
    found: list[DeadLetter] = []
    params = {} if table is None else {"table": table}
    while len(found) < limit:
        page = str(min(limit - len(found), 100))
        said = yield from told(_get("/v1/dead-letters", limit=page, **params), patience)
        found += shaped(list[DeadLetter], said["dead_letters"])
        if said["next_after"] is None:
            break
        params["after"] = str(said["next_after"])
    return found


def dead_letter(number: int, patience: Patience) -> Steps[DeadLetter]:
    """One letter."""
    said = yield from told(_get(f"/v1/dead-letters/{number:d}"), patience)
    return shaped(DeadLetter, said)


def replay_letter(number: int, timeout_s: float, patience: Patience) -> Steps[Replay]:
    """Send one in again."""
    request = _send("POST", f"/v1/dead-letters/{number:d}/replay", None, wait_s=timeout_s)
    said = yield from told(request, patience)
    return Replay(replayed=1, token=said["max_visibility_token"])


def replay_letters(table: str, timeout_s: float, patience: Patience) -> Steps[Replay]:
    """Send in again all of a table that are there now."""
    done = Replay(replayed=0, token=None)
    params = {"table": table, "limit": "500"}
    while True:
        request = _send("POST", "/v1/dead-letters/replay", None, wait_s=timeout_s)
        said = yield from told(replace(request, params={**request.params, **params}), patience)
        done = Replay(
            replayed=done.replayed + said["replayed_count"],
            token=said["max_visibility_token"] or done.token,
            failed=(*done.failed, *said["failed"]),
        )
        if said["next_after"] is None:
            return done
        params |= {"after": str(said["next_after"]), "upto": str(said["upto"])}


def drop_letter(number: int, patience: Patience) -> Steps[int]:
    """Drop one for good."""
    said = yield from told(_send("DELETE", f"/v1/dead-letters/{number:d}", None), patience)
    return int(said["dropped_count"])


def drop_letters(table: str, patience: Patience) -> Steps[int]:
    """Drop all of a table for good."""
    dropped = 0
    params = {"table": table, "limit": "500"}
    while True:
        request = replace(_send("DELETE", "/v1/dead-letters", None), params=params)
        said = yield from told(request, patience)
        dropped += int(said["dropped_count"])
        if said["next_after"] is None:
            return dropped
        params = {**params, "after": str(said["next_after"])}


# ---------------------------------------------------------------- requests


def _get(path: str, **params: str) -> Request:
    return Request(method="GET", path=path, params=params)


def _send(
    method: str,
    path: str,
    body: object,
    *,
    repeatable: bool = False,
    wait_s: float | None = None,
) -> Request:
    return Request(
        method=method,
        path=path,
        params={} if wait_s is None else {"visibility_timeout_ms": _ms(wait_s)},
        headers={} if body is None else {"Content-Type": "application/json"},
        content=None if body is None else _json(body),
        repeatable=repeatable,
        answer_timeout_s=wait_s,
    )


def _segment(name: str) -> str:
    return quote(name, safe="")


def _ms(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))


def _text(value: Any) -> object:
    """What a parameter of a library's own type is in JSON."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds()} seconds"
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be sent: convert it first")


_JSON: Final = msgspec.json.Encoder(enc_hook=_text)


def _json(body: object) -> bytes:
    try:
        return _JSON.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _invalid("params", str(error)) from error


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid("VALIDATION_FAILED", f"{field}: {problem}", context={"field": field})
