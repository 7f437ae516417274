"""The read proxy serves the files of frozen catalogs and nothing else, however it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.settings import StoreSettings
from duckmesh_runtime.web.proxy import ReadProxy

FILE = "main/t/data.parquet"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "main" / "t").mkdir(parents=True)
    (data / FILE).write_bytes(CONTENT)
    (data / "main" / "t" / "other.parquet").write_bytes(b"other")
    (tmp_path / "secret").write_text("secret")
    return data


@pytest.fixture
async def proxy(folder: Path) -> AsyncIterator[ReadProxy]:
    made = ReadProxy(StoreObjects(StoreSettings(url=f"{folder.as_uri()}/")))
    await made.start()
    made.allow({FILE: len(CONTENT)})
    yield made
    await made.close()


async def ask(
    proxy: ReadProxy, target: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One raw request: no client library tidies the path."""
    port = int(proxy.data_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in rest)
    return int(first.split()[1]), found, body


async def test_whole_files_and_ranges(proxy: ReadProxy) -> None:
    assert (await ask(proxy, f"/lake/{FILE}"))[2] == CONTENT
    status, headers, body = await ask(proxy, f"/lake/{FILE}", Range="bytes=10-19")
    assert (status, body) == (206, CONTENT[10:20])
    assert headers["content-range"] == f"bytes 10-19/{len(CONTENT)}"
    assert (await ask(proxy, f"/lake/{FILE}", Range="bytes=10200-"))[2] == CONTENT[10200:]
    assert (await ask(proxy, f"/lake/{FILE}", Range=f"bytes={len(CONTENT)}-"))[0] == 416


async def test_head_tells_the_size_without_the_store(proxy: ReadProxy, folder: Path) -> None:
    (folder / FILE).unlink()

    status, headers, body = await ask(proxy, f"/lake/{FILE}", "HEAD")

    assert (status, headers["content-length"], body) == (200, str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/lake/",
        "/lake/main/t/other.parquet",
        "/lake/../secret",
        "/lake/main/t/../t/data.parquet",
        "/lake/main//t/data.parquet",
        "/lake//main/t/data.parquet",
        "//lake/main/t/data.parquet",
        "/lake/main/t/data.parquet/",
        "/lake/main/t/data.parquet?x=1",
        "/lake/main/t/data.parquet%00",
        "/lake/main%2ft/data.parquet",
        "/lake/%6dain/t/data.parquet",
        "/lake/%2e%2e/secret",
        "/LAKE/main/t/data.parquet",
        "/main/t/data.parquet",
        "http://127.0.0.1/lake/../secret",
        "/lake/main/t/*.parquet",
    ],
)
async def test_every_other_path_is_the_same_404(proxy: ReadProxy, target: str) -> None:
    status, _, body = await ask(proxy, target)

    assert (status, body) == (404, b"")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "OPTIONS", "PROPFIND"])
async def test_only_reading(proxy: ReadProxy, folder: Path, method: str) -> None:
    assert (await ask(proxy, f"/lake/{FILE}", method))[0] in (400, 405)
    assert (folder / FILE).read_bytes() == CONTENT


async def test_a_file_lives_as_long_as_someone_holds_it(proxy: ReadProxy) -> None:
    proxy.allow({FILE: len(CONTENT)})
    proxy.release({FILE: len(CONTENT)})
    assert (await ask(proxy, f"/lake/{FILE}"))[0] == 200

    proxy.release({FILE: len(CONTENT)})

    assert (await ask(proxy, f"/lake/{FILE}"))[0] == 404


async def test_a_lost_file_and_a_short_file_are_told_apart_from_a_foreign_one(
    proxy: ReadProxy, folder: Path
) -> None:
    (folder / FILE).write_bytes(CONTENT[:100])
    assert (await ask(proxy, f"/lake/{FILE}", Range="bytes=50-200"))[0] == 410

    (folder / FILE).unlink()

    assert (await ask(proxy, f"/lake/{FILE}", Range="bytes=0-9"))[0] == 410
