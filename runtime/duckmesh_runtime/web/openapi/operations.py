"""The calls of the API one by one: what each takes, answers and fails with. `web.routes` says where they are, and for whom."""

from __future__ import annotations

from typing import Final

from duckmesh_runtime.services.lag import LagReport
from duckmesh_runtime.web import (
    answers,
    dead_letters,
    events,
    ingest,
    integrity,
    query,
    restore,
    snapshots,
)
from duckmesh_runtime.web import tables as table_calls
from duckmesh_runtime.web.body import ARROW, JSON
from duckmesh_runtime.web.openapi import examples, requests
from duckmesh_runtime.web.openapi.operation import Operation
from duckmesh_runtime.web.parameters import SNAPSHOT_ID, TABLE, Parameter

TAGS: Final = {
    "Tables": "What tables there are, and how they change.",
    "Ingest": "Rows in. An answer is durable.",
    "Visibility": "When rows can be queried.",
    "Query": "Rows out.",
    "Snapshots": "States of the lake that are kept.",
    "Dead letters": "What the lake refused after it was accepted.",
    "Operations": "How the lake is.",
}

_ROWS: Final = {
    "application/x-ndjson": "A JSON object a line.",
    "application/jsonl": "A JSON object a line.",
    "text/csv": 'RFC 4180 with a header line; an empty field is NULL, `""` is empty text.',
    ARROW: "An Arrow IPC stream.",
    "application/vnd.apache.parquet": "A Parquet file.",
}
_RESULTS: Final = {
    "application/x-ndjson": "A JSON object a row.",
    "text/csv": 'With a header line; NULL is an empty field, empty text is `""`.',
    ARROW: "An Arrow IPC stream.",
    "application/vnd.apache.parquet": "A Parquet file.",
}

_TABLE: Final = {"table": TABLE}
_SNAPSHOT: Final = {"snapshot_id": SNAPSHOT_ID}
_LETTER: Final = {"type": "string", "pattern": "^([0-9]{1,18}|v1_[A-Za-z0-9_-]{1,125})$"}
_NUMBER: Final = {"number": Parameter(parse=str, schema=_LETTER)}
_CATALOG: Final = frozenset({"CATALOG_UNAVAILABLE"})
_WAITING: Final = _CATALOG | {"CONSISTENCY_TIMEOUT", "OVERLOADED", "TOKEN_SCOPE_MISMATCH"}
_WRITING: Final = _WAITING | {"RATE_LIMITED", "SCHEMA_INCOMPATIBLE"}
_OLD: Final = _CATALOG | {"SNAPSHOT_NOT_FOUND", "SNAPSHOT_EXPIRED"}
_WAIT_SAYS: Final = (
    " Waits until that is in the lake; after CONSISTENCY_TIMEOUT it is accepted and comes later: "
    "wait for the `max_visibility_token` in its context."
)

