"""Run all parts of the demo in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from ..errors import ConfigurationError
from ..integrations.inngest.local import Backoff, LocalInngest
from ..server import create_app as create_room_server
from ..server.config import load_settings
from ..server.serve import running_server, until_stopped
from .app import create_app
from .backend import OpenBackend, open_backend
from .config import APP_PORT, INNGEST_PORT, ROOM_SERVER_PORT, Config
from .once import do_each_once

Show = Callable[[str], None]


def run(
    *,
    show: Show,
    data: Path | None = None,
    port: int | None = None,
    room_server: str | None = None,
    once: bool = False,
    open_backend: OpenBackend = open_backend,
) -> int:
    """Run the demo until SIGINT or SIGTERM. Return the exit code.

    Args:
        show: prints a line.
        data: the folder to keep everything in. Default: a temporary one, removed at the end.
        port: of the page. Default: 8000, or another one if it is in use.
        room_server: the address of a room server that runs already. Default: an embedded one.
        once: run each of the five jobs, print their notifications, and stop.
        open_backend: opens the adapters for the database, the files and the replies.

    Raises:
        ConfigurationError: the port or the folder is in use or cannot be used, or a setting is
            invalid.
    """
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "WARNING" if once else "INFO"),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel("WARNING")
    with ExitStack() as stack:
        if data is None:
            data = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="synap-realtime-demo-"))
            )
        _make_writable(data)
        config = Config(data.absolute(), app_url=_local(_app_port(port)))
        return asyncio.run(_run(config, room_server, open_backend, show, once=once))


async def _run(
    config: Config, room_server: str | None, open_backend: OpenBackend, show: Show, *, once: bool
) -> int:
    async with started(config, room_server, open_backend, show) as config:
        if once:
            return await do_each_once(config.app_url, config.realtime_url, show)
        show(f"\nOpen {config.app_url}. Ctrl-C stops it.\n")
        await until_stopped()
        show("\nstopping")
        return 0


@asynccontextmanager
async def started(
    config: Config, room_server: str | None, open_backend: OpenBackend, show: Show
) -> AsyncGenerator[Config]:
    """Start all parts; yield their addresses.

    The address in ``INNGEST_DEV`` replaces the embedded Inngest server.
    """

    def say(part: str, what: str) -> None:
        show(f"{part:<13} {what}")

    external = inngest_dev()
    app_port = int(config.app_url.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        if room_server is not None:
            config = replace(config, realtime_url=room_server.rstrip("/"))
            say("room server", f"{config.realtime_url} (not started here)")
        else:
            store = os.environ.get("SYNAP_REALTIME_STORE") or f"sqlite:///{config.data}/rooms.db"
            server = create_room_server(load_settings(store=store))
            if server.node.has_keys:
                raise ConfigurationError(
                    "the demo's room server has no keys, but the environment sets some: unset "
                    "SYNAP_REALTIME_KEYS_FILE, SYNAP_REALTIME_TOKEN_SECRETS, "
                    "SYNAP_REALTIME_API_KEYS and SYNAP_REALTIME_JWKS_URLS"
                )
            port = free_port(ROOM_SERVER_PORT)
            rooms = await stack.enter_async_context(running_server(server, port=port))
            config = replace(config, realtime_url=rooms)
            say("room server", rooms)
        backend = await stack.enter_async_context(open_backend(config))
        if external is not None:
            config = replace(config, inngest_url=external)
            say("inngest", f"{config.inngest_url} (from INNGEST_DEV)")
            app = create_app(config, backend)
            await stack.enter_async_context(running_server(app, port=app_port))
            await register(config.app_url)
        else:
            visible = Backoff(first_s=1, longest_s=3)  # long enough to see a job's retries
            local = LocalInngest([f"{config.app_url}/api/inngest"], backoff=visible)
            port = free_port(INNGEST_PORT)
            url = await stack.enter_async_context(running_server(local, port=port))
            config = replace(config, inngest_url=url)
            say("inngest", f"{url} (embedded: not durable, for one machine)")
            app = create_app(config, backend)
            await stack.enter_async_context(running_server(app, port=app_port))
            async with asyncio.timeout(30):
                await local.registered()
        say("notes app", config.app_url)
        yield config


def _make_writable(folder: Path) -> None:
    """Make the folder if there is none, and try to write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"cannot write to {folder}: {error.strerror}"
        raise ConfigurationError(f"--data: {problem}; name another folder") from error


def inngest_dev() -> str | None:
    """Return the Inngest server of ``INNGEST_DEV``: a URL, or 1 for the Dev Server's default."""
    value = os.environ.get("INNGEST_DEV", "").rstrip("/")
    if value in ("", "0", "false"):
        return None
    return value if value.startswith("http") else _local(INNGEST_PORT)


async def register(app_url: str) -> None:
    """Request the app to register its functions with its Inngest server.

    Raises:
        ConfigurationError: the Inngest server refused, or cannot be reached.
    """
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.put(f"{app_url}/api/inngest")
    if not response.is_success:
        raise ConfigurationError(f"INNGEST_DEV: registering the app failed: {response.text}")


def free_port(wanted: int) -> int:
    """Return this port if it is free, else another free one.

    Raises:
        ConfigurationError: no port is free.
    """
    for port in (wanted, 0):
        if (found := _bound(port)) is not None:
            return found
    raise ConfigurationError("no free port on 127.0.0.1")


def _app_port(wanted: int | None) -> int:
    if wanted is None:
        return free_port(APP_PORT)
    if (found := _bound(wanted)) is None:
        raise ConfigurationError(
            f"--port: {wanted} is in use, or may not be used; name another one, or 0 for a free one"
        )
    return found


def _bound(port: int) -> int | None:
    """Return the port that the system binds, or None if it cannot."""
    try:
        with socket.create_server(("127.0.0.1", port)) as listener:
            return int(listener.getsockname()[1])
    except OSError:
        return None


def _local(port: int) -> str:
    return f"http://127.0.0.1:{port}"
