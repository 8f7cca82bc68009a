"""Answering a request whose work is done later: 202, and where to hear of it."""

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
    """Nobody can guess it: who knows it may hear of the request."""
    return str(uuid.uuid4())


def accepted_response(
    request_id: str, *, url: str | None = None, secret: str | None = None
) -> dict[str, Any]:
    """The body of the 202 for a request that was handed to a job.

    ::

        {"status": "pending", "requestId": "7f3a…",
         "subscribe": {"url": "wss://…/rooms/request_7f3a…/subscribe", "token": "eyJ…"}}

    Args:
        url: the room server as browsers reach it, default ``REALTIME_PUBLIC_URL``, else
            ``NEXT_PUBLIC_REALTIME_URL``, else ``REALTIME_URL``.
        secret: signs the token (HS256), default ``REALTIME_TOKEN_SECRET``. The token opens this
            request's room only, for 15 minutes. Without a secret it is None: a server without keys
            takes no token.

    Raises:
        InvalidArgumentError: the request's id cannot be part of a room's.
        ConfigurationError: the URL or the secret cannot be used.

    See PROTOCOL.md, "Who may".
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
