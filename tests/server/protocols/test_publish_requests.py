"""Publish requests over the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from synap_realtime import tracing
from synap_realtime.server.protocols.tls import ReloadingCertificate
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.certificates import certify
from tests.support.credentials import API_KEY, SECRET
from tests.support.raw_http import BODY, HEALTH, Peer, bearer, http, peer, publish
from tests.support.servers import keyed_app
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

from .conftest import Run

KEY = bearer(API_KEY)
PUBLISH = publish(KEY)


def send_immediately(client: Peer) -> None:
    """Disable Nagle's algorithm, so that each write is a packet of its own."""
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


COUNTED = re.compile(
    r"^synap_realtime_("
    r"(?:publishes|publish_bytes|deliveries|errors|server_disconnects|store_errors)_total"
    r"|(?:store_operation_duration|delivery_latency)_seconds_count|store_bytes|store_rooms)"
    r"(\S*) (\S+)$",
    re.MULTILINE,
)


async def counts(url: str) -> list[tuple[str, ...]]:
    """What the metrics say, that is not about time."""
    token = mint_token(secret=SECRET, scope="metrics").encode()
    async with peer(url) as client:
        await client.say(http(b"GET /metrics", b"Authorization: Bearer " + token))
        status, _, text = await client.answer()
        assert status == 200
    return COUNTED.findall(text.decode())


def first_line(room: bytes) -> bytes:
    return b"POST /rooms/" + room + b"/broadcast HTTP/1.1"


LINES = {
    "another room": (first_line(b"user_2"), 200),
    "a room of another kind": (first_line(b"request_7f-3a"), 200),
    "a room of all letters": (first_line(b"user_a.b~c:d@e|f=g+h-i_J"), 200),
    "the longest room": (first_line(b"user_" + b"x" * 200), 200),
    "percent-encoded": (first_line(b"user%5F1"), 200),
    "percent-encoded, badly": (first_line(b"user_%ff"), 400),
    "half of an encoding": (first_line(b"user_%"), 400),
    "a slash, encoded": (first_line(b"user_1%2F2"), 400),
    "a slash": (first_line(b"user_1/x"), 404),
    "a slash in front": (first_line(b"/user_1"), 404),
    "a slash behind": (b"POST /rooms/user_1/broadcast/ HTTP/1.1", 200),
    "two roots": (b"POST //rooms/user_1/broadcast HTTP/1.1", 200),
    "dots": (first_line(b"../rooms/user_1"), 404),
    "no room": (b"POST /rooms/broadcast HTTP/1.1", 404),
    "an empty room": (first_line(b""), 400),
    "a bad room": (first_line(b"nope"), 400),
    "the server's kind": (first_line(b"synap_x"), 400),
    "a kind in capitals": (first_line(b"User_1"), 400),
    "too long a room": (first_line(b"user_" + b"x" * 201), 400),
    "much too long": (first_line(b"user_" + b"x" * 50_000), 414),
    "other letters": (first_line("user_é".encode()), 400),
    "other letters, Latin-1": (first_line(b"user_\xe9"), 400),
    "a NUL": (first_line(b"user_\0"), 400),
    "a line's end": (first_line(b"user_1\n"), 400),
    "a return": (first_line(b"user_1\r"), 400),
    "a first line within": (first_line(b"user_1/broadcast HTTP/1.1\nX: "), 400),
    "a query": (b"POST /rooms/user_1/broadcast?a=b HTTP/1.1", 200),
    "a query in front": (first_line(b"user_1?x="), 404),
    "a token in the query": (b"POST /rooms/user_1/broadcast?token=x HTTP/1.1", 200),
    "a fragment": (first_line(b"user_1#"), 404),
    "an absolute target": (b"POST http://localhost/rooms/user_1/broadcast HTTP/1.1", 200),
    "another method": (b"PUT /rooms/user_1/broadcast HTTP/1.1", 405),
    "a method in small letters": (b"post /rooms/user_1/broadcast HTTP/1.1", 400),
    "a method with a letter more": (b"XPOST /rooms/user_1/broadcast HTTP/1.1", 400),
    "HTTP/1.0": (b"POST /rooms/user_1/broadcast HTTP/1.0", 200),
    "HTTP/1.2": (b"POST /rooms/user_1/broadcast HTTP/1.2", 400),
    "http in small letters": (b"POST /rooms/user_1/broadcast http/1.1", 400),
    "a space in front": (b" POST /rooms/user_1/broadcast HTTP/1.1", 400),
    "two spaces": (b"POST  /rooms/user_1/broadcast HTTP/1.1", 200),
    "a space in the room": (first_line(b"user_1 "), 400),
    "two spaces behind": (b"POST /rooms/user_1/broadcast  HTTP/1.1", 200),
    "a space at the end": (b"POST /rooms/user_1/broadcast HTTP/1.1 ", 400),
    "a tab": (b"POST\t/rooms/user_1/broadcast HTTP/1.1", 400),
    "lines in front": (b"\r\n\r\n" + first_line(b"user_1"), 200),
    "another route": (b"POST /broadcast HTTP/1.1", 400),
    "a route of the room": (b"POST /rooms/user_1/events HTTP/1.1", 405),
}


