"""What the other nodes of a shared store write: messages, users of a room, answers to questions.

They may run another version, and one of them may be broken. The own node works on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.app import create_node
from synap_realtime.server.messages import Request, Response
from synap_realtime.server.stores.base import (
    Entry,
    Page,
    Retention,
    Survey,
    SurveyHandler,
    UserPresence,
)
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.redis.keys import KeySpace
from synap_realtime.server.stores.redis.live_rooms import LiveRooms
from synap_realtime.server.stores.redis.presence import SharedPresence
from synap_realtime.server.stores.redis.script import Script
from synap_realtime.server.stores.redis.scripts import JOIN, READ_PRESENCE, SEND
from synap_realtime.server.stores.redis.survey import RedisSurveys
from synap_realtime.server.stores.redis.tasks import Tasks

from ..memory_log import MemoryLog
from ..memory_transport import Loop
from ..target import Target, require
from .http import PATIENCE_S, RENEWED_AFTER, fuzz_settings, make_tokens

ROOM = Room("user_1")
KEYS = KeySpace("synap")
EPOCH = "e"
ANSWER = b"S"
"""An input that begins so is an answer of a node, behind it. Any other has a message a line."""

QUESTION_ID = b"ID"
"""Stands for the id of the question that is open."""

FIELD = b"\x1f"
"""Between the parts of a reply."""

LAST_DIGITS = b"9" * 4300
LAST_OFFSET = int(LAST_DIGITS)  # the greatest number that int() parses
TEXT = '{"id":"1","type":"a","data":{}}'
LINE_BYTES = 256
"""In the log, for each line of an input and some more."""

_ROUTES = ("/admin/state", "/admin/rooms/user_1", "/rooms/user_1/health", "/metrics")


class _Redis:
    """Confirms each subscription, and replies with what the input holds for it."""

    def __init__(self) -> None:
        self.presence: deque[list[bytes]] = deque()
        self.sent: list[bytes] = []

    def start(self) -> None: ...

    async def subscribe(self, channel: bytes) -> None: ...

    def unsubscribe(self, channel: bytes) -> None: ...

    def call(self, script: Script, keys: Sequence[bytes], *arguments: Any) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if script is READ_PRESENCE:
            fields = self.presence.popleft() if self.presence else []
            reply.set_result([EPOCH.encode(), b"1", 0, *fields[: len(fields) // 2 * 2]])
        elif script is JOIN:
            reply.set_result([(EPOCH.encode(), b"1")])
        else:
            if script is SEND:
                self.sent.append(arguments[0])
            reply.set_result(b"1")
        return reply


class _Node:
    """The parts of a node that read what others write."""

    def __init__(self, redis: _Redis) -> None:
        self.users: dict[str, UserPresence | None] = {}
        self.offsets: list[int] = []
        self.tasks = Tasks()
        self.rooms = LiveRooms(KEYS, "me", redis.call, self.tasks, self._read, lambda _: 1)
        self.presence = SharedPresence(KEYS, "me", redis.call, self.tasks)
        self.rooms.channels = self.presence.channels = redis
        self.rooms.subscribe(self._deliver, lambda _room, _position: None)
        self.surveys = RedisSurveys(KEYS, "me", redis.call, self._list_nodes)
        self.surveys.answer_by(lambda _question, arguments: {"seen": len(arguments)})
        keys = KEYS.of_room(ROOM)
        self.channels = {
            b"Q": KEYS.questions, b"A": KEYS.answers("me"), b"P": keys.presence, b"L": keys.log,
        }  # fmt: skip

    async def _read(self, room: Room, after: Cursor, limit: int) -> Page:
        return Page([], recovered=True)

    async def _list_nodes(self) -> set[str]:
        return {"me", "other"}

    def _deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        self.offsets.append(entry.cursor.offset)
        return 1

    def on_users(self, changed: Mapping[str, UserPresence | None]) -> None:
        for presence in changed.values():
            if presence is not None:
                json.dumps([presence.connections + 1, sorted(presence.devices)])
        self.users.update(changed)

    def receive(self, channel: bytes, payload: bytes) -> None:
        """As :class:`~synap_realtime.server.stores.redis.store.RedisStore` does it."""
        if (handle := self.surveys.channels.get(channel)) is not None:
            handle(payload)
        elif channel == self.channels[b"P"]:
            self.presence.on_message(channel, payload)
        else:
            self.rooms.on_message(channel, payload)


class _AnsweredStore(MemoryStore):
    """A store by which one other node answers each question with the same."""

    answer: Mapping[str, Any]

    def answer_surveys(self, handler: SurveyHandler) -> None: ...

    async def survey(self, question: str, arguments: Mapping[str, Any]) -> Survey:
        return Survey({"other": self.answer}, 1)


class NodesTarget(Target):
    """What is malformed is ignored, or read again; what follows is handled."""

    name = "nodes"
    fixed_mutations = 20_000

    def __init__(self) -> None:
        self._log = MemoryLog(logging.INFO)
        self._loop = Loop()
        self._inputs = 0
        self._token = make_tokens()[b"@ops@"].decode()
        self._start()
        self._tasks = len(asyncio.all_tasks(self._loop))

    def _start(self) -> None:
        self._store = _AnsweredStore(Retention(count=10, max_memory_bytes=1024 * 1024))
        self._asking = create_node(fuzz_settings(), self._store, worker=1)

    def check(self, data: bytes) -> None:
        self._inputs += 1
        if self._inputs % RENEWED_AFTER == 0:
            self._loop.run_until_complete(self._asking.close())
            self._start()
        if data.startswith(ANSWER):
            self._check_answer(data[1:])
        else:
            self._loop.run_until_complete(self._check_messages(data.split(b"\n")[:50]))
            self._loop.skip(PATIENCE_S)
        require(not self._loop.problems, f"the loop's exception handler: {self._loop.problems}")
        self._log.check(LINE_BYTES * (data.count(b"\n") + 10))

    def _check_answer(self, data: bytes) -> None:
        try:
            answer = from_json(data, allow_inf_nan=False)  # as RedisSurveys parses it
        except ValueError:
            return
        if not isinstance(answer, dict):
            return
        self._store.answer = answer
        headers = {"authorization": f"Bearer {self._token}"}
        for path in _ROUTES:
            request = Request("GET", path, "", headers, "127.0.0.1")
            response = self._loop.run_until_complete(self._asking.router.handle(request))
            assert isinstance(response, Response)
            require(response.status == 200, f"{path}: {response.status} {response.body!r}")

    async def _check_messages(self, lines: Sequence[bytes]) -> None:
        redis = _Redis()
        node = _Node(redis)
        await node.rooms.join(ROOM)
        node.presence.watch(ROOM, node.on_users)
        asking = asyncio.ensure_future(node.surveys.ask("state", {}))
        await _settle()
        id = json.loads(redis.sent[0])["id"].encode()
        for line in lines:
            kind, payload = line[:1], line[1:].replace(QUESTION_ID, id)
            if kind == b"H":
                redis.presence.append(payload.split(FIELD))
            elif kind in node.channels:
                node.receive(node.channels[kind], payload)
            await _settle()
        await self._check_works(node, redis, id)
        node.presence.unwatch(ROOM)
        node.rooms.leave(ROOM)
        node.rooms.close()
        await asking
        await node.tasks.wait()

    async def _check_works(self, node: _Node, redis: _Redis, id: bytes) -> None:
        """What is well-formed is handled, whatever came before."""
        redis.presence.clear()
        redis.presence.append([b"other:ann", b'[1,["phone"]]'])
        node.receive(node.channels[b"P"], b"0 %b other " % LAST_DIGITS)  # too long to announce
        await _settle()
        await asyncio.sleep(0)
        ann = node.users.get("ann")
        require(ann is not None and "phone" in ann.devices, f"{node.users}")
        epoch = EPOCH.encode()
        message = b"%b 0 %b x:4 %b" % (epoch, LAST_DIGITS, TEXT.encode())
        node.receive(node.channels[b"L"], message)
        require(node.offsets[-1:] == [LAST_OFFSET], f"{node.offsets[-3:]}")
        rising = all(a < b for a, b in zip(node.offsets, node.offsets[1:], strict=False))
        require(rising, f"{node.offsets}")
        node.receive(node.channels[b"A"], b'{"id":"%b","node":"other","answer":{"a":1}}' % id)

    def close(self) -> None:
        try:
            self._loop.run_until_complete(self._asking.close())
        finally:
            self._loop.close()
            self._log.close()


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


TARGET = NodesTarget
