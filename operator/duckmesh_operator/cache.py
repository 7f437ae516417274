"""What the operator knows of the cluster, so that a reconcile with nothing to do asks the API server for nothing.

`Store` keeps objects as they were last seen: from a list, from the watch, from the answer to a write of ours. Whatever
comes, the newer `resourceVersion` wins; a deleted object stays deleted for whoever tells of it late. `CachedApi` is an
`Api` that answers reads from it. What it answers may be a moment old, which is safe because nothing is decided by its
absence alone: children are made by server-side apply under fixed names, deleted by uid, replaced by version, and an
object that the store does not know is looked up in the API server before it is made.

Lists bring what a watch missed, above all deletions: kopf does not tell which objects are gone when it lists again.
Anyone may put our label on an object as large as the API server takes: one that no known Tenant owns under a name that
we give is kept as an outline.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from duckmesh_operator.errors import Conflict, NotFound
from duckmesh_operator.kube import Api, Page
from duckmesh_operator.manifest import Json, Manifest, list_at, object_at, text_at
from duckmesh_operator.names import (
    CHILDREN,
    COMPACTOR,
    KINDS,
    LABEL_MANAGED_BY,
    LABEL_TENANT,
    LABEL_TENANT_NAMESPACE,
    LABEL_TENANT_UID,
    MANAGED_BY,
    TENANT,
    Kind,
)
from duckmesh_operator.plan import has_foreign_fields, is_ours
from duckmesh_operator.queue import Key

logger = logging.getLogger(__name__)

#: Deletions are remembered this long: no answer to a request of ours takes longer.
REMEMBERED_S: Final = 120.0
#: Bytes, packed, above which only a Tenant's own child is kept whole: anyone may put our label on a megabyte.
LARGE: Final = 4096
OWN: Final = (TENANT, COMPACTOR)
CACHED: Final = (*OWN, *CHILDREN)
_LABELS: Final = {LABEL_MANAGED_BY: MANAGED_BY}
#: What follows a Tenant's name in that of a child.
_CHILD: Final = re.compile(r"-(tables|compact|(ingest|query)(-[0-9]{1,9})?)")
_OUTLINE: Final = ("name", "namespace", "uid", "generation", "deletionTimestamp")
_OWNERS: Final = 10
_OUTLINE_LABELS: Final = (LABEL_MANAGED_BY, LABEL_TENANT, LABEL_TENANT_UID, LABEL_TENANT_NAMESPACE)
_APPLIED_BY_KUBECTL: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an object lies."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a list showed beyond what was known.

    Attributes:
        place: Of the object.
        version: It was seen at; 0 when it is gone.
        owner: Whose reconcile looks at it.
    """

    place: Place
    version: int
    owner: Key | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """An object at rest: packed it takes a twentieth of what it takes as dicts, and nobody can change it by mistake."""

    version: int
    uid: str
    tenant_uid: str
    packed: bytes
    whole: bool


