"""Scenario 9: 1, 2 and 4 nodes that share a Valkey, beside Centrifugo with its Redis engine.

Both run at the same time, each with a Valkey of its own, and take turns. Ratios are to Centrifugo's
of the same pair of rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..load import Client, LoadError, Publish
from ..nodes import CentrifugoNodes, Cluster, OurNodes, cluster
from ..rounds import SETTLE_S, Options, Stat, pair, print_progress
from ..senders import MissingError
from ..servers import Server, one_room, own_rooms
from ..table import Row, Table

METHOD = """\
Both run at the same time, each with a Valkey of its own, and take turns. The nodes share one core;
Valkey, which writes nothing to disk, and the load generator (C, epoll, one thread) the other. CPU
is user and system time. synap-realtime validates, deduplicates and logs, with keys, tokens and its
default limits, and receives what its SDK sends. Centrifugo keeps a history of the same size, and
has recovery, idempotency keys and a token for each user. Values are medians of the rounds, with
minimum and maximum in brackets. Ratios are of pairs of rounds."""

NODES = (1, 2, 4)

ROOMS = 1000
PUBLISHERS = 8
PUBLISHES = 4000
BATCHED = 10_000
BATCH = 100

SUBSCRIBERS = 1000
DELIVERIES = 30_000

RATE = 500
STEADY_RATE = 2000
RATE_S = 1.2
RATE_PUBLISHERS = 16

IDLE_S = 3.0

FLUSHES = 20
"""Batches behind the relay: they take less time than passes between two probes of a node."""

RETURNING = 10_000
IN_FLIGHT = 1000
REMOVAL_S = 13.0
"""After this time, the other nodes have removed the subscribers of one that died."""

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Part:
    """One table.

    Attributes:
        compared: how many of the columns are also shown as ratios.
        rounds: the most that are needed. Fewer than the usual number also go without a warm-up.
    """

    scenario: str
    title: str
    columns: Mapping[str, str]
    measure: Callable[[Cluster], Mapping[str, float]]
    compared: int = 2
    rounds: int = 1000
    remark: str = ""
    rows: list[Row] = field(default_factory=list)

    def table(self) -> Table:
        names = list(self.columns)[: self.compared]
        return Table(
            self.scenario, self.title, self.columns, names, self.rows, self.remark, "Centrifugo"
        )


def run(options: Options, counts: Sequence[int] = NODES) -> list[Table]:
    """Run the scenario.

    Args:
        counts: numbers of nodes.
    """
    parts = [*_publishing(options), _delivering(options), _latency(options), _idle(options)]
    parts.append(_steady(options))
    for count in counts:
        _measure(options, count, parts, lambda mine: _subscribe(mine, options))
    flushing = _flushing(options)
    _measure(options, 1, [flushing], lambda _: None, with_relay=True)
    returning = _Returning(options)
    several = [count for count in counts if count > 1]
    for count in several:
        _measure(options, count, [returning.part], returning.prepare)
    return [each.table() for each in (*parts, flushing, returning.part)]


def _measure(
    options: Options,
    count: int,
    parts: Sequence[_Part],
    prepare: Callable[[Cluster], None],
    *,
    with_relay: bool = False,
) -> None:
    """Add the rows for this number of nodes."""
    nodes = f"{count} node{'s' if count > 1 else ''}"
    kinds: tuple[type[Server], ...] = (CentrifugoNodes, OurNodes)
    rows = [[Row(f"{kind.title}, {nodes}") for kind in kinds] for _ in parts]
    for part, added in zip(parts, rows, strict=True):
        part.rows.extend(added)
    begun = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            try:
                base = stack.enter_context(cluster(CentrifugoNodes, count, with_relay=with_relay))
            except MissingError as error:
                base = None
                _note([added[0] for added in rows], error)
            mine = stack.enter_context(cluster(OurNodes, count, with_relay=with_relay))
            for each in filter(None, (base, mine)):
                prepare(each)
            for part, added in zip(parts, rows, strict=True):
                _compare(part, added, base, mine, options.rounds)
                print_progress(f"{part.scenario}, {nodes}: {time.monotonic() - begun:.0f} s")
    except (LoadError, MissingError) as error:
        _note([row for added in rows for row in added if not row.stats], error)


def _compare(
    part: _Part, rows: Sequence[Row], base: Cluster | None, mine: Cluster, rounds: int
) -> None:
    def measure(each: Cluster) -> Mapping[str, float]:
        try:
            return part.measure(each)
        except LoadError as error:
            raise LoadError(f"{each.kind.title}: {error}") from error

    is_short = part.rounds < rounds
    rounds = min(part.rounds, rounds)
    if base is None:
        if not is_short:
            measure(mine)
        _add(rows[1], [measure(mine) for _ in range(rounds)])
        return
    if not is_short:
        pair(base, mine, measure, 0)
    pairs = [pair(base, mine, measure, number) for number in range(rounds)]
    for at, row in enumerate(rows):
        _add(row, [each[at] for each in pairs])
    rows[1].ratios = {name: stat.over(rows[0].stats[name]) for name, stat in rows[1].stats.items()}


def _add(row: Row, rounds: Sequence[Mapping[str, float]]) -> None:
    row.stats = {name: Stat.of([each[name] for each in rounds]) for name in rounds[0]}


def _note(rows: Sequence[Row], error: Exception) -> None:
    text = " ".join(str(error).split())
    print_progress(text)
    for row in rows:
        row.note = row.note or text


def _subscribe(mine: Cluster, options: Options) -> None:
    """Connect a subscriber to each of the rooms, and those of one room."""
    everyone = own_rooms(options.scaled(ROOMS)) + one_room(options.scaled(SUBSCRIBERS))
    mine.dial([mine.kind.client(one) for one in everyone])
    time.sleep(SETTLE_S)


def _cpu(what: str) -> dict[str, str]:
    return {"nodes_us": f"CPU of the nodes, µs {what}", "store_us": f"CPU of Valkey, µs {what}"}


def _publishing(options: Options) -> list[_Part]:
    count = options.scaled(PUBLISHES, 40)
    batches = options.scaled(BATCHED, BATCH) // BATCH
    subscribed = [one.room for one in own_rooms(options.scaled(ROOMS))]
    quiet = [f"request_{n}" for n in range(options.scaled(ROOMS))]

    def publish(
        mine: Cluster, publishes: Sequence[Publish], count: int, each: int
    ) -> Mapping[str, float]:
        with mine.used() as used_us:
            mine.load.publish(mine.ports, publishes, count, mode="closed", publishers=PUBLISHERS)
        nodes_us, store_us = used_us()
        return {"nodes_us": nodes_us / (count * each), "store_us": store_us / (count * each)}

    def alone(rooms: Sequence[str], deliveries: int) -> Callable[[Cluster], Mapping[str, float]]:
        return lambda mine: publish(
            mine, [mine.kind.publish(room, deliveries) for room in rooms[:count]], count, 1
        )

    def together(mine: Cluster) -> Mapping[str, float]:
        names = (subscribed * BATCH)[: max(BATCH, len(subscribed))]
        publishes = [
            mine.kind.publish_many(names[start : start + BATCH], BATCH)
            for start in range(0, len(names), BATCH)
        ]
        return publish(mine, publishes, batches, BATCH)

    what = f"{len(subscribed):,} rooms on nodes that share a Valkey, {PUBLISHERS} publishers"
    one_each = f"{what}, one subscriber each"
    return [
        _Part(
            "nodes-publish",
            f"{what}, no subscribers, one publish per request",
            _cpu("a publish"),
            alone(quiet, 0),
        ),
        _Part(
            "nodes-rooms",
            f"{one_each}, one publish per request",
            _cpu("a publish"),
            alone(subscribed, 1),
        ),
        _Part("nodes-batches", f"{one_each}, {BATCH} per request", _cpu("a publish"), together),
    ]


def _delivering(options: Options) -> _Part:
    subscribers = options.scaled(SUBSCRIBERS)
    count = max(5, options.scaled(DELIVERIES, 100) // subscribers)

    def measure(mine: Cluster) -> Mapping[str, float]:
        publish = mine.kind.publish("workspace_1", subscribers)
        with mine.used() as used_us:
            report = mine.load.publish(mine.ports, [publish], count, mode="paced")
        nodes_us, store_us = used_us()
        return {"nodes_us": nodes_us / report.delivered, "store_us": store_us / report.delivered}

    title = f"One room, {subscribers:,} subscribers spread over the nodes, sequential publishes"
    return _Part("nodes-fanout", title, _cpu("a delivery"), measure)


def _latency(options: Options) -> _Part:
    rooms = own_rooms(options.scaled(ROOMS))

    def measure(mine: Cluster) -> Mapping[str, float]:
        report = mine.load.publish(
            mine.ports,
            [mine.kind.publish(one.room, 1) for one in rooms],
            options.scaled(round(RATE * RATE_S)),
            mode="rate",
            rate=RATE,
            publishers=RATE_PUBLISHERS,
        )
        return {"p50_us": report.p50_us, "p99_us": report.p99_us, "max_us": report.max_us}

    title = f"Publish to receive: {RATE} publishes a second over {len(rooms):,} rooms"
    columns = {"p50_us": "p50, µs", "p99_us": "p99, µs", "max_us": "max, µs"}
    return _Part("nodes-latency", title, columns, measure)


def _idle(options: Options) -> _Part:
    duration_s = max(2.5, IDLE_S * options.scale)  # more than the time between two probes

    def measure(mine: Cluster) -> Mapping[str, float]:
        with mine.used() as used_us:
            time.sleep(duration_s)
        nodes_us, store_us = used_us()
        connections = mine.connections()
        return {
            "commands": mine.commands(duration_s) / duration_s / connections,
            "connections": connections / len(mine.nodes),
            "nodes_us": nodes_us / duration_s / len(mine.nodes),
            "store_us": store_us / duration_s,
        }

    subscribers = options.scaled(ROOMS) + options.scaled(SUBSCRIBERS)
    columns = {
        "commands": "commands a second and connection",
        "connections": "connections a node",
        "nodes_us": "CPU of a node, µs a second",
        "store_us": "CPU of Valkey, µs a second",
    }
    title = f"Idle: {subscribers:,} subscribers, nothing is published"
    return _Part("nodes-idle", title, columns, measure, compared=0, rounds=1)


def _steady(options: Options) -> _Part:
    rooms = [one.room for one in own_rooms(options.scaled(ROOMS))]
    count = options.scaled(round(STEADY_RATE * RATE_S))

    def measure(mine: Cluster) -> Mapping[str, float]:
        with mine.used() as used_us:
            mine.load.publish(
                *(mine.ports, [mine.kind.publish(room, 1) for room in rooms], count),
                mode="rate",
                rate=STEADY_RATE,
                publishers=RATE_PUBLISHERS,
            )
        nodes_us, store_us = used_us()
        return {"nodes_us": nodes_us / count, "store_us": store_us / count}

    title = f"{len(rooms):,} rooms, one subscriber each, {STEADY_RATE:,} publishes a second to both"
    remark = (
        "In the first tables, faster nodes publish more in the same time, which keeps Valkey awake."
    )
    return _Part("nodes-steady", title, _cpu("a publish"), measure, remark=remark)


def _flushing(options: Options) -> _Part:
    def measure(mine: Cluster) -> Mapping[str, float]:
        assert mine.relay is not None
        publish = mine.kind.publish_many([f"user_{n}" for n in range(BATCH)], 0)
        count = min(FLUSHES, options.scaled(FLUSHES))
        before = mine.relay.bursts()
        mine.load.publish(mine.ports, [publish], count, mode="closed")
        return {"trips": (mine.relay.bursts() - before) / count}

    title = f"Round trips to Valkey: sequential requests of {BATCH} notifications, each to a room"
    columns = {"trips": "round trips a request"}
    remark = "A relay before Valkey counts them. A node's probe, one a second, may be among them."
    return _Part("nodes-flushes", title, columns, measure, compared=0, remark=remark)


class _Returning:
    """Subscribers whose node dies return to the others, each with a notification to catch up on."""

    def __init__(self, options: Options) -> None:
        self._count = options.scaled(RETURNING, BATCH)
        self._removal_s = REMOVAL_S if options.scale == 1 else 0.0
        self._clients: dict[str, list[Client]] = {}
        columns = {
            "back_s": "until all are back and caught up, s",
            **_cpu("a subscriber"),
        }
        remark = f"CPU is counted for {REMOVAL_S:g} s: until then, the nodes forget the dead one."
        self.part = _Part(
            "nodes-return",
            f"kill -9 of a node: its {self._count:,} subscribers return to the others "
            f"({min(IN_FLIGHT, self._count):,} concurrent handshakes), and replay one notification",
            columns,
            self._measure,
            compared=3,
            rounds=1,
            remark=remark if self._removal_s else "",
        )

    def prepare(self, mine: Cluster) -> None:
        """Publish twice to each room; the clients know the position of the first."""
        everyone = own_rooms(self._count)
        positions: list[str] = []
        for start in range(0, self._count, BATCH):
            rooms = [one.room for one in everyone[start : start + BATCH]]
            positions += mine.kind.positions(mine.ports[0], rooms)
            publish = mine.kind.publish_many(rooms, 0)
            mine.load.publish(mine.ports, [publish], 1, mode="closed")
        self._clients[mine.kind.name] = [
            mine.kind.returning_client(one, position)
            for one, position in zip(everyone, positions, strict=True)
        ]

    def _measure(self, mine: Cluster) -> Mapping[str, float]:
        first, *others = mine.nodes
        clients = self._clients[mine.kind.name]
        live, count = mine.kind.live, len(clients)
        mine.load.dial(first.port, clients, live=live, expected=count, timeout_s=TIMEOUT_S)
        time.sleep(SETTLE_S)
        mine.load.expect_restart(
            in_flight=IN_FLIGHT,
            timeout_s=TIMEOUT_S,
            expected=count,
            ports=[node.port for node in others],
        )
        killed_ns = time.monotonic_ns()
        first.kill()
        with mine.used() as used_us:
            report = mine.load.restarted()
            time.sleep(self._removal_s)
        mine.load.hangup()
        first.start()
        time.sleep(5 * SETTLE_S)  # the others notice the disconnects
        nodes_us, store_us = used_us()
        return {
            "back_s": (max(report.last_live_ns, report.last_delivered_ns) - killed_ns) / 1e9,
            "nodes_us": nodes_us / count,
            "store_us": store_us / count,
        }
