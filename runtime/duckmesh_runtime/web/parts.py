"""What the handlers work with: the services of this process, its keys, its health. Filled by `wiring`, read by `web`.

The server listens before the catalog answers, so that a caller gets a catalogued 503 and not a refused connection;
until then the services are None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from aiohttp import web

from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import IngestBus
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.commit import Committer
from duckmesh_runtime.services.compaction import Compaction
from duckmesh_runtime.services.dead_letters import DeadLetterService
from duckmesh_runtime.services.declared import DeclaredTables
from duckmesh_runtime.services.expiry import Expiry
from duckmesh_runtime.services.ingest import IngestService
from duckmesh_runtime.services.integrity import IntegrityService
from duckmesh_runtime.services.query import QueryService
from duckmesh_runtime.services.restore import RestoreService
from duckmesh_runtime.services.snapshots import SnapshotService
from duckmesh_runtime.services.tables import TableService
from duckmesh_runtime.settings import Settings
from duckmesh_runtime.web.auth import KeyRing
from duckmesh_runtime.web.body import BodyBudget
from duckmesh_runtime.web.forward import QueryForward
from duckmesh_runtime.web.health import Health

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Parts:
    """One process's parts.

    Attributes:
        settings: Its settings.
        keys: Who may call.
        health: What the probes say.
        bodies: Bound on request bodies in memory.
        timeline: Of the lake's tokens; see `domain.tokens`.
        bus: Input of the lake (ingest).
        ingest: Accepts rows (ingest).
        tables: Changes and shows the tables (ingest).
        declared: The tables that the Tenant declares (ingest); None when it cannot declare any.
        dead_letters: Shows, replays and drops what the lake refused (ingest).
        snapshots: Shows the snapshots and their files, pins them (ingest).
        restore: Takes the lake back to one of them (ingest).
        compaction: Merges files (ingest); None without the maintenance login.
        expiry: Gives snapshots up (ingest); None without the maintenance login.
        integrity: Checks the lake's files (ingest); None without the maintenance login.
        committer: Of this process (ingest); it may or may not hold the lease.
        barrier: Waits for tokens.
        query: Runs statements (query, and a laptop's one process).
        forward: Passes statements on to the query Service (ingest).
    """

    settings: Settings
    keys: KeyRing
    health: Health
    bodies: BodyBudget = field(init=False)
    timeline: int = 1
    bus: IngestBus | None = None
    ingest: IngestService | None = None
    tables: TableService | None = None
    declared: DeclaredTables | None = None
    dead_letters: DeadLetterService | None = None
    snapshots: SnapshotService | None = None
    restore: RestoreService | None = None
    compaction: Compaction | None = None
    expiry: Expiry | None = None
    integrity: IntegrityService | None = None
    committer: Committer | None = None
    barrier: Barrier | None = None
    query: QueryService | None = None
    forward: QueryForward | None = None

    def __post_init__(self) -> None:
        self.bodies = BodyBudget(self.settings.ingest.body_bytes)

    def is_declared(self, table: str) -> bool:
        """Whether the Tenant declares the table, so that it is changed there only."""
        return self.declared is not None and table in self.declared.names


PARTS: Final = web.AppKey("parts", Parts)


def parts_of(request: web.Request) -> Parts:
    """The parts of the process that serves this request."""
    return request.app[PARTS]


def need(part: T | None) -> T:
    """The part, once it is there."""
    if part is None:
        raise Unavailable(
            "CATALOG_UNAVAILABLE",
            "the catalog database has not answered since this process started: repeat the request",
            retry_after_s=1,
        )
    return part
