"""The tables that the Tenant declares: every ingest process knows their names, the committer's brings them about.

The declaration is a file that the operator fills and Kubernetes replaces under the running process. Tables are created
and changed through the same service as by HTTP, never dropped, and what came of it is reported to the catalog.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from duckmesh_runtime.domain.declared import Declaration, parse_declaration
from duckmesh_runtime.domain.schema import TableDef
from duckmesh_runtime.errors import Conflict, DuckmeshError, Invalid
from duckmesh_runtime.ports import TablesReporter
from duckmesh_runtime.services.barrier import Barrier
from duckmesh_runtime.services.tables import Changed, TableService
from duckmesh_runtime.tasks import end

logger = logging.getLogger(__name__)

POLL_S: Final = 2.0
_WAIT_MS: Final = 30_000
_RECHECK: Final = 30
"""After so many looks the tables are compared again, though nothing changed here: another process may have."""


class DeclaredTables:
    """Follows one file.

    Args:
        file: The declaration; while it is missing nothing is declared.
        tables: Changes tables.
        barrier: Waits until changes are in the lake.
        reporter: Tells the catalog.
        active: Whether this process is the committer, of which there is one: two must not bring about two declarations.
        poll_s: Seconds between two looks.
    """

    def __init__(
        self,
        file: Path,
        tables: TableService,
        barrier: Barrier,
        reporter: TablesReporter,
        *,
        active: Callable[[], bool],
        poll_s: float = POLL_S,
    ) -> None:
        self._file = file
        self._tables = tables
        self._barrier = barrier
        self._reporter = reporter
        self._active = active
        self._poll_s = poll_s
        self._stamp: tuple[int, int, int] | None = None
        self._declaration = Declaration()
        self._waiting: dict[str, Changed] = {}
        self._refused: dict[str, str] = {}
        self._reported: tuple[str, str] | None = None
        self._looks = 0

    @property
    def names(self) -> frozenset[str]:
        """The declared tables; they are changed in the Tenant only."""
        return self._declaration.names

    def read(self) -> None:
        """Read the file if it was replaced."""
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            declaration = parse_declaration(self._file.read_bytes())
        except FileNotFoundError:
            stamp, declaration = None, Declaration()
        self._stamp = stamp
        if declaration != self._declaration:
            self._declaration = declaration
            self._waiting, self._refused, self._reported = {}, {}, None

    def recheck(self) -> None:
        """Have the tables compared at the next look: they were taken back to what they were at some time."""
        self._looks = -1
        self._refused = {}

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the file in the background; the names are known from the start."""
        await asyncio.to_thread(self.read)
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            await end(task)

    async def look(self) -> None:
        """Read the file and, in the committer's process, bring about what it declares, once.

        Raises:
            DuckmeshError: Something does not answer; what is done so far stays.
        """
        await asyncio.to_thread(self.read)
        if not self._active():
            self._waiting, self._refused, self._reported = {}, {}, None
            return
        declaration = self._declaration
        self._looks += 1
        if not declaration.digest or (self._reported and self._looks % _RECHECK):
            return
        problems = list(declaration.problems)
        for table in declaration.tables:
            problem = await self._bring_about(table)
            problems += [f"table {table.name}: {problem}"] if problem else []
        await self._report(declaration.digest, "; ".join(problems))

    async def _bring_about(self, table: TableDef) -> str | None:
        """None when the table is as declared and visible, else why it cannot be."""
        name = table.name
        if name in self._refused:  # each further try would leave one more dead letter
            return self._refused[name]
        changed = self._waiting.get(name)
        if changed is None:
            try:
                changed = self._waiting[name] = await self._tables.declare(table)
            except (Conflict, Invalid) as error:
                return error.message
        await self._barrier.wait(changed.number, _WAIT_MS)
        del self._waiting[name]
        try:
            await self._tables.confirm(changed)
        except Conflict as error:
            if not changed.new:
                raise  # it rested on a change that is gone: look again
            self._refused[name] = error.message
            return error.message
        if changed.new:
            logger.info("declared table brought about", extra={"table": name})
        return None

    async def _report(self, digest: str, problem: str) -> None:
        if self._reported == (digest, problem):
            return
        await self._reporter.report(digest, ready=not problem, problem=problem)
        self._reported = (digest, problem)
        if problem:
            logger.warning("declared tables cannot be", extra={"problem": problem})

    async def _follow(self) -> None:
        while True:
            try:
                await self.look()
            except DuckmeshError as error:
                logger.info("declared tables wait", extra={"error_code": error.code})
            except Exception:  # the loop's edge: it must go on
                logger.exception("declared tables failed")
            await asyncio.sleep(self._poll_s)
