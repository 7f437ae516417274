"""The fence: what Postgres refuses whoever asks, so that a lake cannot be changed past its watermark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import asyncpg
import duckdb
import pytest

from duckmesh_runtime.adapters import duckdb_engine
from duckmesh_runtime.adapters.ducklake import open_writer
from duckmesh_runtime.domain import lakesql
from duckmesh_runtime.errors import Corrupt
from duckmesh_runtime.ports import TableRows
from duckmesh_runtime.settings import read_secret
from tests.lakes import EVENTS, LakeView, elected_writer, force_inlining, rows_of, writer_pool
from tests.services import Lake

INSERT = "INSERT INTO lake.events (id) VALUES (99)"
MERGE = "CALL ducklake_merge_adjacent_files('lake', 'events')"
REWRITE = "CALL ducklake_rewrite_data_files('lake', 'events', delete_threshold => 0.0)"
EXPIRE = "CALL ducklake_expire_snapshots('lake', older_than => now())"
CLEANUP = "CALL ducklake_cleanup_old_files('lake', cleanup_all => true)"
STEP = {"role": "w", "prev": 5, "tok": 6}


@dataclass(frozen=True)
class Attempt:
    """One forbidden change.

    Attributes:
        statement: What is tried.
        info: Of the commit; None for none.
        login: Folder of the login: writer, maintenance or admin (superuser).
        role: Start-up option; None for none.
        epoch: Start-up option; the current one is 1.
    """

    statement: str
    info: dict[str, object] | None = field(default_factory=lambda: STEP)
    login: str = "writer"
    role: str | None = "w"
    epoch: int | None = 1


MAINTENANCE = {"login": "maintenance", "role": "m"}
CHORE: dict[str, object] = {"role": "m"}

FORBIDDEN = {
    "no role": Attempt(INSERT, role=None, epoch=None),
    "no role, superuser": Attempt(INSERT, login="admin", role=None, epoch=None),
    "stale epoch": Attempt(INSERT, epoch=0),
    "epoch from the future": Attempt(INSERT, epoch=9),
    "stale epoch changes tables": Attempt("CREATE TABLE lake.z (i INT)", epoch=0),
    "no commit info": Attempt(INSERT, None),
    "writer claims maintenance": Attempt(INSERT, CHORE),
    "writer login as maintenance": Attempt(MERGE, CHORE, role="m"),
    "writer merges": Attempt(MERGE),
    "writer rewrites": Attempt(REWRITE),
    "writer expires": Attempt(EXPIRE, None),
    "stranger expires": Attempt(EXPIRE, None, role=None, epoch=None),
    "maintenance claims writer": Attempt(INSERT, **MAINTENANCE),
    "maintenance inserts": Attempt(INSERT, CHORE, **MAINTENANCE),
    "maintenance deletes": Attempt("DELETE FROM lake.events WHERE id = 13", CHORE, **MAINTENANCE),
    "maintenance alters": Attempt("ALTER TABLE lake.events ADD COLUMN q INT", CHORE, **MAINTENANCE),
    "maintenance creates": Attempt("CREATE TABLE lake.z (i INT)", CHORE, **MAINTENANCE),
    "maintenance without commit info": Attempt(MERGE, None, **MAINTENANCE),
    "stale maintenance merges": Attempt(MERGE, CHORE, "maintenance", "m", 0),
    "stale maintenance expires": Attempt(EXPIRE, None, "maintenance", "m", 0),
    "stale maintenance cleans up": Attempt(CLEANUP, None, "maintenance", "m", 0),
    "watermark elsewhere": Attempt(INSERT, {**STEP, "prev": 4}),
    "watermark goes back": Attempt(INSERT, {**STEP, "tok": 4}),
    "no target": Attempt(INSERT, {"role": "w", "prev": 5}),
    "start is a text": Attempt(INSERT, {**STEP, "prev": "5"}),
    "base is wrong": Attempt(INSERT, {**STEP, "base": 1}),
    "writer allows inlining": Attempt("CALL lake.set_option('data_inlining_row_limit', 10)", None),
    "writer allows it for a table": Attempt(
        "CALL lake.set_option('data_inlining_row_limit', 10, table_name => 'events')", None
    ),
    "stranger sets an option": Attempt(
        "CALL lake.set_option('target_file_size', '1MB')", None, role=None, epoch=None
    ),
    "stale writer sets an option": Attempt(
        "CALL lake.set_option('target_file_size', '1MB')", None, epoch=0
    ),
}

FORBIDDEN_SQL = [
    "UPDATE duckmesh.lake_status SET token = 999",
    "UPDATE duckmesh.lease SET epoch = 99",
    "INSERT INTO duckmesh.heartbeat VALUES ('x', 'w', 1)",
    "SELECT duckmesh.take_over('{lake}', 'm')",
    "SELECT duckmesh.take_over('{other}', 'w')",
    "SELECT duckmesh.install_lake('{lake}')",
    "SELECT duckmesh.register_lake('{lake}', 'a', 'b', 'c', 1)",
    "SELECT * FROM duckmesh.lake",
    "SELECT * FROM duckmesh.sweep()",
    "SELECT duckmesh.check_lease('{lake}', 'w', 1)",
    "SELECT duckmesh.advance('{lake}', 0, 5, 6)",
    "SELECT duckmesh.advance('{other}', 1, 0, 1)",
    "SELECT duckmesh.set_aside('{other}', 1, 0, 1, NULL, 'x')",
    "SELECT duckmesh.set_aside_change('{other}', 1, 0, 1, 'x')",
    "SELECT duckmesh.expire_keys('{other}', 0, 0, 0)",
    "SELECT duckmesh.report_tables('{other}', '', true, '')",
    "SELECT duckmesh.open_generation('{lake}_bus', false, 9)",
    "SELECT duckmesh.upgrade_bus('{lake}_bus')",
    "SELECT duckmesh.install_append('{other}_bus')",
    "SELECT * FROM duckmesh.declared_tables",
    "SELECT duckmesh.report_store('{other}', 'ok')",
    "SELECT duckmesh.install_reports('{lake}', '{lake}_w')",
    "SELECT * FROM duckmesh.store_report",
    "SELECT duckmesh.may_report('{lake}')",
    "SELECT duckmesh.report_debt('{lake}', 0, 0, 0, 0)",
    "SELECT duckmesh.report_debt('{other}', 0, 0, 0, 0)",
    "SELECT duckmesh.report_merged('{lake}')",
    "SELECT duckmesh.report_run('{lake}', '{{}}')",
    "SELECT duckmesh.report_integrity('{lake}', '{{}}')",
    "SELECT duckmesh.report_orphans('{lake}', '{{}}')",
    "SELECT duckmesh.install_maintenance('{lake}', '{lake}_w', '{lake}_m', '{lake}_r')",
    "UPDATE duckmesh.maintenance_report SET run = NULL",
    "SELECT * FROM duckmesh.compare_ledger('{lake}')",
    "SELECT * FROM duckmesh.catalog_rows('{lake}')",
    "SELECT duckmesh.install_ledger('{lake}', '{lake}_m')",
    "DELETE FROM duckmesh.ledger",
    "SELECT {other}_bus.known_keys('{{}}', '{{}}')",
    "ALTER TABLE {lake}.ducklake_snapshot DISABLE TRIGGER ALL",
    "DROP TRIGGER dm_10_fence ON {lake}.ducklake_snapshot",
    "SET session_replication_role = replica",
    "TRUNCATE {lake}.ducklake_snapshot",
    "CREATE TABLE {lake}.x (i int)",
    "CREATE TABLE duckmesh.x (i int)",
    "CREATE TABLE public.x (i int)",
    "CREATE TEMP TABLE x (i int)",
    "CREATE SCHEMA mine",
    "UPDATE {lake}.ducklake_snapshot SET snapshot_id = snapshot_id + 1",
    "DELETE FROM {lake}.ducklake_metadata WHERE key = 'data_inlining_row_limit'",
    "INSERT INTO {lake}.ducklake_snapshot VALUES (999, now(), 1, 1, 1)",
    "SELECT * FROM {other}.ducklake_snapshot",
    "SELECT * FROM {other}_bus.head",
    "INSERT INTO {other}_bus.pin (snapshot_id, name) VALUES (0, '')",
    "SELECT duckmesh.install_pins('{lake}', '{lake}_w', '{lake}_m')",
    "TRUNCATE {lake}_bus.pin",
    "SET ROLE duckmesh_admin",
]


@pytest.fixture
async def fenced(lake: Lake) -> Lake:
    """Lease epoch 1 of both roles, watermark 5; files to merge, to rewrite (deleted rows) and to clean up."""
    await LakeView(lake).fetch("SELECT duckmesh.take_over($1, 'm')", lake.name)
    async with elected_writer(lake) as writer:
        await writer.create_table(0, 1, EVENTS)
        for number in (1, 2):
            ids = range(number * 10, number * 10 + 10)
            await writer.commit(number, number + 1, [TableRows(table="events", rows=rows_of(ids))])
    with _attached(lake, Attempt("", **MAINTENANCE)) as connection:
        _change(connection, Attempt(MERGE, CHORE))
        connection.execute(EXPIRE)
    with _attached(lake, Attempt("")) as connection:
        for statement, prev, tok in (
            ("INSERT INTO lake.events (id) FROM range(30, 40)", 3, 4),
            ("INSERT INTO lake.events (id) FROM range(40, 50)", 4, 4),
            ("DELETE FROM lake.events WHERE id = 12", 4, 5),
        ):
            _change(connection, Attempt(statement, {**STEP, "prev": prev, "tok": tok}))
    return lake


@contextmanager
def _attached(lake: Lake, attempt: Attempt) -> Iterator[duckdb.DuckDBPyConnection]:
    folders = {
        "writer": lake.writer_dir,
        "maintenance": lake.maintenance_dir,
        "admin": lake.admin_dir,
    }
    options = {"duckmesh.role": attempt.role, "duckmesh.epoch": attempt.epoch}
    said = {name: str(value) for name, value in options.items() if value is not None}
    conninfo = lakesql.conninfo(
        read_secret(folders[attempt.login], "dsn"), options=lakesql.options_text(said)
    )
    connection = duckdb_engine.connect(threads=1)
    try:
        path = duckdb_engine.data_path(lake.store)
        connection.execute(lakesql.attach_lake(conninfo, schema=lake.name, data_path=path))
        yield connection
    finally:
        connection.close()


def _change(connection: duckdb.DuckDBPyConnection, attempt: Attempt) -> None:
    connection.execute("BEGIN")
    try:
        if attempt.info is not None:
            info = lakesql.quote_text(json.dumps(attempt.info))
            connection.execute(
                f"CALL lake.set_commit_message('test', 'test', extra_info => {info})"
            )
        connection.execute(attempt.statement)
        connection.execute("COMMIT")
    except duckdb.Error:
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise


async def _state(lake: Lake) -> Sequence[object]:
    rows = await LakeView(lake).fetch(
        f"SELECT (SELECT array_agg(s ORDER BY s.snapshot_id) FROM {lake.name}.ducklake_snapshot AS s)::text, "
        f"(SELECT array_agg(f ORDER BY f.data_file_id) FROM {lake.name}.ducklake_data_file AS f)::text, "
        f"(SELECT array_agg(m ORDER BY m.key) FROM {lake.name}.ducklake_metadata AS m)::text, "
        f"(SELECT count(*) FROM {lake.name}.ducklake_files_scheduled_for_deletion), "
        "(SELECT array_agg(s ORDER BY s.lake) FROM duckmesh.lake_status AS s)::text, "
        "(SELECT array_agg(l ORDER BY l.lake, l.role) FROM duckmesh.lease AS l)::text"
    )
    return list(rows[0])


async def test_forbidden_changes_are_refused_and_change_nothing(fenced: Lake) -> None:
    before = await _state(fenced)
    wrong = []

    with ExitStack() as stack:
        connections: dict[object, duckdb.DuckDBPyConnection] = {}
        for name, attempt in FORBIDDEN.items():
            who = (attempt.login, attempt.role, attempt.epoch)
            if who not in connections:
                connections[who] = stack.enter_context(_attached(fenced, attempt))
            refusal = _refusal(connections[who], attempt)
            # A set option is changed by way of a temporary table, to which these logins have no right.
            if "DUCKMESH_" not in refusal and "permission denied" not in refusal:
                wrong.append((name, refusal))
            if await _state(fenced) != before:
                wrong.append((name, "changed the lake"))

    assert wrong == []


def _refusal(connection: duckdb.DuckDBPyConnection, attempt: Attempt) -> str:
    try:
        _change(connection, attempt)
    except duckdb.Error as error:
        return str(error)
    return "accepted"


async def test_a_writer_s_own_sql_reaches_nothing_else(
    fenced: Lake, make_lake: Callable[..., object]
) -> None:
    other = await make_lake(dsn=fenced.catalog_dsn)  # type: ignore[misc]  # a coroutine
    before = await _state(other)
    wrong = []

    async with writer_pool(fenced) as pool:
        for text in FORBIDDEN_SQL:
            statement = text.format(lake=fenced.name, other=other.name)
            try:
                await pool.execute(statement)
                wrong.append((statement, "accepted"))
            except asyncpg.PostgresError as error:
                if error.sqlstate not in ("42501", "DM001", "DM002", "DM003"):
                    wrong.append((statement, str(error)))

    assert wrong == []
    assert await _state(other) == before


@pytest.mark.parametrize(
    "call",
    [
        "take_over('{lake}', 'w')",
        "advance('{lake}', 99, 0, 0)",
        "set_aside('{lake}', 99, 0, 0, NULL, '')",
        "set_aside_change('{lake}', 99, 0, 0, '')",
        "beat('{lake}', 'w', 1, 'me', '', interval '1 minute')",
        "expire_keys('{lake}', 0, 0, 0)",
        "report_tables('{lake}', '', true, '')",
        "report_store('{lake}', 'ok')",
        "require_protocol('{lake}', 9)",
    ],
    ids=[
        "take_over",
        "advance",
        "set_aside",
        "set_aside_change",
        "beat",
        "expire_keys",
        "report_tables",
        "report_store",
        "require_protocol",
    ],
)
async def test_another_s_lake_answers_as_one_that_is_not_there(
    fenced: Lake, make_lake: Callable[..., object], call: str
) -> None:
    stranger: Lake = await make_lake(dsn=fenced.catalog_dsn)  # type: ignore[misc]  # a coroutine
    said = []

    async with writer_pool(stranger) as pool:
        for lake in (fenced.name, "lake_0000000000000000"):
            try:
                answer = str(await pool.fetchval(f"SELECT duckmesh.{call.format(lake=lake)}"))
            except asyncpg.PostgresError as error:
                answer = f"{error.sqlstate} {error}"
            said.append(answer.replace(lake, "it"))

    assert said[0] == said[1]


async def test_what_each_role_may_do_is_done(fenced: Lake) -> None:
    with _attached(fenced, Attempt("", **MAINTENANCE)) as connection:
        _change(connection, Attempt(MERGE, CHORE))
        _change(connection, Attempt(REWRITE, CHORE))
        connection.execute(EXPIRE)
        connection.execute(CLEANUP)
    with _attached(fenced, Attempt("")) as connection:
        _change(connection, Attempt(INSERT))
        connection.execute("CALL lake.set_option('target_file_size', '1MB')")

    assert await LakeView(fenced).token() == 6
    assert 99 in LakeView(fenced).ids()
    assert 12 not in LakeView(fenced).ids()


@pytest.mark.parametrize(
    "statement", [INSERT, "DELETE FROM lake.events WHERE id = 13"], ids=["insert", "delete"]
)
async def test_an_inlined_change_is_refused_by_the_trigger(fenced: Lake, statement: str) -> None:
    """The one way DuckLake is known to lose rows; forced here behind the fence's back."""
    await force_inlining(fenced)
    before = await _state(fenced)

    with _attached(fenced, Attempt("")) as connection, pytest.raises(duckdb.Error, match="inlined"):
        _change(connection, Attempt(statement))

    assert await _state(fenced) == before


