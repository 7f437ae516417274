from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from duckmesh_runtime.__main__ import main
from duckmesh_runtime.errors import SettingsError
from duckmesh_runtime.settings import QueryLimits, sandbox_from_env


def test_the_sandbox_needs_no_setting_at_all() -> None:
    settings = sandbox_from_env({})

    limits = QueryLimits()
    assert settings.socket == Path("/run/duckmesh/sandbox/sandbox.sock")
    assert settings.catalog_dir == Path("/run/duckmesh/catalogs")
    assert (settings.concurrency, settings.timeout_ms) == (limits.concurrency, limits.timeout_ms)
    assert settings.memory_bytes == limits.memory_bytes


def test_its_settings_are_read() -> None:
    settings = sandbox_from_env(
        {
            "DUCKMESH_SANDBOX_SOCKET": "/s/x.sock",
            "DUCKMESH_CATALOG_DIR": "/c",
            "DUCKMESH_QUERY_CONCURRENCY": "3",
            "DUCKMESH_QUERY_MEMORY_BYTES": "268435456",
            "DUCKMESH_QUERY_TIMEOUT_MS": "1500",
        }
    )

    assert (settings.socket, settings.catalog_dir) == (Path("/s/x.sock"), Path("/c"))
    assert (settings.concurrency, settings.memory_bytes) == (3, 2**28)
    assert settings.timeout_ms == 1500


def test_all_its_bad_values_are_reported_together() -> None:
    with pytest.raises(SettingsError, match=r"CONCURRENCY.*MEMORY_BYTES"):
        sandbox_from_env({"DUCKMESH_QUERY_CONCURRENCY": "0", "DUCKMESH_QUERY_MEMORY_BYTES": "1 GB"})


def test_bad_settings_end_the_process_with_a_word() -> None:
    ended = CliRunner().invoke(main, ["sandbox"], env={"DUCKMESH_QUERY_CONCURRENCY": "many"})

    assert ended.exit_code == 2
    assert "DUCKMESH_QUERY_CONCURRENCY" in ended.output
    assert "Traceback" not in ended.output
