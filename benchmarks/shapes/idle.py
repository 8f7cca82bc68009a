"""Shape 3: 10,000 idle connections, each in a room of its own: memory of each, CPU a connect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count

from .. import machine
from ..rounds import Measure, Options, Session, Table, compare, shares
from ..servers import Listener

CONNECTIONS = 10_000
REST_S = 0.4
"""Before the memory is read."""

COLUMNS = {
    "connection_kb": "memory (PSS), KB a connection",
    "connect_us": "server CPU, µs a connect",
    "load_busy": "load busy, %",
}


def run(options: Options) -> list[Table]:
    step = options.scaled(CONNECTIONS) // (options.rounds + 1)
    rows = compare(options, lambda _: None, measure(step))
    steps = options.rounds + 1
    title = f"Idle: {step * steps:,} connections in {steps} steps, of which the first warms up"
    return [Table("idle", title, COLUMNS, ["connect_us"], rows)]


def measure(step: int) -> Measure:
    """A round: so many more connections."""
    numbers: Callable[[], int] = count().__next__

    def round_of(session: Session) -> Mapping[str, float]:
        users = [str(numbers()) for _ in range(step)]
        clients = [session.kind.client(Listener(user, f"user_{user}")) for user in users]
        before = machine.memory_bytes(session.server.pid)
        with session.used() as used_us:
            report = session.load.dial(session.port, clients, live=session.kind.live)
            time.sleep(REST_S)
        grown = machine.memory_bytes(session.server.pid) - before
        return {
            "connection_kb": grown / 1024 / step,
            "connect_us": used_us() / step,
            "load_busy": shares(report, used_us())["load_busy"],
        }

    return round_of
