from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.cluster.archive import archive_images, image_config, write_program_image
from tests.e2e.cluster.build import DNS, KUBECTL, NODE, go_build_command, program_key
from tests.e2e.cluster.cache import RECORD, content_key, ensure, link, verify

KEY = "0123456789abcdef"


def _make(content: str, calls: list[str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        calls.append(content)
        (folder / "program").write_text(content)

    return make


def test_a_key_depends_on_contents_names_and_recipe_only(tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "go.mod").write_text(text)
    key = content_key(["flags", "go1.26.8"], [tmp_path / "a" / "go.mod"])

    assert key == content_key(["flags", "go1.26.8"], [tmp_path / "b" / "go.mod"])
    assert key != content_key(["flags", "go1.26.8"], [tmp_path / "c" / "go.mod"])
    assert key != content_key(["flags", "go1.26.9"], [tmp_path / "a" / "go.mod"])
    assert key != content_key(["flagsgo1.26.8"], [tmp_path / "a" / "go.mod"])
    assert len(key) == 16


def test_an_artefact_is_made_once(tmp_path: Path) -> None:
    calls: list[str] = []

    first = ensure(tmp_path, "node", KEY, ["program"], _make("x", calls))
    second = ensure(tmp_path, "node", KEY, ["program"], _make("x", calls))

    assert first == second
    assert (first / "program").read_text() == "x"
    assert calls == ["x"]


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "no record", "bad record"])
def test_a_damaged_artefact_is_made_again(tmp_path: Path, harm: str) -> None:
    calls: list[str] = []
    folder = ensure(tmp_path, "node", KEY, ["program"], _make("good", calls))
    match harm:
        case "changed":
            (folder / "program").write_text("evil")
        case "cut":
            (folder / "program").write_text("")
        case "gone":
            (folder / "program").unlink()
        case "no record":
            (folder / RECORD).unlink()
        case "bad record":
            (folder / RECORD).write_text('{"sha256": []}')

    again = ensure(tmp_path, "node", KEY, ["program"], _make("good", calls))

    assert (again / "program").read_text() == "good"
    assert verify(again, ["program"])
    assert calls == ["good", "good"]


def test_a_failed_build_leaves_nothing_that_could_be_taken_for_an_artefact(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "program").write_text("half")
        raise RuntimeError("the build failed")

    with pytest.raises(RuntimeError):
        ensure(tmp_path, "node", KEY, ["program"], fail)

    assert list((tmp_path / "artefacts").iterdir()) == []


def test_a_new_artefact_replaces_older_ones_of_its_name_only(tmp_path: Path) -> None:
    for name in ("node", "node-agent"):
        ensure(tmp_path, name, KEY, ["program"], _make("old", []))

    ensure(tmp_path, "node", "f" * 16, ["program"], _make("new", []))

    left = sorted(path.name for path in (tmp_path / "artefacts").iterdir())
    assert left == [f"node-agent-{KEY}", f"node-{'f' * 16}"]


def test_a_link_moves_to_the_newer_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        link(tmp_path / name, tmp_path / "bin" / "program")

    assert (tmp_path / "bin" / "program").read_text() == "b"
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["program"]


def test_the_build_commands_pin_sources_and_versions() -> None:
    node = go_build_command(NODE, Path("/out"))
    dns = go_build_command(DNS, Path("/out"))

    assert node[:2] == ["go", "build"]
    assert {"-trimpath", "-mod=readonly", "/out/kubenode"} <= set(node)
    assert any("k8s.io/component-base/version.gitVersion=v1.36.3" in word for word in node)
    assert dns[-3:] == ["-o", "/out/", "tool"]
    assert go_build_command(KUBECTL, Path("/out"))[-1] == "k8s.io/kubernetes/cmd/kubectl"


def test_the_keys_of_programs_follow_the_go_version_and_the_package() -> None:
    assert program_key(NODE, "go1.26.8 linux amd64") != program_key(NODE, "go1.26.9 linux amd64")
    assert program_key(NODE, "go1.26.8 linux amd64") != program_key(KUBECTL, "go1.26.8 linux amd64")


def test_a_program_image_is_the_same_for_the_same_program(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    tag = "localhost/pause:1"

    for name in ("a.tar", "b.tar"):
        write_program_image(tmp_path / name, tag=tag, program=program, architecture="amd64")

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
    assert archive_images(tmp_path / "a.tar") == {tag: names[1].removesuffix(".json")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "pause"]


def test_an_archive_without_dockers_manifest_has_no_known_images(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    with tarfile.open(tmp_path / "oci.tar", "w") as archive:
        archive.add(tmp_path / "index.json", "index.json")

    assert archive_images(tmp_path / "oci.tar") == {}


def test_an_image_configuration_names_layer_program_and_environment() -> None:
    text = image_config("ab" * 32, architecture="arm64", command=["python3"], env={"A": "b"})

    config = json.loads(text)
    assert config["architecture"] == "arm64"
    assert config["config"] == {"Cmd": ["python3"], "Env": ["A=b"]}
    assert config["rootfs"]["diff_ids"] == ["sha256:" + "ab" * 32]
