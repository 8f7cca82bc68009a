"""An in-memory room server for publishers. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import uuid_utils

from ..errors import InvalidArgumentError
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


class FakeRoomServer:
    """Stores published notifications, each id once for a room, in order."""

    def __init__(self) -> None:
        self.sent: list[SentNotification] = []
        self.arrivals: list[Notification] = []
        self._by_id: dict[str, SentNotification] = {}

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
        if (sent := self._by_id.get(id)) is None:
            sent = self._by_id[id] = SentNotification(notification)
            self.sent.append(sent)
        duplicate = all(room in sent.rooms for room in rooms)
        sent.rooms.extend(room for room in rooms if room not in sent.rooms)
        return {"success": True, "broadcastCount": 0, "id": id, "duplicate": duplicate}


def _error(code: str, error: str, details: str) -> dict[str, Any]:
    return {"error": error, "details": details, "code": code}
