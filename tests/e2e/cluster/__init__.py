"""A real Kubernetes for the end-to-end tests and the demo: kind, or a node of our own.

Used from Python (`up`, `load_image`, ...) and as `python -m tests.e2e.cluster`. Needs the
standard library only, so that it runs before any virtualenv exists. Functions that take
`Settings` read them from the environment unless they are given.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import images, kind, native
from tests.e2e.cluster.build import build_base, build_kind, build_native
from tests.e2e.cluster.choose import Way, choose, read_facts
from tests.e2e.cluster.client import Cluster
from tests.e2e.cluster.images import Image, load_archive, load_base
from tests.e2e.cluster.settings import ClusterError, Settings

__all__ = [
    "Cluster",
    "ClusterError",
    "Settings",
    "Status",
    "Way",
    "build",
    "down",
    "find_up",
    "load_archive",
    "load_base",
    "load_image",
    "read_settings",
    "status",
    "up",
]


def read_settings() -> Settings:
    """Settings from the environment of this process."""
    return Settings.from_env(os.environ)


def build(settings: Settings | None = None) -> None:
    """Make every program and base image this machine's way needs, into the cache.

    Raises:
        ClusterError: no way can work here, or a build failed.
    """
    settings = settings or read_settings()
    if _way(settings) is Way.KIND:
        build_kind(settings)
    else:
        build_native(settings)
        build_base(settings)


def up(settings: Settings | None = None) -> Cluster:
    """Have a ready cluster; quick when it is up already.

    Raises:
        ClusterError: no way can work here, or something did not start.
    """
    settings = settings or read_settings()
    way = _way(settings)
    settings.state.mkdir(parents=True, exist_ok=True)
    _way_path(settings).write_text(way.value)
    return kind.up(settings) if way is Way.KIND else native.up(settings)


def down(settings: Settings | None = None) -> None:
    """Remove the cluster and every trace of it but the cache; nothing to do is no error.

    Raises:
        ClusterError: something could not be removed.
    """
    settings = settings or read_settings()
    if _recorded_way(settings) is Way.KIND:
        kind.down(settings)
    else:
        native.down(settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a cluster is.

    Attributes:
        cluster: how to reach it, None where there is none.
        ready: its node is Ready.
        version: version of Kubernetes, "" when it does not answer.
        pods: number of pods that run, in all namespaces.
    """

    cluster: Cluster | None
    ready: bool = False
    version: str = ""
    pods: int = 0


def status(settings: Settings | None = None) -> Status:
    """Look at the cluster; changes nothing."""
    settings = settings or read_settings()
    way = _recorded_way(settings)
    if way is None:
        return Status(cluster=None)
    cluster = Cluster(settings=settings, way=way)
    nodes = cluster.kubectl("get", "nodes", "-o", "json", "--request-timeout=5s", check=False)
    if nodes.returncode != 0:
        return Status(cluster=cluster)
    ready, version = parse_nodes(nodes.stdout)
    running = ("get", "pods", "-A", "--field-selector=status.phase=Running", "-o", "name")
    pods = cluster.kubectl(*running, check=False).stdout.split()
    return Status(cluster=cluster, ready=ready, version=version, pods=len(pods))


def parse_nodes(listing: str) -> tuple[bool, str]:
    """Read from `kubectl get nodes -o json` whether all nodes are Ready, and their version."""
    nodes = json.loads(listing)["items"]
    ready = [
        condition["status"] == "True"
        for node in nodes
        for condition in node["status"].get("conditions", ())
        if condition["type"] == "Ready"
    ]
    versions = [node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes]
    return bool(nodes) and len(ready) == len(nodes) and all(ready), "".join(versions[:1])


def find_up(settings: Settings | None = None) -> Cluster:
    """The cluster that `up` made.

    Raises:
        ClusterError: there is none.
    """
    settings = settings or read_settings()
    way = _recorded_way(settings)
    if way is None:
        raise ClusterError("no cluster is up: run `make cluster`")
    return Cluster(settings=settings, way=way)


def load_image(
    cluster: Cluster,
    context: Path,
    *,
    tag: str,
    target: str = "",
    dockerfile: Path | None = None,
    build_args: Mapping[str, str] | None = None,
) -> str:
    """Build an image and load it into the node; quick when the node has it already.

    Args:
        cluster: a cluster that is up.
        context: folder with the Dockerfile.
        tag: full name, such as localhost/duckmesh-runtime:0.1.0.
        target: stage to build, "" for the last.
        dockerfile: the Dockerfile, None for the one in the context.
        build_args: values of ARGs; BASE is set to the base image of the way.

    Returns:
        The image's id: equal content, equal id.

    Raises:
        ClusterError: the build failed, or the cluster is not up.
    """
    image = Image(
        context=context,
        tag=tag,
        dockerfile=dockerfile,
        target=target,
        build_args=build_args or {},
    )
    return images.load_image(cluster, image)


def _way(settings: Settings) -> Way:
    """The way this machine allows; that of the cluster which is there, if one is."""
    recorded = _recorded_way(settings)
    return choose(read_facts(), recorded.value if recorded else settings.wanted)


def _way_path(settings: Settings) -> Path:
    return settings.state / "way"


def _recorded_way(settings: Settings) -> Way | None:
    path = _way_path(settings)
    return Way(path.read_text()) if path.exists() else None