CREATE_TABLE: Final = Operation(
    tag="Tables",
    summary="Create a table",
    about="An equal existing table is the same success; another one is TABLE_EXISTS." + _WAIT_SAYS,
    answer=answers.ChangedTable,
    status=201,
    query=table_calls.CHANGE_PARAMETERS,
    body=requests.NewTable,
    codes=_WRITING | {"TABLE_EXISTS", "TABLE_DECLARED"},
    examples={JSON: examples.TABLES},
)
LIST_TABLES: Final = Operation(
    tag="Tables",
    summary="List the tables",
    about="All tables as accepted; a change that is not in the lake yet is told already.",
    answer=answers.Tables,
    codes=_CATALOG,
)
READ_TABLE: Final = Operation(
    tag="Tables",
    summary="Read a table",
    about="As accepted, with the schema version since which it is so.",
    answer=answers.CurrentTable,
    path=_TABLE,
    codes=_CATALOG | {"TABLE_NOT_FOUND"},
)
READ_VERSIONS: Final = Operation(
    tag="Tables",
    summary="Read a table's history",
    about="Every definition that tables of this name had, the oldest first; a drop has `dropped` and no `columns`.",
    answer=answers.TableVersions,
    path=_TABLE,
    codes=_CATALOG | {"TABLE_NOT_FOUND"},
)
ALTER_TABLE: Final = Operation(
    tag="Tables",
    summary="Change a table",
    about="1 to 100 changes, applied in order, all or none. What is not possible is SCHEMA_INCOMPATIBLE and says why."
    + _WAIT_SAYS,
    answer=answers.ChangedTable,
    path=_TABLE,
    query=table_calls.CHANGE_PARAMETERS,
    body=requests.Changes,
    codes=_WRITING | {"TABLE_NOT_FOUND", "TABLE_DECLARED"},
    examples={JSON: examples.CHANGES},
)
DROP_TABLE: Final = Operation(
    tag="Tables",
    summary="Drop a table",
    about="Snapshots before keep it and its rows." + _WAIT_SAYS,
    answer=answers.DroppedTable,
    path=_TABLE,
    query=table_calls.CHANGE_PARAMETERS,
    codes=_WRITING | {"TABLE_NOT_FOUND", "TABLE_DECLARED"},
)
INGEST: Final = Operation(
    tag="Ingest",
    summary="Accept rows",
    about="JSON records of at most 8 MiB, or a bulk body of at most 64 MiB (decompressed). Bad rows are named in `rejected`, "
    "the others are accepted; when none is accepted the answer is an error. Rows with an idempotency key, and bulk bodies with "
    "the header `Idempotency-Key`, may be sent again safely.",
    answer=answers.Accepted,
    path=_TABLE,
    query=ingest.BULK_PARAMETERS,
    headers=("Idempotency-Key",),
    body=ingest.Records,
    rows=_ROWS,
    error=answers.Rejected,
    codes=_CATALOG
    | {"TABLE_NOT_FOUND", "SCHEMA_INCOMPATIBLE", "IDEMPOTENCY_CONFLICT", "RATE_LIMITED"}
    | {"TOKEN_SCOPE_MISMATCH"},
    examples=examples.ROWS,
)
VISIBLE: Final = Operation(
    tag="Visibility",
    summary="Wait for a token",
    about="Answers as soon as every row up to the token can be queried, or with CONSISTENCY_TIMEOUT, whose context has "
    "`watermark`, `behind`, `waited_ms`, `lag_ms` and `estimated_wait_ms`.",
    answer=answers.Visible,
    query=events.VISIBLE_PARAMETERS,
    codes=_WAITING | {"VISIBILITY_TOKEN_INVALID"},
)
EVENTS: Final = Operation(
    tag="Visibility",
    summary="Follow what becomes visible",
    about="Server-sent events without end, for an EventSource: `visible` whenever more rows can be queried, `snapshot` before "
    "it when a new snapshot brought it. The data of both is an `Event`. A comment fills 15 seconds of silence. A process "
    "has at most 1,000 streams (OVERLOADED).",
    streamed={
        "text/event-stream": "Events with `event`, `data` (JSON, see `Event`) and, on the last of a state, `id`."
    },
    headers=("Last-Event-ID",),
    codes=_CATALOG | {"OVERLOADED"},
)
QUERY: Final = Operation(
    tag="Query",
    summary="Run one SELECT",
    about="Reads one snapshot, whole and unchanged to its end: the newest, one that shows a token, or a past one. `Accept` "
    "says how it is answered: as one JSON object, or streamed. A streamed answer that fails after its first byte breaks the "
    "connection, so a part never looks like the whole. A client that goes away ends its statement.",
    answer=answers.Result,
    streamed=_RESULTS,
    told=tuple(
        f"X-Duckmesh-{each}"
        for each in ("Snapshot-Id", "Snapshot-Time", "Watermark", "Lag-Ms", "Row-Limit")
    ),
    body=query.Statement,
    codes=_WAITING
    | _OLD
    | {"VISIBILITY_TOKEN_INVALID", "STALENESS_EXCEEDED", "SQL_NOT_ALLOWED", "SQL_ERROR"}
    | {"QUERY_TIMEOUT", "QUERY_MEMORY", "QUERY_CRASHED", "QUERY_UNAVAILABLE", "RESULT_TOO_LARGE"}
    | {"DATA_FILE_MISSING", "STORAGE_UNAVAILABLE"},
    examples={JSON: examples.STATEMENTS},
)
LIST_SNAPSHOTS: Final = Operation(
    tag="Snapshots",
    summary="List the snapshots",
    about="The newest first. All of ten minutes are kept, then one a minute for a day, then one an hour as the Tenant says.",
    answer=answers.Snapshots,
    query=snapshots.LIST_PARAMETERS,
    codes=_CATALOG | {"OVERLOADED"},
)
READ_SNAPSHOT: Final = Operation(
    tag="Snapshots",
    summary="Read a snapshot",
    about="With its tables and their sizes.",
    answer=answers.SizedSnapshot,
    path=_SNAPSHOT,
    codes=_OLD | {"OVERLOADED"},
)
LIST_FILES: Final = Operation(
    tag="Snapshots",
    summary="List a snapshot's files",
    about="For engines that read Parquet themselves. The rows are those of all files, read by the page's rules. "
    "When a page is refused because files were merged meanwhile (`after`), begin without `after`.",
    answer=answers.Files,
    path=_SNAPSHOT,
    query=snapshots.FILES_PARAMETERS,
    codes=_OLD | {"TABLE_NOT_FOUND", "OVERLOADED"},
)
PIN_SNAPSHOT: Final = Operation(
    tag="Snapshots",
    summary="Keep a snapshot",
    about="Until it is unpinned, or until `expires_at`, which a repeat sets anew. A lake has at most 1,000 pins.",
    answer=answers.Snapshot,
    body=snapshots.Pinned,
    codes=_OLD,
    examples={JSON: examples.PINS},
)
UNPIN_SNAPSHOT: Final = Operation(
    tag="Snapshots",
    summary="Take a pin off",
    about="The snapshot goes when expiry comes to it. A pin that is not there is no error.",
    answer=answers.UnpinnedSnapshot,
    body=snapshots.Unpin,
    codes=_OLD,
    examples={JSON: examples.UNPINS},
)
RESTORE: Final = Operation(
    tag="Snapshots",
    summary="Restore the lake to a snapshot",
    about="Undoes what was accepted since the snapshot, in all tables; snapshots in between are kept."
    + _WAIT_SAYS,
    answer=answers.Restored,
    query=restore.RESTORE_PARAMETERS,
    headers=("Idempotency-Key",),
    required=("Idempotency-Key",),
    body=restore.RestoreTo,
    codes=_WAITING | _OLD | {"RATE_LIMITED", "SNAPSHOT_NOT_RESTORABLE", "IDEMPOTENCY_CONFLICT"},
    examples={JSON: examples.RESTORES},
)
LAG: Final = Operation(
    tag="Operations",
    summary="How far the lake is behind its input",
    about="In all, and by table.",
    answer=LagReport,
    codes=_CATALOG,
)
RUN_COMPACTION: Final = Operation(
    tag="Operations",
    summary="Merge and rewrite files",
    about="Of all sizes, as far as 20 seconds go: call it again while the answer is `partial`. No query and no write waits. "
    "Takes no body, or an empty object.",
    answer=answers.CompactionRun,
    codes=_CATALOG | {"STORAGE_UNAVAILABLE"},
)
RUN_RETENTION: Final = Operation(
    tag="Operations",
    summary="Give up old snapshots",
    about="As the Tenant's `snapshots` says, and removes files that no snapshot has had for longer than any query takes; as "
    "far as 20 seconds go: call it again while the answer is `partial`. Pinned snapshots stay. "
    "Takes no body, or an empty object.",
    answer=answers.RetentionRun,
    codes=_CATALOG | {"STORAGE_UNAVAILABLE"},
)
RUN_INTEGRITY: Final = Operation(
    tag="Operations",
    summary="Check the lake's files and rows",
    about="Whether every file that a kept snapshot needs is in the store with its recorded size, and whether tables have as "
    "many rows as were committed to them; `deep` also reads the end of each file. Waits for the result, up to 100 seconds. "
    "OVERLOADED while a check is under way.",
    answer=answers.IntegrityChecked,
    body=integrity.IntegrityRun,
    codes=_CATALOG | {"STORAGE_UNAVAILABLE", "OVERLOADED"},
    examples={JSON: examples.INTEGRITY},
)
LIST_LETTERS: Final = Operation(
    tag="Dead letters",
    summary="List dead letters",
    about="In the order of their numbers, with their first three rows. Letters show values of rows.",
    answer=answers.Letters,
    query=dead_letters.LIST_PARAMETERS,
    codes=_CATALOG,
)
READ_LETTER: Final = Operation(
    tag="Dead letters",
    summary="Read a dead letter",
    about="With up to 1,000 of its rows, up to 1 MiB.",
    answer=answers.Letter,
    path=_NUMBER,
    codes=_CATALOG | {"DEAD_LETTER_NOT_FOUND"},
)
_REPLAYING: Final = _CATALOG | {"RATE_LIMITED", "OVERLOADED", "TOKEN_SCOPE_MISMATCH"}
REPLAY_LETTER: Final = Operation(
    tag="Dead letters",
    summary="Send a dead letter in again",
    about="Checked against the table as it is now and accepted under a new token. What does not fit stays a letter.",
    answer=answers.Replayed,
    path=_NUMBER,
    query=dead_letters.WAIT_PARAMETERS,
    codes=_REPLAYING
    | {"DEAD_LETTER_NOT_FOUND", "SCHEMA_INCOMPATIBLE", "DATA_FILE_MISSING", "STORAGE_UNAVAILABLE"},
)
DROP_LETTER: Final = Operation(
    tag="Dead letters",
    summary="Drop a dead letter",
    about="For good.",
    answer=answers.Dropped,
    path=_NUMBER,
    codes=_CATALOG | {"DEAD_LETTER_NOT_FOUND"},
)
REPLAY_LETTERS: Final = Operation(
    tag="Dead letters",
    summary="Send a table's dead letters in again",
    about="In order; go on with `after={next_after}&upto={upto}` until `next_after` is null. What stays is in `failed`.",
    answer=answers.ReplayedMany,
    query=dead_letters.REPLAY_PARAMETERS,
    codes=_REPLAYING,
)
DROP_LETTERS: Final = Operation(
    tag="Dead letters",
    summary="Drop a table's dead letters",
    about="For good; go on with `after={next_after}` until that is null.",
    answer=answers.DroppedMany,
    query=dead_letters.DROP_PARAMETERS,
    codes=_CATALOG,
)
HEALTH: Final = Operation(
    tag="Operations",
    summary="Whether the process runs",
    about="For a liveness probe; also on port 9090.",
    answer=answers.Live,
    open=True,
)
READY: Final = Operation(
    tag="Operations",
    summary="Whether the process should get requests",
    about="For a readiness probe; also on port 9090. Started, its lake migrated, and not ending.",
    answer=answers.Ready,
    others={503: answers.Ready},
    open=True,
)
DESCRIBE: Final = Operation(
    tag="Operations",
    summary="This description",
    about="OpenAPI 3.1, of what this very process serves.",
    answer=dict[str, object],
    open=True,
)
