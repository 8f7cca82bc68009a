"""A reply that streams to the subscribers of a room: server CPU and frames a subscriber.

The pieces are published at a steady rate. To synap-realtime each is a piece of a growing text (see
PROTOCOL.md, "Folding"), which the server joins with those of the same interval. To the others each
is a notification of its own, and, in a second pair of rows, also to synap-realtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count as counting

from ..centrifugo import Centrifugo
from ..load import Publish
from ..ours import Ours
from ..peers import Limit
from ..rounds import Measure, Options, Part, Result, Session, busy, measure
from ..servers import Server
from . import fanout

PIECES = 200
RATE = 200
"""Pieces a second, one after the other."""

SUBSCRIBERS = 100
ROUNDS = 3

ROOM = "workspace_1"


def run(options: Options) -> list[Result]:
    subscribers = options.scaled(SUBSCRIBERS)
    pieces = options.scaled(PIECES, 20)
    what = f"a reply of {pieces} pieces, {RATE} a second, to a room of {subscribers}"
    numbers: Callable[[], int] = counting().__next__

    def reply(kind: Server) -> list[Publish]:
        return kind.reply(ROOM, numbers(), pieces, subscribers)

    def apart(kind: Server) -> list[Publish]:
        return [kind.publish(ROOM, subscribers)] * pieces

    parts = [
        Part(_rows("reply", what), _streaming("reply", subscribers, reply), rounds=ROUNDS),
        Part(
            _rows("reply-apart", f"{what}, without `fold`"),
            _streaming("reply-apart", subscribers, apart),
            lambda kind: isinstance(kind, Ours),
            ROUNDS,
        ),
    ]
    kinds = options.of(Ours(), Centrifugo(), Limit())
    return measure(options, kinds, lambda mine: fanout.connect(mine, subscribers), parts)


def _rows(name: str, what: str) -> Mapping[str, str]:
    return {
        name: f"{what}: µs a subscriber",
        f"{name}-frames": f"{what}: frames a subscriber",
    }


def _streaming(name: str, subscribers: int, requests: Callable[[Server], list[Publish]]) -> Measure:
    def round_of(session: Session) -> Mapping[str, float]:
        pieces = requests(session.kind)
        with session.used() as used_us:
            report = session.load.publish(
                session.publish_port, pieces, len(pieces), mode="rate", rate=RATE, may_exceed=True
            )
        return {
            name: used_us() / subscribers,
            f"{name}-frames": report.delivered / subscribers,
            **busy(report),
        }

    return round_of
