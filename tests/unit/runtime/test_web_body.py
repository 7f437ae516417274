"""The memory of request bodies is bounded by what they become, not by what was sent."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from duckmesh_runtime.errors import DuckmeshError
from duckmesh_runtime.web.body import BodyBudget
from tests.fuzz import examples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.mark.parametrize(
    ("growth", "said"),
    [
        pytest.param(1, "600 bytes", id="columns stay what they are"),
        pytest.param(24, "OVERLOADED", id="JSON grows"),
        pytest.param(1_000_000, "OVERLOADED", id="grows past all memory"),
    ],
)
async def test_a_body_counts_as_what_it_becomes(growth: int, said: str) -> None:
    budget = BodyBudget(1_000, total_bytes=4_000)

    answer = await _post(budget, b"x" * 600, growth)

    assert said in answer
    assert budget.used_bytes == 0


async def test_the_largest_body_is_one_of_sent_bytes() -> None:
    budget = BodyBudget(1_000, total_bytes=10**9)

    assert "1000 bytes" in await _post(budget, b"x" * 1_000, 24)
    assert "PAYLOAD_TOO_LARGE" in await _post(budget, b"x" * 1_001, 24)


PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress}
packed = pytest.mark.parametrize(("encoding", "pack"), PACKERS.items(), ids=PACKERS)
Pack = Callable[[bytes], bytes]


@packed
async def test_a_compressed_body_counts_decompressed(encoding: str, pack: Pack) -> None:
    budget = BodyBudget(3_000_000)

    assert "3000000 bytes" in await _post(budget, pack(b"x" * 3_000_000), encoding=encoding)
    assert "PAYLOAD_TOO_LARGE" in await _post(budget, pack(b"x" * 3_000_001), encoding=encoding)
    assert budget.used_bytes == 0


@packed
async def test_several_streams_are_one_body(encoding: str, pack: Pack) -> None:
    body = b"".join(pack(bytes([i]) * 1000) for i in range(50))

    assert "50000 bytes" in await _post(BodyBudget(10**6), body, encoding=encoding)


@packed
async def test_too_many_streams_are_refused(encoding: str, pack: Pack) -> None:
    assert "VALIDATION_FAILED" in await _post(
        BodyBudget(10**6), pack(b"") * 10_001, encoding=encoding
    )


@packed
@pytest.mark.parametrize("damage", ["cut", "nothing", "other", "garbage behind"])
async def test_a_broken_stream_is_refused(encoding: str, pack: Pack, damage: str) -> None:
    whole = pack(b"x" * 1000)
    body = {"cut": whole[:-1], "nothing": b"", "other": b"{}", "garbage behind": whole + b"{}"}

    assert "VALIDATION_FAILED" in await _post(BodyBudget(10**6), body[damage], encoding=encoding)


@packed
async def test_a_bomb_is_refused_at_the_limit(encoding: str, pack: Pack) -> None:
    bomb = pack(bytes(200_000_000))
    if encoding == "zstd":
        assert len(bomb) < 20_000  # 1:10,000

    assert "PAYLOAD_TOO_LARGE" in await _post(BodyBudget(10**6), bomb, encoding=encoding)


@pytest.mark.parametrize("encoding", ["gzip, zstd", "zstd, zstd", "zstd,gzip", "br", "deflate"])
async def test_one_known_encoding_is_taken(encoding: str) -> None:
    body = zstd.compress(gzip.compress(b"x"))

    assert "UNSUPPORTED_MEDIA_TYPE" in await _post(BodyBudget(10**6), body, encoding=encoding)


async def test_a_zstd_window_beyond_what_http_allows_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 24}
    packer = zstd.ZstdCompressor(options=options)

    body = packer.compress(b"x" * 1000) + packer.flush()

    assert "VALIDATION_FAILED" in await _post(BodyBudget(10**6), body, encoding="zstd")


@given(
    st.binary(max_size=300),
    st.sampled_from(sorted(PACKERS)),
    st.integers(0, 10**6),
    st.integers(0, 255),
)
@settings(max_examples=examples(20), deadline=None)
async def test_damage_never_gets_past(body: bytes, encoding: str, at: int, byte: int) -> None:
    sent = bytearray(PACKERS[encoding](body))
    sent[at % len(sent)] = byte

    answer = await _post(BodyBudget(10**6), bytes(sent), encoding=encoding)

    assert answer.endswith(" bytes") or answer in ("VALIDATION_FAILED", "PAYLOAD_TOO_LARGE")


async def _post(
    budget: BodyBudget, body: bytes, growth: int = 1, *, encoding: str | None = None
) -> str:
    async def handler(request: web.Request) -> web.Response:
        try:
            async with budget.read(request, growth=growth) as read:
                return web.Response(text=f"{len(read)} bytes")
        except DuckmeshError as error:
            return web.Response(text=error.code)

    app = web.Application()
    app.router.add_post("/", handler)
    headers = {} if encoding is None else {"Content-Encoding": encoding}
    server = TestServer(app)
    await server.start_server(auto_decompress=False)
    async with TestClient(server) as client, client.post("/", data=body, headers=headers) as answer:
        return await answer.text()
