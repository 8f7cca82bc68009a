"""Notifications: one-pass and two-pass validation agree, and both accept what the SDK sends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

from pydantic import SecretStr

from synap_realtime.broadcast import encoding
from synap_realtime.errors import InvalidArgumentError
from synap_realtime.protocol.cursor import parse_cursor
from synap_realtime.protocol.notification import MAX_NOTIFICATION_BYTES
from synap_realtime.protocol.rooms import user_room
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.http.publish import decode_notification, encode_notification
from synap_realtime.server.messages import Request, RequestError, Response, decode_json
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore

from ..target import Target, require

API_KEY = "fuzz-key-0123456789abcdef-0123456789"
ROOM = user_room("1")
BATCH = b"["
"""An input that begins so is the body of ``POST /broadcast``, behind it; else of one room's."""

_OWN = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z"
)


class NotificationTarget(Target):
    """The body of a publish: validated in one pass where that is possible, and in two."""

    name = "notification"
    max_bytes = 4096

    def __init__(self) -> None:
        settings = load_settings(
            api_keys={"fuzz": SecretStr(API_KEY)}, publishes_per_s=0, publish_bytes_per_s=0,
            requests_per_s=0, drain_timeout_s=0,
        )  # fmt: skip
        self._loop = asyncio.new_event_loop()
        self._store = MemoryStore(Retention(count=10, max_memory_bytes=1024 * 1024))
        self._app = create_app(settings, self._store)

    def check(self, data: bytes) -> None:
        if data.startswith(BATCH):
            response = self._post("/broadcast", data[1:])
            require(response.status in (200, 207, 400, 409, 413), f"{response.status} for a batch")
        else:
            self._check_passes(data)
            self._check_one(data)
            self._check_sdk(data)

    def _check_passes(self, data: bytes) -> None:
        one_pass = _outcome(lambda: decode_notification(data))
        two_passes = _outcome(lambda: (decode_json(data), False))
        require(one_pass == two_passes, f"{one_pass} is {two_passes}")

    def _check_one(self, data: bytes) -> None:
        response = self._post(f"/rooms/{ROOM}/broadcast", data)
        require(response.status in (200, 400, 409, 413), f"{response.status} for a notification")
        outcome = _outcome(lambda: decode_notification(data))
        require((response.status in (200, 409)) == isinstance(outcome, str), f"{outcome!r}")
        is_folded = isinstance(outcome, str) and '"fold":' in outcome  # see the target "rooms"
        if not is_folded and response.status == 200 and not json.loads(response.body)["duplicate"]:
            text = self._stored(response)
            begins = outcome[:-1] if isinstance(outcome, str) else ""  # the store adds members
            require(_comparable(text).startswith(begins), f"{outcome!r} is stored as {text!r}")
            self._check_stored(text)

    def _check_sdk(self, data: bytes) -> None:
        """What the SDK lets through, the server takes."""
        try:
            message = json.loads(data)
            if not isinstance(message, dict):
                return
            encoded = encoding.encode((ROOM,), encoding.normalize(message))
        except (ValueError, RecursionError, InvalidArgumentError):
            return
        response = self._post(f"/rooms/{ROOM}/broadcast", encoded.body)
        is_too_deep = b"recursion limit" in response.body
        require(
            response.status in (200, 409, 413) or is_too_deep,
            f"the server refuses what the SDK sends: {response.body!r}",
        )

    def _check_stored(self, text: str) -> None:
        """RFC 8259, and our bound."""
        value = json.loads(text, parse_constant=lambda word: require(False, word))
        require(isinstance(value.get("data"), dict), "data is an object")
        for name in ("id", "type", "timestamp"):
            require(isinstance(value.get(name), str), f"{name} is a string")
        require(not value["type"].startswith("synap."), "reserved types are the server's")
        require(len(text.encode()) <= MAX_NOTIFICATION_BYTES, "it is not too large")

    def _post(self, path: str, body: bytes) -> Response:
        headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
        request = Request("POST", path, "", headers, "127.0.0.1")
        request.content = body
        response = self._loop.run_until_complete(self._app.node.router.handle(request))
        assert isinstance(response, Response)
        return response

    def _stored(self, response: Response) -> str:
        """The notification that a response is about."""
        cursor = parse_cursor(json.loads(response.body)["cursor"])
        before = cursor._replace(offset=cursor.offset - 1)
        page = self._loop.run_until_complete(self._store.read(ROOM, before, 1))
        return page.entries[0].text

    def close(self) -> None:
        self._loop.run_until_complete(self._app.close())
        self._loop.close()


def _outcome(decode: Callable[[], tuple[object, bool]]) -> str | tuple[int, bytes]:
    """What is stored, without what the server makes itself, or the refusal: status and body."""
    try:
        value, is_checked = decode()
        return _comparable(encode_notification(value, None, is_checked=is_checked)[1])
    except RequestError as error:
        return error.response.status, error.response.body


def _comparable(text: str) -> str:
    return _OWN.sub("…", text)


TARGET = NotificationTarget
