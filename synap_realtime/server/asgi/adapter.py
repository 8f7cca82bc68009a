"""The room server as an ASGI app, to mount in FastAPI, Starlette or Django.

This package moves bytes. The rules are in :mod:`..http`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any

from ..app import CLOSE_TIMEOUT_S, Node, create_node
from ..auth.authorization import Authorizer
from ..config import ServerSettings
from ..errors import StoreUnavailableError
from ..http.subscribe import AcceptedSubscription, CloseHandshakeError
from ..messages import RequestError, Response
from ..resources.pacing import SHARE_S, TASK_S, Pacer
from ..resources.trim import Trimmer
from ..stores.base import Store
from .connections import (
    AsgiRequest,
    DisconnectedError,
    Receive,
    Scope,
    Send,
    body_part,
    close_handshake,
    head_problem,
    read_body,
    request_of,
    respond,
    run_event_stream,
    run_websocket,
    start_response,
    translate_disconnects,
)

Handler = Callable[[int, FrameType | None], Any]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.asynccontextmanager
async def drain_on_signal(drain: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Drain at the first signal, then call the previous handler. At a second, call it immediately.

    The host has to wait, because uvicorn closes WebSockets with another code within 0.1 s. Nothing
    is changed outside of the main thread, or if no handler is installed.
    """
    chain = _Chain(drain)
    if threading.current_thread() is threading.main_thread():
        chain.install()
    try:
        yield
    finally:
        chain.restore()
        await chain.until_drained()


class _Chain:
    def __init__(self, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._previous: dict[int, Handler] = {}
        self._pending_signal: int | None = None  # the signal that is passed on after draining
        self._received = False
        self._draining: asyncio.Task[None] | None = None

    def install(self) -> None:
        for number in _SIGNALS:
            if callable(previous := signal.getsignal(number)):
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    def restore(self) -> None:
        for number, previous in self._previous.items():
            if (
                signal.getsignal(number) == self._on_signal
            ):  # else another handler was installed later
                signal.signal(number, previous)

    async def until_drained(self) -> None:
        if self._draining is not None:
            await asyncio.wait([self._draining])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._start)
                self._pending_signal = number
                return
        self._pending_signal = None
        self._previous[number](number, frame)

    def _start(self) -> None:
        self._draining = self._loop.create_task(self._drain())
        self._draining.add_done_callback(self._forward)

    def _forward(self, _: asyncio.Task[None]) -> None:
        if self._pending_signal is not None:
            self._previous[self._pending_signal](self._pending_signal, None)


