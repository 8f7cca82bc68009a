"""The position of a subscription in its room, across connections. Pure.

See PROTOCOL.md, "Clients" ("Resuming").
"""

from __future__ import annotations

import logging

from ..protocol.control import ControlFrame
from ..protocol.notification import Notification

logger = logging.getLogger("synap_realtime.subscriber")

SEEN_IDS = 4096
"""Number of recent ids that are remembered to drop duplicates."""

POSITIONS = ("earliest", "latest")

MAX_INTERRUPTED_REPLAYS = 3
"""After this number of consecutive interrupted replays, the next one starts where the last ended.
"""


class RoomProgress:
    """The state that outlives a connection: the position, and the ids received."""

    def __init__(self, after: str | None) -> None:
        """
        Args:
            after: where to start: a cursor, one of :data:`POSITIONS`, or None.
        """
        self._start = after
        self.cursor: str | None = None
        self.received: str | None = None
        # Whether gaps matter: a first connection without a cursor has missed nothing at its start.
        self.reports_gaps = after not in (None, *POSITIONS)
        self._was_connected = False
        # The server reports a gap only at the end of a replay. An interrupted replay is requested
        # again from its start, because otherwise no gap would ever be reported.
        self._resume = None if after in POSITIONS else after
        self._is_replay_complete = False
        self._interrupted_replays = 0
        self._seen: dict[str, None] = {}  # the oldest first

    @property
    def after(self) -> str | None:
        return self._resume or self._start

    def connected(self, *, speaks_v1: bool) -> None:
        self.reports_gaps |= self._was_connected
        self._was_connected = True
        # Without a position there is no gap to report.
        self._is_replay_complete = not speaks_v1 or self._resume is None

    def replay_complete(self, cursor: object) -> None:
        """Record that the replay has ended and the server has reported any gap."""
        self._is_replay_complete = self.reports_gaps = True
        self._interrupted_replays = 0
        self.move_to(cursor)

    def subscribed(self, frame: ControlFrame) -> bool:
        """Apply ``synap.subscribed``. Return whether to report a gap.

        The last connection may have ended before its last acknowledgement, so the caller repeats
        it.
        """
        has_gap = frame.data.get("recovered") is False and self.reports_gaps
        self.replay_complete(frame.data.get("cursor"))
        if has_gap:  # the log of the last one may be gone
            self.received = self.cursor
            logger.info("gap: missed notifications are no longer retained")
        return has_gap

    def pause(self) -> bool:
        """Record that this client has left the room for a while. Return whether a gap may stay
        unreported.
        """
        if self._is_replay_complete or self.cursor is None:
            return False
        has_reports = self.reports_gaps and self._resume is not None
        self._resume = self.cursor
        return has_reports

    def lost(self) -> bool:
        """Record that the connection was lost. Return whether a gap may stay unreported."""
        if self._is_replay_complete or self.cursor is None or self._resume == self.cursor:
            return False
        self._interrupted_replays += 1
        if self._interrupted_replays < MAX_INTERRUPTED_REPLAYS:
            return False
        self._interrupted_replays = 0
        self._resume = self.cursor
        return True

    def move_to(self, cursor: object) -> None:
        """Advance the position; ignore an invalid cursor."""
        if isinstance(cursor, str) and 0 < len(cursor) <= 64 and cursor.isascii():
            self.cursor = cursor
            if self._is_replay_complete:
                self._resume = cursor

    def is_new(self, notification: Notification) -> bool:
        """Return whether the id is new; a notification without an id always is."""
        if notification.id is None:
            return True
        if notification.id in self._seen:
            return False
        self._seen[notification.id] = None
        if len(self._seen) > SEEN_IDS:
            del self._seen[next(iter(self._seen))]
        return True
