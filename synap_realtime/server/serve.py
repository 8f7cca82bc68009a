"""Front 2: the room server as a program of its own."""

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
from ..tokens import KEYGEN_COMMAND
from . import workers
from .asgi import RoomServer, create_app
from .config import ServerSettings, is_loopback
from .listeners import BACKLOG, authority, bind, port_of
from .logging import configure
from .node import Node
from .protocols.certificate import ReloadingCertificate, open_certificate
from .protocols.server import ConnectionServer
from .stores import check_shared, open_store
from .stores.base import ClusterStore

logger = logging.getLogger(__name__)

LINGER_S = 0.5
"""After draining, publishers on open connections still hear 503 for so long, not a reset."""

_RESERVED_FDS = 100  # the store's, the log's, and what the process has anyway

GRACE_S = 5
"""Of an app beside the room server, uvicorn ends what is still there after so long."""


@contextlib.asynccontextmanager
async def running_server(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 0,
    certificate: ReloadingCertificate | None = None,
    *,
    shares_port: bool = False,
) -> AsyncGenerator[str]:
    """Serve inside this event loop: a room server, or an ASGI app that stands beside it.

    Args:
        certificate: of a room server that speaks TLS; others do not.
        shares_port: other processes that say so, too, may listen there as well.

    Yields:
        Its address, ``http://127.0.0.1:8787`` or ``https://…``. Requests are taken from then on,
        and answered as soon as the app has started.

    Raises:
        ConfigurationError: the address cannot be had, or is open to others.
    """
    if not is_loopback(host) and not (isinstance(app, Node) and app.has_keys):
        raise ConfigurationError(
            f"--host (SYNAP_REALTIME_HOST): {host} would let every machine that reaches this one "
            f"publish and listen: this server has no keys. Make some with: "
            f"{KEYGEN_COMMAND} --out keys.toml, and give it --keys-file keys.toml; or use 127.0.0.1"
        )
    sockets = bind(host, port, shares_port=shares_port)
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://{authority(host, port_of(sockets))}"
    if not isinstance(app, Node):
        for each in sockets:
            each.listen(BACKLOG)  # connections wait there until the app has started
        async with _serve_with_uvicorn(app, sockets):
            yield url
        return
    front = ConnectionServer(app)
    front.listen(sockets, certificate)
    try:
        yield url
    finally:
        await front.stop()


@contextlib.asynccontextmanager
async def _serve_with_uvicorn(app: Any, sockets: list[socket.socket]) -> AsyncGenerator[None]:
    """An app that is none of ours, by uvicorn."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield  # who runs it says when it stops

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
class WorkerContext:
    """This process's part where several serve together.

    Attributes:
        worker: its number, from 1.
        port: that all of them listen on.
        ready: called when connections are taken.
        until_stopped: waits until the process is to end.
    """

    worker: int
    port: int
    ready: Callable[[], None]
    until_stopped: Callable[[], Coroutine[Any, Any, None]]


async def serve(settings: ServerSettings, share: WorkerContext | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the settings cannot work, or the port is taken.
    """
    certificate = open_certificate(settings.tls_cert, settings.tls_key)
    if share is None:
        app, port, wait = create_app(settings), settings.port, until_stopped
    else:
        app, port, wait = _create_worker_app(settings, share), share.port, share.until_stopped
    _raise_nofile_limit(settings)
    shares_port = share is not None
    async with running_server(
        app, settings.host, port, certificate, shares_port=shares_port
    ) as url:
        stopped = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it hears signals now: who reads the next lines may stop us
        logger.info("%s", app.description)
        logger.info("listening on %s", url)
        if share is None or share.worker == 1:
            _summarize(app, url)
        if share is not None:
            share.ready()
        await stopped
        logger.info("stopping")
        await app.drain()
        await asyncio.sleep(min(LINGER_S, settings.drain_timeout_s))
    logger.info("stopped")


def _summarize(app: RoomServer, url: str) -> None:
    """What an operator would look for first when something is refused."""
    logger.info("settings", extra=app.summary())
    if app.settings.admin:
        logger.info("operator's page: %s/admin", url)
    if app.has_keys and not app.settings.allowed_origins:
        logger.warning(
            "no browser origins are allowed: pages of other origins get 403; name them with "
            "--allowed-origins https://app.example.com (SYNAP_REALTIME_ALLOWED_ORIGINS)"
        )


def _create_worker_app(settings: ServerSettings, share: WorkerContext) -> RoomServer:
    """
    Raises:
        ConfigurationError: the store is not shared.
    """
    store = open_store(settings.store, settings.retention())
    if not isinstance(store, ClusterStore):
        raise ConfigurationError(
            f"--workers (SYNAP_REALTIME_WORKERS): the store of {settings.store} is not shared: it "
            "has no method subscribe, see synap_realtime.server.stores.base.ClusterStore"
        )
    return create_app(settings, store, worker=share.worker)


def _raise_nofile_limit(settings: ServerSettings) -> None:
    """Take as many descriptors as the system gives: each connection is one."""
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
            "this process may have %d open files, and --max-connections is %d: raise the one "
            "(ulimit -n, LimitNOFILE=) or lower the other",
            soft,
            settings.max_connections,
        )


def run(settings: ServerSettings, share: WorkerContext | None = None) -> None:
    """:func:`serve`, with logging and, where there is one, uvloop.

    Of several workers, this is the process that starts them, or with a ``share`` one of them.
    """
    if settings.workers > 1 and share is None:
        check_shared(settings.store)
        workers.run(settings)
        return
    configure(settings.log_level, settings.log_format, None if share is None else share.worker)
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        _tune_gc()
        runner.run(serve(settings, share))


def _tune_gc() -> None:
    """What lives as long as the server is not looked at again and again: with many notifications
    kept that would be a tenth of the time.

    The youngest generation is small, because the event loop stands still while it is collected:
    3 ms for 2,000 objects that are all garbage, and 60 ms for 40,000. The older ones are collected
    after a million and after 100 million objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 500, 100)
