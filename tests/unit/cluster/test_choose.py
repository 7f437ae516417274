from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster.choose import (
    Cgroups,
    Facts,
    Way,
    choose,
    parse_go_version,
    read_cgroups,
)
from tests.e2e.cluster.settings import ClusterError

# A Linux machine with root, Go and apt, and no Docker.
PLAIN = Facts(
    docker=False,
    kind_tools=False,
    go=(1, 26),
    linux=True,
    root=True,
    cgroups=Cgroups.V1,
    namespaces=True,
    missing=(),
    apt=True,
)
LAPTOP = dataclasses.replace(
    PLAIN,
    docker=True,
    kind_tools=True,
    linux=False,
    root=False,
    cgroups=Cgroups.NONE,
    namespaces=False,
)


@pytest.mark.parametrize(
    ("facts", "changes", "wanted", "way"),
    [
        pytest.param(PLAIN, {}, "", Way.NATIVE, id="no docker"),
        pytest.param(PLAIN, {"cgroups": Cgroups.V2}, "", Way.NATIVE, id="cgroup v2"),
        pytest.param(PLAIN, {"missing": ("runc",)}, "", Way.NATIVE, id="apt installs runc"),
        pytest.param(PLAIN, {"apt": False}, "", Way.NATIVE, id="nothing for apt to do"),
        pytest.param(PLAIN, {"docker": True}, "", Way.KIND, id="docker answers, go builds kind"),
        pytest.param(PLAIN, {"docker": True}, "native", Way.NATIVE, id="native insisted on"),
        pytest.param(LAPTOP, {}, "", Way.KIND, id="laptop with docker and kind"),
        pytest.param(LAPTOP, {"go": None}, "", Way.KIND, id="tools are installed, go is not"),
        pytest.param(LAPTOP, {"kind_tools": False}, "", Way.KIND, id="tools can be built"),
    ],
)
def test_takes_kind_where_docker_answers_and_a_native_node_elsewhere(
    facts: Facts, changes: dict[str, Any], wanted: str, way: Way
) -> None:
    assert choose(dataclasses.replace(facts, **changes), wanted) is way


@pytest.mark.parametrize(
    ("facts", "changes", "words"),
    [
        pytest.param(PLAIN, {"root": False}, ["not root", "sudo"], id="not root"),
        pytest.param(PLAIN, {"cgroups": Cgroups.NONE}, ["cgroups", "privileged"], id="no cgroups"),
        pytest.param(PLAIN, {"namespaces": False}, ["namespaces", "CAP_SYS_ADMIN"], id="no caps"),
        pytest.param(PLAIN, {"go": None}, ["no Go", "install Go 1.26"], id="no go"),
        pytest.param(PLAIN, {"go": (1, 19)}, ["Go 1.19 is too old"], id="old go"),
        pytest.param(
            PLAIN,
            {"missing": ("runc", "nftables"), "apt": False},
            ["no apt-get", "runc, nftables"],
            id="no apt",
        ),
        pytest.param(
            LAPTOP, {"docker": False}, ["start one", "not Linux"], id="laptop, docker not running"
        ),
        pytest.param(
            LAPTOP,
            {"kind_tools": False, "go": None},
            ["kind, kubectl, helm", "install them"],
            id="docker, but no tools and no go",
        ),
    ],
)
def test_refuses_with_what_to_do_about_it(
    facts: Facts, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ClusterError) as refusal:
        choose(dataclasses.replace(facts, **changes))

    assert all(word in str(refusal.value) for word in words)


def test_a_refusal_names_every_obstacle_of_both_ways() -> None:
    facts = dataclasses.replace(PLAIN, root=False, go=None, cgroups=Cgroups.NONE)

    with pytest.raises(ClusterError) as refusal:
        choose(facts)

    text = str(refusal.value)
    assert all(word in text for word in ("Docker engine", "not root", "no writable cgroups"))
    assert text.count("no Go") == 2


def test_a_refusal_of_the_wanted_way_does_not_speak_of_the_other() -> None:
    with pytest.raises(ClusterError) as refusal:
        choose(PLAIN, "kind")

    assert "Docker" in str(refusal.value)
    assert "node of its own" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8\n", (1, 26)), ("go1.9", (1, 9)), ("devel +abc", None), ("", None)],
)
def test_reads_the_version_of_go(text: str, version: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == version


def test_tells_cgroup_v1_from_v2_from_none(tmp_path: Path) -> None:
    for controller in ("cpu", "memory", "pids"):
        (tmp_path / "v1" / controller).mkdir(parents=True)
        (tmp_path / "v1" / controller / "cgroup.procs").touch()
    for name, controllers in (("v2", "cpuset cpu io memory pids"), ("poor", "cpu pids")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.controllers").write_text(controllers)

    found = [read_cgroups(tmp_path / name) for name in ("v1", "v2", "poor", "absent")]

    assert found == [Cgroups.V1, Cgroups.V2, Cgroups.NONE, Cgroups.NONE]
