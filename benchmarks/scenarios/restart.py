"""A storm: 10,000 clients reconnect after ``kill -9`` of the server, which is started again."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..peers import everyone
from ..rounds import SETTLE_S, Options, Part, Result, Session, busy, measure
from ..servers import own_rooms
from .replay import IN_FLIGHT, TIMEOUT_S

CONNECTIONS = 10_000
ROUNDS = 3


def run(options: Options) -> list[Result]:
    connections = options.scaled(CONNECTIONS)

    def connect(session: Session) -> None:
        clients = [session.kind.client(one) for one in own_rooms(connections)]
        session.load.dial(session.port, clients, live=session.kind.live, timeout_s=TIMEOUT_S)
        time.sleep(SETTLE_S)

    what = f"{connections:,} live again after kill -9, start of the program included, s"
    part = Part({"restart": what}, _restart, rounds=ROUNDS)
    return measure(options, everyone(options, is_quick=True), connect, [part])


def _restart(session: Session) -> Mapping[str, float]:
    session.load.expect_restart(in_flight=IN_FLIGHT, timeout_s=TIMEOUT_S)
    killed_ns = time.monotonic_ns()
    session.server.kill()
    session.server.start()
    report = session.load.restarted()
    return {"restart": (report.last_live_ns - killed_ns) / 1e9, **busy(report)}
