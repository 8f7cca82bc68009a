"""PROTOCOL.md, "Subscribing" and "Close codes", over real WebSockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from synap_realtime import AsyncBroadcaster
from synap_realtime.server import RoomServer, create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.protocols import websocket
from synap_realtime.server.protocols.websocket import WebSocketProtocol
from synap_realtime.server.serve import running_server
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits


@asynccontextmanager
async def listening(base: str, path: str, **options: str) -> AsyncIterator[ClientConnection]:
    url = base.replace("http", "ws") + path
    async with websockets.connect(url, **options) as ws:  # type: ignore[arg-type]
        yield ws


async def receive_id(ws: ClientConnection) -> str:
    async with asyncio.timeout(TIMEOUT_S):
        id: str = json.loads(await ws.recv())["id"]
        return id


async def closed_with(ws: ClientConnection) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        await ws.wait_closed()
    return int(ws.close_code or 0)


async def connections(rooms: str, room: str) -> int:
    async with httpx.AsyncClient(base_url=rooms) as client:
        return int((await client.get(f"/rooms/{room}/health")).json()["connections"])


async def until_connections(rooms: str, room: str, count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while await connections(rooms, room) != count:  # noqa: ASYNC110 - across a process border
            await asyncio.sleep(0.01)


async def test_ping_is_answered_by_pong(rooms: str) -> None:
    async with listening(rooms, "/rooms/user_1/subscribe") as ws:
        await ws.send("ping")
        assert await ws.recv() == "pong"


async def test_only_subscribers_of_the_room_receive_it(rooms: str) -> None:
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        listening(rooms, "/rooms/user_1/subscribe") as first,
        listening(rooms, "/rooms/user_1/subscribe") as second,
        listening(rooms, "/rooms/user_2/subscribe") as other,
    ):
        result = await broadcaster.broadcast_success("1", "a.completed", {}, id="n1")
        assert result.broadcast_count == 2
        assert [await receive_id(first), await receive_id(second)] == ["n1", "n1"]
        await broadcaster.broadcast_success("2", "a.completed", {}, id="n2")
        assert await receive_id(other) == "n2"


async def test_a_disconnect_is_cleaned_up(rooms: str) -> None:
    async with listening(rooms, "/rooms/user_1/subscribe"):
        assert await connections(rooms, "user_1") == 1
    await until_connections(rooms, "user_1", 0)


async def test_a_peer_that_vanishes_is_cleaned_up(rooms: str) -> None:
    async with listening(rooms, "/rooms/user_1/subscribe") as ws:
        ws.transport.abort()
    await until_connections(rooms, "user_1", 0)


async def test_late_subscriber_receives_a_finished_request(rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        await broadcaster.broadcast_success("1", "a.completed", {}, "r1", id="n1")
        async with listening(rooms, "/rooms/request_r1/subscribe") as ws:
            assert await receive_id(ws) == "n1"


async def test_a_cursor_resumes(rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for n in range(3):
            await broadcaster.broadcast_success("1", "a.completed", {}, id=f"n{n}")
        async with listening(rooms, "/rooms/user_1/subscribe?after=earliest") as ws:
            cursor = json.loads(await ws.recv())["cursor"]
        async with listening(rooms, f"/rooms/user_1/subscribe?after={cursor}") as ws:
            assert [await receive_id(ws), await receive_id(ws)] == ["n1", "n2"]


async def test_other_client_messages_are_ignored(rooms: str) -> None:
    async with listening(rooms, "/rooms/user_1/subscribe") as ws:
        for text in ("hello", '{"action":"dance"}', "", "x" * 4096):
            await ws.send(text)
        await ws.send("ping")
        assert await ws.recv() == "pong"


@pytest.mark.parametrize("message", [b"binary", "x" * 4097, "é" * 2049])
async def test_protocol_violation_is_closed_with_4540(rooms: str, message: str | bytes) -> None:
    async with listening(rooms, "/rooms/user_1/subscribe") as ws:
        await ws.send(message)
        assert await closed_with(ws) == 4540


async def test_closes_idle_client_with_4009(front: Front) -> None:
    async with (
        front(create_app(load_settings(idle_timeout_s=1))) as url,
        listening(url, "/rooms/user_1/subscribe") as ws,
    ):
        answer_no_pings(ws)
        for _ in range(4):
            await asyncio.sleep(0.4)
            await ws.send("ping")
            assert await ws.recv() == "pong"
        assert await closed_with(ws) == 4009
        assert str(ws.close_reason).startswith("idle timeout")


async def test_keeps_a_client_that_sends_no_text_ping(front: Front) -> None:
    """Of our own front it answers pings; of an app, the ASGI server finds out whether it lives."""
    async with (
        front(create_app(load_settings(idle_timeout_s=1))) as url,
        listening(url, "/rooms/user_1/subscribe") as ws,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await ws.recv()
        async with AsyncBroadcaster(url) as broadcaster:
            assert (await broadcaster.broadcast("user_1", {"type": "a", "data": {}})).success
        assert '"type":"a"' in str(await ws.recv())


def answer_no_pings(ws: websockets.ClientConnection) -> None:
    """Its library answers each ping; a peer that has gone answers none."""
    send = ws.protocol.send_frame

    def send_no_pong(frame: websockets.Frame) -> None:
        if frame.opcode is not websockets.Opcode.PONG:
            send(frame)

    ws.protocol.send_frame = send_no_pong  # type: ignore[method-assign]


async def test_slow_consumer_is_closed_and_affects_nobody(rooms: str) -> None:
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        listening(rooms, "/rooms/user_1/subscribe") as reader,
        listening(rooms, "/rooms/user_1/subscribe") as sleeper,
    ):
        sleeper.transport.pause_reading()
        for n in range(200):
            result = await broadcaster.broadcast_success(
                "1", "a.x", {"x": "y" * 100_000}, id=f"{n}"
            )
            assert result.success
            assert await receive_id(reader) == f"{n}"
            if result.broadcast_count == 1:
                break
        else:
            pytest.fail("the sleeper was never let go")
        await until_connections(rooms, "user_1", 1)
        sleeper.transport.abort()


async def test_aborts_socket_of_a_slow_consumer(
    monkeypatch: pytest.MonkeyPatch,
    set_waits: SetWaits,
) -> None:
    """Its close frame would wait behind what it does not take, and the socket with it."""
    set_waits(close_handshake_s=0.05, pending_check_interval_s=0.05)
    cut = asyncio.Event()

    class Watched(WebSocketProtocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            cut.set()

    monkeypatch.setattr(websocket, "WebSocketProtocol", Watched)
    async with (
        running_server(create_app()) as url,
        AsyncBroadcaster(url) as broadcaster,
        listening(url, "/rooms/user_1/subscribe") as ws,
    ):
        ws.transport.pause_reading()
        async with asyncio.timeout(TIMEOUT_S):
            while await connections(url, "user_1"):
                await broadcaster.broadcast_success("1", "a.x", {"x": "y" * 200_000})
            await cut.wait()
        ws.transport.abort()


async def test_full_batch_does_not_close_a_reading_subscriber(rooms: str) -> None:
    items = [
        {"rooms": ["user_1"], "type": "a", "data": {"x": "y" * 950}, "id": f"n{n}"}
        for n in range(1000)
    ]
    async with (
        listening(rooms, "/rooms/user_1/subscribe") as ws,
        httpx.AsyncClient(base_url=rooms) as client,
    ):
        response = await client.post("/broadcast", json={"notifications": items})
        assert response.json()["success"]
        assert [await receive_id(ws) for _ in items] == [item["id"] for item in items]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/rooms/user/subscribe", 400),
        ("/rooms/user_1/subscribe?after=nowhere", 400),
        ("/rooms/user_1/listen", 404),
        ("/", 404),
    ],
)
async def test_invalid_handshake_is_refused_with_its_reason(
    rooms: str, path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with listening(rooms, path):
            pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_page_of_another_origin_cannot_listen(rooms: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with listening(rooms, "/rooms/user_1/subscribe", origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_an_allowed_origin_can_listen(front: Front) -> None:
    settings = load_settings(allowed_origins="https://app.example, https://b.example/")
    async with front(create_app(settings)) as url:
        for origin in ("https://app.example", "https://b.example", "http://localhost:3000"):
            async with listening(url, "/rooms/user_1/subscribe", origin=origin) as ws:
                await ws.send("ping")
                assert await ws.recv() == "pong"


async def test_stopping_server_asks_subscribers_to_reconnect(front: Front) -> None:
    async with front(create_app()) as url:
        ws = await websockets.connect(url.replace("http", "ws") + "/rooms/user_1/subscribe")
    assert await closed_with(ws) == 4012


async def test_can_be_mounted_in_another_app() -> None:
    app = fastapi.FastAPI()
    app.mount("/realtime/v1", create_app())
    async with (
        running_server(app) as url,
        AsyncBroadcaster(f"{url}/realtime/v1") as broadcaster,
        listening(url, "/realtime/v1/rooms/user_1/subscribe") as ws,
    ):
        assert (await broadcaster.broadcast_success("1", "a.completed", {}, id="n1")).success
        assert await receive_id(ws) == "n1"
        with pytest.raises(websockets.InvalidStatus):
            async with listening(url, "/realtime/v1/rooms/nope/subscribe"):
                pass


async def test_can_be_mounted_behind_a_proxy_that_strips_the_root() -> None:
    app = create_app()

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/api/realtime"}, receive, send)

    async with running_server(mounted) as url:
        for path in ("/rooms", "/realtime/rooms", "/api/realtime/rooms"):
            async with listening(url, f"{path}/user_1/subscribe") as ws:
                await ws.send("ping")
                assert await ws.recv() == "pong"


async def test_without_keys_it_answers_this_machine_only() -> None:
    transport = httpx.ASGITransport(create_app(), client=("203.0.113.7", 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/health")
    assert response.status_code == 403
    assert response.json()["error"] == "Authentication not configured"


def test_an_unknown_kind_of_scope_is_an_error() -> None:
    server: RoomServer = create_app()
    with pytest.raises(RuntimeError, match="unsupported ASGI scope type"):
        asyncio.run(server({"type": "carrier-pigeon"}, None, None))  # type: ignore[arg-type]