class Store:
    """Objects by place, and by the Tenant whose label they carry.

    Args:
        clock: Seconds, to forget deletions.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[Place, _Entry] = {}
        self._by_tenant: dict[str, set[Place]] = defaultdict(set)
        self._gone: dict[Place, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, place: Place) -> Manifest | None:
        """The object, in the caller's hands; None when there is none."""
        entry = self._entries.get(place)
        return None if entry is None else _unpack(entry)

    def version(self, place: Place) -> int:
        """The `resourceVersion` kept of an object; 0 when there is none."""
        entry = self._entries.get(place)
        return 0 if entry is None else entry.version

    def of_tenant(self, kind: str, namespace: str, uid: str) -> list[Manifest]:
        """Objects with a Tenant's uid as label, by name."""
        places = sorted(
            place
            for place in self._by_tenant.get(uid, ())
            if place.kind == kind and place.namespace == namespace
        )
        return [_unpack(self._entries[place]) for place in places]

    def places(self, kind: str, namespace: str | None) -> list[Place]:
        """Where objects of a kind lie; namespace None means anywhere."""
        return [place for place in self._entries if _is_in(place, kind, namespace)]

    def put(self, obj: Json) -> bool:
        """Keep an object unless a newer one is known; returns whether it says anything new but its version."""
        place, version = place_of(obj), version_of(obj)
        before = self._entries.get(place)
        known = before.version if before else 0
        again = before is not None and version == known and not before.whole
        if (version <= known and not again) or version <= self._gone.get(place, (0,))[0]:
            return False
        slim = slim_of(obj)
        packed = _pack(slim)
        whole = len(packed) <= LARGE or self._is_ours(obj)
        packed = packed if whole else _pack(_outline(slim, packed))
        uid = text_at(slim, "metadata", "labels", LABEL_TENANT_UID)
        self._drop(place)
        self._gone.pop(place, None)
        self._entries[place] = _Entry(
            version=version,
            uid=text_at(slim, "metadata", "uid"),
            tenant_uid=uid,
            packed=packed,
            whole=whole,
        )
        self._by_tenant[uid].add(place)
        return not again and (before is None or before.packed != packed)

    def _is_ours(self, obj: Json) -> bool:
        """Whether a known Tenant, or the object itself, is what we would make it for."""
        owner = owner_of(obj)
        if owner is None or text_at(obj, "kind") == owner.kind:
            return owner is not None
        tenant = self._entries.get(Place(owner.kind, owner.namespace, owner.name))
        return (
            tenant is not None
            and tenant.uid != ""
            and is_ours(obj, tenant.uid)
            and _CHILD.fullmatch(text_at(obj, "metadata", "name").removeprefix(owner.name))
            is not None
        )

    def newest(self, kind: str, namespace: str | None) -> int:
        """The newest version known of a kind, deletions too; namespace None means anywhere."""
        where = (kind, namespace)
        known = (entry.version for place, entry in self._entries.items() if _is_in(place, *where))
        gone = (version for place, (version, _) in self._gone.items() if _is_in(place, *where))
        return max(chain(known, gone), default=0)

    def clear(self, kind: str, namespace: str | None) -> None:
        """Forget a kind, deletions too; namespace None means everywhere."""
        for place in self.places(kind, namespace):
            self._drop(place)
        for place in [place for place in self._gone if _is_in(place, kind, namespace)]:
            del self._gone[place]

    def remove(self, place: Place, version: int) -> bool:
        """Take in that an object was gone at a version; returns whether that is new."""
        entry = self._entries.get(place)
        if version < (entry.version if entry else 0) or version <= self._gone.get(place, (0,))[0]:
            return False
        self._forget_deletions()
        self._gone[place] = version, self._clock()
        self._drop(place)
        return True

    def _drop(self, place: Place) -> None:
        entry = self._entries.pop(place, None)
        if entry is not None:
            self._by_tenant[entry.tenant_uid].discard(place)
            if not self._by_tenant[entry.tenant_uid]:
                del self._by_tenant[entry.tenant_uid]

    def _forget_deletions(self) -> None:
        # In the order they came: the first that is young ends the search.
        now = self._clock()
        while self._gone:
            place, (_, at) = next(iter(self._gone.items()))
            if now - at < REMEMBERED_S:
                return
            del self._gone[place]