async def test_a_lake_that_may_inline_gets_no_writer(fenced: Lake) -> None:
    await force_inlining(fenced)

    with pytest.raises(Corrupt, match="data_inlining_row_limit"):
        await _open(fenced)


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER dm_23_commit ON {lake}.ducklake_snapshot_changes",
        "ALTER TABLE {lake}.ducklake_snapshot DISABLE TRIGGER dm_10_fence",
        "ALTER TABLE {lake}.ducklake_metadata ENABLE REPLICA TRIGGER dm_41_option",
        "DROP TRIGGER dm_14_clock ON {lake}.ducklake_snapshot",
    ],
    ids=["dropped", "disabled", "replica only", "clock of snapshots"],
)
async def test_a_lake_without_its_triggers_gets_no_writer_until_migrated(
    fenced: Lake, damage: str
) -> None:
    trigger = damage.split("dm_")[1].split(" ")[0]
    await LakeView(fenced).fetch(damage.format(lake=fenced.name))

    with pytest.raises(Corrupt, match=trigger):
        await _open(fenced)


async def _open(lake: Lake) -> None:
    async with writer_pool(lake) as pool:
        writer = await open_writer(
            lake=lake.name, epoch=1, store=lake.store, secret_dir=lake.writer_dir, pool=pool
        )
        await writer.close()


async def test_a_login_sees_its_own_lake_s_rows_only(
    fenced: Lake, make_lake: Callable[..., object]
) -> None:
    await make_lake(dsn=fenced.catalog_dsn)  # type: ignore[misc]  # a coroutine

    for folder in (fenced.writer_dir, fenced.maintenance_dir, fenced.reader_dir):
        connection = await asyncpg.connect(read_secret(folder, "dsn"))
        try:
            for table in ("lake_status", "lease"):
                rows = await connection.fetch(f"SELECT DISTINCT lake FROM duckmesh.{table}")
                assert [row["lake"] for row in rows] == [fenced.name]
        finally:
            await connection.close()


async def test_a_login_without_a_lake_cannot_connect(lake: Lake) -> None:
    view = LakeView(lake)
    await view.fetch(f"CREATE ROLE {lake.name}_stranger LOGIN PASSWORD 'x'")
    where = lake.catalog_dsn.rpartition("@")[2]

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(f"postgresql://{lake.name}_stranger:x@{where}")
