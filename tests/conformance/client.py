"""The client of the cases: HTTP, WebSockets, event streams, and bare sockets.

Every wait is bounded: it fails with an error after ``TIMEOUT_S``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import pytest
from websockets import ClientProtocol, ConnectionClosed, Frame, InvalidStatus, Opcode, Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.support.timeouts import TIMEOUT_S

from .credentials import API_KEY, TOKEN_SECRET, Keys, bearer

Json = dict[str, Any]

V1 = "synap.v1"

_TLS = ssl.create_default_context()  # made once: it reads all the certificates of the system


def decode(text: str | bytes) -> Json:
    """What a server sent, read strictly: an object, no member twice, no ``NaN``."""

    def members(pairs: list[tuple[str, Any]]) -> Json:
        made = dict(pairs)
        assert len(made) == len(pairs), "a member is there twice"
        return made

    def no_json(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    value = json.loads(text, object_pairs_hook=members, parse_constant=no_json)
    assert isinstance(value, dict)
    return value


def fresh_room(kind: str = "user") -> str:
    """A room that no other case knows."""
    return f"{kind}_{uuid.uuid4().hex}"


def note(id: str | None = None, **members: object) -> Json:
    """A notification as a publisher sends it."""
    made: Json = {"type": "note.creation.completed", "data": {"entityId": "e1"}, **members}
    return made if id is None else {"id": id, **made}


def ids_of(notifications: Iterable[Json]) -> list[str]:
    return [notification["id"] for notification in notifications]


def room_path(room: str, route: str, **query: str | int | None) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    suffix = f"?{urlencode(given)}" if given else ""
    return f"/rooms/{quote(room, safe='')}/{route}{suffix}"


def raw_head(client: Client, request: str, *fields: str, host: bool = True) -> bytes:
    """The head of a request as it is written, with the credential of its route.

    Args:
        request: the request line.
        fields: the header fields, as lines.
        host: with the server's ``Host``.
    """
    path = request.split(" ")[1]
    lines = [f"{name}: {value}" for name, value in client.headers_for(path).items()]
    if host:
        lines.insert(0, f"Host: {urlsplit(client.url).netloc}")
    return "\r\n".join([request, *lines, *fields, "", ""]).encode("latin-1")


def is_control(message: Json) -> bool:
    return str(message["type"]).startswith("synap.")


def check_error(response: httpx.Response, status: int, code: str) -> None:
    """It is this error, as "Errors" has it, and shows nothing of the server's inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    body = decode(response.content)
    assert set(body) == {"error", "details", "code"}
    assert body["code"] == code, response.text
    assert body["error"]
    assert body["details"]
    assert "Traceback" not in response.text


