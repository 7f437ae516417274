"""The operator's catalog module against a real Postgres, with the runtime's own SQL in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

import duckmesh_runtime
from duckmesh_operator.catalog import Catalog, Login, maintenance, reader, scram_verifier, writer
from duckmesh_operator.errors import Forbidden, OperatorError, Unavailable
from duckmesh_operator.specs.secret import build_dsn
from duckmesh_runtime.adapters.migrate import migrate
from duckmesh_runtime.adapters.purge import purge
from duckmesh_runtime.errors import Unauthorized
from duckmesh_runtime.settings import MigrateSettings, PurgeSettings, StoreSettings

SQL = Path(duckmesh_runtime.__file__).parent / "sql" / "catalog"
UID = "01234567-89ab-4cde-8f01-23456789abcd"
LAKE = "lake_0123456789ab4cde"
TENANT = "team/acme"
URL = "s3://lakes/team/acme/"
CONTROL = "test_control"
PASSWORD = "secret"


@pytest.fixture
async def admin(catalog_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(catalog_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def catalog(
    admin: asyncpg.Connection, catalog_dsn: str, tmp_path: Path
) -> AsyncIterator[Catalog]:
    """A fresh database under the operator's own login."""
    for role, options in (
        ("duckmesh_control", "NOLOGIN"),
        (CONTROL, "LOGIN CREATEROLE PASSWORD 'control'"),
    ):
        if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await admin.execute(f"CREATE ROLE {role} {options}")
    await admin.execute(f"GRANT duckmesh_control TO {CONTROL}")
    for (role,) in await admin.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'lake_0123%'"
    ):
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    (tmp_path / "control-dsn").write_text(build_dsn(catalog_dsn, CONTROL, "control") + "\n")
    made = Catalog("default", tmp_path)
    yield made
    await made.close()


async def install(admin: asyncpg.Connection) -> None:
    """What the first migrate Job does to a database."""
    for file in sorted(SQL.glob("[0-9]*.sql")):
        async with admin.transaction():
            await admin.execute(file.read_text())


def logins(password: str = PASSWORD, **more: bool) -> list[Login]:
    return [
        Login(
            name=one.name,
            connections=one.connections,
            settings=one.settings,
            password=password,
            **more,
        )
        for one in (writer(LAKE, 3), maintenance(LAKE, 3), reader(LAKE, 2))
    ]


async def log_in(catalog: Catalog, login: str, password: str) -> str:
    connection = await asyncpg.connect(build_dsn(catalog.control_dsn, login, password))
    try:
        return str(await connection.fetchval("SHOW statement_timeout"))
    finally:
        await connection.close()


async def test_a_fresh_database_has_no_lakes_and_nothing_to_sweep(catalog: Catalog) -> None:
    assert await catalog.lakes(lake=LAKE, tenant=TENANT, data_url=URL) == []
    assert await catalog.sweep() == []


