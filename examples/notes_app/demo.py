"""Run everything in one process: the room server, Inngest (embedded), the app. Ctrl-C stops it.

::

    $ scripts/demo
    room server   http://127.0.0.1:8787
    inngest       http://127.0.0.1:8288 (embedded: not durable, for one machine)
    notes app     http://127.0.0.1:8000

    Open http://127.0.0.1:8000. Ctrl-C stops it.

Notes, files and the rooms with the list of jobs are in the folder ``.demo`` (``NOTES_DATA``), so
the page shows them again after a restart. Remove the folder to begin anew. A job that runs when the
demo stops does not continue, because the embedded Inngest is not durable.

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
from synap_realtime.integrations.inngest.local import Backoff, LocalInngest
from synap_realtime.server import create_app as create_room_server
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server, until_stopped

from .app import create_app
from .config import DATA, Config
from .once import do_each_once


@asynccontextmanager
async def started(config: Config) -> AsyncGenerator[Config]:
    """Start all parts; yield their addresses. An ``INNGEST_DEV`` address replaces the embedded
    Inngest.
    """
    external = inngest_dev()
    DATA.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        if config.room_server is not None:
            rooms = config.room_server
            say("room server", f"{rooms} (from NOTES_REALTIME_URL)")
        else:
            server = create_room_server(load_settings(store=config.store))
            rooms = await stack.enter_async_context(running_server(server, port=free_port(8787)))
            say("room server", rooms)
        app_port = free_port(config.app_port)
        config = replace(config, realtime_url=rooms, app_url=f"http://127.0.0.1:{app_port}")
        if external is not None:
            config = replace(config, inngest_url=external)
            say("inngest", f"{config.inngest_url} (from INNGEST_DEV)")
            await stack.enter_async_context(running_server(create_app(config), port=app_port))
            await register(config.app_url)
        else:
            visible = Backoff(first_s=1, longest_s=3)  # long enough to see a job's retries
            local = LocalInngest([f"{config.app_url}/api/inngest"], backoff=visible)
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
