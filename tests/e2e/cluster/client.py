"""A cluster that is up, as its users see it: kubectl, helm and the environment for both."""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.cluster.choose import Way
from tests.e2e.cluster.settings import Settings
from tests.e2e.cluster.shell import run, search_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """How to reach a cluster.

    Attributes:
        settings: where it lives.
        way: how it was made.
    """

    settings: Settings
    way: Way

    @property
    def name(self) -> str:
        """Its name, also that of the cgroup or the kind cluster."""
        return self.settings.name

    @property
    def kubeconfig(self) -> Path:
        """File with the administrator's access."""
        return self.settings.kubeconfig

    @property
    def bin_dir(self) -> Path:
        """Folder with kubectl and helm."""
        return self.settings.bin

    def environment(self) -> dict[str, str]:
        """Variables for programs that talk to the cluster, to lay over `os.environ`."""
        return environment(self.kubeconfig, self.bin_dir, os.environ)

    def kubectl(
        self, *args: str, stdin: str = "", timeout_s: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator.

        Raises:
            ClusterError: it failed and `check` is set, or took longer than `timeout_s`.
        """
        return self._run("kubectl", args, stdin, timeout_s, check)

    def helm(
        self, *args: str, stdin: str = "", timeout_s: float = 300, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run helm as administrator; the arguments and errors are those of `kubectl`."""
        return self._run("helm", args, stdin, timeout_s, check)

    def get(self, *args: str) -> Any:
        """Parsed answer of `kubectl get ... -o json`."""
        return json.loads(self.kubectl("get", *args, "-o", "json").stdout)

    def apply(self, manifest: str, *args: str, check: bool = True) -> str:
        """Apply a YAML or JSON text server-side; returns what kubectl says, errors included."""
        command = ["apply", "--server-side", "-f", "-", *args]
        done = self.kubectl(*command, stdin=manifest, check=check)
        return done.stdout + done.stderr

    def _run(
        self, program: str, args: tuple[str, ...], stdin: str, timeout_s: float, check: bool
    ) -> subprocess.CompletedProcess[str]:
        return run(
            [self.bin_dir / program, *args],
            stdin=stdin,
            timeout_s=timeout_s,
            env=self.environment(),
            check=check,
        )


def environment(kubeconfig: Path, bin_dir: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Build the variables: KUBECONFIG, PATH and, behind a proxy, an exception for the cluster."""
    found = {"KUBECONFIG": str(kubeconfig), "PATH": search_path(bin_dir)}
    if any(env.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        spared = [env.get("NO_PROXY", "") or env.get("no_proxy", ""), "172.16.0.0/12", "127.0.0.1"]
        found["NO_PROXY"] = found["no_proxy"] = ",".join(filter(None, spared))
    return found


def export_lines(kubeconfig: Path, bin_dir: Path, env: Mapping[str, str]) -> list[str]:
    """Lines for a POSIX shell that lead kubectl and helm to the cluster."""
    lines = []
    for name, value in environment(kubeconfig, bin_dir, env).items():
        if name == "PATH":
            lines.append(f'export PATH={shlex.quote(str(bin_dir))}:"$PATH"')
        else:
            lines.append(f"export {name}={shlex.quote(value)}")
    return lines