async def test_registered_lakes_are_found_by_name_owner_and_overlap(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    await install(admin)
    for lake, tenant, uid, url in (
        (LAKE, TENANT, UID, URL),
        ("lake_2", TENANT, "u2", "s3://lakes/elsewhere/"),
        ("lake_3", "x/inside", "u3", URL + "sub/"),
        ("lake_4", "x/around", "u4", "s3://lakes/team/"),
        ("lake_5", "x/beside", "u5", "s3://lakes/team/acme2/"),
    ):
        await admin.execute(
            "SELECT duckmesh.register_lake($1, $2, $3, $4, 3)", lake, tenant, uid, url
        )

    found = await catalog.lakes(lake=LAKE, tenant=TENANT, data_url=URL)

    assert {one.lake for one in found} == {LAKE, "lake_2", "lake_3", "lake_4"}
    assert {one.migration for one in found} == {3}


async def test_logins_work_with_their_password_limits_and_time_limits(catalog: Catalog) -> None:
    await catalog.ensure_logins(logins())

    assert await log_in(catalog, f"{LAKE}_w", "secret") == "1min"
    assert await log_in(catalog, f"{LAKE}_m", "secret") == "10min"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await log_in(catalog, f"{LAKE}_r", "guess")


async def test_the_same_logins_again_change_nothing(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    await catalog.ensure_logins(logins())
    state = "SELECT oid, xmin::text, * FROM pg_authid WHERE rolname LIKE 'lake_0123%' ORDER BY oid"
    before = await admin.fetch(state)

    await catalog.ensure_logins(logins("another, which is only for new roles"))

    assert await admin.fetch(state) == before


async def test_a_renewed_password_replaces_the_old_one(catalog: Catalog) -> None:
    await catalog.ensure_logins(logins())
    await catalog.ensure_logins(logins("renewed", renew=True))

    await log_in(catalog, f"{LAKE}_w", "renewed")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await log_in(catalog, f"{LAKE}_w", "secret")


async def test_retired_logins_are_out_until_they_are_ensured_again(catalog: Catalog) -> None:
    await catalog.ensure_logins(logins())
    names = [one.name for one in logins()]

    assert sorted(await catalog.retire_logins(names)) == sorted(names)
    assert await catalog.retire_logins(names) == []
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await log_in(catalog, f"{LAKE}_w", "secret")

    await catalog.ensure_logins(logins())
    await log_in(catalog, f"{LAKE}_w", "secret")


async def test_a_login_may_not_do_what_is_not_its_own(catalog: Catalog) -> None:
    await catalog.ensure_logins(logins())
    connection = await asyncpg.connect(build_dsn(catalog.control_dsn, f"{LAKE}_r", "secret"))
    try:
        for statement in ("CREATE ROLE x", "CREATE DATABASE x", "SET ROLE duckmesh_control"):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_sweep_tells_lag_from_the_tables_and_survives_one_broken_lake(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    await install(admin)
    await admin.execute("SELECT duckmesh.register_lake($1, $2, $3, $4, 3)", LAKE, TENANT, UID, URL)
    await admin.execute("SELECT duckmesh.register_lake('lake_9', 'x/broken', 'u9', 's3://b/x/', 3)")
    await admin.execute(f"""
        CREATE SCHEMA {LAKE} AUTHORIZATION duckmesh_admin;
        CREATE SCHEMA {LAKE}_bus AUTHORIZATION duckmesh_admin;
        INSERT INTO duckmesh.lake_status (lake, token, committed_at) VALUES ('{LAKE}', 4, now());
        SET ROLE duckmesh_admin;
        CREATE TABLE {LAKE}.ducklake_snapshot AS SELECT 7::bigint AS snapshot_id, now() AS snapshot_time;
        CREATE TABLE {LAKE}.ducklake_data_file AS
          SELECT 100::bigint AS file_size_bytes, NULL::bigint AS end_snapshot;
        CREATE TABLE {LAKE}_bus.head AS SELECT 9::bigint AS last;
        CREATE TABLE {LAKE}_bus.entry AS SELECT 9::bigint AS last, 5 AS row_count, 'rows' AS kind,
          clock_timestamp() - interval '3 s' AS accepted_at;
        CREATE TABLE {LAKE}_bus.dead_letter (first bigint);
        RESET ROLE;
        INSERT INTO duckmesh.maintenance_report (lake, debt_at, debt_files, most_files, run, integrity) VALUES
          ('{LAKE}', now(), 40, 30, '{{"id": "night-1", "filesIn": 9}}', '{{"state": "Damaged", "message": "1 file of t"}}')""")

    found = {one.lake: one for one in await catalog.sweep()}

    report = found[LAKE]
    assert (report.token, report.pending_rows, report.snapshot_id) == (4, 5, 7)
    assert (report.files, report.small_files, report.size_bytes) == (1, 1, 100)
    assert timedelta(seconds=3) <= timedelta(seconds=report.lag_s) < timedelta(seconds=60)
    assert not report.committer_alive
    assert not report.error
    assert (report.debt_files, report.small_of_a_table, report.debt_bytes) == (40, 30, None)
    assert (report.run, report.damage) == ({"id": "night-1", "filesIn": 9}, "1 file of t")
    assert report.orphans is None
    assert found["lake_9"].error


@pytest.fixture
async def lake(
    catalog: Catalog, admin: asyncpg.Connection, catalog_dsn: str, tmp_path: Path
) -> AsyncIterator[MigrateSettings]:
    """A whole lake whose logins the operator made, as for a Tenant."""
    await catalog.ensure_logins(logins())
    (tmp_path / "dsn").write_text(catalog_dsn)
    settings = MigrateSettings(
        tenant=TENANT,
        tenant_uid=UID,
        lake=LAKE,
        store=StoreSettings(url=f"{(tmp_path / 'data').as_uri()}/"),
        admin_dir=tmp_path,
        writer=f"{LAKE}_w",
        maintenance=f"{LAKE}_m",
        reader=f"{LAKE}_r",
    )
    await migrate(settings)
    yield settings
    # Their rights in this database would keep them from being dropped in the next test's. Only who granted can revoke.
    database = await admin.fetchval("SELECT current_database()")
    for (role,) in await admin.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'lake_0123%'"
    ):
        await admin.execute(
            f"SET ROLE duckmesh_admin; REVOKE ALL ON DATABASE {database} FROM {role}; RESET ROLE;"
            f"DROP OWNED BY {role}"
        )


def purge_of(lake: MigrateSettings) -> PurgeSettings:
    return PurgeSettings(
        tenant=lake.tenant,
        tenant_uid=lake.tenant_uid,
        lake=lake.lake,
        store=lake.store,
        admin_dir=lake.admin_dir,
    )


async def roles(admin: asyncpg.Connection) -> int:
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1)", LAKE
    )
    return count


