"""Answer a request whose work a job does: 202 with the room to subscribe to."""

from __future__ import annotations

import os
import uuid
from typing import Any
from urllib.parse import quote

from ..endpoint import SCHEMES, parse_server_url
from ..protocol.rooms import Room, request_room
from ..tokens import mint_token

_PUBLIC = ("REALTIME_PUBLIC_URL", "NEXT_PUBLIC_REALTIME_URL", "REALTIME_URL")


def new_request_id() -> str:
    """Return an unguessable id. Knowing a request's id is enough to subscribe to its room."""
    return str(uuid.uuid4())


def accepted_response(
    request_id: str, *, url: str | None = None, secret: str | None = None
) -> dict[str, Any]:
    """Return the body of the 202 response for a request that was passed to a job.

    ::

        {"status": "pending", "requestId": "7f3a…",
         "subscribe": {"url": "wss://…/rooms/request_7f3a…/subscribe", "token": "eyJ…"}}

    Args:
        url: the room server as browsers reach it. Default: ``REALTIME_PUBLIC_URL``, then
            ``NEXT_PUBLIC_REALTIME_URL``, then ``REALTIME_URL``.
        secret: signs the token (HS256). Default: ``REALTIME_TOKEN_SECRET``. The token grants access
            to this request's room only, for 15 minutes. Without a secret the token is None, because
            a server without keys accepts no token.

    Raises:
        InvalidArgumentError: the request id is not valid in a room id.
        ConfigurationError: the URL or the secret is invalid.

    See PROTOCOL.md, "Authentication and authorization".
    """
    room = request_room(request_id)
    address = parse_server_url(url, SCHEMES, _PUBLIC)
    base = address.url.copy_with(scheme="wss" if address.url.scheme in ("https", "wss") else "ws")
    return {
        "status": "pending",
        "requestId": request_id,
        "subscribe": {
            "url": f"{str(base).rstrip('/')}/rooms/{quote(room, safe='')}/subscribe",
            "token": _token(room, secret or os.environ.get("REALTIME_TOKEN_SECRET")),
        },
    }


def _token(room: Room, secret: str | None) -> str | None:
    return mint_token(rooms=[room], secret=secret) if secret else None