@pytest.mark.parametrize("name", LINES)
async def test_a_request_line_gets_its_status(name: str) -> None:
    line, status = LINES[name]
    fields = [b"Host: localhost", b"Content-Length: %d" % len(BODY), KEY]
    async with running_server(keyed_app()) as url, peer(url) as client:
        await client.say(b"\r\n".join([line, *fields, b"", BODY]))
        got, answered, content = await client.answer()
        assert got == status, content
        if answered.get("connection") == "close":
            assert await client.has_ended()
        else:
            await client.say(HEALTH)
            assert await client.status() == 200


async def test_credential_of_a_partial_head_is_not_shared() -> None:
    """Another connection that sends only the second piece has no key."""
    whole = publish(KEY, b"X: y")
    async with running_server(keyed_app()) as url, peer(url) as client:
        send_immediately(client)
        for cut in range(1, len(whole) - len(BODY)):
            await client.say(whole[:cut])
            await asyncio.sleep(0.001)  # so that it is read by itself
            await client.say(whole[cut:])
            assert await client.status() == 200
            _, found, rest = whole[cut:].partition(b"\r\n")
            if found and KEY not in rest:
                async with peer(url) as anonymous:
                    await anonymous.say(first_line(b"user_9") + found + rest)
                    assert await anonymous.status() in (400, 401), cut


async def test_an_authorizer_is_asked_each_time() -> None:
    asked = []

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        asked.append(room)
        return len(asked) < 3

    async with running_server(keyed_app(may=may)) as url, peer(url) as client:
        statuses = []
        for _ in range(4):
            await client.say(PUBLISH)
            statuses.append(await client.status())
        assert (statuses, len(asked)) == ([200, 200, 403, 403], 4)


@pytest.mark.usefixtures("slow_rate_clock")
async def test_refused_size_uses_no_notification_quota() -> None:
    app = keyed_app(publishes_per_s=5, publish_bytes_per_s=10_000)
    large, small = json.dumps({"type": "a", "data": {"x": "y" * 9000}}).encode(), BODY
    async with running_server(app) as url, peer(url) as client:
        await client.say(publish(KEY, body=large))
        assert await client.status() == 200
        for _ in range(10):  # over the rate of notifications, if they counted
            await client.say(publish(KEY, body=large))
            status, answer, content = await client.answer()
            assert (status, b"bytes/s per key" in content) == (429, True)
            assert int(answer["retry-after"]) >= 1
        await client.say(publish(KEY, body=small))
        assert await client.status() == 200
        counted = {name + labels: value for name, labels, value in await counts(url)}
        assert counted['publishes_total{outcome="rejected"}'] == "10.0"
        assert counted['errors_total{code="rate_limited"}'] == "10.0"


@pytest.mark.usefixtures("slow_rate_clock")
async def test_too_many_notifications_are_reported_so() -> None:
    async with running_server(keyed_app(publishes_per_s=5)) as url, peer(url) as client:
        statuses = []
        for _ in range(20):
            await client.say(PUBLISH)
            statuses.append(await client.status())
        assert statuses == [200] * 5 + [429] * 15