async def test_after_a_purge_the_logins_and_the_line_of_the_lake_go(
    catalog: Catalog, admin: asyncpg.Connection, lake: MigrateSettings
) -> None:
    names = [one.name for one in logins()]
    with pytest.raises(OperatorError):
        await catalog.drop_logins(names)  # they have rights yet
    await catalog.forget_lake(LAKE, UID)
    (found,) = await catalog.records(uid=UID, lake=LAKE)
    assert (found.purging, found.purged) == (False, False)

    await purge(purge_of(lake))
    (found,) = await catalog.records(uid=UID, lake=LAKE)
    assert (found.purging, found.purged) == (True, True)
    assert [one.lake for one in await catalog.sweep()] == [LAKE]
    for _ in range(2):
        await catalog.drop_logins(names)
        await catalog.forget_lake(LAKE, UID)

    assert await catalog.records(uid=UID, lake=LAKE) == []
    assert await roles(admin) == 0


async def test_a_lake_is_handed_over_once_and_to_one_without_a_lake(
    catalog: Catalog, lake: MigrateSettings
) -> None:
    assert not await catalog.adopt_lake(LAKE, owner="someone", heir="heir")
    assert await catalog.adopt_lake(LAKE, owner=UID, heir="heir")
    assert not await catalog.adopt_lake(LAKE, owner=UID, heir="late")

    (found,) = await catalog.records(uid="heir", lake="lake_other")
    assert (found.lake, found.tenant_uid) == (LAKE, "heir")
    await migrate(replace(lake, tenant_uid="heir"))
    with pytest.raises(Unauthorized):
        await migrate(lake)
    with pytest.raises(Unauthorized):
        await purge(purge_of(lake))

    store = StoreSettings(url=lake.store.url.replace("/data/", "/other/"))
    await migrate(replace(lake, lake="lake_2", store=store))
    assert not await catalog.adopt_lake("lake_2", owner=UID, heir="heir")


async def test_a_catalog_without_registry_has_no_records(catalog: Catalog) -> None:
    assert await catalog.records(uid=UID, lake=LAKE) is None
    await catalog.forget_lake(LAKE, UID)
    await catalog.drop_logins([f"{LAKE}_w"])


