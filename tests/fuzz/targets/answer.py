"""The SDK's response parser: ``broadcast_*`` returns a result for any response."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Sequence

import httpcore
import httpx

from synap_realtime import AsyncBroadcaster, Broadcaster
from synap_realtime.broadcast import BroadcastResult

from ..target import Target, chunks_of, require

MAX_GROWTH_BYTES = 64 * 1024 * 1024
"""Of the process' peak memory, by one response."""

DEADLINE_S = 0.05
"""Shorter than the first pause: one attempt for each response."""

URL = "http://127.0.0.1:1"
MESSAGE = {"type": "a", "data": {}, "id": "1"}


class _Transport(httpx.HTTPTransport):
    """httpx's transport over connections on which a server says the same each time."""

    def __init__(self) -> None:
        super().__init__(verify=False)
        self.chunks: Sequence[bytes] = ()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        backend = httpcore.MockBackend(list(self.chunks))
        self._pool = httpcore.ConnectionPool(network_backend=backend)
        return super().handle_request(request)


class _AsyncTransport(httpx.AsyncHTTPTransport):
    def __init__(self) -> None:
        super().__init__(verify=False)
        self.chunks: Sequence[bytes] = ()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        backend = httpcore.AsyncMockBackend(list(self.chunks))
        self._pool = httpcore.AsyncConnectionPool(network_backend=backend)
        return await super().handle_async_request(request)


class AnswerTarget(Target):
    """All bytes that a server sends on one connection; the sync and the async client read them."""

    name = "answer"
    max_bytes = 8 * 1024
    fixed_mutations = 20_000

    def __init__(self) -> None:
        for name in ("httpx", "httpcore", "synap_realtime.broadcast"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._sync = _Transport()
        self._async = _AsyncTransport()
        self._loop = asyncio.new_event_loop()

    def check(self, data: bytes) -> None:
        before = _peak_bytes()
        self._sync.chunks = self._async.chunks = chunks_of(data)
        with Broadcaster(URL, deadline_s=DEADLINE_S, transport=self._sync) as broadcaster:
            _check_result(broadcaster.broadcast("user_1", MESSAGE))
        _check_result(self._loop.run_until_complete(self._broadcast()))
        require(_peak_bytes() - before < MAX_GROWTH_BYTES, "a response takes bounded memory")

    async def _broadcast(self) -> BroadcastResult:
        async with AsyncBroadcaster(
            URL, deadline_s=DEADLINE_S, transport=self._async
        ) as broadcaster:
            result = await broadcaster.broadcast("user_1", MESSAGE)
        await asyncio.sleep(0)  # generators that were left are closed by the loop
        return result

    def close(self) -> None:
        self._loop.close()


def _check_result(result: object) -> None:
    require(isinstance(result, BroadcastResult), "there is a result")
    assert isinstance(result, BroadcastResult)
    require(result.success == (result.error is None), "a failure says why")
    require(len(result.error or "") < 4096, "a reason is short")


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


TARGET = AnswerTarget
