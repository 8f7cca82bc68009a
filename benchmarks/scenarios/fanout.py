"""Scenario 1: one room, 1,000 subscribers, notifications of 200 bytes: server CPU per delivery."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..rounds import SETTLE_S, Measure, Options, Session, Table, ceiling, compare, shares
from ..servers import Ours, WithoutRing, one_room

SUBSCRIBERS = 1000
DELIVERIES = 30_000
"""Deliveries per round."""

COLUMNS = {
    "delivery_us": "server CPU, µs a delivery",
    "load_us": "load's CPU, µs a delivery",
    "server_busy": "server busy, %",
    "load_busy": "load busy, %",
}


def run(options: Options) -> list[Table]:
    subscribers = options.scaled(SUBSCRIBERS)

    def prepare(session: Session) -> None:
        connect(session, subscribers)

    without = [WithoutRing() for kind in options.kinds if type(kind) is Ours]
    kinds = [*options.kinds, *without]
    rows = compare(options, prepare, measure(subscribers, options), kinds=kinds)
    title = f"One room, {subscribers:,} subscribers, 200 bytes, sequential publishes"
    return [Table("fanout", title, COLUMNS, ["delivery_us"], rows, ceiling(rows[0], "delivery_us"))]


def connect(session: Session, subscribers: int) -> None:
    clients = [session.kind.client(one) for one in one_room(subscribers)]
    session.load.dial(session.port, clients, live=session.kind.live)
    time.sleep(SETTLE_S)


def measure(subscribers: int, options: Options) -> Measure:
    """Run a round: publish the next when all subscribers have received the last."""
    count = max(5, options.scaled(DELIVERIES, 100) // subscribers)

    def round_of(session: Session) -> Mapping[str, float]:
        publish = session.kind.publish("workspace_1", subscribers)
        with session.used() as used_us:
            report = session.load.publish(session.publish_port, [publish], count, mode="paced")
        return {
            "delivery_us": used_us() / report.delivered,
            "load_us": report.cpu_s * 1e6 / report.delivered,
            **shares(report, used_us()),
        }

    return round_of
