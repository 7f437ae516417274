"""The state of one Tenant as a value: two runs that went well end in equal states, whatever uids, times and passwords."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final

import asyncpg

from duckmesh_operator.names import (
    CHILDREN,
    JOB,
    LABEL_TENANT,
    LABEL_TENANT_NAMESPACE,
    SECRET,
    TENANT,
)
from tests.controlplane.client import Client, Manifest
from tests.controlplane.world import SYSTEM

State = dict[str, Manifest]

_LABELS: Final = "app.kubernetes.io/managed-by=duckmesh-operator"
#: Another one for each object, or written by time.
_LEFT_OUT: Final = frozenset(
    (
        *("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"),
        *("lastTransitionTime", "observedGeneration", "startTime", "completionTime"),
        *("observedAt", "committedAt", "controller-uid", "batch.kubernetes.io/controller-uid"),
        *("clusterIP", "clusterIPs", "duckmesh.io/applied-digest"),
    )
)
#: Random by design; `check_credentials` sees to them.
_SECRET_TEXT: Final = re.compile(r"[0-9a-f]{32,}")


async def read_state(client: Client, namespace: str, name: str) -> State:
    """The Tenant, its children, its Secrets and its Job by `Kind/name`, without what differs from run to run."""
    tenant = await client.get(TENANT, namespace, name)
    uid = tenant["metadata"]["uid"] if tenant else ""
    found = [{"kind": TENANT.kind, **tenant}] if tenant else []
    for kind in (*CHILDREN, SECRET):
        found += await client.list(kind, namespace, _LABELS)
    jobs = await client.list(
        JOB, SYSTEM, f"{_LABELS},{LABEL_TENANT_NAMESPACE}={namespace},{LABEL_TENANT}={name}"
    )
    found += [job for job in jobs if tenant or not _removes_itself(job)]
    replaced = {namespace: "NAMESPACE"}
    if uid:
        replaced |= {uid: "UID", uid.replace("-", "")[:16]: "LAKE"}
    state = {}
    for item in found:
        plain = _plain(item, replaced)
        state[f"{plain['kind']}/{plain['metadata']['name']}"] = plain
    return state


def differences(one: State, other: State) -> list[str]:
    """How two states differ, one line each; none when they are equal."""
    lines: list[str] = []
    _compare("", one, other, lines)
    return lines


async def check_credentials(client: Client, namespace: str, name: str) -> list[str]:
    """What of a Tenant's Secrets does not do what it is for: every login must get in."""
    problems = []
    for part in ("writer", "maintenance", "reader"):
        secret = await client.get(SECRET, namespace, f"{name}-{part}")
        if secret is None:
            problems.append(f"there is no Secret {name}-{part}")
            continue
        dsn = base64.b64decode(secret["data"]["dsn"]).decode()
        try:
            connection = await asyncpg.connect(dsn, timeout=20)
        except (asyncpg.PostgresError, OSError) as error:
            problems.append(f"the login of Secret {name}-{part} does not get in: {error}")
        else:
            await connection.close()
    return problems


def _removes_itself(job: Manifest) -> bool:
    """Whether it has ended and goes ten minutes later."""
    ended = any(
        one["type"] in ("Complete", "Failed") for one in job.get("status", {}).get("conditions", [])
    )
    return ended and "ttlSecondsAfterFinished" in job["spec"]


def _plain(value: Any, replaced: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            _text(key, replaced): _data(inner) if key == "data" else _plain(inner, replaced)
            for key, inner in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, list):
        return [_plain(inner, replaced) for inner in value]
    if isinstance(value, str):
        return _text(value, replaced)
    return value


def _data(data: Any) -> Any:
    """Names of a Secret's or ConfigMap's values, and how long those are."""
    return {key: len(value) for key, value in data.items()} if isinstance(data, dict) else data


def _text(text: str, replaced: dict[str, str]) -> str:
    for old, new in replaced.items():
        text = text.replace(old, new)
    return _SECRET_TEXT.sub("HEX", text)


def _compare(path: str, one: Any, other: Any, lines: list[str]) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                lines.append(f"{path}/{key}: only {'after faults' if key in other else 'without'}")
            else:
                _compare(f"{path}/{key}", one[key], other[key], lines)
    elif one != other:
        lines.append(f"{path}: {_short(one)} without faults, {_short(other)} after them")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:117] + "..."
