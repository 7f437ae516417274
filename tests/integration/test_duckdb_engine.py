"""Blocking DuckDB calls beside asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import duckdb
import pytest

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.duckdb_engine import Engine

ENDLESS = "SELECT count(*) FROM range(1_000_000_000_000) AS a(i), range(1_000_000) AS b(j) WHERE i + j < 0"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    subject = Engine(duckdb_engine.connect(threads=1), name="test")
    yield subject
    await subject.close()


async def _ask(engine: Engine, statement: str, timeout_s: float = 20) -> object:
    def work(connection: duckdb.DuckDBPyConnection) -> object:
        return connection.execute(statement).fetchall()[0][0]

    return await engine.run(work, timeout_s=timeout_s)


async def test_calls_run_in_one_thread_in_order(engine: Engine) -> None:
    seen: list[tuple[int, str]] = []

    def note(number: int) -> None:
        seen.append((number, threading.current_thread().name))

    await asyncio.gather(*(engine.run(lambda _, n=n: note(n), timeout_s=20) for n in range(5)))

    assert [number for number, _ in seen] == list(range(5))
    assert len({thread for _, thread in seen}) == 1


async def test_a_statement_past_its_time_is_interrupted_and_the_next_one_runs(
    engine: Engine,
) -> None:
    with pytest.raises(TimeoutError):
        await _ask(engine, ENDLESS, timeout_s=0.05)

    assert await _ask(engine, "SELECT 42") == 42


async def test_a_cancelled_call_is_interrupted_and_the_next_one_runs(engine: Engine) -> None:
    begun = threading.Event()

    def tell(number: int) -> int:
        begun.set()
        return number

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.create_function("tell", tell, ["BIGINT"], "BIGINT", side_effects=True)  # type: ignore[list-item,arg-type]
        connection.execute("SELECT sum(tell(i)) FROM range(1_000_000_000_000) AS r(i)").fetchall()

    running = asyncio.create_task(engine.run(work, timeout_s=60))
    await asyncio.to_thread(
        begun.wait
    )  # the statement itself says so: DuckDB forgets an earlier interrupt
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await _ask(engine, "SELECT 42") == 42


async def test_a_call_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb_engine, "_AFTER_INTERRUPT_S", 0.01)
    peer = threading.Event()
    subject = Engine(duckdb_engine.connect(threads=1), name="test")
    try:
        with pytest.raises(TimeoutError):
            await subject.run(lambda _: peer.wait(30), timeout_s=0.01)
        with pytest.raises(TimeoutError):
            await _ask(subject, "SELECT 1")
    finally:
        peer.set()
    await subject.close()


async def test_a_close_that_is_slow_to_return_is_a_timeout_like_any_other() -> None:
    closed, returns = threading.Event(), threading.Event()
    subject = Engine(duckdb_engine.connect(threads=1), name="test")

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.close()
        closed.set()
        returns.wait(30)

    running = asyncio.create_task(subject.run(work, timeout_s=1))
    await asyncio.to_thread(closed.wait)
    asyncio.get_running_loop().call_later(1.5, returns.set)
    with pytest.raises(TimeoutError):
        await running
    await subject.close()


async def test_errors_come_through_unchanged(engine: Engine) -> None:
    with pytest.raises(duckdb.CatalogException):
        await _ask(engine, "SELECT * FROM nowhere")


async def test_nothing_is_installed_or_loaded_by_itself(engine: Engine) -> None:
    names = ", ".join(f"'{name}'" for name in duckdb_engine.TRUSTED)
    loaded = (
        f"SELECT count(*) FROM duckdb_extensions() WHERE loaded AND extension_name IN ({names})"
    )

    assert await _ask(engine, loaded) == 3
    for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
        assert await _ask(engine, f"SELECT current_setting('{setting}')") is False


async def test_closing_twice_is_safe(engine: Engine) -> None:
    await engine.close()
    await engine.close()
