"""The timers of a connection with many rooms, and the order of what is sent on it. Without I/O."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..protocol.rooms import Room
from .keepalive import Keepalive


class SharedKeepalive(Keepalive):
    """The timers of a connection, and the actions that are to be sent on it, in order.

    Each room has its own acknowledgement.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, acknowledges=True)
        self._received_in: dict[Room, str | None] = {}
        self._acknowledged_in: dict[Room, str | None] = {}
        self._outbox: deque[str] = deque()
        self._lock = threading.Lock()  # one thread sends what another one has queued

    def enter(self, room: Room) -> None:
        """Acknowledge a room from now on."""
        with self._lock:
            self._acknowledged_in[room] = self._received_in[room] = None

    def acknowledge_in(self, room: Room, cursor: str | None) -> bool:
        """Do the same as :meth:`acknowledge`, for one room."""
        with self._lock:
            if cursor is None or cursor == self._received_in.get(room, cursor):
                return False
            waits_already = self._has_pending_ack
            self._received_in[room] = cursor
            return not waits_already

    def leave(self, room: Room) -> None:
        """Send the last acknowledgement of a room, and leave it."""
        with self._lock:
            received = self._received_in.get(room)
            if received != self._acknowledged_in.get(room):
                self.act("ack", room, cursor=received)
        self.forget(room)
        self.act("unsubscribe", room)

    def forget(self, room: Room) -> None:
        """Acknowledge a room no longer: the server has ended it."""
        with self._lock:
            self._received_in.pop(room, None)
            self._acknowledged_in.pop(room, None)

    def act(self, action: str, room: Room, **members: str | None) -> None:
        """Send an action soon. Members that are None are left out."""
        message: dict[str, Any] = {"action": action, "room": room, **members}
        self._outbox.append(json.dumps({name: v for name, v in message.items() if v is not None}))

    def due(self) -> list[str]:
        return [*self._empty_outbox(), *super().due()]

    def pending_ack(self) -> list[str]:
        with self._lock:
            texts = []
            for room, cursor in self._received_in.items():
                if cursor != self._acknowledged_in[room]:
                    self._acknowledged_in[room] = cursor
                    texts.append(json.dumps({"action": "ack", "room": room, "cursor": cursor}))
            if texts:
                self._ack_again_later()
            return [*self._empty_outbox(), *texts]

    def next_wakeup_s(self) -> float:
        with self._lock:
            return 0.0 if self._outbox else super().next_wakeup_s()

    @property
    def _has_pending_ack(self) -> bool:
        return self._received_in != self._acknowledged_in

    def _empty_outbox(self) -> list[str]:
        texts = []
        while self._outbox:
            texts.append(self._outbox.popleft())
        return texts
