"""DuckDB with its extensions, which are signed wheels, loaded by path; nothing is ever fetched.

DuckDB checks a signature by hashing the whole file at each load: half a second of a core for all three. One check is
enough for a process: the file stays mapped, and a later load of the same file runs the code that was checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import duckdb

_checked: Final[set[tuple[str, int, int, int]]] = set()
"""Path, inode, size and time of change (ns) of each file whose signature this process has checked."""


@cache
def extension_path(name: str) -> str:
    """File of the installed extension wheel `duckdb-extension-<name>`."""
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package duckdb-extension-{name.replace('_', '-')} is missing")
    folder = Path(spec.submodule_search_locations[0]) / "extensions"
    (file,) = folder.glob(f"v*/{name}.duckdb_extension")
    return str(file)


def connect(
    extensions: Sequence[str],
    config: Mapping[str, str | bool | int],
    *,
    database: str = ":memory:",
    checked: bool = False,
) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB of its own with the extensions loaded; no unsigned one can be loaded into it afterwards.

    Args:
        extensions: Names of extension wheels, dependencies first.
        config: DuckDB's settings.
        database: A file, or memory.
        checked: Another process of this file system has checked the signatures.

    Raises:
        duckdb.Error: A file is damaged or not signed by DuckDB.
    """
    files = [extension_path(name) for name in extensions]
    marks = {_mark(file) for file in files}
    connection = duckdb.connect(
        database,
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_unsigned_extensions": checked or marks <= _checked,
            **config,
        },
    )
    try:
        for file in files:
            connection.load_extension(file)
        connection.execute("SET allow_unsigned_extensions = false")  # cannot be taken back
    except BaseException:
        connection.close()
        raise
    _checked.update(marks)
    return connection


def _mark(file: str) -> tuple[str, int, int, int]:
    found = Path(file).stat()
    return file, found.st_ino, found.st_size, found.st_mtime_ns
