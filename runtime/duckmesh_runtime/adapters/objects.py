"""The tenant's part of the object store: Parquet for the read proxy, staged files taken back. The only user of obstore."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.ports import StoredObject, StoreState
from duckmesh_runtime.settings import StoreSettings, read_secret

if TYPE_CHECKING:
    from obstore import ObjectMeta  # of its type stubs alone

T = TypeVar("T")
Store = S3Store | LocalStore
Pages = AsyncIterator["Sequence[ObjectMeta]"]

_TIMEOUT: Final = timedelta(seconds=10)
_PROBE_S: Final = 5.0
"""A store that takes longer for a few bytes is not well."""

_BATCH: Final = 500
"""Objects that are removed at once; S3 takes 1,000."""

_PAGE: Final = 1_000
"""Objects that are listed at once; S3 tells no more."""

_MISSING: Final = "a file of the snapshot is missing in the store: restore it, or a backup"
_REFUSED: Final = (PermissionDeniedError, UnauthenticatedError)
# What a crash leaves is no more than one small object, and orphaned files are cleaned up.
_PROBE: Final = "probe-health.parquet"
_CLOCK: Final = "probe-clock.parquet"
# S3's error code; a HEAD has no body to hold it.
_NO_BUCKET: Final = "NoSuchBucket"
# What obstore says of a range that begins where the object has ended: S3's answer, a folder's.
_PAST_END: Final = re.compile(r"status code: 416 |error: Requested range was invalid")


class StoreObjects:
    """`ports.ObjectStore` over S3 or a folder.

    The key is read when it is made and again after a refusal: a request that only met a rotated key is asked once more.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._key = _read_key(settings)
        self._store = _open(settings, self._key)

    async def size(self, path: str) -> int:
        """Size in bytes.

        Raises:
            Corrupt: DATA_FILE_MISSING.
            Unavailable: STORAGE_UNAVAILABLE.
        """
        found = await self._ask(lambda store: obstore.head_async(store, path))
        return int(found["size"])

    async def read(self, path: str, start: int, length: int) -> bytes:
        """Bytes `start .. start+length`, shorter at the end and none behind it; raises as `size`."""

        async def ask(store: Store) -> bytes:
            try:
                return bytes(await obstore.get_range_async(store, path, start=start, length=length))
            except GenericError as error:
                if _PAST_END.search(str(error)):
                    return b""
                raise

        return await self._ask(ask)

    async def remove(self, path: str) -> None:
        """Remove a file that nothing names; one that is not there is fine.

        Raises:
            Unavailable: STORAGE_UNAVAILABLE.
        """
        with suppress(Corrupt):
            await self._ask(lambda store: obstore.delete_async(store, path))

    async def objects(self) -> AsyncIterator[Sequence[StoredObject]]:
        """See `StoreInventory.objects`.

        Raises:
            Corrupt: DATA_FILE_MISSING, there is no such bucket.
            Unavailable: STORAGE_UNAVAILABLE.
        """
        page, pages = await self._ask(_begin_listing)
        while page:
            yield [
                StoredObject(path=each["path"], size=each["size"], changed_at=each["last_modified"])
                for each in page
            ]
            page = await self._ask(lambda _: _next_page(pages))

    async def now(self) -> datetime:
        """See `StoreInventory.now`.

        Raises:
            Unavailable: STORAGE_UNAVAILABLE.
        """

        async def ask(store: Store) -> datetime:
            await obstore.put_async(store, _CLOCK, b"")
            found = await obstore.head_async(store, _CLOCK)
            await obstore.delete_async(store, _CLOCK)
            changed_at: datetime = found["last_modified"]
            return changed_at

        return await self._ask(ask)

    async def remove_all(self) -> int:
        """Remove everything in the lake's folder; returns how many objects that were.

        Raises:
            Corrupt: DATA_FILE_MISSING, there is no such bucket.
            Unavailable: STORAGE_UNAVAILABLE.
        """
        removed = 0
        while paths := await self._ask(_first_paths):
            await self._ask(lambda store, paths=paths: obstore.delete_async(store, paths))  # type: ignore[misc]
            removed += len(paths)
        return removed

    async def state(self, *, write: bool) -> StoreState:
        """See `StoreProbe.state`."""

        async def look(store: Store) -> None:
            try:
                await obstore.get_async(store, _PROBE)
            except (NotFoundError, FileNotFoundError) as error:
                if _NO_BUCKET in str(error):
                    raise
            if write:
                await obstore.put_async(store, _PROBE, b"")
                await obstore.delete_async(store, _PROBE)

        try:
            async with asyncio.timeout(_PROBE_S):
                await self._ask(look)
        except Corrupt:
            return StoreState.BUCKET_MISSING
        except Unavailable as error:
            refused = isinstance(error.__cause__, _REFUSED)
            return StoreState.ACCESS_DENIED if refused else StoreState.UNREACHABLE
        except TimeoutError:
            return StoreState.UNREACHABLE
        return StoreState.OK

    async def _ask(self, call: Callable[[Store], Awaitable[T]]) -> T:
        key = self._key
        try:
            try:
                return await call(self._store)
            except _REFUSED:
                self._reopen()
                if self._key == key:  # no other call has found another one either
                    raise
                return await call(self._store)
        except (NotFoundError, FileNotFoundError) as error:
            raise Corrupt("DATA_FILE_MISSING", _MISSING) from error
        except (BaseError, OSError) as error:
            self._reopen()
            raise Unavailable(
                "STORAGE_UNAVAILABLE",
                "the object store does not answer: repeat the request",
                retry_after_s=1,
            ) from error

    def _reopen(self) -> None:
        """Connect anew with the key as it is now."""
        with suppress(OSError):  # it is being replaced: the old one until the next time
            self._key = _read_key(self._settings)
        self._store = _open(self._settings, self._key)


async def _begin_listing(store: Store) -> tuple[Sequence[ObjectMeta], Pages]:
    """The first page, which shows whether the key is good, and what gives the others."""
    pages = aiter(obstore.list(store, chunk_size=_PAGE))
    return await _next_page(pages), pages


async def _next_page(pages: Pages) -> Sequence[ObjectMeta]:
    try:
        return await anext(pages)
    except StopAsyncIteration:
        return ()


async def _first_paths(store: Store) -> list[str]:
    async for batch in obstore.list(store, chunk_size=_BATCH):
        return [each["path"] for each in batch]
    return []


def _read_key(settings: StoreSettings) -> tuple[str, str] | None:
    if settings.secret_dir is None:
        return None
    folder = settings.secret_dir
    return read_secret(folder, "access-key-id"), read_secret(folder, "secret-access-key")


def _open(settings: StoreSettings, key: tuple[str, str] | None) -> Store:
    url = urlsplit(settings.url)
    if url.scheme == "file":
        return LocalStore(Path(unquote(url.path)), mkdir=True)
    key_id, secret = key or (None, None)
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/"),
        region=settings.region,
        endpoint=settings.endpoint or None,
        virtual_hosted_style_request=not settings.endpoint,
        client_options={"allow_http": settings.endpoint.startswith("http://"), "timeout": _TIMEOUT},
        retry_config={"max_retries": 2, "retry_timeout": _TIMEOUT},
        access_key_id=key_id,
        secret_access_key=secret,
    )
