from __future__ import annotations

import os
import threading
from concurrent.futures.thread import BrokenThreadPool
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from duckmesh_runtime import keeping
from duckmesh_runtime.adapters.lake_commit import CommitGuard
from duckmesh_runtime.settings import StoreSettings

pytestmark = pytest.mark.skipif(not keeping.supported(), reason="only Linux can be told so")


def test_a_bound_thread_removes_nothing_and_is_told_that_it_did(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")

    def remove() -> None:
        keeping.keep_files()
        file.unlink()
        os.remove(file)

    thread = threading.Thread(target=remove)
    thread.start()
    thread.join()

    assert file.read_text() == "kept"


def test_a_bound_thread_writes_and_moves_as_ever(tmp_path: Path) -> None:
    def write() -> None:
        keeping.keep_files()
        (tmp_path / "new").write_text("written")
        (tmp_path / "new").rename(tmp_path / "moved")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()

    assert (tmp_path / "moved").read_text() == "written"


def test_other_threads_are_not_bound(tmp_path: Path) -> None:
    thread = threading.Thread(target=keeping.keep_files)
    thread.start()
    thread.join()
    file = tmp_path / "file"
    file.write_text("")

    file.unlink()

    assert not file.exists()


def test_a_commit_is_not_tried_when_its_thread_cannot_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def prctl(self, option: int, *_: object) -> int:
            return 0 if option == keeping._GET_SECCOMP else -1

    monkeypatch.setattr(keeping, "_libc", Refusing())
    store = StoreSettings(url="file:///nowhere", endpoint="", region="", secret_dir=None)
    with closing(duckdb.connect()) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS one")
        connection.execute("BEGIN")
        connection.execute("DELETE FROM t")

        with pytest.raises(BrokenThreadPool):
            CommitGuard(store).commit(connection)

        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
