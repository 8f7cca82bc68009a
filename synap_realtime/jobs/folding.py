"""Publish a run with the members ``fold`` and ``job``, and correct what a server rejects.

One object of each class belongs to one attempt and one recipient. See PROTOCOL.md, "Folding".
"""

from __future__ import annotations

import enum
import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..broadcast.encoding import EncodedNotification
from ..broadcast.responses import REPEATED, Rejection
from ..protocol.notification import Notification, encode_json
from ..protocol.rooms import Room
from .notifications import FENCES_PER_ATTEMPT

MAX_TEXT = 1024 * 1024
"""A longer text is not folded any further, in code points. The server's limit is in bytes."""

MAX_RESENT = 32 * 1024
"""Maximum length of one piece when a text is sent again, in code points. JSON needs at most 6 bytes
for each, and a notification has at most 256 KiB."""

_UNFOLDABLE = {"too_many_keys", "fold_mode", "payload_too_large", "invalid_request"}


class TextState(enum.Enum):
    """How the pieces of a text are sent."""

    FOLDED = enum.auto()
    """With ``fold``: the log of the room has the whole text."""
    PLAIN = enum.auto()
    """Without ``fold``: the text is too long, or the server does not fold it."""
    STOPPED = enum.auto()
    """Not at all: a later execution of the run writes the text."""


class GrowingText:
    """The text of an attempt. It is kept, so that a server which has lost a part gets it again.

    An execution of the attempt whose text does not fit the one that the server has takes the key
    over: it begins the text again with a higher ``fold.attempt``. So the latest execution counts.
    """

    def __init__(self, key: str | None, fence: int) -> None:
        """Begin an empty text.

        Args:
            key: the fold key; None if the text cannot be folded.
            fence: the first ``fold.attempt``. The last one is ``FENCES_PER_ATTEMPT - 1`` higher.
        """
        self._key = key
        self._fence = fence
        self._last_fence = fence + FENCES_PER_ATTEMPT - 1
        self._state = TextState.PLAIN if key is None else TextState.FOLDED
        self._length = 0
        self._pieces: list[str] = []
        self._resent_to = 0  # how much of the text is there or is being sent again
        self._resent_ids: set[str] = set()
        # The job and the thread that sends use the text. Reentrant, as the reporter's lock is.
        self._lock = threading.RLock()

    @property
    def state(self) -> TextState:
        return self._state

    def append(self, piece: str) -> int:
        """Add a piece. Return its offset in code points."""
        with self._lock:
            offset = self._length
            self._length += len(piece)
            if self._length > MAX_TEXT:
                self._unfold()
            if self._state is TextState.FOLDED:
                self._pieces.append(piece)
            return offset

    def placed(self, notification: Notification, offset: int) -> dict[str, Any]:
        """Return the members of a piece's notification that say where the piece belongs."""
        with self._lock:
            if self._state is TextState.FOLDED:
                return {"fold": self._fold(offset)}
        return {"data": {**notification.data, "offset": offset}}

    def correct(
        self, encoded: EncodedNotification, rejections: Mapping[Room, Rejection]
    ) -> list[EncodedNotification]:
        """Correct the notification of a piece; see :data:`~synap_realtime.broadcast.Correct`."""
        rejection = next(iter(rejections.values()))
        with self._lock:
            wires = self._corrected(json.loads(encoded.body), rejection)
        return [encode_wire(encoded.rooms, wire) for wire in wires]

    def _corrected(self, wire: dict[str, Any], rejection: Rejection) -> list[dict[str, Any]]:
        fold = wire.get("fold")
        if fold is None or self._state is TextState.STOPPED:
            return []
        start = fold["offset"]
        end = start + len(wire["data"]["delta"])
        if rejection.code in _UNFOLDABLE:
            self._unfold()
        if self._state is TextState.PLAIN:
            del wire["fold"]
            wire["data"]["offset"] = start
            return [wire]
        if rejection == REPEATED and (start > 0 or wire["id"] in self._resent_ids):
            return []  # else another execution may have begun with the same words, and written more
        if rejection.code not in (REPEATED.code, "offset_mismatch", "stale_attempt"):
            return []
        is_covered = end <= self._resent_to and wire["id"] not in self._resent_ids
        if is_covered or fold["attempt"] != self._fence:
            return [{**wire, "fold": self._fold(start)}]  # after what is sent again, it fits
        if rejection.code == "offset_mismatch" and start > 0 and (rejection.offset or 0) < start:
            return self._resend(wire, rejection.offset or 0)  # the server has lost a part
        # The text of another execution: of one before this one, unless it came after our beginning.
        is_later = rejection.code == "stale_attempt" and start > 0
        fence = max(self._fence, rejection.attempt or 0) + 1
        has_ended = rejection.code == "stale_attempt" and (rejection.attempt or 0) <= self._fence
        if is_later or has_ended or fence > self._last_fence:
            self._state = TextState.STOPPED
            self._pieces.clear()
            return []
        self._fence = fence
        return self._resend(wire, 0)

    def _resend(self, wire: dict[str, Any], start: int) -> list[dict[str, Any]]:
        """Return notifications with all of the text from an offset on.

        That includes the pieces that follow, which are recognized as repeated then: by chance, some
        of them may have fitted into the text of another execution.
        """
        text = "".join(self._pieces)
        self._pieces = [text]
        self._resent_to = self._length
        self._resent_ids.clear()
        wires = []
        for offset in range(start, self._length, MAX_RESENT):
            data = {**wire["data"], "delta": text[offset : offset + MAX_RESENT]}
            if offset == 0:
                data["index"] = 0
            id = uuid.uuid4().hex  # subscribers may have seen the piece, but not this one
            self._resent_ids.add(id)
            wires.append({**wire, "id": id, "data": data, "fold": self._fold(offset)})
        return wires

    def _fold(self, offset: int) -> dict[str, Any]:
        return {"key": self._key, "mode": "append", "offset": offset, "attempt": self._fence}

    def _unfold(self) -> None:
        if self._state is TextState.FOLDED:
            self._state = TextState.PLAIN
            self._pieces.clear()


