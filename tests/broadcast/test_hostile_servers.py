"""A broadcast returns in time with a truthful result for any server behaviour."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from synap_realtime import Broadcaster, ConfigurationError, InvalidArgumentError, network
from synap_realtime.broadcast import encoding
from tests.broadcast.hostile_server import answering, raw
from tests.support.timeouts import TIMEOUT_S, scaled

from .conftest import Publish


def dribbling(*parts: bytes) -> Callable[[socket.socket], None]:
    """Send the first parts immediately, and repeat the last for ten seconds."""

    def answer(connection: socket.socket) -> None:
        *first, last = parts
        connection.sendall(b"".join(first))
        for _ in range(200):
            connection.sendall(last)
            time.sleep(0.05)

    return answer


def flooding(*parts: bytes, times: int = 1000) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        *first, last = parts
        connection.sendall(b"".join(first))
        for _ in range(times):
            connection.sendall(last)

    return answer


def silent(connection: socket.socket) -> None:
    connection.settimeout(10)
    while connection.recv(65536):
        pass


def squeezed(layers: int) -> Callable[[socket.socket], None]:
    """A JSON body of 64 MB, compressed once or twice."""
    body = b'{"x":"' + b"a" * 64_000_000 + b'"}'
    for _ in range(layers):
        body = gzip.compress(body, 1)
    return raw("200 OK", body, "Content-Encoding: " + ", ".join(["gzip"] * layers))


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

SLOW = {
    "status": dribbling(b"H"),
    "header": dribbling(OK, b"X: "),
    "headers": dribbling(OK, b"X-A: b\r\n"),
    "continue": dribbling(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "hints": flooding(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 200, times=10**6),
    "body": dribbling(OK + b"Content-Length: 5000\r\n\r\n", b" "),
    "to the end": dribbling(OK + b"\r\n", b" "),
    "chunks": dribbling(CHUNKED, b"1\r\n \r\n"),
    "chunk header": dribbling(CHUNKED + b"1;", b"x"),
    "trailers": dribbling(CHUNKED + b"0\r\n", b"X: y\r\n"),
    "idle_timeout": silent,
}

HOSTILE = {
    "deep": raw("200 OK", b"[" * 200_000),
    "charset": raw("200 OK", b"abc", "Content-Type: text/plain; charset=base64"),
    "utf16": raw("400 Bad Request", b"abc", "Content-Type: text/plain; charset=utf-16"),
    "superscript": raw("429 Too Many Requests", b"", "Retry-After: \xb2"),
    "far": raw("429 No", b"", "Retry-After: Wed, 21 Oct 99999999999999999999 07:28:00 GMT"),
    "zone": raw("429 No", b"", "Retry-After: Wed, 21 Oct 2015 07:28:00 +99999999999999"),
    "location": raw("307 Temporary Redirect", b"", "Location: http:x//http://a/"),
    "gzip": raw("200 OK", b"no gzip", "Content-Encoding: gzip"),
    "garbage": lambda connection: connection.sendall(b"\x00\xff" * 100),
    "cut": lambda connection: connection.close(),
    "half": lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
    "flood": flooding(OK + b"Content-Length: 1000000000\r\n\r\n", b" " * 1_000_000),
    "flood of chunks": flooding(CHUNKED, b"fffff\r\n" + b" " * 0xFFFFF + b"\r\n"),
    "flood of headers": flooding(OK, b"X-A: b\r\n" * 10_000),
    "one long header": flooding(OK + b"X: ", b"x" * 100_000),
    "gzip bomb": squeezed(1),
    "gzip bomb in gzip": squeezed(2),
    **SLOW,
}


LONG = b"x" * 5000


@pytest.mark.parametrize(
    "answer",
    [
        raw("400 Bad Request", b'{"code":"x","error":"%b"}' % LONG),
        raw("400 Bad Request", b'{"code":"x","error":"e","details":"%b"}' % LONG),
        raw("200 OK", b'{"results":[{"success":false,"error":"%b"}]}' % LONG),
        raw("200 OK", b"{}", "\xff" + "x" * 5000),
    ],
    ids=["error", "details", "result", "field"],
)
def test_bounds_the_reason_that_a_server_gives(
    publish: Publish, answer: Callable[[socket.socket], None]
) -> None:
    """It goes into the result and the log."""
    with answering(answer) as url:
        result = publish(
            "broadcast_notification",
            user_id="1",
            message={"type": "a", "data": {}},
            options={"url": url, "deadline_s": 0.5},
        )
        assert not result.success
        assert 0 < len(result.error or "") < 1000


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_answer_makes_a_broadcast_raise_or_hang(publish: Publish, kind: str) -> None:
    with answering(HOSTILE[kind]) as url:
        start = time.monotonic()
        options = {"url": url, "deadline_s": 0.6, "timeout_s": 0.3}
        result = publish("broadcast_success", "42", "a.completed", {}, options=options)
        took_s = time.monotonic() - start
    assert not result.success
    assert result.error
    assert took_s < scaled(8)


@pytest.mark.parametrize("kind", SLOW)
def test_deadline_holds_while_each_read_gets_something(publish: Publish, kind: str) -> None:
    with answering(SLOW[kind]) as url:
        start = time.monotonic()
        options = {"url": url, "deadline_s": 1.0, "timeout_s": 30}
        result = publish("broadcast_success", "42", "a.completed", {}, options=options)
        took_s = time.monotonic() - start
    assert "in time" in (result.error or "")
    assert took_s < scaled(8)


def test_deadline_holds_while_tls_is_not_answered(publish: Publish) -> None:
    hello = dribbling(b"\x16\x03\x03\x40\x00", b"\x02")  # a record of 16 KiB, byte by byte
    for answer in (silent, hello):
        with answering(answer, "https") as url:
            start = time.monotonic()
            options = {"url": url, "deadline_s": 0.6, "timeout_s": 30}
            result = publish("broadcast_success", "42", "a.completed", {}, options=options)
            took_s = time.monotonic() - start
        assert "in time" in (result.error or "")
        assert took_s < scaled(8)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems queue without end")
def test_deadline_holds_while_no_connection_is_accepted(publish: Publish) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        for _ in range(3):  # all that the queue holds
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        start = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = {"url": url, "deadline_s": 0.6, "timeout_s": 30}
        result = publish("broadcast_success", "42", "a.completed", {}, options=options)
        took_s = time.monotonic() - start
    assert "in time" in (result.error or "")
    assert took_s < scaled(8)


def test_deadline_holds_while_a_request_is_not_read(publish: Publish) -> None:
    def sip(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(200):
            connection.recv(100)
            time.sleep(0.05)

    with answering(sip) as url, Broadcaster(url, deadline_s=1.0, timeout_s=30) as broadcaster:
        start = time.monotonic()
        call = encoding.ApiRequest("/broadcast", b"x" * 50_000_000)
        answer = broadcaster._poster.post(call, 0.5)
        assert "in time" in (answer.error or "")
        assert time.monotonic() - start < scaled(8)


def test_deadline_holds_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = threading.Event()

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        found.wait(10)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Broadcaster("http://rooms.invalid", deadline_s=0.3) as broadcaster:
        start = time.monotonic()
        result = broadcaster.broadcast_success("42", "a.completed", {})
        took_s = time.monotonic() - start
    found.set()
    assert "in time" in (result.error or "")
    assert took_s < scaled(8)


def test_an_address_that_swallows_packets_leaves_time_for_the_next() -> None:
    tried = []

    def attempt(address: str, timeout_s: float) -> str:
        tried.append((address, timeout_s))
        if len(tried) < 3:
            raise OSError("no route")
        return address

    with pytest.MonkeyPatch.context() as patch:
        infos = [(0, 0, 0, "", (f"10.0.0.{n}", 80)) for n in range(4)]
        patch.setattr(socket, "getaddrinfo", lambda *a, **k: infos)
        assert network.connect("x.test", 80, time.monotonic() + 8, attempt) == "10.0.0.2"
    assert [round(timeout_s) for _, timeout_s in tried] == [2, 3, 4]


def memory_growth_of(code: str, *arguments: str) -> float:
    """How many MiB a child's memory grew at its most while it ran the code."""
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if LINUX else 1024**2)"
    script = f"""
import asyncio, gc, resource, sys
from synap_realtime import AsyncBroadcaster, Broadcaster
LINUX = sys.platform == "linux"
class Program:
    url = sys.argv[1]
    def warm(self):
        with Broadcaster("http://127.0.0.1:1", deadline_s=0.05) as broadcaster:
            broadcaster.broadcast_success("1", "a", {{}})
        async def run():
            async with AsyncBroadcaster("http://127.0.0.1:1", deadline_s=0.05) as broadcaster:
                await broadcaster.broadcast_success("1", "a", {{}})
        asyncio.run(run())
program = Program()
program.warm()
before = {peak}
{code}
print({peak} - before)
"""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=True
    )
    return float(done.stdout)


