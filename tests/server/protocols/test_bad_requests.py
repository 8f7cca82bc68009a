"""HTTP as bytes: any client input gets a clear error, and the server keeps serving."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.protocols import server
from synap_realtime.server.protocols.http1 import Http1Protocol
from synap_realtime.server.protocols.http1_parser import MAX_PIPELINED
from synap_realtime.server.serve import running_server
from tests.support.bad_input import (
    BODY,
    HANDSHAKE,
    NOTE,
    POST,
    SUBSCRIBE,
    UPGRADE,
    answer,
    require_alive,
)
from tests.support.raw_http import CHUNKED, http
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.waits import SetWaits

pytestmark = pytest.mark.usefixtures("quiet_log")


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
    ("begin", "more"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"y" * 65536),
        (b"GET /health HTTP/1.1\r\n", b"X: y\r\n" * 10_000),
        (b"GET /", b"y" * 65536),
    ],
    ids=["a header", "headers", "an address"],
)
async def test_endless_request_head_is_refused(own: str, begin: bytes, more: bytes) -> None:
    where = urlsplit(own)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(begin)
    with pytest.raises(ConnectionError):  # noqa: PT012 - which of them meets the end is open
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(2000):  # far more than the buffers of the kernel
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
