"""The signed extensions are checked once a process, and nothing unsigned is ever loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from duckmesh_runtime import extensions

NAME = "ducklake"
FORGED = 64  # bytes of the signature at the end that are not its own any more


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed extension in a file of its own, of which this process knows nothing."""
    file = tmp_path / f"{NAME}.duckdb_extension"
    shutil.copyfile(extensions.extension_path(NAME), file)
    monkeypatch.setattr(extensions, "extension_path", lambda name: str(file))
    monkeypatch.setattr(extensions, "_checked", set())
    return file


def forge(file: Path) -> None:
    """Replace it by another file, of the same size and age, that nobody signed."""
    before = file.stat()
    forged = file.with_suffix(".new")
    forged.write_bytes(file.read_bytes()[:-FORGED] + bytes(FORGED))
    os.utime(forged, ns=(before.st_atime_ns, before.st_mtime_ns))
    forged.replace(file)


def test_a_file_that_nobody_signed_is_not_loaded(wheel: Path) -> None:
    forge(wheel)

    with pytest.raises(duckdb.Error, match="signature"):
        extensions.connect([NAME], {})


def test_a_file_that_took_a_checked_one_s_place_is_checked(wheel: Path) -> None:
    extensions.connect([NAME], {}).close()
    forge(wheel)

    with pytest.raises(duckdb.Error, match="signature"):
        extensions.connect([NAME], {})


@pytest.mark.parametrize("checked", [False, True], ids=["by this process", "by another"])
def test_a_checked_file_is_loaded_again_and_an_unsigned_one_is_not(
    wheel: Path, checked: bool
) -> None:
    if not checked:
        extensions.connect([NAME], {}).close()
    unsigned = wheel.with_name("httpfs.duckdb_extension")
    shutil.copyfile(wheel, unsigned)
    forge(unsigned)

    connection = extensions.connect([NAME], {}, checked=checked)

    loaded = "SELECT loaded FROM duckdb_extensions() WHERE extension_name = $1"
    assert connection.execute(loaded, [NAME]).fetchall() == [(True,)]
    with pytest.raises(duckdb.Error, match="signature"):
        connection.load_extension(str(unsigned))
    with pytest.raises(duckdb.Error, match="allow_unsigned_extensions"):
        connection.execute("SET allow_unsigned_extensions = true")
    connection.close()
