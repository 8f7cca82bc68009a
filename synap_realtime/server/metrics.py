"""Metrics for Prometheus. See PROTOCOL.md, "Metrics".

Each server has a separate registry, so that the counts of two servers in one process do not add up.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

LAG_INTERVAL_S = 0.5
"""The interval at which the lag of the event loop is measured."""

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class _Answered(Protocol):
    """The result of a notification, such as ``stores.base.PublishResult``."""

    @property
    def duplicate(self) -> bool: ...

    @property
    def conflict(self) -> object | None: ...


class _Usage(Protocol):
    """What a store holds, such as ``stores.base.StoreStats``."""

    @property
    def bytes(self) -> int: ...

    @property
    def rooms(self) -> int | None: ...

    @property
    def evicted(self) -> int: ...


class _Links(Protocol):
    """How the connections to a store work, such as ``stores.base.LinkStats``."""

    @property
    def unconfirmed_subscriptions(self) -> int: ...

    @property
    def deaf_s(self) -> float: ...

    @property
    def heals(self) -> int: ...

    @property
    def gaps(self) -> int: ...

    @property
    def call_reconnects(self) -> int: ...

    @property
    def message_reconnects(self) -> int: ...

    @property
    def failovers(self) -> int: ...


class Metrics:
    """The metrics of one server. ``/metrics`` answers with :meth:`render`."""

    def __init__(self, version: str, max_connections: int, worker: int | None = None) -> None:
        """
        Args:
            worker: the number of this process, a label of each metric. A scrape reaches one
                process, which reports its own metrics.
        """
        self._registry = registry = (
            CollectorRegistry() if worker is None else _LabelledRegistry(worker)
        )
        # They leave out what a system does not have (/proc exists on Linux only).
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"synap_realtime_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"synap_realtime_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str | None = None) -> HistogramVec:
            histograms = HistogramVec(f"synap_realtime_{name}_seconds", text, _FAST, label)
            registry.register(histograms)
            return histograms

        gauge("build_info", "Always 1, with the version as a label.", "version").labels(
            version
        ).set(1)
        gauge("max_connections", "The maximum number of connections; 0 is no limit.").set(
            max_connections
        )
        self._limits = gauge("limit", "The value of each limit option; 0 is no limit.", "option")
        self.active_rooms = gauge(
            "active_rooms", "Rooms with at least one subscriber on this node."
        )
        self.draining = gauge("draining", "1 while the server drains, else 0.")
        self._connections = gauge("connections", "Open connections.", "transport")
        self._opened = counter(
            "connections_accepted", "Connections that were accepted.", "transport"
        )
        self._held_bytes = gauge("held_bytes", "Bytes held for peers.", "kind")
        self._held_limits = gauge(
            "held_bytes_limit", "The maximum of held bytes; 0 is no limit.", "kind"
        )
        self._cuts = counter(
            "held_bytes_cuts", "Connections aborted because of a limit of held bytes.", "kind"
        )
        self.internal_errors = counter(
            "internal_errors", "Internal errors of the server, most of which end a connection."
        )
        self._server_disconnects = counter(
            "server_disconnects", "Connections that the server ended, by reason.", "reason"
        )
        self._errors = counter(
            "errors", "Requests and handshakes answered with an error, by code.", "code"
        )
        self._publishes = counter(
            "publishes", "Published notifications, once for each room, by outcome.", "outcome"
        )
        self._bytes = counter("publish_bytes", "Bytes of accepted notifications.")
        self._accepted = self._accepted_bytes = 0  # since the last flush
        self._deliveries = counter("deliveries", "Notifications written to connections.", "kind")
        self._live = self._deliveries.labels("live")
        self._written = 0  # live, since the last flush: too many to take a lock for each
        self._from_log = self._deliveries.labels("replay")
        self._replayed = 0  # since the last flush
        self._recoveries = counter(
            "recoveries",
            "Subscriptions that finished a replay; gap: a part was no longer retained.",
            "outcome",
        )
        self._store = histogram(
            "store_operation_duration", "Duration of store operations.", "operation"
        )
        self._store_errors = counter("store_errors", "Store operations that failed.", "operation")
        self._store_bytes = gauge("store_bytes", "Size of the store.")
        self._store_rooms = gauge("store_rooms", "Rooms in the store.")
        self._store_evictions = counter(
            "store_evictions", "Notifications deleted before the end of their retention."
        )
        self._evicted = 0
        self._links = _LinkCollector()
        registry.register(self._links)
        self.delivery_latency = histogram(
            "delivery_latency",
            "From the arrival of a publish until it is written to the subscribers of a room.",
        ).labels()
        self._lag = histogram("event_loop_lag", "Delay of the event loop.").labels()
        self._timer: asyncio.TimerHandle | None = None
        # Create each series at the start, so that 0 can be distinguished from a missing series.
        self._by_transport = {
            transport: _Connections(
                self._opened.labels(transport), self._connections.labels(transport)
            )
            for transport in ("websocket", "sse")
        }
        self._outcomes = {
            outcome: self._publishes.labels(outcome)
            for outcome in ("accepted", "duplicate", "rejected", "unavailable")
        }
        self._finished = {
            outcome: self._recoveries.labels(outcome) for outcome in ("recovered", "gap")
        }
        self._recovered = self._incomplete = 0  # since the last flush

    def totals(self) -> dict[str, float]:
        """Return the totals since the start over all labels, for the admin page."""
        self._flush_counters()
        counters = {
            "published": self._publishes, "delivered": self._deliveries, "rejected": self._errors,
            "disconnected": self._server_disconnects,
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

    def answered(self, results: Sequence[_Answered], size: int) -> None:
        """Count the results of a publish, and the bytes of its notifications."""
        duplicates = conflicts = 0
        for result in results:
            if result.conflict is not None:
                conflicts += 1
            elif result.duplicate:
                duplicates += 1
        self._accepted += len(results) - duplicates - conflicts
        self._accepted_bytes += size
        if duplicates or conflicts:
            self.published("duplicate", duplicates)
            self.published("rejected", conflicts)

    def budget_cuts(self, kind: str) -> Callable[[], None]:
        """Return a function that counts a connection aborted because of held bytes of a kind."""
        cuts = self._cuts.labels(kind)
        return lambda: cuts.inc()

    def show_limits(self, limits: Mapping[str, float]) -> None:
        """Export the limits, each by the name of its option."""
        for option, limit in limits.items():
            self._limits.labels(option).set(limit)

    def watch_bytes(self, kind: str, limit: int, held: Callable[[], float]) -> None:
        """Export the held bytes of a kind, as ``held`` returns them at each scrape."""
        self._held_limits.labels(kind).set(limit)
        self._held_bytes.labels(kind).set_function(held)

    def watch_links(self, links: Callable[[], _Links]) -> None:
        """Export how the connections to the store work, as ``links`` returns it at each scrape."""
        self._links.read = links

    def errored(self, code: str) -> None:
        self._errors.labels(code).inc()

    def disconnected_by_server(self, reason: str) -> None:
        self._server_disconnects.labels(reason).inc()

    def replayed(self, count: int) -> None:
        """Count notifications that were read from the log and written to a subscriber."""
        self._replayed += count

    def replay_finished(self, *, recovered: bool) -> None:
        if recovered:
            self._recovered += 1
        else:
            self._incomplete += 1

    def delivered(self, after_s: float, count: int) -> None:
        """Count a live notification that was written to ``count`` subscribers of a room.

        Subscribers with a backlog are counted by :meth:`delivered_from_backlog`.
        """
        self._written += count
        self.delivery_latency.observe(after_s)

    def delivered_from_backlog(self, published_at: float) -> None:
        """Observe the latency of a notification that was written from a backlog."""
        self.delivery_latency.observe(perf_counter() - published_at)

    def connected(self, transport: str) -> None:
        connections = self._by_transport[transport]
        connections.opened += 1
        connections.open += 1

    def disconnected(self, transport: str) -> None:
        self._by_transport[transport].open -= 1

    def store_operation(self, name: str) -> Histogram:
        """Return the duration histogram of a store operation."""
        return self._store.labels(name)

    def store_failed(self, name: str) -> None:
        """Count a store operation that raised."""
        self._store_errors.labels(name).inc()

    def render(self, usage: _Usage | None) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            usage: the size of the store; None if it is not known now: the previous one is shown.
        """
        self._flush_counters()
        if usage is not None:
            self._store_bytes.set(usage.bytes)
            if usage.rooms is not None:
                self._store_rooms.set(usage.rooms)
            self._store_evictions.inc(usage.evicted - self._evicted)
            self._evicted = usage.evicted
        return generate_latest(self._registry)

    def _flush_counters(self) -> None:
        self._live.inc(self._written)
        self._outcomes["accepted"].inc(self._accepted)
        self._bytes.inc(self._accepted_bytes)
        self._written = self._accepted = self._accepted_bytes = 0
        self._from_log.inc(self._replayed)
        self._finished["recovered"].inc(self._recovered)
        self._finished["gap"].inc(self._incomplete)
        self._replayed = self._recovered = self._incomplete = 0
        for connections in self._by_transport.values():
            connections.flush()

    def monitor_loop(self) -> None:
        """Start to measure the lag of the running event loop. Further calls do nothing."""
        if self._timer is None:
            self._schedule_lag_probe(asyncio.get_running_loop())

    def close(self) -> None:
        """Stop to measure the lag."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule_lag_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + LAG_INTERVAL_S

        def measure() -> None:
            self._lag.observe(max(0.0, loop.time() - due))
            self._schedule_lag_probe(loop)

        self._timer = loop.call_at(due, measure)


class _Connections:
    """Counts the connections of a transport, without a lock for each.

    Attributes:
        open: how many are open.
        opened: how many were accepted since the last flush.
    """

    __slots__ = ("_opened", "open", "opened")

    def __init__(self, opened: Counter, connections: Gauge) -> None:
        self.open = self.opened = 0
        self._opened = opened
        connections.set_function(lambda: self.open)

    def flush(self) -> None:
        self._opened.inc(self.opened)
        self.opened = 0


def merge_pages(pages: Sequence[str]) -> str:
    """Merge the metrics of several processes, whose samples have different labels.

    The samples of one metric have to follow each other, after its description.
    """
    families: dict[str, tuple[list[str], list[str]]] = {}
    for page in pages:
        for family in page.split("# HELP ")[1:]:
            lines = family.splitlines() or [""]
            name = lines[0].partition(" ")[0]
            samples = [line for line in lines[1:] if not line.startswith("#")]
            header = [f"# HELP {lines[0]}", *(line for line in lines if line.startswith("#"))]
            families.setdefault(name, (header, []))[1].extend(samples)
    lines = [line for header, samples in families.values() for line in (*header, *samples)]
    return "".join(f"{line}\n" for line in lines)


class Histogram:
    """Counts of observations by their upper bounds.

    For up to 100,000 observations a second: those of prometheus-client take locks for each, which a
    single-threaded server does not need.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class HistogramVec(Collector):
    """A histogram for each value of a label."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str | None = None):
        """
        Args:
            label: its name; None: there is one histogram without a label.
        """
        self._name = name
        self._text = text
        self._bounds = [float(bound) for bound in bounds]
        self._label = label
        self._histograms: dict[str, Histogram] = {}

    def labels(self, value: str = "") -> Histogram:
        if value not in self._histograms:
            self._histograms[value] = Histogram(self._bounds)
        return self._histograms[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [] if self._label is None else [self._label]
        family = HistogramMetricFamily(self._name, self._text, labels=names)
        for value, histogram in self._histograms.items():
            histogram.add_to(family, [] if self._label is None else [value])
        yield family


_LINK_COUNTERS = (
    ("deaf_seconds", "deaf_s", "Seconds in which no notifications arrived from the store."),
    ("heals", "heals", "Reads of a log for notifications that did not arrive."),
    ("gaps", "gaps", "Rooms whose subscribers were informed that notifications may be lost."),
    ("failovers", "failovers", "Connections to another server of the store than before."),
)


class _LinkCollector(Collector):
    """How the connections to the store work. All is 0 for a store without connections.

    Attributes:
        read: returns it; None: the store has no connections.
    """

    def __init__(self) -> None:
        self.read: Callable[[], _Links] | None = None

    def collect(self) -> Iterator[Metric]:
        links = None if self.read is None else self.read()

        def value(name: str) -> float:
            return 0 if links is None else getattr(links, name)

        prefix = "synap_realtime_store_"
        yield GaugeMetricFamily(
            f"{prefix}unconfirmed_subscriptions",
            "Rooms with subscribers whose notifications do not arrive from the store.",
            value("unconfirmed_subscriptions"),
        )
        for name, attribute, text in _LINK_COUNTERS:
            yield CounterMetricFamily(f"{prefix}{name}", text, value(attribute))
        reconnects = CounterMetricFamily(
            f"{prefix}reconnects", "Connections to the store that were replaced.", labels=["kind"]
        )
        reconnects.add_metric(["calls"], value("call_reconnects"))
        reconnects.add_metric(["messages"], value("message_reconnects"))
        yield reconnects


class _LabelledRegistry(CollectorRegistry):
    """A registry that labels each sample with the number of the worker."""

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
