"""Stores written by an application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server import create_app
from synap_realtime.server.stores.base import Page, Publication, PublishResult
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S


class TimedStore(MemoryStore):
    """Uses ``asyncio.timeout`` before its first wait, which needs a current task."""

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        async with asyncio.timeout(TIMEOUT_S):
            return await super().publish(publications)

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        async with asyncio.timeout(TIMEOUT_S):
            return await super().read(room, after, limit)


@pytest.mark.parametrize("path", ["/rooms/user_1/broadcast", "/broadcast"])
async def test_custom_store_may_use_asyncio_timeout(front: Front, path: str) -> None:
    notification = {"type": "a", "data": {}}
    body = {"notifications": [{**notification, "rooms": ["user_1"]}]}
    async with front(create_app(store=TimedStore())) as url, httpx.AsyncClient() as client:
        sent = body if path == "/broadcast" else notification
        answer = await client.post(url + path, json=sent)
        assert (answer.status_code, answer.json()["success"]) == (200, True)
        history = await client.get(f"{url}/rooms/user_1/history")
        assert len(history.json()["notifications"]) == 1


class PlainStore:
    """Keeps logs, and no records of jobs."""

    def __init__(self) -> None:
        self._logs = store = MemoryStore()
        self.description = "a plain store"
        self.earliest, self.head, self.read = store.earliest, store.head, store.read
        self.publish, self.subscribe = store.publish, store.subscribe
        self.join, self.leave = store.join, store.leave
        self.get_ack, self.ack = store.get_ack, store.ack
        self.register_device = store.register_device
        self.check, self.usage, self.close = store.check, store.usage, store.close


async def test_custom_store_without_jobs_answers_404(front: Front) -> None:
    job = {"event": "started", "name": "a", "runId": "r1"}
    notification = {"type": "a.started", "data": {}, "requestId": "q1", "job": job}
    async with front(create_app(store=PlainStore())) as url, httpx.AsyncClient() as client:
        sent = await client.post(f"{url}/rooms/request_q1/broadcast", json=notification)
        assert sent.status_code == 200, "the notification is stored and delivered as others are"
        for path in ("/jobs/q1", "/users/1/jobs"):
            response = await client.get(url + path)
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
            assert "keeps no records" in response.json()["details"]
