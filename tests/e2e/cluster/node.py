"""The native node as processes, links, cgroups and folders of this machine.

Everything here is found from the settings alone, so that `down` also clears a node whose
start was cut short or whose state folder is gone.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from tests.e2e.cluster.choose import CGROUPS, Cgroups, find, read_cgroups
from tests.e2e.cluster.progress import until
from tests.e2e.cluster.settings import (
    COREDNS_IMAGE,
    PAUSE_IMAGE,
    SOURCE,
    ClusterError,
    Settings,
)
from tests.e2e.cluster.shell import SYSTEM_PATH, run

_V2_CONTROLLERS: Final = ("cpu", "cpuset", "hugetlb", "io", "memory", "pids")
_V2_NEEDED: Final = {"cpu", "memory", "pids"}
_CONFIGS: Final = ("kubelet.yaml", "kube-proxy.yaml", "containerd.toml", "audit-policy.yaml")


def find_node(settings: Settings, proc: Path = Path("/proc")) -> int | None:
    """Process id (on this machine) of the node's first process, None if there is none.

    It is the process with id 1 in a namespace of its own whose last argument is the state
    folder: `node-init` while the node is being set up, `dm-init` afterwards.
    """
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if not words or words[-1] != str(settings.state):
                continue
            if is_namespace_init((folder / "status").read_text()):
                return int(folder.name)
    return None


def is_namespace_init(status: str) -> bool:
    """Whether a /proc/<pid>/status text is of process 1 of a nested pid namespace."""
    match = re.search(r"^NSpid:((?:\s+\d+)+)$", status, re.MULTILINE)
    ids = match[1].split() if match else []
    return len(ids) > 1 and ids[-1] == "1"


def in_node(settings: Settings, *command: str | Path, timeout_s: float = 60) -> str:
    """Run a command inside the node's namespaces and return its output.

    Raises:
        ClusterError: the node is not up, or the command failed.
    """
    pid = find_node(settings)
    if pid is None:
        raise ClusterError(f"the node of {settings.name} is not up: run `make cluster`")
    return run(["nsenter", "-t", str(pid), "-a", "--", *command], timeout_s=timeout_s).stdout


def start_node(settings: Settings) -> None:
    """Start the first process of the node, and return when it has started all others.

    Raises:
        ClusterError: it ended early; the message carries its last words.
    """
    prepare_cgroups(settings)
    write_config(settings)
    run(["ip", "link", "add", settings.host_link, "type", "veth", "peer", settings.node_link])
    run(["ip", "addr", "add", f"{settings.host_ip}/24", "dev", settings.host_link])
    run(["ip", "link", "set", settings.host_link, "up"])
    log = settings.logs / "node-init.log"
    namespaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
    init = ["bash", SOURCE / "node-init", settings.state]
    # `setsid --fork`: the node outlives this process and is not its child.
    command = ["setsid", "--fork", "unshare", *namespaces, "--propagation", "private", *init]
    path = f"{settings.bin}:{SYSTEM_PATH}"
    with log.open("w") as output:
        subprocess.run(
            [str(word) for word in command],
            env={"PATH": path, "HOME": "/root"},  # no proxies, no settings of the caller
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=30,
        )
    try:
        pid = until(lambda: find_node(settings), what="the node's first process", timeout_s=10) or 0
        run(["ip", "link", "set", settings.node_link, "netns", str(pid)])
        until(partial(_has_started, pid), what="the node's programs", timeout_s=30, pause_s=0.05)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{log.read_text()[-1500:]}") from error
    for network in (settings.pod_cidr, settings.service_cidr):
        run(["ip", "route", "replace", network, "via", settings.node_ip])


def _has_started(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "dm-init"
    except OSError as error:
        raise ClusterError("the node ended while it was being set up") from error


def stop_node(settings: Settings) -> None:
    """End the node at once and remove its links, routes and cgroups; state files stay."""
    while (pid := find_node(settings)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the kernel ends the rest of the node with it
        gone = partial(_is_gone, pid)
        until(gone, what=f"the end of process {pid}", timeout_s=30, pause_s=0.02)
    # Takes the peer and both routes with it.
    run(["ip", "link", "del", settings.host_link], check=False)
    # The directories can be removed a moment after their last process has ended.
    until(
        lambda: _remove_cgroups(settings),
        what=f"removal of the cgroups named {settings.name}",
        timeout_s=20,
    )


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def list_traces(settings: Settings) -> list[str]:
    """What is left of a node on this machine: processes, links, cgroups, mounts, folders."""
    traces = []
    if (pid := find_node(settings)) is not None:
        traces.append(f"process {pid}")
    if settings.state.exists():
        traces.append(f"folder {settings.state}")
    network = Path("/sys/class/net")
    links = (settings.host_link, settings.node_link)
    traces += [f"link {link}" for link in links if (network / link).exists()]
    traces += [f"cgroup {folder}" for folder in list_cgroups(settings) if folder.exists()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    traces += [f"mount {line.split()[4]}" for line in mounts if f" {settings.state}/" in line]
    return traces


def list_cgroups(settings: Settings, top: Path = CGROUPS) -> list[Path]:
    """The cluster's cgroup directory in each hierarchy mounted under `top`."""
    if (top / "cgroup.controllers").is_file():
        return [top / settings.name]
    hierarchies = {path.parent.resolve() for path in top.glob("*/cgroup.procs")}
    return sorted(hierarchy / settings.name for hierarchy in hierarchies)


