"""A `Stager` in memory, for tests of services; tests/contract/test_stager.py holds it to the real one."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import Unavailable
from duckmesh_runtime.ports import StagedFile


class FakeStager:
    """Files of one lake.

    Attributes:
        tables: Names of the tables that are in the lake.
        files: Path -> rows.
        down: Whether the store does not answer.
        staged: How many files were ever written.
    """

    def __init__(self, *tables: str) -> None:
        self.tables = set(tables)
        self.files: dict[str, pa.Table] = {}
        self.down = False
        self.staged = 0

    async def stage(self, table: TableDef, batches: Sequence[pa.RecordBatch]) -> StagedFile | None:
        if self.down:
            raise Unavailable("STORAGE_UNAVAILABLE", "planted")
        if table.name not in self.tables or table.partition_by:
            return None
        self.staged += 1
        path = f"main/{table.name}/staged-{self.staged}.parquet"
        rows = self.files[path] = pa.Table.from_batches(batches)
        return StagedFile(path=path, rows=rows.num_rows, size=rows.nbytes)

    async def discard(self, file: StagedFile) -> None:
        if not self.down:
            self.files.pop(file.path, None)
