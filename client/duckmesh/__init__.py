"""The Python client of duckmesh: rows go in once, and queries see them.

    from duckmesh import Client

    client = Client("http://127.0.0.1:8080", "dmk_...")
    receipt = client.ingest("events", [{"id": 1, "kind": "click"}])
    print(client.query("SELECT * FROM events", at_least=receipt).rows())

`AsyncClient` is the same with `await`. How each call behaves stands in docs/python-client.md.
"""

from duckmesh.aio import AsyncBatches, AsyncClient
from duckmesh.answers import (
    Column,
    DeadLetter,
    Lag,
    Pin,
    Receipt,
    Rejection,
    Replay,
    Restored,
    Snapshot,
    SnapshotTable,
    Table,
    TableLag,
    TableVersion,
    Visible,
)
from duckmesh.client import Batches, Client
from duckmesh.errors import (
    Conflict,
    Corrupt,
    CutWarning,
    DuckmeshError,
    Failed,
    Invalid,
    Limited,
    NotFound,
    NotVisible,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from duckmesh.result import Result, Seen

__all__ = [
    "AsyncBatches",
    "AsyncClient",
    "Batches",
    "Client",
    "Column",
    "Conflict",
    "Corrupt",
    "CutWarning",
    "DeadLetter",
    "DuckmeshError",
    "Failed",
    "Invalid",
    "Lag",
    "Limited",
    "NotFound",
    "NotVisible",
    "Pin",
    "Receipt",
    "Rejection",
    "Replay",
    "Restored",
    "Result",
    "Seen",
    "Snapshot",
    "SnapshotTable",
    "Table",
    "TableLag",
    "TableVersion",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "Visible",
]
