"""The tenant's part of the object store: Parquet for the read proxy, staged files taken back. The only user of obstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from duckmesh_runtime.errors import Corrupt, Unavailable
from duckmesh_runtime.settings import StoreSettings, read_secret

_TIMEOUT: Final = timedelta(seconds=10)
_BATCH: Final = 500
"""Objects that are removed at once; S3 takes 1,000."""

_MISSING: Final = "a file of the snapshot is missing in the store: restore it, or a backup"


class StoreObjects:
    """`ports.ObjectStore` over S3 or a folder; credentials are read when it is made and again after a refusal."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._store = _open(settings)

    async def size(self, path: str) -> int:
        """Size in bytes.

        Raises:
            Corrupt: DATA_FILE_MISSING.
            Unavailable: STORAGE_UNAVAILABLE.
        """
        with self._errors():
            return int((await obstore.head_async(self._store, path))["size"])

    async def read(self, path: str, start: int, length: int) -> bytes:
        """Bytes `start .. start+length`, shorter at the end; raises as `size`."""
        with self._errors():
            return bytes(
                await obstore.get_range_async(self._store, path, start=start, length=length)
            )

    async def remove(self, path: str) -> None:
        """Remove a file that nothing names; one that is not there is fine.

        Raises:
            Unavailable: STORAGE_UNAVAILABLE.
        """
        with suppress(Corrupt), self._errors():
            await obstore.delete_async(self._store, path)

    async def remove_all(self) -> int:
        """Remove everything in the lake's folder; returns how many objects that were.

        Raises:
            Corrupt: DATA_FILE_MISSING, there is no such bucket.
            Unavailable: STORAGE_UNAVAILABLE.
        """
        removed = 0
        with self._errors():
            while paths := await _first_paths(self._store):
                await obstore.delete_async(self._store, paths)
                removed += len(paths)
        return removed

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise Corrupt("DATA_FILE_MISSING", _MISSING) from error
        except (BaseError, OSError) as error:
            self._store = _open(self._settings)  # a rotated key shows as a refusal
            raise Unavailable(
                "STORAGE_UNAVAILABLE",
                "the object store does not answer: repeat the request",
                retry_after_s=1,
            ) from error


async def _first_paths(store: S3Store | LocalStore) -> list[str]:
    async for batch in obstore.list(store, chunk_size=_BATCH):
        return [each["path"] for each in batch]
    return []


def _open(settings: StoreSettings) -> S3Store | LocalStore:
    url = urlsplit(settings.url)
    if url.scheme == "file":
        return LocalStore(Path(unquote(url.path)), mkdir=True)
    key_id = secret = None
    if settings.secret_dir is not None:
        key_id = read_secret(settings.secret_dir, "access-key-id")
        secret = read_secret(settings.secret_dir, "secret-access-key")
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
