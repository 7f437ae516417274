"""Which files `duckmesh ingest` sends, and to which tables: files, folders, patterns, standard input."""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from duckmesh_runtime.cli.files import FORMATS, BadFile, DataFile, format_of, open_file, table_name

STANDARD_INPUT: Final = "-"
_MAGIC: Final = "*?["


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file and where its rows go."""

    file: DataFile
    table: str


@contextmanager
def find_sources(
    named: Sequence[str], table: str | None, file_format: str | None, nulls: Sequence[str]
) -> Iterator[list[Source]]:
    """The files that arguments name, in their order, those of a folder or pattern by name.

    A folder's files, also in folders below, go to the table of its name, all others to the table of their own name,
    unless `table` says one. Standard input is kept in a temporary file as long as this is open: rows are sent in
    pieces, and their keys are made of all of them.

    Raises:
        BadFile: Nothing is there, or of no known format.
    """
    with tempfile.TemporaryDirectory(prefix="duckmesh-") as folder:
        found: list[Source] = []
        for name in named:
            if name == STANDARD_INPUT:
                found.append(_standard_input(Path(folder), table, file_format, nulls))
                continue
            for path, its_table in _paths(name, file_format):
                file = open_file(path, file_format, nulls)
                found.append(Source(file=file, table=table or its_table))
        yield found


def _paths(name: str, file_format: str | None) -> Iterator[tuple[Path, str]]:
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if _is_data(one, path, file_format))
        if not files:
            raise BadFile(f"{name}: has no data files ({', '.join(FORMATS)})")
        yield from ((one, table_name(path.resolve())) for one in files)
    elif not path.exists() and any(sign in name for sign in _MAGIC):
        files = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
        files = [one for one in files if one.is_file()]
        if not files:
            raise BadFile(f"{name}: no file is called so")
        yield from ((one, table_name(one)) for one in files)
    else:
        yield path, table_name(path)


def _is_data(path: Path, folder: Path, file_format: str | None) -> bool:
    """Whether a file below a folder is meant: not hidden, nor of the kind that engines leave beside data."""
    inside = path.relative_to(folder).parts
    if any(part.startswith((".", "_")) for part in inside) or not path.is_file():
        return False
    return format_of(path) in ((file_format,) if file_format else FORMATS)


def _standard_input(
    folder: Path, table: str | None, file_format: str | None, nulls: Sequence[str]
) -> Source:
    if file_format is None:
        raise BadFile(f"-: standard input has no name: pass --format {'|'.join(FORMATS)}")
    if table is None:
        raise BadFile("-: standard input has no name: pass --table")
    path = folder / "standard input"
    with path.open("wb") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
    return Source(file=open_file(path, file_format, nulls), table=table)
