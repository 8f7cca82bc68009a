"""Any client input gets a clear error and a quiet log, and the server keeps serving."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import re
import sqlite3
import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from websockets.typing import Subprotocol

from synap_realtime import ConfigurationError
from synap_realtime.server import create_app
from synap_realtime.server.config.settings import load_settings
from synap_realtime.server.protocols import server, upgrade
from synap_realtime.server.protocols.http1 import Http1Protocol
from synap_realtime.server.protocols.http1_parser import MAX_PIPELINED
from synap_realtime.server.protocols.websocket import MAX_FRAMES_PER_S, WebSocketProtocol
from synap_realtime.server.serve import running_server
from tests.support.servers import FRONTS
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.waits import SetWaits

NOTE = {"type": "note.creation.completed", "data": {"entityId": "e1"}}
BODY = json.dumps(NOTE).encode()
HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture(params=["front-memory", "asgi-memory", "front-sqlite"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    front, _, kind = request.param.partition("-")
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/rooms.db"
    async with FRONTS[front](create_app(load_settings(store=store, drain_timeout_s=1))) as url:
        yield url


@pytest.fixture
async def own() -> AsyncIterator[str]:
    """The address of a room server on our own front."""
    async with running_server(create_app()) as url:
        yield url


@pytest.fixture(autouse=True)
def _a_quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    wrong = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR or r.exc_info]
    assert not wrong, wrong


async def require_alive(url: str, case: object) -> None:
    """A health check, and a notification that reaches a subscriber."""
    room = f"{url}/rooms/request_alive"
    async with httpx.AsyncClient() as client, asyncio.timeout(TIMEOUT_S):
        assert (await client.get(f"{url}/health")).status_code == 200, case
        address = room.replace("http", "ws") + "/subscribe?after=latest"
        async with websockets.connect(address, subprotocols=[Subprotocol("synap.v1")]) as ws:
            # A pong says nothing about the subscription: the store may still look for the latest.
            assert json.loads(await ws.recv())["type"] == "synap.subscribed", case
            await ws.send("ping")
            assert await ws.recv() == "pong", case
            receipt = (await client.post(f"{room}/broadcast", json=NOTE)).json()
            assert json.loads(await ws.recv())["id"] == receipt["id"], case


def note(**members: Any) -> bytes:
    return json.dumps({**NOTE, **members}).encode()


# --- bodies -------------------------------------------------------------------------------------

BAD_BODIES = [
    b"", b"{", b"nonsense", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\xef\xbb\xbf" + BODY,
    BODY.decode().encode("utf-16"), b"null", b"[]", b'"text"', b"7", b"true", b"{}", BODY + BODY,
    BODY + b"\x00", b"{'type':'a'}", b'{"type":"a"}', b'{"data":{}}', b'{"type":"a","data":[]}',
    b'{"type":"a","data":null}', b'{"type":"a","data":"{}"}', b'{"type":7,"data":{}}',
    b'{"type":null,"data":{}}', b'{"type":"","data":{}}', b'{"type":"synap.x","data":{}}',
    b'{"type":"a","data":{"x":NaN}}', b'{"type":"a","data":{"x":-Infinity}}',
    b'{"type":"a","data":{"x":1e999}}', b'{"type":"a","data":{},"x":-1e999}',
    b'{"type":"a","data":{"x":"\\ud800"}}', b'{"type":"a","data":{"\\udfff":1}}',
    b'{"type":"a","data":{},"id":"\\ud800"}', b'{"type":"\\ud800","data":{}}',
    b'{"type":"a","data":{},"x":"\\ud800"}', b'{"type":"a","data":{},"\\ud800":1}',
    b'{"type":"a","data":{"x":"\\ude00\\ud83d"}}', b'{"type":"a","data":{"x":"\xed\xa0\x80"}}',
    b'{"type":"a","data":{"x":"\n"}}', b'{"type":"a","data":{"x":01}}',
    b'{"type":"a","data":{"x":' + b"9" * 5000 + b"}}",
    note(id=""), note(id=7), note(id={}), note(id="x" * 129), note(type="x" * 129),
    note(status="done"), note(status=1), note(status=["success"]), note(requestId={}),
    note(requestId=1), note(timestamp="now"), note(timestamp=0), note(timestamp="9999-99-99"),
    note(timestamp="0001-01-01T00:00:00+23:59"), note(timestamp="2026-01-01T00:00:00"),
    note(timestamp="\uff12026-01-01T00:00:00Z"),
]  # fmt: skip


async def test_a_bad_body_gets_a_clear_400(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for body in BAD_BODIES:
            response = await client.post("/rooms/user_1/broadcast", content=body)
            assert response.status_code == 400, body[:100]
            answer = response.json()
            assert answer["code"] == "invalid_request"
            assert answer["error"]
            assert answer["details"]
            assert len(response.content) < 1000
            assert "Traceback" not in response.text
            batch = b'{"notifications":[' + body.replace(b"{", b'{"rooms":["user_1"],', 1) + b"]}"
            response = await client.post("/broadcast", content=batch)
            if response.status_code == 200:
                assert response.json()["results"][0]["code"] == "invalid_request", body[:100]
            else:
                assert response.status_code == 400, body[:100]
            await require_alive(url, body[:100])
        assert (await client.get("/rooms/user_1/history")).json()["notifications"] == []


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"notifications":[]}', b'{"notifications":{}}', b'{"notifications":null}'],
)
async def test_a_bad_batch_gets_a_clear_400(rooms: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        response = await client.post("/broadcast", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


async def test_unusual_valid_input_is_stored_and_delivered_unchanged(url: str) -> None:
    """A store may not choke on it, nor change it."""
    odd: list[dict[str, Any]] = [
        {"id": "\x00"}, {"id": "a\x00b"}, {"id": "a\x00c"}, {"id": "'; DROP TABLE entry; --"},
        {"id": "😀" * 128}, {"id": "\u2028\r\n\x7f\ufffe"}, {"type": "a\x00\n"},
        {"data": {"x": "\x00", "\x00": ["😀", "\u2028", "\r\n"]}},
        {"data": {"x": 2**63}}, {"data": {"x": -(2**200)}}, {"data": {"x": 1.5e308}},
        {"data": {"": {"": ""}}}, {"data": {"k" * 200_000: 1}}, {"requestId": "\x00" * 1000},
        {"__proto__": {}, "constructor": 1, "model_extra": 2, "request_id": "r"}, {"\x00": "\x00"},
        {"room": "user_2", "cursor": "x"}, {"room": 7, "cursor": []},
        {"timestamp": "2026-01-01t00:00:00.1234567890+01:00"},
    ]  # fmt: skip
    async with httpx.AsyncClient(base_url=url) as client:
        for number, members in enumerate(odd):
            body = note(**members)
            room = f"/rooms/request_{number}"
            receipt = (await client.post(f"{room}/broadcast", content=body)).json()
            assert receipt["success"], (members, receipt)
            history = (await client.get(f"{room}/history")).json()
            (kept,) = history["notifications"]
            sent = {**NOTE, "id": receipt["id"], **members}
            for name, value in sent.items():
                if name not in ("room", "cursor", "timestamp", "request_id"):
                    assert kept[name] == value, members
            assert kept["room"] == f"request_{number}"
            assert kept["cursor"] == receipt["cursor"]
            again = (await client.post(f"{room}/broadcast", json=kept)).json()
            assert again == {**receipt, "duplicate": True}
            async with client.stream("GET", f"{room}/events") as events:
                text = ""  # not by aiter_lines(), which splits at U+2028, too
                async for part in events.aiter_text():
                    text += part
                    if "event: " in text:
                        break
            data = text.partition("\ndata: ")[2].partition("\n\n")[0]
            assert json.loads(data) == kept
            await require_alive(url, members)


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "rooms.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE its (own TEXT)")
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="another program's database"):
        create_app(load_settings(store=f"sqlite:///{file}"))
    assert file.read_bytes() == before


async def test_restored_file_accepts_the_next_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what stood in its place meanwhile is not touched."""
    file, away, elsewhere = (tmp_path / f"{name}.db" for name in ("rooms", "away", "other"))
    with contextlib.closing(sqlite3.connect(elsewhere)) as other:
        other.execute("CREATE TABLE its (own TEXT)")
    async with running_server(create_app(load_settings(store=f"sqlite:///{file}"))) as url:
        room = f"{url}/rooms/user_1/broadcast"
        async with httpx.AsyncClient() as client:
            assert (await client.post(room, json=NOTE)).status_code == 200
            file.rename(away)
            file.write_bytes(elsewhere.read_bytes())
            for _ in range(2):
                refused = await client.post(room, json=NOTE)
                assert refused.status_code == 503
                assert "moved or deleted" in refused.json()["details"]
            assert file.read_bytes() == elsewhere.read_bytes()
            away.replace(file)
            assert (await client.post(room, json=NOTE)).status_code == 200
    # Once each: that it went, and that it is back.
    said = [record.getMessage() for record in caplog.records]
    assert ["failed" in line for line in said] == [True, False]
    caplog.clear()


