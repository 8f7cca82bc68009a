"""The timers of a shared connection, and the order of what is sent on it. Without I/O."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..protocol.rooms import Room
from .rooms import RoomsKeepalive


class SharedKeepalive(RoomsKeepalive):
    """The timers of a shared connection, and the actions that are to be sent on it, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, (), acknowledges=True)
        self._outbox: deque[str] = deque()
        self._lock = threading.Lock()  # one thread sends what another one has queued

    def enter(self, room: Room) -> None:
        """Acknowledge a room from now on."""
        with self._lock:
            self._acknowledged_in[room] = self._received_in[room] = None

    def acknowledge_in(self, room: Room, cursor: str | None) -> bool:
        with self._lock:
            return room in self._received_in and super().acknowledge_in(room, cursor)

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

    def act(self, action: str, room: Room | None = None, **members: str | None) -> None:
        """Send an action soon. Members that are None are left out."""
        message: dict[str, Any] = {"action": action, "room": room, **members}
        self._outbox.append(json.dumps({name: v for name, v in message.items() if v is not None}))

    def send(self, text: str) -> None:
        """Send a text soon."""
        self._outbox.append(text)

    def due(self) -> list[str]:
        return [*self._empty_outbox(), *super().due()]

    def pending_ack(self) -> list[str]:
        with self._lock:
            return [*self._empty_outbox(), *super().pending_ack()]

    def next_wakeup_s(self) -> float:
        with self._lock:
            return 0.0 if self._outbox else super().next_wakeup_s()

    def _empty_outbox(self) -> list[str]:
        texts = []
        while self._outbox:
            texts.append(self._outbox.popleft())
        return texts
