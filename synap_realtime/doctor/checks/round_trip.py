"""Publish one notification as a job does, and receive it as a page does."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from ...broadcast import AsyncBroadcaster
from ...endpoint import ServerUrl, authorization_header
from ...errors import ConfigurationError, SubscriptionError
from ...network import async_client
from ...protocol.rooms import Room, request_room
from ...subscriber import subscribe
from ...tokens import mint_token
from ..context import CheckContext
from ..finding import Finding
from ..timeouts import TIMEOUT_S

_SECRET, _KEY = "REALTIME_TOKEN_SECRET", "REALTIME_API_KEY"
_UPGRADE = (
    "configure the proxy to pass WebSockets (nginx: proxy_http_version 1.1; proxy_set_header "
    'Upgrade $http_upgrade; proxy_set_header Connection "upgrade")'
)
_BUFFERS = (
    "configure the proxy to pass each chunk immediately (nginx: proxy_buffering off), and "
    "not to compress text/event-stream"
)


MAX_LINE_BYTES = 1024 * 1024
"""Maximum length of a line of an event stream."""


class _NotReceivedError(Exception):
    """The notification cannot be received."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Target:
    """The room, and the notification to wait for."""

    address: ServerUrl
    room: Room
    token: str
    id: str


_Receive = Callable[[_Target, asyncio.Event], Coroutine[Any, Any, None]]
"""Sets the event when it is subscribed, and returns when the notification was received."""


async def check_round_trip(context: CheckContext) -> AsyncGenerator[Finding]:
    """Run the round trip in a new room, which the server removes after its retention time."""
    if context.address is None or not context.reachable:
        yield Finding("warn", "round trip", "not tried: no room server was reached")
        return
    room = request_room(f"doctor-{secrets.token_hex(8)}")
    try:
        token = _mint(context, room)
    except ConfigurationError as error:
        yield Finding("fail", "round trip", str(error), f"correct {_SECRET}")
        token = ""
    target = _Target(context.address, room, token, secrets.token_hex(8))
    probes = [
        _Probe("WebSocket", target, _receive_websocket, _UPGRADE),
        _Probe("event stream", target, _receive_sse, _BUFFERS),
    ]
    try:
        for each in probes:
            await each.until_open()
        begun = time.perf_counter()
        published = await _publish(target)
        yield published
        for each in probes:
            yield await each.wait_received(begun) if published.level == "ok" else each.opened()
    finally:
        for each in probes:
            await each.close()


def _mint(context: CheckContext, room: Room) -> str:
    """Mint a token for the room."""
    if not os.environ.get(_SECRET):
        return ""
    settings = context.settings
    return mint_token(
        rooms=[room],
        expires_in_s=60,
        issuer=settings.token_issuer if settings else None,
        audience=settings.token_audience if settings else None,
    )


