"""The API server: the only module that talks to it. Called by `cache`, `lease`, `canary` and `events`.

Plain JSON over the transport of `kubernetes.aio`, which brings credentials and TLS; its dynamic client would discover
every API group of the cluster at start, which our rights do not need. All requests share one token bucket and have a
time limit. What goes wrong is one of `errors`, by HTTP status.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from duckmesh_operator import metrics
from duckmesh_operator.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OperatorError,
    Unavailable,
)
from duckmesh_operator.manifest import Json, Manifest, list_at, number_at, object_at, text_at
from duckmesh_operator.names import CONFIG_MAP, FIELD_MANAGER, Kind, kind_of

logger = logging.getLogger(__name__)

REQUESTS_PER_SECOND: Final = 50.0
BURST: Final = 100
REQUEST_TIMEOUT_S: Final = 15.0
#: Pauses before what may be done twice is tried again at once. A reconcile is many requests: without, a server that
#: fails one in five would hardly let any through.
_AGAIN_S: Final = (0.1, 0.5)
_LONGEST_PAUSE_S: Final = 2.0
#: Objects on a page of a list: a Deployment has 10 KB on the wire and five times that in memory, and all kinds are
#: listed side by side at start.
_PAGE: Final = 100
#: The same of ConfigMaps: anyone may put our label on one of a megabyte.
_PAGE_CONFIG_MAPS: Final = 20
_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list.

    Attributes:
        version: `resourceVersion` of the moment that the whole list shows.
        items: Objects, each with apiVersion and kind.
    """

    version: str
    items: list[Manifest]


