"""A publish with a head that is known is answered at once, and nobody can tell but by the time.

Two servers hear the same, and one of them a field more in each head, which keeps it from being
known: what they answer, tell their listeners and count is the same, but for ids and moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from synap_realtime import tracing
from synap_realtime.server import create_app
from synap_realtime.server.front import half_open, heads, reader, requests
from synap_realtime.server.front.certificate import Certificate
from synap_realtime.server.serve import running
from synap_realtime.server.settings import load_settings
from synap_realtime.tokens import mint_token

from ...certificates import certify
from .conftest import Run
from .test_requests import (
    API_KEY,
    BODY,
    CHUNKED,
    HEALTH,
    SECRET,
    Peer,
    bearer,
    http,
    peer,
    publish,
    with_keys,
)

KEY = bearer(API_KEY)
UNKNOWN = b"X-N: n"
KNOWN = publish(KEY)
MIB = 1024 * 1024


class Counted(requests.HttpConnection):
    """Says how many were answered at once, and how often something came."""

    at_once = reads = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        Counted.reads += 1

    def _publish_at_once(self, data: bytes) -> bool:
        is_answered = super()._publish_at_once(data)
        Counted.at_once += is_answered
        return is_answered


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synap_realtime.server.front.listening.HttpConnection", Counted)
    monkeypatch.setattr(Counted, "at_once", 0)


@contextlib.contextmanager
def counting(count: int, name: object = None) -> Iterator[None]:
    """So many are answered at once meanwhile."""
    before = Counted.at_once
    yield
    assert Counted.at_once - before == count, name


async def learned(client: Peer, sent: bytes = KNOWN) -> None:
    """A head is known from here on."""
    await client.say(sent)
    assert await client.status() == 200
    with counting(1):
        await client.say(sent)
        assert await client.status() == 200


def at_once(client: Peer) -> None:
    """What it says goes out by itself, without waiting for what comes next."""
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def heard(listener: Peer) -> bytes:
    """The next notification on an event stream."""
    while not (line := await listener.reader.readline()).startswith(b'data: {"type":'):
        assert line, "the stream has ended"
    return line


async def listen(url: str, stack: AsyncExitStack, room: bytes, *fields: bytes) -> Peer:
    listener = await stack.enter_async_context(peer(url))
    await listener.say(http(b"GET /rooms/" + room + b"/events", *fields))
    await listener.reader.readuntil(b"event: synap.subscribed")
    return listener


COUNTED = re.compile(
    r"^synap_realtime_((?:publishes|publish_bytes|deliveries|refusals|drops|store_errors)_total"
    r"|(?:store_operation|publish_to_write)_seconds_count|store_bytes|store_rooms)(\S*) (\S+)$",
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


ALIKE = re.compile(
    rb'(?<="id":")[0-9a-f]{8}-[0-9a-f-]{27}|(?<="cursor":")[0-9a-f]{12}-\d+'
    rb"|\d{4}-\d\d-\d\dT[\d:.]+Z"
)


def alike(told: bytes) -> bytes:
    """Without what the server makes anew each time: its own ids, its epoch, the moment."""
    return ALIKE.sub(b"_", told)


# --- the same answers ---------------------------------------------------------------------------


def note(members: bytes) -> bytes:
    return b'{"type":"a","data":{},' + members + b"}"


def data(value: bytes) -> bytes:
    return b'{"type":"a","data":{"x":' + value + b"}}"


AT_ONCE = {
    "the least": BODY,
    "all members": note(b'"id":"n1","requestId":"r","status":"pending","x":[1,null,{"y":2}]'),
    "a moment": note(b'"timestamp":"2026-01-31T14:00:00+02:00"'),
    "another order": b'{"x":1,"data":{"b":1,"a":2},"id":"n1","type":"a"}',
    "spaces around": b" \r\n\t" + BODY + b" \r\n\t",
    "the type twice": b'{"type":5,"data":{},"type":"b"}',
    "the data twice": b'{"type":"a","data":[],"x":1,"data":{"y":1},"x":2}',
    "a member of data twice": data(b'1,"y":2,"x":3'),
    "an id twice": note(b'"id":7,"id":"n1"'),
    "escapes": data(rb'"\u0041\n\"\\\/\u00e9\ud83d\ude00\u0000"'),
    "other letters": data('"é😀\u2028"'.encode()),
    "an id of other letters": note('"id":"é\\"\\u0000😀"'.encode()),
    "a type in escapes": b'{"\\u0074ype":"\\u0061","data":{}}',
    "numbers": data(b"[0,-0,-0.0,1.0,1e2,1E-7,0.1,1e22,1e-400,9007199254740993]"),
    "a large number": data(b"9" * 400),
    "as deep as may be": data(b"[" * 190 + b"]" * 190),
    "names that mean something elsewhere": note(b'"__proto__":{},"request_id":5,"model_extra":1'),
    "an empty name": note(b'"":{"":""}'),
    "the longest type": b'{"type":"%b","data":{}}' % ("é" * 128).encode(),
    "rooms, which is any member": note(b'"rooms":["user_2"]'),
    "large": data(b'"%b"' % (b"y" * 30_000)),
}

OTHERWISE = {
    "nothing": b"",
    "no object": b'["a"]',
    "an empty object": b"{}",
    "text": b'"%b"' % (b"a" * 30),
    "not JSON": b"x" * len(BODY),
    "half of it": BODY[:-1] + b" ",
    "two of them": BODY + BODY,
    "something behind": BODY + b"x",
    "a comma too many": b'{"type":"a","data":{},}',
    "a comment": BODY + b"//x",
    "single quotes": BODY.replace(b'"', b"'"),
    "a NUL behind": BODY + b"\0",
    "a NUL within": data(b'"\0"'),
    "a line's end in a text": data(b'"\n"'),
    "NaN": data(b"NaN"),
    "Infinity": data(b"[Infinity]"),
    "-Infinity": data(b"-Infinity"),
    "NaN in a member": note(b'"x":NaN'),
    "too large a number": data(b"1e999"),
    "one below zero": note(b'"x":[-1e999]'),
    "too many digits": data(b"9" * 5000),
    "NaN, and a text that says so": data(b'"NaN Infinity"'),
    "only the text": note(b'"NaN":"Infinity"'),
    "half of a letter": data(rb'"\ud83d"'),
    "the other half": data(rb'"\ude00x"'),
    "half of a letter as a name": data(rb'{"\ud83d":1}'),
    "half of a letter as a type": b'{"type":"\\ud800","data":{}}',
    "half of a letter as an id": note(rb'"id":"\udfff"'),
    "not UTF-8": data(b'"\xff"'),
    "UTF-8 of half a letter": data(b'"\xed\xa0\x80"'),
    "UTF-16": BODY.decode().encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf" + BODY,
    "a type that is null": b'{"type":null,"data":{}}',
    "an id that is null": note(b'"id":null'),
    "a status that is null": note(b'"status":null,"x":null'),
    "a moment that is null": note(b'"timestamp":null,"requestId":null'),
    "the server's type": b'{"type":"synap.closing","data":{}}',
    "the server's type, in escapes": b'{"type":"s\\u0079nap.x","data":{}}',
    "the server's type, the second time": b'{"type":"a","data":{},"type":"synap.a"}',
    "a room": note(b'"room":"user_2"'),
    "a cursor": note(b'"cursor":"x-5"'),
    "a room of a wrong type": note(b'"room":5,"cursor":null'),
    "a room in escapes": note(b'"roo\\u006d":"user_2"'),
    "a type that is a number": b'{"type":1,"data":{}}',
    "no type": b'{"typ":"a","data":{}}',
    "an empty type": b'{"type":"","data":{}}',
    "too long a type": b'{"type":"%b","data":{}}' % (b"a" * 129),
    "data that is a list": b'{"type":"a","data":[]}',
    "data that is null": b'{"type":"a","data":null}',
    "no data": b'{"type":"a","date":{}}',
    "an empty id": note(b'"id":""'),
    "an id that is a number": note(b'"id":5'),
    "too long an id": note(b'"id":"%b"' % (b"a" * 129)),
    "a status of its own": note(b'"status":"done"'),
    "a requestId that is a number": note(b'"requestId":5'),
    "no moment": note(b'"timestamp":"yesterday"'),
    "a moment without an offset": note(b'"timestamp":"2026-01-31T12:00:00"'),
    "a moment that is none": note(b'"timestamp":"2026-02-31T12:00:00Z"'),
    "a moment that is a number": note(b'"timestamp":1790000000'),
    "too deep": data(b"[" * 200 + b"]" * 200),
    "much too deep": data(b"[" * 20_000),
    "larger when it is written out": data(b"[" + b"1e15," * 40_000 + b"1]"),
    "over 256 KiB": data(b'"%b"' % (b"y" * 256 * 1024)),
    "over 1 MiB": data(b'"%b"' % (b"y" * MIB)),
}  # fmt: skip


def first_line(room: bytes) -> bytes:
    return b"POST /rooms/" + room + b"/broadcast HTTP/1.1"


LINES = {
    "another room": (first_line(b"user_2"), True),
    "a room of another kind": (first_line(b"request_7f-3a"), True),
    "a room of all letters": (first_line(b"user_a.b~c:d@e|f=g+h-i_J"), True),
    "the longest room": (first_line(b"user_" + b"x" * 200), True),
    "percent-encoded": (first_line(b"user%5F1"), False),
    "percent-encoded, badly": (first_line(b"user_%ff"), False),
    "half of an encoding": (first_line(b"user_%"), False),
    "a slash, encoded": (first_line(b"user_1%2F2"), False),
    "a slash": (first_line(b"user_1/x"), False),
    "a slash in front": (first_line(b"/user_1"), False),
    "a slash behind": (b"POST /rooms/user_1/broadcast/ HTTP/1.1", False),
    "two roots": (b"POST //rooms/user_1/broadcast HTTP/1.1", False),
    "dots": (first_line(b"../rooms/user_1"), False),
    "no room": (b"POST /rooms/broadcast HTTP/1.1", False),
    "an empty room": (first_line(b""), False),
    "a bad room": (first_line(b"nope"), False),
    "the server's kind": (first_line(b"synap_x"), False),
    "a kind in capitals": (first_line(b"User_1"), False),
    "too long a room": (first_line(b"user_" + b"x" * 201), False),
    "much too long": (first_line(b"user_" + b"x" * 50_000), False),
    "other letters": (first_line("user_é".encode()), False),
    "other letters, Latin-1": (first_line(b"user_\xe9"), False),
    "a NUL": (first_line(b"user_\0"), False),
    "a line's end": (first_line(b"user_1\n"), False),
    "a return": (first_line(b"user_1\r"), False),
    "a first line within": (first_line(b"user_1/broadcast HTTP/1.1\nX: "), False),
    "a query": (b"POST /rooms/user_1/broadcast?a=b HTTP/1.1", False),
    "a query in front": (first_line(b"user_1?x="), False),
    "a token in the query": (b"POST /rooms/user_1/broadcast?token=x HTTP/1.1", False),
    "a fragment": (first_line(b"user_1#"), False),
    "an absolute target": (b"POST http://localhost/rooms/user_1/broadcast HTTP/1.1", False),
    "another method": (b"PUT /rooms/user_1/broadcast HTTP/1.1", False),
    "a method in small letters": (b"post /rooms/user_1/broadcast HTTP/1.1", False),
    "a method with a letter more": (b"XPOST /rooms/user_1/broadcast HTTP/1.1", False),
    "HTTP/1.0": (b"POST /rooms/user_1/broadcast HTTP/1.0", False),
    "HTTP/1.2": (b"POST /rooms/user_1/broadcast HTTP/1.2", False),
    "http in small letters": (b"POST /rooms/user_1/broadcast http/1.1", False),
    "a space in front": (b" POST /rooms/user_1/broadcast HTTP/1.1", False),
    "two spaces": (b"POST  /rooms/user_1/broadcast HTTP/1.1", False),
    "a space in the room": (first_line(b"user_1 "), False),
    "two spaces behind": (b"POST /rooms/user_1/broadcast  HTTP/1.1", False),
    "a space at the end": (b"POST /rooms/user_1/broadcast HTTP/1.1 ", False),
    "a tab": (b"POST\t/rooms/user_1/broadcast HTTP/1.1", False),
    "lines in front": (b"\r\n\r\n" + first_line(b"user_1"), False),
    "another route": (b"POST /broadcast HTTP/1.1", False),
    "a route of the room": (b"POST /rooms/user_1/events HTTP/1.1", False),
}

SAME = {
    **{f"body: {name}": (first_line(b"user_1"), body, True) for name, body in AT_ONCE.items()},
    **{f"body: {name}": (first_line(b"user_1"), body, False) for name, body in OTHERWISE.items()},
    **{f"line: {name}": (line, BODY, quick) for name, (line, quick) in LINES.items()},
}


def subscriber() -> bytes:
    """The header field of a token for every room."""
    return bearer(mint_token("1", secret=SECRET, rooms=["*"]))


class Side:
    """One of the two servers."""

    def __init__(self, url: str, listener: Peer, *, is_known: bool) -> None:
        self._url = url
        self._listener = listener
        self._is_known = is_known

    def _rest(self, body: bytes, number: bytes) -> bytes:
        fields = [b"Host: localhost", b"Content-Length: %d" % len(body), KEY]
        more = b"X-N: 0" if self._is_known else b"X-N: " + number
        return b"\r\n".join([b"", *fields, more, b"", b""])

    async def say(self, line: bytes, body: bytes) -> list[Any]:
        """What comes of it, where one with a body of the same length was answered before."""
        told: list[Any] = []
        async with peer(self._url) as client:
            if len(BODY) <= len(body) < 240_000:
                good = BODY.ljust(len(body))
                await client.say(first_line(b"user_1") + self._rest(body, b"1") + good)
                assert await client.status() == 200
                await heard(self._listener)
            await client.say(line + self._rest(body, b"2") + body)
            status, answered, content = await client.answer()
            del answered["date"]
            told += [status, answered, alike(content)]
            if answered.get("connection") == "close":
                told.append(await client.has_ended())
            else:
                await client.say(HEALTH)
                told.append(await client.status())
            if status == 200 and b'"broadcastCount":1' in content:
                told.append(alike(await heard(self._listener)))
        async with peer(self._url) as client:
            for room in (b"user_1", b"user_2", b"request_7f-3a"):
                await client.say(http(b"GET /rooms/" + room + b"/history", subscriber()))
                told.append(alike((await client.answer())[2]))
        return [*told, await counts(self._url)]


@pytest.mark.parametrize("name", SAME)
def test_it_comes_to_the_same(run: Run, name: str) -> None:
    line, body, is_quick = SAME[name]

    async def test() -> None:
        async with AsyncExitStack() as stack:
            told = []
            for is_known in (True, False):
                url = await stack.enter_async_context(running(with_keys()))
                listener = await listen(url, stack, b"user_1", subscriber())
                with counting(is_known and is_quick):
                    told.append(await Side(url, listener, is_known=is_known).say(line, body))
            assert told[0] == told[1]

    run(test())


# --- what is learned ----------------------------------------------------------------------------


async def test_of_a_head_in_two_pieces_nothing_is_learned() -> None:
    """In the second half alone is no key: whoever sent it would be its holder."""
    whole = publish(KEY, b"X: y")
    async with running(with_keys()) as url, peer(url) as client:
        at_once(client)
        for cut in range(1, len(whole) - len(BODY)):
            await client.say(whole[:cut])
            await asyncio.sleep(0.001)  # so that it is read by itself
            await client.say(whole[cut:])
            assert await client.status() == 200
            _, found, rest = whole[cut:].partition(b"\r\n")
            if found and KEY not in rest:
                async with peer(url) as stranger:
                    await stranger.say(first_line(b"user_9") + found + rest)
                    assert await stranger.status() in (400, 401), cut


PUBLISHER = bearer("<token>")
"""Its place is taken by a token that is minted when the test runs."""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (publish(PUBLISHER), 200),
        (publish(bearer("no" * 20)), 401),
        (publish(KEY, body=b"[]"), 400),
        (publish(KEY, room=b"/rooms/nope"), 400),
        (publish(KEY, b"Content-Type: text/plain"), 415),
        (publish(KEY, b"Origin: http://other.example"), 403),
        (publish(KEY, b"Expect: 100-continue"), 200),
        (publish(KEY, b"Connection: close"), 200),
        (publish(KEY, b"Upgrade: h2c", b"Connection: Upgrade"), 200),
        (publish(KEY, KEY), 401),
        (http(b"POST /rooms/user_1/broadcast", KEY, CHUNKED,
              body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), 200),
        (http(b"POST /rooms/user_1/broadcast?a=b", KEY, b"Content-Length: 22", body=BODY), 200),
        (publish(KEY, b"X: " + b"x" * heads.MAX_BYTES), 200),
        (http(b"GET /rooms/user_1/presence", KEY, b"Content-Length: 0"), 403),
    ],
)  # fmt: skip
async def test_this_is_never_learned(sent: bytes, status: int) -> None:
    token = bearer(mint_token(secret=SECRET, rooms=["*"], scope="broadcast"))
    sent = sent.replace(PUBLISHER, token)
    async with running(with_keys()) as url:
        with counting(0):
            for _ in range(3):
                async with peer(url) as client:
                    await client.say(sent)
                    assert await client.status() == status


async def test_only_so_many_are_known() -> None:
    async with running(with_keys()) as url, peer(url) as client:
        await learned(client)
        for number in range(heads.MAX_KNOWN):
            await client.say(publish(KEY, b"X: %d" % number))
            assert await client.status() == 200
        with counting(0):
            await client.say(KNOWN)
            assert await client.status() == 200
        with counting(1):
            await client.say(publish(KEY, b"X: %d" % (heads.MAX_KNOWN - 1)))
            assert await client.status() == 200


async def test_a_rule_is_asked_each_time() -> None:
    asked = []

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        asked.append(room)
        return len(asked) < 3

    async with running(with_keys(may=may)) as url, peer(url) as client:
        statuses = []
        with counting(0):
            for _ in range(4):
                await client.say(KNOWN)
                statuses.append(await client.status())
        assert (statuses, len(asked)) == ([200, 200, 403, 403], 4)


async def test_a_key_that_is_taken_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap_realtime.server.watched.LOOK_EVERY_S", 0)
    file = tmp_path / "keys.toml"
    file.write_text(f'[api_keys]\njobs = "{API_KEY}"\n')
    async with running(create_app(load_settings(keys=file))) as url, peer(url) as client:
        await learned(client)
        for keys, status in (
            (f'jobs = {{ key = "{API_KEY}", scope = "metrics" }}', 403),
            (f'jobs = "{API_KEY}"\n# again', 200),
            (f'jobs = "{"z" * 43}"', 401),
        ):
            file.write_text(f"[api_keys]\n{keys}\n")
            async with asyncio.timeout(5):  # it is read within a second, whoever asks meanwhile
                await client.say(KNOWN)
                while await client.status() != status:
                    await client.say(KNOWN)


async def test_a_store_that_has_to_be_waited_for_is(tmp_path: Path) -> None:
    app = with_keys(store=f"sqlite:///{tmp_path / 'rooms.db'}")
    async with running(app) as url, peer(url) as client:
        with counting(0):
            for _ in range(3):
                await client.say(KNOWN)
                assert await client.status() == 200


# --- limits, and the end ------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(), (b"X-N: n",)])
async def test_what_is_refused_for_its_bytes_takes_no_notification(
    fields: tuple[bytes, ...],
) -> None:
    app = with_keys(publishes_per_s=5, publish_bytes_per_s=10_000)
    large, small = json.dumps({"type": "a", "data": {"x": "y" * 9000}}).encode(), BODY
    async with running(app) as url, peer(url) as client:
        await client.say(publish(KEY, *fields, body=large))
        assert await client.status() == 200
        for _ in range(10):  # over the rate of notifications, if they counted
            await client.say(publish(KEY, *fields, body=large))
            status, answer, content = await client.answer()
            assert (status, b"bytes a second" in content) == (429, True)
            assert int(answer["retry-after"]) >= 1
        await client.say(publish(KEY, *fields, body=small))
        assert await client.status() == 200
        counted = {name + labels: value for name, labels, value in await counts(url)}
        assert counted['publishes_total{outcome="refused"}'] == "10.0"
        assert counted['refusals_total{code="too_many"}'] == "10.0"


async def test_too_many_notifications_are_told_so() -> None:
    async with running(with_keys(publishes_per_s=5)) as url, peer(url) as client:
        statuses = []
        for _ in range(20):
            await client.say(KNOWN)
            statuses.append(await client.status())
        assert statuses[:5] == [200] * 5
        assert 429 in statuses


async def test_who_drains_takes_nothing_more() -> None:
    app = with_keys()
    async with running(app) as url, peer(url) as client:
        await learned(client)
        await app.drain()
        with counting(0):
            await client.say(KNOWN)
            status, fields, _ = await client.answer()
        assert (status, fields["retry-after"]) == (503, "1")


async def test_lines_about_each_publish_are_written(caplog: pytest.LogCaptureFixture) -> None:
    async with running(with_keys()) as url, peer(url) as client:
        await learned(client)
        with caplog.at_level(logging.DEBUG, "synap_realtime.server.events"), counting(0):
            await client.say(KNOWN)
            assert await client.status() == 200
    (line,) = [record for record in caplog.records if record.message == "published"]
    assert (line.__dict__["key"], line.__dict__["room"]) == ("jobs", "user_1")


async def test_a_trace_has_its_span() -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    before = trace._TRACER_PROVIDER
    async with running(with_keys()) as url, peer(url) as client:
        await learned(client)
        trace._TRACER_PROVIDER, tracing._looked_at = provider, -math.inf
        try:
            with counting(0):
                await client.say(KNOWN)
                assert await client.status() == 200
        finally:
            trace._TRACER_PROVIDER, tracing._is_on = before, False
    assert [span.name for span in kept.get_finished_spans()] == ["publish"]


# --- on the wire --------------------------------------------------------------------------------


def test_known_ones_in_one_piece_are_answered_in_their_turn(run: Run) -> None:
    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            await learned(client)
            with counting(0):
                await client.say(KNOWN * 3 + KNOWN[:30])
                assert [await client.status() for _ in range(3)] == [200] * 3
                await client.say(KNOWN[30:])
                assert await client.status() == 200
            with counting(1):
                await client.say(KNOWN)
                assert await client.status() == 200

    run(test())


def test_a_known_one_is_cut_anywhere(run: Run) -> None:
    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            await learned(client)
            at_once(client)
            for cut in range(1, len(KNOWN)):
                await client.say(KNOWN[:cut])
                await asyncio.sleep(0)
                await client.say(KNOWN[cut:])
                assert await client.status() == 200, cut

    run(test())


HEAD = KNOWN[: -len(BODY)]


async def alone(client: Peer, part: bytes) -> None:
    """Say it so that it is read by itself."""
    before = Counted.reads
    await client.say(part)
    while Counted.reads == before:  # noqa: ASYNC110 - the server counts
        await asyncio.sleep(0.001)


def test_a_head_and_its_body_may_come_one_after_the_other(run: Run) -> None:
    """As many libraries send them: it is learned so, and known so."""

    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            at_once(client)
            for count in (0, 1, 1):
                with counting(count):
                    await alone(client, HEAD)
                    await client.say(BODY)
                    assert await client.status() == 200
            with counting(1, "they come together"):
                await client.say(KNOWN)
                assert await client.status() == 200

    run(test())


def test_behind_a_head_alone_all_is_parsed_that_is_not_its_body(run: Run) -> None:
    async def test() -> None:
        async with running(with_keys()) as url:
            for said, statuses in (
                ((BODY + HEALTH,), (200, 200)),
                ((BODY + KNOWN,), (200, 200)),
                ((BODY[:5], BODY[5:]), (200,)),
                ((b"x" * len(BODY) + HEAD, BODY), (400, 200)),
            ):
                async with peer(url) as client:
                    await learned(client)
                    await alone(client, HEAD)
                    with counting(0, said):
                        for part in said:
                            await alone(client, part)
                        for status in statuses:
                            assert await client.status() == status, said

    run(test())


def test_a_head_whose_body_does_not_come_is_parsed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "EARLY_S", 0.05)
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 0.3)

    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client, peer(url) as other:
            await learned(client)
            await client.say(HEAD)
            assert await client.status() == 408
            await learned(other)
            await other.say(HEAD)
            await asyncio.sleep(0.1)  # it is parsed now
            with counting(0):
                await other.say(BODY)
                assert await other.status() == 200

    run(test())


def test_a_server_that_stops_reads_the_body_of_a_head_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "EARLY_S", 60)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            async with running(with_keys()) as url:
                client = await stack.enter_async_context(peer(url))
                gone = await stack.enter_async_context(peer(url))
                await learned(client)
                await alone(client, HEAD)
                await gone.say(HEAD)
                gone.writer.transport.abort()
                stopping = asyncio.get_running_loop().call_later(0.2, client.writer.write, BODY)
            assert await client.status() == 503
            stopping.cancel()

    run(test())


def test_behind_a_part_of_another_it_is_none(run: Run) -> None:
    """The parser has the first part, and what comes is the rest of it."""

    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as first:
            await learned(first)
            large = publish(KEY, b"X-N: n", body=BODY.ljust(len(BODY) + len(KNOWN)))
            for begun, status in (
                (b"P", 400), (b"POST /", 400),
                (b"GET /health HTTP/1.1\r\nX: ", 200),  # its Host is what follows
                (publish(KEY, b"X: 1")[: -len(BODY)], 400),
                (large[: -len(KNOWN)], 400),
                (http(b"POST /rooms/user_1/broadcast", KEY, CHUNKED), 400),
            ):  # fmt: skip
                async with peer(url) as client:
                    await alone(client, begun)
                    with counting(0, begun):
                        await client.say(KNOWN)
                        assert await client.status() == status, begun

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
def test_who_frames_it_in_two_ways_is_refused(run: Run, old: bytes, new: bytes) -> None:
    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            await learned(client)
            with counting(0):
                await client.say(KNOWN.replace(old, new, 1) + KNOWN)
                assert await client.status() == 400
                assert await client.has_ended()

    run(test())


def test_a_body_that_looks_like_a_request_is_a_body(run: Run) -> None:
    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            body = KNOWN
            await learned(client, publish(KEY, body=BODY.ljust(len(body))))
            await client.say(publish(KEY, body=body) + HEALTH)
            assert [await client.status(), await client.status()] == [400, 200]

    run(test())


@pytest.mark.parametrize("sent", [b"", KNOWN[:20], KNOWN[:-5]], ids=["idle", "head", "body"])
def test_who_waits_too_long_after_one_is_cut(
    run: Run, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_TIMEOUT_S", "IDLE_TIMEOUT_S", "BODY_TIMEOUT_S", "LINGER_S"):
        monkeypatch.setattr(requests, name, 0.3)
    monkeypatch.setattr(half_open, "LOOK_EVERY_S", 0.05)

    async def test() -> None:
        async with running(with_keys()) as url, peer(url) as client:
            await learned(client)
            await client.say(sent)
            if sent == KNOWN[:-5]:
                assert await client.status() == 408
            assert await client.has_ended()

    run(test())


def test_who_takes_no_answer_is_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READER_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with running(with_keys()) as url, peer(url, buffer=4096) as client:
            await learned(client)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(ConnectionError):  # noqa: PT012 - it is cut in the midst of it
                while True:
                    await client.say(KNOWN)
                    await asyncio.sleep(0)

    run(test())


def test_who_ends_tls_behind_a_known_one_hears_its_answer(run: Run, tmp_path: Path) -> None:
    """The request and the end of TLS come in one read: TLS is closed before the turn ends."""

    def ask(port: int, context: ssl.SSLContext) -> list[bytes]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        answers: list[bytes] = []
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:

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
            tls.write(KNOWN)
            until_done(lambda: answers.append(tls.read(65536)))
            tls.write(KNOWN)
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
        certificate = Certificate(certified.chain, certified.key)
        async with running(with_keys(), certificate=certificate) as url:
            port = int(url.rpartition(":")[2])
            with counting(1):
                answers = await asyncio.to_thread(ask, port, certified.client())
            assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 2

    run(test())


def test_over_tls_it_is_the_same(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        certified = certify(tmp_path)
        certificate = Certificate(certified.chain, certified.key)
        async with running(with_keys(), certificate=certificate) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=certified.client()
            )
            await learned(Peer(reader, writer))
            writer.transport.abort()

    run(test())
