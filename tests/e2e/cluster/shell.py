"""Start programs: the only place where this package does so."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.e2e.cluster.settings import ClusterError

TAIL_CHARS: Final = 1500
# Debian keeps ip, nft, runc and debootstrap where only root's PATH has them.
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path(*first: Path) -> str:
    """PATH with the given folders in front and the system's folders at the end."""
    return os.pathsep.join([*map(str, first), os.environ.get("PATH", ""), SYSTEM_PATH])


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float = 120,
    stdin: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with its output captured.

    Args:
        command: program and arguments; the program is looked up in `search_path()`.
        timeout_s: the program is killed after this time.
        stdin: text for its standard input.
        cwd: working directory.
        env: variables on top of this process's environment.
        check: whether a non-zero exit is an error.

    Raises:
        ClusterError: the program is missing, took too long, or failed and `check` is set;
            the message ends with the last of its output.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            cwd=cwd,
            env={**os.environ, "PATH": search_path(), **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{_shown(words)} took more than {timeout_s:.0f} s") from error
    if check and done.returncode != 0:
        tail = (done.stderr.strip() or done.stdout.strip())[-TAIL_CHARS:]
        raise ClusterError(f"{_shown(words)} failed with exit code {done.returncode}:\n{tail}")
    return done


def succeeds(command: Sequence[str | Path], *, timeout_s: float = 20) -> bool:
    """Whether the program is there and ends with exit code 0 in time."""
    try:
        return run(command, timeout_s=timeout_s, check=False).returncode == 0
    except ClusterError:
        return False


def _shown(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= 160 else text[:157] + "..."
