"""The routes for load balancers and monitoring. See PROTOCOL.md, "HTTP" and "Metrics"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

from ..auth.authorization import AccessControl, require_scope
from ..auth.limits import Limits
from ..errors import StoreUnavailableError
from ..messages import Request, Response, json_response
from ..metrics import CONTENT_TYPE, Metrics, merge_pages
from ..rooms.hub import Hub
from ..stores.base import Store, StoreStats
from ..surveys import Answer, Surveys
from .in_flight import InFlight
from .openapi import document

MAX_AGE_S = 1.0
"""How long a result is cached, so that a flood of requests checks the store once a second."""

_QUESTION = "metrics"

_HEALTHY = json_response(200, {"status": "ok"})
_READY = json_response(200, {"status": "ready"})


class MonitoringService:
    """Handles the routes for load balancers and Prometheus."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        access: AccessControl,
        limits: Limits,
        in_flight: InFlight,
        metrics: Metrics,
        surveys: Surveys,
        group: str | None,
    ) -> None:
        """
        Args:
            group: the name of the processes that share a port with this one; None: there are none.
        """
        self._store = store
        self._hub = hub
        self._access = access
        self._limits = limits
        self._in_flight = in_flight
        self._metrics = metrics
        self._surveys = surveys
        self._group = group
        self._readiness = Readiness(store)
        surveys.register(_QUESTION, self._answer_metrics)

    async def health(self, request: Request) -> Response:
        """Handle ``GET /health``."""
        self._limits.check_request(None, request.address)
        return _HEALTHY

    async def ready(self, request: Request) -> Response:
        """Handle ``GET /ready``."""
        self._limits.check_request(None, request.address)
        self._in_flight.ensure_accepting()
        await self._readiness.check()
        return _READY

    async def metrics(self, request: Request) -> Response:
        """Handle ``GET /metrics``."""
        claims = await self._access.authenticate_counted(request)
        require_scope(claims, "metrics", "admin")
        try:
            usage = await self._store.usage()
        except StoreUnavailableError:  # the metrics are needed most now
            usage = None
        if self._group is None:
            content = self._render(usage)
        else:
            # A scrape cannot choose the process that answers.
            store = None if usage is None else asdict(usage)
            question = {"group": self._group, "store": store}
            answers = await self._surveys.ask(_QUESTION, question, _page_in)
            content = merge_pages(answers.all).encode()
        return Response(200, content, content_type=CONTENT_TYPE)

    def _render(self, usage: StoreStats | None) -> bytes:
        self._metrics.active_rooms.set(len(self._hub))
        return self._metrics.render(usage)

    def _answer_metrics(self, arguments: Answer) -> Answer:
        """Return the metrics of this process, if it is in the group that is asked."""
        if self._group is None or arguments["group"] != self._group:
            return {"page": ""}
        store = arguments["store"]
        usage = None if store is None else StoreStats(**store)
        return {"page": self._render(usage).decode()}

    async def openapi(self, request: Request) -> Response:
        """Handle ``GET /openapi.json``."""
        self._limits.check_request(None, request.address)
        return _describe()


@cache
def _describe() -> Response:
    return json_response(200, document())


def _page_in(answer: Answer) -> str:
    page = answer["page"]
    page.encode()  # raises an error unless it is text
    return str(page)


class Readiness:
    """The last result of the store's check, renewed on demand."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._expires_at = 0.0
        self._checking: asyncio.Task[str | None] | None = None

    async def check(self) -> None:
        """Check that the store can keep a publish. The result is at most a second old.

        Raises:
            StoreUnavailableError: it cannot.
        """
        if self._checking is None or (self._checking.done() and self._clock() >= self._expires_at):
            self._checking = asyncio.create_task(self._check_store())
        # Shared by all requests that wait for it: a client that disconnects does not cancel it.
        problem = await asyncio.shield(self._checking)
        if problem is not None:
            raise StoreUnavailableError(problem)

    async def _check_store(self) -> str | None:
        try:
            await self._store.check()
        except StoreUnavailableError as error:
            return str(error)
        finally:
            self._expires_at = self._clock() + MAX_AGE_S
        return None
