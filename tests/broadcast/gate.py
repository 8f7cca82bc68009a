"""A room server that holds back its responses until the test releases them."""

from __future__ import annotations

import asyncio
import json
import queue
from concurrent.futures import Future
from typing import Any

import httpx

from synap_realtime.testing.rooms import FakeRoomServer
from tests.support.timeouts import TIMEOUT_S


class Held:
    """A request that has come and has no answer yet."""

    def __init__(self, gate: Gate, request: httpx.Request, body: bytes) -> None:
        self.path = request.url.path
        self.size = len(body)
        value = json.loads(body)
        self.items: list[dict[str, Any]] = value.get("notifications", [value])
        self.answer: Future[httpx.Response] = Future()
        self._gate = gate
        self._body = body

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]

    def accept(self, **results: dict[str, Any]) -> None:
        """Keep what came and say so, but of some ids say this."""
        status, content = self._gate.rooms.answer(self.path, self._body)
        for n, id in enumerate(self.ids):
            if id in results:
                content["results"][n] = results[id]
        self.answer.set_result(httpx.Response(status, json=content))

    def refuse(self, status: int, code: str | None = "no", **headers: str) -> None:
        content = {"error": "No", "details": "because"} | ({"code": code} if code else {})
        answer = httpx.Response(status, json=content, headers=headers)
        self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        self.answer.set_exception(error)


class Gate(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Hands the test each request that comes."""

    def __init__(self) -> None:
        self.rooms = FakeRoomServer()
        self.tasks = 0  # most that there were while a request was under way
        self._came: queue.Queue[Held] = queue.Queue()

    async def next(self) -> Held:
        return await asyncio.to_thread(self.next_now)

    def next_now(self) -> Held:
        return self._came.get(timeout=TIMEOUT_S)

    @property
    def is_quiet(self) -> bool:
        """Whether no request has come that the test has not seen."""
        return self._came.empty()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.tasks = max(self.tasks, len(asyncio.all_tasks()))
        held = Held(self, request, await request.aread())
        self._came.put(held)
        return await asyncio.wrap_future(held.answer)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        held = Held(self, request, request.read())
        self._came.put(held)
        return held.answer.result(10)
