from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from duckmesh_operator.errors import SettingsError
from duckmesh_operator.settings import Settings, StoreConfig, from_env

CONFIG: dict[str, Any] = {
    "runtimeImage": "localhost/duckmesh-runtime:0.1.0",
    "sandboxImage": "localhost/duckmesh-sandbox:0.1.0",
    "runtimeVersion": "0.1.0",
    "catalogs": [
        {
            "name": "default",
            "secretDir": "/etc/duckmesh/catalogs/default",
            "adminSecret": "admin",
            "egress": {"cidrs": ["10.0.0.0/8"], "ports": [6432]},
        }
    ],
    "stores": [{"name": "default", "bucket": "lakes", "secretDir": "/etc/duckmesh/stores/default"}],
    "profiles": [{"name": "default", "ingest": {"max": {"cpu": 2, "memory": "2Gi"}}}],
}


def read(tmp_path: Path, config: object, **env: str) -> Settings:
    file = tmp_path / "operator.yaml"
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return from_env(
        {"DUCKMESH_OPERATOR_CONFIG": str(file), "DUCKMESH_OPERATOR_NAMESPACE": "system", **env}
    )


def test_a_short_configuration_has_defaults(tmp_path: Path) -> None:
    settings = read(tmp_path, CONFIG)

    assert settings.namespace == "system"
    assert settings.sweep_s == 5
    assert settings.catalogs["default"].egress.ports == (6432,)
    assert settings.catalogs["default"].egress.restricted
    assert not settings.stores["default"].egress.restricted
    assert settings.profiles["default"].ingest.cpu == "2"
    assert settings.kubeconfig is None
    assert settings.deletion_protection


@pytest.mark.parametrize("said", [True, False])
def test_the_configuration_says_whether_tenants_can_be_protected(
    tmp_path: Path, said: bool
) -> None:
    assert read(tmp_path, CONFIG | {"deletionProtection": said}).deletion_protection is said


def test_a_profiles_digest_changes_with_its_text_only(tmp_path: Path) -> None:
    same = read(tmp_path, CONFIG).profiles["default"].digest
    other = CONFIG | {"profiles": [{"name": "default", "nodeSelector": {"disk": "ssd"}}]}

    assert read(tmp_path, CONFIG).profiles["default"].digest == same
    changed = read(tmp_path, other).profiles["default"]
    assert changed.digest != same
    assert changed.placement == {"nodeSelector": {"disk": "ssd"}}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://s3:8333", 8333), ("http://s3", 80), ("https://s3", 443), ("", 443)],
)
def test_a_stores_port_comes_from_its_endpoint(endpoint: str, port: int) -> None:
    store = StoreConfig(name="x", bucket="b", secret_dir=Path("/x"), endpoint=endpoint)

    assert store.ports == (port,)


def test_all_bad_values_are_reported_together(tmp_path: Path) -> None:
    bad = CONFIG | {
        "runtimeVersion": "latest",
        "sweepSeconds": "often",
        "sweepSecond": 1,
        "imagePullPolicy": "Sometimes",
        "workers": 0,
        "catalogs": [],
        "stores": [{"name": "Bad_Name", "endpoint": "ftp://x", "secretDir": "/x"}],
        "profiles": [
            {"name": "a", "size": 1},
            {"name": "a", "ingest": {"max": {"disk": 1, "memory": "much"}}},
        ],
    }

    with pytest.raises(SettingsError) as caught:
        read(tmp_path, bad, DUCKMESH_LOG_LEVEL="loud", DUCKMESH_METRICS_PORT="many")

    for named in (
        *("runtimeVersion", "sweepSeconds: 'often'", "sweepSecond: unknown", "imagePullPolicy"),
        *("workers: 0", "catalogs: want one", "stores[0].name", "stores[0].endpoint"),
        *("stores[0].bucket: missing", "profiles[0].size: unknown", "profiles[1].name"),
        *("ingest.max.disk: unknown", "profiles[1].ingest.max.memory", "DUCKMESH_LOG_LEVEL"),
        "DUCKMESH_METRICS_PORT",
    ):
        assert named in str(caught.value), named


@pytest.mark.parametrize(
    ("config", "named"),
    [("[1]", "want a mapping"), ("a: b: c", "is not YAML"), ("a: [", "is not YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, config: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        read(tmp_path, config)


def test_a_missing_file_is_named_without_its_path() -> None:
    with pytest.raises(SettingsError) as caught:
        from_env({"DUCKMESH_OPERATOR_CONFIG": "/nowhere/x.yaml"})

    assert "cannot be read" in str(caught.value)
    assert "DUCKMESH_OPERATOR_NAMESPACE" in str(caught.value)
    assert "/nowhere" not in str(caught.value)


def test_no_file_at_all_is_told() -> None:
    with pytest.raises(SettingsError, match="DUCKMESH_OPERATOR_CONFIG: missing"):
        from_env({})


@pytest.mark.parametrize(
    "change",
    [
        {"catalogs": [{"name": "a", "secretDir": 5, "adminSecret": "x"}]},
        {"stores": ["x"]},
        {"watchNamespaces": "one"},
        {"catalogs": [{"name": "a", "secretDir": "/a", "adminSecret": "x", "egress": [1]}]},
    ],
)
def test_wrong_shapes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        read(tmp_path, CONFIG | change)