async def test_only_logins_of_lakes_that_are_still_their_owners_are_retired(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    await install(admin)
    await admin.execute("SELECT duckmesh.register_lake($1, $2, $3, $4, 3)", LAKE, TENANT, UID, URL)
    await catalog.ensure_logins(logins())

    assert await catalog.retire_lakes({LAKE: "heir", "lake_none": UID}) == []
    active = "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1) AND rolcanlogin"
    assert await admin.fetchval(active, LAKE) == 3
    assert len(await catalog.retire_lakes({LAKE: UID})) == 3
    assert await admin.fetchval(active, LAKE) == 0


async def test_a_catalog_of_the_release_before_has_no_purges(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    for file in sorted(SQL.glob("000[1-6]*.sql")):
        await admin.execute(file.read_text())
    await admin.execute("SELECT duckmesh.register_lake($1, $2, $3, $4, 6)", LAKE, TENANT, UID, URL)

    (found,) = await catalog.lakes(lake=LAKE, tenant=TENANT, data_url=URL)

    assert (found.migration, found.purging, found.purged) == (6, False, False)
    with pytest.raises(Unavailable, match="make a Tenant with a new name in this catalog"):
        await catalog.adopt_lake(LAKE, owner=UID, heir="heir")


async def test_a_broken_connection_is_made_again(
    catalog: Catalog, admin: asyncpg.Connection
) -> None:
    await catalog.lakes(lake=LAKE, tenant=TENANT, data_url=URL)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'duckmesh-operator' AND usename = $1",
        CONTROL,
    )

    found: list[object] | None = None
    for _ in range(2):  # the first call may find the connection dead
        try:
            found = list(await catalog.lakes(lake=LAKE, tenant=TENANT, data_url=URL))
        except Unavailable:
            continue
    assert found == []


async def test_a_rotated_control_login_is_picked_up(
    catalog: Catalog, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    await catalog.sweep()
    await admin.execute(f"ALTER ROLE {CONTROL} PASSWORD 'rotated'")
    try:
        dsn = build_dsn(catalog.control_dsn, CONTROL, "rotated")
        (tmp_path / "control-dsn").write_text(dsn)
        assert await catalog.sweep() == []
    finally:
        await admin.execute(f"ALTER ROLE {CONTROL} PASSWORD 'control'")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(("control@", "wrong@"), Forbidden, id="password"),
        pytest.param(("/catalog_", "/nowhere_"), Unavailable, id="database"),
        pytest.param(("postgresql://", "mysql://"), Unavailable, id="scheme"),
    ],
)
async def test_an_unusable_address_is_told_by_its_kind_without_secrets(
    catalog: Catalog, tmp_path: Path, change: tuple[str, str], error: type[OperatorError]
) -> None:
    (tmp_path / "control-dsn").write_text(catalog.control_dsn.replace(*change))

    with pytest.raises(error) as caught:
        await catalog.sweep()

    for secret in ("control@", "wrong", urlsplit(catalog.control_dsn).hostname or "-"):
        assert secret not in str(caught.value)


async def test_nobody_listening_is_unavailable(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "control-dsn").write_text("postgresql://control:x@127.0.0.1:1/duckmesh")

    with pytest.raises(Unavailable):
        await catalog.sweep()
    assert catalog.ports == (1,)


async def test_a_missing_secret_is_unavailable(tmp_path: Path) -> None:
    catalog = Catalog("default", tmp_path / "absent")

    with pytest.raises(Unavailable, match="control-dsn"):
        await catalog.sweep()
    with pytest.raises(Unavailable):
        _ = catalog.ports


def test_a_verifier_has_the_form_that_postgres_stores() -> None:
    made = scram_verifier("secret", b"0123456789abcdef")

    assert made.startswith("SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$")
    assert made == scram_verifier("secret", b"0123456789abcdef")
