"""Make the cluster's programs and images from sources, into the cache.

The programs come from the Go module proxy (each folder under `go/` pins its versions with
go.mod and go.sum), the Python base image from Debian. A second call makes nothing.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.e2e.cluster.archive import image_config, write_archive, write_program_image
from tests.e2e.cluster.cache import content_key, ensure, file_sha256, link, lock, verify
from tests.e2e.cluster.choose import (
    IMAGE_PACKAGES,
    KIND_TOOLS,
    NODE_PACKAGES,
    find,
    missing_packages,
)
from tests.e2e.cluster.progress import step
from tests.e2e.cluster.settings import (
    BASE_IMAGE,
    COREDNS_IMAGE,
    KUBERNETES_VERSION,
    PAUSE_IMAGE,
    SOURCE,
    Settings,
)
from tests.e2e.cluster.shell import run

BUILD_TIMEOUT_S: Final = 3600

# For tests: what a slim Python image has, and the user the product's images run as.
BASE_SUITE: Final = "bookworm"
BASE_PACKAGES: Final = ("ca-certificates", "python3", "python3-pip", "python3-venv")
BASE_UID: Final = 10001
BASE_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONUNBUFFERED": "1",
}
BASE_TRIMMED: Final = (
    "var/cache/apt/archives/*.deb",
    "var/lib/apt/lists/*",
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/locale/*",
    "usr/lib/python3*/EXTERNALLY-MANAGED",  # pip may install into an image
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One `go build`.

    Attributes:
        name: name of the artefact.
        module: folder under `go/`.
        package: what to build; "tool" means the tools named in go.mod.
        outputs: the programs that come out.
        values: link-time values, such as versions: variable -> value.
        expect: how long it takes the first time, for the person waiting.
    """

    name: str
    module: str
    package: str
    outputs: tuple[str, ...]
    values: tuple[tuple[str, str], ...] = ()
    expect: str


_VERSION: Final = "k8s.io/component-base/version."
_KUBERNETES: Final = (
    (_VERSION + "gitVersion", "v" + KUBERNETES_VERSION),
    (_VERSION + "gitMajor", KUBERNETES_VERSION.split(".")[0]),
    (_VERSION + "gitMinor", KUBERNETES_VERSION.split(".")[1]),
    (_VERSION + "gitTreeState", "clean"),
)
NODE: Final = Program(
    name="node",
    module="node",
    package=".",
    outputs=("kubenode",),
    values=_KUBERNETES,
    expect="5 to 9 minutes the first time, half a minute with a warm Go cache",
)
KUBECTL: Final = Program(
    name="kubectl",
    module="node",
    package="k8s.io/kubernetes/cmd/kubectl",
    outputs=("kubectl",),
    values=_KUBERNETES,
    expect="2 minutes the first time",
)
RUNTIME: Final = Program(
    name="runtime",
    module="runtime",
    package="tool",
    outputs=(
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "bridge",
        "host-local",
        "loopback",
        "portmap",
        "firewall",
    ),
    values=(("github.com/containerd/containerd/v2/version.Version", "2.2.9"),),
    expect="1 to 2 minutes the first time",
)
DNS: Final = Program(
    name="dns",
    module="dns",
    package="tool",
    outputs=("coredns",),
    expect="2 to 3 minutes the first time",
)
HELM: Final = Program(
    name="helm",
    module="helm",
    package="tool",
    outputs=("helm",),
    values=(("helm.sh/helm/v4/internal/version.version", "v4.3.1"),),
    expect="3 minutes the first time",
)
KIND: Final = Program(
    name="kind",
    module="kind",
    package="tool",
    outputs=("kind",),
    expect="half a minute the first time",
)


def build_native(settings: Settings) -> None:
    """Make all that the node needs, and kubectl and helm; links to them go to `settings.bin`."""
    with lock(settings.cache, "build"):
        install_packages(NODE_PACKAGES)
        toolchain = _toolchain()
        for program in (NODE, RUNTIME, HELM):
            _ensure_program(settings, program, toolchain)
        link(settings.bin / "kubenode", settings.bin / "kubectl")
        _ensure_pause(settings, toolchain)
        _ensure_dns(settings, toolchain)


def build_control_plane(settings: Settings) -> Path:
    """Make what an API server without nodes needs, and nothing else; returns the one program."""
    install_packages({name: NODE_PACKAGES[name] for name in ("openssl", "gcc")})
    toolchain = _toolchain()
    made = settings.cache / "artefacts" / f"{NODE.name}-{program_key(NODE, toolchain)}"
    if not verify(made, NODE.outputs):  # does not wait for someone who makes something else
        with lock(settings.cache, "build"):
            _ensure_program(settings, NODE, toolchain)
    return made / NODE.outputs[0]


def build_kind(settings: Settings) -> None:
    """Have kind, kubectl and helm in `settings.bin`: built, or without Go the installed ones."""
    with lock(settings.cache, "build"):
        if find("go"):
            toolchain = _toolchain()
            for program in (KIND, KUBECTL, HELM):
                _ensure_program(settings, program, toolchain)
            return
        for name in KIND_TOOLS:
            installed = find(name)
            if installed and Path(installed).parent != settings.bin:
                link(Path(installed), settings.bin / name)


