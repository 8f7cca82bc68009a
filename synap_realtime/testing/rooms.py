"""An in-memory room server for publishers. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import uuid_utils

from ..errors import InvalidArgumentError
from ..protocol.folding import MAX_ATTEMPT, Fold, parse_fold
from ..protocol.job_state import JobEvent, JobRecord, fold_job, parse_job, text_key
from ..protocol.notification import (
    MAX_BATCH_BYTES,
    MAX_NOTIFICATION_BYTES,
    Notification,
    encode_json,
    parse_notification,
)
from ..protocol.rooms import Room, parse_room


@dataclass(frozen=True, slots=True)
class SentNotification:
    """A broadcast notification, and the rooms that have it."""

    notification: Notification
    rooms: list[Room] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.notification.id)

    @property
    def type(self) -> str:
        return self.notification.type

    @property
    def status(self) -> str | None:
        return self.notification.status

    @property
    def data(self) -> dict[str, Any]:
        return self.notification.data

    @property
    def run_id(self) -> str | None:
        """The id of the run that it reports."""
        if self.id.endswith(":ended"):
            return self.id.removesuffix(":ended")
        run_id = self.data.get("runId")
        return run_id if isinstance(run_id, str) else None

    @property
    def is_terminal(self) -> bool:
        return self.status in ("success", "error")


@dataclass(slots=True)
class _Key:
    """What a room has of a fold key."""

    attempt: int
    text: str = ""


class FakeRoomServer:
    """Stores published notifications, each id once for a room, in order.

    Those with ``fold`` are kept, too, so that a test sees each of them. But a write that a server
    rejects with 409, because of its attempt or its offset, is rejected here as well.
    """

    def __init__(self) -> None:
        self.sent: list[SentNotification] = []
        self.arrivals: list[Notification] = []
        self._by_id: dict[str, SentNotification] = {}
        self._keys: dict[tuple[Room, str], _Key] = {}
        self._jobs: dict[tuple[Room, str], JobRecord] = {}

    def text(self, room: Room, key: str) -> str | None:
        """Return the text of a fold key; None if there is none."""
        kept = self._keys.get((room, key))
        return None if kept is None else kept.text

    def last_job(self, room: Room) -> JobRecord | None:
        """Return the record of the job that was reported last in a room; None if there is none."""
        found = [record for (each, _), record in self._jobs.items() if each == room]
        if not found:
            return None
        return found[-1].with_text(self.text(room, text_key(found[-1].run_id)))

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the response to a ``POST``."""
        try:
            value = json.loads(body)
            match path.strip("/").split("/")[-3:]:
                case [*_, "rooms", room, "broadcast"]:
                    return 200, {**self._publish(value, [unquote(room)]), "message": "recorded"}
                case [*_, "broadcast"]:
                    if len(body) > MAX_BATCH_BYTES:
                        return 413, _error(
                            "payload_too_large",
                            "Too large",
                            f"a batch has at most {MAX_BATCH_BYTES} bytes",
                        )
                    results = [self._one_of_a_batch(each) for each in value["notifications"]]
                    success = all(result["success"] for result in results)
                    return 200, {"success": success, "results": results}
        except (InvalidArgumentError, ValueError, KeyError, TypeError) as error:
            return 400, _error("invalid_request", "Invalid message format", str(error))
        return 404, _error("not_found", "Not found", path)

    def _one_of_a_batch(self, value: dict[str, Any]) -> dict[str, Any]:
        try:
            rest = {name: member for name, member in value.items() if name != "rooms"}
            return self._publish(rest, value["rooms"])
        except InvalidArgumentError as error:
            return {
                "success": False,
                **_error("invalid_request", "Invalid message format", str(error)),
            }

    def _publish(self, value: object, names: list[str]) -> dict[str, Any]:
        rooms = [parse_room(name) for name in names]
        notification = parse_notification(value)
        if len(encode_json("data", notification.to_wire())) > MAX_NOTIFICATION_BYTES:
            raise InvalidArgumentError(
                "data", f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes"
            )
        if notification.id is None:
            notification = notification.model_copy(update={"id": str(uuid_utils.uuid7())})
        self.arrivals.append(notification)
        id = str(notification.id)
        fold = (notification.model_extra or {}).get("fold")
        if fold is not None:
            rejected = self._fold(rooms, id, parse_fold(fold, notification.data))
            if rejected is not None:
                return rejected
        self._apply_job(rooms, id, notification)
        if (sent := self._by_id.get(id)) is None:
            sent = self._by_id[id] = SentNotification(notification)
            self.sent.append(sent)
        duplicate = all(room in sent.rooms for room in rooms)
        sent.rooms.extend(room for room in rooms if room not in sent.rooms)
        return {"success": True, "broadcastCount": 0, "id": id, "duplicate": duplicate}

    def _fold(self, rooms: list[Room], id: str, fold: Fold) -> dict[str, Any] | None:
        """Write to a key in each room. Return the result if one of them rejects it."""
        known = self._by_id.get(id)
        rejected: dict[Room, dict[str, Any]] = {}
        for room in rooms:
            if known is not None and room in known.rooms and fold.keeps_id:
                continue
            key = self._keys.get((room, fold.key))
            if key is not None and fold.attempt < key.attempt:
                body = _error("stale_attempt", "Conflict", f"the key has attempt {key.attempt}")
                rejected[room] = {**body, "attempt": key.attempt}
                continue
            text = key.text if key is not None and fold.attempt == key.attempt else ""
            offset = len(text) if fold.offset is None else fold.offset
            is_repeated = text[offset : offset + len(fold.piece)] == fold.piece
            if fold.mode == "append" and offset != len(text) and not is_repeated:
                body = _error("offset_mismatch", "Conflict", f"the text has length {len(text)}")
                rejected[room] = {**body, "offset": len(text), "attempt": fold.attempt}
                continue
            if offset == len(text):
                self._keys[room, fold.key] = _Key(fold.attempt, text + fold.piece)
        if not rejected:
            return None
        return {"success": False, **next(iter(rejected.values())), "rooms": rejected}

    def _apply_job(self, rooms: list[Room], id: str, notification: Notification) -> None:
        if notification.job is None:
            return
        event = parse_job(notification.job, notification.to_wire())
        known = self._by_id.get(id)
        for room in rooms:
            if known is None or room not in known.rooms:
                self._change_job(room, event)

    def _change_job(self, room: Room, event: JobEvent) -> None:
        place = room, event.job_id
        self._jobs[place] = fold_job(self._jobs.pop(place, None), event)
        if event.is_ending:
            for key in event.run_keys:
                if (kept := self._keys.get((room, key))) is not None:
                    kept.attempt = MAX_ATTEMPT


def _error(code: str, error: str, details: str) -> dict[str, Any]:
    return {"error": error, "details": details, "code": code}
