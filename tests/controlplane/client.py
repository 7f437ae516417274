"""A plain client of the API server for tests: every verb, server-side apply, and a watch that never loses an object."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from duckmesh_operator.names import Kind

Manifest = dict[str, Any]

MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
NAMESPACE: Final = Kind(api_version="v1", kind="Namespace", plural="namespaces")
CRD: Final = Kind(
    api_version="apiextensions.k8s.io/v1",
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
)
_PAGE: Final = "500"


class ApiError(AssertionError):
    """An answer that was not the one wanted.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, what: str, body: Mapping[str, Any]) -> None:
        super().__init__(f"{what}: {status} {body.get('reason')} {body.get('message')}")
        self.status = status


class Client:
    """One administrator's connection; made by `connect`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Manifest:
        """The decoded answer.

        Raises:
            ApiError: It is not a success.
        """
        async with self._session.request(
            method,
            self._url + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type, "Accept": "application/json"},
        ) as answer:
            text = await answer.text()
            loaded: Manifest = json.loads(text) if text.startswith("{") else {"message": text}
            if answer.status >= 300:
                raise ApiError(answer.status, f"{method} {path}", loaded)
            return loaded

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """One object, None when there is none."""
        try:
            return await self.call("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def list(
        self, kind: Kind, namespace: str | None = None, labels: str = ""
    ) -> list[Manifest]:
        """All objects, each with apiVersion and kind."""
        return (await self._list(kind, namespace, labels))[0]

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        path = kind.path(manifest["metadata"].get("namespace"))
        return await self.call("POST", path, _typed(kind, manifest))

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Server-side apply as a person would, by force."""
        meta = manifest["metadata"]
        return await self.call(
            "PATCH",
            kind.path(meta.get("namespace"), meta["name"]),
            _typed(kind, manifest),
            content_type=APPLY,
            fieldManager="person",
            force="true",
        )

    async def patch(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        patch: Manifest,
        *,
        subresource: str = "",
        manager: str = "person",
    ) -> Manifest:
        path = kind.path(namespace, name, subresource)
        return await self.call("PATCH", path, patch, content_type=MERGE, fieldManager=manager)

    async def delete(self, kind: Kind, namespace: str | None, name: str, **query: str) -> None:
        """Delete; that it is gone already is fine."""
        try:
            await self.call("DELETE", kind.path(namespace, name), **query)
        except ApiError as error:
            if error.status != 404:
                raise

    async def make_namespace(self, name: str) -> None:
        await self.apply(NAMESPACE, {"metadata": {"name": name}})

    async def watch(
        self, kind: Kind, namespace: str | None = None, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Every object that is there, as ADDED, then every change, until cancelled."""
        while True:
            found, version = await self._list(kind, namespace, labels)
            for item in found:
                yield "ADDED", item
            async for event, item in self._changes(kind, namespace, labels, version):
                yield event, item

    async def _changes(
        self, kind: Kind, namespace: str | None, labels: str, version: str
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Changes after a version, until the server ends the stream or no longer knows the version."""
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "600"}
        query |= {"labelSelector": labels} if labels else {}
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.get(
                self._url + kind.path(namespace), params=query, timeout=timeout
            ) as stream:
                stream.raise_for_status()  # refused, say while a new CRD is not served everywhere yet
                async for line in stream.content:
                    event = json.loads(line)
                    if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
                        return
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.2)

    async def _list(
        self, kind: Kind, namespace: str | None, labels: str
    ) -> tuple[list[Manifest], str]:
        query = {"limit": _PAGE} | ({"labelSelector": labels} if labels else {})
        found: list[Manifest] = []
        while True:
            page = await self.call("GET", kind.path(namespace), **query)
            found += [_typed(kind, item) for item in page["items"]]
            if not (more := page["metadata"].get("continue")):
                return found, page["metadata"]["resourceVersion"]
            query["continue"] = more


@asynccontextmanager
async def connect(url: str, tls: ssl.SSLContext) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    # An object with all its managed fields is one line of a watch.
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**24) as session:
        yield Client(session, url)


def _typed(kind: Kind, item: Manifest) -> Manifest:
    return {"apiVersion": kind.api_version, "kind": kind.kind} | item
