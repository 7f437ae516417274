"""Programs that tests run and the product does not need: promtool, Prometheus, amtool, Lua.

They come from the distribution's packages, unpacked into `~/.cache/duckmesh/tools` and never installed, so that no
service is started. apt checks the packages' signatures; the files are compared with their record before each use.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster.cache import content_key, ensure, lock

CACHE = Path("~/.cache/duckmesh/tools").expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program and the package that has it."""

    package: str
    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


PROMTOOL = Tool(package="prometheus", path="usr/bin/promtool")
PROMETHEUS = Tool(package="prometheus", path="usr/bin/prometheus")
AMTOOL = Tool(package="prometheus-alertmanager", path="usr/bin/amtool")
LUA = Tool(package="lua5.4", path="usr/bin/lua5.4")
#: All files that a package is unpacked for.
_OF_PACKAGE = {
    tool.package: [
        one for one in (PROMTOOL, PROMETHEUS, AMTOOL, LUA) if one.package == tool.package
    ]
    for tool in (PROMTOOL, AMTOOL, LUA)
}


def have(tool: Tool) -> Path:
    """The program. Without apt it is taken from PATH, or the test is skipped; in CI it must be had."""
    if shutil.which("apt-get") is None and "CI" not in os.environ:
        if found := shutil.which(tool.name):
            return Path(found)
        pytest.skip(f"{tool.name} is not on PATH, and there is no apt to fetch it")
    names = [one.name for one in _OF_PACKAGE[tool.package]]
    key = content_key([tool.package, platform.machine(), *names], [Path(__file__)])
    with lock(CACHE, tool.package):
        return ensure(CACHE, tool.package, key, names, lambda to: _unpack(tool.package, to)) / (
            tool.name
        )


def _unpack(package: str, to: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        if _run(["apt-get", "download", package], work).returncode:  # fresh machines have no list
            _run(["apt-get", "update", "-qq"], work)
            got = _run(["apt-get", "download", package], work)
            assert got.returncode == 0, f"apt cannot fetch {package}: {got.stderr}"
        (archive,) = Path(work).glob("*.deb")
        out = _run(["dpkg-deb", "--extract", str(archive), work], work)
        assert out.returncode == 0, out.stderr
        for tool in _OF_PACKAGE[package]:
            shutil.copy(Path(work, tool.path), to / tool.name)


def _run(command: Sequence[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
