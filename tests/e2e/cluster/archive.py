"""Write images of one layer as archives that containerd, buildah and docker load.

The layout is docker's `image save`: manifest.json, one configuration, one layer.
Nothing in it depends on the time or the machine, so equal content is an equal image.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.cluster.cache import file_sha256


def image_config(
    layer_sha256: str,
    *,
    architecture: str,
    entrypoint: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Build the configuration of an image of one layer; its SHA-256 is the image's id."""
    settings: dict[str, object] = {}
    if entrypoint:
        settings["Entrypoint"] = list(entrypoint)
    if command:
        settings["Cmd"] = list(command)
    if env:
        settings["Env"] = [f"{name}={value}" for name, value in env.items()]
    epoch = "1970-01-01T00:00:00Z"
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": epoch,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_sha256}"]},
        "history": [{"created": epoch, "created_by": "duckmesh test cluster"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def write_archive(target: Path, *, tag: str, layer: Path, config: bytes) -> None:
    """Write an image whose layer is an uncompressed tar file."""
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    layer_name = file_sha256(layer) + ".tar"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [layer_name]}]
    with tarfile.open(target, "w") as archive:
        _add_bytes(archive, "manifest.json", json.dumps(manifest).encode())
        _add_bytes(archive, config_name, config)
        member = tarfile.TarInfo(layer_name)
        member.size = layer.stat().st_size
        with layer.open("rb") as content:
            archive.addfile(member, content)


def write_program_image(target: Path, *, tag: str, program: Path, architecture: str) -> None:
    """Write an image that holds one static program and runs it."""
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w") as archive:
        member = tarfile.TarInfo(program.name)
        member.size = program.stat().st_size
        member.mode = 0o755
        with program.open("rb") as content:
            archive.addfile(member, content)
    config = image_config(
        file_sha256(layer), architecture=architecture, entrypoint=[f"/{program.name}"]
    )
    write_archive(target, tag=tag, layer=layer, config=config)
    layer.unlink()


def archive_images(archive: Path) -> dict[str, str]:
    """The images of a docker archive: tag -> id; empty for any other kind of archive."""
    with tarfile.open(archive) as opened:
        try:
            manifest = opened.extractfile("manifest.json")
        except KeyError:
            manifest = None
        entries = json.load(manifest) if manifest else []
    return {
        tag: Path(entry["Config"]).name.removesuffix(".json")
        for entry in entries
        for tag in entry["RepoTags"] or ()
    }


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
