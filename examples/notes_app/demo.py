"""Run everything in one process: the room server, Inngest (embedded), the app. Ctrl-C stops it.

::

    $ scripts/demo
    room server   http://127.0.0.1:8787
    inngest       http://127.0.0.1:8288 (embedded: not durable, for one machine)
    notes app     http://127.0.0.1:8000

    Open http://127.0.0.1:8000. Ctrl-C stops it.

``--once`` needs no browser: it runs each of the five jobs as a user would, and prints the
notifications.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx

from synap_realtime import ConfigurationError
from synap_realtime.integrations.inngest.local import LocalInngest
from synap_realtime.server import create_app as create_room_server
from synap_realtime.server.serve import running_server, until_stopped

from .app import create_app
from .config import Config
from .once import do_each_once


@asynccontextmanager
async def started(config: Config) -> AsyncGenerator[Config]:
    """Start all parts; yield their addresses. An ``INNGEST_DEV`` address replaces the embedded
    Inngest.
    """
    external = inngest_dev()
    async with AsyncExitStack() as stack:
        rooms = await stack.enter_async_context(
            running_server(create_room_server(), port=free_port(8787))
        )
        say("room server", rooms)
        app_port = free_port(8000)
        config = replace(config, realtime_url=rooms, app_url=f"http://127.0.0.1:{app_port}")
        if external is not None:
            config = replace(config, inngest_url=external)
            say("inngest", f"{config.inngest_url} (from INNGEST_DEV)")
            await stack.enter_async_context(running_server(create_app(config), port=app_port))
            await register(config.app_url)
        else:
            local = LocalInngest([f"{config.app_url}/api/inngest"])
            url = await stack.enter_async_context(running_server(local, port=free_port(8288)))
            config = replace(config, inngest_url=url)
            say("inngest", f"{url} (embedded: not durable, for one machine)")
            await stack.enter_async_context(running_server(create_app(config), port=app_port))
            async with asyncio.timeout(30):
                await local.registered()
        say("notes app", config.app_url)
        yield config


def inngest_dev() -> str | None:
    """Return the Inngest server of ``INNGEST_DEV``: a URL, or 1 for the Dev Server's default."""
    value = os.environ.get("INNGEST_DEV", "").rstrip("/")
    if value in ("", "0", "false"):
        return None
    return value if value.startswith("http") else "http://127.0.0.1:8288"


async def register(app_url: str) -> None:
    """Request the app to register its functions with its Inngest server."""
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.put(f"{app_url}/api/inngest")
    if not response.is_success:
        raise ConfigurationError(f"INNGEST_DEV: registering the app failed: {response.text}")


def free_port(wanted: int) -> int:
    """Return this port if it is free, else another free one."""
    for port in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            continue
    raise ConfigurationError("no free port on 127.0.0.1")


def say(part: str, what: str) -> None:
    print(f"{part:<13} {what}", flush=True)


async def main(once: bool) -> int:
    async with started(Config()) as config:
        if once:
            return await do_each_once(config.app_url, config.realtime_url)
        print(f"\nOpen {config.app_url}. Ctrl-C stops it.\n", flush=True)
        await until_stopped()
        print("\nstopping", flush=True)
        return 0


if __name__ == "__main__":
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "WARNING" if "--once" in sys.argv else "INFO"),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel("WARNING")
    if unknown := [argument for argument in sys.argv[1:] if argument != "--once"]:
        sys.exit(f"unknown argument {unknown[0]!r}; usage: scripts/demo [--once]")
    try:
        sys.exit(asyncio.run(main("--once" in sys.argv)))
    except ConfigurationError as error:
        sys.exit(f"demo: {error}")