class _Probe:
    """One way to subscribe, and its result."""

    def __init__(self, name: str, target: _Target, receive: _Receive, advice: str) -> None:
        self._name, self._target, self._advice = name, target, advice
        self._is_open = asyncio.Event()
        self._task = asyncio.create_task(self._run(receive))
        self._deadline = time.monotonic() + TIMEOUT_S

    async def _run(self, receive: _Receive) -> float:
        await receive(self._target, self._is_open)
        return time.perf_counter()

    async def until_open(self) -> None:
        """Wait until it is subscribed, has failed, or has timed out."""
        opening = asyncio.create_task(self._is_open.wait())
        left_s = max(0.0, self._deadline - time.monotonic())
        await asyncio.wait(
            (opening, self._task), timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        opening.cancel()

    def opened(self) -> Finding:
        """Report whether the subscription opened, for a room where the publish failed."""
        if self._task.done() and (error := self._task.exception()) is not None:
            return self._not_received(error)
        if self._is_open.is_set():
            return Finding("ok", self._name, "it opens")
        return self._timed_out()

    async def wait_received(self, begun: float) -> Finding:
        """Report whether the notification that was published at ``begun`` was received."""
        if not self._is_open.is_set() and not self._task.done():
            return self._timed_out()
        done, _ = await asyncio.wait((self._task,), timeout=TIMEOUT_S)
        if not done:
            found = f"it opened, but the notification was not received within {TIMEOUT_S:g} s"
            return Finding("fail", self._name, found, self._advice)
        if (error := self._task.exception()) is not None:
            return self._not_received(error)
        took_ms = (self._task.result() - begun) * 1000
        return Finding("ok", self._name, f"published and received in {took_ms:.0f} ms")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _timed_out(self) -> Finding:
        found = f"nothing was received within {TIMEOUT_S:g} s of opening it; a proxy may buffer it"
        return Finding("fail", self._name, found, self._advice)

    def _not_received(self, error: BaseException) -> Finding:
        if not isinstance(error, _NotReceivedError):
            raise error
        if error.status in (401, 403):
            return _rejected(self._name, _SECRET, str(error), bool(self._target.token))
        if error.status == 429 or (error.status or 0) >= 500:
            return Finding("fail", self._name, str(error), "wait, or check the server's log")
        return Finding("fail", self._name, str(error), self._advice)


def _rejected(check: str, variable: str, reason: str, was_given: bool) -> Finding:
    if not was_given:
        lacks = "cannot be used" if os.environ.get(variable) else "is not set"
        found = f"not tried: the server requires credentials, and {variable} {lacks}"
        return Finding("warn", check, found, f"set {variable} as your application has it")
    if variable == _SECRET:
        advice = f"set {variable} to one of the server's token_secrets; compare clocks"
    else:
        advice = "copy it from api_keys of the server's key file; it needs the scope broadcast"
    return Finding("fail", check, f"rejected {variable}: {reason}", advice)


async def _publish(target: _Target) -> Finding:
    message = {"type": "synap-realtime.doctor", "data": {}, "id": target.id}
    try:
        async with AsyncBroadcaster(
            str(target.address), timeout_s=TIMEOUT_S, deadline_s=TIMEOUT_S
        ) as broadcaster:
            result = await broadcaster.broadcast(target.room, message)
    except ConfigurationError as error:
        return Finding("fail", "publish", str(error), f"correct {_KEY}")
    if result.success:
        return Finding("ok", "publish", f"the server accepted a notification for {target.room}")
    reason = result.error or ""
    if "answered 401" in reason or "answered 403" in reason:
        return _rejected("publish", _KEY, reason, bool(os.environ.get(_KEY)))
    return Finding("fail", "publish", reason, "check the server's log, and /ready")


async def _receive_websocket(target: _Target, is_open: asyncio.Event) -> None:
    try:
        async with aclosing(
            subscribe(
                target.room,
                str(target.address),
                target.token or None,
                max_reconnects=0,
                acknowledge=False,
                on_state_change=lambda state: (
                    is_open.set() if state.status == "connected" else None
                ),
            )
        ) as notifications:
            async for notification in notifications:
                if notification.id == target.id:
                    return
    except ConfigurationError as error:
        raise _NotReceivedError(str(error)) from None
    except SubscriptionError as error:
        raise _NotReceivedError(str(error), error.code) from None
    raise _NotReceivedError("the subscription ended")


async def _receive_sse(target: _Target, is_open: asyncio.Event) -> None:
    base, headers = target.address, {}
    if target.token:  # The token replaces the URL's user and password, as for the WebSocket.
        base = ServerUrl(base.url.copy_with(username=None, password=None), base.redacted)
        headers["Authorization"] = authorization_header("token", target.token)
    url = f"{base}/rooms/{target.room}/events"
    try:
        async with (
            async_client(target.address.url, None) as client,  # the probe has a timeout
            client.stream("GET", url, headers=headers, params={"after": "earliest"}) as response,
        ):
            if response.status_code != 200:
                raise _NotReceivedError(
                    f"the server answered {response.status_code}", response.status_code
                )
            async for line in _lines(response):
                is_open.set()
                if line.startswith("data:") and _id_of(line.removeprefix("data:")) == target.id:
                    return
    except ConfigurationError as error:
        raise _NotReceivedError(str(error)) from None
    except (httpx.HTTPError, OSError) as error:
        raise _NotReceivedError(
            f"the stream broke ({str(error) or type(error).__name__})"
        ) from None
    raise _NotReceivedError("the stream ended")


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Return the lines of an event stream as they arrive."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*pieces, end]).decode(errors="replace").rstrip("\r")
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        if size > MAX_LINE_BYTES:
            raise _NotReceivedError(f"it sent a line of more than {MAX_LINE_BYTES} bytes")


def _id_of(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value.get("id") if isinstance(value, dict) else None


CHECKS = (check_round_trip,)