async def test_last_of_a_repeated_member_is_used(rooms: str) -> None:
    body = b'{"type":"a","type":"b","data":[],"data":{"x":1,"x":2},"id":"n1","id":"n2"}'
    async with httpx.AsyncClient(base_url=rooms) as client:
        receipt = (await client.post("/rooms/user_1/broadcast", content=body)).json()
        (kept,) = (await client.get("/rooms/user_1/history")).json()["notifications"]
    assert receipt["id"] == kept["id"] == "n2"
    assert (kept["type"], kept["data"]) == ("b", {"x": 2})


async def test_too_much_gets_a_413(rooms: str) -> None:
    big = {**NOTE, "data": {"x": "y" * 256 * 1024}}
    long_key = {**NOTE, "data": {"k" * 1_000_000: 1}}
    huge = {**NOTE, "data": {"x": "y" * 2 * 1024 * 1024}}
    many = {"notifications": [{**NOTE, "rooms": ["user_1"]}] * 1001}
    many_rooms = {"notifications": [{**NOTE, "rooms": [f"user_{n}" for n in range(1001)]}]}
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, body in [
            ("/rooms/user_1/broadcast", big),
            ("/rooms/user_1/broadcast", long_key),
            ("/rooms/user_1/broadcast", huge),
            ("/broadcast", {"notifications": [huge]}),
            ("/broadcast", many),
            ("/broadcast", many_rooms),
        ]:
            response = await client.post(path, json=body)
            assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
            await require_alive(rooms, path)


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "GZIP", "x"])
async def test_rejects_body_with_content_encoding(rooms: str, coding: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, content in (
            ("/rooms/user_1/broadcast", gzip.compress(BODY)),
            ("/broadcast", gzip.compress(BODY)),
            ("/revoke", b"{}"),
        ):
            headers = {"Content-Encoding": coding}
            response = await client.post(path, content=content, headers=headers)
            if path == "/revoke" and response.status_code == 403:
                continue  # authorization is checked first
            answer = (response.status_code, response.json()["code"])
            assert answer == (415, "unsupported_media_type"), path
            assert response.headers["Accept-Encoding"] == "identity"
        headers = {"Content-Encoding": "identity"}
        plain = await client.post("/rooms/user_1/broadcast", content=BODY, headers=headers)
        assert plain.status_code == 200


async def test_a_body_without_a_declared_length_is_bounded_too(rooms: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with httpx.AsyncClient(base_url=rooms) as client:
        response = await client.post("/broadcast", content=endless())
    assert response.status_code == 413


# --- rooms and positions ------------------------------------------------------------------------


async def test_a_bad_room_gets_a_clear_refusal(rooms: str) -> None:
    for room in [
        "user", "user_", "_1", "USER_1", "1user_1", "user_a%2Fb", "user_%00", "user_a%20b",
        "%2e%2e", "user_%ff", "user_%ed%a0%80", "user_%C3%A9", "user_" + "x" * 201, "user_1%0a",
        "x" * 10_000,
        "user_1%0d%0aX:%20y", "user_%2500", "user_%", "user_%zz", "x" * 33 + "_1", "user_1;a=b",
    ]:  # fmt: skip
        for method, rest in (
            ("POST", "/broadcast"), ("GET", "/health"), ("GET", "/history"), ("GET", "/events"),
            ("GET", "/subscribe"), ("HEAD", "/events"),
        ):  # fmt: skip
            line = b"%s /rooms/%s%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
            head, body = await answer(rooms, line % (
                method.encode(), room.encode(), rest.encode()))  # fmt: skip
            status = b"414" if len(room) > 8192 else b"400"
            assert head.split()[1] == status, (room, rest, head)
            assert len(body) < 1000
        await require_alive(rooms, room)


async def test_dots_are_ordinary_in_a_room_and_do_not_climb(rooms: str) -> None:
    for path, status in [
        ("/rooms/user_../health", 200), ("/rooms/user_./health", 200), ("/rooms/../health", 400),
        ("/rooms/user_1/../health", 404), ("/rooms/./user_1/health", 404), ("//health//", 200),
        ("/rooms/user_1/%68ealth", 200), ("/rooms%2Fuser_1/health", 404), ("/../../etc", 404),
    ]:  # fmt: skip
        head, _ = await answer(rooms, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        assert head.startswith(b"HTTP/1.1 %d " % status), (path, head)


BAD_POSITIONS = [
    "0", "-", "-1", "a-", "a-b", "a-1-1", "a-1%0a", "a-%D9%A1", "a-" + "9" * 19, "a" * 33 + "-1",
    "lost", "EARLIEST", "latest%00", "%00", "%ff", "a-1%20", "a--1", "a-1e3", "null", "x" * 5000,
]  # fmt: skip
GOOD_POSITIONS = ["", "earliest", "a-1", "a-0", "a-" + "9" * 18, "a" * 32 + "-1", "a-0000001"]


async def test_a_position_is_right_or_refused(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await client.post("/rooms/user_1/broadcast", json=NOTE)
        for after in BAD_POSITIONS:
            for rest in ("history", "events"):
                response = await client.get(f"/rooms/user_1/{rest}?after={after}")
                assert response.status_code == 400, after
                assert response.json()["code"] == "invalid_request"
            ws = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?after={after}"
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(ws)
            assert refused.value.response.status_code == 400
        for after in GOOD_POSITIONS:
            history = (await client.get(f"/rooms/user_1/history?after={after}")).json()
            assert len(history["notifications"]) == 1
        for limit in ("0", "-1", "1001", "1e2", "%2B1", "1.0", "%D9%A1", "x", "%00", "9" * 5000):
            response = await client.get(f"/rooms/user_1/history?limit={limit}")
            assert response.status_code == 400, limit
    await require_alive(url, "positions")


async def test_a_last_event_id_that_is_no_cursor_is_a_lost_position(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        await client.post("/rooms/user_1/broadcast", json=NOTE)
        for last in ("x" * 10_000, "a-", "lost", "\xff", "a-" + "9" * 19, "latest", "'"):
            headers = {b"Last-Event-ID": last.encode("latin-1")}
            async with client.stream("GET", "/rooms/user_1/events", headers=headers) as events:
                lines = events.aiter_lines()
                async for line in lines:
                    if line == "event: synap.subscribed":
                        break
                await anext(lines)  # its id
                said = json.loads((await anext(lines)).removeprefix("data: "))
                assert (said["replayed"], said["recovered"]) == (1, False), last


# --- HTTP as bytes ------------------------------------------------------------------------------


async def answer(url: str, sent: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the first answer; both empty if the server only hung up."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100 "):
                head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return head, b"" if sent.startswith(b"HEAD") else await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b"", b""
    finally:
        writer.transport.abort()


def http(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: localhost", *headers, b"", body])


POST = b"POST /rooms/user_1/broadcast"
CHUNKED = b"Transfer-Encoding: chunked"
SUBSCRIBE = b"GET /rooms/user_1/subscribe"
UPGRADE = HANDSHAKE.rstrip().split(b"\r\n")


async def test_incomplete_body_ends_with_its_connection(rooms: str) -> None:
    where = urlsplit(rooms)
    for sent in (http(POST, b"Content-Length: 100", body=b"{"), http(POST, CHUNKED, body=b"5\r\n")):
        _, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(sent)
        await writer.drain()
        writer.transport.abort()
        await require_alive(rooms, sent)


async def test_a_preflight_is_answered_for_pages_that_may_ask(rooms: str) -> None:
    ask = b"Access-Control-Request-Method: POST"
    for origin, status in ((b"http://localhost:3000", b"204"), (b"https://evil.example", b"403")):
        head, _ = await answer(rooms, http(b"OPTIONS /broadcast", ask, b"Origin: " + origin))
        assert head.split()[1] == status
        head = head.lower()
        assert (b"access-control-allow-origin: " + origin in head) is (status == b"204")
        assert (b"content-length" in head) is (status != b"204")


# --- HTTP as bytes, to our own front: before an ASGI app, its host reads them ---------------------

RAW = {
    "connect": (http(b"CONNECT x:80"), {400}),
    "options of all": (http(b"OPTIONS *"), {404}),
    "options": (http(b"OPTIONS /broadcast"), {405}),
    "trace": (http(b"TRACE /health"), {405}),
    "head": (http(b"HEAD /health"), {200}),
    "an absolute address": (http(b"GET http://x/health"), {200}),
    "no path": (http(b"GET http://x"), {404}),
    "a path in bytes": (http(b"GET /rooms/user_\xc3\xa9/health"), {400}),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", {400}),
    "no host in a handshake": (SUBSCRIBE + b" HTTP/1.1\r\n" + HANDSHAKE + b"\r\n", {400}),
    "another host before": (b"GET / HTTP/1.1\r\nHost: evil\r\nHost: localhost\r\n\r\n", {400}),
    "another host behind": (http(b"GET /", b"Host: evil"), {400}),
    "the same host twice": (http(b"GET /health", b"Host: localhost"), {400}),
    "two hosts in HTTP/1.0": (b"GET /health HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    "a host with a path": (b"GET /health HTTP/1.1\r\nHost: localhost/x\r\n\r\n", {400}),
    "a host with a user": (b"GET /health HTTP/1.1\r\nHost: a@localhost\r\n\r\n", {400}),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", {200}),
    "HTTP/0.9": (b"GET /health\r\n\r\n", {400}),
    "HTTP/0.9, named": (b"GET /health HTTP/0.9\r\nHost: localhost\r\n\r\n", {400}),
    "HTTP/2.0": (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", {400}),
    "HTTP/2.0, a handshake": (
        b"GET /rooms/user_1/subscribe HTTP/2.0\r\nHost: localhost\r\n" + HANDSHAKE + b"\r\n", {400}
    ),
    "HTTP/9.9": (b"GET /health HTTP/9.9\r\n\r\n", {400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "an upgrade to h2c": (http(b"GET /health", b"Connection: Upgrade", b"Upgrade: h2c"), {200}),
    "zeros": (b"\x00" * 1000, {400}),
    "a NUL in a header": (http(b"GET /health", b"X: a\x00b"), {400}),
    "a NUL in Last-Event-ID": (http(b"GET /rooms/user_1/events", b"Last-Event-ID: \0"), {400}),
    "two lengths": (http(POST, b"Content-Length: 2", b"Content-Length: 3", body=b"{}"), {400}),
    "length and chunks": (http(POST, CHUNKED, b"Content-Length: 2", body=b"0\r\n\r\n"), {400}),
    "a negative length": (http(POST, b"Content-Length: -1"), {400}),
    "a length in other digits": (http(POST, b"Content-Length: \xb2"), {400}),
    "a length of 2^63": (http(POST, b"Content-Length: 9223372036854775808"), {413}),
    "a length of 2^90": (http(POST, b"Content-Length: 1237940039285380274899124224"), {400}),
    "a length of 2 MiB": (http(POST, b"Content-Length: 2097152"), {413}),
    "an unknown coding": (http(POST, b"Transfer-Encoding: gzip", body=BODY), {400}),
    "a chunk size that is none": (http(POST, CHUNKED, body=b"zz\r\nhello\r\n"), {400}),
    "a negative chunk": (http(POST, CHUNKED, body=b"-5\r\nhello\r\n"), {400}),
    "a chunk of 2^68": (http(POST, CHUNKED, body=b"f" * 17 + b"\r\nhello\r\n"), {400}),
    "a chunk that is longer": (http(POST, CHUNKED, body=b"2\r\n{}{}\r\n0\r\n\r\n"), {400}),
    "chunks": (http(POST, CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)), {200}),
    "100-continue": (
        http(POST, b"Expect: 100-continue", b"Content-Length: %d" % len(BODY), body=BODY), {200}
    ),
    "100 pipelined requests": (http(b"GET /health") * 100, {200}),
    "pipelined behind a stream": (http(b"GET /rooms/user_1/events") * 100, {200}),
    "10,000 headers": (http(b"GET /health", *[b"X%d: y" % n for n in range(10_000)]), {200, 431}),
    "100,000 bytes of a header": (http(b"GET /health", b"X: " + b"y" * 100_000), {200, 431}),
    "a query of 1 MB": (http(b"GET /rooms/user_1/history?" + b"a=b&" * 250_000), {414}),
    "a path of 1 MB": (http(b"GET /" + b"a/" * 500_000), {414}),
    "a path of 60 kB": (http(b"GET /" + b"a/" * 30_000), {414}),
    "an absolute target of 9 kB": (http(b"GET http://localhost/" + b"x" * 9000), {414}),
    "33 fields of a query": (http(b"GET /rooms/user_1/history?" + b"a=b&" * 33), {400}),
    "32 fields of a query": (http(b"GET /rooms/user_1/history?" + b"&".join([b"a=b"] * 32)), {200}),
    "8 kB of a path": (http(b"GET /" + b"a/" * 4090), {404}),
}  # fmt: skip

HANDSHAKES = {
    "POST": (http(b"POST /rooms/user_1/subscribe", *UPGRADE), {405}),
    "a body": (http(SUBSCRIBE, *UPGRADE, b"Content-Length: 5", body=b"hello"), {400}),
    "chunks": (http(SUBSCRIBE, *UPGRADE, CHUNKED, body=b"0\r\n\r\n"), {400}),
    "version 12": (http(SUBSCRIBE, *UPGRADE[:3], b"Sec-WebSocket-Version: 12"), {400, 426}),
    "no version": (http(SUBSCRIBE, *UPGRADE[:3]), {400, 426}),
    "no key": (http(SUBSCRIBE, *UPGRADE[:2], UPGRADE[3]), {400}),
    "a bad key": (http(SUBSCRIBE, *UPGRADE[:2], UPGRADE[3], b"Sec-WebSocket-Key: %%"), {400}),
    "a short key": (http(SUBSCRIBE, *UPGRADE[:2], UPGRADE[3], b"Sec-WebSocket-Key: YQ=="), {400}),
    "two keys": (http(SUBSCRIBE, *UPGRADE, UPGRADE[2]), {400}),
    "100 subprotocols": (
        http(SUBSCRIBE, *UPGRADE, b"Sec-WebSocket-Protocol: " + b",".join([b"p"] * 100)), {101}
    ),
    "a bad subprotocol": (http(SUBSCRIBE, *UPGRADE, b"Sec-WebSocket-Protocol: ,;\xff"), {400}),
    "a bad extension": (http(SUBSCRIBE, *UPGRADE, b"Sec-WebSocket-Extensions: ;;="), {101, 400}),
    "two origins": (http(SUBSCRIBE, *UPGRADE, *[b"Origin: http://localhost"] * 2), {400, 403}),
    "an origin in bytes": (http(SUBSCRIBE, *UPGRADE, b"Origin: \xff"), {403}),
    "another route": (http(b"GET /rooms/user_1/events", *UPGRADE), {404}),
    "a path in bytes": (http(b"GET /rooms/user_\xff/subscribe", *UPGRADE), {400}),
    "a path that is not UTF-8": (http(b"GET /rooms/user_%ff/subscribe", *UPGRADE), {400}),
    "a path of 10 kB": (http(b"GET /" + b"x" * 10_000, *UPGRADE), {400, 404, 414}),
    "200 headers": (http(SUBSCRIBE, *UPGRADE, *[b"X: y"] * 200), {101, 400, 431}),
    "a header of 9 kB": (http(SUBSCRIBE, *UPGRADE, b"Cookie: " + b"x" * 9000), {101, 400, 431}),
}  # fmt: skip


@pytest.mark.parametrize("cases", [RAW, HANDSHAKES], ids=["requests", "handshakes"])
async def test_each_request_has_its_answer(own: str, cases: Any) -> None:
    for name, (sent, statuses) in cases.items():
        head, body = await answer(own, sent)
        assert int(head.split()[1]) in statuses, (name, head)
        assert b"Traceback" not in body
        await require_alive(own, name)


async def test_incomplete_request_times_out(own: str, set_waits: SetWaits) -> None:
    set_waits(head_timeout_s=0.05, pending_check_interval_s=0.05)
    for sent in (b"", b"GET", b"GET /health HTTP/1.1\r\nX: ", http(b"GET /health") + b"GET /he"):
        where = urlsplit(own)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT_S):  # a connection that is kept alive ends after 75 s
            assert (await reader.read()).count(b"200 OK") == sent.count(b"\r\n\r\n")
        writer.close()
    await require_alive(own, "half a request")


async def test_stalled_clients_do_not_delay_shutdown(
    set_waits: SetWaits,
) -> None:
    """Not with half a body, and not with answers that it does not read."""
    set_waits(shutdown_grace_s=0.05)
    stalled: list[asyncio.StreamWriter] = []
    async with running_server(create_app(load_settings(drain_timeout_s=0))) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(8):
                body = {**NOTE, "data": {"x": "y" * 200_000}}
                await client.post("/rooms/user_1/broadcast", json=body)
        where = urlsplit(url)
        history = http(b"GET /rooms/user_1/history?limit=1000") * 8
        for sent in (
            http(POST, b"Content-Length: 100", body=b"{"),
            history,
            history + http(b"GET /rooms/user_1/events"),
            http(SUBSCRIBE, *UPGRADE),
        ):
            _, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(sent)
            stalled.append(writer)
            await require_alive(url, sent[:100])
        begun = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - begun < scaled(15)
    for writer in stalled:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("begin", "more", "count"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"y" * 65536, 200),
        (b"GET /health HTTP/1.1\r\n", b"X: y\r\n" * 10_000, 200),
        (b"GET /", b"y" * 65536, 200),
    ],
    ids=["a header", "headers", "an address"],
)
async def test_endless_request_head_is_refused(
    own: str, begin: bytes, more: bytes, count: int
) -> None:
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(begin)
    with pytest.raises(ConnectionError):  # noqa: PT012 - which of them meets the end is open
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(count):
                writer.write(more)
                await writer.drain()
            await reader.read()
            pytest.fail("all of it was taken")
    writer.transport.abort()
    await require_alive(own, begin)


UPGRADES = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "TLS": (b"Connection: Upgrade", b"Upgrade: TLS/1.2, x"),
    "WebSocket by POST": (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"),
    "no Connection": (b"Upgrade: h2c",),
    "Connection alone": (b"Connection: Upgrade",),
    "a protocol without a name": (b"Connection: Upgrade", b"Upgrade:"),
}


@pytest.mark.parametrize("cut", [0, 1, 7], ids=["in one", "byte by byte", "in sevens"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES.keys())
async def test_ignores_an_upgrade_and_reads_its_body(
    own: str, fields: tuple[bytes, ...], is_chunked: bool, cut: int
) -> None:
    """RFC 9110, section 7.8. The body is a body and no request (smuggling), the next request of the
    connection is one, and so is each that is sent with them."""
    id = uuid.uuid4().hex
    body = b'{"type":"a","data":{"inner":"\\r\\nGET /x HTTP/1.1"},"id":"%b"}' % id.encode()
    inner = http(b"GET /rooms/user_9/history")
    framing, wire = (
        (CHUNKED, b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:]))
        if is_chunked
        else (b"Content-Length: %d" % len(body), body)
    )
    publish = http(b"POST /rooms/user_9/broadcast", *fields, framing) + wire
    hidden = (
        http(b"POST /rooms/user_9/broadcast", *fields, b"Content-Length: %d" % len(inner)) + inner
    )
    sent = publish + http(b"GET /health") + hidden + publish
    sent += http(b"GET /health", b"Connection: close")
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    for start in range(0, len(sent), cut or len(sent)):
        writer.write(sent[start : start + (cut or len(sent))])
        if cut:
            await asyncio.sleep(0)
            await writer.drain()
    async with asyncio.timeout(TIMEOUT_S):
        answers = await reader.read()
    writer.close()
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answers)
    assert statuses == [b"200", b"200", b"400", b"200", b"200"], answers
    assert answers.count(id.encode()) == 2  # the second one is a duplicate
    assert b'"notifications"' not in answers


async def test_a_websocket_handshake_has_no_body(own: str) -> None:
    where = urlsplit(own)
    for framing, body in ((b"Content-Length: 5", b"hello"), (CHUNKED, b"0\r\n\r\n")):
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(http(SUBSCRIBE, *UPGRADE, framing) + body)
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"the request has a body" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_refuses_an_ignored_upgrade_whose_body_has_no_end(own: str) -> None:
    """What is no chunked transfer coding at its end could hide a request (RFC 9112, 6.3)."""
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    fields = UPGRADES["h2c"]
    writer.write(http(b"GET /health", *fields, b"Transfer-Encoding: gzip") + http(b"GET /health"))
    async with asyncio.timeout(TIMEOUT_S):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    writer.close()


async def test_handshake_pipelined_behind_a_response_is_refused(own: str) -> None:
    """The stream would continue beside the WebSocket without noticing whether its client reads."""
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(http(b"GET /rooms/user_1/events") + http(SUBSCRIBE, *UPGRADE))
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionError):
            assert b" 101 " not in await reader.read()
        async with httpx.AsyncClient(base_url=own) as client:
            while (await client.get("/rooms/user_1/health")).json()["connections"]:
                pass
    writer.close()


class WatchedHttp(Http1Protocol):
    """Says when the one has ended that takes no answer; its peer does not read, and cannot know."""

    ended: asyncio.Event

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._responses.is_writable:
            self.ended.set()
        super().connection_lost(exc)


@pytest.mark.parametrize("way", ["the time is over", "there are too many"])
async def test_aborts_connection_that_reads_no_response(
    monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits, way: str
) -> None:
    if way == "the time is over":
        set_waits(reader_timeout_s=0.2)
    monkeypatch.setattr(server, "Http1Protocol", WatchedHttp)
    WatchedHttp.ended = asyncio.Event()
    asked = http(b"GET /rooms/user_1/history") * 100
    async with running_server(
        create_app(load_settings(drain_timeout_s=0, max_pending_connections=4))
    ) as url:
        where = urlsplit(url)
        async with httpx.AsyncClient(base_url=url) as client:
            for _ in range(4):
                body = {**NOTE, "data": {"x": "y" * 200_000}}
                await client.post("/rooms/user_1/broadcast", json=body)
        _, stalled = await asyncio.open_connection(where.hostname, where.port, limit=1024)
        stalled.transport.pause_reading()  # type: ignore[attr-defined]
        stalled.write(asked)
        others = []
        async with asyncio.timeout(TIMEOUT_S):
            if way == "there are too many":
                async with httpx.AsyncClient() as client:
                    while not WatchedHttp.ended.is_set():
                        others.append(await asyncio.open_connection(where.hostname, where.port))
                        assert (await client.get(f"{url}/ready")).status_code == 200
            await WatchedHttp.ended.wait()
        for _, writer in [*others, (None, stalled)]:
            writer.transport.abort()


async def test_pipelined_requests_are_bounded(own: str) -> None:
    """Each would delay all others, and hold memory until then."""
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(http(b"GET /health") * (MAX_PIPELINED + 200))
    async with asyncio.timeout(TIMEOUT_S):
        with contextlib.suppress(ConnectionError):
            assert (await reader.read()).count(b" 200 OK") <= MAX_PIPELINED
    writer.close()
    await require_alive(own, "pipelined")


async def test_trailers_are_ignored(own: str) -> None:
    """What follows a chunked body is no header: a proxy may not have looked at it."""
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    trailers = b"Content-Type: text/plain\r\nOrigin: https://evil.example\r\n" + b"X: y\r\n" * 1000
    head, _ = await answer(own, http(POST, CHUNKED, body=chunks + trailers + b"\r\n"))
    assert head.split()[1] == b"200"


# --- WebSocket frames ---------------------------------------------------------------------------


def frame(
    opcode: int, data: bytes = b"", *, end: bool = True, reserved: int = 0, masked: bool = True,
    length: int | None = None,
) -> bytes:  # fmt: skip
    size = len(data) if length is None else length
    mask = 0x80 if masked else 0
    head = bytes([end << 7 | reserved << 4 | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 65536:
        head += struct.pack("!BH", mask | 126, size)
    else:
        head += struct.pack("!BQ", mask | 127, size)
    return head + (bytes(4) if masked else b"") + data


CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


async def spoken(url: str, sent: bytes, until: bytes) -> bytes:
    """What the server says in a WebSocket up to ``until``."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(http(SUBSCRIBE, *UPGRADE))
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            return await reader.readuntil(until)
    finally:
        writer.transport.abort()


async def test_protocol_violation_during_delivery_leaves_no_traceback(
    rooms: str,
) -> None:
    """The autouse fixture looks at the log."""
    items = [{**NOTE, "rooms": ["user_1"]}] * 100
    async with httpx.AsyncClient(base_url=rooms) as client:
        for _ in range(5):
            publishing = asyncio.create_task(
                client.post("/broadcast", json={"notifications": items})
            )
            await spoken(rooms, frame(3), struct.pack("!H", 1002))
            assert (await publishing).json()["success"]


async def test_frames_that_are_odd_but_right_are_read(rooms: str) -> None:
    split = frame(TEXT, b"pi", end=False) + frame(PING, b"x") + frame(CONT, b"ng")
    assert (await spoken(rooms, split, b"pong")).startswith(b"\x8a\x01x")
    nothing = frame(TEXT, end=False) + frame(CONT, end=False) * 500 + frame(CONT, b"ping")
    await spoken(rooms, nothing, b"pong")
    await spoken(rooms, frame(PONG, b"?") + frame(PING, b"x" * 125), b"x" * 125)
    junk = [
        b"", b"{}", b"{", b'{"action":"ack"}', b'{"action":"ack","cursor":7}', b"[" * 4096,
        b'{"action":"ack","cursor":"\\ud800"}', b'{"action":' + b"9" * 4080 + b"}", b"\x00",
        b'{"action":"ack","cursor":"a-999999999999999999"}', b'{"action":"ack","cursor":NaN}',
    ]  # fmt: skip
    texts = b"".join(frame(TEXT, text) for text in junk)
    await spoken(rooms, texts + frame(TEXT, b"ping"), b"pong")
    await require_alive(rooms, "odd frames")


async def test_stops_reading_a_flood_of_texts(rooms: str) -> None:
    closing = struct.pack("!H", 4029)
    assert closing in await spoken(rooms, frame(TEXT, b"x") * 1000, closing)
    await require_alive(rooms, "texts")


# --- WebSocket frames, to our own front -----------------------------------------------------------

FRAMES = {
    "a text that is not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "what is not UTF-8, then a close": (frame(TEXT, b"\xff") + frame(CLOSE, b"\x03\xe8"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "half a character": (frame(TEXT, b"\xc3", end=False) + frame(CONT, b"("), 1007),
    "binary": (frame(BINARY, b"x"), 4540),
    "binary, then what is not UTF-8": (frame(BINARY, b"x") + frame(TEXT, b"\xff"), None),
    "a text over 4 KiB": (frame(TEXT, b"x" * 4097), 4540),
    "a text over the limit": (frame(TEXT, b"x" * 70_000), 1009),
    "fragments over the limit": (
        frame(TEXT, b"x" * 40_000, end=False) + frame(CONT, b"x" * 40_000), 1009
    ),
    "a text of 2^63": (frame(TEXT, length=2**63), 1002),
    "a text that begins in another": (frame(TEXT, b"a", end=False) + frame(TEXT, b"b"), 1002),
    "a continuation of nothing": (frame(CONT, b"x"), 1002),
    "unmasked": (frame(TEXT, b"ping", masked=False), 1002),
    "reserved bits": (frame(TEXT, b"ping", reserved=4), 1002),
    "an unknown opcode": (frame(3), 1002),
    "an unknown control opcode": (frame(11), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a ping in fragments": (frame(PING, b"x", end=False), 1002),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close with 999": (frame(CLOSE, struct.pack("!H", 999)), 1002),
    "a close with 1005": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "a close with 5000": (frame(CLOSE, struct.pack("!H", 5000)), 1002),
    "a close that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "a close with 4000": (frame(CLOSE, struct.pack("!H", 4000)), 4000),
    "a close without a code": (frame(CLOSE), 1005),
    "two closes": (frame(CLOSE, b"\x03\xe8") * 2, 1000),
}  # fmt: skip


async def test_protocol_violations_get_their_close_code(own: str) -> None:
    for name, (sent, code) in FRAMES.items():
        closing = b"" if code in (None, 1005) else struct.pack("!H", code)
        said = await spoken(own, sent, closing or b"\x88")
        assert b"\x88" in said, (name, said)
        await require_alive(own, name)


FLOODS = {
    "pings": (b"", frame(PING)),
    "pongs": (b"", frame(PONG)),
    "fragments": (frame(TEXT, end=False), frame(CONT, end=False)),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_stops_reading_a_flood_of_frames(own: str, kind: str) -> None:
    """Each takes its time from everybody else, though it is no message."""
    begin, more = FLOODS[kind]
    closing = struct.pack("!H", 4029)
    assert closing in await spoken(own, begin + more * (MAX_FRAMES_PER_S + 1000), closing)
    await require_alive(own, kind)


async def test_pongs_for_a_non_reading_client_are_not_buffered() -> None:
    """Their pongs would wait behind each other, without an end."""
    written: list[int] = []

    class Watched(WebSocketProtocol):
        max_frames_per_s = 1_000_000

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            written.append(self._transport.get_write_buffer_size())

    pings = frame(PING, b"x" * 125) * 500
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upgrade, "WebSocketProtocol", Watched)
        async with running_server(create_app(load_settings(drain_timeout_s=0))) as url:
            where = urlsplit(url)
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
            writer.write(http(SUBSCRIBE, *UPGRADE))
            await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                for _ in range(200):  # 13 MB
                    writer.write(pings)
                    await writer.drain()
            await require_alive(url, "pings")
            writer.transport.abort()
    assert max(written) < 1024 * 1024
