"""Names, addresses and folders of a test cluster; read once from the environment.

Several clusters can live side by side on one machine: each has a number, and everything
a cluster leaves on the machine (links, cgroups, routes, folders) carries that number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

SOURCE: Final = Path(__file__).resolve().parent

KUBERNETES_VERSION: Final = "1.36.3"
BASE_IMAGE: Final = "localhost/python:3.11-slim"
PAUSE_IMAGE: Final = "localhost/pause:3.10"
COREDNS_IMAGE: Final = "localhost/coredns:1.14.7"
MAX_NUMBER: Final = 9


class ClusterError(Exception):
    """A cluster can't be had, or something in it went wrong; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where one cluster lives.

    Attributes:
        number: 0 to 9; tells clusters on one machine apart.
        cache: binaries and images, kept by `down` and shared by all clusters.
        state: etcd, certificates, logs and volumes of this cluster, removed by `down`.
        wanted: "kind" or "native" to insist on a way, "" to take the first that can work.
        apiserver_flags: further flags of the API server (native way only).
    """

    number: int = 0
    cache: Path
    state: Path
    wanted: str = ""
    apiserver_flags: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read DUCKMESH_CLUSTER_NUMBER, _CACHE, _STATE, _WAY and _APISERVER_FLAGS.

        Raises:
            ClusterError: a value can't be used.
        """
        number = env.get("DUCKMESH_CLUSTER_NUMBER", "0")
        if not (number.isdecimal() and int(number) <= MAX_NUMBER):
            raise ClusterError(f"DUCKMESH_CLUSTER_NUMBER is {number!r}: want 0 to {MAX_NUMBER}")
        wanted = env.get("DUCKMESH_CLUSTER_WAY", "")
        if wanted not in ("", "kind", "native"):
            raise ClusterError(f"DUCKMESH_CLUSTER_WAY is {wanted!r}: want kind or native")
        cache = env.get("DUCKMESH_CLUSTER_CACHE", "") or "~/.cache/duckmesh/cluster"
        # A fixed place, so that every command finds the cluster again.
        state = env.get("DUCKMESH_CLUSTER_STATE", "") or f"/tmp/{_named(int(number), 'cluster')}"
        return cls(
            number=int(number),
            cache=Path(cache).expanduser().absolute(),
            state=Path(state).expanduser().absolute(),
            wanted=wanted,
            apiserver_flags=env.get("DUCKMESH_CLUSTER_APISERVER_FLAGS", ""),
        )

    @property
    def name(self) -> str:
        """The cluster's name: of the kind cluster, the kubeconfig context, the cgroup."""
        return _named(self.number)

    @property
    def node(self) -> str:
        """Name of the one node (native way)."""
        return f"{self.name}-node"

    @property
    def bin(self) -> Path:
        """Folder of links to the current binaries; kubectl and helm are in it."""
        return self.cache / "bin"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the cluster's administrator."""
        return self.state / "admin.kubeconfig"

    @property
    def logs(self) -> Path:
        """Folder with one log per program, and the audit log (native way)."""
        return self.state / "logs"

    @property
    def host_link(self) -> str:
        """This machine's end of the cable to the node."""
        return f"dmhost{self.number}"

    @property
    def node_link(self) -> str:
        """The node's end of the cable."""
        return f"dmnode{self.number}"

    @property
    def host_ip(self) -> str:
        """This machine as the node and its pods see it."""
        return f"172.31.{77 + self.number}.1"

    @property
    def node_ip(self) -> str:
        """The node as this machine sees it."""
        return f"172.31.{77 + self.number}.2"

    @property
    def pod_cidr(self) -> str:
        """Addresses of pods."""
        return f"10.244.{self.number}.0/24"

    @property
    def service_cidr(self) -> str:
        """Addresses of Services."""
        return f"10.{96 + self.number}.0.0/16"

    @property
    def dns_ip(self) -> str:
        """Address of the cluster's DNS."""
        return f"10.{96 + self.number}.0.10"

    @property
    def api_service_ip(self) -> str:
        """Address of the API server as pods see it."""
        return f"10.{96 + self.number}.0.1"


def _named(number: int, suffix: str = "") -> str:
    return "-".join(["duckmesh", *([suffix] if suffix else []), *([str(number)] if number else [])])
