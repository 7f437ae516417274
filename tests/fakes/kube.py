"""An API server in memory, for tests of the operator; tests/contract/test_kube.py says what it must do.

It keeps what matters to the operator: uids, resource versions that move only on a change, generations that move with
the spec, server-side apply of one manager (fields left out are removed, fields of others stay), defaults,
`managedFields` of people's edits.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from duckmesh_operator.errors import Conflict, Invalid, NotFound, OperatorError
from duckmesh_operator.kube import Page
from duckmesh_operator.names import DEPLOYMENT, FIELD_MANAGER, REVISION, Kind, kind_of

Object = dict[str, Any]
Place = tuple[str, str, str]
_PAGE = 2


class FakeApi:
    """See the module.

    Attributes:
        writes: `verb kind/name` of every write that got through, also those that changed nothing.
        calls: `verb kind` of every call.
        failing: Raised by the next call of a verb (`get`, `list`, `apply`, ...) or of `verb kind`.
    """

    def __init__(self) -> None:
        self.objects: dict[Place, Object] = {}
        self.writes: list[str] = []
        self.calls: list[str] = []
        self.failing: dict[str, OperatorError] = {}
        self._applied: dict[tuple[Place, str], Object] = {}
        self._numbers = itertools.count(1)

    # ---------------------------------------------------------------- what the operator calls

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        self._fail("get", kind.kind)
        return copy.deepcopy(self._find((kind.kind, namespace, name)))

    async def list(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        self._fail("list", kind.kind)
        return [
            copy.deepcopy(item)
            for (found, place, _), item in sorted(self.objects.items())
            if found == kind.kind
            and namespace in (None, place)
            and (labels or {}).items() <= item["metadata"].get("labels", {}).items()
        ]

    async def pages(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Page]:
        items = await self.list(kind, namespace, labels)
        version = str(next(self._numbers))
        for start in range(0, max(1, len(items)), _PAGE):
            yield Page(version=version, items=items[start : start + _PAGE])

    async def create(self, manifest: Object) -> Object:
        self._fail("create", manifest["kind"])
        place = self._place(manifest)
        if place in self.objects:
            raise Conflict(f"{place} exists")
        self._log("create", place)
        return copy.deepcopy(self._insert(place, manifest))

    async def apply(self, manifest: Object, *, subresource: str = "") -> Object:
        self._fail("apply", manifest["kind"])
        place = self._place(manifest)
        live = self.objects.get(place)
        uid = manifest["metadata"].get("uid")
        if live is None and (subresource or uid):
            raise NotFound(f"{place} is not there")
        if live is not None and uid not in (None, live["metadata"]["uid"]):
            raise Conflict(f"{place} is another object")
        self._log("apply" + (f" {subresource}" if subresource else ""), place)
        if live is None:
            self._applied[place, subresource] = copy.deepcopy(manifest)
            return copy.deepcopy(self._insert(place, manifest))
        last = self._applied.get((place, subresource), {})
        self._applied[place, subresource] = copy.deepcopy(manifest)
        part = {"status": manifest["status"]} if subresource else manifest
        before = {"status": last.get("status", {})} if subresource else last
        if not subresource and live["kind"] == REVISION.kind and live["data"] != manifest["data"]:
            raise Invalid(["data is immutable"])
        return self._update(place, _merge(live, before, part))

    async def replace(self, manifest: Object) -> Object:
        self._fail("replace", manifest["kind"])
        place = self._place(manifest)
        live = self._find(place)
        if manifest["metadata"].get("resourceVersion") != live["metadata"]["resourceVersion"]:
            raise Conflict(f"{place} was changed")
        self._log("replace", place)
        return self._update(place, copy.deepcopy(manifest))

    async def replace_spec(self, live: Object, spec: Object) -> Object:
        self._fail("replace_spec", live["kind"])
        place = self._place(live)
        found = self._find(place)
        if live["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise Conflict(f"{place} was changed")
        self._log("replace_spec", place)
        changed = copy.deepcopy(found) | {"spec": copy.deepcopy(dict(spec))}
        changed["metadata"]["managedFields"] = []
        return self._update(place, changed)

    async def set_finalizers(self, live: Object, finalizers: Sequence[str]) -> Object:
        self._fail("set_finalizers", live["kind"])
        place = self._place(live)
        found = self._find(place)
        if live["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise Conflict(f"{place} was changed")
        self._log("set_finalizers", place)
        changed = copy.deepcopy(found)
        changed["metadata"]["finalizers"] = list(finalizers)
        made = self._update(place, changed)
        if not finalizers and "deletionTimestamp" in found["metadata"]:
            self.remove(kind_of(live), place[1], place[2])
        return made

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, wait: bool = False
    ) -> None:
        self._fail("delete", kind.kind)
        place = (kind.kind, namespace, name)
        found = self.objects.get(place)
        if found is None or found["metadata"]["uid"] != uid:
            return
        self._log("delete", place)
        if not wait and not found["metadata"].get("finalizers"):
            self.remove(kind, namespace, name)
            return
        changed = copy.deepcopy(found)
        changed["metadata"].setdefault("deletionTimestamp", "2026-01-01T12:00:00Z")
        if wait:
            changed["metadata"]["finalizers"] = ["foregroundDeletion"]
        self._update(place, changed)

    # ---------------------------------------------------------------- what tests call

    def add(self, manifest: Object) -> Object:
        """Make an object as someone else."""
        return self._insert(self._place(manifest), manifest)

    def edit(self, kind: Kind, namespace: str, name: str, change: Object) -> None:
        """Merge a change in as `kubectl edit` would; its paths go to `managedFields`."""
        place = (kind.kind, namespace, name)
        changed = _merge(self._find(place), {}, change)
        fields = changed["metadata"].setdefault("managedFields", [])
        fields.append(
            {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": _fields(change)}
        )
        self._update(place, changed)

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete an object as someone else."""
        place = (kind.kind, namespace, name)
        del self.objects[place]
        for key in [key for key in self._applied if key[0] == place]:
            del self._applied[key]

    def end_pods(self) -> None:
        """Do what the garbage collector does when the pods of what is being deleted have ended."""
        for place, item in list(self.objects.items()):
            if item["metadata"].get("finalizers") == ["foregroundDeletion"]:
                self.remove(kind_of(item), place[1], place[2])

    def start_pods(self, namespace: str, name: str) -> None:
        """Do what Deployment controller and kubelet would: all pods of the newest template ready."""
        place = (DEPLOYMENT.kind, namespace, name)
        item = copy.deepcopy(self._find(place))
        count = item["spec"]["replicas"]
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"],
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": count,
        }
        self._update(place, item)

    # ---------------------------------------------------------------- inside

    def _find(self, place: Place) -> Object:
        if place not in self.objects:
            raise NotFound(f"{place} is not there")
        return self.objects[place]

    def _insert(self, place: Place, manifest: Object) -> Object:
        kept = {k: v for k, v in copy.deepcopy(manifest).items() if k != "status" or v}
        item = _default(_without_empty(kept))
        meta = item["metadata"]
        number = next(self._numbers)
        meta.setdefault("name", f"{meta.get('generateName', '')}{number}")
        meta.setdefault("uid", f"00000000-0000-4000-8000-{number:012d}")
        meta.setdefault("creationTimestamp", f"2026-01-01T00:00:{number % 60:02d}Z")
        meta |= {"generation": meta.get("generation", 1), "resourceVersion": str(number)}
        self.objects[(place[0], place[1], meta["name"])] = item
        return item

    def _update(self, place: Place, changed: Object) -> Object:
        before = self.objects[place]
        after = _default(_without_empty(changed))
        if after != before:
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] = before["metadata"]["generation"] + 1
            after["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[place] = after
        return copy.deepcopy(after)

    def _log(self, verb: str, place: Place) -> None:
        self.writes.append(f"{verb} {place[0]}/{place[2]}")

    def _fail(self, verb: str, kind: str) -> None:
        self.calls.append(f"{verb} {kind}")
        for key in (verb, f"{verb} {kind}"):
            if key in self.failing:
                raise self.failing.pop(key)

    def _place(self, manifest: Object) -> Place:
        meta = manifest["metadata"]
        return kind_of(manifest).kind, meta.get("namespace", ""), meta.get("name", "")


def _merge(live: Any, last: Any, new: Any) -> Any:
    """Server-side apply of one manager: what it said last and says no more goes, what others said stays."""
    if isinstance(live, dict) and isinstance(new, dict):
        last = last if isinstance(last, dict) else {}
        kept = {k: v for k, v in live.items() if not (k in last and k not in new)}
        return kept | {k: _merge(live.get(k), last.get(k), v) for k, v in new.items()}
    if isinstance(live, list) and isinstance(new, list) and _key(live + new):
        key = _key(live + new)
        was = {item[key]: item for item in last} if isinstance(last, list) and last else {}
        mine = {item[key]: item for item in new}
        kept = [
            _merge(item, was.get(item[key]), mine.pop(item[key])) if item[key] in mine else item
            for item in live
            if item[key] in mine or item[key] not in was
        ]
        return kept + [copy.deepcopy(item) for item in mine.values()]
    return copy.deepcopy(new)


def _key(items: list[Any]) -> str:
    for key in ("type", "name", "uid"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return ""


def _without_empty(item: Any) -> Any:
    """Drop what Go's omitempty drops."""
    if isinstance(item, dict):
        return {
            k: _without_empty(v)
            for k, v in item.items()
            if v not in ("", None)
            and not (v == [] or (v == {} and k in ("nodeSelector", "labels")))
        }
    return [_without_empty(one) for one in item] if isinstance(item, list) else item


def _default(item: Object) -> Object:
    """A few of the API server's defaults, where a comparison could trip over them."""
    if item["kind"] == DEPLOYMENT.kind:
        pod = item["spec"]["template"]["spec"]
        pod.setdefault("dnsPolicy", "ClusterFirst")
        pod.setdefault("restartPolicy", "Always")
        for container in pod["containers"]:
            container.setdefault("terminationMessagePath", "/dev/termination-log")
    return item


def _fields(change: Any) -> Object:
    if not isinstance(change, dict):
        return {}
    return {f"f:{key}": _fields(value) for key, value in change.items()}


__all__ = ["FIELD_MANAGER", "FakeApi", "Object"]
