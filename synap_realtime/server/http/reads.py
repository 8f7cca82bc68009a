"""The routes that read a room: its history, its presence, and its health.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from functools import partial

from ...protocol.cursor import Cursor
from ...protocol.rooms import Room
from ..auth.authorization import AccessControl, room_not_allowed
from ..auth.limits import Limits
from ..errors import UnavailableError
from ..messages import (
    Request,
    Response,
    bad_request,
    json_response,
    parse_cursor_param,
    parse_room_param,
)
from ..rooms.hub import Hub
from ..rooms.presence import Presence
from ..stores.base import LogStore
from ..surveys import Answer, Surveys

_QUESTION = "health"

HISTORY_LIMIT, MAX_HISTORY_LIMIT = 100, 1000
MAX_HISTORY_BYTES = 1024 * 1024
"""A history response ends with the notification that reaches this size."""

_CHUNK_BYTES = 64 * 1024  # about the size of a chunk of a long response
_PAGE = 16  # most entries that are read at a time


class RoomReads:
    """Handles the routes that read a room."""

    def __init__(
        self,
        store: LogStore,
        hub: Hub,
        presence: Presence,
        access: AccessControl,
        limits: Limits,
        surveys: Surveys,
    ) -> None:
        self._store = store
        self._hub = hub
        self._presence = presence
        self._access = access
        self._limits = limits
        self._surveys = surveys
        self._stopped = False
        surveys.register(_QUESTION, self._count_connections)

    def stop(self) -> None:
        """Answer requests for a history with 503 from now on: the store is being closed."""
        self._stopped = True

    async def health(self, request: Request) -> Response:
        """Handle ``GET /rooms/{room}/health``."""
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate_counted(request)
        if not claims.allows_room(room):
            raise room_not_allowed(claims)
        answers = await self._surveys.ask(_QUESTION, {"room": room}, _connections_in)
        connections = sum(answers.all)
        return json_response(
            200, {"status": "ok", "connections": connections, "roomId": room, **answers.marks()}
        )

    def _count_connections(self, arguments: Answer) -> Answer:
        return {"connections": self._hub.subscriber_count(Room(arguments["room"]))}

    async def presence(self, request: Request) -> Response:
        """Handle ``GET /rooms/{room}/presence``."""
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "presence", room)
        others = await self._presence.others(room)
        connections = self._hub.subscriber_count(room) + others.connections
        users = self._presence.users(room, others.users)
        response = json_response(200, {"room": room, "connections": connections, "users": users})
        self._limits.count_read(claims, request.address, len(response.body))
        return response

    async def history(self, request: Request) -> Response:
        """Handle ``GET /rooms/{room}/history``."""
        room = parse_room_param(request.path_segments[1])
        if self._stopped:
            raise UnavailableError("the server has stopped")
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "subscribe", room)
        after = request.query.get("after", "earliest")
        position = (
            self._store.earliest()
            if after == "earliest"
            else parse_cursor_param(after, "or 'earliest'")
        )
        wanted = parse_limit(request.query.get("limit"))
        count_read = partial(self._limits.count_read, claims, request.address)
        chunks = self._history_chunks(room, position, wanted, count_read)
        content, is_last = await anext(chunks)
        if is_last:  # a short history is sent whole, with Content-Length
            await chunks.aclose()
            return Response(200, content)
        return Response(200, content, rest=_contents(chunks))

    async def _history_chunks(
        self, room: Room, position: Cursor, wanted: int, count_read: Callable[[int], None]
    ) -> AsyncGenerator[tuple[bytes, bool]]:
        """Yield the body in chunks of about ``_CHUNK_BYTES``, each with whether it is the last.

        Only one chunk is in memory while the peer reads it. Otherwise a peer that does not read its
        response could pin a whole history.
        """
        head = await self._store.head(room)
        parts = [f'{{"room":"{room}","notifications":['.encode()]
        count, size, unsent, recovered, more = 0, 0, 0, True, True
        page_size = 1  # later adapted so that a page fits a chunk
        while more and count < wanted and size < MAX_HISTORY_BYTES:
            page = await self._store.read(room, position, page_size)
            if not page.recovered:
                recovered, position = False, self._store.earliest()
            more = len(page.entries) == page_size or page.ends_early
            count_read(sum([entry.size for entry in page.entries]))
            for entry in page.entries:
                if count == wanted or size >= MAX_HISTORY_BYTES:
                    more = True
                    break
                parts.append(b"," + entry.text.encode() if count else entry.text.encode())
                count += 1
                size += entry.size
                unsent += entry.size
                position = entry.cursor
            page_size = max(1, min(_PAGE, _CHUNK_BYTES * count // max(size, 1)))
            if unsent >= _CHUNK_BYTES:
                chunk, parts, unsent = b"".join(parts), [], 0
                del page
                yield chunk, False
                del chunk
        if more:
            more = bool((await self._store.read(room, position, 1)).entries)
        else:  # everything up to the head was read, which is also the position of an empty room
            position = max(position, head, key=lambda cursor: cursor.offset)
        members = {"cursor": str(position), "recovered": recovered, "more": more}
        parts.append(f"],{json.dumps(members, separators=(',', ':'))[1:]}".encode())
        yield b"".join(parts), True


def _connections_in(answer: Answer) -> int:
    return int(answer["connections"])


async def _contents(chunks: AsyncGenerator[tuple[bytes, bool]]) -> AsyncGenerator[bytes]:
    """Yield the chunks of :meth:`RoomReads._history_chunks` without their flags."""
    async with contextlib.aclosing(chunks):
        async for content, _ in chunks:
            yield content


def parse_limit(text: str | None) -> int:
    """Parse the query parameter ``limit``.

    Raises:
        RequestError: 400.
    """
    if text is None:
        return HISTORY_LIMIT
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_HISTORY_LIMIT:
        return int(text)
    raise bad_request("Invalid limit", f"limit: expected 1 to {MAX_HISTORY_LIMIT}")
