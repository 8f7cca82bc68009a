"""PROTOCOL.md, "Server-Sent Events": rules that the wire alone does not show."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from synap_realtime import AsyncBroadcaster
from synap_realtime.server import create_app
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits


@asynccontextmanager
async def stream(
    rooms: str, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[AsyncIterator[str]]:
    async with (
        httpx.AsyncClient(base_url=rooms, timeout=TIMEOUT_S) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        assert response.status_code == 200
        yield response.aiter_lines()


async def until(lines: AsyncIterator[str], start: str) -> str:
    async with asyncio.timeout(TIMEOUT_S):
        async for line in lines:
            if line.startswith(start):
                return line
    raise AssertionError(f"the stream ended before {start!r}")


async def test_a_silent_stream_carries_comment_lines(rooms: str, set_waits: SetWaits) -> None:
    set_waits(heartbeat_s=0.05)
    async with stream(rooms, "/rooms/user_1/events") as lines:
        await until(lines, "event: synap.subscribed")
        for _ in range(3):
            await until(lines, ":")


async def test_a_page_of_an_allowed_origin_may_read_it(rooms: str) -> None:
    headers = {"Origin": "http://localhost:3000"}
    async with httpx.AsyncClient(base_url=rooms) as client:
        asked = await client.options(
            "/rooms/user_1/broadcast",
            headers={
                **headers,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert asked.status_code == 204
        assert asked.headers["Access-Control-Allow-Origin"] == headers["Origin"]
        assert "POST" in asked.headers["Access-Control-Allow-Methods"]
        wrong = await client.get("/rooms/nope/history", headers=headers)
        assert wrong.headers["Access-Control-Allow-Origin"] == headers["Origin"], "errors, too"
        foreign = await client.options(
            "/rooms/user_1/broadcast",
            headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        )
        assert foreign.status_code == 403
        assert "Access-Control-Allow-Origin" not in foreign.headers
        async with client.stream("GET", "/rooms/user_1/events", headers=headers) as response:
            assert response.headers["Access-Control-Allow-Origin"] == headers["Origin"]


async def test_a_stream_that_does_not_read_is_drained_and_resumes(rooms: str) -> None:
    where = urlsplit(rooms)
    sleeper = socket.socket()
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleeper.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sleeper, (where.hostname, where.port))
    await loop.sock_sendall(
        sleeper, b"GET /rooms/user_1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        httpx.AsyncClient(base_url=rooms) as client,
    ):
        async with asyncio.timeout(TIMEOUT_S):
            received = b""
            while b"synap.subscribed" not in received:  # until then, it has no backlog
                received += await loop.sock_recv(sleeper, 65536)
            sent = 0
            for sent in range(200):
                result = await broadcaster.broadcast_success(
                    "1", "a.x", {"x": "y" * 100_000}, id=f"n{sent}"
                )
                if sent > 20 and not result.broadcast_count:
                    break
            while (await client.get("/rooms/user_1/health")).json()["connections"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            try:
                while chunk := await loop.sock_recv(sleeper, 65536):
                    received += chunk
            except ConnectionError:
                pass  # cut, for it did not take the end
            sleeper.close()
        last = [line for line in received.split(b"\n") if line.startswith(b"id: ")][-2]
        headers = {"Last-Event-ID": last[4:].decode().strip()}
        async with stream(rooms, "/rooms/user_1/events", headers) as lines:
            subscribed = await until(lines, 'data: {"room"')
    data = json.loads(subscribed.removeprefix("data: "))
    assert data["recovered"] is True
    assert data["replayed"] > 0


HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/rooms/user_1/events?after=earliest", ""),
        ("/events?room=user_1&room=user_2&after=earliest", ""),
        ("/rooms/user_1/subscribe?after=earliest", HANDSHAKE),
    ],
    ids=["stream", "composite stream", "WebSocket"],
)
async def test_peer_that_reads_nothing_of_its_replay_is_closed(
    rooms: str, set_waits: SetWaits, target: str, fields: str
) -> None:
    """It has no backlog that could grow, only the time in which nothing was read."""
    set_waits(slow_consumer_timeout_s=0.5)
    where = urlsplit(rooms)
    loop = asyncio.get_running_loop()
    async with AsyncBroadcaster(rooms) as broadcaster, httpx.AsyncClient(base_url=rooms) as client:
        for _ in range(80):
            await broadcaster.broadcast_success("1", "a.x", {"x": "y" * 100_000})
        with socket.socket() as sleeper:
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sleeper.setblocking(False)
            await loop.sock_connect(sleeper, (where.hostname, where.port))
            head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
            await loop.sock_sendall(sleeper, head.encode())
            closed = 'synap_realtime_server_disconnects_total{reason="slow_consumer"} 1'
            async with asyncio.timeout(TIMEOUT_S):
                while closed not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await client.get("/rooms/user_1/health")).json()["connections"] == 0


async def test_draining_server_sends_closing_and_ends_the_stream(front: Front) -> None:
    async with httpx.AsyncClient() as client:
        async with front(create_app()) as url:
            request = client.build_request("GET", f"{url}/rooms/user_1/events")
            response = await client.send(request, stream=True)
            lines = response.aiter_lines()
            await until(lines, "event: synap.subscribed")
        assert await until(lines, "event: synap.closing")
        assert int((await until(lines, "retry:")).removeprefix("retry:")) >= 100
        assert [line async for line in lines if line.startswith("id:")] == []
        await response.aclose()
