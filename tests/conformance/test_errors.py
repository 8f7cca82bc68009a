"""PROTOCOL.md, "Errors", and that no client input harms the server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from .client import Client, check_error, dial, fresh_room, note, raw_head, room_path

MALFORMED = {
    "empty": b"",
    "half": b"{",
    "not-json": b"nonsense",
    "not-utf-8": b'{"type":"a","data":{"x":"\xff"}}',
    "utf-16": '{"type":"a","data":{}}'.encode("utf-16"),
    "two-values": b'{"type":"a","data":{}}{}',
    "trailing-comma": b'{"type":"a","data":{},}',
    "single-quotes": b"{'type':'a','data':{}}",
    "comment": b'{"type":"a","data":{}/**/}',
    "null": b"null",
    "list": b"[]",
    "text": b'"text"',
    "number": b"7",
    "no-type": b'{"data":{}}',
    "no-data": b'{"type":"a"}',
    "data-list": b'{"type":"a","data":[]}',
    "data-null": b'{"type":"a","data":null}',
    "data-text": b'{"type":"a","data":"{}"}',
    "type-number": b'{"type":7,"data":{}}',
    "type-null": b'{"type":null,"data":{}}',
    "type-list": b'{"type":["a"],"data":{}}',
    "id-number": b'{"type":"a","data":{},"id":7}',
    "id-object": b'{"type":"a","data":{},"id":{}}',
    "request-id-number": b'{"type":"a","data":{},"requestId":7}',
    "request-id-object": b'{"type":"a","data":{},"requestId":{}}',
    "status-unknown": b'{"type":"a","data":{},"status":"done"}',
    "status-case": b'{"type":"a","data":{},"status":"Success"}',
    "status-number": b'{"type":"a","data":{},"status":1}',
    "status-list": b'{"type":"a","data":{},"status":["error"]}',
    "timestamp-number": b'{"type":"a","data":{},"timestamp":1769860800}',
    "timestamp-object": b'{"type":"a","data":{},"timestamp":{}}',
    "reserved-type": b'{"type":"synap.subscribed","data":{}}',
    "nan": b'{"type":"a","data":{"x":NaN}}',
    "infinity": b'{"type":"a","data":{"x":Infinity}}',
    "minus-infinity": b'{"type":"a","data":{"x":-Infinity}}',
    "surrogate": b'{"type":"a","data":{"x":"\\ud800"}}',
    "surrogate-name": b'{"type":"a","data":{"\\udc00":1}}',
    "surrogate-id": b'{"type":"a","data":{},"id":"\\ud83d"}',
    "surrogate-unknown": b'{"type":"a","data":{},"x":["\\ud800a"]}',
    "deep-lists": b'{"type":"a","data":{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    "deep-objects": b'{"type":"a","data":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
    "deep-unknown": b'{"type":"a","data":{},"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "endless-lists": b"[" * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_400_for_one(client: Client, body: bytes) -> None:
    """Errors: 400 `invalid_request`: the body or a member is wrong."""
    room = fresh_room()
    check_error(
        await client.request("POST", room_path(room, "broadcast"), content=body),
        400,
        "invalid_request",
    )
    assert (await client.history(room))["notifications"] == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"7", b'"x"', b'{"notifications":{}}', b'{"notifications":"x"}',
     b'{"notifications":null}', b'{"notifications":[NaN]}', b'{"notifications":["\\ud800"]}',
     b'{"notifications":' + b"[" * 10_000 + b"]" * 10_000 + b"}"],
    ids=lambda body: body[:26].decode() or "empty",
)  # fmt: skip
async def test_400_for_many(client: Client, body: bytes) -> None:
    """Errors: 400 `invalid_request`: the body is wrong. A server with this route gives a `code`."""
    check_error(await client.request("POST", "/broadcast", content=body), 400, "invalid_request")


@pytest.mark.parametrize("member", ["type", "data", "status", "timestamp", "id", "requestId"])
async def test_details_name_the_invalid_field(client: Client, member: str) -> None:
    """Errors: `details` names it."""
    response = await client.broadcast(fresh_room(), {**note(), member: 7})
    check_error(response, 400, "invalid_request")
    assert member in response.json()["details"]


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/rooms", "/rooms/user_1", "/rooms/user_1/nothing",
     "/rooms/user_1/broadcast/x",
     "/broadcasts", "/rooms%2Fbroadcast", "/rooms%2Fhealth", "/rooms/user_1/history/1",
     "/..%2f..%2fetc%2fpasswd"],
)  # fmt: skip
async def test_404(client: Client, path: str) -> None:
    """Errors: 404 `not_found`: no such route."""
    for method in ("GET", "POST"):
        check_error(await client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/rooms/user_1/broadcast", "POST"),
        ("/broadcast", "POST"),
        ("/rooms/user_1/subscribe", "GET"),
        ("/rooms/user_1/events", "GET"),
        ("/rooms/user_1/history", "GET"),
        ("/rooms/user_1/health", "GET"),
        ("/health", "GET"),
        ("/ready", "GET"),
        ("/openapi.json", "GET"),
    ],
)
async def test_405(client: Client, path: str, allowed: str) -> None:
    """Errors: 405 `method_not_allowed`: `Allow` names the right one."""
    for method in ("GET" if allowed == "POST" else "POST", "PUT", "DELETE", "PATCH"):
        response = await client.request(method, path)
        check_error(response, 405, "method_not_allowed")
        assert allowed in re.split(r",\s*", response.headers["allow"])


@pytest.mark.parametrize("route", ["one", "many"])
async def test_413(client: Client, route: str) -> None:
    """Errors: 413 `payload_too_large`, also where the length is not declared."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    path = "/broadcast" if route == "many" else room_path(fresh_room(), "broadcast")
    check_error(await client.request("POST", path, content=endless()), 413, "payload_too_large")
    item = note(rooms=[fresh_room()], data={"x": "y" * 2 * 1024 * 1024})
    body = {"notifications": [item]} if route == "many" else item
    check_error(await client.post(path, body), 413, "payload_too_large")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("text/plain", 415),
        ("text/html", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/octet-stream", 415),
    ],
)
async def test_415(client: Client, content_type: str, status: int) -> None:
    """Errors: 415 `unsupported_media_type`: the `Content-Type` is given and is not JSON."""
    room = fresh_room()
    for path, body in (
        (room_path(room, "broadcast"), b'{"type":"a","data":{}}'),
        (
            "/broadcast",
            json.dumps({"notifications": [note(rooms=[room])]}).encode(),
        ),
    ):
        headers = {"Content-Type": content_type}
        response = await client.request("POST", path, content=body, headers=headers)
        if status == 200:
            assert response.status_code == 200
        else:
            check_error(response, status, "unsupported_media_type")


