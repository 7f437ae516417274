from __future__ import annotations

from pathlib import Path

import pytest

from duckmesh_runtime.errors import SettingsError
from duckmesh_runtime.settings import (
    CompactionSettings,
    Settings,
    SnapshotSettings,
    from_env,
    migrate_from_env,
    read_secret,
)

LEAST = {
    "DUCKMESH_TENANT": "ns/t",
    "DUCKMESH_LAKE": "lake_1",
    "DUCKMESH_DATA_URL": "s3://bucket/prefix/",
}


def test_the_least_environment_gives_the_defaults() -> None:
    settings = from_env(LEAST)

    assert settings == Settings(tenant="ns/t", lake="lake_1", store=settings.store)
    assert (settings.store.url, settings.store.region) == ("s3://bucket/prefix/", "us-east-1")


def test_values_are_read() -> None:
    settings = from_env(
        LEAST
        | {
            "DUCKMESH_AUTH_DIR": "/etc/auth",
            "DUCKMESH_API_PORT": "0",
            "DUCKMESH_BATCH_MIN_INTERVAL_MS": "50",
            "DUCKMESH_QUERY_ROWS": "10",
            "DUCKMESH_PENDING_BYTES": "1048576",
            "DUCKMESH_IDEMPOTENCY_BYTES": "1073741824",
            "DUCKMESH_SNAPSHOT_KEEP_FOR_S": "600",
            "DUCKMESH_SNAPSHOT_KEEP_LAST": "3",
            "DUCKMESH_COMPACTION_ENABLED": "false",
            "DUCKMESH_COMPACTION_SMALL_FILES": "40",
        }
    )

    assert (settings.auth_dir, settings.api_port) == (Path("/etc/auth"), 0)
    assert (settings.batch.min_interval_ms, settings.query.rows) == (50, 10)
    assert settings.ingest.pending_bytes == 1_048_576
    assert settings.ingest.idempotency_bytes == 2**30
    assert settings.snapshots == SnapshotSettings(keep_for_s=600, keep_last=3)
    assert settings.compaction == CompactionSettings(enabled=False, small_files=40)


def test_an_empty_value_is_a_missing_one() -> None:
    assert from_env(LEAST | {"DUCKMESH_AUTH_DIR": "", "DUCKMESH_API_PORT": ""}).auth_dir is None


def test_all_bad_values_are_reported_together() -> None:
    with pytest.raises(SettingsError) as caught:
        from_env({"DUCKMESH_DATA_URL": "ftp://x", "DUCKMESH_API_PORT": "70000"})

    for name in (
        "DUCKMESH_TENANT: missing",
        "DUCKMESH_LAKE: missing",
        "DUCKMESH_DATA_URL",
        "DUCKMESH_API_PORT: '70000'",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "bucket/", "https://h/b/"])
def test_a_data_url_is_a_folder_of_a_known_kind(url: str) -> None:
    with pytest.raises(SettingsError, match="DUCKMESH_DATA_URL"):
        from_env(LEAST | {"DUCKMESH_DATA_URL": url})


def test_migrate_needs_its_owner_and_logins() -> None:
    with pytest.raises(SettingsError, match=r"TENANT_UID.*ADMIN_DIR.*WRITER_LOGIN"):
        migrate_from_env(LEAST)


def test_a_secret_loses_its_last_line_end_only(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text(" postgresql://x \n")

    assert read_secret(tmp_path, "dsn") == " postgresql://x "
