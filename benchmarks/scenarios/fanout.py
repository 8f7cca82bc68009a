"""One room, 1,000 subscribers, notifications of 200 bytes: server CPU per delivery."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..ours import WithoutRing
from ..peers import Limit, everyone
from ..rounds import SETTLE_S, Measure, Options, Part, Result, Session, busy, measure
from ..servers import one_room

SUBSCRIBERS = 1000
DELIVERIES = 30_000
"""Deliveries per round."""


def run(options: Options) -> list[Result]:
    subscribers = options.scaled(SUBSCRIBERS)
    what = f"a delivery, room of {subscribers:,}"

    def prepare(session: Session) -> None:
        connect(session, subscribers)

    def part(name: str, what: str) -> Part:
        return Part({name: what}, delivering(name, subscribers, options))

    without = options.of(WithoutRing(), Limit())
    return [
        *measure(options, everyone(options), prepare, [part("fanout", f"{what}, µs")]),
        *measure(options, without, prepare, [part("fanout-loop", f"{what}, `--no-io-uring`, µs")]),
    ]


def connect(session: Session, subscribers: int) -> None:
    clients = [session.kind.client(one) for one in one_room(subscribers)]
    session.load.dial(session.port, clients, live=session.kind.live)
    time.sleep(SETTLE_S)


def delivering(name: str, subscribers: int, options: Options) -> Measure:
    """Run a round: publish the next when all subscribers have received the last."""
    count = max(5, options.scaled(DELIVERIES, 100) // subscribers)

    def round_of(session: Session) -> Mapping[str, float]:
        publish = session.kind.publish("workspace_1", subscribers)
        with session.used() as used_us:
            report = session.load.publish(session.publish_port, [publish], count, mode="paced")
        return {name: used_us() / report.delivered, **busy(report)}

    return round_of
