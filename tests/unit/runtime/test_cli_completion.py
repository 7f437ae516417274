"""Completion in a real bash, and scripts for the other shells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from duckmesh_runtime.__main__ import main

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["duckmesh", "da"], []),
        (["duckmesh", "sna"], ["snapshots"]),
        (["duckmesh", "tables", "d"], ["describe", "drop"]),
        (["duckmesh", "query", "--output", "p"], ["parquet"]),
        (["kubectl-duckmesh", "--tenant", "shop", "dead"], ["dead-letters"]),
    ],
    ids=" ".join,
)
def test_bash_completes_both_programs(words: list[str], offered: list[str]) -> None:
    shown = " ".join(f"'{word}'" for word in words)
    script = (
        "source <(duckmesh completion bash)\n"
        f"COMP_WORDS=({shown}) COMP_CWORD={len(words) - 1}\n"
        f'function="$(complete -p {words[0]})"; function="${{function#*-F }}"\n'
        f"${{function%% *}} {words[0]}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )

    run = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={"PATH": f"{BIN}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (run.stdout.split(), run.stderr) == (offered, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_for_both_programs(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])

    assert result.exit_code == 0
    assert "_DUCKMESH_COMPLETE=" + shell in result.stdout
    assert "_KUBECTL_DUCKMESH_COMPLETE=" + shell in result.stdout
