"""No call without a key, no call beyond a key's roles: every route of the one table, with every role."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from duckmesh_runtime.errors import SettingsError
from duckmesh_runtime.web import auth
from duckmesh_runtime.web.app import ANYONE, INTERNAL, ROUTES, Route
from duckmesh_runtime.web.auth import KeyRing, Role
from tests.fakes.doors import LAKE, key, write_keys

HOLDERS = [*(role.value.replace("_", "-") for role in Role), "nobody", "admin"]
PUBLIC = [route for route in ROUTES if route.roles is not INTERNAL]


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def path(route: Route) -> str:
    numbered = route.path.replace("{number}", "7").replace("{snapshot_id}", "7")
    return numbered.replace("{table}", "events")


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("route", PUBLIC, ids=name)
async def test_a_key_opens_the_routes_of_its_roles_only(
    doors: Any, route: Route, holder: str
) -> None:
    roles = (
        set(Role) if holder == "admin" else {r for r in Role if r.value == holder.replace("-", "_")}
    )

    status, body, _ = await doors.call(route.method, path(route), as_key=holder)

    if roles & route.roles:
        code = body.get("error_code") if isinstance(body, dict) else None  # a stream is no JSON
        assert code not in ("UNAUTHENTICATED", "FORBIDDEN")
    else:
        assert (status, body["error_code"]) == (403, "FORBIDDEN")
        assert body["context"]["roles"] == sorted(route.roles)


@pytest.mark.parametrize("route", ROUTES, ids=name)
async def test_no_route_answers_without_a_key(doors: Any, route: Route) -> None:
    status, body, answer = await doors.call(route.method, path(route), as_key=None)

    assert (status, body["error_code"]) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_every_role_opens_something_and_only_waiting_is_for_all() -> None:
    assert {role for route in ROUTES for role in route.roles} == set(Role)
    assert [route.path for route in ROUTES if route.roles == ANYONE] == [
        "/v1/visible",
        "/v1/events",
    ]


GOOD = key("admin")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("", id="empty"),
        pytest.param(GOOD, id="no scheme"),
        pytest.param(f"Basic {GOOD}", id="other scheme"),
        pytest.param(f"Bearer {GOOD[:-1]}", id="one digit short"),
        pytest.param(f"Bearer {GOOD[:-1]}{'0' if GOOD[-1] != '0' else '1'}", id="one digit wrong"),
        pytest.param(f"Bearer {GOOD.replace('admin', 'nobody')}", id="another id"),
        pytest.param(f"Bearer {GOOD}, Bearer {GOOD}", id="two in one"),
        pytest.param(f"Bearer {GOOD} {GOOD}", id="two keys"),
        pytest.param(f"Bearer dmk_admin_{'é' * 64}", id="not ascii"),
        pytest.param("Bearer dmk_admin_" + "0" * 5000, id="long"),
    ],
)
async def test_a_wrong_key_is_no_key(doors: Any, header: str) -> None:
    status, body, _ = await doors.call(
        "GET", "/v1/tables", as_key=None, headers={"Authorization": header}
    )

    assert (status, body["error_code"]) == (401, "UNAUTHENTICATED")
    assert "dmk_admin" not in json.dumps(body)


async def test_a_doubled_authorization_header_is_refused(doors: Any) -> None:
    headers = [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Bearer {GOOD}")]
    async with doors.session.get(doors.url + "/v1/tables", headers=headers) as answer:
        assert answer.status == 401


async def test_the_scheme_is_read_without_regard_to_case(doors: Any) -> None:
    status, _, _ = await doors.call(
        "GET", "/v1/tables", as_key=None, headers={"Authorization": f"bearer {GOOD}"}
    )

    assert status == 200


async def test_a_rotated_key_needs_no_restart(
    doors: Any, auth_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_CHECK_S", 0.0)
    assert (await doors.call("GET", "/v1/tables"))[0] == 200

    write_keys(auth_dir, {"new": ["query_reader"]}, pepper="another pepper")

    assert (await doors.call("GET", "/v1/tables", as_key="new"))[0] == 200
    assert (await doors.call("GET", "/v1/tables"))[0] == 401


async def test_damaged_keys_leave_the_last_good_ones_in_force(
    doors: Any, auth_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_CHECK_S", 0.0)

    (auth_dir / "keys.json").write_text("[{")

    assert (await doors.call("GET", "/v1/tables"))[0] == 200


async def test_the_internal_call_opens_to_the_lakes_own_processes_only(doors: Any) -> None:
    ring: KeyRing = doors.parts.keys
    path = "/v1/internal/nudge"

    good = await doors.call(
        "POST", path, as_key=None, headers={"X-Duckmesh-Internal": ring.internal_key(LAKE)}
    )
    other = await doors.call(
        "POST", path, as_key=None, headers={"X-Duckmesh-Internal": ring.internal_key("lake_other")}
    )
    admin = await doors.call("POST", path)

    assert [good[0], other[0], admin[0]] == [204, 401, 401]
    assert doors.committer.nudges == 1


async def test_an_internal_key_that_is_no_text_is_a_wrong_one(doors: Any) -> None:
    host, port = doors.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/internal/nudge HTTP/1.1\r\nHost: x\r\nX-Duckmesh-Internal: \xff\r\n\r\n"
    )
    first = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    await writer.wait_closed()

    assert b" 401 " in first


@pytest.mark.parametrize(
    ("pepper", "keys"),
    [
        pytest.param(None, "[]", id="no pepper"),
        pytest.param("", "[]", id="empty pepper"),
        pytest.param("p", None, id="no keys"),
        pytest.param("p", "{}", id="keys of another shape"),
        pytest.param("p", "[", id="damaged keys"),
    ],
)
def test_without_readable_keys_nothing_starts(
    tmp_path: Path, pepper: str | None, keys: str | None
) -> None:
    for file, text in (("pepper", pepper), ("keys.json", keys)):
        if text is not None:
            (tmp_path / file).write_text(text)

    with pytest.raises(SettingsError, match="DUCKMESH_AUTH_DIR"):
        KeyRing(tmp_path)


def test_without_a_folder_nothing_starts() -> None:
    with pytest.raises(SettingsError, match="DUCKMESH_AUTH_DIR"):
        KeyRing(None)
