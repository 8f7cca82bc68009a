"""Rules of the ASGI front alone: no error in the host, and nothing leaked into it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from synap_realtime.server import RoomServer, create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.resources.pacing import Pacer
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET
from tests.support.servers import by_uvicorn
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

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
def _little_patience(set_waits: SetWaits) -> None:
    set_waits(slow_consumer_timeout_s=0.2, asgi_close_timeout_s=0.2)


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
        while len(app.node.sessions.deliveries()) != count:  # noqa: ASYNC110
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
async def test_slow_consumer_leaves_the_room_and_no_log_line(
    sent: bytes,
) -> None:
    app = create_app(load_settings(drain_timeout_s=0))
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
    async with by_uvicorn(create_app(load_settings(drain_timeout_s=0))) as url:
        where = urlsplit(url)
        for path in (b"/rooms/nope/subscribe", b"/nothing"):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(b"GET " + path + HEAD + HANDSHAKE + b"\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 40")
            writer.close()


async def test_a_host_that_has_closed_a_websocket_has_no_error_either() -> None:
    """uvicorn closes it when its client violates the protocol, and notifies the app later."""
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
    assert not app.node.sessions.deliveries()
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
async def test_request_head_is_checked_for_any_asgi_server(sent: bytes, status: int) -> None:
    async with by_uvicorn(create_app(load_settings(drain_timeout_s=0))) as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):
            line = await reader.readline()
        writer.transport.abort()
    assert int(line.split()[1]) == status


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"content-length", b"2", 200),
        (b"content-length", b"0" * 5000 + b"2", 200),
        (b"content-length", b"\xb2", 200),  # no ASCII digit, although str.isdigit() is true
        (b"content-length", b"3", 400),
        (b"content-length", b"9" * 5000, 413),
        (b"transfer-encoding", b"\xa0chunked", 400),
        (b"transfer-encoding", b"\x1cchunked", 400),
        (b"transfer-encoding", b"\tchunked ", 200),
        (b"content-type", b"application/json\x1f", 415),
        (b"content-encoding", b"\x85", 415),
    ],
)
async def test_header_values_are_parsed_strictly(name: bytes, value: bytes, status: int) -> None:
    """An ASGI server may pass on what no HTTP parser of ours has seen."""
    sent: list[Any] = []
    body = b'{"type":"a","data":{}}'
    if status != 413:
        value = value.replace(b"2", b"%d" % len(body))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/rooms/user_1/broadcast", "query_string": b"",
        "headers": [(b"host", b"localhost"), (name, value)], "client": ("127.0.0.1", 1),
    }  # fmt: skip
    app = create_app()
    async with asyncio.timeout(TIMEOUT_S):
        await app(scope, receive, send)
    assert sent[0]["status"] == status
    await app.close()


async def test_reports_a_body_that_the_asgi_server_dropped() -> None:
    """uvicorn treats a request with Upgrade as one without a body, as httptools reports it."""
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


# --- bytes that are held for peers --------------------------------------------------------------

MIB = 1024 * 1024


def with_keys(**limits: Any) -> RoomServer:
    settings = load_settings(
        drain_timeout_s=0,
        api_keys={"jobs": API_KEY},
        token_secrets=[SECRET],
        read_bytes_per_s=0,
        **limits,
    )
    return create_app(settings)


def as_user(name: str) -> bytes:
    return f"Authorization: Bearer {mint_token(name, secret=SECRET)}\r\n".encode()


def history(user: str) -> bytes:
    return b"GET /rooms/user_%b/history?limit=1000" % user.encode() + HEAD + as_user(user) + b"\r\n"


def half_publish(size: int) -> bytes:
    """Half of a body of so many bytes."""
    return (
        b"POST /rooms/user_1/broadcast" + HEAD + b"Authorization: Bearer %b\r\n" % API_KEY.encode()
        + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size
        + b"x" * (size // 2)
    )  # fmt: skip


async def filled(url: str, *users: str) -> None:
    """Rooms with 2 MB."""
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}
    ) as client:
        for user in users:
            for _ in range(10):
                response = await client.post(f"/rooms/user_{user}/broadcast", json=LARGE)
                assert response.status_code == 200


async def silent(url: str, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends, and reads nothing by itself."""
    where = urlsplit(url)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, (where.hostname, where.port))
    reader, writer = await asyncio.open_connection(sock=peer, limit=1024)
    writer.write(sent)
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(10):
        return int((await reader.readline()).split()[1])


async def until_held(budget: Any, least: int, most: int) -> None:
    async with asyncio.timeout(10):
        while not least <= budget.bytes <= most:  # noqa: ASYNC110 - the host calls nobody
            await asyncio.sleep(0.01)


