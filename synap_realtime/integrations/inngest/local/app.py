"""The HTTP API of the embedded Inngest server: receive events, register apps, start runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ....errors import ConfigurationError
from ....loopback import LocalOnly
from . import events
from .addresses import AddressError, AppHosts
from .batches import Batches
from .bodies import JSON, MAX_EVENTS_BYTES, BodyError, ReplyError, exchange, read_body
from .events import Event
from .executor import Executor
from .invoker import FunctionInvoker
from .registry import RegistrationError, Registry
from .runs import Backoff

logger = logging.getLogger(__name__)

MAX_EVENTS = 5000
"""Maximum number of events in one request."""

MAX_UNFINISHED = 10_000
"""Maximum number of unfinished runs and batched events. Above it, events are rejected."""

_SEEN_S = 24 * 3600
_SEEN_COUNT = 100_000
_CALL_TIMEOUT_S = 3600.0


class LocalInngest:
    """An Inngest server inside your process: an ASGI app that also runs functions.

    ::

        inngest_server = LocalInngest(apps=["http://127.0.0.1:8000/api/inngest"])
        uvicorn.run(inngest_server, port=8288)

    It is not durable and serves one machine: events and runs end with the process. It supports
    ``step.run``, ``step.sleep``, ``step.send_event``, ``step.wait_for_event``, ``step.invoke``,
    parallel groups, retries, ``on_failure``, ``batch_events``, ``cancel`` and ``timeouts``. An
    unsupported operation fails the run with an error that names it. Runs start immediately, so a
    start timeout is never exceeded.
    """

    def __init__(
        self,
        apps: Sequence[str] = (),
        *,
        backoff: Backoff | None = None,
        client: httpx.AsyncClient | None = None,
        app_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        """Create a server; it runs inside ``async with`` (or an ASGI lifespan).

        Args:
            apps: addresses at which apps serve Inngest; each is requested to register its
                functions.
            backoff: delays between attempts, short by default.
            client: the HTTP client that calls apps.
            app_hosts: hosts, without a port, at which apps may be served, in addition to this
                machine and the hosts of ``apps``. Any app registered there receives its events.
            allowed_origins: origins of pages that may send requests, such as
                ``http://127.0.0.1:3000``; their hosts are allowed in ``Host``. Default: none,
                because otherwise the page of any site could send events through a browser on this
                machine.

        Raises:
            ConfigurationError: an address of ``apps`` or a host of ``app_hosts`` is invalid.
        """
        self._apps = tuple(apps)
        try:
            self._hosts = AppHosts(app_hosts)
        except AddressError as error:
            raise ConfigurationError(f"app_hosts: {error}") from None
        self._registry = Registry(self._hosts)
        # Never use the environment's proxy for loopback.
        self._client = client or httpx.AsyncClient(timeout=_CALL_TIMEOUT_S, trust_env=False)
        self._owns_client = client is None
        caller = FunctionInvoker(self._client, self._registry.register_worker)
        self._executor = Executor(caller, self._publish, self._registry.get, backoff or Backoff())
        self._batches = Batches(self._executor.start)
        self._registering: asyncio.Task[None] | None = None
        self._registered = asyncio.Event()
        self._seen: OrderedDict[str, float] = OrderedDict()
        for url in self._apps:
            self._allow(url)
        app = Starlette(
            routes=[
                Route("/e/{key}", self._receive_events, methods=["POST"]),
                Route("/fn/register", self._register, methods=["POST"]),
                Route("/v1/runs/{run_id}", self._cancel, methods=["DELETE"]),
                Route("/health", self._health),
                *caller.routes,
            ],
            lifespan=self._lifespan,
            exception_handlers={BodyError: _refuse_body},
        )
        self._asgi = LocalOnly(app, name="LocalInngest", allowed_origins=allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._asgi(scope, receive, send)

    async def __aenter__(self) -> Self:
        logger.info("LocalInngest: for one machine, not durable; runs end with this process")
        self._registering = asyncio.create_task(self._register_apps())
        return self

    async def __aexit__(self, *_: object) -> None:
        if lost := self._batches.clear():
            logger.warning("LocalInngest stopped: %d events of unfinished batches lost", lost)
        if lost := len(self._executor):
            logger.warning("LocalInngest stopped: %d unfinished runs lost", lost)
        await self._executor.stop()
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.gather(self._registering, return_exceptions=True)
        if self._owns_client:
            await self._client.aclose()

    async def registered(self) -> None:
        """Wait until every app of ``apps`` has registered its functions."""
        await self._registered.wait()

    async def _register_apps(self) -> None:
        await asyncio.gather(*(self.register(url) for url in self._apps))
        self._registered.set()

    async def register(self, url: str) -> None:
        """Request the app at this address to register its functions, until it has."""
        self._allow(url)
        has_warned = False
        while (problem := await self._ask_to_register(url)) is not None:
            if not has_warned:
                logger.info("waiting for the app at %s to register: %s", url, problem)
            has_warned = True
            await asyncio.sleep(0.1)

    def _allow(self, url: str) -> None:
        try:
            self._hosts.allow(url)
        except AddressError as error:
            raise ConfigurationError(f"apps: {error}") from None

    async def _ask_to_register(self, url: str) -> str | None:
        """Make one registration attempt; return the error, or None on success."""
        headers = {"X-Inngest-Server-Kind": "dev"}
        try:
            reply = await exchange(self._client, "PUT", url, headers=headers, timeout=5.0)
        except (httpx.RequestError, ReplyError) as error:
            return repr(error)
        return None if reply.status in range(200, 300) else f"{reply.status} {reply.text[:200]}"

    async def cancel(self, run_id: str) -> bool:
        """Cancel a run and publish ``inngest/function.cancelled``."""
        return await self._executor.cancel(run_id)

    async def idle(self) -> None:
        """Wait until no run is active and no event is batched, for tests."""
        while True:
            await self._batches.all_started()
            await self._executor.idle()
            if not self._batches and not self._executor:
                return

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        async with self:
            yield

    async def _receive_events(self, request: Request) -> JSONResponse:
        body = await read_body(request, JSON, MAX_EVENTS_BYTES)
        if len(self._executor) + self._batches.waiting >= MAX_UNFINISHED:
            return _error(429, f"{MAX_UNFINISHED} runs are unfinished; retry when some have ended")
        try:
            given = json.loads(body)
            sent = [events.read(item) for item in (given if isinstance(given, list) else [given])]
        except events.EventError as error:
            return _error(400, str(error))
        except (ValueError, RecursionError) as error:
            return _error(400, f"not an event: {error}")
        if len(sent) > MAX_EVENTS:
            return _error(413, f"a request has at most {MAX_EVENTS} events")
        # After a lost response, the SDK repeats the request with the same seed: it has the same
        # events.
        if seed := request.headers.get("x-inngest-event-id-seed"):
            sent = [{"id": f"{seed}:{n}", **event} for n, event in enumerate(sent)]
        ids = [self._publish(event) for event in sent]
        return JSONResponse({"ids": ids, "status": 200})

    async def _register(self, request: Request) -> JSONResponse:
        try:
            body = await read_body(request, JSON, MAX_EVENTS_BYTES)
            name, count = self._registry.register(json.loads(body))
        except (ValueError, RecursionError, RegistrationError) as error:
            return _error(400, str(error))
        logger.info("app %s registered %d functions", name, count)
        return JSONResponse({"ok": True, "modified": True})

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": 200, "message": "OK"})

    async def _cancel(self, request: Request) -> Response:
        await self.cancel(request.path_params["run_id"])
        return Response()

    def _publish(self, event: Event) -> str:
        """Publish an event to functions and waiting steps. A duplicate id is ignored."""
        event = events.complete(event)
        id = str(event["id"])
        if self._is_seen(id):
            return id
        self._executor.offer(event)
        for function in self._registry.triggered_by(event):
            if function.batching is None:
                self._executor.start(function, [event])
            else:
                self._batches.add(function, function.batching, event)
        return id

    def _is_seen(self, id: str) -> bool:
        if len(id) > 64:  # limits the length of ids, too, not only their number
            id = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()
        now = time.monotonic()
        while self._seen and (
            len(self._seen) > _SEEN_COUNT or next(iter(self._seen.values())) < now - _SEEN_S
        ):
            self._seen.popitem(last=False)
        return self._seen.setdefault(id, now) != now


async def _refuse_body(_: Request, error: Exception) -> JSONResponse:
    response = _error(error.status if isinstance(error, BodyError) else 400, str(error))
    response.headers["Connection"] = "close"  # the rest of the body is not read
    return response


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "status": status}, status_code=status)