def prepare_cgroups(settings: Settings, top: Path = CGROUPS) -> None:
    """Make the cluster's cgroups, with one named `system` for the node's own programs.

    Raises:
        ClusterError: cgroup v2 does not hand over the controllers that pods need.
    """
    for folder in list_cgroups(settings, top):
        if read_cgroups(top) is Cgroups.V2:
            _delegate(folder.parent)
            folder.mkdir(exist_ok=True)
            _delegate(folder)
        system = folder / "system"
        system.mkdir(parents=True, exist_ok=True)
        for child in (folder, system):
            for name in ("cpuset.cpus", "cpuset.mems"):
                source = folder.parent / name
                # cgroup v1: a new cpuset has no processors and takes no process.
                if source.is_file() and (child / name).is_file():
                    (child / name).write_text(source.read_text())


def _delegate(folder: Path) -> None:
    control = folder / "cgroup.subtree_control"
    for controller in _V2_CONTROLLERS:
        with suppress(OSError):  # not offered here, or not allowed: checked below
            control.write_text(f"+{controller}")
    lacking = sorted(_V2_NEEDED - set(control.read_text().split()))
    if lacking:
        raise ClusterError(
            f"cgroup v2 does not hand over {', '.join(lacking)} under {folder}: "
            "in a container, start it with its own cgroup namespace and its processes in a child "
            "cgroup, or use the machine itself"
        )


def _remove_cgroups(settings: Settings) -> bool:
    folders = [folder for folder in list_cgroups(settings) if folder.exists()]
    for folder in folders:
        for path, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # still in use: the caller tries again
                os.rmdir(path)
    return not any(folder.exists() for folder in folders)


def config_values(settings: Settings) -> dict[str, str]:
    """Values for the @NAME@ places in `config/` and `manifests/`."""
    return {
        "STATE": str(settings.state),
        "BIN": str(settings.bin),
        "RUNC": find("runc") or "runc",
        "NODE": settings.node,
        "CGROUP": settings.name,
        "POD_CIDR": settings.pod_cidr,
        "DNS_IP": settings.dns_ip,
        "PAUSE_IMAGE": PAUSE_IMAGE,
        "COREDNS_IMAGE": COREDNS_IMAGE,
    }


def render(text: str, values: Mapping[str, str]) -> str:
    """Fill the @NAME@ places of a text.

    Raises:
        KeyError: a name has no value.
    """
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text)


def env_text(values: Mapping[str, str], lists: Mapping[str, Iterable[str]]) -> str:
    """Build a file of shell variables and arrays, safely quoted."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    for name, items in lists.items():
        lines.append(f"{name}=({' '.join(map(shlex.quote, items))})")
    return "\n".join(lines) + "\n"


def write_config(settings: Settings) -> None:
    """Write the programs' configuration and the settings of node-init into the state folder."""
    for folder in ("cni", "logs", "volume-plugins"):
        (settings.state / folder).mkdir(parents=True, exist_ok=True)
    values = config_values(settings)
    for name in _CONFIGS:
        (settings.state / name).write_text(render((SOURCE / "config" / name).read_text(), values))
    conflist = "10-duckmesh.conflist"
    network = render((SOURCE / "config" / conflist).read_text(), values)
    (settings.state / "cni" / conflist).write_text(network)
    (settings.state / "resolv.conf").write_text("")
    variables = {
        "BIN": str(settings.bin),
        "NODE": settings.node,
        "HOST_IP": settings.host_ip,
        "NODE_IP": settings.node_ip,
        "NODE_LINK": settings.node_link,
        "POD_CIDR": settings.pod_cidr,
        "SERVICE_CIDR": settings.service_cidr,
        "APISERVER_FLAGS": settings.apiserver_flags,
    }
    lists = {"CGROUPS": map(str, list_cgroups(settings))}
    (settings.state / "node.env").write_text(env_text(variables, lists))