class Listener:
    """A WebSocket on a room. Pongs are kept apart from messages."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws

    async def text(self) -> str:
        """The next text message."""
        async with asyncio.timeout(TIMEOUT_S):
            message = await self.ws.recv()
        assert isinstance(message, str), "every message of the server is text"
        return message

    async def next(self) -> Json:
        """The next message that is JSON."""
        while (text := await self.text()) == "pong":
            pass
        return decode(text)

    async def take(self, count: int) -> list[Json]:
        return [await self.next() for _ in range(count)]

    async def until(self, id: str) -> list[Json]:
        """Everything up to the notification with this id, which a case sends as the last one."""
        messages = [await self.next()]
        while messages[-1].get("id") != id:
            messages.append(await self.next())
        return messages

    async def subscribed(self) -> Json:
        """The data of ``synap.subscribed``, which has to be the next message."""
        message = await self.next()
        assert message["type"] == "synap.subscribed"
        data: Json = message["data"]
        return data

    async def control(self, type: str) -> Json:
        """The data of the next control frame of this type; other messages are passed over."""
        while (message := await self.next())["type"] != type:
            pass
        data: Json = message["data"]
        return data

    async def send(self, message: str | bytes | Sequence[str]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.ws.send(message)

    async def ping(self) -> list[Json]:
        """Send a ping and wait for its pong; returns what came before it."""
        await self.send("ping")
        before: list[Json] = []
        while (text := await self.text()) != "pong":
            before.append(decode(text))
        return before

    async def ack(self, cursor: object) -> None:
        """Acknowledge, and wait until the server has read it: messages are read in order."""
        await self.send(json.dumps({"action": "ack", "cursor": cursor}))
        assert await self.ping() == []

    async def closed(self) -> int | None:
        """Read to the end; returns the close code."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.ws.recv()
        return self.ws.close_code


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream. ``name`` is None where the stream gave none."""

    name: str | None
    id: str | None
    data: str

    def json(self) -> Json:
        return decode(self.data)


class EventParser:
    """Bytes to events, as https://html.spec.whatwg.org/#event-stream-interpretation has it.

    Lines end with LF or CRLF only, as a strict reader of the bytes: U+2028 ends none.
    """

    def __init__(self) -> None:
        self.comments = 0
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if text.startswith(":"):
                self.comments += 1
            elif text:
                field, _, value = text.partition(":")
                self._fields.setdefault(field, []).append(value.removeprefix(" "))
            elif self._fields:
                fields, self._fields = self._fields, {}
                assert len(fields.get("data", [])) <= 1, "the JSON is on one line"
                if "data" in fields:
                    name, id = fields.get("event", [None])[-1], fields.get("id", [None])[-1]
                    events.append(Event(name, id, fields["data"][0]))
        return events


class Stream:
    """An event stream of a room."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_bytes()
        self._parser = EventParser()
        self._events: list[Event] = []

    @property
    def comments(self) -> int:
        """How many comment lines have been read so far."""
        return self._parser.comments

    async def event(self) -> Event:
        """The next event of any name."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._events:
                await self.read()
        return self._events.pop(0)

    async def read(self) -> None:
        """Wait for the next bytes."""
        self._events += self._parser.feed(await anext(self._chunks))

    async def ended(self) -> None:
        """Read to the end."""
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    await self.read()

    async def next(self) -> Json:
        """The next notification."""
        while (event := await self.event()).name is not None:
            pass
        return event.json()

    async def take(self, count: int) -> list[Json]:
        return [await self.next() for _ in range(count)]

    async def subscribed(self) -> Json:
        """The data of ``synap.subscribed``, which has to be the next event."""
        event = await self.event()
        assert event.name == "synap.subscribed"
        return event.json()


class Client:
    """One server, as publishers and subscribers see it.

    On a server with keys, each request shows the credential that opens its route, unless it brings
    an ``Authorization`` of its own.

    Attributes:
        keys: what the server knows; None: it has none.
    """

    def __init__(self, url: str, http: httpx.AsyncClient, keys: Keys | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._given_keys = keys
        self._credential_for: Callable[[str], str | None] = (
            _nothing if keys is None else keys.for_path
        )

    @property
    def keys(self) -> Keys:
        """What the server knows. For cases of servers with keys."""
        assert self._given_keys is not None
        return self._given_keys

    def showing(self, credential: str | None) -> Client:
        """The same server with this credential in every request; None: without one."""
        other = Client(self.url, self._http, self._given_keys)
        other._credential_for = lambda _: credential
        return other

    def headers_for(self, path: str) -> dict[str, str]:
        """What a request shows of who sends it."""
        credential = self._credential_for(path)
        return {} if credential is None else bearer(credential)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Any request. ``path`` is sent as it is written."""
        return await self._http.request(
            method,
            self.url + path,
            json=body,
            content=content,
            headers={**self.headers_for(path), **(headers or {})},
        )

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.request("POST", path, body=body)

    async def broadcast(self, room: str, notification: object) -> httpx.Response:
        return await self.post(room_path(room, "broadcast"), notification)

    async def publish(self, room: str, id: str | None = None, **members: object) -> Json:
        """Publish to one room, which has to succeed."""
        response = await self.broadcast(room, note(id, **members))
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    async def batch(self, items: Sequence[object]) -> Json:
        """``POST /broadcast``, which has to be answered with 200."""
        response = await self.post("/broadcast", {"notifications": items})
        assert response.status_code == 200, response.text
        return decode(response.content)

    async def fill(self, room: str, count: int, first: int = 0) -> list[str]:
        """Publish ``count`` small notifications with the ids n0, n1, …; returns their cursors."""
        items = [note(f"n{n}", rooms=[room]) for n in range(first, first + count)]
        cursors: list[str] = []
        for start in range(0, count, 1000):
            answer = await self.batch(items[start : start + 1000])
            assert answer["success"] is True, answer
            cursors += [result["rooms"][room]["cursor"] for result in answer["results"]]
        return cursors

    async def history(
        self, room: str, *, after: str | None = None, limit: int | None = None
    ) -> Json:
        response = await self.get(room_path(room, "history", after=after, limit=limit))
        assert response.status_code == 200, response.text
        return decode(response.content)

    async def whole_history(self, room: str) -> list[Json]:
        """All that a room holds, page by page."""
        page = await self.history(room, limit=1000)
        found: list[Json] = page["notifications"]
        while page["more"]:
            page = await self.history(room, after=page["cursor"], limit=1000)
            assert page["notifications"], "`more` promised something"
            found += page["notifications"]
        return found

    async def connections(self, room: str) -> int:
        """The listeners of a room, at all nodes."""
        response = await self.get(room_path(room, "health"))
        assert response.status_code == 200, response.text
        return int(response.json()["connections"])

    async def until_connections(self, room: str, count: int) -> None:
        """Wait until a room has so many listeners: each look is a request, and 200 a second are
        allowed."""
        async with asyncio.timeout(TIMEOUT_S):
            while await self.connections(room) != count:  # noqa: ASYNC110 - polling is the only way
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def listen_at(
        self,
        path: str,
        subprotocols: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Listener]:
        """A WebSocket that reads everything immediately, of any size."""
        async with connect(
            self.ws_url(path),
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            additional_headers={**self.headers_for(path), **(headers or {})},
            compression=None,
            proxy=None,
            open_timeout=TIMEOUT_S,
            close_timeout=TIMEOUT_S,
            ping_interval=None,
            max_size=None,
            max_queue=None,
        ) as ws:
            yield Listener(ws)

    def listen(
        self, room: str, after: str | None = None, *, v1: bool = False, **query: str | None
    ) -> contextlib.AbstractAsyncContextManager[Listener]:
        """A WebSocket on a room, with ``synap.v1`` or without."""
        path = room_path(room, "subscribe", after=after, **query)
        return self.listen_at(path, [V1] if v1 else [])

    async def refusal(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Json]:
        """The answer to a handshake that has to be refused."""
        try:
            async with self.listen_at(path, headers=headers):
                pytest.fail(f"the handshake at {path} was not refused")
        except InvalidStatus as error:
            body: Json = json.loads(error.response.body or b"{}")
            return error.response.status_code, body

    @contextlib.asynccontextmanager
    async def stream(
        self,
        room: str,
        after: str | None = None,
        *,
        last_event_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        **query: str | None,
    ) -> AsyncIterator[Stream]:
        """An event stream of a room."""
        resume = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        path = room_path(room, "events", after=after, **query)
        async with self._http.stream(
            "GET",
            self.url + path,
            headers={**self.headers_for(path), **resume, **(headers or {})},
            timeout=httpx.Timeout(TIMEOUT_S, read=2 * TIMEOUT_S),  # it may be silent for 15 s
        ) as response:
            if response.status_code != 200:
                await response.aread()
                pytest.fail(f"the stream was refused: {response.status_code} {response.text}")
            yield Stream(response)

    def ws_url(self, path: str) -> str:
        return self.url.replace("http", "ws", 1) + path

    async def is_well(self) -> bool:
        response = await self.get("/health")
        return response.status_code == 200 and response.text.replace(" ", "") == '{"status":"ok"}'

    async def exchange(self, sent: bytes, *, ends: bool = True) -> bytes:
        """Send bytes as they are; returns all that is answered until the server closes.

        Args:
            ends: say that no more will come. A server may then end without answering all.
        """
        with dial(self.url) as sock:
            return await asyncio.to_thread(_exchange, sock, sent, ends)


