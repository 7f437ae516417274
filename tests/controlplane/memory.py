"""The fake API server of the operator's tests behind HTTP: lists, watches, patches, owners and finalizers; up at once.

For what needs the operator's own process and no real API server. Takes the place of `ControlPlane`.
"""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from duckmesh_operator.errors import Conflict, Invalid, NotFound, OperatorError
from duckmesh_operator.names import KINDS, Kind
from duckmesh_runtime.dev.processes import free_port
from tests.controlplane.client import CRD, NAMESPACE
from tests.controlplane.pki import Keys
from tests.fakes.kube import FakeApi, Object, Place

_BY_PLURAL: Final = {kind.plural: kind for kind in KINDS.values()}
#: kopf looks for these two before it watches anything.
_BACKBONE: Final = (NAMESPACE, CRD)
_DISCOVERED: Final = (*KINDS.values(), *_BACKBONE)
_STATUSES: Final = {NotFound: 404, Conflict: 409, Invalid: 422}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change: the object before and after; None where there is none."""

    version: int
    before: Object | None
    after: Object | None


class WatchedApi(FakeApi):
    """The fake with a history, real uids, finalizers and a garbage collector."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Event] = []
        self.changed = asyncio.Condition()

    @property
    def version(self) -> int:
        """Of the last change."""
        return self.history[-1].version if self.history else 0

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete, or begin to where a finalizer holds the object."""
        place = (kind.kind, namespace, name)
        item = self._find(place)
        if item["metadata"].get("finalizers"):
            item = copy.deepcopy(item)
            item["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
            self._update(place, item)
            return
        super().remove(kind, namespace, name)
        self._note(item, None)
        asyncio.get_running_loop().call_later(0.1, self._collect, item["metadata"]["uid"])

    def _collect(self, uid: str) -> None:
        for place, item in list(self.objects.items()):
            owners = item["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == uid for owner in owners) and place in self.objects:
                self.remove(KINDS[place[0]], place[1], place[2])

    def _insert(self, place: Place, manifest: Object) -> Object:
        manifest = copy.deepcopy(manifest)
        manifest["metadata"].setdefault("uid", str(uuid.uuid4()))
        made = super()._insert(place, manifest)
        self._note(None, made)
        return made

    def _update(self, place: Place, changed: Object) -> Object:
        before = self.objects[place]
        after = super()._update(place, changed)
        if after["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]:
            self._note(before, after)
            meta = after["metadata"]
            if meta.get("deletionTimestamp") and not meta.get("finalizers"):
                self.remove(KINDS[place[0]], place[1], place[2])
        return after

    def _note(self, before: Object | None, after: Object | None) -> None:
        number = (
            int(after["metadata"]["resourceVersion"]) if after is not None else next(self._numbers)
        )
        self.history.append(
            Event(version=number, before=copy.deepcopy(before), after=copy.deepcopy(after))
        )
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@dataclass
class MemoryPlane:
    """Serves a `WatchedApi` over TLS; an asynchronous context manager."""

    folder: Path
    port: int = field(default_factory=free_port)
    api: WatchedApi = field(default_factory=WatchedApi)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def keys(self) -> Keys:
        return Keys(self.folder / "pki")

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    async def __aenter__(self) -> MemoryPlane:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keys.make()
        self.keys.write_kubeconfig(self.kubeconfig, self.url)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*self.keys.pair("apiserver"))
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if len(parts) < (3 if parts[0] == "api" else 4):
            return web.json_response(_discovery(parts))
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] in ("namespaces", "customresourcedefinitions") and len(rest) < 3:
            return web.json_response(_established(rest[-1]))
        namespace = ""
        if rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = _BY_PLURAL.get(rest[0])
        if kind is None:
            return _failure(404, f"no such resource {rest[0]}")
        name, subresource = [*rest[1:], "", ""][:2]
        try:
            if request.query.get("watch") in ("true", "1"):
                return await self._watch(request, kind, namespace)
            return web.json_response(await self._act(request, kind, namespace, name, subresource))
        except OperatorError as error:
            return _failure(_STATUSES.get(type(error), 500), str(error))

    async def _act(
        self, request: web.Request, kind: Kind, namespace: str, name: str, subresource: str
    ) -> Object:
        api = self.api
        body: Any = await request.json() if request.can_read_body else {}
        if isinstance(body, dict) and request.method in ("POST", "PUT", "PATCH"):
            body = {"apiVersion": kind.api_version, "kind": kind.kind} | body
        match request.method:
            case "GET" if name:
                return await api.get(kind, namespace, name)
            case "GET":
                items = await api.list(kind, namespace or None, _selector(request.query))
                return {"items": items, "metadata": {"resourceVersion": str(api.version)}}
            case "POST":
                body["metadata"].setdefault("namespace", namespace)
                return await api.create(body)
            case "PUT":
                return await api.replace(body)
            case "DELETE":
                found = await api.get(kind, namespace, name)
                wanted = (body or {}).get("preconditions", {}).get("uid", found["metadata"]["uid"])
                if wanted != found["metadata"]["uid"]:
                    raise Conflict("another object")
                api.remove(kind, namespace, name)
                return {"kind": "Status", "status": "Success"}
        return await self._patch(request, body, (kind.kind, namespace, name), subresource)

    async def _patch(
        self, request: web.Request, body: Any, place: Place, subresource: str
    ) -> Object:
        api = self.api
        if "apply" in request.content_type:
            return await api.apply(body, subresource=subresource)
        live = await api.get(KINDS[place[0]], place[1], place[2])
        if isinstance(
            body, list
        ):  # a JSON patch: a version to hold, a spec to put, fields to take out
            values = {op["path"]: op.get("value") for op in body}
            version = values.get("/metadata/resourceVersion", live["metadata"]["resourceVersion"])
            live["metadata"]["resourceVersion"] = version
            if "/spec" in values:
                return await api.replace_spec(live, values["/spec"])
            if "/metadata/finalizers" in values:
                live["metadata"]["finalizers"] = values["/metadata/finalizers"] or []
            return await api.replace(live)
        if body.get("metadata", {}).get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise Conflict("another object")
        part = {"status": body["status"]} if subresource else body
        changed = _merge_patch(live, part)
        if not subresource:
            by = {"manager": "person", "operation": "Update", "fieldsV1": _fields(part)}
            changed["metadata"].setdefault("managedFields", []).append(by)
        return api._update(place, changed)

    async def _watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        selector = _selector(request.query)
        at = int(request.query.get("resourceVersion") or self.api.version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with suppress(ConnectionError):
            await self._pass(response, kind, namespace, selector, at)
        return response

    async def _pass(
        self,
        response: web.StreamResponse,
        kind: Kind,
        namespace: str,
        selector: Mapping[str, str],
        at: int,
    ) -> None:
        """Write every event after a version, as it comes."""
        place = 0
        while True:
            for event in self.api.history[place:]:
                line = _line(event, kind, namespace, selector) if event.version > at else None
                if line is not None:
                    await response.write(json.dumps(line).encode() + b"\n")
            place = len(self.api.history)
            async with self.api.changed:
                seen = place
                await self.api.changed.wait_for(lambda seen=seen: len(self.api.history) > seen)


def _line(event: Event, kind: Kind, namespace: str, selector: Mapping[str, str]) -> Object | None:
    def shown(item: Object | None) -> bool:
        return (
            item is not None
            and item["kind"] == kind.kind
            and namespace in ("", item["metadata"].get("namespace"))
            and selector.items() <= item["metadata"].get("labels", {}).items()
        )

    before, after = shown(event.before), shown(event.after)
    if after:
        return {"type": "MODIFIED" if before else "ADDED", "object": event.after}
    if not before or event.before is None:
        return None
    gone = copy.deepcopy(event.before)
    gone["metadata"]["resourceVersion"] = str(event.version)
    return {"type": "DELETED", "object": gone}


def _selector(query: Mapping[str, str]) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
    return dict(pairs)


def _merge_patch(live: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patch(merged.get(key), value)
    return merged


def _fields(change: Any) -> Object:
    if not isinstance(change, dict):
        return {}
    return {f"f:{key}": _fields(value) for key, value in change.items()}


def _discovery(parts: list[str]) -> Object:
    """What kopf asks before it watches."""
    if parts == ["api"]:
        return {"versions": ["v1"]}
    groups = sorted({k.api_version.rpartition("/")[0] for k in _DISCOVERED} - {""})
    if parts == ["apis"]:
        return {"groups": [_group(group) for group in groups]}
    wanted = "/".join(parts[1:])
    return {"resources": list(_resources(wanted))}


def _group(group: str) -> Object:
    version = next(k.api_version for k in _DISCOVERED if k.api_version.startswith(group + "/"))
    preferred = {"groupVersion": version, "version": version.rpartition("/")[2]}
    return {"name": group, "versions": [preferred], "preferredVersion": preferred}


def _resources(api_version: str) -> Iterable[Object]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    for kind in _DISCOVERED:
        if kind.api_version == api_version:
            named = {"name": kind.plural, "kind": kind.kind, "singularName": kind.kind.lower()}
            yield named | {"namespaced": kind not in _BACKBONE, "verbs": verbs}


def _established(name: str) -> Object:
    condition = {"type": "Established", "status": "True"}
    return {"metadata": {"name": name}, "status": {"conditions": [condition]}}


def _failure(status: int, message: str) -> web.Response:
    reasons = {404: "NotFound", 409: "Conflict", 422: "Invalid"}
    body = {"kind": "Status", "status": "Failure", "code": status}
    return web.json_response(
        body | {"reason": reasons.get(status, "InternalError"), "message": message}, status=status
    )
