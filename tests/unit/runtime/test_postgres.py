from __future__ import annotations

import asyncpg
import pytest

from duckmesh_runtime.adapters.postgres import catalog_errors
from duckmesh_runtime.errors import Unavailable


@pytest.mark.parametrize(
    "error",
    [
        OSError("refused"),
        TimeoutError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.InvalidPasswordError("rotated"),
        asyncpg.TooManyConnectionsError("full"),
        asyncpg.AdminShutdownError("bye"),
        asyncpg.QueryCanceledError("statement timeout"),
        asyncpg.LockNotAvailableError("lock timeout"),
        asyncpg.DeadlockDetectedError("deadlock"),
        asyncpg.ReadOnlySQLTransactionError("standby"),
        asyncpg.ObjectNotInPrerequisiteStateError("no connections now"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_that_does_not_answer_is_unavailable(error: Exception) -> None:
    with pytest.raises(Unavailable) as caught, catalog_errors():
        raise error

    assert caught.value.code == "CATALOG_UNAVAILABLE"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.UniqueViolationError("a value"),
        asyncpg.UndefinedTableError("no table"),
        asyncpg.InsufficientPrivilegeError("no right"),
        ValueError("not the database's"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_wrong_statement_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, catalog_errors():
        raise error

    assert caught.value is error


async def test_as_a_decorator_it_covers_the_awaiting() -> None:
    @catalog_errors()
    async def ask(answer: int | None) -> int:
        if answer is None:
            raise OSError("refused")
        return answer

    assert await ask(42) == 42
    with pytest.raises(Unavailable):
        await ask(None)
