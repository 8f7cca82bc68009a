"""Serve in this process, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..extras import needed_by
from ..loopback import is_loopback
from ..tokens import KEYGEN_COMMAND
from .app import Node, create_node, open_configured_store
from .asgi.adapter import RoomServer
from .config import ServerSettings
from .listeners import BACKLOG, authority, bind, port_of
from .logging.setup import configure
from .protocols.server import ConnectionServer
from .protocols.tls import ReloadingCertificate, open_certificate
from .stores.base import ClusterStore

logger = logging.getLogger(__name__)

LINGER_S = 0.5
"""After draining, publishers on open connections are answered 503 for this time, not reset."""

_RESERVED_FDS = 100  # of the store, the log, and the interpreter

GRACE_S = 5
"""The time after which uvicorn aborts the remaining connections of another ASGI app, in seconds."""


@contextlib.asynccontextmanager
async def running_server(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 0,
    certificate: ReloadingCertificate | None = None,
    *,
    shares_port: bool = False,
) -> AsyncGenerator[str]:
    """Serve a room server, or another ASGI app, inside this event loop.

    Args:
        app: a :class:`RoomServer` or a :class:`Node`; or another ASGI app, which uvicorn serves.
        certificate: makes a room server speak TLS; ignored for other apps.
        shares_port: other processes that set it, too, may listen on the same port.

    Yields:
        The URL, such as ``http://127.0.0.1:8787``. Connections are accepted from then on, and
        requests are answered as soon as the app has started.

    Raises:
        ConfigurationError: the address cannot be bound, or it is not a loopback address and the
            server has no keys.
    """
    node = app.node if isinstance(app, RoomServer) else app if isinstance(app, Node) else None
    if not is_loopback(host) and not (node is not None and node.has_keys):
        raise ConfigurationError(
            f"--host (SYNAP_REALTIME_HOST): {host!r} would let every machine that reaches this one "
            "publish and subscribe, because authentication is not configured. Create keys with: "
            f"{KEYGEN_COMMAND} --out keys.toml, and add --keys-file keys.toml; or use 127.0.0.1"
        )
    sockets = bind(host, port, shares_port=shares_port)
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://{authority(host, port_of(sockets))}"
    if node is None:
        for each in sockets:
            each.listen(BACKLOG)  # the kernel queues connections until the app has started
        async with _serve_with_uvicorn(app, sockets):
            yield url
        return
    server = ConnectionServer(node)
    server.listen(sockets, certificate)
    try:
        yield url
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def _serve_with_uvicorn(app: Any, sockets: list[socket.socket]) -> AsyncGenerator[None]:
    """Serve another ASGI app by uvicorn."""
    with needed_by("serving another ASGI app", "local"):
        import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield  # the caller decides when it stops

    server = Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    task = asyncio.create_task(server.serve(sockets=sockets))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        for each in sockets:
            each.close()


async def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One of several worker processes, seen from inside.

    Attributes:
        number: from 1.
        port: the port that all workers share.
        on_ready: called when the worker accepts connections.
        until_stopped: waits until the worker has to stop.
    """

    number: int
    port: int
    on_ready: Callable[[], None]
    until_stopped: Callable[[], Coroutine[Any, Any, None]]


async def serve(settings: ServerSettings, worker: WorkerProcess | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the settings are invalid, or the port is in use.
    """
    certificate = open_certificate(settings.tls_cert, settings.tls_key)
    if worker is None:
        node, port, wait = create_node(settings), settings.port, until_stopped
    else:
        node, port, wait = (
            _create_worker_node(settings, worker),
            worker.port,
            worker.until_stopped,
        )
    _raise_nofile_limit(settings)
    shares_port = worker is not None
    async with running_server(
        node, settings.host, port, certificate, shares_port=shares_port
    ) as url:
        stopped = asyncio.create_task(wait())
        await asyncio.sleep(0)  # install the signal handlers before readiness is logged
        logger.info("%s", node.description)
        logger.info("listening on %s", url)
        if worker is None or worker.number == 1:
            _summarize(node, url)
        if worker is not None:
            worker.on_ready()
        await stopped
        logger.info("stopping")
        await node.drain()
        await asyncio.sleep(min(LINGER_S, settings.drain_timeout_s))
    logger.info("stopped")


def _summarize(node: Node, url: str) -> None:
    """Log what an operator needs first when a request is rejected."""
    logger.info("settings", extra=node.summary())
    if node.settings.admin:
        logger.info("admin page: %s/admin", url)
    if node.has_keys and not node.settings.allowed_origins:
        logger.warning(
            "no browser origins are allowed: pages of other origins get 403; allow them with "
            "--allowed-origins https://app.example.com (SYNAP_REALTIME_ALLOWED_ORIGINS)"
        )


def _create_worker_node(settings: ServerSettings, worker: WorkerProcess) -> Node:
    """Create the node of a worker.

    Raises:
        ConfigurationError: processes cannot share the store.
    """
    store = open_configured_store(settings)
    if not isinstance(store, ClusterStore):
        raise ConfigurationError(
            f"--workers (SYNAP_REALTIME_WORKERS): workers cannot share the store {settings.store}: "
            "it has no attribute is_shared, see synap_realtime.server.ClusterStore"
        )
    return create_node(settings, store, worker=worker.number)


def _raise_nofile_limit(settings: ServerSettings) -> None:
    """Raise the limit of open files as far as needed: each connection is a descriptor."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    wanted = settings.max_connections + settings.max_pending_connections + _RESERVED_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != unlimited and soft < settings.max_connections:
        logger.warning(
            "open file limit (%d) is below --max-connections (%d): raise the limit (ulimit -n, "
            "LimitNOFILE=), or lower --max-connections",
            soft,
            settings.max_connections,
        )


def run(settings: ServerSettings, worker: WorkerProcess | None = None) -> None:
    """Configure logging and run :func:`serve`, on uvloop if it is installed.

    Args:
        worker: this process, if it is one of several; None if it serves alone.
    """
    configure(settings.log_level, settings.log_format, None if worker is None else worker.number)
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        _tune_gc()
        runner.run(serve(settings, worker))


def _tune_gc() -> None:
    """Configure the garbage collector for long-lived objects and short pauses.

    Objects from the start are frozen, and older generations are collected rarely: after a million
    and after 100 million objects. Scanning many retained notifications would take a tenth of the
    CPU time. The youngest generation is small, because its collection blocks the event loop: 3 ms
    for 2,000 objects that are all garbage, and 60 ms for 40,000.
    """
    gc.freeze()
    gc.set_threshold(2_000, 500, 100)
