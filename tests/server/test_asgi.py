"""The ASGI front alone: what its host would call an error, and what would stay behind in it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from synap_realtime.server import RoomServer, create_app
from synap_realtime.server.settings import load_settings
from tests.server.fronts import by_uvicorn
from tests.timeouts import TIMEOUT_S

HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
LARGE = {"type": "a", "data": {"x": "y" * 200_000}}


@pytest.fixture(autouse=True)
def _a_quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    wrong = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR or r.exc_info]
    assert not wrong, wrong


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("connections", "subscription"):
        monkeypatch.setattr(f"synap_realtime.server.{module}.SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr("synap_realtime.server.connections.CLOSE_TIMEOUT_S", 0.2)


async def stalled(url: str, sent: bytes) -> asyncio.StreamWriter:
    where = urlsplit(url)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, (where.hostname, where.port))
    _, writer = await asyncio.open_connection(sock=peer, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(sent)
    return writer


async def until_there_are(app: RoomServer, count: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while len(app._sessions.subscriptions()) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /rooms/user_1/events" + HEAD + b"\r\n",
        b"GET /rooms/user_1/subscribe" + HEAD + HANDSHAKE + b"\r\n",
        # It does not even read what it has asked for before.
        b"GET /rooms/user_1/history?limit=1000" + HEAD + b"\r\n"
        + b"GET /rooms/user_1/events" + HEAD + b"\r\n",
    ],
    ids=["an event stream", "a WebSocket", "a stream behind an answer"],
)  # fmt: skip
async def test_who_does_not_read_leaves_the_room_and_nothing_in_the_log(sent: bytes) -> None:
    app = create_app(load_settings(drain_s=0))
    async with (
        by_uvicorn(app) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        for _ in range(10):
            await client.post("/rooms/user_1/broadcast", json=LARGE)
        before = len(asyncio.all_tasks())
        writer = await stalled(url, sent)
        await until_there_are(app, 1)
        for _ in range(20):
            await client.post("/rooms/user_1/broadcast", json=LARGE)
        await until_there_are(app, 0)
        writer.transport.abort()
        async with asyncio.timeout(TIMEOUT_S):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_refused_handshake_is_no_error() -> None:
    async with by_uvicorn(create_app(load_settings(drain_s=0))) as url:
        where = urlsplit(url)
        for path in (b"/rooms/nope/subscribe", b"/nothing"):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(b"GET " + path + HEAD + HANDSHAKE + b"\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 40")
            writer.close()


async def test_a_host_that_has_closed_a_websocket_has_no_error_either() -> None:
    """uvicorn closes it when its client breaks the protocol, and tells us later."""
    never = asyncio.Event()
    incoming = iter([{"type": "websocket.connect"}])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        for message in incoming:
            return message
        await never.wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "websocket.send":
            raise RuntimeError(
                "Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."
            )

    app = create_app()
    scope = {
        "type": "websocket", "path": "/rooms/user_1/subscribe", "query_string": b"",
        "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
        "subprotocols": ["synap.v1"],
    }  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        await app(scope, receive, send)
    assert sent == ["websocket.accept", "websocket.send"]
    assert not app._sessions.subscriptions()
    await app.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost/x\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + HEAD + b"\r\n", 414),
        (b"GET /health?" + b"a=b&" * 3000 + HEAD + b"\r\n", 414),
        (b"GET /health?" + b"a=b&" * 40 + HEAD + b"\r\n", 400),
        (b"GET /rooms/user_1/subscribe HTTP/1.1\r\n" + HANDSHAKE + b"\r\n", 400),
        (b"GET /health" + HEAD + b"\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_head_is_checked_whoever_has_parsed_it(sent: bytes, status: int) -> None:
    async with by_uvicorn(create_app(load_settings(drain_s=0))) as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):
            line = await reader.readline()
        writer.transport.abort()
    assert int(line.split()[1]) == status


async def test_says_when_the_asgi_server_has_dropped_a_body() -> None:
    """uvicorn takes a request with Upgrade for one without a body, as httptools tells it."""
    body = b'{"type":"a","data":{}}'
    async with by_uvicorn(create_app()) as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(
            b"POST /rooms/user_1/broadcast" + HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"passed on 0 of 22 bytes" in answer
        writer.close()