async def test_refuses_user_that_reads_no_responses() -> None:
    most = MIB
    app = with_keys(max_caller_bytes=most)
    async with by_uvicorn(app, bounded=True) as url:
        await filled(url, "1", "2")
        peers = [await silent(url, history("1")) for _ in range(20)]
        statuses = [await status_of(reader) for reader, _ in peers]
        assert set(statuses) == {200, 429}
        assert 0 < app.node.budgets.responses.bytes <= most * 2
        async with httpx.AsyncClient(base_url=url) as client:
            own, other = ({"Authorization": f"Bearer {mint_token(n, secret=SECRET)}"} for n in "12")
            page = await client.get("/rooms/user_2/history?limit=1000", headers=other)
            assert len(page.json()["notifications"]) > 4
            refused = await client.get(
                "/rooms/user_1/history?limit=1000", headers={**own, "Origin": url}
            )
            assert refused.status_code == 429
            assert refused.json()["code"] == "rate_limited"
            assert "of unread responses" in refused.json()["details"]
            assert refused.headers["retry-after"]
            assert refused.headers["access-control-allow-origin"] == url
            short = await client.get("/rooms/user_1/health", headers=own)
            assert short.status_code == 200
            for _, writer in peers:
                writer.transport.abort()
            await until_held(app.node.budgets.responses, 0, 0)
            again = await client.get("/rooms/user_1/history?limit=1000", headers=own)
            assert again.status_code == 200


async def test_response_is_charged_until_its_peer_has_read_it() -> None:
    app = with_keys()
    async with by_uvicorn(app, bounded=True) as url:
        await filled(url, "1")
        reader, writer = await silent(url, history("1"))
        await until_held(app.node.budgets.responses, 1, MIB)
        assert await status_of(reader) == 200
        end = b""
        async with asyncio.timeout(10):
            while end != b"\r\n0\r\n\r\n":  # after the last chunk
                end = (end + await reader.read(1 << 16))[-7:]
        await until_held(app.node.budgets.responses, 0, 0)
        writer.close()


async def test_responses_are_bounded_in_total_and_leave_capacity_for_another_user() -> None:
    most = 3 * MIB
    app = with_keys(max_response_bytes=most, max_caller_bytes=0)
    async with by_uvicorn(app, bounded=True) as url:
        await filled(url, "1", "2")
        peers = [await silent(url, history("1")) for _ in range(20)]
        statuses = [await status_of(reader) for reader, _ in peers]
        assert set(statuses) == {200, 503}
        reader, writer = await silent(url, history("2"))
        assert await status_of(reader) == 200
        assert app.node.budgets.responses.bytes <= most
        for _, each in [*peers, (reader, writer)]:
            each.transport.abort()
        await until_held(app.node.budgets.responses, 0, 0)


async def test_incomplete_bodies_are_bounded_and_small_publishes_succeed() -> None:
    most = MIB
    app = with_keys(max_request_bytes=most)
    async with by_uvicorn(app) as url:
        peers = [await silent(url, half_publish(400_000)) for _ in range(12)]
        done, waiting = await asyncio.wait(
            [asyncio.create_task(status_of(reader)) for reader, _ in peers], timeout=2
        )
        assert {task.result() for task in done} == {503}
        assert waiting, "some of them may send the rest"
        assert 0 < app.node.budgets.requests.bytes <= most
        async with httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}
        ) as client:
            small = await client.post(
                "/rooms/user_1/broadcast", content=json.dumps({"type": "a", "data": {}})
            )
            assert small.status_code == 200
            for task in waiting:
                task.cancel()
            for _, writer in peers:
                writer.transport.abort()
            await until_held(app.node.budgets.requests, 0, 0)
            large = await client.post("/rooms/user_1/broadcast", json=LARGE)
            assert large.status_code == 200


async def test_a_publisher_does_not_wait_behind_simultaneous_reads() -> None:
    app = create_app(load_settings(drain_timeout_s=0))
    app._pacer = Pacer(share_s=0)  # one request in each iteration of the loop
    answered: list[str] = []

    async def ask(method: str, path: str) -> None:
        body = iter([{"type": "http.request", "body": b'{"type":"a","data":{}}'}])

        async def receive() -> Any:
            return next(body)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                answered.append(method)

        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"",
            "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
        }  # fmt: skip
        await app(scope, receive, send)

    async with asyncio.timeout(5):
        await asyncio.gather(
            *(ask("GET", "/rooms/user_1/history") for _ in range(20)),
            ask("POST", "/rooms/user_1/broadcast"),
        )
    assert len(answered) == 21
    assert answered.index("POST") < 5
    await app.close()
