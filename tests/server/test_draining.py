"""PROTOCOL.md, "Draining": the guarantees of a server that stops."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S


async def dial(url: str, room: str = "user_1") -> ClientConnection:
    address = url.replace("http", "ws") + f"/rooms/{room}/subscribe"
    ws = await websockets.connect(address, subprotocols=[Subprotocol("synap.v1")])
    assert json.loads(await ws.recv())["type"] == "synap.subscribed"
    return ws


async def rest_of(ws: ClientConnection) -> list[dict[str, object]]:
    """What still comes, up to the close."""
    frames = []
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while True:
                frames.append(json.loads(await ws.recv()))
        except websockets.ConnectionClosed:
            return frames


async def test_all_receive_reconnect_delay_and_4012(front: Front) -> None:
    async with front(create_app(load_settings(drain_timeout_s=1))) as url:
        sockets = [await dial(url, f"user_{n}") for n in range(250)]
    waits = []
    for ws in sockets:
        (closing,) = await rest_of(ws)
        assert ws.close_code == 4012
        assert closing["type"] == "synap.closing"
        data = closing["data"]
        assert isinstance(data, dict)
        assert data["code"] == 4012
        waits.append(data["reconnectAfterMs"])
    assert len(set(waits)) > 50, "not all at once"


async def test_acknowledged_publishes_are_delivered_before_the_close(front: Front) -> None:
    async with front(create_app()) as url:
        ws = await dial(url)
        ws.transport.pause_reading()
        items = [
            {"rooms": ["user_1"], "type": "a", "data": {"x": "y" * 500}, "id": f"n{n}"}
            for n in range(500)
        ]
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.post("/broadcast", json={"notifications": items})
        assert answer.json()["success"]
        ws.transport.resume_reading()
        # The system keeps little for a client that does not read, so this one reads meanwhile.
        reading = asyncio.create_task(rest_of(ws))
    frames = await reading
    received = [frame["id"] for frame in frames if frame["type"] == "a"]
    assert received == [item["id"] for item in items]
    assert ws.close_code == 4012


async def test_slow_consumer_cannot_delay_shutdown(front: Front, tmp_path: Path) -> None:
    settings = load_settings(drain_timeout_s=0.2, store=f"sqlite:///{tmp_path}/rooms.db")
    async with asyncio.timeout(TIMEOUT_S):
        async with front(create_app(settings)) as url:
            ws = await dial(url)
            ws.transport.pause_reading()
            async with httpx.AsyncClient(base_url=url) as client:
                for _ in range(6):
                    await client.post(
                        "/rooms/user_1/broadcast", json={"type": "a", "data": {"x": "y" * 150_000}}
                    )
    ws.transport.abort()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_draining_server_is_not_ready_and_refuses_new_work(
    store: str, tmp_path: Path
) -> None:
    url = "memory://" if store == "memory" else f"sqlite:///{tmp_path}/rooms.db"
    server = create_app(load_settings(store=url))
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/ready")).status_code == 200
        begun = [
            asyncio.create_task(
                client.post("/rooms/user_1/broadcast", json={"type": "a", "data": {}})
            )
            for _ in range(20)
        ]
        await asyncio.sleep(0.001)
        await server.drain()
        for path in ("/rooms/user_1/broadcast", "/broadcast"):
            response = await client.post(path, json={"type": "a", "data": {}})
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
        response = await client.get("/ready")
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        response = await client.get("/rooms/user_1/events")
        assert response.status_code == 200  # after a 503 an EventSource never comes back
        assert re.fullmatch(r"retry: 1\d{3}\n\n", response.text)
        assert (await client.get("/health")).status_code == 200
        answers = [response.json() for response in await asyncio.gather(*begun)]
        kept = [answer["id"] for answer in answers if "id" in answer]
        refused = [answer["code"] for answer in answers if "code" in answer]
        assert set(refused) <= {"unavailable"}
        history = (await client.get("/rooms/user_1/history")).json()
        assert sorted(each["id"] for each in history["notifications"]) == sorted(kept)
    await server.close()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/rooms/user_1/history")).status_code == 503
