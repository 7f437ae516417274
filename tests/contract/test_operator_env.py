"""What the operator renders, fed into the runtime's own settings: both sides use the same words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from duckmesh_operator import names
from duckmesh_operator.manifest import Manifest
from duckmesh_operator.model import parse_compactor
from duckmesh_operator.specs import pod
from duckmesh_operator.specs.context import Context, build_bare_context, fit_compaction
from duckmesh_operator.specs.job import build_compact_job, build_migrate_job, build_purge_job
from duckmesh_operator.specs.pod import build_ingest_template, build_query_template
from duckmesh_operator.specs.secret import (
    ROLES,
    admin_key,
    build_dsn,
    build_keys,
    build_secret,
    hash_key,
)
from duckmesh_operator.specs.tables import build_tables, tables_digest
from duckmesh_runtime import roles, wiring
from duckmesh_runtime import settings as runtime
from duckmesh_runtime.domain.declared import parse_declaration
from duckmesh_runtime.domain.schema import parse_table
from duckmesh_runtime.web import auth
from tests.tenants import UID, make_context, make_settings, tenant_object

SPEC = {
    "ingest": {
        "batch": {"minInterval": "50ms", "maxDelay": "300ms", "maxRows": 11, "maxBytes": "2Mi"},
        "limits": {"requestsPerSecond": 9, "pendingBytes": "3Mi"},
    },
    "query": {
        "limits": {
            "concurrency": 3,
            "timeout": "12s",
            "memory": "96Mi",
            "resultBytes": "5Mi",
            "rows": 77,
        }
    },
    "freshness": {"target": "4s"},
    "snapshots": {"keepFor": "36h", "keepLast": 25},
    "compaction": {"enabled": False, "smallFiles": 40},
}
FIELDS = {"metadata.name": "acme-ingest-x", "status.podIP": "10.0.0.7"}
MIGRATIONS = Path(runtime.__file__).parent / "sql" / "catalog"


def container(template: Any, name: str) -> Any:
    spec = template["spec"]
    containers = [*spec["containers"], *spec.get("initContainers", [])]
    (found,) = [one for one in containers if one["name"] == name]
    return found


def env_of(found: Any) -> dict[str, str]:
    """The environment as the kubelet would set it."""
    return {
        one["name"]: one.get("value")
        or FIELDS[one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")]
        for one in found["env"]
    }


def mounted(template: Any, found: Any, env: dict[str, str], root: Path) -> dict[str, str]:
    """The environment with every Secret folder made under `root`, as the kubelet would mount it."""
    volumes = {one["name"]: one for one in template["spec"]["volumes"]}
    moved = dict(env)
    for mount in found["volumeMounts"]:
        secret = volumes[mount["name"]].get("secret")
        if secret is None:
            continue
        assert mount["readOnly"]
        folder = root / mount["name"]
        folder.mkdir()
        for key, path in _files(secret):
            (folder / path).write_text(f"{key} of {secret['secretName']}")
        for name, value in env.items():
            if value == mount["mountPath"]:
                moved[name] = str(folder)
    return moved


def _files(secret: Any) -> list[tuple[str, str]]:
    if "items" in secret:
        return [(item["key"], item["path"]) for item in secret["items"]]
    part = secret["secretName"].removeprefix("acme-")
    keys = {
        "store": ["access-key-id", "secret-access-key"],
        "auth": ["pepper", "keys.json"],
    }.get(part, ["dsn"])
    return [(key, key) for key in keys]


@pytest.fixture
def context() -> Context:
    return make_context(SPEC)


def test_ingest_reads_everything_the_spec_says(context: Context, tmp_path: Path) -> None:
    template = build_ingest_template(context)
    found = container(template, "ingest")
    env = mounted(template, found, env_of(found), tmp_path)

    settings = runtime.from_env(env)

    assert settings.tenant == "team/acme"
    assert settings.lake == names.lake_name(UID)
    assert settings.store.url == "s3://lakes/team/acme/"
    assert settings.store.endpoint == "http://s3.example:8333"
    assert settings.batch == runtime.BatchSettings(
        min_interval_ms=50, max_delay_ms=300, max_rows=11, max_bytes=2 * 2**20
    )
    assert settings.ingest.requests_per_second == 9
    assert settings.ingest.pending_bytes == 3 * 2**20
    assert settings.freshness_target_ms == 4_000
    assert settings.snapshots == runtime.SnapshotSettings(keep_for_s=36 * 3_600, keep_last=25)
    assert settings.compaction == runtime.CompactionSettings(enabled=False, small_files=40)
    assert (settings.pod_name, settings.pod_address) == ("acme-ingest-x", "10.0.0.7")
    assert settings.query_url == "http://acme-query:8080"
    assert settings.api_port == names.API_PORT
    assert settings.metrics_port == names.METRICS_PORT
    grace = template["spec"]["terminationGracePeriodSeconds"]  # type: ignore[index]
    # aiohttp gives requests their time once, and once more after it has told them to end.
    parts = 2 * wiring._INGEST_ANSWER_PART + roles._HAND_OVER_PART
    assert grace > pod.PRE_STOP_S + settings.drain_s * parts + roles._CLOSE_S


def test_without_a_word_in_the_spec_both_sides_keep_the_same_snapshots(tmp_path: Path) -> None:
    template = build_ingest_template(make_context({}))
    found = container(template, "ingest")
    env = mounted(template, found, env_of(found), tmp_path)

    assert runtime.from_env(env).snapshots == runtime.SnapshotSettings()


def test_the_longest_times_of_the_spec_are_settings(tmp_path: Path) -> None:
    longest = "999999h999999h999999h999999h"
    template = build_ingest_template(
        make_context({"snapshots": {"keepFor": longest, "keepLast": 100_000}})
    )
    found = container(template, "ingest")
    env = mounted(template, found, env_of(found), tmp_path)

    assert runtime.from_env(env).snapshots.keep_for_s == 4 * 999_999 * 3_600


def test_ingest_finds_its_secrets_where_it_looks_for_them(context: Context, tmp_path: Path) -> None:
    template = build_ingest_template(context)
    found = container(template, "ingest")
    settings = runtime.from_env(mounted(template, found, env_of(found), tmp_path))

    assert settings.writer_dir is not None
    assert settings.maintenance_dir is not None
    assert settings.auth_dir is not None
    assert settings.store.secret_dir is not None
    assert settings.reader_dir is None
    assert runtime.read_secret(settings.writer_dir, "dsn") == "dsn of acme-writer"
    assert runtime.read_secret(settings.maintenance_dir, "dsn") == "dsn of acme-maintenance"
    assert runtime.read_secret(settings.auth_dir, "pepper") == "pepper of acme-auth"
    assert runtime.read_secret(settings.store.secret_dir, "access-key-id")


def test_ingest_reads_the_declared_tables_from_where_they_are_mounted(tmp_path: Path) -> None:
    columns = [
        {"name": "id", "type": "BIGINT", "nullable": True},
        {"name": "size", "type": "DOUBLE", "nullable": True, "default": "0.5"},
        {"name": "on", "type": "BOOLEAN", "nullable": False, "default": "true"},
        {"name": "note", "type": "VARCHAR", "nullable": True, "default": "1"},
    ]
    table = {"name": "t", "columns": columns, "primaryKey": ["id"], "partitionBy": ["on"]}
    broken = {"name": "b", "columns": [{"name": "x", "type": "NOPE"}]}
    context = make_context({"tables": [table, broken]})
    template: Any = build_ingest_template(context)
    found = container(template, "ingest")
    (volume,) = [one for one in template["spec"]["volumes"] if "configMap" in one]
    (mount,) = [one for one in found["volumeMounts"] if one["name"] == volume["name"]]
    rendered: Any = build_tables(context.tenant)
    assert rendered["metadata"]["name"] == volume["configMap"]["name"]
    ((name, text),) = rendered["data"].items()

    settings = runtime.from_env(mounted(template, found, env_of(found), tmp_path))
    declaration = parse_declaration(text.encode())

    assert str(settings.tables_file) == f"{mount['mountPath']}/{name}"
    assert declaration.digest == tables_digest(context.tenant)
    assert declaration.names == {"t", "b"}
    (problem,) = declaration.problems
    assert problem.startswith("table b: columns[0].type")
    assert declaration.tables == [
        parse_table(
            {
                "name": "t",
                "columns": [
                    {"name": "id", "type": "BIGINT", "nullable": False},
                    {"name": "size", "type": "DOUBLE", "default": 0.5},
                    {"name": "on", "type": "BOOLEAN", "nullable": False, "default": True},
                    {"name": "note", "type": "VARCHAR", "default": "1"},
                ],
                "primary_key": ["id"],
                "partition_by": ["on"],
            }
        )
    ]


def test_query_reads_its_limits_and_only_the_readers_login(
    context: Context, tmp_path: Path
) -> None:
    template = build_query_template(context)
    found = container(template, "query")

    settings = runtime.from_env(mounted(template, found, env_of(found), tmp_path))

    assert settings.query == runtime.QueryLimits(
        concurrency=3,
        timeout_ms=12_000,
        memory_bytes=96 * 2**20,
        result_bytes=5 * 2**20,
        rows=77,
    )
    grace = template["spec"]["terminationGracePeriodSeconds"]  # type: ignore[index]
    assert grace > pod.PRE_STOP_S + settings.drain_s
    # The longest statement is answered before the process gives up on what still runs.
    assert wiring._QUERY_ANSWER_PART == pod.QUERY_ANSWER_PART
    assert settings.drain_s * wiring._QUERY_ANSWER_PART >= settings.query.timeout_ms / 1000
    assert settings.reader_dir is not None
    assert settings.writer_dir is None
    assert settings.maintenance_dir is None
    assert runtime.read_secret(settings.reader_dir, "dsn") == "dsn of acme-reader"


def test_the_sandbox_shares_two_folders_and_knows_nothing_else(context: Context) -> None:
    template: Any = build_query_template(context)
    front, sandbox = container(template, "query"), container(template, "sandbox")
    volumes = {one["name"]: one for one in template["spec"]["volumes"]}

    env = env_of(sandbox)

    assert set(env) == {
        "DUCKMESH_SANDBOX_SOCKET",
        "DUCKMESH_CATALOG_DIR",
        "DUCKMESH_QUERY_CONCURRENCY",
        "DUCKMESH_QUERY_MEMORY_BYTES",
        "DUCKMESH_QUERY_TIMEOUT_MS",
    }
    assert {key: value for key, value in env_of(front).items() if key in env} == env
    assert not [m for m in sandbox["volumeMounts"] if "secret" in volumes[m["name"]]]
    shared = {m["name"]: m for m in sandbox["volumeMounts"]}
    assert shared["catalogs"]["readOnly"]
    assert shared["catalogs"]["mountPath"] == env["DUCKMESH_CATALOG_DIR"]
    assert env["DUCKMESH_SANDBOX_SOCKET"].startswith(shared["sandbox"]["mountPath"])
    assert sandbox["args"] == ["sandbox"]
    assert front["args"] == ["serve", "query"]


def test_migrate_reads_the_lake_its_owner_and_its_logins(context: Context, tmp_path: Path) -> None:
    template: Any = build_migrate_job(context)["spec"]["template"]  # type: ignore[index]
    found = container(template, "migrate")

    settings = runtime.migrate_from_env(mounted(template, found, env_of(found), tmp_path))

    assert (settings.tenant, settings.tenant_uid) == ("team/acme", UID)
    logins = settings.writer, settings.maintenance, settings.reader
    assert logins == names.logins(settings.lake)
    assert settings.store.url == context.data_url
    assert runtime.read_secret(settings.admin_dir, "dsn") == (
        "admin-dsn of duckmesh-catalog-default"
    )
    assert found["args"] == ["migrate"]


def test_purge_reads_the_lake_its_owner_and_the_stores_key(
    context: Context, tmp_path: Path
) -> None:
    bare = build_bare_context(context.tenant.meta, tenant_object(), make_settings())
    template: Any = build_purge_job(bare)["spec"]["template"]  # type: ignore[index]
    found = container(template, "purge")

    settings = runtime.purge_from_env(mounted(template, found, env_of(found), tmp_path))

    assert (settings.tenant, settings.tenant_uid) == ("team/acme", UID)
    assert (settings.lake, settings.store.url) == (names.lake_name(UID), context.data_url)
    assert settings.store.endpoint == context.store.endpoint
    assert runtime.read_secret(settings.admin_dir, "dsn") == (
        "admin-dsn of duckmesh-catalog-default"
    )
    folder = settings.store.secret_dir
    assert folder is not None
    for key in ("access-key-id", "secret-access-key"):
        assert runtime.read_secret(folder, key) == f"{key} of duckmesh-store-default"
    assert found["args"] == ["purge"]
    _check_restricted(template)


def test_a_run_of_a_compactor_reads_what_the_operator_sets(tmp_path: Path) -> None:
    """With all that a spec can say at its largest: what the API server takes, the runtime takes."""
    context = make_context()
    spec: Any = {
        "tenantRef": {"name": "acme"},
        "trigger": {},
        "target": {"fileSize": "4Gi", "tiers": ["1", "2Gi"], "maxBytesPerRun": "9999Ti"},
        "expireSnapshots": {"keepFor": "999999h", "keepLast": 100_000},
        "orphanFiles": {"mode": "Delete", "olderThan": "999999h"},
    }
    meta = {"name": "night", "namespace": "team", "uid": UID}
    compactor = parse_compactor({"metadata": meta, "spec": spec})
    resources = fit_compaction(compactor.resources, context.profile)
    job: Any = build_compact_job(
        context, compactor, name="night-1", resources=resources, attempt=1, deep=True
    )
    template = job["spec"]["template"]
    found = container(template, "compact")

    settings = runtime.compact_from_env(mounted(template, found, env_of(found), tmp_path))

    assert (settings.tenant, settings.lake) == ("team/acme", names.lake_name(UID))
    assert settings.store.url == context.data_url
    assert runtime.read_secret(settings.maintenance_dir, "dsn") == "dsn of acme-maintenance"
    assert (settings.run.id, settings.run.integrity, settings.run.orphans) == (
        *("night-1", "Deep"),
        "Delete",
    )
    assert settings.run.target_file_size == 4 * 2**30
    assert settings.run.keep_last == 100_000
    assert found["args"] == ["compact"]
    _check_restricted(template)


def test_the_operator_asks_for_the_newest_migration_of_the_runtime() -> None:
    numbers = [int(file.name.split("_")[0]) for file in MIGRATIONS.glob("[0-9]*.sql")]

    assert max(numbers) == names.MIGRATION


def test_the_admin_key_opens_the_runtime_with_all_roles(tmp_path: Path) -> None:
    pepper, key = "ab" * 32, admin_key("cd" * 32)
    secret: Any = build_secret(
        make_context().tenant,
        "auth",
        {"pepper": pepper, "keys.json": build_keys("", pepper=pepper, key=key)},
    )
    for name, value in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(value))

    found = json.loads((tmp_path / "keys.json").read_text())

    assert [one["hash"] for one in found] == [auth.hash_key(pepper, key)]
    assert hash_key(pepper, key) == auth.hash_key(pepper, key)
    assert set(found[0]["roles"]) == set(ROLES)


def test_a_logins_dsn_keeps_the_catalogs_address_and_options() -> None:
    control = "postgresql://control:p%40ss@db.example:6432/duckmesh?sslmode=require"

    assert build_dsn(control, "lake_1_w", "a/b") == (
        "postgresql://lake_1_w:a%2Fb@db.example:6432/duckmesh?sslmode=require"
    )


def test_a_logins_dsn_holds_nothing_of_the_operators_login() -> None:
    control = "postgresql:///duckmesh?host=db&user=control&sslmode=require&%70assword=p&passfile=/x"

    assert build_dsn(control, "lake_1_w", "a") == (
        "postgresql://lake_1_w:a@/duckmesh?host=db&sslmode=require"
    )


@pytest.mark.parametrize("build", [build_ingest_template, build_query_template])
def test_every_pod_meets_restricted_pod_security(context: Context, build: Any) -> None:
    _check_restricted(build(context))


def test_the_migrate_pod_meets_restricted_pod_security(context: Context) -> None:
    template: Any = build_migrate_job(context)["spec"]["template"]  # type: ignore[index]

    _check_restricted(template)


def _check_restricted(template: Manifest | Any) -> None:
    spec: Any = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in spec["containers"]:
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"]
    assert all(set(one) & {"secret", "configMap", "emptyDir"} for one in spec["volumes"])
