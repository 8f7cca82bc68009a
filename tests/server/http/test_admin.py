"""The HTTP routes of the admin page. In Chromium: tests/browser/test_admin.py."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.http.admin.answers import MAX_CONNECTIONS, MAX_ROOMS
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token

SECRET, JOBS = "s" * 32, "j" * 43


def operator_token() -> str:
    return mint_token(secret=SECRET, scope="admin subscribe broadcast", rooms=["*"])


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[str]:
    keys = {"token_secrets": (SecretStr(SECRET),), "api_keys": {"jobs": SecretStr(JOBS)}}
    async with running_server(
        create_app(load_settings(**{**keys, "drain_timeout_s": 0, **settings}))
    ) as url:
        yield url


async def get(url: str, path: str, *tokens: str | None) -> httpx.Response:
    """Ask as the operator, or with another token, or with none."""
    (token,) = tokens or (operator_token(),)
    async with httpx.AsyncClient() as client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await client.get(url + path, headers=headers)


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/state", "/admin/rooms/user_1"])
async def test_admin_page_is_off_by_default(path: str) -> None:
    async with serving() as url:
        assert (await get(url, path)).status_code == 404


@pytest.mark.parametrize("path", ["/admin/state", "/admin/rooms/user_1", "/admin/x"])
async def test_only_an_operator_is_answered(path: str) -> None:
    async with serving(admin=True) as url:
        assert (await get(url, path, None)).status_code == 401
        for other in (mint_token("1", secret=SECRET), JOBS):
            assert (await get(url, path, other)).status_code == 403
        assert (await get(url, path)).status_code == (404 if path.endswith("x") else 200)


async def test_the_page_runs_its_own_script_alone() -> None:
    async with serving(admin=True) as url:
        answer = await get(url, "/admin", None)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert re.search(r"script-src 'sha256-[\w+/]{43}='(;|$)", policy)
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(?!data:)", answer.text), "it loads something"


async def test_rooms_with_the_most_connections_come_first() -> None:
    async with serving(admin=True, max_connections_per_user=0) as url:
        sockets = []
        for name in ("user_a", "user_b", "user_b", "request_1"):
            address = f"{url.replace('http', 'ws')}/rooms/{name}/subscribe?token={operator_token()}"
            sockets.append(await connect(address))
        async with httpx.AsyncClient() as client:
            note = {"type": "a", "data": {}}
            headers = {"Authorization": f"Bearer {JOBS}"}
            await client.post(f"{url}/rooms/user_b/broadcast", json=note, headers=headers)
        for socket in sockets[1:3]:
            await socket.recv()
        state = (await get(url, "/admin/state")).json()
        assert state["rooms"] == [
            {"room": "user_b", "connections": 2},
            {"room": "request_1", "connections": 1},
            {"room": "user_a", "connections": 1},
        ]
        assert (state["roomCount"], state["connections"]) == (3, {"websocket": 4, "sse": 0})
        assert state["totals"] == {"published": 1, "delivered": 2, "rejected": 0, "disconnected": 0}
        assert "memory store" in state["store"]
        found = (await get(url, "/admin/state?room=user")).json()
        assert [each["room"] for each in found["rooms"]] == ["user_b", "user_a"]
        assert found["roomCount"] == 3
        for socket in sockets:
            await socket.close()


async def test_an_answer_is_bounded() -> None:
    async with serving(admin=True, max_connections_per_user=0) as url:
        address = url.replace("http", "ws")
        sockets = [
            await connect(f"{address}/rooms/{room}/subscribe?token={operator_token()}")
            for room in [*(f"user_{n}" for n in range(MAX_ROOMS + 5)), *["user_x"] * 205]
        ]
        state = (await get(url, "/admin/state")).json()
        assert (len(state["rooms"]), state["roomCount"]) == (MAX_ROOMS, MAX_ROOMS + 6)
        assert state["rooms"][0] == {"room": "user_x", "connections": 205}
        room = (await get(url, "/admin/rooms/user_x")).json()
        assert (len(room["connections"]), room["total"]) == (MAX_CONNECTIONS, 205)
        for socket in sockets:
            await socket.close()


async def test_a_connection_is_described_without_its_token() -> None:
    async with serving(admin=True) as url:
        token = mint_token("1", secret=SECRET, device="phone")
        path = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?token={token}"
        async with connect(path), httpx.AsyncClient() as client:
            headers = {"Authorization": f"Bearer {token}"}
            async with client.stream("GET", f"{url}/rooms/user_1/events", headers=headers):
                answer = await get(url, "/admin/rooms/user_1")
        sse, socket = answer.json()["connections"]
        assert socket["user"] == "1"
        assert socket["device"] == "phone"
        assert socket["address"] == "127.0.0.1"
        assert socket["transport"] == "websocket"
        assert socket["since"] < socket["expiresAt"]
        assert sse["transport"] == "sse"
        assert token.split(".")[2] not in answer.text


@pytest.mark.parametrize(
    ("admin", "origin", "is_let_in"),
    [
        (True, "{own}", True),
        (True, "https://evil.example", False),
        (True, "null", False),
        (False, "{own}", True),
    ],
)
async def test_own_page_is_admitted(admin: bool, origin: str, is_let_in: bool) -> None:
    async with serving(admin=admin) as url:
        path = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"
        subprotocols = [Subprotocol("synap.v1"), Subprotocol(f"bearer.{operator_token()}")]
        asked = connect(path, origin=Origin(origin.format(own=url)), subprotocols=subprotocols)
        try:
            async with asked as socket:
                assert "synap.subscribed" in str(await socket.recv())
            found = True
        except (InvalidStatus, ConnectionClosed):
            found = False
        assert found is is_let_in


async def test_without_keys_it_is_for_this_machine() -> None:
    async with running_server(create_app(load_settings(admin=True, drain_timeout_s=0))) as url:
        assert (await get(url, "/admin/state", None)).status_code == 200
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{url}/admin/state", headers={"Host": "evil.example"})
        assert answer.status_code == 403