@contextlib.asynccontextmanager
async def open_client(
    url: str, keys: Keys | None = None, *, nodes: int = 1
) -> AsyncIterator[Client]:
    """Make a client of one server, or of several behind one address."""
    # A server closes what is idle for some seconds, maybe just when it is used again (RFC 9112,
    # section 9.3.1): a case that waits reconnects.
    limits = httpx.Limits(
        max_connections=None,
        max_keepalive_connections=None if nodes == 1 else 0,  # each request reaches another node
        keepalive_expiry=1.0,
    )
    async with httpx.AsyncClient(
        timeout=TIMEOUT_S, verify=_TLS, limits=limits, trust_env=False
    ) as http:
        yield Client(url, http, keys)


def problem_of(url: str, keys: Keys | None = None) -> str | None:
    """Why no room server answers there, or none with these keys; None: one does."""
    url = url.rstrip("/")
    with httpx.Client(timeout=TIMEOUT_S, verify=_TLS, trust_env=False) as http:
        try:
            answer = http.get(f"{url}/health")
            is_well = answer.status_code == 200 and decode(answer.text).get("status") == "ok"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return str(error) or type(error).__name__
        except (ValueError, AssertionError):
            is_well = False  # no JSON
        if not is_well:
            expected = 'expected 200 and {"status":"ok"}'
            return f"GET /health was answered {answer.status_code}, {expected}"
        return _problem_with_keys(http, url, keys)


