"""The admin page, and its API: the current state of all nodes that share the store."""

from __future__ import annotations

import base64
import hashlib
import heapq
import os
import socket
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import NoReturn

from ....protocol.notification import format_timestamp
from ....protocol.rooms import Room
from ...auth.authorization import AccessControl, require_scope
from ...messages import Request, RequestError, Response, json_response, parse_room_param
from ...metrics import Metrics
from ...rooms.hub import Hub
from ...rooms.registry import SessionRegistry
from ...rooms.sessions import Session
from ...surveys import Answer, Surveys
from .answers import (
    MAX_CONNECTIONS,
    NodeState,
    RoomState,
    largest_rooms,
    merge_rooms,
    merge_states,
    parse_node_state,
    parse_room_state,
    sample_rooms,
)

_STATE, _ROOM = "admin.state", "admin.room"  # the questions to all nodes


class Admin:
    """The routes under ``/admin``. All except the page itself require the scope ``admin``."""

    def __init__(
        self,
        hub: Hub,
        sessions: SessionRegistry,
        access: AccessControl,
        metrics: Metrics,
        surveys: Surveys,
        *,
        version: str,
        description: str,
    ) -> None:
        """
        Args:
            description: the description of the store, for display.
        """
        self._hub = hub
        self._sessions = sessions
        self._access = access
        self._metrics = metrics
        self._surveys = surveys
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._version = version
        self._description = description
        self._started_at = _timestamp(datetime.now(UTC).timestamp())
        surveys.register(_STATE, self._state)
        surveys.register(_ROOM, self._room)

    async def page(self, request: Request) -> Response:  # noqa: ARG002 - everybody may load it
        """Handle ``GET /admin``: the page, without data."""
        return _render_page()

    async def state(self, request: Request) -> Response:
        """Handle ``GET /admin/state``."""
        await self._require_admin(request)
        part = request.query.get("room", "")
        answers = await self._surveys.ask(_STATE, {"room": part}, parse_node_state)
        state = {
            "version": self._version,
            "store": self._description,
            "startedAt": self._started_at,
            **merge_states(answers.all),
            **answers.marks(),
        }
        return json_response(200, state)

    async def room(self, request: Request) -> Response:
        """Handle ``GET /admin/rooms/{room}``."""
        await self._require_admin(request)
        room = parse_room_param(request.path_segments[2])
        answers = await self._surveys.ask(_ROOM, {"room": room}, parse_room_state)
        return json_response(200, {**merge_rooms(answers.all), **answers.marks()})

    async def reject_unknown_path(self, request: Request) -> NoReturn:
        """Handle every other path under ``/admin``.

        Raises:
            RequestError: 404 for an operator.
        """
        await self._require_admin(request)
        raise RequestError(404, "not_found", "Not found", "the page is at /admin")

    async def _require_admin(self, request: Request) -> None:
        require_scope(await self._access.authenticate_counted(request), "admin")

    def _state(self, arguments: Answer) -> Answer:
        """Return the totals and the largest rooms of this node.

        Args:
            arguments: ``room`` filters the rooms whose name contains it.
        """
        part = str(arguments["room"])
        rooms = dict(self._hub.rooms())
        state: NodeState = {
            "name": self._name,
            "version": self._version,
            "startedAt": self._started_at,
            "connections": self._sessions.count(),
            "roomCount": len(rooms),
            "roomHashes": sample_rooms(rooms.keys()),
            "rooms": largest_rooms(each for each in rooms.items() if part in each[0]),
            "totals": self._metrics.totals(),
        }
        return state

    def _room(self, arguments: Answer) -> Answer:
        """Return the newest connections of a room at this node."""
        here = self._sessions.in_room(Room(arguments["room"]))
        newest = heapq.nlargest(MAX_CONNECTIONS, here, key=lambda session: session.began_at)
        state: RoomState = {
            "total": len(here),
            "connections": [self._to_json(session) for session in newest],
        }
        return state

    def _to_json(self, session: Session) -> dict[str, str | None]:
        ends_at = session.claims.expires_at
        return {
            "user": session.claims.user or session.claims.key_name,
            "device": session.device,
            "transport": session.transport,
            "address": session.address,
            "node": self._name,
            "since": _timestamp(session.began_at),
            "expiresAt": None if ends_at is None else _timestamp(ends_at),
        }


def _timestamp(seconds: float) -> str:
    return format_timestamp(datetime.fromtimestamp(seconds, UTC))


@cache
def _render_page() -> Response:
    """Return the page: one HTML document. Its policy allows only its inline style and script."""
    folder = files(__package__)
    html = folder.joinpath("admin.html").read_text("utf-8")
    hashes = {}
    for kind, name in (("style", "admin.css"), ("script", "admin.js")):
        text = folder.joinpath(name).read_text("utf-8")
        hashes[kind] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        html = html.replace(f"/* {name} */", text)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"connect-src 'self'; img-src data:; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(200, html.encode(), headers, content_type="text/html; charset=utf-8")
