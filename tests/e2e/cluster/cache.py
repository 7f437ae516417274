"""Artefacts kept by content: each has a key made of everything that goes into it.

An artefact is a folder `artefacts/<name>-<key>` with its files and a `record.json` that
holds the SHA-256 of each file. It appears in one rename, and its files are compared with
the record before every use: what was cut short, changed or damaged is made again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final

from tests.e2e.cluster.progress import say

RECORD: Final = "record.json"


def content_key(recipe: Iterable[str], files: Iterable[Path] = ()) -> str:
    """Name everything that decides what an artefact is, in 16 hex digits.

    Args:
        recipe: flags, versions, names; their order counts.
        files: sources; their names and contents count, not their folders or times.
    """
    digest = hashlib.sha256()
    parts = [("recipe", text.encode()) for text in recipe]
    parts += [(path.name, path.read_bytes()) for path in sorted(files)]
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, outputs: Sequence[str]) -> bool:
    """Whether the folder has a record and all outputs are as recorded."""
    try:
        recorded = json.loads((folder / RECORD).read_text())["sha256"]
        with ThreadPoolExecutor(2) as pool:
            found = dict(
                zip(
                    outputs, pool.map(lambda name: file_sha256(folder / name), outputs), strict=True
                )
            )
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(found == recorded)


def ensure(
    cache: Path, name: str, key: str, outputs: Sequence[str], make: Callable[[Path], None]
) -> Path:
    """Return the folder of an artefact, making it first when it is missing or damaged.

    Args:
        cache: the cache folder; the caller holds `lock(cache, ...)`.
        name: name of the artefact; its folders with other keys are removed.
        key: result of `content_key`.
        outputs: names of all files of the artefact.
        make: writes the outputs into the empty folder it is given.
    """
    folder = cache / "artefacts" / f"{name}-{key}"
    if verify(folder, outputs):
        return folder
    if folder.exists():
        say(f"the cached {name} is not what was recorded when it was made: making it again")
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as made:
        work = Path(made, "work")
        work.mkdir()
        make(work)
        digests = {output: file_sha256(work / output) for output in outputs}
        (work / RECORD).write_text(json.dumps({"key": key, "sha256": digests}, indent=2) + "\n")
        work.rename(folder)
    for old in folder.parent.glob(f"{name}-{'[0-9a-f]' * 16}"):
        if old != folder:
            shutil.rmtree(old)
    return folder


def link(target: Path, place: Path) -> None:
    """Point the symbolic link `place` at `target`, in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(place)


@contextmanager
def lock(cache: Path, name: str) -> Iterator[None]:
    """Hold a lock among processes; waits for the one that has it and says so."""
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another command that is using the {name}")
            flock(file, LOCK_EX)
        yield