class CachedApi:
    """An `Api` that reads Tenants, Compactors and the children of Tenants from a `Store`; see the module.

    Everything else, Secrets above all, goes to the API server. Reads before `load` ended find nothing.

    Args:
        api: The API server.
        namespaces: Those served; empty means all.
        changed: Told of what a write's answer shows beside the write, which no event will tell again.
        clock: Seconds.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespaces: Iterable[str],
        changed: Callable[[Key], None],
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._changed = changed
        self._set_back: set[tuple[str, str | None]] = set()
        self.store = Store(clock)

    # ---------------------------------------------------------------- reads

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """See `Api`. Children are read from the API server: who asks by name wants one that the store does not have."""
        if kind not in OWN:
            return await self._api.get(kind, namespace, name)
        found = self.store.get(Place(kind.kind, namespace, name))
        if found is None:
            raise NotFound(f"{kind.kind} {namespace}/{name} is not known")
        return found

    async def list(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """See `Api`."""
        wanted = dict(labels or {})
        uid = wanted.get(LABEL_TENANT_UID)
        if kind in CHILDREN and namespace is not None and uid is not None:
            found: Iterable[Manifest] = self.store.of_tenant(kind.kind, namespace, uid)
        elif kind in OWN:
            found = self._all(kind, namespace)
        else:
            return await self._api.list(kind, namespace, labels)
        return [
            item
            for item in found
            if wanted.items() <= object_at(item, "metadata", "labels").items()
        ]

    def pages(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Page]:
        """See `Api`; never from the store."""
        return self._api.pages(kind, namespace, labels)

    def _all(self, kind: Kind, namespace: str | None) -> Iterator[Manifest]:
        for place in sorted(self.store.places(kind.kind, namespace)):
            if (item := self.store.get(place)) is not None:
                yield item

    # ---------------------------------------------------------------- writes

    async def create(self, manifest: Manifest) -> Manifest:
        """See `Api`."""
        return self._keep(await self._api.create(manifest))

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """See `Api`."""
        place = place_of(manifest)
        before = self.store.get(place)
        try:
            made = await self._api.apply(manifest, subresource=subresource)
        except (Conflict, NotFound):
            await self._look_again(place)
            raise
        self._keep(made)
        # The answer shows a change of someone else, whose event will be no news.
        if subresource:
            if before is not None and _but_status(slim_of(made)) != _but_status(before):
                self._tell(made)
        elif has_foreign_fields(made) and not has_foreign_fields(before or {}):
            self._tell(made)
        return made

    async def replace(self, manifest: Manifest) -> Manifest:
        """See `Api`."""
        return self._keep(await self._api.replace(manifest))

    async def replace_spec(self, live: Manifest, spec: Json) -> Manifest:
        """See `Api`."""
        try:
            return self._keep(await self._api.replace_spec(live, spec))
        except (Conflict, NotFound):
            await self._look_again(place_of(live))
            raise

    async def set_finalizers(self, live: Manifest, finalizers: Sequence[str]) -> Manifest:
        """See `Api`."""
        try:
            return self._keep(await self._api.set_finalizers(live, finalizers))
        except (Conflict, NotFound):
            await self._look_again(place_of(live))
            raise

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, wait: bool = False
    ) -> None:
        """See `Api`. What the API server only marks as being deleted comes back with its next event."""
        place = Place(kind.kind, namespace, name)
        known = self.store.get(place)
        await self._api.delete(kind, namespace, name, uid, wait=wait)
        if wait:
            return
        if text_at(known, "metadata", "uid") == uid and self.store.get(place) == known:
            self.store.remove(place, self.store.version(place))

    def _keep(self, made: Manifest) -> Manifest:
        if _is_cached(made):
            self.store.put(made)
        return made

    async def _look_again(self, place: Place) -> None:
        """What we knew of an object was wrong: read it before anyone relies on it again."""
        kind = KINDS[place.kind]
        if kind not in CACHED:
            return
        known = self.store.get(place)
        try:
            live = await self._api.get(kind, place.namespace, place.name)
        except NotFound:
            if known is not None and self.store.remove(place, version_of(known)):
                self._tell(known)
            return
        if _is_cached(live) and self.store.put(live):
            self._tell(live)

    def _tell(self, obj: Json) -> None:
        if (owner := owner_of(obj)) is not None:
            self._changed(owner)

    # ---------------------------------------------------------------- what comes from outside

    def notice(self, obj: Json, *, gone: bool) -> bool:
        """Take in an event of the watch; returns whether it says anything new."""
        return self.store.remove(place_of(obj), version_of(obj)) if gone else self.store.put(obj)

    async def load(self) -> None:
        """List everything: afterwards the store is as new as the moment this was called.

        Raises:
            OperatorError: The API server cannot be used.
        """
        for kinds in (OWN, CHILDREN):  # whose a child is, its Tenant tells
            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    group.create_task(self.refresh(kind))

    async def refresh(self, kind: Kind) -> Sequence[News]:
        """List one kind; returns what was not known.

        Raises:
            OperatorError: The API server cannot be used.
        """
        return [
            news for namespace in self._namespaces for news in await self._refresh(kind, namespace)
        ]

    async def _refresh(self, kind: Kind, namespace: str | None) -> Sequence[News]:
        found: list[News] = []
        listed: set[Place] = set()
        version, newest = 0, self.store.newest(kind.kind, namespace)
        async for page in self._api.pages(kind, namespace, None if kind in OWN else _LABELS):
            if not version:
                version = _number(page.version)
                self._notice_set_back((kind.kind, namespace), older=version < newest)
            for item in page.items:
                place = place_of(item)
                listed.add(place)
                if self.store.put(item):
                    found.append(News(place=place, version=version_of(item), owner=owner_of(item)))
            await asyncio.sleep(0)  # a page takes milliseconds, and there may be many
        for place in self.store.places(kind.kind, namespace):
            known = self.store.get(place)
            # Newer than the list is not missing from it.
            if place not in listed and known is not None and self.store.remove(place, version):
                found.append(News(place=place, version=0, owner=owner_of(known)))
        return found

    def _notice_set_back(self, where: tuple[str, str | None], *, older: bool) -> None:
        """Start anew where two lists in a row are older than what is known: the cluster's own store was put back."""
        if older and where in self._set_back:
            logger.warning("resource versions went back", extra={"kind": where[0]})
            self.store.clear(*where)
            older = False
        (self._set_back.add if older else self._set_back.discard)(where)


