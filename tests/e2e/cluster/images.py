"""Build images and load them into the node; what the node has already is not loaded again."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.cluster import kind
from tests.e2e.cluster.archive import archive_images
from tests.e2e.cluster.build import build_base, install_packages
from tests.e2e.cluster.cache import lock
from tests.e2e.cluster.choose import IMAGE_PACKAGES, Way
from tests.e2e.cluster.client import Cluster
from tests.e2e.cluster.node import in_node
from tests.e2e.cluster.progress import say, step
from tests.e2e.cluster.settings import BASE_IMAGE, ClusterError, Settings
from tests.e2e.cluster.shell import run

BUILD_TIMEOUT_S: Final = 1800
CA_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_SOCKET: Final = "/run/containerd/containerd.sock"
# Settings of pip that tell where packages come from and how patient to be.
_PIP_NAMES: Final = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "default-timeout",
    "timeout",
    "retries",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image to build.

    Attributes:
        context: folder with the Dockerfile.
        tag: full name such as localhost/duckmesh-runtime:0.1.0.
        dockerfile: path of the Dockerfile, None for the one in the context folder.
        target: stage to build, "" for the last.
        build_args: values of ARGs; BASE is the base image unless given here.
    """

    context: Path
    tag: str
    dockerfile: Path | None = None
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)


def buildah_build_command(
    settings: Settings, image: Image, mounts: Sequence[tuple[Path, str]]
) -> list[str]:
    """Build the command of the native way.

    Args:
        settings: where buildah's storage is.
        image: what to build.
        mounts: files of this machine that steps of the build see, without being in the image.
    """
    volumes = [word for source, place in mounts for word in ("-v", f"{source}:{place}:ro")]
    # No registry, no network namespace, no user namespace; docker's format keeps the image's
    # id the same in the archive that the node reads.
    options = ["--layers", "--network", "host", "--isolation", "chroot", "--format", "docker"]
    command = [*_buildah(settings), "build", *options, *volumes]
    return [*command, *_build_options(image, BASE_IMAGE)]


def docker_build_command(image: Image, env: Mapping[str, str]) -> list[str]:
    """Build the command of the kind way.

    Args:
        image: what to build.
        env: environment; its PIP_* addresses are passed as build arguments of the same name.
    """
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
    passed = [word for name in names if name in env for word in ("--build-arg", name)]
    return ["docker", "build", *passed, *_build_options(image, kind.BASE_IMAGE)]


def _build_options(image: Image, base: str) -> list[str]:
    args = {"BASE": base, **image.build_args}
    words = [word for name, value in args.items() for word in ("--build-arg", f"{name}={value}")]
    if image.target:
        words += ["--target", image.target]
    if image.dockerfile:
        words += ["-f", str(image.dockerfile)]
    return [*words, "-t", image.tag, str(image.context)]


def pip_config(env: Mapping[str, str]) -> str:
    """Build a pip.conf from PIP_* variables, "" when none of them matters to a build."""
    lines = []
    for name in _PIP_NAMES:
        value = env.get("PIP_" + name.upper().replace("-", "_"), "")
        if value:
            lines.append(f"{name} = {value}")
    return "\n".join(["[global]", *lines]) + "\n" if lines else ""


def load_image(cluster: Cluster, image: Image) -> str:
    """Build an image, load it into the node, and return its id.

    Raises:
        ClusterError: the build failed, or the cluster is not up.
    """
    if cluster.way is Way.KIND:
        return _load_with_docker(cluster.settings, image)
    in_node(cluster.settings, "true")  # refuse before the work, not after it
    identity = _build_with_buildah(cluster.settings, image)
    if _is_loaded(cluster.settings, image.tag, identity):
        say(f"{image.tag} is in the node already")
    else:
        with step(f"loading {image.tag}"):
            _load_from_buildah(cluster.settings, image.tag, identity)
    return identity


def _load_with_docker(settings: Settings, image: Image) -> str:
    with step(f"building and loading {image.tag}"):
        run(docker_build_command(image, os.environ), timeout_s=BUILD_TIMEOUT_S)
        run(kind.load_command(settings, image.tag), timeout_s=BUILD_TIMEOUT_S)
    inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", image.tag]
    return run(inspect).stdout.strip().removeprefix("sha256:")


def _load_from_buildah(settings: Settings, tag: str, identity: str) -> None:
    # docker-archive: oci-archive would compress every layer anew, 6 s more.
    with tempfile.TemporaryDirectory(dir=settings.state) as folder:
        archive = Path(folder, "image.tar")
        target = f"docker-archive:{archive}:{tag}"
        run([*_buildah(settings), "push", "-q", tag, target], timeout_s=BUILD_TIMEOUT_S)
        _import(settings, archive, {tag: identity})


