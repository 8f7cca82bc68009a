"""Apps for tests, and the two ways to serve them: our own front, and an ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import uvicorn
from pydantic import SecretStr

from synap_realtime.server import RoomServer, create_app
from synap_realtime.server.auth import authorization
from synap_realtime.server.config import load_settings
from synap_realtime.server.protocols.writes import bound_buffers
from synap_realtime.server.serve import running_server
from tests.support.credentials import API_KEY, ORIGIN, SECRET
from tests.support.http_client import ask
from tests.support.polling import until

Front = Callable[[RoomServer], AbstractAsyncContextManager[str]]
"""Serves an app within ``async with``, which brings its address."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # they are pytest's


@asynccontextmanager
async def by_uvicorn(app: RoomServer, *, bounded: bool = False) -> AsyncIterator[str]:
    """As somebody serves it who has mounted it, and lets it drain before the host stops.

    Args:
        bounded: the system keeps little for a peer that does not read.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as where uvicorn makes it
    if bounded:
        bound_buffers(listener)
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            proxy_headers=bool(app.node.settings.trusted_proxies),
            forwarded_allow_ips=",".join(app.node.settings.trusted_proxies),
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await app.drain()
        server.should_exit = True
        await task
        listener.close()


FRONTS: dict[str, Front] = {"front": running_server, "asgi": by_uvicorn}


@asynccontextmanager
async def serving(
    front: Front, may: authorization.Authorizer | None = None, **options: Any
) -> AsyncIterator[str]:
    """Serve an app that requires the tests' credentials, and return its address."""
    settings = load_settings(
        token_secrets=(SecretStr(SECRET),),
        api_keys={"jobs": SecretStr(API_KEY)},
        allowed_origins=(ORIGIN,),
        **options,
    )
    async with front(create_app(settings, authorize=may)) as url:
        yield url


@asynccontextmanager
async def running_node(store: str, **options: Any) -> AsyncIterator[str]:
    """Serve a node that is ready and requires the tests' credentials. Yields its address."""
    async with running_server(keyed_app(store=store, allowed_origins=(ORIGIN,), **options)) as url:
        await until_ready(url)
        yield url


async def until_ready(url: str) -> None:
    """Wait until a node is ready."""

    async def is_ready() -> bool:
        return (await ask(url, "GET", "/ready")).status_code == 200

    await until(is_ready)


def open_app(**settings: Any) -> RoomServer:
    """Return an app without authentication, which drains immediately."""
    return create_app(load_settings(**{"drain_timeout_s": 0, **settings}))


def keyed_app(**options: Any) -> RoomServer:
    """Return an app that requires the tests' credentials, and drains immediately."""
    may = options.pop("may", None)
    settings = load_settings(
        token_secrets=(SecretStr(SECRET),),
        api_keys={"jobs": SecretStr(API_KEY)},
        drain_timeout_s=0,
        **options,
    )
    return create_app(settings, authorize=may)


def unfolded_app() -> RoomServer:
    """Return an app in whose rooms every notification stays, also one with ``fold``."""
    return open_app(store="tests.support.custom_stores:unfolded")
