"""1,000 rooms, one subscriber each: server CPU per publish, as the SDK sends it; alone, to two
rooms, and in batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ..load import Mode, Publish
from ..peers import everyone
from ..rounds import SETTLE_S, Measure, Options, Part, Result, Session, busy, measure
from ..servers import Server, own_rooms

ROOMS = 1000
PUBLISHES = 4000
"""Publishes per round, one per request."""

IN_BATCHES = 10_000
BATCH = 100
PUBLISHERS = 8
"""Publishers' connections, each with a key of its own and one request in flight."""


def run(options: Options) -> list[Result]:
    rooms = options.scaled(ROOMS)

    def prepare(session: Session) -> None:
        connect(session, rooms)
        connect(session, rooms, "request")

    return measure(
        options,
        everyone(options),
        prepare,
        [
            Part({"publish": "a publish, µs"}, publishing("publish", rooms, options)),
            Part(
                {"both": "a publish to a user's and a request's room, µs"},
                publishing_to_both("both", rooms, options),
                _has_batches,
            ),
            Part(
                {"batch": f"a publish in a batch of {BATCH}, µs"},
                publishing_batches("batch", rooms, options),
                _has_batches,
            ),
        ],
    )


def _has_batches(kind: Server) -> bool:
    return kind.has_batches


def connect(session: Session, rooms: int, kind: str = "user") -> None:
    clients = [session.kind.client(one) for one in own_rooms(rooms, kind)]
    session.load.dial(session.port, clients, live=session.kind.live)
    time.sleep(SETTLE_S)


def publishing(name: str, rooms: int, options: Options) -> Measure:
    """Run a round: each publisher sends its next request after the response."""
    return sending(
        name,
        lambda kind: [kind.publish(one.room, 1) for one in own_rooms(rooms)],
        options.scaled(PUBLISHES, 40),
    )


def publishing_to_both(name: str, rooms: int, options: Options) -> Measure:
    return sending(
        name,
        lambda kind: [kind.publish_to_both(one.user, 2) for one in own_rooms(rooms)],
        options.scaled(PUBLISHES, 40),
    )


def publishing_batches(name: str, rooms: int, options: Options) -> Measure:
    names = [one.room for one in own_rooms(rooms)]
    batches = [
        [names[(start + n) % rooms] for n in range(BATCH)] for start in range(0, rooms, BATCH)
    ]
    return sending(
        name,
        lambda kind: [kind.publish_many(batch, BATCH) for batch in batches],
        options.scaled(IN_BATCHES, BATCH) // BATCH,
        BATCH,
    )


def sending(
    name: str,
    requests: Callable[[Server], Sequence[Publish]],
    count: int,
    notifications: int = 1,
    mode: Mode = "closed",
) -> Measure:
    """Send this number of requests, each with this number of notifications."""

    def round_of(session: Session) -> Mapping[str, float]:
        publishes = requests(session.kind)
        with session.used() as used_us:
            report = session.load.publish(
                session.publish_port, publishes, count, mode=mode, publishers=PUBLISHERS
            )
        return {name: used_us() / (count * notifications), **busy(report)}

    return round_of
