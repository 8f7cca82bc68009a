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


_next_number: Callable[[], int] = counting().__next__
"""Of a user: no two of a run have the same rooms."""


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
    what = "a user who subscribes to the user's and a request's room"
    rows = {
        "user-connect": f"{what}, µs",
        "user-memory": "memory (PSS) of a user with both rooms, KB",
    }
    shared = {
        "user-shared-connect": f"{what} on one connection, µs",
        "user-shared-memory": "memory (PSS) of a user with both rooms on one connection, KB",
    }
    parts = [
        Part(rows, connecting(rows, step, both_rooms)),
        Part(shared, connecting(shared, step, both_rooms_shared, _REQUEST), _can_share),
    ]
    kinds = options.of(Ours(), Centrifugo(), Limit())
    return measure(options, kinds, lambda _: None, parts)


_REQUEST = '"request_'


def _can_share(kind: Server) -> bool:
    return isinstance(kind, Ours | Centrifugo)


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


def both_rooms_shared(kind: Server, user: str) -> list[Client]:
    """Return the client of a user with one connection for both rooms, the request's last."""
    assert isinstance(kind, Ours | Centrifugo)
    return [kind.client_of(user, [f"user_{user}", f"request_{user}"])]


def connecting(
    rows: Iterable[str],
    step: int,
    clients_of: Callable[[Server, str], list[Client]],
    live: str | None = None,
) -> Measure:
    """Run a round: add this number of users.

    Args:
        rows: the names of the CPU of a user and, unless it is left out, of the memory.
        live: confirms the last subscription of a client of ours; None: any does.
    """

    def round_of(session: Session) -> Mapping[str, float]:
        users = [str(_next_number()) for _ in range(step)]
        clients = [each for user in users for each in clients_of(session.kind, user)]
        mark = live if live and isinstance(session.kind, Ours) else session.kind.live
        before = machine.max_memory_bytes(session.server.pid)
        with session.used() as used_us:
            report = session.load.dial(session.port, clients, live=mark)
            time.sleep(REST_S)
        grown = machine.max_memory_bytes(session.server.pid) - before
        values = (used_us() / step, grown / 1024 / step)
        return {**dict(zip(rows, values, strict=False)), **busy(report)}

    return round_of