def build_base(settings: Settings) -> Path:
    """Make the base image from Debian packages and return its archive."""
    with lock(settings.cache, "build"):
        install_packages(IMAGE_PACKAGES)
        recipe = [BASE_IMAGE, BASE_SUITE, *BASE_PACKAGES, str(BASE_UID), *BASE_TRIMMED]
        key = content_key([*recipe, repr(BASE_ENV), _debian_architecture()])
        return ensure(settings.cache, "base", key, ["base.tar"], _make_base) / "base.tar"


def program_image(settings: Settings, name: str) -> Path:
    """Archive of the pause or the coredns image, after `build_native`."""
    return (settings.cache / "images" / f"{name}.tar").resolve()


def install_packages(packages: dict[str, str]) -> None:
    """Install those Debian packages whose program is missing, and say so."""
    missing = list(missing_packages(packages))
    if "gcc" in packages and not _static_libc():
        missing.append("libc6-dev")
    if not missing:
        return
    with step(f"installing Debian packages: {' '.join(missing)}"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], timeout_s=600, env=quiet)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        run(install, timeout_s=1800, env=quiet)


def _static_libc() -> bool:
    return bool(find("gcc")) and "/" in run(["gcc", "-print-file-name=libc.a"]).stdout


def go_build_command(program: Program, target: Path) -> list[str]:
    """Build the `go build` command that writes a program's outputs into the folder `target`."""
    values = [f"-X {variable}={value}" for variable, value in program.values]
    output = f"{target}/" if program.package == "tool" else f"{target}/{program.outputs[0]}"
    flags = [
        "-buildvcs=false",
        "-trimpath",
        "-mod=readonly",
        f"-ldflags={' '.join(['-s -w', *values])}",
    ]
    return ["go", "build", *flags, "-o", output, program.package]


def program_key(program: Program, toolchain: str) -> str:
    """Key of a program: its sources, how it is built, and the Go version."""
    command = go_build_command(program, Path("target"))
    return content_key([*command, toolchain], _sources(SOURCE / "go" / program.module))


def _sources(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".go", ".mod", ".sum")]


def _toolchain() -> str:
    names = ["GOVERSION", "GOOS", "GOARCH"]
    return " ".join(run(["go", "env", *names], env={"GOTOOLCHAIN": "local"}).stdout.split())


def _go_build(program: Program, target: Path) -> None:
    env = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOMEMLIMIT": "8GiB"}
    command = go_build_command(program, target)
    with step(f"building {program.name}: {', '.join(program.outputs)}", expect=program.expect):
        run(command, timeout_s=BUILD_TIMEOUT_S, cwd=SOURCE / "go" / program.module, env=env)


def _ensure_program(settings: Settings, program: Program, toolchain: str) -> None:
    key = program_key(program, toolchain)
    make = partial(_go_build, program)
    folder = ensure(settings.cache, program.name, key, program.outputs, make)
    for output in program.outputs:
        link(folder / output, settings.bin / output)


def _ensure_pause(settings: Settings, toolchain: str) -> None:
    """Make the program that holds namespaces: of the node (dm-init) and of pods (pause)."""

    def make(folder: Path) -> None:
        program = folder / "dm-init"
        run(["gcc", "-Os", "-static", "-s", "-o", program, SOURCE / "pause.c"])
        target = folder / "pause.tar"
        write_program_image(
            target, tag=PAUSE_IMAGE, program=program, architecture=toolchain.split()[-1]
        )

    key = content_key([PAUSE_IMAGE, toolchain], [SOURCE / "pause.c"])
    folder = ensure(settings.cache, "pause", key, ["dm-init", "pause.tar"], make)
    link(folder / "dm-init", settings.bin / "dm-init")
    link(folder / "pause.tar", settings.cache / "images" / "pause.tar")


def _ensure_dns(settings: Settings, toolchain: str) -> None:
    def make(folder: Path) -> None:
        _go_build(DNS, folder)
        program = folder / "coredns"
        target = folder / "coredns.tar"
        write_program_image(
            target, tag=COREDNS_IMAGE, program=program, architecture=toolchain.split()[-1]
        )
        program.unlink()

    key = content_key([COREDNS_IMAGE, program_key(DNS, toolchain)])
    folder = ensure(settings.cache, "dns", key, ["coredns.tar"], make)
    link(folder / "coredns.tar", settings.cache / "images" / "coredns.tar")


def _make_base(folder: Path) -> None:
    root = folder / "root"
    with step(f"making the image {BASE_IMAGE} from Debian packages", expect="about a minute"):
        # In a mount namespace of its own: what debootstrap mounts can't stay behind.
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
        inside = ["unshare", "--mount", "--fork", *bootstrap, BASE_SUITE, str(root)]
        run(inside, timeout_s=BUILD_TIMEOUT_S)
        for pattern in BASE_TRIMMED:
            _remove(root.glob(pattern))
        (root / "usr/bin/python").symlink_to("python3")
        run(["chroot", root, "useradd", "-u", str(BASE_UID), "-m", "app"])
        layer = folder / "layer"
        skip = [f"--exclude=./{place}/*" for place in ("dev", "proc", "sys", "run", "tmp")]
        run(["tar", "-C", root, "--sort=name", "--numeric-owner", *skip, "-cf", layer, "."])
        shutil.rmtree(root)
        config = image_config(
            file_sha256(layer),
            architecture=_debian_architecture(),
            command=["python3"],
            env=BASE_ENV,
        )
        write_archive(folder / "base.tar", tag=BASE_IMAGE, layer=layer, config=config)
        layer.unlink()


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _debian_architecture() -> str:
    return run(["dpkg", "--print-architecture"]).stdout.strip()