async def test_lines_about_each_publish_are_written(caplog: pytest.LogCaptureFixture) -> None:
    async with running_server(keyed_app()) as url, peer(url) as client:
        with caplog.at_level(logging.DEBUG, "synap_realtime.server.logging.events"):
            await client.say(PUBLISH)
            assert await client.status() == 200
    (line,) = [record for record in caplog.records if record.message == "published"]
    assert (line.__dict__["key"], line.__dict__["room"]) == ("jobs", "user_1")


async def test_publish_has_a_span() -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    before = trace._TRACER_PROVIDER
    async with running_server(keyed_app()) as url, peer(url) as client:
        trace._TRACER_PROVIDER, tracing._checked_at = provider, -math.inf
        try:
            await client.say(PUBLISH)
            assert await client.status() == 200
        finally:
            trace._TRACER_PROVIDER, tracing._is_enabled = before, False
    assert [span.name for span in kept.get_finished_spans()] == ["publish"]


def test_pipelined_publishes_are_answered_in_order(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            await client.say(PUBLISH * 3 + PUBLISH[:30])
            assert [await client.status() for _ in range(3)] == [200] * 3
            await client.say(PUBLISH[30:])
            assert await client.status() == 200

    run(test())


def test_a_publish_may_be_cut_anywhere(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            send_immediately(client)
            for cut in range(1, len(PUBLISH)):
                await client.say(PUBLISH[:cut])
                await asyncio.sleep(0)
                await client.say(PUBLISH[cut:])
                assert await client.status() == 200, cut

    run(test())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (KEY, KEY + b"\r\nContent-Length: 0"),
        (KEY, KEY + b"\r\nContent-Length: 22"),
        (KEY, KEY + b"\r\nTransfer-Encoding: chunked"),
        (KEY, KEY + b"\r\n folded"),
        (KEY, KEY + b"\nX: y"),
        (KEY, KEY + b"\0"),
        (KEY, b"X : y\r\n" + KEY),
        (b"\r\n\r\n", b"\n\n"),
        (b"\r\n\r\n", b"\r\n\n"),
        (b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
        (b"HTTP/1.1\r\n", b"HTTP/1.1\r\n X: y\r\n"),
        (b"HTTP/1.1\r\n", b"HTTP/1.1\r"),
    ],
)
def test_refuses_ambiguous_framing(run: Run, old: bytes, new: bytes) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            await client.say(PUBLISH.replace(old, new, 1) + PUBLISH)
            assert await client.status() == 400
            assert await client.has_ended()

    run(test())


def test_a_body_that_looks_like_a_request_is_a_body(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            body = PUBLISH
            await client.say(publish(KEY, body=body) + HEALTH)
            assert [await client.status(), await client.status()] == [400, 200]

    run(test())


def test_closes_publisher_that_reads_no_response(run: Run, set_waits: SetWaits) -> None:
    set_waits(reader_timeout_s=0.2)

    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url, buffer=4096) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(ConnectionError):  # noqa: PT012 - it is cut in the midst of it
                while True:
                    await client.say(PUBLISH)
                    await asyncio.sleep(0)

    run(test())


def test_a_publisher_that_ends_tls_with_its_request_gets_the_answer(
    run: Run, tmp_path: Path
) -> None:
    """The request and the end of TLS come in one read."""

    def ask(port: int, context: ssl.SSLContext) -> list[bytes]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        answers: list[bytes] = []
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as raw:

            def until_done(step: Callable[[], object]) -> None:
                while True:
                    try:
                        step()
                        break
                    except ssl.SSLWantReadError:
                        raw.sendall(outgoing.read())
                        incoming.write(raw.recv(65536))
                raw.sendall(outgoing.read())

            until_done(tls.do_handshake)
            tls.write(PUBLISH)
            until_done(lambda: answers.append(tls.read(65536)))
            tls.write(PUBLISH)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()  # says that it ends; what waits goes out together
            raw.sendall(outgoing.read())
            raw.shutdown(socket.SHUT_WR)
            while part := raw.recv(65536):
                incoming.write(part)
            with contextlib.suppress(ssl.SSLError):
                answers.append(tls.read(65536))
        return answers

    async def test() -> None:
        certified = certify(tmp_path)
        certificate = ReloadingCertificate(certified.chain, certified.key)
        async with running_server(keyed_app(), certificate=certificate) as url:
            port = int(url.rpartition(":")[2])
            answers = await asyncio.to_thread(ask, port, certified.client())
            assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 2

    run(test())
