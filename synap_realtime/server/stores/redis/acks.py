"""The acknowledged cursors: noted at the node, and stored a moment later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import DEVICE_AGE_S, MAX_DEVICES
from .keys import KeySpace
from .script import us
from .scripts import ACK, GET_ACK
from .tasks import Tasks

_DELAY_S = 0.05


class AcknowledgedCursors:
    """Stores how far the devices of a room have read."""

    def __init__(
        self, keys: KeySpace, call: Callable[..., asyncio.Future[Any]], tasks: Tasks
    ) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
        """
        self._keys = keys
        self._call = call
        self._tasks = tasks
        self._noted: dict[Room, dict[tuple[str, str], int]] = {}  # device and epoch to offset
        self._timer: asyncio.TimerHandle | None = None

    async def get(self, room: Room, device: str | None = None) -> Cursor | None:
        self.send(room)
        keys = self._keys.of_room(room)
        [found] = await self._call(GET_ACK, (keys.acks,), device or "", us(DEVICE_AGE_S))
        if not found:
            return None
        return Cursor(found[0].decode(), int(found[1])) if int(found[1]) else Cursor("0", 0)

    def register(self, room: Room, device: str, position: Cursor) -> None:
        self._note(room, device, position)

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        self._note(room, "", position)
        if device is not None:
            self._note(room, device, position)

    def close(self) -> None:
        """Send what was noted."""
        if self._timer is not None:
            self._timer.cancel()
        for room in list(self._noted):
            self.send(room)

    def _note(self, room: Room, name: str, position: Cursor) -> None:
        noted = self._noted.setdefault(room, {})
        known = noted.pop((name, position.epoch), 0)
        noted[name, position.epoch] = max(known, position.offset)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_DELAY_S, self._send_all)

    def _send_all(self) -> None:
        self._timer = None
        for room in list(self._noted):
            self.send(room)

    def send(self, room: Room) -> None:
        """Store what was noted of a room, without waiting."""
        noted = self._noted.pop(room, None)
        if noted is None:
            return
        keys = self._keys.of_room(room)
        rows: list[Any] = []
        for (name, epoch), offset in noted.items():
            rows += (name, epoch, offset)
        reply = self._call(ACK, (keys.state, keys.acks), MAX_DEVICES, us(DEVICE_AGE_S), *rows)
        self._tasks.spawn(self._repeat_failed(reply, room, noted))

    async def _repeat_failed(
        self, reply: asyncio.Future[Any], room: Room, noted: dict[tuple[str, str], int]
    ) -> None:
        try:
            await reply
        except StoreUnavailableError:
            for (name, epoch), offset in noted.items():
                self._note(room, name, Cursor(epoch, offset))
