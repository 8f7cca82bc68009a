"""Scenario 2: 1,000 rooms, one subscriber each: server CPU per publish, single and in batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ..load import Publish
from ..rounds import SETTLE_S, Measure, Options, Row, Session, Table, ceiling, compare, shares
from ..servers import own_rooms

ROOMS = 1000
PUBLISHES = 4000
"""Publishes per round, one per request."""

IN_BATCHES = 10_000
BATCH = 100
PUBLISHERS = 8
"""Publishers' connections, each with one request in flight."""

COLUMNS = {
    "publish_us": "server CPU, µs a publish",
    "load_us": "load's CPU, µs a publish",
    "server_busy": "server busy, %",
    "load_busy": "load busy, %",
}


def run(options: Options) -> list[Table]:
    rooms = options.scaled(ROOMS)

    def prepare(session: Session) -> None:
        connect(session, rooms)

    single = compare(options, prepare, measure(rooms, options))
    with_batches = [kind for kind in options.kinds if kind.has_batches]
    batched = compare(options, prepare, measure_batches(rooms, options), kinds=with_batches)
    batched += [
        Row(kind.title, note="no batches: one request each")
        for kind in options.kinds
        if not kind.has_batches
    ]
    what = f"{rooms:,} rooms, one subscriber each, {PUBLISHERS} publishers"
    shown = (COLUMNS, ["publish_us"])
    return [
        Table(
            "rooms",
            f"{what}, one publish per request",
            *shown,
            single,
            ceiling(single[0], "publish_us"),
        ),
        Table(
            "batches",
            f"{what}, {BATCH} per request",
            *shown,
            batched,
            ceiling(batched[0], "publish_us"),
        ),
    ]


def connect(session: Session, rooms: int) -> None:
    clients = [session.kind.client(one) for one in own_rooms(rooms)]
    session.load.dial(session.port, clients, live=session.kind.live)
    time.sleep(SETTLE_S)


def measure(rooms: int, options: Options) -> Measure:
    """Run a round: each publisher sends its next request after the response."""
    count = options.scaled(PUBLISHES, 40)

    def round_of(session: Session) -> Mapping[str, float]:
        publishes = [session.kind.publish(one.room, 1) for one in own_rooms(min(rooms, count))]
        return _publish(session, publishes, count)

    return round_of


def measure_batches(rooms: int, options: Options) -> Measure:
    count = options.scaled(IN_BATCHES, BATCH) // BATCH
    names = [one.room for one in own_rooms(rooms)]
    batches = [
        [names[(start + n) % rooms] for n in range(BATCH)] for start in range(0, rooms, BATCH)
    ]

    def round_of(session: Session) -> Mapping[str, float]:
        publishes = [session.kind.publish_many(batch, len(batch)) for batch in batches]
        return _publish(session, publishes, count)

    return round_of


def _publish(session: Session, publishes: Sequence[Publish], count: int) -> Mapping[str, float]:
    """Send this number of requests, cycling through the list."""
    with session.used() as used_us:
        report = session.load.publish(
            session.publish_port, publishes, count, mode="closed", publishers=PUBLISHERS
        )
    return {
        "publish_us": used_us() / report.delivered,
        "load_us": report.cpu_s * 1e6 / report.delivered,
        **shares(report, used_us()),
    }