def load_archive(cluster: Cluster, archive: Path) -> None:
    """Load an OCI or docker archive into the node, under the names it carries.

    Raises:
        ClusterError: no such file, or the cluster is not up.
    """
    if not archive.is_file():
        raise ClusterError(f"no such archive: {archive}")
    if cluster.way is Way.KIND:
        command = kind.load_archive_command(cluster.settings, str(archive))
        run(command, timeout_s=BUILD_TIMEOUT_S)
    else:
        import_archive(cluster.settings, archive)


def load_base(cluster: Cluster) -> str:
    """Load the plain Python image into the node and return its tag."""
    if cluster.way is Way.NATIVE:
        import_archive(cluster.settings, build_base(cluster.settings))
        return BASE_IMAGE
    run(["docker", "pull", "-q", kind.BASE_IMAGE], timeout_s=BUILD_TIMEOUT_S)
    run(kind.load_command(cluster.settings, kind.BASE_IMAGE), timeout_s=BUILD_TIMEOUT_S)
    return kind.BASE_IMAGE


def import_archive(settings: Settings, archive: Path) -> None:
    """Load an archive into the native node, unless the node has its images already."""
    images = archive_images(archive)
    if images and all(_is_loaded(settings, tag, identity) for tag, identity in images.items()):
        return
    _import(settings, archive.resolve(), images)


def _build_with_buildah(settings: Settings, image: Image) -> str:
    install_packages(IMAGE_PACKAGES)
    with lock(settings.cache, "images"):
        if image.build_args.get("BASE", BASE_IMAGE) == BASE_IMAGE:
            _ensure_base(settings)
        with step(f"building {image.tag}"), _mounts() as mounts:
            command = buildah_build_command(settings, image, mounts)
            run(command, timeout_s=BUILD_TIMEOUT_S)
        return _identity(settings, image.tag)


def _ensure_base(settings: Settings) -> None:
    archive = build_base(settings)
    if _identity(settings, BASE_IMAGE) != archive_images(archive)[BASE_IMAGE]:
        run([*_buildah(settings), "pull", "-q", f"docker-archive:{archive}"], timeout_s=300)


def _identity(settings: Settings, tag: str) -> str:
    command = [*_buildah(settings), "images", "-q", "--no-trunc", tag]
    return run(command, check=False).stdout.strip().removeprefix("sha256:")


@contextmanager
def _mounts() -> Iterator[list[tuple[Path, str]]]:
    """The machine's certificates and pip settings, for builds behind a private mirror."""
    mounts = []
    bundle = Path(os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or CA_BUNDLE)
    if bundle.is_file():
        mounts.append((bundle, CA_BUNDLE))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "pip.conf")
        config.write_text(pip_config(os.environ))
        if config.stat().st_size:
            mounts.append((config, "/etc/pip.conf"))
        yield mounts


def _buildah(settings: Settings) -> list[str]:
    storage = settings.cache / "storage"  # apart from the storage of other users of buildah
    return ["buildah", "--root", f"{storage}/root", "--runroot", f"{storage}/run"]


def _ctr(settings: Settings, *words: str | Path) -> str:
    command = (settings.bin / "ctr", "-a", _SOCKET, "-n", "k8s.io", "images", *words)
    return in_node(settings, *command, timeout_s=300)


def _import(settings: Settings, archive: Path, images: Mapping[str, str]) -> None:
    """Import an archive and note which content each tag now stands for."""
    _ctr(settings, "import", "--local", archive)  # --local: 1 to 2 s instead of 5
    digests = parse_digests(_ctr(settings, "ls"))
    with lock(settings.cache, f"{settings.name}-images"):
        loaded = _read_loaded(settings)
        for tag, identity in images.items():
            loaded[tag] = {"id": identity, "digest": digests.get(tag, "")}
        _loaded_path(settings).write_text(json.dumps(loaded, indent=2))


def _is_loaded(settings: Settings, tag: str, identity: str) -> bool:
    """Whether the tag was loaded with this content and stands for the same thing still."""
    record = _read_loaded(settings).get(tag)
    if record is None or record["id"] != identity:
        return False
    return parse_digests(_ctr(settings, "ls")).get(tag) == record["digest"]


def _read_loaded(settings: Settings) -> dict[str, dict[str, str]]:
    path = _loaded_path(settings)
    return json.loads(path.read_text()) if path.exists() else {}


def _loaded_path(settings: Settings) -> Path:
    return settings.state / "loaded.json"


def parse_digests(listing: str) -> dict[str, str]:
    """Read tag -> manifest digest from the answer of `ctr images ls`."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}
