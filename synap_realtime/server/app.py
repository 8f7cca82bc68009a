"""Compose the parts of a node from the configuration. Start, drain and close it.

A node is one process of the room server, independent of the HTTP server that moves the bytes: the
built-in one in ``protocols``, or another one through ``asgi``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from importlib.metadata import version

from ..protocol.control import CloseCode
from ..protocol.cursor import Cursor
from ..protocol.rooms import Room
from .auth.authorization import AccessControl, Authorizer, load_authorizer
from .auth.keys import KeyRing
from .auth.limits import Limits
from .auth.revocations import ROOM as REVOCATIONS_ROOM
from .auth.revocations import Revocations
from .auth.tokens import Authenticator
from .config import CHECK_INTERVAL_S, ServerSettings, load_settings
from .http.admin import Admin
from .http.in_flight import InFlight
from .http.jobs import JobReads
from .http.monitoring import MonitoringService
from .http.publish import PublishService
from .http.reads import RoomReads
from .http.revoke import RevokeService
from .http.routes import Router, route_table
from .http.subscribe import SubscribeService
from .logging import faults
from .metrics import Metrics
from .resources.byte_budget import Budgets
from .rooms.hub import Hub
from .rooms.pieces import PiecePacer
from .rooms.presence import Presence
from .rooms.registry import SessionRegistry
from .stores import open_store
from .stores.base import (
    Entry,
    JobStore,
    LinkedStore,
    PresenceStore,
    Retention,
    SharedRateStore,
    Store,
    UserConnectionStore,
    needs_task,
)
from .stores.instrumented import InstrumentedStore
from .surveys import Surveys

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
"""How long the server waits to close a connection whose peer does not read."""

_DRAIN_BATCH = 100  # the smallest batch of subscribers that are drained together
_MAX_SPREAD_MS = 10_000  # the longest period over which the reconnects are spread


class Node:
    """A node, with its own store and its own subscribers.

    Attributes:
        router: answers requests and accepts subscribers.
        sessions: the sessions of the subscribers.
        budgets: bound the bytes that are held for clients.
        may_block: whether serving a request may await something that requires a current task.
    """

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        authenticator: Authenticator,
        authorizer: Authorizer | None,
        worker: int | None = None,
    ) -> None:
        own_version = version("synap-realtime")
        self._metrics = metrics = Metrics(own_version, settings.max_connections, worker)
        metrics.show_limits(settings.limits())
        self._hub = hub = Hub(metrics.delivered)
        interval_s = settings.piece_interval_ms / 1000
        self._pacer = PiecePacer(hub.broadcast, hub.subscriber_count, interval_s)
        store.subscribe(self._deliver, self._on_gap)
        surveys = Surveys(store)
        self._limits = limits = Limits(
            settings,
            store if isinstance(store, SharedRateStore) else None,
            store if isinstance(store, UserConnectionStore) else None,
        )
        self._presence = presence = Presence(store if isinstance(store, PresenceStore) else None)
        if isinstance(store, LinkedStore):
            metrics.watch_links(store.link_stats)
        store_needs_task = needs_task(store)
        keeps_jobs = isinstance(store, JobStore)
        self._store = store = InstrumentedStore(store, metrics)
        self.budgets = budgets = Budgets(settings, metrics)
        self._revocations = revocations = Revocations(
            store, leeway_s=settings.token_leeway_s, kept_s=settings.revocation_retention_s()
        )
        self._settings = settings
        self._authenticator = authenticator
        self._access = access = AccessControl(
            authenticator,
            revocations,
            limits,
            allowed_origins=settings.allowed_origins,
            authorizer=authorizer,
        )
        self.sessions = sessions = SessionRegistry(
            store, hub, presence, access, revocations, limits, budgets.backlogs, metrics
        )
        self._in_flight = in_flight = InFlight()
        self._reads = reads = RoomReads(store, hub, presence, access, limits, surveys)
        self._jobs = jobs = JobReads(store if keeps_jobs else None, access, limits)
        admin = None
        if settings.admin:
            admin = Admin(
                hub,
                sessions,
                access,
                metrics,
                surveys,
                version=own_version,
                description=store.description,
            )
        self.router = Router(
            route_table(
                PublishService(store, access, limits, in_flight, metrics),
                SubscribeService(sessions, access, in_flight, limits),
                reads,
                jobs,
                RevokeService(access, revocations, in_flight, surveys),
                MonitoringService(
                    store, hub, access, limits, in_flight, metrics, surveys, _group_of(worker)
                ),
                admin,
            ),
            access,
            limits,
            metrics,
        )
        self.may_block = store_needs_task or access.may_block()
        self._reloading: set[asyncio.Task[None]] = set()
        self._keys_timer: asyncio.TimerHandle | None = None

    def _deliver(self, room: Room, entry: Entry, published_at: float | None) -> int:
        """Deliver an entry of the store's log: the one handler of all publishes."""
        if room == REVOCATIONS_ROOM:
            return self._revocations.apply(entry)
        if entry.fold is None and not self._pacer.pending:
            return self._hub.broadcast(room, entry, published_at)
        return self._pacer.deliver(room, entry, published_at)

    def _on_gap(self, room: Room, position: Cursor) -> None:
        """Let the subscribers of a room know that entries may have been lost."""
        if room == REVOCATIONS_ROOM:
            reloading = asyncio.get_running_loop().create_task(self._revocations.reload())
            self._reloading.add(reloading)
            reloading.add_done_callback(self._reloading.discard)
        else:
            self._pacer.flush(room)
            self._hub.report_gap(room, position)

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    @property
    def description(self) -> str:
        """The description of the store, including what a crash loses."""
        return self._store.description

    def summary(self) -> dict[str, object]:
        """Return the main settings for the log: numbers and names, never a secret."""
        settings, keys = self._settings, self._access.keys()
        return {
            "api_keys": len(keys.api_keys),
            "token_secrets": len(keys.token_secrets),
            "jwks_urls": len(keys.jwks_urls),
            "origins": ",".join(settings.allowed_origins) or "none",
            "trusted_proxies": ",".join(settings.trusted_proxies) or "none",
            "max_connections": settings.max_connections,
            "max_connections_per_user": settings.max_connections_per_user,
            "max_connections_per_address": settings.max_connections_per_address,
            "requests_per_s": settings.requests_per_s,
            "publishes_per_s": settings.publishes_per_s,
        }

    @property
    def has_keys(self) -> bool:
        """Whether the server authenticates. Without keys, it accepts only loopback clients."""
        return bool(self._access.keys())

    def monitor_event_loop(self) -> None:
        """Start to monitor the running event loop and the keys. Further calls do nothing."""
        self._metrics.monitor_loop()
        if self._keys_timer is None:
            self._watch_keys(asyncio.get_running_loop())

    def _watch_keys(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of a removed key within a second, without waiting for a request."""
        self._keys_timer = loop.call_later(CHECK_INTERVAL_S, self._watch_keys, loop)
        if not self._access.refresh_keys():
            return
        if closed := self.sessions.close_untrusted():
            logger.warning("key removed: closed its connections; connections=%d", closed)

    def fault(self, what: str, error: BaseException) -> None:
        """Count an internal error, and log it in one line."""
        self._metrics.internal_errors.inc()
        faults.report(what, error)

    def bound_loop_errors(self) -> None:
        """Count errors in callbacks and tasks of the running loop, and log each in one line.

        An exception handler of the application stays.
        """
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(faults.handler(self._metrics.internal_errors.inc))

    async def drain(self) -> None:
        """Reject publishes, then close every subscriber. See PROTOCOL.md, "Draining"."""
        if self._in_flight.is_draining:
            return
        self._metrics.draining.set(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._in_flight.drain()
        self._pacer.flush_all()
        subscriptions = self.sessions.deliveries()
        spread_ms = min(_MAX_SPREAD_MS, 10 * len(subscriptions))
        size = max(_DRAIN_BATCH, len(subscriptions) // 20)
        batches = [
            subscriptions[start : start + size] for start in range(0, len(subscriptions), size)
        ]
        # Half of the time for starting the closes, the other half for slow consumers.
        pause_s = self._settings.drain_timeout_s / 2 / max(1, len(batches))
        end = asyncio.get_running_loop().time() + self._settings.drain_timeout_s
        for number, batch in enumerate(batches):
            if number:
                await asyncio.sleep(pause_s)
            for subscription in batch:
                subscription.drain(100 + secrets.randbelow(spread_ms))
        await self.sessions.wait_drained(end)
        for subscription in self.sessions.deliveries():
            subscription.close(CloseCode.DRAINING)
        await self.sessions.wait_drained(asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S)

    async def close(self) -> None:
        """Drain, then close the store."""
        await self.drain()
        self._presence.close()
        self.sessions.stop()
        self._metrics.close()
        if self._keys_timer is not None:
            self._keys_timer.cancel()
        await self._authenticator.close()
        self._reads.stop()
        self._jobs.stop()
        await self._store.close()


def _group_of(worker: int | None) -> str | None:
    """Return a name that a worker shares with the others of its supervisor, and with nobody else.

    Args:
        worker: the number of the worker; None if this process has the port for itself.
    """
    return None if worker is None else f"{socket.gethostname()}:{os.getppid()}"


def create_node(
    settings: ServerSettings | None = None,
    store: Store | None = None,
    *,
    authorize: Authorizer | None = None,
    worker: int | None = None,
) -> Node:
    """Build a node from its configuration. See :func:`~.asgi.adapter.create_app`.

    Raises:
        ConfigurationError: names the setting that is invalid.
    """
    settings = settings or load_settings()
    authorizer = authorize or (
        None if settings.authorizer is None else load_authorizer(settings.authorizer)
    )
    return Node(
        settings,
        store or open_configured_store(settings),
        _authenticator(settings, keep_raw_claims=authorizer is not None),
        authorizer,
        worker,
    )


def _authenticator(settings: ServerSettings, *, keep_raw_claims: bool) -> Authenticator:
    ring = KeyRing(
        token_secrets=[secret.get_secret_value() for secret in settings.token_secrets],
        jwks_urls=settings.jwks_urls,
        api_keys={name: key.get_secret_value() for name, key in settings.api_keys.items()},
        file=settings.keys_file,
    )
    return Authenticator(
        ring,
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        leeway_s=settings.token_leeway_s,
        max_lifetime_s=settings.token_max_lifetime_s,
        keep_raw_claims=keep_raw_claims,
    )


def open_configured_store(settings: ServerSettings) -> Store:
    """Open the store that the settings name, with the retention that they set.

    Raises:
        ConfigurationError: the URL is invalid, or the store cannot be opened.
    """
    return open_store(settings.store, retention_of(settings))


def retention_of(settings: ServerSettings) -> Retention:
    return Retention(
        settings.retention_count,
        settings.retention_s,
        settings.request_retention_s,
        max_memory_bytes=settings.max_memory_bytes,
        control_age_s=settings.revocation_retention_s(),
        job_age_s=settings.job_retention_s,
        job_count=settings.jobs_per_user,
    )
