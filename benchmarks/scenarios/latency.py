"""Latency from a publish until a client has read it, at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..load import Publish
from ..peers import everyone
from ..rounds import Measure, Options, Part, Result, Session, busy, measure
from ..servers import Server, own_rooms
from . import fanout, publish

ROOMS = 1000
RATE = 500
FANOUT_RATE = 20
ROUND_S = 2.0
PUBLISHERS = 16
ROUNDS = 4


def run(options: Options) -> list[Result]:
    many = options.scaled(ROOMS)
    kinds = everyone(options, is_quick=True)

    def to_rooms(kind: Server) -> list[Publish]:
        return [kind.publish(one.room, 1) for one in own_rooms(many)]

    def to_one_room(kind: Server) -> list[Publish]:
        return [kind.publish("workspace_1", many)] * PUBLISHERS

    spread = f"publish to receive, {RATE} a second over {many:,} rooms"
    crowded = f"publish to receive, {FANOUT_RATE} a second to a room of {many:,}"
    return [
        *_measure(options, kinds, publish.connect, "latency", spread, RATE, to_rooms),
        *_measure(
            options, kinds, fanout.connect, "latency-fanout", crowded, FANOUT_RATE, to_one_room
        ),
    ]


def _measure(
    options: Options,
    kinds: list[Server],
    connect: Callable[[Session, int], None],
    name: str,
    what: str,
    rate: int,
    requests: Callable[[Server], list[Publish]],
) -> list[Result]:
    many = options.scaled(ROOMS)
    count = options.scaled(round(rate * ROUND_S))
    rows = {f"{name}-{each}": f"{what}, {each}, µs" for each in ("p50", "p99")}
    part = Part(rows, _at(name, rate, count, requests), rounds=ROUNDS)
    return measure(options, kinds, lambda mine: connect(mine, many), [part])


def _at(name: str, rate: int, count: int, requests: Callable[[Server], list[Publish]]) -> Measure:
    def round_of(session: Session) -> Mapping[str, float]:
        report = session.load.publish(
            session.publish_port,
            requests(session.kind),
            count,
            mode="rate",
            rate=rate,
            publishers=PUBLISHERS,
        )
        return {f"{name}-p50": report.p50_us, f"{name}-p99": report.p99_us, **busy(report)}

    return round_of