def _problem_with_keys(http: httpx.Client, url: str, keys: Keys | None) -> str | None:
    room = fresh_room()
    path = url + room_path(room, "history")
    anonymous_status = http.get(path).status_code
    if keys is None:
        return _HAS_KEYS if anonymous_status == 401 else None
    if anonymous_status != 401:
        return f"it has no keys: a request without a credential was answered {anonymous_status}"
    reader = http.get(path, headers=bearer(keys.for_room(room))).status_code
    if reader != 200:
        return f"a token signed with {TOKEN_SECRET} was answered {reader}"
    headers = bearer(keys.api_key)
    sender = http.post(url + room_path(room, "broadcast"), headers=headers, json=note()).status_code
    return None if sender == 200 else f"a notification sent with {API_KEY} was answered {sender}"


_HAS_KEYS = f"it has keys: set {API_KEY} and {TOKEN_SECRET}"


def _nothing(path: str) -> None:
    """A server without keys reads no credential."""


def dial(url: str, receive_buffer: int | None = None) -> socket.socket:
    """A bare connection to the server. A small receive buffer makes a peer that takes little."""
    where = urlsplit(url)
    secure = where.scheme == "https"
    host, port = str(where.hostname), where.port or (443 if secure else 80)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(TIMEOUT_S)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each write is a packet
        return _TLS.wrap_socket(sock, server_hostname=host) if secure else sock
    except BaseException:
        sock.close()
        raise


def _exchange(sock: socket.socket, sent: bytes, ends: bool) -> bytes:
    received = b""
    # A server may end the connection at any time, also before it has read everything.
    with contextlib.suppress(ConnectionError):
        sock.sendall(sent)
        if ends:
            sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            received += chunk
    return received


class SlowListener:
    """A WebSocket on a bare socket that reads only when the test calls for it."""

    def __init__(self, client: Client, room: str, receive_buffer: int | None = 4096) -> None:
        path = room_path(room, "subscribe", after="earliest")
        self._protocol = ClientProtocol(parse_uri(client.ws_url(path)), max_size=None)
        self._sock = dial(client.url, receive_buffer)
        request = self._protocol.connect()
        request.headers.update(client.headers_for(path))
        self._protocol.send_request(request)
        self._flush()
        while self._protocol.state is State.CONNECTING:
            self._protocol.receive_data(self._sock.recv(4096))
            for event in self._protocol.events_received():
                assert isinstance(event, Response)
                assert event.status_code == 101

    def ping(self) -> None:
        """Say that this side lives: a slow client is not a silent one."""
        self._protocol.send_text(b"ping")
        self._flush()

    def read(self, until: str | None = None) -> tuple[list[Json], int | None]:
        """All whole notifications that come, to the end or to the one with this id.

        Returns them, and the close code, if there was one.
        """
        messages: list[Json] = []
        text = b""
        while True:
            try:
                chunk = self._sock.recv(65536)
            except ConnectionError:
                chunk = b""
            if chunk:
                self._protocol.receive_data(chunk)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if not isinstance(event, Frame):
                    continue
                if event.opcode in (Opcode.TEXT, Opcode.CONT):
                    text += bytes(event.data)
                    if event.fin:
                        if text != b"pong":
                            messages.append(decode(text))
                        text = b""
            if not chunk or (messages and messages[-1]["id"] == until):
                received = self._protocol.close_rcvd
                return messages, None if received is None else received.code
            with contextlib.suppress(ConnectionError):
                self._flush()

    def send_bytes(self, data: bytes) -> None:
        """Send frames as they are written, also such as no library sends."""
        self._sock.sendall(data)

    def receive_bytes(self, until: bytes) -> bytes:
        """Read what comes, without decoding it, until it contains this."""
        received = b""
        while until not in received:
            chunk = self._sock.recv(65536)
            assert chunk, f"the connection ended after {received!r}"
            received += chunk
        return received

    def close_code(self) -> int | None:
        """Read to the server's close frame. None: it never closed, and answers a ping."""
        with contextlib.suppress(ConnectionError):
            self.ping()
        while self._protocol.close_rcvd is None:
            chunk = self._sock.recv(65536)
            assert chunk, "the connection ended without a close frame"
            self._protocol.receive_data(chunk)
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.data == b"pong":
                    return None
        return self._protocol.close_rcvd.code

    def close(self) -> None:
        self._sock.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._sock.sendall(data)
            else:
                self._sock.shutdown(socket.SHUT_WR)