class EventMembers:
    """The members ``job`` and ``fold`` of a run's other notifications.

    Attributes:
        reports_progress: false once a later attempt of the run has reported progress.
    """

    def __init__(self) -> None:
        self.reports_progress = True
        self._folds = True
        self._is_known = True  # servers may reject members that they do not know

    def complete(
        self, notification: Notification, members: dict[str, Any], user_id: str | None
    ) -> Notification:
        """Return a copy with further members, and without those that the server rejects.

        Args:
            user_id: the recipient, for the member ``job``.
        """
        if (job := notification.job) is not None and user_id is not None:
            members["job"] = {**job, "userId": user_id}
        completed = notification.model_copy(update=members)
        if job is not None and not (self._folds and self._is_known):
            extra = completed.model_extra or {}
            extra.pop("fold", None)
            if not self._is_known:
                extra.pop("job", None)
        return completed

    def correct(
        self, encoded: EncodedNotification, rejections: Mapping[Room, Rejection]
    ) -> list[EncodedNotification]:
        """Correct a notification; see :data:`~synap_realtime.broadcast.Correct`."""
        wire = json.loads(encoded.body)
        rooms = []
        for room, rejection in rejections.items():
            if rejection.code == "stale_attempt":
                self.reports_progress = False
            elif rejection.code in _UNFOLDABLE and ("fold" in wire or "job" in wire):
                self._folds = False
                self._is_known &= rejection.code != "invalid_request"
                rooms.append(room)
        if not rooms:
            return []
        if not self._is_known:
            wire.pop("job", None)
        wire.pop("fold", None)
        return [encode_wire(tuple(rooms), wire)]


def encode_wire(rooms: Sequence[Room], wire: dict[str, Any]) -> EncodedNotification:
    """Encode a notification that was corrected."""
    return EncodedNotification(tuple(rooms), wire["id"], encode_json("data", wire))
