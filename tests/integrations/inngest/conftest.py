"""An app that serves Inngest functions, an Inngest server that runs them, and a room server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import fastapi
import httpx
import inngest
import inngest.fast_api
import pytest
import websockets

from synap_realtime import AsyncBroadcaster, BackgroundBroadcaster
from synap_realtime.integrations.inngest import create_function
from synap_realtime.integrations.inngest.local import LocalInngest
from synap_realtime.integrations.inngest.local.runs import Backoff
from synap_realtime.server.serve import running_server
from tests.support.servers import unfolded_app
from tests.support.timeouts import TIMEOUT_S


class Gate:
    """Stands before the app, and answers in its place while that is away."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.is_away: Callable[[str], bool] = lambda query: False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self.is_away(scope["query_string"].decode()):
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"restarting"})
        else:
            await self._app(scope, receive, send)


@dataclass
class Stage:
    """Everything, running."""

    client: inngest.Inngest
    server: LocalInngest
    inngest_url: str
    rooms_url: str
    broadcaster: BackgroundBroadcaster
    publisher: AsyncBroadcaster
    gate: Gate
    _app: fastapi.FastAPI
    _app_url: str

    async def serve(self, *functions: inngest.Function[Any]) -> None:
        """Serve functions and register them."""
        inngest.fast_api.serve(self._app, self.client, list(functions))
        async with httpx.AsyncClient() as client:
            response = await client.put(f"{self._app_url}/api/inngest")
        assert response.is_success, response.text

    async def send(self, name: str, /, **data: Any) -> list[str]:
        return await self.client.send(inngest.Event(name=name, data=data))

    async def finish(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.server.idle()

    async def read_room(self, room: str) -> list[dict[str, Any]]:
        """All that a room's log holds: a mark is published, and the log read up to it."""
        mark = (await self.publisher.broadcast(room, {"type": "mark", "data": {}})).id
        url = f"{self.rooms_url.replace('http', 'ws')}/rooms/{room}/subscribe?after=earliest"
        messages: list[dict[str, Any]] = []
        async with websockets.connect(url) as ws:
            async for text in ws:
                message = json.loads(text)
                if message["id"] == mark:
                    break
                if message["type"] != "mark":
                    messages.append(message)
        return messages

    async def reported(self, user_id: str) -> list[str]:
        """The last words of the types that a user received, in order."""
        return [m["type"].rpartition(".")[2] for m in await self.read_room(f"user_{user_id}")]


@asynccontextmanager
async def staged(rooms: str | None = None) -> AsyncIterator[Stage]:
    """Serve everything.

    Args:
        rooms: the address of a room server. Default: one that folds nothing, so that each
            notification can be read.
    """
    async with AsyncExitStack() as stack:
        if rooms is None:
            rooms = await stack.enter_async_context(running_server(unfolded_app()))
        server = LocalInngest(backoff=Backoff(first_s=0.01, longest_s=0.02))
        url = await stack.enter_async_context(running_server(server))
        app = fastapi.FastAPI()
        gate = Gate(app)
        app_url = await stack.enter_async_context(running_server(gate))
        client = inngest.Inngest(
            app_id="app", is_production=False, api_base_url=url, event_api_base_url=url
        )
        broadcaster = await stack.enter_async_context(BackgroundBroadcaster(rooms))
        publisher = await stack.enter_async_context(AsyncBroadcaster(rooms))
        yield Stage(client, server, url, rooms, broadcaster, publisher, gate, app, app_url)
        client._http_client._http_client_sync.close()
        await client._http_client._http_client.aclose()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


def on(event: str, expression: str | None = None) -> inngest.TriggerEvent:
    return inngest.TriggerEvent(event=event, expression=expression)


async def until(condition: Callable[[], object]) -> None:
    """Wait until something that nobody announces is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await _tick()


async def _tick() -> None:
    await asyncio.sleep(0.01)


def reporting_function(
    stage: Stage, body: Any, fn_id: str = "f", **options: Any
) -> inngest.Function[Any]:
    """Return a function that reports to the stage's rooms."""
    return create_function(
        stage.client,
        job_type="report.creation",
        fn_id=fn_id,
        trigger=on(fn_id),
        broadcaster=stage.broadcaster,
        **options,
    )(body)
