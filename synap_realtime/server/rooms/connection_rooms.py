"""The rooms of a connection: opened, replayed and ended, each independent of the others.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ...protocol.control import CloseCode
from ...protocol.rooms import Room
from ..auth.claims import Claims
from ..errors import StoreUnavailableError
from .room_session import RoomSession


class ConnectionRooms:
    """The rooms of one connection, and the tasks that authorize them and replay their logs."""

    __slots__ = ("_on_unsubscribed", "_open", "_sessions", "_tasks")

    def __init__(
        self,
        open_session: Callable[..., RoomSession],
        on_unsubscribed: Callable[[Room, RoomSession | None], None],
    ) -> None:
        """
        Args:
            open_session: see :meth:`open`.
            on_unsubscribed: called with a room that the client has ended, and with its session;
                None if it was not authorized yet.
        """
        self._open = open_session
        self._on_unsubscribed = on_unsubscribed
        # A room is None from its action on until it is authorized.
        self._sessions: dict[Room, RoomSession | None] = {}
        self._tasks: dict[Room, asyncio.Task[None]] = {}

    def __contains__(self, room: Room) -> bool:
        return room in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, room: Room) -> RoomSession | None:
        """Return the session of a room. None if it is not authorized yet, or not subscribed."""
        return self._sessions.get(room)

    def sessions(self) -> list[RoomSession]:
        """Return the rooms that are authorized."""
        return [session for session in self._sessions.values() if session is not None]

    def begin(self, room: Room, subscribe: Coroutine[Any, Any, None]) -> None:
        """Start to subscribe to a room.

        Args:
            subscribe: calls :meth:`open` and :meth:`replay`, or :meth:`abandon`.
        """
        self._sessions[room] = None
        self._run(room, subscribe)

    def open(
        self,
        room: Room,
        claims: Claims,
        *,
        device: str | None = None,
        wants_presence: bool = False,
        owns_claims: bool = False,
    ) -> RoomSession:
        """Add an authorized room; see :meth:`connection.RoomOpener.open_room`."""
        session = self._open(
            room, claims, device=device, wants_presence=wants_presence, owns_claims=owns_claims
        )
        self._sessions[room] = session
        return session

    async def replay(self, session: RoomSession, after: str | None) -> None:
        """Replay the log of a room. Then it is live. Other rooms do not wait for it."""
        try:
            await session.subscription.run(after, session.sink)
        except StoreUnavailableError:
            session.close(CloseCode.DRAINING, "the log of the room cannot be read now")

    def start_replay(self, session: RoomSession, after: str | None) -> None:
        """Do the same in the background."""
        self._run(session.room, self.replay(session, after))

    def abandon(self, room: Room) -> None:
        """Remove a room that is not authorized."""
        del self._sessions[room]

    def abandon_unauthorized(self) -> None:
        """Remove all rooms that are not authorized yet."""
        for room in [room for room, session in self._sessions.items() if session is None]:
            del self._sessions[room]
            self._stop_task(room)

    def unsubscribe(self, room: Room) -> None:
        """Remove a room, as its client asks for."""
        session = self._sessions.pop(room)
        self._stop_task(room)
        self._on_unsubscribed(room, session)

    def remove(self, session: RoomSession) -> None:
        """Remove a room whose subscription was ended by the server."""
        del self._sessions[session.room]

    def stop(self) -> None:
        """Stop to authorize rooms and to replay logs."""
        for room in tuple(self._tasks):
            self._stop_task(room)

    def _stop_task(self, room: Room) -> None:
        if (task := self._tasks.pop(room, None)) is not None:
            task.cancel()

    def _run(self, room: Room, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[room] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: self._forget_task(room, done))

    def _forget_task(self, room: Room, task: asyncio.Task[None]) -> None:
        if self._tasks.get(room) is task:
            del self._tasks[room]
