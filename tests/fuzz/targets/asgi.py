"""The mounted app: a scope and messages as an ASGI server passes on what a client sends."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from synap_realtime.server import create_app
from synap_realtime.server.asgi.connections import Message, Scope
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore

from ..memory_log import MemoryLog
from ..memory_transport import Loop
from ..target import Target, require
from .http import PATIENCE_S, RENEWED_AFTER, fuzz_settings, make_tokens, with_tokens

LINE_BYTES = 1024
"""In the log, for each connection and one more."""

PART = b"\x1e"
"""Between two messages."""

_FIELD_NAME = re.compile(rb"[a-z][a-z-]*")
_FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Parts(NamedTuple):
    """An input: what begins as an HTTP request, then the messages.

    Attributes:
        words: kind of the scope, method, version, target, path of the mount.
    """

    words: list[bytes]
    headers: list[tuple[bytes, bytes]]
    messages: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> Parts:
        head, _, rest = data.partition(b"\n\n")
        line, *lines = head.split(b"\n")
        words = [*line.split(b" "), b"", b"", b"", b"", b""][:5]
        headers = [(name, value) for name, _, value in (each.partition(b": ") for each in lines)]
        return cls(words, headers, rest.split(PART) if rest else [])

    @property
    def is_websocket(self) -> bool:
        return self.words[0][:1] == b"w"

    def scope(self, way: int) -> Scope:
        """What the ASGI specification leaves to the server depends on the way."""
        kind, method, version, target, mount = self.words
        path, _, query = target.partition(b"?")
        scope: Scope = {
            "type": "websocket" if self.is_websocket else "http",
            "path": path.decode(errors="replace"),
            "query_string": query,
            "headers": self.headers,
            "client": None if kind[1:2] == b"u" else ("127.0.0.1", 50_000),
        }
        if way & 1:
            scope.update(raw_path=path, root_path=mount.decode(errors="replace"))
        if way & 2:
            scope["http_version"] = version.decode("latin-1")
        if self.is_websocket:
            offered = [value for name, value in self.headers if name == b"sec-websocket-protocol"]
            text = b",".join(offered).decode("latin-1")
            scope["subprotocols"] = [name.strip() for name in text.split(",") if name.strip()]
            if way & 4:
                scope["extensions"] = {"websocket.http.response": {}}
        else:
            scope["method"] = method.decode("latin-1")
        return scope


@dataclass
class _Host:
    """An ASGI server with one connection.

    Attributes:
        sent: what the app has sent.
        is_blocked: the peer does not read.
        fails: the peer has gone, and the server raises an error.
    """

    sent: list[Message] = field(default_factory=list)
    is_blocked: bool = False
    fails: bool = False

    def __post_init__(self) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._is_open = asyncio.Event()

    def put(self, message: Message) -> None:
        self._incoming.put_nowait(message)

    def unblock(self) -> None:
        self.is_blocked = False
        self._is_open.set()

    async def receive(self) -> Message:
        return await self._incoming.get()

    async def send(self, message: Message) -> None:
        if self.is_blocked and len(self.sent) > 2:
            await self._is_open.wait()
        if self.fails:
            raise OSError("the peer has gone")
        self.sent.append(message)


class AsgiTarget(Target):
    """One connection. The app ends, and sends what the specification allows."""

    name = "asgi"
    max_bytes = 8 * 1024
    fixed_mutations = 20_000

    def __init__(self) -> None:
        self._log = MemoryLog(logging.INFO)
        self._loop = Loop()
        self._inputs = 0
        self._tokens = make_tokens()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        store = MemoryStore(Retention(count=100, max_memory_bytes=1024 * 1024))
        self._app = create_app(fuzz_settings(), store)
        self.converse(b"h GET 1.1 /health\nhost: localhost", 0)  # starts what all connections share
        self._log.take()
        self._tasks = len(asyncio.all_tasks(self._loop))

    def check(self, data: bytes) -> None:
        self._inputs += 1
        if self._inputs % RENEWED_AFTER == 0:
            self._loop.run_until_complete(self._app.close())
            self._start()
        self.converse(data, crc32(data))
        require(not self._loop.problems, f"the loop's exception handler: {self._loop.problems}")
        require(not self._app.node.sessions.deliveries(), "no subscription is left")
        tasks = len(asyncio.all_tasks(self._loop)) - self._tasks
        require(tasks <= 0, f"{tasks} tasks are left")
        self._log.check(2 * LINE_BYTES)

    def converse(self, data: bytes, way: int) -> list[Message]:
        """Return what the app has sent."""
        data = with_tokens(data, self._tokens)
        parts, loop = Parts.of(data), self._loop
        host = _Host(is_blocked=way & 24 == 8)
        scope = parts.scope(way)
        calls: list[asyncio.Task[None]] = []

        def call() -> None:
            calls.append(loop.create_task(self._app(scope, host.receive, host.send)))

        loop.run(call)
        for message in _messages(parts, way):
            loop.run(host.put, message)
        host.fails = way & 96 == 32
        loop.skip(PATIENCE_S)
        if not calls[0].done():
            is_stream = parts.is_websocket or bool(host.sent) or host.fails
            require(is_stream or way & 128, "only a stream waits for its peer")
        host.unblock()
        kind = "websocket" if parts.is_websocket else "http"
        loop.run(host.put, {"type": f"{kind}.disconnect", "code": 1006})
        loop.skip(PATIENCE_S)
        require(calls[0].done(), "the app ends with the connection")
        error = calls[0].exception()
        if error is not None and not (host.fails and isinstance(error, OSError)):
            raise error
        if parts.is_websocket:
            _check_websocket(host.sent)
        else:
            _check_http(host.sent, "http.response", is_head=scope["method"] == "HEAD")
        return host.sent

    def close(self) -> None:
        try:
            self._loop.run_until_complete(self._app.close())
        finally:
            self._loop.close()
            self._log.close()


def _messages(parts: Parts, way: int) -> list[Message]:
    if not parts.is_websocket:
        bodies = parts.messages or [b""]
        messages: list[Message] = [
            {"type": "http.request", "body": body, "more_body": True} for body in bodies
        ]
        if not way & 128:  # else the body has no end
            messages[-1]["more_body"] = False
            if messages[-1]["body"] == b"":
                messages[-1] = {"type": "http.request"}
        return messages
    found: list[Message] = [{"type": "websocket.connect"}]
    for part in parts.messages:
        is_binary = part.startswith(b"\0")
        given: dict[str, Any] = (
            {"bytes": part} if is_binary else {"text": part.decode(errors="replace")}
        )
        if way & 256:
            given = {"bytes": None, "text": None, **given}
        found.append({"type": "websocket.receive", **given})
    return found


def _check_http(sent: list[Message], kind: str, *, is_head: bool = False) -> None:
    """https://asgi.readthedocs.io/en/latest/specs/www.html"""
    if not sent:
        return
    start, *bodies = sent
    require(start["type"] == f"{kind}.start", f"it begins with {start}")
    require(200 <= start["status"] <= 599, f"status {start['status']}")
    for name, value in start["headers"]:
        require(_FIELD_NAME.fullmatch(name), f"name of a field: {name!r}")
        require(_FIELD_VALUE.fullmatch(value), f"value of a field: {value!r}")
    require(all(each["type"] == f"{kind}.body" for each in bodies), f"{bodies}")
    require(all(each.get("more_body") for each in bodies[:-1]), "nothing follows the last part")
    length = dict(start["headers"]).get(b"content-length")
    is_complete = bodies and not bodies[-1].get("more_body")
    if length is not None and is_complete and not is_head:
        size = sum(len(each["body"]) for each in bodies)
        require(size == int(length), f"{size} bytes are not {length!r}")


def _check_websocket(sent: list[Message]) -> None:
    if not sent:
        return
    kinds = [each["type"] for each in sent]
    if kinds[0] == "websocket.http.response.start":
        _check_http(sent, "websocket.http.response")
        return
    closes = [each for each in sent if each["type"] == "websocket.close"]
    require(len(closes) <= 1 and (not closes or sent[-1] is closes[0]), f"{kinds}")
    if kinds[0] == "websocket.close":
        return
    require(kinds[0] == "websocket.accept", f"it begins with {kinds[0]}")
    require(set(kinds[1:]) <= {"websocket.send", "websocket.close"}, f"{kinds}")
    for each in sent[1:]:
        if each["type"] == "websocket.send":
            require(isinstance(each["text"], str), "what is sent is text")
            each["text"].encode()
    for close in closes:
        require(1000 <= close["code"] < 5000, f"close code {close['code']}")
        require(len(close.get("reason", "").encode()) <= 123, "a reason fits into a frame")


TARGET = AsgiTarget
