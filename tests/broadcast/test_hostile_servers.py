"""Whatever a server answers, a broadcast returns in time with a truthful result."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from synap_realtime import Broadcaster, ConfigurationError, InvalidArgumentError

from .conftest import Publish


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on which each connection gets one answer, written byte by byte if need be."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR) if sys.platform == "linux" else None
        listener.close()
        thread.join(timeout=5)


def raw(status: str, body: bytes, *headers: str) -> Callable[[socket.socket], None]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]

    def answer(connection: socket.socket) -> None:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    return answer


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" " * 1_000_000)


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
    "trickle": trickle,
    "flood": flood,
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
    assert not result.success
    assert result.error
    assert time.monotonic() - start < 3


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
def test_a_wrong_setting_raises_at_once(publish: Publish, options: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, InvalidArgumentError)):
        publish("broadcast_success", "1", "a", {}, options={"url": "http://x", **options})


@pytest.mark.parametrize("host", ["http://" + "a" * 70, "http://a..b"])
def test_a_host_that_cannot_be_is_a_failure_that_is_told(publish: Publish, host: str) -> None:
    options = {"url": host, "deadline_s": 0.1}
    result = publish("broadcast_success", "42", "a.completed", {}, options=options)
    assert not result.success


def test_a_forked_child_has_connections_of_its_own() -> None:
    body = b'{"success":true,"results":[{"success":true,"broadcastCount":0}]}'

    def keep_alive(connection: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
        while connection.recv(65536):
            connection.sendall(head + body)

    with answering(keep_alive) as url, Broadcaster(url) as broadcaster:
        before = broadcaster._poster._client
        assert broadcaster.broadcast_success("1", "a", {}).success
        broadcaster._poster._pid = -1  # as after a fork
        assert broadcaster.broadcast_success("1", "a", {}).success
        assert broadcaster._poster._client is not before
        before.close()
