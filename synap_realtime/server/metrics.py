"""What a room server counts, for Prometheus. See PROTOCOL.md, "Metrics".

Each server has a registry of its own, so that two in one process do not add up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from .stores.base import PublishResult, StoreStats
from .tallies import Histogram, HistogramVec

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

LAG_INTERVAL_S = 0.5
"""How often it is looked whether the event loop comes late."""

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counts of one server; ``render()`` is what ``/metrics`` answers."""

    def __init__(self, version: str, max_connections: int, worker: int | None = None) -> None:
        """
        Args:
            worker: a label of everything: whichever process is asked answers for itself.
        """
        self._registry = registry = (
            CollectorRegistry() if worker is None else _LabelledRegistry(worker)
        )
        # What only some programs have (Linux' /proc) is left out elsewhere, as everywhere.
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"synap_realtime_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"synap_realtime_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str | None = None) -> HistogramVec:
            tallies = HistogramVec(f"synap_realtime_{name}_seconds", text, _FAST, label)
            registry.register(tallies)
            return tallies

        gauge("build_info", "1, with the version.", "version").labels(version).set(1)
        gauge("max_connections", "The most connections; 0: no limit.").set(max_connections)
        self._limits = gauge("limit", "The value of a limit's option; 0: no limit.", "option")
        self.active_rooms = gauge("active_rooms", "Rooms that somebody listens to here.")
        self.draining = gauge("draining", "1 while the server lets its subscribers go.")
        self._connections = gauge("connections", "Open connections.", "transport")
        self._opened = counter("connections_accepted", "Connections that began.", "transport")
        self._held_bytes = gauge("held_bytes", "Bytes that are held for peers.", "kind")
        self._held_limits = gauge("held_bytes_limit", "The most; 0: no limit.", "kind")
        self._cuts = counter(
            "held_bytes_cuts", "Connections that were ended because too much was held.", "kind"
        )
        self.internal_errors = counter(
            "internal_errors", "Errors of the server's own, each of which ended a connection."
        )
        self._server_disconnects = counter(
            "server_disconnects", "Connections that the server ended, and why.", "reason"
        )
        self._errors = counter("errors", "Requests and handshakes that got an error.", "code")
        self._publishes = counter(
            "publishes", "Notifications that were published, once for each room.", "outcome"
        )
        self._bytes = counter("publish_bytes", "Bytes of those that were accepted.")
        self._accepted = self._accepted_bytes = 0  # since the last look
        self._deliveries = counter("deliveries", "Notifications written to connections.", "kind")
        self._live = self._deliveries.labels("live")
        self._written = 0  # live, since the last look: too many to take a lock for each
        self.replayed = self._deliveries.labels("replay")
        self._recoveries = counter(
            "recoveries", "Subscriptions that caught up; gap: something was gone.", "outcome"
        )
        self._store = histogram("store_operation_duration", "How long the store took.", "operation")
        self._store_errors = counter("store_errors", "Calls that the store refused.", "operation")
        self._store_bytes = gauge("store_bytes", "What the store takes.")
        self._store_rooms = gauge("store_rooms", "Rooms that the store knows.")
        self._store_evictions = counter(
            "store_evictions", "Notifications that went before their time, for want of room."
        )
        self._evicted = 0
        self.delivery_latency = histogram(
            "delivery_latency",
            "From a publish's arrival until all in a room have it, and each who had to wait.",
        ).labels()
        self._lag = histogram("event_loop_lag", "How late the event loop comes.").labels()
        self._timer: asyncio.TimerHandle | None = None
        # A series that is there from the start can be told from one that is missing.
        self._by_transport = {
            transport: (self._opened.labels(transport), self._connections.labels(transport))
            for transport in ("websocket", "sse")
        }
        self._outcomes = {
            outcome: self._publishes.labels(outcome)
            for outcome in ("accepted", "duplicate", "rejected", "unavailable")
        }
        for outcome in ("recovered", "gap"):
            self._recoveries.labels(outcome)

    def totals(self) -> dict[str, float]:
        """What has been counted since the start, over all labels; without a count of its own."""
        self._flush_counters()
        counters = {
            "published": self._publishes, "delivered": self._deliveries, "refused": self._errors,
            "dropped": self._server_disconnects,
        }  # fmt: skip
        return {
            name: sum(
                sample.value
                for family in counter.collect()
                for sample in family.samples
                if sample.name.endswith("_total")
            )
            for name, counter in counters.items()
        }

    def published(self, outcome: str, count: int = 1) -> None:
        if count:
            self._outcomes[outcome].inc(count)

    def accepted(self, receipts: Sequence[PublishResult], size: int) -> None:
        """Notifications were kept, or are known: so many bytes."""
        duplicates = sum([receipt.duplicate for receipt in receipts])
        self._accepted += len(receipts) - duplicates
        self._accepted_bytes += size
        if duplicates:
            self.published("duplicate", duplicates)

    def budget_cuts(self, kind: str) -> Callable[[], None]:
        """What counts a connection that is ended for the bytes of a kind."""
        cuts = self._cuts.labels(kind)
        return lambda: cuts.inc()

    def show_limits(self, limits: Mapping[str, float]) -> None:
        """Show the limits, each by the name of its option."""
        for option, limit in limits.items():
            self._limits.labels(option).set(limit)

    def watch_bytes(self, kind: str, limit: int, held: Callable[[], float]) -> None:
        """Show how many bytes of a kind are held, asked whenever the metrics are."""
        self._held_limits.labels(kind).set(limit)
        self._held_bytes.labels(kind).set_function(held)

    def errored(self, code: str) -> None:
        self._errors.labels(code).inc()

    def disconnected_by_server(self, reason: str) -> None:
        self._server_disconnects.labels(reason).inc()

    def replay_finished(self, *, recovered: bool) -> None:
        self._recoveries.labels("recovered" if recovered else "gap").inc()

    def delivered(self, after_s: float, count: int) -> None:
        """A live notification was written to so many of a room; it waits for those who do not
        read."""
        self._written += count
        self.delivery_latency.observe(after_s)

    def delivered_from_backlog(self, published_at: float | None) -> None:
        """It was written to one who had to wait for it."""
        if published_at is not None:
            self.delivery_latency.observe(perf_counter() - published_at)

    def connected(self, transport: str) -> None:
        opened, connections = self._by_transport[transport]
        opened.inc()
        connections.inc()

    def disconnected(self, transport: str) -> None:
        self._by_transport[transport][1].dec()

    def store_operation(self, name: str) -> Histogram:
        """How long a call of the store took."""
        return self._store.labels(name)

    def store_failed(self, name: str) -> None:
        """A call that raised."""
        self._store_errors.labels(name).inc()

    def render(self, usage: StoreStats) -> bytes:
        """All of it, in Prometheus' text format."""
        self._flush_counters()
        self._store_bytes.set(usage.bytes)
        self._store_rooms.set(usage.rooms)
        self._store_evictions.inc(usage.evicted - self._evicted)
        self._evicted = usage.evicted
        return generate_latest(self._registry)

    def _flush_counters(self) -> None:
        self._live.inc(self._written)
        self._outcomes["accepted"].inc(self._accepted)
        self._bytes.inc(self._accepted_bytes)
        self._written = self._accepted = self._accepted_bytes = 0

    def monitor_loop(self) -> None:
        """Look at the running event loop from now on; to call it again changes nothing."""
        if self._timer is None:
            self._schedule_lag_probe(asyncio.get_running_loop())

    def close(self) -> None:
        """Look at the event loop no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule_lag_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + LAG_INTERVAL_S

        def look() -> None:
            self._lag.observe(max(0.0, loop.time() - due))
            self._schedule_lag_probe(loop)

        self._timer = loop.call_at(due, look)


class _LabelledRegistry(CollectorRegistry):
    """What is collected, with the number of the worker."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = {"worker": str(worker)}

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [
                sample._replace(labels={**sample.labels, **self._worker})
                for sample in family.samples
            ]
            yield family
