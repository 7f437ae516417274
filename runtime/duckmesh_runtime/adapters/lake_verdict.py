"""What became of a lake transaction that raised. Called by `ducklake.py`, which has asked Postgres what landed before.

Error texts decide only what the truth cannot tell: they may hold pieces of rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

import duckdb

from duckmesh_runtime.adapters.lake_writes import Differs
from duckmesh_runtime.ports import CommitOutcome, CommitResult

logger = logging.getLogger(__name__)

Step = Literal["begin", "write", "commit"]

# What DuckDB raises while it checks and casts rows: their fault. All else may pass: store, catalog, engine in trouble.
# Out of memory is not among them: fewer rows may fit, and one row alone is tried until the engine has room.
_SHAPE: Final = (Differs, duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException)
_CONTENT: Final = (
    *_SHAPE,
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.InvalidTypeException,
    duckdb.NotImplementedException,
    duckdb.OutOfRangeException,
    duckdb.TypeMismatchException,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A transaction that raised: the error, and how far it had come."""

    error: duckdb.Error | TimeoutError | Differs
    step: Step


def judge(failure: Failure, *, root: str, doubt: bool = False) -> CommitResult:
    """What to do about a transaction of which nothing landed, while the catalog answers and the lease is ours.

    Args:
        failure: What it raised.
        root: The lake's data path, which no message shows.
        doubt: Rows are read from the lake too, so what the engine refuses may be the fault of a connection that was lost:
            it is to be tried again.

    Raises:
        RuntimeError: The fence refused what we must never ask for.
    """
    error = failure.error
    if failure.step == "commit" and _verdict(error).startswith("DUCKMESH_POLICY"):
        raise RuntimeError("the fence refused a commit that is never allowed") from error
    # Before the rows are touched the newest snapshot is asked for, and a refusal of that (a lock, a lost connection) comes
    # as a BinderException too: only what is raised while writing can be the rows' fault.
    if failure.step == "write" and isinstance(error, _CONTENT):
        text = _first_line(str(error)).replace(root, "")
        if doubt and not isinstance(error, Differs):
            return CommitResult(outcome=CommitOutcome.REREAD, error=text)
        return CommitResult(
            outcome=CommitOutcome.REJECTED, error=text, whole=isinstance(error, _SHAPE)
        )
    logger.warning("commit did not land", extra={"error_type": type(error).__name__})
    return CommitResult(
        outcome=CommitOutcome.REREAD,
        error=f"store or catalog did not take it ({type(error).__name__})",
        scarce=isinstance(error, TimeoutError | duckdb.OutOfMemoryException)
        or is_conflict(failure),
    )


def is_conflict(failure: Failure) -> bool:
    """Whether maintenance has rewritten files meanwhile in which rows were deleted: the same again may pass.

    A row may hold these words too. Then it is tried once too often, which the fence makes harmless.
    """
    return failure.step == "commit" and "Transaction conflict" in str(failure.error)


def _verdict(error: BaseException) -> str:
    """Postgres's own words: they come last, after the statement with pieces of rows in it."""
    return str(error).rpartition("ERROR:")[2].lstrip()


def _first_line(text: str) -> str:
    """The engine's own summary: what follows may name files and connections."""
    return text.partition("\n")[0][:500]
