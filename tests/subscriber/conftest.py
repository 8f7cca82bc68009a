"""One suite over both drivers, and a room server that follows a test's script."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from synap_realtime import Notification, subscribe, subscribe_sync
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

Receive = Callable[[], Awaitable[Notification]]
Listen = Callable[..., AbstractAsyncContextManager[Receive]]


@asynccontextmanager
async def listen_async(*args: Any, **options: Any) -> AsyncIterator[Receive]:
    async with aclosing(subscribe(*args, **options)) as notifications:

        async def receive() -> Notification:
            async with asyncio.timeout(TIMEOUT_S):
                return await anext(notifications)

        yield receive


@asynccontextmanager
async def listen_sync(*args: Any, **options: Any) -> AsyncIterator[Receive]:
    notifications = subscribe_sync(*args, **options)

    async def receive() -> Notification:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.to_thread(next, notifications)

    try:
        yield receive
    finally:
        await asyncio.to_thread(notifications.close)


@pytest.fixture(params=[listen_async, listen_sync], ids=["async", "sync"])
def listen(request: pytest.FixtureRequest) -> Listen:
    """Subscribe: ``async with listen(room, url, …) as receive: notification = await receive()``."""
    chosen: Listen = request.param
    return chosen


@pytest.fixture(autouse=True)
def _short_delays(set_waits: SetWaits) -> None:
    """Come back soon: the delays are tested on the pure rules."""
    set_waits(initial_delay_s=0.01, max_delay_s=0.05, ack_interval_s=0.01)


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    """A subscription that ended leaves no task and no thread."""
    yield
    tasks = [t for t in asyncio.all_tasks() if "synap_realtime.subscriber" in repr(t.get_coro())]
    assert not tasks
    assert not [t for t in threading.enumerate() if t.name == "synap-keepalive"]


def note(id: str | None, cursor: str | None = None, **more: Any) -> str:
    """A notification as a server sends it."""
    wire = {"type": "a.completed", "data": {}, "id": id, "cursor": cursor, **more}
    return json.dumps({name: value for name, value in wire.items() if value is not None})


def control(type: str, **data: Any) -> str:
    return json.dumps({"type": f"synap.{type}", "data": data})


Script = Callable[[ServerConnection], Awaitable[None]]


class Scripted:
    """A room server: the first connection gets the first script, and so on.

    Attributes:
        scripts: what to do with each connection, or an HTTP status (with headers) to refuse it.
        requests: the handshakes, in order.
        said: what clients sent, in order.
        details: of a refusal.
    """

    def __init__(self) -> None:
        self.url = ""
        self.details = "because"
        self.scripts: list[Script | tuple[int, dict[str, str]]] = []
        self.requests: list[Request] = []
        self.said: asyncio.Queue[str] = asyncio.Queue()

    @property
    def positions(self) -> list[str | None]:
        """The ``?after=`` of each handshake."""
        return [r.path.partition("?after=")[2] or None for r in self.requests]

    async def receive(self, *wanted: str) -> None:
        """Wait until a client has said this, in this order; acknowledgements by their cursor."""
        async with asyncio.timeout(TIMEOUT_S):
            for text in wanted:
                while await self.said.get() != text:
                    pass

    def refuse(self, ws: ServerConnection, request: Request) -> Response | None:
        if request.path == "/subscribe":  # it has no connections with many rooms
            return Response(404, "Not Found", Headers(), b"")
        self.requests.append(request)
        match self.scripts[0] if self.scripts else None:
            case (int(status), headers):
                self.scripts.pop(0)
                body = json.dumps({"error": "No", "details": self.details}).encode()
                return Response(status, HTTPStatus(status).phrase, Headers(headers), body)
            case None:
                return Response(410, "Gone", Headers(), b"the script has ended")
        return None

    def hang_up(self) -> None:
        """Cut the newest connection."""
        self._newest.transport.abort()

    async def play(self, ws: ServerConnection) -> None:
        self._newest = ws
        script = self.scripts.pop(0)
        assert callable(script)
        await script(ws)

    async def listen_to(self, ws: ServerConnection) -> None:
        """The end of a script: take what the client says until it leaves."""
        async for text in ws:
            value = text if text == "ping" else json.loads(text)["cursor"]
            self.said.put_nowait(value)


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with scripted_server([Subprotocol("synap.v1")]) as server:
        yield server


@asynccontextmanager
async def scripted_server(subprotocols: list[Subprotocol] | None) -> AsyncIterator[Scripted]:
    scripted = Scripted()
    quiet = logging.getLogger("tests.scripted")
    async with serve(
        scripted.play,
        "127.0.0.1",
        0,
        process_request=scripted.refuse,
        subprotocols=subprotocols,
        max_size=4096,
        ping_interval=None,
        close_timeout=1,
        logger=quiet,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        scripted.url = f"http://127.0.0.1:{port}"
        yield scripted
