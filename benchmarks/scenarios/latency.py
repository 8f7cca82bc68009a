"""Scenario 4: latency from a publish until a client has read it, at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..load import Publish
from ..rounds import Measure, Options, Session, Table, compare
from ..servers import Server, own_rooms
from . import fanout, rooms

ROUND_S = 0.6
PUBLISHERS = 16

COLUMNS = {"p50_us": "p50, µs", "p99_us": "p99, µs", "max_us": "max, µs"}


def run(options: Options) -> list[Table]:
    many = options.scaled(1000)

    def one_room(session: Session) -> None:
        fanout.connect(session, many)

    def many_rooms(session: Session) -> None:
        rooms.connect(session, many)

    def to_one_room(kind: Server) -> list[Publish]:
        return [kind.publish("workspace_1", many)]

    def to_many_rooms(kind: Server) -> list[Publish]:
        return [kind.publish(one.room, 1) for one in own_rooms(many)]

    return [
        Table(
            "latency-fanout",
            f"Publish to receive: 20 publishes a second to {many:,} subscribers of one room",
            COLUMNS,
            ["p50_us", "p99_us"],
            compare(options, one_room, _at(20, to_one_room)),
        ),
        Table(
            "latency-rooms",
            f"Publish to receive: 500 publishes a second over {many:,} rooms",
            COLUMNS,
            ["p50_us", "p99_us"],
            compare(options, many_rooms, _at(500, to_many_rooms)),
        ),
    ]


def _at(rate: int, requests: Callable[[Server], list[Publish]]) -> Measure:
    def round_of(session: Session) -> Mapping[str, float]:
        report = session.load.publish(
            session.publish_port,
            requests(session.kind),
            round(rate * ROUND_S),
            mode="rate",
            rate=rate,
            publishers=PUBLISHERS,
        )
        return {"p50_us": report.p50_us, "p99_us": report.p99_us, "max_us": report.max_us}

    return round_of