async def test_no_content_type(client: Client) -> None:
    """Errors: 415 only where the `Content-Type` is given."""
    response = await client.request(
        "POST", room_path(fresh_room(), "broadcast"), content=b'{"type":"a","data":{}}'
    )
    assert "content-type" not in response.request.headers
    assert response.status_code == 200


async def test_426(client: Client) -> None:
    """Errors: 426 `upgrade_required`."""
    check_error(await client.get(room_path(fresh_room(), "subscribe")), 426, "upgrade_required")


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

HOSTILE: dict[str, tuple[str, tuple[str, ...], bytes]] = {
    "long-header": ("GET /health HTTP/1.1", ("X: " + "y" * 100_000,), b""),
    "many-headers": ("GET /health HTTP/1.1", tuple(f"X{n}: y" for n in range(10_000)), b""),
    "long-path": ("GET /" + "x" * 100_000 + " HTTP/1.1", (), b""),
    "unknown-version": ("GET /health HTTP/9.9", (), b""),
    "no-version": ("GET /health", (), b""),
    "no-slash": ("GET health HTTP/1.1", (), b""),
    "absolute": ("GET http://evil.example/health HTTP/1.1", ("Connection: close",), b""),
    "star": ("OPTIONS * HTTP/1.1", ("Connection: close",), b""),
    "connect": ("CONNECT evil.example:443 HTTP/1.1", ("Connection: close",), b""),
    "nul-in-header": ("GET /health HTTP/1.1", ("X: a\0b",), b""),
    "space-before-colon": ("GET /health HTTP/1.1", ("X : a",), b""),
    "folded-header": ("GET /health HTTP/1.1", ("X: a\r\n b", "Connection: close"), b""),
    "high-bytes": ("GET /\xff\xfe HTTP/1.1", ("Connection: close",), b""),
    "bare-percent": ("GET /rooms/user_%/health HTTP/1.1", ("Connection: close",), b""),
    "half-body": ("POST /broadcast HTTP/1.1", ("Content-Length: 100",), b"{"),
    "huge-length": ("POST /broadcast HTTP/1.1", ("Content-Length: 99999999999999999999",), b"{"),
    "negative-length": ("POST /broadcast HTTP/1.1", ("Content-Length: -1",), b"{}"),
    "length-not-a-number": ("POST /broadcast HTTP/1.1", ("Content-Length: ten",), b"{}"),
    "two-lengths": ("POST /broadcast HTTP/1.1", ("Content-Length: 2", "Content-Length: 60"), b"{}"),
    "length-and-chunks": (
        "POST /broadcast HTTP/1.1",
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    "bad-chunks": ("POST /broadcast HTTP/1.1", ("Transfer-Encoding: chunked",), b"zz\r\n{}\r\n"),
    "huge-chunk": (
        "POST /broadcast HTTP/1.1",
        ("Transfer-Encoding: chunked",),
        b"ffffffffffffffffffff\r\n{}\r\n",
    ),
    "unknown-encoding": ("POST /broadcast HTTP/1.1", ("Transfer-Encoding: x",), b"{}"),
    "gzip-body": (
        "POST /broadcast HTTP/1.1",
        ("Content-Encoding: gzip", "Content-Length: 2", "Connection: close"),
        b"{}",
    ),
    "upgrade-without-key": ("GET /rooms/user_1/subscribe HTTP/1.1", UPGRADE[:3], b""),
    "upgrade-wrong-version": (
        "GET /rooms/user_1/subscribe HTTP/1.1",
        (*UPGRADE[:2], "Sec-WebSocket-Version: 7", UPGRADE[3]),
        b"",
    ),
    "upgrade-wrong-key": (
        "GET /rooms/user_1/subscribe HTTP/1.1",
        (*UPGRADE[:3], "Sec-WebSocket-Key: x"),
        b"",
    ),
    "upgrade-by-post": ("POST /rooms/user_1/subscribe HTTP/1.1", UPGRADE, b""),
    "upgrade-of-another-route": ("GET /health HTTP/1.1", (*UPGRADE, "Connection: close"), b""),
    "upgrade-to-h2c": (
        "GET /health HTTP/1.1",
        ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        b"",
    ),
    "frames-that-are-none": ("GET /rooms/user_1/subscribe HTTP/1.1", UPGRADE, b"\xff" * 1000),
    "frame-without-mask": ("GET /rooms/user_1/subscribe HTTP/1.1", UPGRADE, b"\x81\x04ping"),
    "endless-frame": (
        "GET /rooms/user_1/subscribe HTTP/1.1",
        UPGRADE,
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0" + b"x" * 10_000,
    ),
    "text-not-utf-8": (
        "GET /rooms/user_1/subscribe HTTP/1.1",
        UPGRADE,
        b"\x81\x82\0\0\0\0\xff\xfe",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bytes(client: Client, name: str) -> None:
    """Errors: what a client sends is answered or refused, and never breaks the server."""
    request, lines, body = HOSTILE[name]
    answer = await client.exchange(raw_head(client, request, *lines) + body)
    _check_harmless(answer)
    assert await client.is_well()


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x00" * 1000, b"\xff" * 1000, b"\r\n" * 1000, b"\x16\x03\x01\x02\x00\x01", b"GET "],
    ids=["nothing", "nul", "ff", "newlines", "tls", "half"],
)  # fmt: skip
async def test_garbage(client: Client, sent: bytes) -> None:
    """Errors: input that is not HTTP is refused, and never breaks the server."""
    _check_harmless(await client.exchange(sent))
    assert await client.is_well()


@pytest.mark.parametrize(
    ("version", "fields"),
    [("1.1", ()), ("1.1", ("Host: localhost", "Host: localhost")), ("1.1", ("Host: a, b",)),
     ("1.2", ("Host: localhost",)), ("2.0", ("Host: localhost",))],
    ids=["no host", "two hosts", "a list of hosts", "1.2", "2.0"],
)  # fmt: skip
async def test_400_for_a_head(client: Client, version: str, fields: tuple[str, ...]) -> None:
    """Errors: without a `Host`, with several, and in another version than HTTP/1.0 and 1.1: 400."""
    answer = await client.exchange(
        raw_head(client, f"GET /health HTTP/{version}", *fields, "Connection: close", host=False)
    )
    assert re.match(rb"HTTP/1\.[01] 400 ", answer), answer[:300]


@pytest.mark.own_frames
@pytest.mark.parametrize("version", ["8", "14", "13, 8", ""])
async def test_426_for_another_version_of_websockets(client: Client, version: str) -> None:
    """Errors: 426 `upgrade_required`; the answer names the version (RFC 6455, section 4.2.2)."""
    path = room_path(fresh_room(), "subscribe")
    fields = (*UPGRADE[:2], f"Sec-WebSocket-Version: {version}", UPGRADE[3])
    answer = await client.exchange(raw_head(client, f"GET {path} HTTP/1.1", *fields))
    assert answer.startswith(b"HTTP/1.1 426 "), answer[:300]
    assert b"\r\nsec-websocket-version: 13\r\n" in answer.lower()


@pytest.mark.own_frames
@pytest.mark.parametrize(
    ("field", "body"),
    [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"0\r\n\r\n")],
    ids=["length", "chunked"],
)
async def test_400_for_a_handshake_with_a_body(client: Client, field: str, body: bytes) -> None:
    """Limits: a handshake with a body gets 400."""
    path = room_path(fresh_room(), "subscribe")
    answer = await client.exchange(raw_head(client, f"GET {path} HTTP/1.1", *UPGRADE, field) + body)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:300]


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", ", chunked", "identity"])
async def test_another_transfer_coding_publishes_nothing(client: Client, coding: str) -> None:
    """Errors: a request that two parsers would read differently is refused."""
    room = fresh_room()
    body = b'{"type":"a","data":{}}'
    head = raw_head(
        client, f"POST /rooms/{room}/broadcast HTTP/1.1", f"Transfer-Encoding: {coding}"
    )
    answer = await client.exchange(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    _check_harmless(answer)
    assert b"HTTP/1.1 200" not in answer
    assert (await client.history(room))["notifications"] == []


async def test_contradicting_lengths_publish_nothing(client: Client) -> None:
    """Errors: a request that two parsers would read differently is refused."""
    hidden, seen = fresh_room(), fresh_room()
    inner = b'{"type":"a","data":{}}'
    smuggled = raw_head(
        client, f"POST /rooms/{hidden}/broadcast HTTP/1.1", f"Content-Length: {len(inner)}"
    )
    outer = raw_head(
        client,
        f"POST /rooms/{seen}/broadcast HTTP/1.1",
        f"Content-Length: {len(inner)}",
        f"Content-Length: {len(inner + smuggled + inner)}",
    )
    answer = await client.exchange(outer + inner + smuggled + inner)
    _check_harmless(answer)
    assert b"HTTP/1.1 200" not in answer
    for room in (hidden, seen):
        assert (await client.history(room))["notifications"] == []


async def test_pending_handshakes_do_not_delay_others(client: Client) -> None:
    """Errors: peers that stop in the middle of a request harm nobody."""
    room = fresh_room()
    halves = [
        raw_head(client, f"GET /rooms/{room}/subscribe HTTP/1.1", *UPGRADE)[:-2],
        raw_head(client, "POST /broadcast HTTP/1.1", "Content-Length: 100") + b"{",
        b"GET /rooms",
        b"",
    ]
    sockets = [await asyncio.to_thread(dial, client.url) for _ in range(40)]
    try:
        for number, sock in enumerate(sockets):
            sock.sendall(halves[number % len(halves)])
        assert await client.is_well()
        async with client.listen(room) as listener:
            await client.until_connections(room, 1)
            assert (await client.publish(room, "n1"))["broadcastCount"] == 1
            assert (await listener.next())["id"] == "n1"
    finally:
        for sock in sockets:
            sock.close()
    assert await client.is_well()


def _check_harmless(answer: bytes) -> None:
    """Whatever was answered, it is no fault of the server, and shows nothing of its inside."""
    assert b"Traceback" not in answer
    assert not re.match(rb"HTTP/1\.[01] 500", answer), answer[:300]