SYNC_CODE = """
with Broadcaster(program.url, deadline_s=2) as broadcaster:
    assert not broadcaster.broadcast_success("1", "a", {}).success
"""
ASYNC_CODE = """
async def run():
    async with AsyncBroadcaster(program.url, deadline_s=2) as broadcaster:
        assert not (await broadcaster.broadcast_success("1", "a", {})).success
asyncio.run(run())
"""


@pytest.mark.parametrize("code", [SYNC_CODE, ASYNC_CODE], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ["gzip bomb", "gzip bomb in gzip", "flood", "flood of headers"])
def test_memory_stays_bounded_for_any_response(code: str, kind: str) -> None:
    with answering(HOSTILE[kind]) as url:
        assert memory_growth_of(code, url) < 16


def test_ignores_cookies_of_a_server(publish: Publish) -> None:
    with answering(raw("200 OK", b"{}", "Set-Cookie: a=b")) as url, Broadcaster(url) as broadcaster:
        broadcaster.broadcast_success("1", "a", {})
        own = broadcaster._poster.open()
    assert not hasattr(own, "cookies")


class Odd(BaseModel):
    x: object


class Binary(BaseModel):
    x: bytes


@pytest.mark.parametrize("data", [Odd(x=object()), Binary(x=b"\xff")])
def test_a_payload_without_a_json_form_is_named(publish: Publish, data: BaseModel) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        publish("broadcast_success", "42", "a.completed", data, options={"url": "http://x"})
    assert caught.value.field == "data"


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": 5},
        {"url": "http://x?y=1"},
        {"url": "http://x#y"},
        {"url": "http://x:99999"},
        {"timeout_s": "soon"},
        {"timeout_s": -1},
        {"deadline_s": None},
        {"deadline_s": float("nan")},
    ],
)
def test_invalid_setting_raises_immediately(publish: Publish, options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidArgumentError)):
        publish("broadcast_success", "1", "a", {}, options={"url": "http://x", **options})


@pytest.mark.parametrize("host", ["http://" + "a" * 70, "http://a..b"])
def test_a_host_that_cannot_be_is_a_failure_that_is_reported(publish: Publish, host: str) -> None:
    options = {"url": host, "deadline_s": 0.1}
    result = publish("broadcast_success", "42", "a.completed", {}, options=options)
    assert not result.success


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_opens_its_own_connections() -> None:
    body = b'{"success":true,"results":[{"success":true,"broadcastCount":0}]}'
    connections = []

    def keep_alive(connection: socket.socket) -> None:
        connections.append(connection.getpeername())
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        length = 0
        with connection.makefile("rb") as lines:
            for line in lines:  # one answer a request, however it was cut up on its way
                if line == b"\r\n":
                    lines.read(length)
                    connection.sendall(head + body)
                elif line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])

    with answering(keep_alive, reads=False) as url, Broadcaster(url) as broadcaster:
        assert broadcaster.broadcast_success("1", "a", {}).success
        if (child := os.fork()) == 0:
            os._exit(0 if broadcaster.broadcast_success("1", "a", {}).success else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert broadcaster.broadcast_success("1", "a", {}).success
    assert len(connections) == 2