class RoomServer:
    """The ASGI app.

    Attributes:
        node: the node that it serves.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._pacer: Pacer | None = None
        self._trimmer: Trimmer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.node.monitor_event_loop()
        self._watch_memory()
        with contextlib.suppress(DisconnectedError):
            match scope["type"]:
                case "http":
                    await self._http(scope, receive, translate_disconnects(send))
                case "websocket":
                    await self._websocket(scope, receive, translate_disconnects(send))
                case "lifespan":
                    await self._lifespan(receive, send)
                case other:
                    raise RuntimeError(f"unsupported ASGI scope type {other!r}")

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Run a mounted server: enter this around the ``yield`` of your app's lifespan.

        A mounted app is not notified when its host stops, and the host (uvicorn) ends its lifespan
        only when every connection has closed: one open stream would block it for ever. So SIGTERM
        and SIGINT first drain this server, and are then passed to the previous handler. A second
        signal is passed immediately. At the end, the store is closed.
        """
        try:
            async with drain_on_signal(self.node.drain):
                yield
        finally:
            await self.close()

    async def drain(self) -> None:
        """Reject publishes, then close every subscriber. See PROTOCOL.md, "Draining"."""
        await self.node.drain()

    async def close(self) -> None:
        """Drain, then close the store."""
        if self._trimmer is not None:
            self._trimmer.close()
        await self.node.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_of(scope)
        if (problem := head_problem(scope, request)) is not None:
            self.node.router.record_error(request, problem.response)
            await respond(send, problem.response)
            return
        request.begin(self.node.budgets)
        try:
            if request.method != "POST":
                await self._wait_for_share(TASK_S)
            request.read = partial(read_body, request, receive)
            result = await self.node.router.handle(request)
            if isinstance(result, Response):
                await self._respond(request, send, result)
                return
        finally:
            request.end()
        leave = partial(self.node.sessions.close, result.session)
        try:
            await run_event_stream(result, receive, send, leave)
        finally:
            leave()

    async def _respond(self, request: AsgiRequest, send: Send, response: Response) -> None:
        """Send a response, and return when the host has passed on what it does not buffer."""
        rest = response.rest
        is_head = request.method == "HEAD"
        if rest is None:
            await respond(send, response, waits=not is_head)
            return
        async with contextlib.aclosing(rest):
            await start_response(send, response, None)
            if not is_head:
                before = len(response.body)
                await send(body_part(response.body))
                try:
                    async for chunk in rest:
                        request.adjust_response(before + len(chunk))
                        await send(body_part(chunk))
                        before = len(chunk)
                        await self._wait_for_share(SHARE_S)  # the next chunk may cost as much
                except StoreUnavailableError:
                    return  # the host aborts the connection, so the client sees an incomplete body
            await send({"type": "http.response.body", "body": b""})

    def _watch_memory(self) -> None:
        if self._trimmer is None:
            self._trimmer = Trimmer(self.node.budgets.total, is_alone=False)
            self._trimmer.start()

    async def _wait_for_share(self, cost_s: float) -> None:
        """See :class:`Pacer`."""
        if self._pacer is None or not self._pacer.is_of_running_loop():
            self._pacer = Pacer()
        await self._pacer.acquire(cost_s)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        await self._wait_for_share(TASK_S)
        request = request_of(scope)
        opened: AcceptedSubscription | None = None
        try:
            if (problem := head_problem(scope, request)) is not None:
                self.node.router.record_error(request, problem.response)
                await self._deny(scope, receive, send, problem.response)
                return
            opened = await self.node.router.accept_websocket(request)
            await run_websocket(opened, request, self.node.settings.idle_timeout_s, receive, send)
        except RequestError as error:
            await self._deny(scope, receive, send, error.response)
        except CloseHandshakeError as error:
            await close_handshake(request, send, error.code, error.reason)
        finally:
            if opened is not None:
                self.node.sessions.close(opened.session)

    async def _deny(self, scope: Scope, receive: Receive, send: Send, response: Response) -> None:
        """Reject a handshake, with the reason if the host supports that."""
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        await respond(send, response, kind="websocket.http.response")
        # uvicorn logs an error if the app returns before the connection has closed. It sends one
        # message when it closes, and one when it has closed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await receive()
                await receive()


def create_app(
    settings: ServerSettings | None = None,
    store: Store | None = None,
    *,
    authorize: Authorizer | None = None,
    worker: int | None = None,
) -> RoomServer:
    """Create the room server as an ASGI app.

    ::

        rooms = create_app()

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI):
            async with rooms.lifespan():
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/realtime", rooms)

    Without keys it accepts only loopback clients, and pages of loopback origins or of
    ``allowed_origins``.

    Args:
        settings: default: from ``SYNAP_REALTIME_…`` in the environment.
        store: default: the one that the settings name. A mounted app is not notified when its host
            stops, so enter :meth:`RoomServer.lifespan` in the lifespan of your app to close it.
        authorize: your own authorizer, ``async def authorize(action, room, claims) -> bool``,
            called for requests that the server allows; default: the one that the settings name.
        worker: the number of this process, if several serve on one port; a label of its metrics.

    Raises:
        ConfigurationError: names the setting that is invalid.
    """
    return RoomServer(create_node(settings, store, authorize=authorize, worker=worker))
