"""1,000 clients reconnect concurrently and replay 100 each: of a room each, and of one room."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ..load import Client
from ..peers import everyone
from ..rounds import SETTLE_S, Measure, Options, Part, Result, Session, busy, measure
from ..servers import Subscriber, one_room, own_rooms
from .publish import BATCH

BACK = 1000
KEPT = 100
"""Notifications that each client replays."""

IN_FLIGHT = 1000
"""Concurrent handshakes."""

TIMEOUT_S = 60.0


def run(options: Options) -> list[Result]:
    back = options.scaled(BACK)
    returning: dict[tuple[str, str], list[Client]] = {}
    parts = {
        "replay": (f"{back:,} rooms with {KEPT} each", own_rooms(back)),
        "replay-one-room": (f"{back:,} clients of one room with {KEPT}", one_room(back)),
    }

    def prepare(session: Session) -> None:
        for name, (_, subscribers) in parts.items():
            returning[name, session.kind.name] = _fill(session, subscribers)

    def replaying(name: str) -> Measure:
        return lambda session: _replay(name, session, returning[name, session.kind.name])

    return measure(
        options,
        [kind for kind in everyone(options, is_quick=True) if kind.has_replay],
        prepare,
        [
            Part({name: f"a notification replayed, {what}, µs"}, replaying(name))
            for name, (what, _) in parts.items()
        ],
    )


def _fill(session: Session, subscribers: Sequence[Subscriber]) -> list[Client]:
    """Publish to the rooms, and return the clients that missed all of that."""
    kind = session.kind
    rooms = list(dict.fromkeys(one.room for one in subscribers))
    size = min(BATCH, len(rooms))
    batches = [rooms[start : start + size] for start in range(0, len(rooms), size)]
    positions: dict[str, str] = {}
    for batch in batches:
        positions |= zip(batch, kind.positions(session.port, batch), strict=True)
    if kind.has_batches and len(rooms) > 1:
        publishes = [kind.publish_many(batch, 0) for batch in batches]
    else:
        publishes = [kind.publish(room, 0) for room in rooms]
    count = len(publishes) * KEPT
    session.load.publish(session.publish_port, publishes, count, mode="closed", timeout_s=TIMEOUT_S)
    return [kind.returning_client(one, positions[one.room]) for one in subscribers]


def _replay(name: str, session: Session, clients: Sequence[Client]) -> Mapping[str, float]:
    with session.used() as used_us:
        report = session.load.dial(
            session.port,
            clients,
            live=session.kind.live,
            in_flight=IN_FLIGHT,
            expected=len(clients) * KEPT,
            timeout_s=TIMEOUT_S,
        )
    session.load.hangup()
    time.sleep(SETTLE_S)  # the server notices the disconnects
    return {name: used_us() / report.delivered, **busy(report)}
