"""A mixed day: server CPU a user for everything that a user of an app causes.

Each user subscribes to the own room and to a request's, and watches who is present in a team of
ten. The user's job publishes its start, streams text, and publishes its result; the client
acknowledges what it receives. At the end of the round, all users leave.

With Centrifugo a user has one connection for the three channels, the team's with presence, join and
leave; it has no acknowledgements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count as counting

from ..centrifugo import TEAM, Centrifugo
from ..load import Client
from ..ours import Ours
from ..rounds import SETTLE_S, Measure, Options, Part, Result, Session, measure
from ..servers import Server, Subscriber
from .publish import BATCH, PUBLISHERS

USERS = 500
TEAM_SIZE = 10
DELTAS = 20
"""Pieces of text that a job streams. The SDK sends those of concurrent jobs in batches."""

LEAVE_S = 5.5
"""A user who has left is announced after 5 s."""

ROUNDS = 3


def run(options: Options) -> list[Result]:
    users = options.scaled(USERS)
    what = (
        f"a user's day: 3 subscriptions, 2 publishes to both rooms, {DELTAS} deltas, acks, "
        f"presence in a team of {TEAM_SIZE}, µs"
    )
    part = Part({"day": what}, _day(users, options), rounds=ROUNDS)
    kinds = options.of(Ours(), Centrifugo(has_teams=True))
    return measure(options, kinds, lambda _: None, [part])


def _day(users: int, options: Options) -> Measure:
    days: Callable[[], int] = counting().__next__

    def round_of(session: Session) -> Mapping[str, float]:
        day = days()
        ids = [f"{day}-{number}" for number in range(users)]
        clients = [
            client
            for number, user in enumerate(ids)
            for client in _clients(session.kind, user, f"{day}-{number // TEAM_SIZE}")
        ]
        with session.used() as used_us:
            session.load.dial(session.port, clients, live=session.kind.live)
            time.sleep(SETTLE_S)
            _work(session, ids)
            session.load.hangup()
            time.sleep(LEAVE_S if options.scale == 1 else SETTLE_S)
        return {"day": used_us() / users}

    return round_of


def _clients(kind: Server, user: str, team: str) -> list[Client]:
    if isinstance(kind, Centrifugo):
        return [kind.client_of(user, [f"user_{user}", f"request_{user}", f"{TEAM}:{team}"])]
    assert isinstance(kind, Ours)
    rooms = [kind.client(Subscriber(user, room)) for room in (f"user_{user}", f"request_{user}")]
    return [*rooms, kind.watching_client(Subscriber(user, f"{TEAM}_{team}"))]


def _work(session: Session, ids: list[str]) -> None:
    kind, load = session.kind, session.load
    to_both = [kind.publish_to_both(user, 2) for user in ids]
    rooms = [f"request_{user}" for user in ids]
    pieces = [
        kind.publish_many(rooms[start : start + BATCH], len(rooms[start : start + BATCH]))
        for start in range(0, len(rooms), BATCH)
    ]
    for requests, count in ((to_both, 1), (pieces, DELTAS), (to_both, 1)):
        acknowledges = isinstance(kind, Ours)
        if acknowledges:
            load.acknowledge()
        load.publish(
            session.publish_port,
            requests,
            len(requests) * count,
            mode="closed",
            publishers=min(PUBLISHERS, len(requests)),
        )
        if acknowledges:
            load.acknowledge()
