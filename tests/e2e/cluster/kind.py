"""The kind way: a cluster in a container of a Docker engine. Only commands are built here."""

from typing import Final

from tests.e2e.cluster.build import build_kind
from tests.e2e.cluster.cache import lock
from tests.e2e.cluster.choose import Way
from tests.e2e.cluster.client import Cluster
from tests.e2e.cluster.progress import say, step
from tests.e2e.cluster.settings import Settings
from tests.e2e.cluster.shell import run

BASE_IMAGE: Final = "python:3.11-slim"
CREATE_TIMEOUT_S: Final = 900


def create_command(settings: Settings) -> list[str]:
    """Build the command that makes the cluster and writes its kubeconfig."""
    target = ["--name", settings.name, "--kubeconfig", str(settings.kubeconfig)]
    return [str(settings.bin / "kind"), "create", "cluster", *target, "--wait", "180s"]


def export_command(settings: Settings) -> list[str]:
    """Build the command that writes the kubeconfig of a cluster that is there already."""
    target = ["--name", settings.name, "--kubeconfig", str(settings.kubeconfig)]
    return [str(settings.bin / "kind"), "export", "kubeconfig", *target]


def list_command(settings: Settings) -> list[str]:
    """Build the command that prints the names of all clusters, one a line."""
    return [str(settings.bin / "kind"), "get", "clusters"]


def delete_command(settings: Settings) -> list[str]:
    """Build the command that removes the cluster; a missing one is no error to kind."""
    target = ["--name", settings.name, "--kubeconfig", str(settings.kubeconfig)]
    return [str(settings.bin / "kind"), "delete", "cluster", *target]


def load_command(settings: Settings, tag: str) -> list[str]:
    """Build the command that copies an image from Docker to the node, unless it has it."""
    return [str(settings.bin / "kind"), "load", "docker-image", tag, "--name", settings.name]


def load_archive_command(settings: Settings, archive: str) -> list[str]:
    """Build the command that copies an image from an archive to the node."""
    return [str(settings.bin / "kind"), "load", "image-archive", archive, "--name", settings.name]


def up(settings: Settings) -> Cluster:
    """Have a ready kind cluster; one that is there already is taken as it is."""
    with lock(settings.cache, settings.name):
        build_kind(settings)
        if settings.name in run(list_command(settings)).stdout.split():
            run(export_command(settings))
        else:
            with step(f"making the kind cluster {settings.name}", expect="1 to 5 minutes"):
                run(create_command(settings), timeout_s=CREATE_TIMEOUT_S)
    return Cluster(settings=settings, way=Way.KIND)


def down(settings: Settings) -> None:
    """Remove the kind cluster and its kubeconfig."""
    with lock(settings.cache, settings.name):
        build_kind(settings)
        if settings.name in run(list_command(settings)).stdout.split():
            with step(f"removing the kind cluster {settings.name}"):
                run(delete_command(settings), timeout_s=CREATE_TIMEOUT_S)
        else:
            say("no cluster here")
        run(["rm", "-rf", settings.state])
