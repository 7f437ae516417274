"""The walls of the repository stand: member roots, layers, and who may import which outside library."""

from __future__ import annotations

import ast
import operator
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MEMBERS = {
    "client": "duckmesh",
    "operator": "duckmesh_operator",
    "runtime": "duckmesh_runtime",
}
RUNTIME = ROOT / "runtime" / "duckmesh_runtime"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

# One import per contract that must break it: file -> line.
PLANTS = {
    "the two packages never import each other": (
        "runtime/duckmesh_runtime/log.py",
        "duckmesh_operator",
    ),
    "the client stands alone": ("client/duckmesh/errors.py", "duckmesh_runtime.errors"),
    "operator layers": ("operator/duckmesh_operator/names.py", "duckmesh_operator.plan"),
    "runtime layers": ("runtime/duckmesh_runtime/domain/tokens.py", "duckmesh_runtime.ports"),
    "the sandbox knows the domain and nothing else of the runtime": (
        "runtime/duckmesh_runtime/sandbox/__init__.py",
        "duckmesh_runtime.adapters.postgres",
    ),
    "kopf only in handlers and __main__": ("operator/duckmesh_operator/plan.py", "kopf"),
    "Postgres and DuckDB only in their adapters": (
        "runtime/duckmesh_runtime/services/__init__.py",
        "asyncpg",
    ),
    "web speaks HTTP, not SQL": ("runtime/duckmesh_runtime/web/auth.py", "duckdb"),
    "Postgres only in the operator's catalog module": (
        "operator/duckmesh_operator/queue.py",
        "asyncpg",
    ),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_root_holds_one_package_and_no_module(member: str) -> None:
    packages = [p.name for p in (ROOT / member).iterdir() if (p / "__init__.py").exists()]

    assert not list((ROOT / member).glob("*.py"))
    assert packages == [MEMBERS[member]]


def test_operator_is_the_standard_librarys_from_the_root() -> None:
    code = "import operator, collections; print(operator.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert Path(operator.__file__).is_relative_to(sysconfig.get_path("stdlib"))
    assert Path(run.stdout.strip()).is_relative_to(sysconfig.get_path("stdlib"))


def modules_with(library: str) -> set[str]:
    """Runtime modules that import a library or a part of it, by path inside the package."""
    return {
        path.relative_to(RUNTIME).as_posix()
        for path in RUNTIME.rglob("*.py")
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_web_serves_http() -> None:
    assert modules_with("aiohttp.web")
    assert all(name.startswith("web/") for name in modules_with("aiohttp.web"))


def test_only_the_start_of_a_process_reads_the_environment() -> None:
    readers = {
        path.relative_to(RUNTIME).as_posix()
        for path in RUNTIME.rglob("*.py")
        if "os.environ" in path.read_text() or "os.getenv" in path.read_text()
    }

    assert readers <= {"__main__.py", "dev/services.py"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    only_code = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for member in MEMBERS:
        shutil.copytree(ROOT / member, folder / member, ignore=only_code)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> str:
    """What import-linter says about a tree."""
    run = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ":".join(str(folder / member) for member in MEMBERS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return run.stdout + run.stderr


def test_each_contract_has_its_planted_violation() -> None:
    assert set(PLANTS) == {contract["name"] for contract in CONTRACTS}


def test_the_tree_keeps_its_contracts(copy: Path) -> None:
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in lint(copy)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_import_breaks_its_contract(copy: Path, name: str) -> None:
    file, module = PLANTS[name]
    path = copy / file
    before = path.read_text()
    try:
        path.write_text(f"{before}\nimport {module}\n")
        said = lint(copy)
    finally:
        path.write_text(before)

    assert f"{name} BROKEN" in said
