"""Notifications: the fast way and the thorough one come to the same, and to what the SDK sends."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from pydantic import SecretStr

from synap_realtime.broadcast import requests
from synap_realtime.errors import InvalidArgumentError
from synap_realtime.protocol.cursor import parse_cursor
from synap_realtime.protocol.notification import MAX_NOTIFICATION_BYTES
from synap_realtime.protocol.rooms import user_room
from synap_realtime.server import create_app
from synap_realtime.server.auth import digest_of
from synap_realtime.server.http import Request, Response
from synap_realtime.server.settings import load_settings
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore

from ..target import Target, require

API_KEY = "fuzz-key-0123456789abcdef-0123456789"
ROOM = user_room("1")
BATCH = b"["
"""An input that begins so is the body of ``POST /broadcast``, behind it; else of one room's."""

_OWN = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.]+Z"
    r'|"cursor":"[^"]*"'
)


class NotificationTarget(Target):
    """The body of a publish. Two servers get the same: one in which the fast way is open, and one
    whose own rule (which allows all) closes it."""

    name = "notification"
    max_bytes = 4096

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._fast = self._loop.run_until_complete(_start(has_rule=False))
        self._thorough = self._loop.run_until_complete(_start(has_rule=True))

    def check(self, data: bytes) -> None:
        if data.startswith(BATCH):
            self._check_batch(data[1:])
        else:
            self._check_one(data)
            self._check_sdk(data)

    def _check_one(self, data: bytes) -> None:
        path = f"/rooms/{ROOM}/broadcast"
        thorough = self._run(self._thorough.post(path, data))
        fast = self._run(self._fast.publish_at_once(data))
        if fast is None:
            fast = self._run(self._fast.post(path, data))
        self._compare(fast, thorough)
        if thorough.status == 200 and not json.loads(thorough.content)["duplicate"]:
            text = self._run(self._fast.stored(fast))
            other = self._run(self._thorough.stored(thorough))
            require(_comparable(text) == _comparable(other), f"{text!r} is stored as {other!r}")
            self._check_stored(text)

    def _check_batch(self, data: bytes) -> None:
        fast = self._run(self._fast.post("/broadcast", data))
        self._compare(fast, self._run(self._thorough.post("/broadcast", data)))

    def _check_sdk(self, data: bytes) -> None:
        """What the SDK lets through, the server takes."""
        try:
            message = json.loads(data)
            if not isinstance(message, dict):
                return
            parcel = requests.pack((ROOM,), requests.prepare(message))
        except (ValueError, RecursionError, InvalidArgumentError):
            return
        path = f"/rooms/{ROOM}/broadcast"
        response = self._run(self._thorough.post(path, parcel.body))
        # Both stores must hold the same, or one evicts an id that the other still knows.
        self._compare(self._run(self._fast.post(path, parcel.body)), response)
        is_too_deep = b"recursion limit" in response.content
        require(
            response.status in (200, 413) or is_too_deep,
            f"the server refuses what the SDK sends: {response.content!r}",
        )

    def _compare(self, fast: Response, thorough: Response) -> None:
        require(fast.status == thorough.status, f"{fast.status} is {thorough.status}")
        require(fast.status in (200, 207, 400, 413), f"{fast.status} for a body")
        one, other = _comparable(fast.content.decode()), _comparable(thorough.content.decode())
        require(one == other, f"{one} is {other}")

    def _check_stored(self, text: str) -> None:
        """RFC 8259, and our bound."""
        value = json.loads(text, parse_constant=lambda word: require(False, word))
        require(isinstance(value.get("data"), dict), "data is an object")
        for name in ("id", "type", "timestamp"):
            require(isinstance(value.get(name), str), f"{name} is a string")
        require(not value["type"].startswith("synap."), "reserved types are the server's")
        require(len(text.encode()) <= MAX_NOTIFICATION_BYTES, "it is not too large")

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        for side in (self._fast, self._thorough):
            self._run(side.app.close())
        self._loop.close()


class _Side:
    def __init__(self, *, has_rule: bool) -> None:
        settings = load_settings(
            api_keys={"fuzz": SecretStr(API_KEY)}, publishes_per_s=0, publish_bytes_per_s=0,
            requests_per_s=0, drain_s=0,
        )  # fmt: skip
        self.store = MemoryStore(Retention(count=10, memory_bytes=1024 * 1024))
        self.app = create_app(settings, self.store, may=_allow if has_rule else None)

    async def post(self, path: str, body: bytes) -> Response:
        headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
        request = Request("POST", path, "", headers, "127.0.0.1")
        request.content = body
        response = await self.app.answer(request)
        assert isinstance(response, Response)
        return response

    async def publish_at_once(self, body: bytes) -> Response | None:
        """The same, if it can be done without waiting for anything."""
        return self.app.publish_at_once(ROOM, digest_of(API_KEY), body)

    async def stored(self, response: Response) -> str:
        """The notification that an answer is about."""
        cursor = parse_cursor(json.loads(response.content)["cursor"])
        page = await self.store.read(ROOM, cursor._replace(offset=cursor.offset - 1), 1)
        return page.entries[0].text


async def _start(*, has_rule: bool) -> _Side:
    return _Side(has_rule=has_rule)


async def _allow(*_: object) -> bool:
    return True


def _comparable(text: str) -> str:
    """Without what each server makes itself."""
    return _OWN.sub("…", text)


TARGET = NotificationTarget
