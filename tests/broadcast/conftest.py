"""One suite over both clients: each test drives an ``AsyncBroadcaster`` and a ``Broadcaster``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from synap_realtime import AsyncBroadcaster, Broadcaster, BroadcastResult

Publish = Callable[..., BroadcastResult]


def publish_async(method: str, *args: Any, options: dict[str, Any], **kwargs: Any) -> Any:
    async def run() -> Any:
        async with AsyncBroadcaster(**options) as broadcaster:
            return await getattr(broadcaster, method)(*args, **kwargs)

    return asyncio.run(run())


def publish_sync(method: str, *args: Any, options: dict[str, Any], **kwargs: Any) -> Any:
    with Broadcaster(**options) as broadcaster:
        return getattr(broadcaster, method)(*args, **kwargs)


@pytest.fixture(params=[publish_async, publish_sync], ids=["async", "sync"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """Call a broadcaster's method: ``publish("broadcast_success", …, options={"url": …})``."""
    chosen: Publish = request.param
    return chosen


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait, but not for long: the policy's shape is tested, not its patience."""
    monkeypatch.setattr("synap_realtime.broadcast.retry.backoff_s", lambda *_: 0.001)