def place_of(obj: Json) -> Place:
    """Where an object lies."""
    return Place(
        text_at(obj, "kind"),
        text_at(obj, "metadata", "namespace"),
        text_at(obj, "metadata", "name"),
    )


def version_of(obj: Json) -> int:
    """An object's `resourceVersion`, which counts up within a kind; 0 when it has none."""
    return _number(text_at(obj, "metadata", "resourceVersion"))


def owner_of(obj: Json) -> Key | None:
    """Whose reconcile looks at an object: its own, or that of the Tenant that owns it or labels it."""
    place = place_of(obj)
    if place.kind in (kind.kind for kind in OWN):
        return Key(place.kind, place.namespace, place.name)
    labels = object_at(obj, "metadata", "labels")
    # A person may change the label, or strip the owner: either leads to the Tenant that repairs it.
    owners = list_at(obj, "metadata", "ownerReferences")
    owner = next((one for one in owners if text_at(one, "kind") == TENANT.kind), {})
    tenant = text_at(owner, "name") or text_at(labels, LABEL_TENANT)
    # What is about a Tenant in the operator's own namespace says where that is.
    namespace = text_at(labels, LABEL_TENANT_NAMESPACE) or place.namespace
    return Key(TENANT.kind, namespace, tenant) if tenant else None


def slim_of(obj: Json) -> Manifest:
    """What is worth keeping: `managedFields` only where they tell of someone else's additions, and no version."""
    slim, meta = dict(obj), object_at(obj, "metadata")
    if not has_foreign_fields(obj):
        meta.pop("managedFields", None)
    meta.pop("resourceVersion", None)
    annotations = object_at(meta, "annotations")
    if annotations.pop(_APPLIED_BY_KUBECTL, None) is not None:
        meta["annotations"] = annotations
    slim["metadata"] = meta
    return slim


def _outline(slim: Json, packed: bytes) -> Manifest:
    """Enough to see whose an object is, to delete it and to notice a change."""
    meta = object_at(slim, "metadata")
    short: Manifest = {key: meta[key] for key in _OUTLINE if key in meta}
    labels = object_at(meta, "labels")
    short["labels"] = {key: labels[key] for key in _OUTLINE_LABELS if key in labels}
    owners = list_at(meta, "ownerReferences")
    short["ownerReferences"] = [
        {key: text_at(owner, key) for key in ("kind", "name", "uid")} for owner in owners[:_OWNERS]
    ]
    about = {key: slim.get(key) for key in ("apiVersion", "kind")}
    return {**about, "metadata": short, "content": hashlib.sha256(packed).hexdigest()}


def _is_in(place: Place, kind: str, namespace: str | None) -> bool:
    return place.kind == kind and namespace in (None, place.namespace)


def _pack(slim: Json) -> bytes:
    """The same bytes for the same content."""
    return zlib.compress(json.dumps(slim, separators=(",", ":"), sort_keys=True).encode(), 1)


def _unpack(entry: _Entry) -> Manifest:
    found = object_at({"object": json.loads(zlib.decompress(entry.packed))}, "object")
    found["metadata"] = object_at(found, "metadata") | {"resourceVersion": str(entry.version)}
    return found


def _but_status(slim: Json) -> Manifest:
    meta = object_at(slim, "metadata")
    for key in ("resourceVersion", "managedFields"):
        meta.pop(key, None)
    return {**{key: value for key, value in slim.items() if key != "status"}, "metadata": meta}


def _is_cached(obj: Json) -> bool:
    kind = KINDS.get(text_at(obj, "kind"))
    if kind in OWN:
        return True
    return kind in CHILDREN and text_at(obj, "metadata", "labels", LABEL_MANAGED_BY) == MANAGED_BY


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
