"""Command line of the test cluster: `python -m tests.e2e.cluster COMMAND`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e import cluster
from tests.e2e.cluster.client import export_lines
from tests.e2e.cluster.progress import say
from tests.e2e.cluster.settings import ClusterError, Settings


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed or not up, 2 misuse."""
    options = _parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](cluster.read_settings(), options)
    except ClusterError as error:
        say(f"ERROR: {error}")
        return 1
    except PermissionError as error:
        say(f"ERROR: {error}: run the same command as root")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where this one stopped")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="have a ready cluster; prints lines for `eval`")
    commands.add_parser("down", help="remove the cluster and every trace of it")
    commands.add_parser("status", help="say how the cluster is; exit code 1 when not ready")
    commands.add_parser("build", help="make all programs and images `up` and load-image need")
    commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    commands.add_parser("env", help='print lines for `eval "$(...)"`')
    load = commands.add_parser("load-image", help="build or read an image and load it")
    load.add_argument("context", type=Path, nargs="?", help="folder with the Dockerfile")
    load.add_argument("--tag", help="full name, such as localhost/duckmesh-runtime:0.1.0")
    load.add_argument("--target", default="", help="stage of the Dockerfile")
    load.add_argument("-f", "--file", type=Path, help="the Dockerfile")
    load.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    load.add_argument("--archive", type=Path, help="load this archive instead of building")
    return parser


def _up(settings: Settings, _: argparse.Namespace) -> int:
    found = cluster.up(settings)
    say(f"cluster {found.name} ({found.way.value}) is ready; kubeconfig: {found.kubeconfig}")
    say(f"kubectl and helm are in {found.bin_dir}; to use them in this shell:")
    return _env(settings, _)


def _down(settings: Settings, _: argparse.Namespace) -> int:
    cluster.down(settings)
    return 0


def _build(settings: Settings, _: argparse.Namespace) -> int:
    cluster.build(settings)
    return 0


def _status(settings: Settings, _: argparse.Namespace) -> int:
    found = cluster.status(settings)
    if found.cluster is None:
        print("down")
        return 1
    words = "ready" if found.ready else "not ready" if found.version else "not answering"
    print(f"{words}: {found.cluster.name} ({found.cluster.way.value})")
    print(f"version: {found.version or 'unknown'}\nrunning pods: {found.pods}")
    print(f"kubeconfig: {found.cluster.kubeconfig}")
    return 0 if found.ready else 1


def _kubeconfig(settings: Settings, _: argparse.Namespace) -> int:
    print(settings.kubeconfig)
    return 0


def _env(settings: Settings, _: argparse.Namespace) -> int:
    print("\n".join(export_lines(settings.kubeconfig, settings.bin, os.environ)))
    return 0


def _load_image(settings: Settings, options: argparse.Namespace) -> int:
    found = cluster.find_up(settings)
    if options.archive:
        cluster.load_archive(found, options.archive)
        return 0
    if not (options.context and options.tag):
        raise ClusterError("load-image wants a folder and --tag NAME:TAG, or --archive FILE")
    pairs = [word.partition("=") for word in options.build_arg]
    identity = cluster.load_image(
        found,
        options.context,
        tag=options.tag,
        target=options.target,
        dockerfile=options.file,
        build_args={name: value for name, _, value in pairs},
    )
    print(identity)
    return 0


_COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "build": _build,
    "kubeconfig": _kubeconfig,
    "env": _env,
    "load-image": _load_image,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
