"""The read proxy serves the files of frozen catalogs and nothing else, however it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from duckmesh_runtime.adapters.objects import StoreObjects
from duckmesh_runtime.settings import StoreSettings
from duckmesh_runtime.web import proxy as proxy_module
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


class CountingStore(StoreObjects):
    """Says how often it was read; answers while its gate is open."""

    def __init__(self, settings: StoreSettings) -> None:
        super().__init__(settings)
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, path: str, start: int, length: int) -> bytes:
        self.reads += 1
        await self.gate.wait()
        return await super().read(path, start, length)


@pytest.fixture
def store(folder: Path) -> CountingStore:
    return CountingStore(StoreSettings(url=f"{folder.as_uri()}/"))


@pytest.fixture
async def proxy(store: CountingStore) -> AsyncIterator[ReadProxy]:
    made = ReadProxy(store)
    await made.start()
    made.allow({FILE: len(CONTENT)})
    yield made
    await made.close()


async def connect(proxy: ReadProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(proxy.data_url.split(":")[2].split("/")[0])
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(
    proxy: ReadProxy, target: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One raw request: no client library tidies the path."""
    reader, writer = await connect(proxy)
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


async def test_a_connection_serves_many_requests_even_those_sent_ahead(proxy: ReadProxy) -> None:
    reader, writer = await connect(proxy)
    writer.write(
        f"GET /lake/{FILE} HTTP/1.1\r\nRANGE:bytes=0-1\r\n\r\nGET /lake/no HTTP/1.1\r\n\r\n"
        f"HEAD /lake/{FILE} HTTP/1.1\r\n\r\nGET /lake/{FILE} HTTP/1.0\r\n\r\n".encode()
    )

    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"206", b"404", b"200", b"200"]
    assert answer.endswith(CONTENT)


@pytest.mark.parametrize(
    "sent",
    [
        f"POST /lake/{FILE} HTTP/1.1\r\nContent-Length: 30\r\n\r\nGET /lake/{FILE} HTTP/1.1\r\n\r\n",
        f"GET /lake/{FILE} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"GET  /lake/{FILE} HTTP/1.1\r\n\r\n",
        f"GET /lake/{FILE} HTTP/2\r\n\r\n",
        f"GET /lake/{FILE}\r\n\r\n",
        f"GET /lake/{FILE} HTTP/1.1\r\nno colon\r\n\r\n",
        "\r\n\r\n",
    ],
)
async def test_what_is_no_plain_request_ends_the_connection(proxy: ReadProxy, sent: str) -> None:
    reader, writer = await connect(proxy)
    writer.write(sent.encode())

    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_head_without_end_is_not_kept(proxy: ReadProxy) -> None:
    reader, writer = await connect(proxy)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /lake/ HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_small_file_is_fetched_once(proxy: ReadProxy, store: CountingStore) -> None:
    for span in ("bytes=10000-", "bytes=0-99", "bytes=100-9999"):
        assert (await ask(proxy, f"/lake/{FILE}", Range=span))[0] == 206
    assert store.reads == 1

    proxy.release({FILE: len(CONTENT)})
    assert (await ask(proxy, f"/lake/{FILE}"))[0] == 404
    proxy.allow({FILE: len(CONTENT)})

    assert (await ask(proxy, f"/lake/{FILE}"))[2] == CONTENT
    assert store.reads == 2


async def test_small_files_are_kept_up_to_a_bound(
    proxy: ReadProxy, folder: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "_KEPT_BYTES", 2 * len(CONTENT))
    names = [f"main/t/{number}.parquet" for number in range(3)]
    for name in names:
        (folder / name).write_bytes(CONTENT)
    proxy.allow({name: len(CONTENT) for name in names})

    for name in (*names, names[2], names[1], names[0]):
        assert (await ask(proxy, f"/lake/{name}"))[2] == CONTENT

    assert store.reads == 4


async def test_files_of_a_scan_are_there_before_they_are_asked_for(
    proxy: ReadProxy, folder: Path, store: CountingStore
) -> None:
    names = _scanned(proxy, folder, 12)
    (folder / names[9]).unlink()

    for name in names[:4]:
        assert (await ask(proxy, f"/lake/{name}"))[2] == name.encode()
    await eventually(lambda: not proxy._coming)
    begun = store.reads
    assert begun > 4
    for name in names[4:begun]:
        (folder / name).unlink(missing_ok=True)

    found = [(await ask(proxy, f"/lake/{name}"))[::2] for name in names]

    assert found[9] == (410, b"")
    del found[9], names[9]
    assert found == [(200, name.encode()) for name in names]


