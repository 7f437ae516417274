from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cluster.node import (
    config_values,
    env_text,
    find_node,
    is_namespace_init,
    list_cgroups,
    prepare_cgroups,
    render,
    write_config,
)
from tests.e2e.cluster.settings import SOURCE, ClusterError, Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.mark.parametrize(
    ("ids", "nested_init"),
    [("4711\t1", True), ("4711\t17", False), ("1", False), ("1\t1", True), ("", False)],
)
def test_knows_the_first_process_of_a_nested_namespace(ids: str, nested_init: bool) -> None:
    assert is_namespace_init(f"Name:\tbash\nNSpid:\t{ids}\nNSpgid:\t0\n") is nested_init


def test_finds_the_node_by_its_state_folder_and_nothing_else(
    tmp_path: Path, settings: Settings
) -> None:
    proc = tmp_path / "proc"
    state = str(settings.state)
    processes = {
        "10": (["dm-init", state + "-1"], "10\t1"),  # another cluster's
        "11": (["bash", "node-init", state], "11\t40"),  # a child of node-init
        "12": (["cat", state], "12"),  # someone who looks into the folder
        "13": (["/bin/dm-init", state], "13\t1"),
        "self": ([], ""),
    }
    for pid, (words, ids) in processes.items():
        (proc / pid).mkdir(parents=True)
        (proc / pid / "cmdline").write_text("".join(f"{word}\0" for word in words))
        (proc / pid / "status").write_text(f"NSpid:\t{ids}\n")

    assert find_node(settings, proc) == 13


def test_there_is_no_node_where_none_was_started(settings: Settings) -> None:
    assert find_node(settings) is None


def test_every_configuration_is_filled_in(settings: Settings) -> None:
    write_config(settings)

    written = [path for path in settings.state.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"kubelet.yaml", "containerd.toml", "node.env"}
    assert not any("@" in path.read_text() for path in written)
    assert f"cgroupRoot: /{settings.name}" in (settings.state / "kubelet.yaml").read_text()


def test_every_manifest_is_filled_in(settings: Settings) -> None:
    for path in (SOURCE / "manifests").iterdir():
        assert "@" not in render(path.read_text(), config_values(settings))


def test_a_place_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        render("a: @UNKNOWN@", {})


def test_the_settings_of_node_init_survive_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "node.env"
    path.write_text(env_text({"A": "it's $HOME; x"}, {"L": ["one two", "*"]}))

    shell = subprocess.run(
        ["bash", "-c", f'. {path}; printf "%s\n" "$A" "${{L[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )

    assert shell.stdout.splitlines() == ["it's $HOME; x", "one two", "*"]


def test_each_hierarchy_of_cgroup_v1_gets_a_directory_with_processors(
    tmp_path: Path, settings: Settings
) -> None:
    for controller in ("cpu", "cpuset"):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "cgroup.procs").touch()
    os.symlink("cpu", tmp_path / "cpuacct")  # one hierarchy under two names
    places = ["cpuset", "cpuset/duckmesh", "cpuset/duckmesh/system"]
    for place in places:
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "cpuset.cpus").write_text("0-1" if place == "cpuset" else "")

    prepare_cgroups(settings, tmp_path)

    folders = list_cgroups(settings, tmp_path)
    assert folders == [tmp_path / "cpu/duckmesh", tmp_path / "cpuset/duckmesh"]
    assert all((folder / "system").is_dir() for folder in folders)
    assert [(tmp_path / place / "cpuset.cpus").read_text() for place in places] == ["0-1"] * 3


def test_cgroup_v2_that_hands_nothing_over_is_refused(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("")

    assert list_cgroups(settings, tmp_path) == [tmp_path / "duckmesh"]
    with pytest.raises(ClusterError, match="does not hand over cpu, memory, pids"):
        prepare_cgroups(settings, tmp_path)


def test_two_clusters_share_no_name_and_no_address(settings: Settings) -> None:
    other = dataclasses.replace(settings, number=1)

    def marks(s: Settings) -> set[str]:
        links = {s.name, s.node, s.host_link, s.node_link}
        return links | {s.host_ip, s.node_ip, s.pod_cidr, s.service_cidr, s.dns_ip}

    assert not marks(settings) & marks(other)
    assert len(max(other.host_link, other.node_link, key=len)) <= 15  # the kernel's limit