class Api(Protocol):
    """What the operator needs of an API server. Every call may raise any of `errors` but Invalid where not said."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object.

        Raises:
            NotFound: There is none.
        """

    async def list(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """All objects of a namespace (None: of the cluster) with these labels; each with apiVersion and kind."""

    def pages(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Page]:
        """The same page by page, as all were at one moment; one page at least."""

    async def create(self, manifest: Manifest) -> Manifest:
        """Make an object.

        Raises:
            Conflict: There is one of that name.
            Invalid: The API server refuses its content.
        """

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Server-side apply under our field manager, by force: what we say, we own.

        Raises:
            Invalid: The API server refuses its content.
            NotFound: A subresource of an object that is not there.
        """

    async def replace(self, manifest: Manifest) -> Manifest:
        """Put an object as a whole; its `resourceVersion` must be current.

        Raises:
            Conflict: Someone changed it meanwhile.
            Invalid: The API server refuses its content.
        """

    async def replace_spec(self, live: Manifest, spec: Json) -> Manifest:
        """Put another spec into a live object as it was read: what others added to it is gone.

        Raises:
            Conflict: Someone changed it meanwhile.
            Invalid: The API server refuses the spec.
        """

    async def set_finalizers(self, live: Manifest, finalizers: Sequence[str]) -> Manifest:
        """Give a live object as it was read these finalizers and no others.

        Raises:
            Conflict: Someone changed it meanwhile.
            NotFound: It is gone.
        """

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, wait: bool = False
    ) -> None:
        """Delete this very object, what it owns in the background; that it is gone already is fine.

        Args:
            kind: Of the object.
            namespace: Of the object.
            name: Of the object.
            uid: Of the object.
            wait: Let the object stay until its pods have ended, so that they can be waited for by it.

        Raises:
            Conflict: It is there still, and was not deleted.
        """


class TokenBucket:
    """Lets `burst` requests through at once and `rate` per second from then on; first come, first served.

    Args:
        rate: Requests per second.
        burst: Requests that may pass without waiting after a pause.
        clock: Seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._seen = clock()

    def reserve(self) -> float:
        """Take one token; returns the seconds to wait before using it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate)
        self._seen = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


class KubeApi:
    """The real API server; made by `connect`."""

    def __init__(self, transport: client.ApiClient, bucket: TokenBucket) -> None:
        self._transport = transport
        self._bucket = bucket

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """See `Api`."""
        return await self._request("GET", kind.path(namespace, name))

    async def list(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """See `Api`."""
        return [item async for page in self.pages(kind, namespace, labels) for item in page.items]

    async def pages(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Page]:
        """See `Api`."""
        query = {"limit": str(_PAGE_CONFIG_MAPS if kind is CONFIG_MAP else _PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        head: Manifest = {"apiVersion": kind.api_version, "kind": kind.kind}
        while True:
            page = await self._request("GET", kind.path(namespace), query=query)
            items = [head | item for item in list_at(page, "items") if isinstance(item, dict)]
            yield Page(version=text_at(page, "metadata", "resourceVersion"), items=items)
            query["continue"] = text_at(page, "metadata", "continue")
            if not query["continue"]:
                return

    async def create(self, manifest: Manifest) -> Manifest:
        """See `Api`."""
        path = kind_of(manifest).path(text_at(manifest, "metadata", "namespace"))
        return await self._request(
            "POST", path, query={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """See `Api`."""
        return await self._request(
            "PATCH",
            _path(manifest, subresource),
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=manifest,
            content_type=_APPLY,
        )

    async def replace(self, manifest: Manifest) -> Manifest:
        """See `Api`."""
        return await self._request(
            "PUT", _path(manifest), query={"fieldManager": FIELD_MANAGER}, body=manifest
        )

    async def replace_spec(self, live: Manifest, spec: Json) -> Manifest:
        """See `Api`."""
        version = text_at(live, "metadata", "resourceVersion")
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/spec", "value": dict(spec)},
        ]
        return await self._request(
            "PATCH",
            _path(live),
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type="application/json-patch+json",
        )

    async def set_finalizers(self, live: Manifest, finalizers: Sequence[str]) -> Manifest:
        """See `Api`."""
        version = text_at(live, "metadata", "resourceVersion")
        patch = {"metadata": {"resourceVersion": version, "finalizers": list(finalizers)}}
        return await self._request(
            "PATCH",
            _path(live),
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, wait: bool = False
    ) -> None:
        """See `Api`."""
        policy = "Foreground" if wait else "Background"
        options: Manifest = {"propagationPolicy": policy, "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", kind.path(namespace, name), body=options)
        except NotFound:
            return
        except Conflict:
            # Another object by now, or a server that is not done with this one: only the object tells.
            if await self._is_there(kind, namespace, name, uid):
                raise

    async def _is_there(self, kind: Kind, namespace: str, name: str, uid: str) -> bool:
        try:
            live = await self.get(kind, namespace, name)
        except NotFound:
            return False
        return text_at(live, "metadata", "uid") == uid

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Manifest:
        # A replace holds a version: done and not told of, its repetition would look like someone else's change.
        for pause_s in _AGAIN_S if method in ("GET", "DELETE") or content_type == _APPLY else ():
            try:
                return await self._ask(method, path, query, body, content_type)
            except Unavailable as error:
                asked_s = error.retry_after_s or 0
                if asked_s > _LONGEST_PAUSE_S or isinstance(error.__cause__, TimeoutError):
                    raise
            await asyncio.sleep(max(asked_s, pause_s * random.uniform(0.5, 1)))  # noqa: S311 - spreads load
        return await self._ask(method, path, query, body, content_type)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
    ) -> Manifest:
        """Send a request once.

        Raises:
            OperatorError: One of `errors`, by status.
        """
        wait_s = self._bucket.reserve()
        if wait_s:
            await asyncio.sleep(wait_s)
        code = "none"
        try:
            status, headers, raw = await self._send(method, path, query, body, content_type)
            code = str(status)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Unavailable(f"the API server does not answer ({type(error).__name__})") from error
        except ApiException as error:
            raise Unavailable("the API server cannot be asked") from error
        finally:
            metrics.api_requested(method, code)
        loaded = _load(raw)
        if not 200 <= status <= 299:
            raise error_of(status, headers, loaded, f"{method} {path}")
        return loaded

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
    ) -> tuple[int, Mapping[str, str], bytes]:
        url = f"{path}?{urlencode(query)}" if query else path
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            request = await self._transport.param_serialize(
                method,
                url,
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response: Any = await self._transport.call_api(
                *request, _request_timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            )
            raw: bytes = await response.read()
            return response.status, response.headers, raw


@asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[KubeApi]:
    """An API server by kubeconfig, or by the pod's service account.

    Raises:
        Unavailable: There are no usable credentials.
    """
    configuration = client.Configuration()
    configuration.connection_pool_maxsize = 30
    try:
        if kubeconfig is not None:
            await config.load_kube_config(  # type: ignore[no-untyped-call]  # the library has no types
                config_file=str(kubeconfig),
                client_configuration=configuration,
                persist_config=False,
            )
        else:
            config.load_incluster_config(  # type: ignore[no-untyped-call]  # the library has no types
                client_configuration=configuration
            )
    except config.ConfigException as error:
        raise Unavailable("no usable kubeconfig and no service account") from error
    bucket = TokenBucket(REQUESTS_PER_SECOND, BURST, asyncio.get_running_loop().time)
    async with client.ApiClient(configuration) as transport:
        yield KubeApi(transport, bucket)


def error_of(status: int, headers: Mapping[str, str], body: Json, what: str) -> OperatorError:
    """What an answer means for the caller; the API server's own words stay for the log."""
    said = f"{what}: {status} {text_at(body, 'reason')} {text_at(body, 'message')}".strip()
    match status:
        case 404:
            return NotFound(said)
        case 409:
            return Conflict(said)
        case 401 | 403:
            return Forbidden(said)
        case 400 | 422:
            return Invalid([text_at(body, "message") or said], reason="Refused")
        case _:
            return Unavailable(said, retry_after_s=_retry_after(headers, body))


def _retry_after(headers: Mapping[str, str], body: Json) -> float | None:
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    return float(number_at(body, "details", "retryAfterSeconds")) or None


def _load(raw: bytes) -> Manifest:
    try:
        loaded = json.loads(raw or b"{}")
    except ValueError:
        return {}  # a proxy's page; the status says enough
    return object_at({"body": loaded}, "body")


def _path(manifest: Manifest, subresource: str = "") -> str:
    return kind_of(manifest).path(
        text_at(manifest, "metadata", "namespace"),
        text_at(manifest, "metadata", "name"),
        subresource,
    )