async def test_a_file_that_is_taken_back_while_it_comes_is_not_kept(
    proxy: ReadProxy, store: CountingStore
) -> None:
    store.gate.clear()
    asking = asyncio.create_task(ask(proxy, f"/lake/{FILE}"))
    await eventually(lambda: store.reads > 0)

    proxy.release({FILE: len(CONTENT)})
    store.gate.set()
    assert (await asking)[2] == CONTENT
    proxy.allow({FILE: len(CONTENT)})

    assert (await ask(proxy, f"/lake/{FILE}"))[2] == CONTENT
    assert store.reads == 2


async def test_two_who_ask_for_a_file_at_once_fetch_it_once(
    proxy: ReadProxy, store: CountingStore
) -> None:
    store.gate.clear()
    first, second = (asyncio.create_task(ask(proxy, f"/lake/{FILE}")) for _ in range(2))
    await eventually(lambda: len(proxy._connections) == 2 and store.reads > 0)
    store.gate.set()

    assert (await first)[2] == (await second)[2] == CONTENT
    assert store.reads == 1


async def test_closing_ends_what_is_fetched_ahead(proxy: ReadProxy, store: CountingStore) -> None:
    store.gate.clear()
    asking = asyncio.create_task(ask(proxy, f"/lake/{FILE}"))
    await eventually(lambda: store.reads > 0)

    async with asyncio.timeout(60):
        await proxy.close()

    assert not proxy._coming
    with contextlib.suppress(ConnectionError, IndexError, ValueError):
        await asking


def _scanned(proxy: ReadProxy, folder: Path, count: int) -> list[str]:
    """Files of one table, which hold their names."""
    names = [f"main/s/{number:02}.parquet" for number in range(count)]
    (folder / "main" / "s").mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    proxy.allow({name: len(name) for name in names})
    return names


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_large_file_comes_in_parts(
    proxy: ReadProxy, folder: Path, store: CountingStore
) -> None:
    large = bytes(range(256)) * 40_000  # 10 MB
    (folder / "large.parquet").write_bytes(large)
    proxy.allow({"large.parquet": len(large)})

    assert (await ask(proxy, "/lake/large.parquet"))[2] == large
    assert (await ask(proxy, "/lake/large.parquet", Range="bytes=9-5000008"))[2] == large[9:5000009]
    assert store.reads == 3 + 2


async def test_a_file_that_ends_in_the_middle_breaks_the_answer_off_and_is_told_when_asked_again(
    proxy: ReadProxy, folder: Path
) -> None:
    (folder / "large.parquet").write_bytes(bytes(6 * 2**20))
    proxy.allow({"large.parquet": 10 * 2**20})

    with contextlib.suppress(ConnectionError):
        _, headers, body = await ask(proxy, "/lake/large.parquet")
        assert len(body) < int(headers["content-length"])
    assert (await ask(proxy, "/lake/large.parquet"))[0] == 410

    (folder / "large.parquet").write_bytes(bytes(10 * 2**20))
    assert len((await ask(proxy, "/lake/large.parquet"))[2]) == 10 * 2**20


async def test_who_takes_nothing_does_not_keep_others_from_their_files(
    proxy: ReadProxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "_STALLED_S", 0.2)
    (folder / "large.parquet").write_bytes(bytes(50 * 2**20))
    proxy.allow({"large.parquet": 50 * 2**20})
    stalled = [await connect(proxy) for _ in range(proxy_module._CHUNKS)]
    for _, writer in stalled:
        writer.write(b"GET /lake/large.parquet HTTP/1.1\r\n\r\n")

    assert (await ask(proxy, f"/lake/{FILE}"))[2] == CONTENT
    for _, writer in stalled:
        writer.close()


async def test_no_more_connections_than_slots_need(
    proxy: ReadProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "_CONNECTIONS", 2)
    first, second = await connect(proxy), await connect(proxy)
    third, writer = await connect(proxy)
    assert await asyncio.wait_for(third.read(), 10) == b""
    writer.close()

    for _, open_writer in (first, second):
        open_writer.close()
        await open_writer.wait_closed()
    async with asyncio.timeout(10):
        while proxy._connections:
            await asyncio.sleep(0)
    assert (await ask(proxy, f"/lake/{FILE}"))[0] == 200


async def test_closing_breaks_off_what_is_being_sent(proxy: ReadProxy, folder: Path) -> None:
    (folder / "large.parquet").write_bytes(bytes(50 * 2**20))
    proxy.allow({"large.parquet": 50 * 2**20})
    reader, writer = await connect(proxy)
    writer.write(b"GET /lake/large.parquet HTTP/1.1\r\n\r\n")
    await reader.readexactly(2**20)

    async with asyncio.timeout(10):
        await proxy.close()
        await proxy.close()

    assert not proxy._connections
    writer.close()
