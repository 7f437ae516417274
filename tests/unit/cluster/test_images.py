from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.cluster.images import (
    Image,
    buildah_build_command,
    docker_build_command,
    parse_digests,
    pip_config,
)
from tests.e2e.cluster.settings import Settings

SETTINGS = Settings(cache=Path("/cache"), state=Path("/state"))
RUNTIME = Image(context=Path("/src"), tag="localhost/duckmesh-runtime:0.1.0", target="runtime")


def test_the_native_way_builds_with_buildah_from_the_debian_base() -> None:
    command = buildah_build_command(SETTINGS, RUNTIME, [(Path("/etc/ca.crt"), "/etc/ssl/ca.crt")])

    assert command == [
        *("buildah", "--root", "/cache/storage/root", "--runroot", "/cache/storage/run"),
        *("build", "--layers", "--network", "host", "--isolation", "chroot"),
        *("--format", "docker", "-v", "/etc/ca.crt:/etc/ssl/ca.crt:ro"),
        *("--build-arg", "BASE=localhost/python:3.11-slim", "--target", "runtime"),
        *("-t", "localhost/duckmesh-runtime:0.1.0", "/src"),
    ]


def test_the_kind_way_builds_with_docker_from_the_public_base() -> None:
    command = docker_build_command(RUNTIME, {})

    assert command == [
        *("docker", "build", "--build-arg", "BASE=python:3.11-slim", "--target", "runtime"),
        *("-t", "localhost/duckmesh-runtime:0.1.0", "/src"),
    ]


def test_docker_gets_the_addresses_of_packages_by_name_so_that_no_secret_is_in_the_command() -> (
    None
):
    env = {"PIP_INDEX_URL": "https://user:secret@mirror/simple", "PIP_CERT": "/x", "HOME": "/root"}

    command = docker_build_command(RUNTIME, env)

    assert command[2:4] == ["--build-arg", "PIP_INDEX_URL"]
    assert not any("secret" in word or "PIP_CERT" in word for word in command)


@pytest.mark.parametrize("way", ["native", "kind"])
def test_a_given_base_dockerfile_and_arguments_win(way: str) -> None:
    image = Image(
        context=Path("/src"),
        tag="t:1",
        dockerfile=Path("/src/other"),
        build_args={"BASE": "mine:1", "X": "a b"},
    )

    command = (
        buildah_build_command(SETTINGS, image, [])
        if way == "native"
        else docker_build_command(image, {})
    )

    text = " ".join(command)
    assert "--build-arg BASE=mine:1 --build-arg X=a b -f /src/other -t t:1 /src" in text
    assert text.count("BASE=") == 1
    assert "--target" not in command


def test_pip_settings_for_a_build_come_from_the_environment() -> None:
    env = {"PIP_INDEX_URL": "https://m/simple", "PIP_DEFAULT_TIMEOUT": "180", "PIP_CERT": "/x.crt"}

    assert pip_config(env) == "[global]\nindex-url = https://m/simple\ndefault-timeout = 180\n"
    assert pip_config({"PIP_CERT": "/x.crt", "HOME": "/root"}) == ""


def test_reads_the_images_of_the_node() -> None:
    listing = (
        "REF                  TYPE                 DIGEST        SIZE      PLATFORMS   LABELS\n"
        "localhost/app:1      application/json     sha256:aa     89.0 MiB  linux/amd64 -\n"
        "localhost/pause:3.10 application/json     sha256:bb     1.0 MiB   linux/amd64 -\n"
    )

    assert parse_digests(listing) == {
        "localhost/app:1": "sha256:aa",
        "localhost/pause:3.10": "sha256:bb",
    }
    assert parse_digests("REF TYPE DIGEST\n") == {}
