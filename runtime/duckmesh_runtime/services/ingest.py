"""The accept side: check rows against their table, write them to the bus in group commits, say what became of each.

An answer is durable and never waits for the lake. When keys are known the bus writes nothing and names them; the rest
is submitted again, so a request ends with every row accepted once, known, or rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from duckmesh_runtime.domain.decode import BulkFormat
from duckmesh_runtime.domain.records import RawRecord
from duckmesh_runtime.domain.sift import Rejected
from duckmesh_runtime.errors import Invalid
from duckmesh_runtime.ports import Stager
from duckmesh_runtime.services.bulk_writer import BulkBody, BulkWriter
from duckmesh_runtime.services.inlet import Inlet
from duckmesh_runtime.services.outcome import IngestAnswer
from duckmesh_runtime.services.record_writer import RecordWriter

__all__ = ["BulkFormat", "IngestAnswer", "IngestService", "RawRecord", "Rejected"]


class IngestService:
    """Accepts rows of one lake.

    Args:
        inlet: Where they go.
        stager: Writes large bodies into the store; None sends all through the bus.
    """

    def __init__(self, inlet: Inlet, stager: Stager | None = None) -> None:
        self._inlet = inlet
        self._records = RecordWriter(inlet)
        self._bulk = BulkWriter(inlet, stager)

    async def ingest_records(
        self, table: str, records: Sequence[RawRecord], *, atomic: bool = False
    ) -> IngestAnswer:
        """Accept JSON records, each on its own, or all of them or none.

        Raises:
            NotFound: TABLE_NOT_FOUND.
            Invalid: VALIDATION_FAILED when very many are wrong.
            Limited: RATE_LIMITED or OVERLOADED.
            Unavailable: The bus does not answer; records without a key may be there or not.
        """
        async with self._inlet.request():
            return await self._records.write(table, records, atomic=atomic)

    async def ingest_bulk(
        self,
        table: str,
        body_format: BulkFormat,
        body: bytes,
        op: str | None = None,
        *,
        request_key: str | None = None,
        atomic: bool = False,
    ) -> IngestAnswer:
        """Accept the rows of a body, each on its own, or all of them or none.

        With a key, the same body read in the same way is written once: later uses are duplicates with the first number.

        Args:
            table: Table name.
            body_format: What the body is.
            body: Decompressed.
            op: What its rows do; None means what the table takes by default.
            request_key: Covers the whole body.
            atomic: One bad row refuses all.

        Raises:
            NotFound: TABLE_NOT_FOUND.
            Invalid: VALIDATION_FAILED, PAYLOAD_TOO_LARGE.
            Conflict: SCHEMA_INCOMPATIBLE, IDEMPOTENCY_CONFLICT.
            Limited: RATE_LIMITED or OVERLOADED.
            Unavailable: The bus does not answer; without a key the rows may be there or not.
        """
        limit = self._inlet.limits.body_bytes
        if len(body) > limit:
            raise Invalid(
                "PAYLOAD_TOO_LARGE",
                f"body: larger than {limit} bytes: send it in smaller parts",
                context={"limit_bytes": limit},
            )
        async with self._inlet.request():
            return await self._bulk.write(
                BulkBody(
                    table=table,
                    format=body_format,
                    content=body,
                    op=op,
                    key=request_key,
                    atomic=atomic,
                )
            )
