from __future__ import annotations

from pathlib import Path

from tests.e2e.cluster import kind
from tests.e2e.cluster.settings import Settings

FIRST = Settings(cache=Path("/cache"), state=Path("/state"))
SECOND = Settings(number=1, cache=Path("/cache"), state=Path("/state"))
KIND = "/cache/bin/kind"


def test_makes_the_cluster_and_waits_until_it_is_ready() -> None:
    assert kind.create_command(FIRST) == [
        *(KIND, "create", "cluster", "--name", "duckmesh"),
        *("--kubeconfig", "/state/admin.kubeconfig", "--wait", "180s"),
    ]


def test_finds_a_cluster_that_is_there_and_writes_its_kubeconfig() -> None:
    assert kind.list_command(FIRST) == [KIND, "get", "clusters"]
    assert kind.export_command(FIRST) == [
        *(KIND, "export", "kubeconfig", "--name", "duckmesh"),
        *("--kubeconfig", "/state/admin.kubeconfig"),
    ]


def test_removes_only_its_own_cluster() -> None:
    assert kind.delete_command(SECOND) == [
        *(KIND, "delete", "cluster", "--name", "duckmesh-1"),
        *("--kubeconfig", "/state/admin.kubeconfig"),
    ]


def test_loads_images_by_tag_and_from_archives() -> None:
    assert kind.load_command(FIRST, "localhost/a:1") == [
        *(KIND, "load", "docker-image", "localhost/a:1", "--name", "duckmesh")
    ]
    assert kind.load_archive_command(FIRST, "/a.tar") == [
        *(KIND, "load", "image-archive", "/a.tar", "--name", "duckmesh")
    ]
