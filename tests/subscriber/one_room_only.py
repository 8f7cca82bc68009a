"""A room server without connections with many rooms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from synap_realtime.server import create_app

Scope = MutableMapping[str, Any]


class OneRoomOnly:
    """A room server without connections with many rooms, as an older one or the Worker.

    Attributes:
        connects: how many WebSockets were requested at each path.
    """

    def __init__(self) -> None:
        self._app = create_app()
        self.connects: list[str] = []

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Scope]],
        send: Callable[[Scope], Awaitable[None]],
    ) -> None:
        if scope["type"] == "websocket":
            self.connects.append(scope["path"])
        if scope["type"] == "websocket" and scope["path"] == "/subscribe":
            await receive()
            start = {"type": "websocket.http.response.start", "status": 404, "headers": []}
            await send(start)
            await send({"type": "websocket.http.response.body", "body": b""})
        else:
            await self._app(scope, receive, send)
