"""Decide how a cluster can be had on this machine, or say why it can't."""

import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tests.e2e.cluster.settings import ClusterError
from tests.e2e.cluster.shell import run, search_path, succeeds

MIN_GO: Final = (1, 26)
CGROUPS: Final = Path("/sys/fs/cgroup")

# What the node needs beside the Go modules: program -> Debian package.
NODE_PACKAGES: Final = {
    "runc": "runc",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "gcc": "gcc",
    "unshare": "util-linux",
}
KIND_TOOLS: Final = ("kind", "kubectl", "helm")
IMAGE_PACKAGES: Final = {"buildah": "buildah", "debootstrap": "debootstrap"}


class Way(Enum):
    """How the cluster is made."""

    KIND = "kind"
    NATIVE = "native"


class Cgroups(Enum):
    """What the machine's control groups offer a node."""

    V1 = "v1"
    V2 = "v2"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the choice depends on.

    Attributes:
        docker: a Docker engine answers (a `docker` program alone is not enough).
        kind_tools: kind, kubectl and helm are installed, so that none has to be built.
        go: version of the Go toolchain, None where there is none.
        linux: the system is Linux.
        root: this process is root.
        cgroups: writable cgroup hierarchies with the cpu, memory and pids controllers.
        namespaces: new network, mount and pid namespaces may be made.
        missing: Debian packages the node needs that are not installed.
        apt: apt-get can install them.
    """

    docker: bool
    kind_tools: bool
    go: tuple[int, int] | None
    linux: bool
    root: bool
    cgroups: Cgroups
    namespaces: bool
    missing: tuple[str, ...]
    apt: bool


def choose(facts: Facts, wanted: str = "") -> Way:
    """Take kind where a Docker engine answers, otherwise a node of our own.

    Args:
        facts: what the machine offers.
        wanted: "kind" or "native" to accept only that way.

    Raises:
        ClusterError: no (accepted) way can work; the message lists every obstacle of each
            way with what to do about it.
    """
    obstacles = {Way.KIND: _kind_obstacles(facts), Way.NATIVE: _native_obstacles(facts)}
    accepted = [way for way in Way if wanted in ("", way.value)]
    for way in accepted:
        if not obstacles[way]:
            return way
    lines = ["no cluster can be had on this machine as it is; clear the obstacles of one way:"]
    for way in accepted:
        lines += [f"  {_TITLES[way]}:", *(f"    - {obstacle}" for obstacle in obstacles[way])]
    raise ClusterError("\n".join(lines))


_TITLES: Final = {
    Way.KIND: "kind, in a Docker engine",
    Way.NATIVE: "a node of its own, without Docker",
}


def _go_obstacle(facts: Facts) -> str:
    want = ".".join(map(str, MIN_GO))
    if facts.go is None:
        return f"no Go: install Go {want} or newer and put it on PATH"
    if facts.go < MIN_GO:
        return f"Go {'.'.join(map(str, facts.go))} is too old: install Go {want} or newer"
    return ""


def _kind_obstacles(facts: Facts) -> Sequence[str]:
    obstacles = []
    if not facts.docker:
        obstacles.append("no Docker engine answers: start one (`docker info` must succeed)")
    if not facts.kind_tools and (go := _go_obstacle(facts)):
        tools = ", ".join(KIND_TOOLS)
        obstacles.append(f"not all of {tools} are installed: install them, or to build them: {go}")
    return obstacles


def _native_obstacles(facts: Facts) -> Sequence[str]:
    if not facts.linux:
        return ["this is not Linux: use a Linux machine or virtual machine, or Docker"]
    obstacles = []
    if not facts.root:
        obstacles.append("not root: run the same command with sudo -E or as root")
    if facts.cgroups is Cgroups.NONE:
        obstacles.append(
            f"no writable cgroups with cpu, memory and pids under {CGROUPS}: in a container, "
            "start it privileged with its own cgroup namespace; on a machine, mount cgroup2 there"
        )
    if facts.root and not facts.namespaces:
        obstacles.append(
            "new network, mount and pid namespaces are refused: in a container, "
            "start it with CAP_SYS_ADMIN and CAP_NET_ADMIN (privileged)"
        )
    if go := _go_obstacle(facts):
        obstacles.append(go)
    if facts.missing and not facts.apt:
        obstacles.append(f"missing and no apt-get to install them: {', '.join(facts.missing)}")
    return obstacles


def read_facts() -> Facts:
    """Look at this machine; changes nothing."""
    root = os.geteuid() == 0
    linux = platform.system() == "Linux"
    return Facts(
        docker=succeeds(["docker", "version", "--format", "{{.Server.Version}}"]),
        kind_tools=all(find(tool) for tool in KIND_TOOLS),
        go=_go_version(),
        linux=linux,
        root=root,
        cgroups=read_cgroups(CGROUPS),
        namespaces=linux
        and root
        and succeeds(["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "true"]),
        missing=missing_packages(NODE_PACKAGES),
        apt=find("apt-get") is not None,
    )


def find(program: str) -> str | None:
    """Where a program is, looking into the system's folders too."""
    return shutil.which(program, path=search_path())


def missing_packages(packages: dict[str, str]) -> tuple[str, ...]:
    """Those packages of a program -> package table whose program is not installed."""
    return tuple(package for program, package in packages.items() if not find(program))


def read_cgroups(top: Path) -> Cgroups:
    """Tell which cgroups are mounted at `top`; those mounted read-only don't count."""
    unified = top / "cgroup.controllers"
    if unified.is_file():
        usable = {"cpu", "memory", "pids"} <= set(unified.read_text().split())
        return Cgroups.V2 if usable and not _is_read_only(top) else Cgroups.NONE
    hierarchies = [top / controller for controller in ("cpu", "memory", "pids")]
    if all((path / "cgroup.procs").is_file() and not _is_read_only(path) for path in hierarchies):
        return Cgroups.V1
    return Cgroups.NONE


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def parse_go_version(text: str) -> tuple[int, int] | None:
    """Read major and minor from the answer of `go env GOVERSION`, such as go1.26.8."""
    match = re.match(r"go(\d+)\.(\d+)", text.strip())
    return (int(match[1]), int(match[2])) if match else None


def _go_version() -> tuple[int, int] | None:
    if not find("go"):
        return None
    answer = run(["go", "env", "GOVERSION"], env={"GOTOOLCHAIN": "local"}, check=False)
    return parse_go_version(answer.stdout)
