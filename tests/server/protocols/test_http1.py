"""HTTP/1.1 over real sockets, on asyncio's loop and on uvloop's: RFC 9112 and its violations."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import pytest

from synap_realtime.server import RoomServer
from synap_realtime.server.protocols import http1, http1_parser
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET
from tests.support.raw_http import (
    BODY,
    CHUNKED,
    HANDSHAKE,
    HEALTH,
    ROOM,
    bearer,
    http,
    peer,
    publish,
)
from tests.support.servers import keyed_app, open_app
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

from .conftest import Run

MIB = 1024 * 1024


async def nothing_is_left(app: RoomServer, tasks: int) -> None:
    """No session, no place of the limits, no listener, no task."""
    async with asyncio.timeout(TIMEOUT_S):
        while (  # noqa: ASYNC110 - there is no event for all of it
            app.node.sessions.deliveries()
            or len(asyncio.all_tasks()) > tasks
            or app.node.sessions._limits._connections
            or app.node.sessions._hub.subscriber_count("user_1")  # type: ignore[arg-type]
        ):
            await asyncio.sleep(0.01)


@pytest.fixture
def _impatient(set_waits: SetWaits) -> None:
    set_waits(head_timeout_s=0.1, idle_timeout_s=0.1, body_timeout_s=0.1, linger_s=0.1)
    set_waits(pending_check_interval_s=0.05)


# --- what is right ------------------------------------------------------------------------------


def test_keep_alive_requests_are_answered_in_order(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            for _ in range(3):
                await client.say(HEALTH)
                status, fields, body = await client.answer()
                assert (status, json.loads(body)) == (200, {"status": "ok"})
                assert "connection" not in fields
                parsedate_to_datetime(fields["date"])
            asked = [publish(), http(b"GET " + ROOM + b"/history"), publish(), HEALTH]
            await client.say(b"".join(asked))
            kinds = [set(json.loads((await client.answer())[2])) for _ in asked]
            assert ["cursor" in kinds[0], "notifications" in kinds[1]] == [True, True]
            assert ["cursor" in kinds[2], kinds[3]] == [True, {"status"}]

    run(test())


def test_pipelined_requests_wait_for_the_first(run: Run) -> None:
    """The first has to ask a rule; the second does not, and still comes second."""

    async def test() -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
            asked.set()
            await go_on.wait()
            return True

        async with running_server(keyed_app(may=may)) as url, peer(url) as client:
            await client.say(publish(bearer(API_KEY)) + HEALTH + http(b"GET /nothing"))
            await asked.wait()
            go_on.set()
            assert "cursor" in json.loads((await client.answer())[2])
            assert [await client.status(), await client.status()] == [200, 404]

    run(test())


def test_asks_for_a_body_after_all_earlier_responses(run: Run) -> None:
    """The responses of one event-loop iteration are written together."""

    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            expecting = publish(b"Expect: 100-continue", bearer(API_KEY))[: -len(BODY)]
            await client.say(publish(bearer(API_KEY)) * 3 + expecting)
            statuses = [await client.status() for _ in range(3)]
            statuses.append((await client.answer(has_body=False))[0])
            await client.say(BODY)
            assert [*statuses, await client.status()] == [200, 200, 200, 100, 200]

    run(test())


def test_answers_as_many_pipelined_requests_as_allowed(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(publish() * http1_parser.MAX_PIPELINED)
            for _ in range(http1_parser.MAX_PIPELINED):
                assert await client.status() == 200

    run(test())


def test_content_length_may_have_any_number_of_leading_zeros(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            length = b"Content-Length: " + b"0" * 5000 + b"%d" % len(BODY)
            head = http(b"POST " + ROOM + b"/broadcast", b"Expect: 100-continue", length)
            await client.say(head)
            assert await client.status() == 100
            await client.say(BODY)
            assert await client.status() == 200

    run(test())


def test_sends_100_continue_only_when_the_body_is_needed(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            expecting = publish(b"Expect: 100-continue", bearer(API_KEY))[: -len(BODY)]
            await client.say(HEALTH + expecting)
            assert await client.status() == 200
            assert await client.status() == 100
            await client.say(BODY)
            assert await client.status() == 200
            await client.say(publish(b"Expect: 100-continue", bearer("no"))[: -len(BODY)])
            assert await client.status() == 401
            await client.say(BODY + HEALTH)  # who sends it all the same is understood
            assert await client.status() == 200
            await client.say(expecting.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)
            assert await client.status() == 200, "HTTP/1.0 does not know it"

    run(test())


def test_a_body_for_a_refused_credential_is_passed_over(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            large = publish(bearer("no"), body=b" " * 3_000_000)
            for _ in range(2):
                await client.say(large)
                assert await client.status() in (401, 413)
            await client.say(HEALTH)
            assert await client.status() == 200

    run(test())


def test_a_body_comes_in_pieces_of_any_size(run: Run) -> None:
    async def test() -> None:
        text = json.dumps({"type": "a", "data": {"x": "y" * 20_000}}).encode()
        for size in (1, 2, 1000):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            sent = http(b"POST " + ROOM + b"/broadcast", CHUNKED, body=chunks + b"0\r\n\r\n")
            async with running_server(open_app()) as url, peer(url) as client:
                await client.say(sent + HEALTH)
                assert [await client.status(), await client.status()] == [200, 200]
        async with running_server(open_app()) as url, peer(url) as client:
            for at in range(0, len(sent), 200):
                await client.say(sent[at : at + 200])
                await asyncio.sleep(0)
            assert await client.status() == 200

    run(test())


def test_http_1_0_clients_get_a_response_and_a_close(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url:
            for sent in (
                http(b"GET /health", version=b"1.0"),
                http(b"GET /health", b"Connection: keep-alive", version=b"1.0"),
                http(b"GET /health", b"Connection: close"),
                http(b"GET /health", b"Connection: close") + HEALTH,
            ):
                async with peer(url) as client:
                    await client.say(sent)
                    status, fields, _ = await client.answer()
                    assert (status, fields["connection"]) == (200, "close"), sent
                    assert await client.has_ended(), sent

    run(test())


def test_head_is_a_get_without_its_body(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(http(b"HEAD /health") + HEALTH)
            status, fields, _ = await client.answer(has_body=False)
            assert (status, fields["content-length"]) == (200, "15")
            assert await client.status() == 200

    run(test())


def test_an_absolute_target_is_its_path(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            for target in (b"http://localhost/health", b"HTTP://x:1/health?a=b", b"/health?a#b"):
                await client.say(http(b"GET " + target))
                assert await client.status() == 200, target

    run(test())


# --- who is late --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"", []), (b"\r\n", []), (b"GET /he", []), (HEALTH[:-2], []), (HEALTH, [200]),
        (HEALTH + HEALTH[:-4], [200]), (publish()[:-1], [408]), (publish()[:-1] + b"\r", [400]),
    ],
    ids=["nothing", "a line", "a target", "a head", "idle", "half of the next", "a body", "junk"],
)  # fmt: skip
def test_closes_connection_after_the_request_timeout(
    run: Run, sent: bytes, answers: list[int]
) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(sent)
            assert [await client.status() for _ in answers] == answers
            assert await client.has_ended()

    run(test())


@pytest.mark.parametrize("how", ["slowly", "not at all"])
def test_slow_reader_receives_all_and_non_reader_is_closed(
    run: Run, how: str, set_waits: SetWaits
) -> None:
    set_waits(reader_timeout_s=1 if how == "slowly" else 0.1)

    async def test() -> None:
        async with running_server(open_app()) as url:
            large = json.dumps({"type": "a", "data": {"x": "y" * 200_000}}).encode()
            async with peer(url) as client:
                for _ in range(10):
                    await client.say(publish(body=large))
                    assert await client.status() == 200
            async with peer(url, buffer=4096) as client:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await client.say(http(b"GET " + ROOM + b"/history", b"Connection: close"))
                await asyncio.sleep(0.5 if how == "slowly" else 0)
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]
                answer = await client.answer()
                count = len(json.loads(answer[2])["notifications"])
                assert count > 3
            async with peer(url, buffer=4096) as client:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await client.say(http(b"GET " + ROOM + b"/history") * 10)
                if how == "not at all":
                    await asyncio.sleep(0.5)
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]
                received = 0
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    while received < 10:
                        _, _, body = await client.answer()
                        assert len(json.loads(body)["notifications"]) == count
                        received += 1
                        await asyncio.sleep(0.02)
                assert (received == 10) is (how == "slowly")

    run(test())


# --- who breaks it ------------------------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
LENGTH = b"Content-Length: 4"
POST = b"POST /rooms/user_1/broadcast"
IN_CHUNKS = b"0\r\n\r\n"

FRAMINGS = {
    "a length, and chunks": http(POST, LENGTH, CHUNKED, body=IN_CHUNKS),
    "chunks, and a length": http(POST, CHUNKED, LENGTH, body=IN_CHUNKS),
    "two lengths": http(POST, LENGTH, b"Content-Length: 5", body=b"{}{}"),
    "the same length twice": http(POST, LENGTH, LENGTH, body=b"{}{}"),
    "a list of lengths": http(POST, b"Content-Length: 4, 4", body=b"{}{}"),
    "a length with a sign": http(POST, b"Content-Length: +4", body=b"{}{}"),
    "a length in hex": http(POST, b"Content-Length: 0x4", body=b"{}{}"),
    "a length with a gap": http(POST, b"Content-Length: 4 4", body=b"{}{}"),
    "an empty length": http(POST, b"Content-Length:", body=b""),
    "a space before the colon": http(POST, b"Content-Length : 4", body=b"{}{}"),
    "a tab before the colon": http(POST, b"Transfer-Encoding\t: chunked", body=IN_CHUNKS),
    "a folded line": http(POST, b"X: a\r\n Content-Length: 4", LENGTH, body=b"{}{}"),
    "a folded coding": http(POST, b"Transfer-Encoding:\r\n chunked", body=IN_CHUNKS),
    "a first line that is folded": b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "lines that end with LF": http(POST, LENGTH, body=b"{}{}").replace(b"\r\n", b"\n"),
    "one that does": http(POST, b"X: a\nContent-Length: 4", body=b""),
    "lines that end with CR": http(POST, b"X: a\rContent-Length: 4", body=b""),
    "no line's end behind the head": http(POST, LENGTH).replace(b"\r\n\r\n", b"\r\n\n") + b"{}{}",
    "another coding": http(POST, b"Transfer-Encoding: xchunked", body=IN_CHUNKS),
    "a coding before chunks": http(POST, b"Transfer-Encoding: gzip, chunked", body=IN_CHUNKS),
    "no coding before chunks": http(POST, b"Transfer-Encoding: ,chunked", body=IN_CHUNKS),
    "a coding before chunks, and an upgrade": http(
        POST,
        b"Upgrade: x",
        b"Connection: upgrade",
        b"Transfer-Encoding: gzip, chunked",
        body=IN_CHUNKS,
    ),
    "a coding behind chunks": http(POST, b"Transfer-Encoding: chunked, gzip", body=IN_CHUNKS),
    "no coding, and chunks": http(POST, b"Transfer-Encoding: identity, chunked, x", body=IN_CHUNKS),
    "chunks twice, not at the end": http(POST, CHUNKED, b"Transfer-Encoding: x", body=IN_CHUNKS),
    "a coding with a control": http(POST, b"Transfer-Encoding: \x0bchunked", body=IN_CHUNKS),
    "a chunk in signs": http(POST, CHUNKED, body=b"+4\r\n{}{}\r\n0\r\n\r\n"),
    "a chunk in hex with x": http(POST, CHUNKED, body=b"0x4\r\n{}{}\r\n0\r\n\r\n"),
    "a chunk with a gap": http(POST, CHUNKED, body=b"4 4\r\n{}{}\r\n0\r\n\r\n"),
    "a chunk that ends with LF": http(POST, CHUNKED, body=b"4\n{}{}\r\n0\r\n\r\n"),
    "a chunk whose data end with LF": http(POST, CHUNKED, body=b"4\r\n{}{}\n0\r\n\r\n"),
    "a chunk with LF in its extension": http(POST, CHUNKED, body=b"4;a\n{}{}\r\n0\r\n\r\n"),
    "a chunk without a size": http(POST, CHUNKED, body=b"\r\n{}{}\r\n0\r\n\r\n"),
    "a version of its own": http(b"GET /health", version=b"1.1x"),
    "a version of two digits": http(b"GET /health", version=b"1.10"),
    "a tab in the first line": b"GET\t/health\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method with a colon": http(b"GE:T /health"),
    "an empty name": http(b"GET /health", b": x"),
    "a name with a space": http(b"GET /health", b"Content Length: 4"),
    "a NUL in a name": http(b"GET /health", b"Content-Length\0: 4"),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_refuses_ambiguous_body_framing_and_reads_no_further(run: Run, name: str) -> None:
    """A proxy may have read it in the other way: what comes behind is not ours to say."""

    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(FRAMINGS[name] + SMUGGLED)
            assert await client.status() == 400
            assert await client.has_ended()

    run(test())


def test_refuses_requests_behind_many_empty_lines(run: Run) -> None:
    """RFC 9112, section 2.2: a few are ignored. An endless stream of them is no request."""

    async def test() -> None:
        async with running_server(open_app()) as url:
            async with peer(url) as client:
                for _ in range(3):
                    await client.say(b"\r\n" * 500 + HEALTH)
                    assert await client.status() == 200
            async with peer(url) as client:
                await client.say(b"\r\n" * 10_000)
                assert await client.status() == 400
                assert await client.has_ended()
            async with peer(url) as client:
                await client.say(HEALTH + b"\r\n" * 10_000 + SMUGGLED)
                assert await client.status() == 200
                assert await client.status() == 400
                assert await client.has_ended()

    run(test())


def test_invalid_body_after_the_response_closes_the_connection(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            await client.say(http(POST, CHUNKED, bearer("no"), body=b"2\r\n{}\r\n"))
            assert await client.status() == 401
            await client.say(b"zz\r\n" + SMUGGLED)
            assert await client.has_ended()

    run(test())


@pytest.mark.parametrize(
    "sent",
    [b"junk\r\n\r\n", http(b"GET /rooms/nope/subscribe", *HANDSHAKE), http(POST, b"X: a\0b")],
    ids=["a request", "a handshake", "a field"],
)
def test_client_that_keeps_sending_receives_the_final_response(run: Run, sent: bytes) -> None:
    """With bytes unread, a close would be a reset, and the answer would be lost with it."""

    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(sent + b"x" * 500_000)
            await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                await client.say(b"x" * 500_000)
            assert await client.status() == 400
            assert await client.has_ended()

    run(test())


@pytest.mark.usefixtures("_impatient")
def test_closes_client_that_stays_after_the_final_response(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await client.say(b"junk\r\n\r\n")
            assert await client.status() == 400
            with pytest.raises(ConnectionError):  # noqa: PT012 - which of them meets it is open
                while True:
                    await client.say(b"x")
                    await asyncio.sleep(0.01)

    run(test())


def test_header_fields_are_limited(run: Run) -> None:
    """One name in all of them would be one value, copied as often."""

    async def test() -> None:
        async with running_server(open_app()) as url:
            for line, fields, status in (
                (b"GET /health", [b"a:b"] * (http1_parser.MAX_HEADERS - 1), 200),
                (b"GET /health", [b"a:b"] * http1_parser.MAX_HEADERS, 431),
                (b"GET /rooms/user_1/subscribe", [*HANDSHAKE, *[b"a:b"] * 300], 431),
            ):
                async with peer(url) as client:
                    await client.say(http(line, *fields))
                    assert await client.status() == status

    run(test())


def test_chunks_of_a_body_are_limited(run: Run) -> None:
    """Each costs a call of the parser, also where nobody wants the body."""
    chunked = [b"Transfer-Encoding: chunked", b"Content-Type: application/json"]
    body = json.dumps({"type": "a", "data": {"text": "x" * (2 * http1_parser.MAX_CHUNKS)}}).encode()

    def pieces(size: int) -> bytes:
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def test() -> None:
        async with running_server(open_app()) as url:
            for path, size, status in (
                (b"POST /rooms/user_1/broadcast", 3, 200),
                (b"POST /rooms/user_1/broadcast", 1, 413),
                (b"POST /nothing", 3, 404),
            ):
                async with peer(url) as client:
                    await client.say(http(path, *chunked) + pieces(size))
                    assert await client.status() == status
            async with peer(url) as client:  # it was answered, and goes on
                await client.say(http(b"POST /nothing", *chunked))
                assert await client.status() == 404
                await client.say(pieces(1))
                assert await client.has_ended()

    run(test())


class Traced(http1.Http1Protocol):
    """Says how much it has taken when it was cut, or when it reads no more."""

    taken = 0
    is_enough: asyncio.Event

    def data_received(self, data: bytes) -> None:
        type(self).taken += len(data)
        super().data_received(data)

    def pause_reading(self) -> None:  # perhaps after a wait for a share of the loop
        super().pause_reading()
        self.is_enough.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_enough.set()
        super().connection_lost(exc)


@pytest.mark.parametrize(
    ("begin", "more", "most"),
    [
        (http(POST, CHUNKED, body=b"0\r\nX: "), b"y" * 65536, MIB),
        (http(POST, CHUNKED, body=b"4;"), b"y" * 65536, 10 * MIB),
        (http(b"GET " + ROOM + b"/events"), publish(body=BODY.ljust(60_000)) * 3, MIB),
        (http(b"GET " + ROOM + b"/events", LENGTH + b"0000000"), b"y" * 65536, MIB),
    ],
    ids=["a trailer", "an extension of a chunk", "pipelined", "a body that nobody wants"],
)
def test_unused_input_is_not_buffered(
    run: Run, begin: bytes, more: bytes, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap_realtime.server.protocols.server.Http1Protocol", Traced)

    async def test() -> None:
        Traced.taken, Traced.is_enough = 0, asyncio.Event()
        async with running_server(open_app()) as url, peer(url) as client:
            client.writer.write(begin)
            enough = asyncio.create_task(Traced.is_enough.wait())
            with contextlib.suppress(ConnectionError):
                while not enough.done():
                    await asyncio.wait(
                        [enough, asyncio.create_task(client.say(more))],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    await asyncio.sleep(0)
            await enough
            assert Traced.taken < most

    run(test())


def test_paused_connection_is_resumed_after_its_request(run: Run) -> None:
    async def test() -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
            asked.set()
            await go_on.wait()
            return True

        async with running_server(keyed_app(may=may)) as url, peer(url) as client:
            large = publish(bearer(API_KEY), body=BODY.ljust(60_000))
            sending = asyncio.create_task(client.say(large * 50))
            await asked.wait()
            go_on.set()
            for _ in range(50):
                assert await client.status() == 200
            await sending

    run(test())


# --- who goes in the middle ---------------------------------------------------------------------

STAGES = {
    "of a head": HEALTH[:-3],
    "of a body": publish(bearer(API_KEY))[:-3],
    "of a body that was asked for": publish(b"Expect: 100-continue", bearer(API_KEY))[:-22],
    "of a publish": publish(bearer(API_KEY)),
    "of pipelined publishes": publish(bearer(API_KEY)) * 50,
    "of a handshake": http(b"GET " + ROOM + b"/subscribe", bearer("TOKEN"), *HANDSHAKE),
    "of a replay": http(b"GET " + ROOM + b"/subscribe?after=earliest", bearer("TOKEN"), *HANDSHAKE),
    "of a stream": http(b"GET " + ROOM + b"/events?after=earliest", bearer("TOKEN")),
    "of streams behind each other": http(b"GET " + ROOM + b"/events", bearer("TOKEN")) * 3,
}


@pytest.mark.parametrize("rule", [False, True], ids=["at once", "a rule is asked"])
@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize("stage", STAGES)
def test_disconnect_in_mid_request_leaks_nothing(
    run: Run, stage: str, how: str, rule: bool
) -> None:
    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        await asyncio.sleep(0.01)
        return True

    async def test() -> None:
        app = keyed_app(may=may if rule else None)
        large = json.dumps({"type": "a", "data": {"x": "y" * 100_000}}).encode()
        sent = STAGES[stage].replace(b"TOKEN", mint_token("1", secret=SECRET).encode())
        async with running_server(app) as url:
            async with peer(url) as client:
                for _ in range(20):
                    await client.say(publish(bearer(API_KEY), body=large))
                    assert await client.status() == 200
            tasks = len(asyncio.all_tasks())
            for pause_s in (None, 0, 0.005, 0.02):
                async with peer(url, buffer=4096) as client:
                    await client.say(sent)
                    if pause_s is not None:
                        await asyncio.sleep(pause_s)
                    if how == "reset":
                        await client.resets()
            async with peer(url) as client:  # and meanwhile publish to the room
                await client.say(publish(bearer(API_KEY), body=large))
                assert await client.status() == 200
            await nothing_is_left(app, tasks)

    run(test())


def test_disconnect_during_fanout_does_not_affect_the_publisher(run: Run) -> None:
    """The loop learns of it in the middle of a batch, from a write that fails."""

    async def test() -> None:
        app = open_app()
        items = [{"rooms": ["user_1"], "type": "a", "data": {"x": "y" * 100_000}} for _ in range(9)]
        batch = json.dumps({"notifications": items}).encode()
        sent = http(b"POST /broadcast", b"Content-Length: %d" % len(batch), body=batch)
        async with running_server(app) as url:
            for line, fields in ((b"/events", ()), (b"/subscribe", HANDSHAKE)):
                async with peer(url) as publisher, peer(url) as listener:
                    await listener.say(http(b"GET " + ROOM + line, *fields))
                    await listener.reader.readuntil(b"\r\n\r\n")
                    await publisher.say(sent[:-1])
                    await asyncio.sleep(0.05)
                    # Both are there when the loop looks next, and the batch comes first.
                    publisher.writer.write(sent[-1:])
                    await listener.resets()
                    status, _, body = await publisher.answer()
                    assert (status, json.loads(body)["success"]) == (200, True)

    run(test())


def test_pongs_for_a_non_reading_peer_are_not_buffered(run: Run) -> None:
    async def test() -> None:
        app = open_app(client_messages_per_s=0)
        ping = bytes([0x81, 0x84, 0, 0, 0, 0]) + b"ping"
        async with running_server(app) as url, peer(url, buffer=4096) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.say(http(b"GET " + ROOM + b"/subscribe", *HANDSHAKE))
            large = json.dumps({"type": "a", "data": {"x": "y" * 200_000}}).encode()
            async with peer(url) as publisher:
                while not (waiting := _waiting(app)):
                    await publisher.say(publish(body=large))
                    assert await publisher.status() == 200
            for _ in range(5):
                await client.say(ping * 100)
                await asyncio.sleep(0.01)
            assert _waiting(app) <= waiting

    run(test())


def _waiting(app: RoomServer) -> int:
    """What waits in memory for the one who listens."""
    (session,) = app.node.sessions._open
    outlet = session.subscription._sink
    socket = getattr(outlet, "socket", None)
    return 0 if socket is None else int(socket._transport.get_write_buffer_size())
