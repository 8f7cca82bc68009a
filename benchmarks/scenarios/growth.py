"""The same costs with 100, 1,000 and 10,000 connections and rooms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..ours import Ours
from ..peers import Limit
from ..rounds import SETTLE_S, Measure, Options, Part, Result, Session, measure
from ..servers import Subscriber, one_room, own_rooms
from . import fanout, publish

SIZES = (100, 1000, 10_000)
SHARE = 0.4
"""Fraction of a round of the other scenarios."""

Subscribers = Callable[[int], Sequence[Subscriber]]


def run(options: Options) -> list[Result]:
    less = replace(options, scale=options.scale * SHARE)
    in_one_room: list[Part] = []
    in_rooms: list[Part] = []
    for size in SIZES:
        count = options.scaled(size)
        delivery, alone, batch = (f"growth-{of}-{size}" for of in ("fanout", "publish", "batch"))
        in_one_room.append(
            Part(
                {delivery: f"a delivery, room of {count:,}, µs"},
                _at(one_room, count, fanout.delivering(delivery, count, less)),
            )
        )
        in_rooms += [
            Part(
                {alone: f"a publish, {count:,} rooms, µs"},
                _at(own_rooms, count, publish.publishing(alone, count, less)),
            ),
            Part(
                {batch: f"a publish in a batch, {count:,} rooms, µs"},
                _at(own_rooms, count, publish.publishing_batches(batch, count, less)),
            ),
        ]
    return [
        result
        for parts in (in_one_room, in_rooms)
        for result in measure(options, options.of(Ours(), Limit()), lambda _: None, parts)
    ]


def _at(subscribers: Subscribers, count: int, measure: Measure) -> Measure:
    """Run a round with this number of subscribers: the first round connects those that miss."""

    def round_of(session: Session) -> Mapping[str, float]:
        if missing := subscribers(count)[session.load.clients :]:
            clients = [session.kind.client(one) for one in missing]
            session.load.dial(session.port, clients, live=session.kind.live)
            time.sleep(SETTLE_S)
        return measure(session)

    return round_of
