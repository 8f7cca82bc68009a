"""Thousands of idle connections: server CPU per connect by the algorithm of the token, memory per
connection; a user with two rooms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count as counting

from .. import machine
from ..centrifugo import Centrifugo
from ..load import Client
from ..ours import Ours
from ..peers import Limit, everyone
from ..rounds import Measure, Options, Part, Result, Session, busy, measure
from ..servers import Server, Subscriber
from ..tokens import Algorithm

CONNECTIONS = 10_000
SIGNED = 3000
"""Connections with a token of ES256 or RS256, and users with two rooms."""

REST_S = 0.4
"""Seconds before the memory is read."""


def run(options: Options) -> list[Result]:
    steps = options.rounds + 1
    return [
        *_connects(
            options,
            everyone(options, is_quick=True),
            {
                "connect-HS256": "a connect with an HS256 token, µs",
                "memory": "memory (PSS) of a connection, KB",
            },
            options.scaled(CONNECTIONS) // steps,
        ),
        *[
            result
            for algorithm in ("ES256", "RS256")
            for result in _signed(options, algorithm, options.scaled(SIGNED) // steps)
        ],
        *_two_rooms(options, options.scaled(SIGNED) // steps),
    ]


def _signed(options: Options, algorithm: Algorithm, step: int) -> list[Result]:
    kinds = options.of(Ours(algorithm=algorithm), Centrifugo(algorithm))
    rows = {f"connect-{algorithm}": f"a connect with an {algorithm} token, µs"}
    return _connects(options, kinds, rows, step)


def _connects(
    options: Options, kinds: Sequence[Server], rows: Mapping[str, str], step: int
) -> list[Result]:
    return measure(options, kinds, lambda _: None, [Part(rows, connecting(rows, step, own_room))])


def _two_rooms(options: Options, step: int) -> list[Result]:
    """Measure users that are subscribed to the rooms of the user and of a request at once."""
    rows = {
        "user-connect": "a user who subscribes to the user's and a request's room, µs",
        "user-memory": "memory (PSS) of a user with both rooms, KB",
    }
    measures = connecting(rows, step, both_rooms)
    kinds = options.of(Ours(), Centrifugo(), Limit())
    return measure(options, kinds, lambda _: None, [Part(rows, measures)])


def own_room(kind: Server, user: str) -> list[Client]:
    return [kind.client(Subscriber(user, f"user_{user}"))]


def request_room(kind: Server, user: str) -> list[Client]:
    return [kind.client(Subscriber(user, f"request_{user}"))]


def both_rooms(kind: Server, user: str) -> list[Client]:
    """Return the clients of a user: a connection for each room, or one for both."""
    rooms = [f"user_{user}", f"request_{user}"]
    if isinstance(kind, Centrifugo):
        return [kind.client_of(user, rooms)]
    return [kind.client(Subscriber(user, room)) for room in rooms]


def connecting(
    rows: Iterable[str], step: int, clients_of: Callable[[Server, str], list[Client]]
) -> Measure:
    """Run a round: add this number of users.

    Args:
        rows: the names of the CPU of a user and, unless it is left out, of the memory.
    """
    numbers: Callable[[], int] = counting().__next__

    def round_of(session: Session) -> Mapping[str, float]:
        users = [str(numbers()) for _ in range(step)]
        clients = [each for user in users for each in clients_of(session.kind, user)]
        before = machine.max_memory_bytes(session.server.pid)
        with session.used() as used_us:
            report = session.load.dial(session.port, clients, live=session.kind.live)
            time.sleep(REST_S)
        grown = machine.max_memory_bytes(session.server.pid) - before
        values = (used_us() / step, grown / 1024 / step)
        return {**dict(zip(rows, values, strict=False)), **busy(report)}

    return round_of
